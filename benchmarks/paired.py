"""Two runs that were evaluated on the same slices, and the paired interval of their difference over patients."""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from benchmarks.bench_odds_runs import interval
from benchmarks.bench_series import losses, run, told
from trainer.results import evaluated, predictions


def parser(text: str, patients: int, size_px: int) -> argparse.ArgumentParser:
    """Flags of a benchmark that trains pairs of runs; `text`: its docstring."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--folder", type=Path, metavar="DIR")
    made.add_argument("--patients", type=int, default=patients)
    made.add_argument("--size_px", type=int, default=size_px)
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--as_they_are", action="store_true")
    made.add_argument("--output", type=Path, metavar="FILE.json")
    return made


@contextlib.contextmanager
def folder(given: Path | None) -> Iterator[Path]:
    """The folder that keeps everything, or one that goes."""
    with contextlib.ExitStack() as stack:
        found = (given or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()
        found.mkdir(parents=True, exist_ok=True)
        yield found


def trained(job_dir: Path, settings: str) -> Path:
    """A run with its evaluation of the test split, unless it is there."""
    run(f"trainer.task --model cnn --job_dir {job_dir} {settings}")
    if not (job_dir / "evaluation" / "test" / "report.html").exists():
        run(f"trainer.evaluate --job_dir {job_dir}")
    return job_dir


def compared(
    seeds: int, arms: Callable[[int], Mapping[str, Path]], output: Path | None, evaluation: str = "test"
) -> int:
    """Print a line a seed, of the two runs that `arms` gives; 0 where the second has the lower loss in each, else 1.

    `evaluation`: name of its folder in the run.
    """
    found = {}
    for seed in range(seeds):
        runs = arms(seed)
        said = [predictions.read(evaluated.folder(one, evaluation) / evaluated.PREDICTIONS) for one in runs.values()]
        first, second = (losses(one).sum(1)[np.argsort(one.ids["sop_uid"].to_pylist())] for one in said)
        patients = said[0].patients[np.argsort(said[0].ids["sop_uid"].to_pylist())]
        difference = second - first
        found[seed] = [difference.mean(), *interval(difference, patients)]
        means = ", ".join(f"{name} {loss.mean():.4f}" for name, loss in zip(runs, (first, second)))
        print(f"seed {seed}: {means}, {told(found[seed])}", flush=True)
    if output:
        output.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(high >= 0 for _, _, high in found.values()))
