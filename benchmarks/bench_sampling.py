"""What balanced sampling does to probabilities, and what undoing it gives back.

    python benchmarks/bench_sampling.py [--output FILE.json] [--patients 320] [--epochs 10] [--seed 0]

Synthetic head CT at 64 px with about the prevalences of the RSNA data, two thirds of the patients for training, one
third for validation (natural, nothing sampled). A cnn is trained on balanced batches. The table gives, on
validation, the log loss of the probabilities as the model says them and with the sampling undone, and for each label
the mean probability over the prevalence, before and after. Exit code 1 when undoing the sampling does not lower the
log loss, a label with 50 positives or more ends outside 0.5 to 2, or the rarest stratum has under 1/7 of the slices
that training shows.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import keras
import numpy as np

from benchmarks.made_dataset import make_dataset
from trainer import task
from trainer.data import input_pipeline, sampling
from trainer.data.dataset import Slices, open_dataset
from trainer.data.input_pipeline import Share
from trainer.models import model_file
from trainer.results.probability import sigmoid
from trainer.training import metrics

CHANGES = "image: {size_px: 64}\nsplit: {weights: {train: 2, validation: 1}}\n"
FLAGS = ["--sampling", "balanced", "--set", "test_split=", "--set", "flip=true", "--set", "shift=0.04"]
FLAGS += ["--set", "rotate_deg=10", "--set", "schedule=cosine"]
LEAST_POSITIVES, LEAST_SHARE = 50, 1 / 7


def logits_of(model: keras.Model, slices: Slices) -> np.ndarray:
    """float64 [n, L] of the slices in table order."""
    batches = input_pipeline.evaluation_batches(slices, 128, Share.whole())
    every = [model(batch["image"], training=False).numpy()[batch["weight"].numpy() > 0] for batch in batches]
    return np.concatenate(every).astype(np.float64)


def rows(slices: Slices, logits: np.ndarray, natural: np.ndarray) -> list[dict[str, Any]]:
    """One row a label: positives, prevalence, mean probability over prevalence as said and with sampling undone."""
    as_said, undone = sigmoid(logits).mean(0), sigmoid(natural).mean(0)
    table = []
    for index, name in enumerate(slices.spec.labels.names):
        positives = int((slices.labels[:, index] == 1).sum())
        prevalence = positives / len(slices)
        ratios = {"as_said": as_said[index] / prevalence, "undone": undone[index] / prevalence} if positives else {}
        table.append({"label": name, "positives": positives, "prevalence": prevalence, **ratios})
    return table


def main() -> int:
    """Print the table; returns 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--patients", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_dataset(folder / "set", args.patients, CHANGES, False, args.seed, slices_per_study=16)
        data = open_dataset(str(folder / "set"), note=lambda text: None)
        train, validation = data.split("train"), data.split("validation")
        where = ["--model", "cnn", "--data_dir", str(folder / "set"), "--job_dir", str(folder / "run")]
        with contextlib.redirect_stdout(io.StringIO()):
            code = task.main([*where, *FLAGS, "--epochs", str(args.epochs), "--seed", str(args.seed)])
        if code:
            return code
        about = model_file.read_about(folder / "run" / "export")
        logits = logits_of(model_file.load_model(folder / "run" / "export", about), validation)
    natural = about.log_odds(logits)
    weights = np.array([2.0] + [1.0] * (logits.shape[1] - 1))
    before, after = (metrics.log_loss(validation.labels, values, weights) for values in (logits, natural))
    shares = sampling.proportions("balanced", train.stratum_counts, {})
    rarest = min((name for name in shares if shares[name]), key=lambda name: train.stratum_counts[name])
    table = rows(validation, logits, natural)
    print(f"train {train.stratum_counts}; balanced shows {rarest}, the rarest, in {shares[rarest]:.3f} of the slices")
    print(
        f"validation, {len(validation):,} slices: log loss {before:.4f} as said, {after:.4f} with the sampling undone"
    )
    for row in table:
        said = (
            f"x{row['as_said']:.2f} as said, x{row['undone']:.2f} undone" if row["positives"] else "no positive slice"
        )
        print(f"  {row['label']:18} {row['positives']:5} positives ({row['prevalence']:.3f}), mean probability {said}")
    frequent = [row for row in table if row["positives"] >= LEAST_POSITIVES]
    within = all(0.5 <= row["undone"] <= 2 for row in frequent)
    if args.output:
        found = {"log_loss_as_said": before, "log_loss_undone": after, "rarest_share": shares[rarest], "labels": table}
        args.output.write_text(json.dumps(found, indent=1) + "\n")
    return int(not (after < before and within and frequent and shares[rarest] >= LEAST_SHARE))


if __name__ == "__main__":
    sys.exit(main())
