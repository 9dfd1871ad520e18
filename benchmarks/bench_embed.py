"""How fast the vectors of slices are kept, beside the bare forward pass of the same model.

    python benchmarks/bench_embed.py [--output FILE.json] [--model cnn] [--patients 150] [--rounds 5]

Synthetic head CT at 128 px in its shards, all cores, two parts. Whole passes take turns (batch by batch, one would read
ahead in the other's time); a figure is the best of the rounds:

- bare: the compiled model on one batch of images in memory, its logits fetched, as many times as there are batches
- embed: what `python -m trainer.embed` does for a split once the model is compiled: read and check the records, vectors
  and logits in one pass, parts with their sha256 put in place; also told without that last step, whose fsync waits for
  whatever others write on a shared disk

Then the plan of 762,131 made-up slices of 21,744 series, its wall time. Exit code 1 when a promise is broken: embed
90% of bare, the plan within 10 s.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pyarrow as pa
import tensorflow as tf

from benchmarks.made_dataset import make_dataset
from trainer import task
from trainer.data import series
from trainer.data.dataset import Slices, open_dataset
from trainer.models import model_file
from trainer.models.model_file import Embedder
from trainer.results.vectors import Source, Store
from trainer.training import scoring

SLICES, SERIES = 762_131, 21_744
LEAST_RATIO, MOST_PLAN_S = 0.9, 10.0


def train(folder: Path, model: str) -> None:
    """A run of one step, in `folder`."""
    flags = ["--epochs", "1", "--steps_per_epoch", "1", "--set", "weights=none", "--set", "freeze_epochs=0"]
    flags += ["--set", "validation_split=", "--set", "test_split=", "--set", "absent_labels=true"]
    where = ["--model", model, "--data_dir", str(folder / "set"), "--job_dir", str(folder / "run")]
    with contextlib.redirect_stdout(io.StringIO()):
        if task.main([*where, *flags]):
            raise RuntimeError("training failed")


class TimedStore(Store):
    """A store that adds up how long its parts take to the disk."""

    put_s = 0.0

    def put(self, number: int, rows: np.ndarray) -> None:
        """Put a part in place."""
        begin = time.perf_counter()
        super().put(number, rows)
        self.put_s += time.perf_counter() - begin


def embed(forward: Embedder, slices: Slices, source: Source, dim: int) -> float:
    """Make all vectors of a split anew; returns the seconds that putting parts in place took."""
    shutil.rmtree(source.folder(slices.split), ignore_errors=True)
    store = TimedStore(source, slices.split, len(slices), dim, slices.spec.labels.names)
    with contextlib.redirect_stdout(io.StringIO()):
        scoring._embed_split(forward, slices, store)
    return store.put_s


def rates(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Slices a second of each way, a figure a round."""
    about, data = model_file.read_about(folder / "run" / "export"), open_dataset(str(folder / "set"))
    model, slices = model_file.load_model(folder / "run" / "export", about), data.split("train")
    score, forward, dim = model_file.scorer(model), model_file.embedder(model), model_file.vector_dim(model)
    source = scoring.source(str(folder / "run"), about, data, mirrored=False)
    images = tf.convert_to_tensor(slices.reader.read(np.arange(scoring.EMBEDDED))[0])

    def bare() -> float:
        begin = time.perf_counter()
        for _ in range(0, len(slices), scoring.EMBEDDED):
            score(images)
        return time.perf_counter() - begin

    bare()
    embed(forward, slices, source, dim)
    found: dict[str, list[float]] = {"bare": [], "embed": [], "without_disk": []}
    for _ in range(rounds):
        found["bare"].append(len(slices) / bare())
        begin = time.perf_counter()
        put_s = embed(forward, slices, source, dim)
        whole = time.perf_counter() - begin
        found["embed"].append(len(slices) / whole)
        found["without_disk"].append(len(slices) / (whole - put_s))
    return found


def plan_seconds() -> float:
    """Wall time of the plan of all slices into series."""
    rng = np.random.default_rng(0)
    of = rng.integers(0, SERIES, SLICES)
    texts = {name: pa.array([f"ID_{number * 7919 % 2**40:010x}" for number in range(SERIES)]) for name in series.KEY}
    columns = {name: every.take(pa.array(of)) for name, every in texts.items()}
    uids = pa.array([f"ID_{number:09x}" for number in rng.permutation(SLICES)])
    table = pa.table({**columns, "position_mm": rng.normal(0, 60, SLICES).round(1), "sop_uid": uids})
    begin = time.perf_counter()
    found = series.plan(table)
    seconds = time.perf_counter() - begin
    assert len(found) == len(np.unique(of))
    return seconds


def main() -> int:
    """Print the figures; returns 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--model", default="cnn", choices=("cnn", "densenet121", "xception"))
    parser.add_argument("--patients", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_dataset(folder / "set", args.patients, "split: {weights: {train: 1}}\nshards: {min_shards: 4}\n")
        train(folder, args.model)
        found = rates(folder, args.rounds)
    best = {way: max(values) for way, values in found.items()}
    ratio = best["embed"] / best["bare"]
    seconds = plan_seconds()
    bare, whole, rest = (f"{best[way]:,.0f}" for way in ("bare", "embed", "without_disk"))
    print(f"{args.model}: bare {bare} slices/s, embed {whole}, {rest} less the disk")
    print(f"embed / bare {ratio:.3f}   promised {LEAST_RATIO:g}")
    print(f"plan of {SLICES:,} slices into {SERIES:,} series {seconds:.2f} s   promised {MOST_PLAN_S:g} at most")
    if args.output:
        values = {"slices_per_s": best, "ratio": ratio, "plan_s": seconds}
        args.output.write_text(json.dumps(values, indent=1) + "\n")
    return int(ratio < LEAST_RATIO or seconds > MOST_PLAN_S)


if __name__ == "__main__":
    sys.exit(main())
