"""How long the intervals of an evaluation take, and in how much memory.

    python benchmarks/bench_bootstrap.py [--output FILE.json] [--slices 100000] [--patients 2900] [--resamples 1000]

Made predictions of six labels with about the prevalences of the RSNA data, a few unknown; a patient's slices
resemble each other. Times `measures.measure` (every measure of slices and studies with its interval) and, beside
it, the bands of the ROC and precision-recall curves of every label. Exit code 1 when the measures take over 60 s
or the process ever held over 1 GB.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pyarrow as pa

from benchmarks.peak import peak_bytes
from trainer.results import curves, measures, thresholds
from trainer.results.predictions import Predictions
from trainer.results.probability import sigmoid

NAMES = ("any", "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
PREVALENCES = (0.143, 0.004, 0.048, 0.035, 0.047, 0.063)
MOST_S, MOST_BYTES = 60, 10**9


def made(slices: int, patients: int, seed: int) -> Predictions:
    """Predictions of so many slices, about as good as a trained model's, probabilities with a patient's own shift."""
    rng = np.random.default_rng(seed)
    patient = np.sort(rng.integers(0, patients, slices))
    prevalence = np.array(PREVALENCES)
    ill = rng.random((patients, len(NAMES))) < 3 * prevalence
    labels = (ill[patient] & (rng.random((slices, len(NAMES))) < 1 / 3)).astype(np.int8)
    shift = rng.normal(0, 0.7, (patients, len(NAMES)))[patient]
    logits = np.log(prevalence / (1 - prevalence)) - 1 + 3.5 * labels + shift + rng.normal(0, 1, labels.shape)
    logits = logits.astype(np.float32)
    labels[rng.random(labels.shape) < 0.01] = -1
    keys = [f"{number:08x}" for number in patient]
    ids = {
        "sop_uid": [f"ID_{row:09x}" for row in range(slices)],
        "study_uid": keys,
        "series_uid": keys,
        "patient_key": keys,
        "slice_index": np.arange(slices),
        "position_mm": np.zeros(slices, np.float32),
    }
    return Predictions(NAMES, NAMES[0], pa.table(ids), labels, logits, sigmoid(logits))


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def main() -> int:
    """Print the table; returns 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--slices", type=int, default=100_000)
    parser.add_argument("--patients", type=int, default=2_900)
    parser.add_argument("--resamples", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    said = made(args.slices, args.patients, args.seed)
    chosen = {name: thresholds.choose(said.labels[:, at], said.probabilities[:, at]) for at, name in enumerate(NAMES)}
    before = sigmoid(said.logits + 1.0)
    held = peak_bytes()
    start = time.perf_counter()
    prevalence = dict(zip(NAMES, PREVALENCES))
    found = measures.measure(said, before, chosen, chosen, prevalence, args.resamples, args.seed)
    measures_s = time.perf_counter() - start
    most = peak_bytes()
    start = time.perf_counter()
    for at in range(len(NAMES)):
        for band in (curves.roc_band, curves.pr_band):
            band(said.labels[:, at], said.probabilities[:, at], said.patients, args.resamples, args.seed)
    bands_s = time.perf_counter() - start
    print(f"{args.slices:,} slices of {found['patients']:,} patients, {args.resamples:,} resamples")
    print(f"  all measures with intervals {measures_s:6.1f} s   (at most {MOST_S} s)")
    print(f"  twelve bands of curves      {bands_s:6.1f} s")
    print(
        f"  peak memory {most / 1e6:,.0f} MB, {held / 1e6:,.0f} MB of it before   (at most {MOST_BYTES / 1e6:,.0f} MB)"
    )
    for name, values in found["labels"].items():
        shown = [_text(values["auc"][end]) for end in ("value", "low", "high")]
        print(f"  {name:18} AUC {shown[0]} [{shown[1]}, {shown[2]}]  {values['note']}".rstrip())
    if args.output:
        times = {"measures_s": measures_s, "bands_s": bands_s, "peak_bytes": most, **vars(args)}
        args.output.write_text(json.dumps(times, indent=1, default=str) + "\n")
    return int(measures_s > MOST_S or most > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
