"""Does the context help: series runs beside their slice runs on held-out made-up patients, for several seeds.

    python benchmarks/bench_series.py [--folder DIR] [--patients 220] [--size_px 64] [--seeds 3] [--output FILE.json]

One data set of `synthetic --context` studies, in which single slices fool; for each seed a `cnn` and a series model on
its vectors, both evaluated on the test split, everything by the commands that a user would type. A line a seed: log
loss of both, the paired 95% interval of the difference over patients, and AUC of studies for `any` by series head, by
blend and by greatest slice. Then the labels by what the context gains, so that those it does not help stand there too.
`--folder` keeps everything and goes on where it stopped. About 15 minutes on 2 quiet cores; exit code 1 where an
interval holds 0.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import numpy.typing as npt

from benchmarks.bench_odds_runs import interval
from benchmarks.made_dataset import ROOT
from trainer.results import evaluated, predictions
from trainer.results.predictions import Predictions
from trainer.results.probability import ANY_WEIGHT, log_losses

SLICES = "--epochs 12 --set flip=true --set rotate_deg=5 --set shift=0.05 --set schedule=cosine"
SERIES = (
    "--epochs 40 --batch_size 16 --learning_rate 0.002 --set architecture.width=128 --set architecture.units=64 "
    "--set series.vector_dropout=0.1"
)


def run(command: str) -> None:
    """A command of this project; its output is shown where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def make(folder: Path, patients: int, size_px: int) -> None:
    """The data set, where it is not there yet."""
    spec = (ROOT / "configs" / "rsna_ich.yaml").read_text().replace("size_px: 128", f"size_px: {size_px}")
    (folder / "spec.yaml").write_text(spec)
    drawn = f"--patients {patients} --slices_per_study 20 --positive_fraction 0.7 --every_label --context --seed 3"
    if not (folder / "ct").exists():
        run(f"ich_tfrecords.synthetic --output {folder}/ct {drawn}")
    labels = f"--labels {folder}/ct/stage_2_train.csv"
    if not (folder / "set" / "manifest.json").exists():
        where = f"--input {folder}/ct/stage_2_train {labels} --output {folder}/set"
        run(f"beam_pipelines.convert --spec {folder}/spec.yaml {where}")


def train(folder: Path, seed: int) -> tuple[Path, Path]:
    """The evaluated slice run and series run of a seed."""
    slices, series = folder / f"slices{seed}", folder / f"series{seed}"
    common = f"--data_dir {folder}/set --seed {seed}"
    run(f"trainer.task --model cnn --job_dir {slices} {common} {SLICES}")
    run(f"trainer.task --model series --slice_run {slices} --job_dir {series} {common} {SERIES}")
    for one in (slices, series):
        if not (one / "evaluation" / "test" / "report.html").exists():
            run(f"trainer.evaluate --job_dir {one}")
    return slices, series


def losses(said: Predictions) -> npt.NDArray[np.float64]:
    """float64 [n, L], the competition's log loss of each label of each slice, times its weight."""
    weights = [ANY_WEIGHT if name == said.any else 1.0 for name in said.names]
    return log_losses(said.labels == 1, said.probabilities) * weights / np.sum(weights)


def compared(slices: Path, series: Path) -> dict[str, Any]:
    """The figures of a seed."""
    plain, context = (
        predictions.read(evaluated.folder(one, "test") / evaluated.PREDICTIONS) for one in (slices, series)
    )
    difference = losses(context) - losses(plain)
    low, high = interval(difference.sum(1), plain.patients)
    measured = json.loads((evaluated.folder(series, "test") / evaluated.METRICS).read_text())["measures"]
    any_name = plain.any
    ways = {way: found[any_name]["auc"] for way, found in measured["studies_by"].items()}
    return {
        "slices": losses(plain).sum(1).mean(),
        "series": losses(context).sum(1).mean(),
        "difference": [difference.sum(1).mean(), low, high],
        "patients": int(plain.patients.max()) + 1,
        "labels": {
            name: [one.mean(), *interval(one, plain.patients)]
            for name, one in zip(plain.names, difference.T, strict=True)
        },
        "study_auc": {"greatest slice": measured["studies_level"][any_name]["auc"], **ways},
        "gain": {way: found[any_name]["auc_gain"] for way, found in measured["studies_by"].items()},
    }


def lines(found: dict[int, dict[str, Any]]) -> Iterator[str]:
    """What was found, as Markdown tables."""
    areas = " | ".join(f"study AUC by {way}" for way in next(iter(found.values()))["study_auc"])
    yield f"| seed | log loss, slices | log loss, series | difference (95% interval) | {areas} |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for seed, one in found.items():
        areas = " | ".join(f"{area['value']:.3f}" for area in one["study_auc"].values())
        yield f"| {seed} | {one['slices']:.4f} | {one['series']:.4f} | {told(one['difference'])} | {areas} |"
    yield ""
    yield f"| label | {' | '.join(f'seed {seed}' for seed in found)} |"
    yield f"| --- |{' ---: |' * len(found)}"
    for name in next(iter(found.values()))["labels"]:
        yield f"| {name} | {' | '.join(told(one['labels'][name]) for one in found.values())} |"


def told(values: list[float]) -> str:
    """`-0.0213 (-0.0300 to -0.0120)`."""
    value, low, high = values
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"


def main() -> int:
    """Print the figures; returns 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, metavar="DIR")
    parser.add_argument("--patients", type=int, default=220)
    parser.add_argument("--size_px", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = (args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, args.patients, args.size_px)
        found = {}
        for seed in range(args.seeds):
            found[seed] = compared(*train(folder, seed))
            print(f"seed {seed}: {told(found[seed]['difference'])}", file=sys.stderr, flush=True)
    print("\n".join(lines(found)))
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(one["difference"][2] >= 0 for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
