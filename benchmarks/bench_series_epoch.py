"""How long an epoch of the series model takes over as many series as RSNA has, and in how much memory.

    python benchmarks/bench_series_epoch.py [--output FILE.json] [--part 1.0]

21,744 made-up series with the lengths of RSNA's (median 34, 95% up to 44, the longest 60), vectors of 1,024 numbers in
a file of 1.6 GB, the settings of configs/series.yaml, all cores. `--part`: of the epoch that is run; its time is told
for the whole. The first call, which compiles, counts too. Exit code 1 where the epoch takes more than 5 minutes or
4 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pyarrow as pa

from benchmarks.peak import peak_bytes
from ich_tfrecords import spec
from ich_tfrecords.labels.table import stratum_indices
from trainer.data.dataset import Slices
from trainer.data.series import Series
from trainer.data.series_feed import SeriesFeed
from trainer.models import context
from trainer.results.vectors import Part, Vectors
from trainer.series import settings as series_settings
from trainer.series.objective import SeriesObjective
from trainer.training import assembly, hparams, steps, strategy

SERIES, DIM = 21_744, 1024
PREVALENCE = (0.144, 0.004, 0.048, 0.035, 0.047, 0.063)
MOST_S, MOST_BYTES = 300.0, 4e9


def made(folder: Path, series: int) -> SeriesFeed:
    """Series with vectors of noise."""
    rng = np.random.default_rng(0)
    lengths = np.clip(np.rint(rng.normal(34.6, 5.5, series)), 20, 60).astype(np.int64)
    slices = int(lengths.sum())
    data_spec = spec.load("rsna_ich")
    labels = (rng.random((slices, len(PREVALENCE))) < PREVALENCE).astype(np.int8)
    labels[:, 0] = labels[:, 1:].any(axis=1)
    offsets = np.r_[0, np.cumsum(lengths)]
    within = np.arange(slices) - np.repeat(offsets[:-1], lengths)
    table = pa.table({"position_mm": within * 5.0})
    nothing = np.zeros(slices, np.int64)
    split = Slices(
        place="made up", split="train", random_access=True, spec=data_spec, names=("made",), paths=("made",),
        shard=nothing.astype(np.int32), record=nothing.astype(np.int32), offset=nothing, length=nothing,
        stratum=stratum_indices(labels, data_spec.labels), part=nothing.astype(np.int8), study_labels=None,
        labels=labels, table=table,
    )  # fmt: skip
    dtype = np.dtype([("vector", np.float16, (DIM,)), ("logits", np.float32, (len(PREVALENCE),))])
    with (folder / "part.npy").open("wb") as file:  # piece by piece: what it takes to make them is not to be measured
        head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (slices,)}
        np.lib.format.write_array_header_1_0(file, head)
        for begin in range(0, slices, 8192):
            rows = np.zeros(min(8192, slices - begin), dtype)
            rows["vector"] = rng.random((len(rows), DIM), np.float32)
            file.write(rows.tobytes())
    vectors = Vectors([Part(folder / "part.npy")], np.arange(slices))
    blur = series_settings.read(hparams.resolve("series", None, {}).series).blur
    return SeriesFeed(split, Series(np.arange(slices), offsets), [vectors], blur)


def epoch(feed: SeriesFeed, part: float) -> tuple[float, int]:
    """Seconds of a part of an epoch, and its steps."""
    settings = hparams.resolve("series", None, {})
    devices = strategy.prepare(settings, {})
    labels = feed.slices.spec.labels
    plan = assembly.plan_of(settings, feed, devices)
    model = context.build(DIM, len(labels.names), settings.architecture)
    update = assembly.update_of(settings, model, devices, plan.steps)
    of_series = series_settings.read(settings.series)
    of_all = assembly.objective_of(settings, labels)
    objective = SeriesObjective(*of_all, of_series.head_weight, of_series.mil_weight)
    run = steps.train_steps(model, update, model.trainable_variables, objective, devices, False)
    wanted, done = max(1, round(part * plan.steps)), 0
    begin = time.perf_counter()
    iterator = steps.distribute(devices, feed.train_batches(plan, devices.share))
    while done < wanted:
        sums, _ = run(iterator, np.int32(done), np.int32(min(5, wanted - done)), np.zeros(2, np.float32))
        done += len(sums)
        print(f"\r{done} of {wanted} steps, {time.perf_counter() - begin:.0f} s", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return (time.perf_counter() - begin) * plan.steps / done, done


def main() -> int:
    """Print the figures; returns 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--part", type=float, default=1.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        seconds, done = epoch(made(Path(name), SERIES), args.part)
    peak = peak_bytes()
    print(f"epoch of {SERIES:,} series, from {done} steps: {seconds:.0f} s   promised {MOST_S:g} at most")
    print(f"most memory {peak / 1e9:.2f} GB   promised 4 at most")
    if args.output:
        args.output.write_text(json.dumps({"epoch_s": seconds, "peak_bytes": peak}, indent=1) + "\n")
    return int(seconds > MOST_S or peak > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
