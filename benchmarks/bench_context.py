"""Do neighbours as channels help: a cnn that sees single slices beside one with a neighbour on either side.

    python benchmarks/bench_context.py [--folder DIR] [--patients 220] [--size_px 48] [--seeds 3] [--output FILE.json]

The data set of `bench_series.py`: `synthetic --context` studies, in which single slices fool. For each seed two runs of
a `cnn` that differ in `context_slices` alone (`--context 2`: more neighbours), evaluated on the test split, everything
by the commands that a user would type. A line a seed: log loss of both, and by `trainer.compare` how much lower it is
with neighbours, paired over held-out patients, with its 95% interval; then the same label by label. `--folder` keeps
everything and goes on where it stopped. Exit code 1 where an interval of the log loss holds 0.

    python benchmarks/bench_context.py --reading [--patients 60] [--rounds 6]

What reading costs: batches of 32 at 128 px without and with one and two neighbours on either side, in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bench_odds_runs import interval
from benchmarks.bench_series import SLICES, losses, make, run, told
from benchmarks.made_dataset import make_dataset
from trainer.results import evaluated, predictions

BATCH, READ_CONTEXTS = 32, (0, 1, 2)


def train(folder: Path, seed: int, context: int) -> Path:
    """The evaluated run of a seed."""
    job_dir = folder / f"context{context}_{seed}"
    given = f"--data_dir {folder}/set --seed {seed} --set context_slices={context}"
    run(f"trainer.task --model cnn --job_dir {job_dir} {given} {SLICES}")
    if not (job_dir / "evaluation" / "test" / "report.html").exists():
        run(f"trainer.evaluate --job_dir {job_dir}")
    return job_dir


def compared(folder: Path, plain: Path, context: Path) -> dict[str, Any]:
    """The figures of a seed; differences are of the run with neighbours less the plain one."""
    output = folder / f"{plain.name}_{context.name}.html"
    run(f"trainer.compare {context} {plain} --output {output}")
    with output.with_suffix(".csv").open(encoding="utf-8") as file:
        rows = {row["run"]: row for row in csv.DictReader(file) if row["metric"] == "log_loss"}
    found = next(rows[name] for name in (context.name, plain.name) if rows[name]["difference"])  # of the worse one
    difference = [float(found[name]) for name in ("difference", "difference_low", "difference_high")]
    if found["run"] == plain.name:
        difference = [-difference[at] for at in (0, 2, 1)]
    both = [predictions.read(evaluated.folder(one, "test") / evaluated.PREDICTIONS) for one in (plain, context)]
    by_label = (losses(both[1]) - losses(both[0])).T
    return {
        "plain": float(rows[plain.name]["value"]),
        "context": float(rows[context.name]["value"]),
        "difference": difference,
        "patients": int(both[0].patients.max()) + 1,
        "labels": {
            name: [one.mean(), *interval(one, both[0].patients)]
            for name, one in zip(both[0].names, by_label, strict=True)
        },
    }


def helped(args: argparse.Namespace, folder: Path) -> int:
    """Print what neighbours bring; 1 where that is not clear of 0 in every seed."""
    make(folder, args.patients, args.size_px)
    found = {}
    for seed in range(args.seeds):
        one = compared(folder, *(train(folder, seed, context) for context in (0, args.context)))
        found[seed] = one
        print(
            f"seed {seed}: alone {one['plain']:.4f}, with neighbours {one['context']:.4f}, {told(one['difference'])}",
            flush=True,
        )
    print(f"{found[0]['patients']} held-out patients\n\n| label | {' | '.join(f'seed {seed}' for seed in found)} |")
    print(f"| --- |{' ---: |' * len(found)}")
    for name in found[0]["labels"]:
        print(f"| {name} | {' | '.join(told(one['labels'][name]) for one in found.values())} |")
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(one["difference"][2] >= 0 for one in found.values()))


def read(args: argparse.Namespace, folder: Path) -> int:
    """Print images/s for each number of neighbours, and the median of the ratios round by round."""
    from trainer.data.augment import Augmentation
    from trainer.data.dataset import open_dataset

    if not (folder / "read" / "manifest.json").exists():
        make_dataset(folder / "read", args.patients)
    slices = open_dataset(str(folder / "read")).split("train")
    for word, augmentation in (("plain", Augmentation(False, 0, 0)), ("augmented", Augmentation(True, 5, 0.05))):
        rates: dict[int, list[float]] = {context: [] for context in READ_CONTEXTS}
        for _ in range(args.rounds + 1):  # the first compiles
            for context, own in rates.items():
                own.append(rate(slices.with_neighbours(context), augmentation))
        for context, own in rates.items():
            part = statistics.median(one / alone for one, alone in zip(own[1:], rates[0][1:], strict=True))
            print(f"{word}, context_slices {context}: {max(own[1:]):,.0f} images/s, {part:.2f} of those without")
    return 0


def rate(slices: Any, augmentation: Any) -> float:
    """Images/s of an epoch in natural order."""
    from trainer.data import sampling
    from trainer.data.input_pipeline import EpochPlan, Share, train_batches

    counts = slices.stratum_counts
    size = sum(counts.values()) // BATCH * BATCH
    shares = sampling.proportions(sampling.NATURAL, counts, {})
    plan = EpochPlan(sampling.NATURAL, shares, 0, 0, size, BATCH, 1, augmentation)
    batches = iter(train_batches(slices, plan, Share.whole()))
    next(batches)
    begin, read = time.perf_counter(), sum(BATCH for _ in batches)
    return read / (time.perf_counter() - begin)


def main() -> int:
    """Print the figures; returns 1 where neighbours do not clearly help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, metavar="DIR")
    parser.add_argument("--patients", type=int, default=220)
    parser.add_argument("--size_px", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--context", type=int, default=1)
    parser.add_argument("--reading", action="store_true")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = (args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return (read if args.reading else helped)(args, folder)


if __name__ == "__main__":
    sys.exit(main())
