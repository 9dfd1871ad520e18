"""How fast training batches are read against the number of shards, of strata drawn from, and of cores.

    python benchmarks/bench_streams.py [--output FILE.json] [--slices 2000] [--rounds 3] [--quick]

Slices of 128 x 128 x 3 as in bench_reader.py, batches of 32, no augmentation, files in the page cache. An epoch
reads every shard `TIMES` times as if each were another file. Around one point (500 shards, six strata drawn alike)
either the shards or the strata change; each setting runs with either reader (`number`: local shards, `stream`: a
bucket's) in a process that may use one core or two. Local shards are first read until the reader is compiled, as it is
after some 33,000 slices. The settings take turns, a figure is the median of the rounds.

There is no promise here (bench_reader.py holds those), so the exit code is 0.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

TIMES = 10
SHARDS, STRATA = (100, 500, 2500), (1, 3, 6)
BASE = (500, 6)
READERS = ("number", "stream")
CORES = (1, 2)
EPOCH = 24_000  # slices


def settings() -> list[tuple[int, int]]:
    """Shards and strata of each point that is measured."""
    return sorted({*((shards, BASE[1]) for shards in SHARDS), *((BASE[0], strata) for strata in STRATA)})


def rows_here(slices: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Figures of every setting and reader, measured in this process on the cores it may use."""
    from benchmarks import bench_reader  # TensorFlow sizes its thread pools by the cores it finds at its start
    from trainer.data.shard_reader import WORTH_COMPILING

    sets = {}
    with tempfile.TemporaryDirectory() as name:
        for shards in SHARDS:
            place = Path(name) / str(shards)
            place.mkdir()
            dataset = bench_reader.write_set(place, slices, shards // TIMES)
            for reader in READERS:
                read = dataset.split("train", reader == "stream")
                sets[shards, reader] = bench_reader.repeated(read, TIMES)
            sum(batches(sets[shards, "number"], BASE[1], WORTH_COMPILING + EPOCH))
        seen: dict[tuple[int, int, str], list[float]] = {}
        for _ in range(rounds):
            for shards, strata in settings():
                for reader in READERS:
                    sizes = batches(sets[shards, reader], strata)
                    seen.setdefault((shards, strata, reader), []).append(bench_reader.rate(sizes))
    for (shards, strata, reader), rates in seen.items():
        yield {"shards": shards, "strata": strata, "reader": reader, "images_per_s": statistics.median(rates)}


def batches(slices: Any, strata: int, size: int = EPOCH) -> Iterator[int]:
    """Sizes of the batches of an epoch of `size` that draws alike from the most frequent strata, so many of them."""
    from benchmarks import bench_reader
    from trainer.data import sampling
    from trainer.data.augment import Augmentation
    from trainer.data.input_pipeline import EpochPlan, Share, train_batches

    shares = sampling.proportions("explicit", slices.stratum_counts, dict.fromkeys(bench_reader.STRATA[-strata:], 1.0))
    plan = EpochPlan("explicit", shares, 0, 0, size, bench_reader.BATCH, 1, Augmentation(False, 0.0, 0.0))
    for batch in train_batches(slices, plan, Share.whole()):
        yield batch["image"].shape[0]


def in_fresh_process(cores: int, slices: int, rounds: int) -> list[dict[str, Any]]:
    """Figures of a process that may use so many cores."""
    flags = ["--child_cores", str(cores), "--slices", str(slices), "--rounds", str(rounds)]
    done = subprocess.run([sys.executable, __file__, *flags], check=True, stdout=subprocess.PIPE, text=True)
    return [{"cores": cores, **row} for row in json.loads(done.stdout.splitlines()[-1])]


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print(f"{'cores':>5}{'shards':>8}{'strata':>8}" + "".join(f"{reader + ', images/s':>20}" for reader in READERS))
    points = sorted({(row["cores"], row["shards"], row["strata"]) for row in rows})
    rates = {(row["cores"], row["shards"], row["strata"], row["reader"]): row["images_per_s"] for row in rows}
    for point in points:
        print("{:>5}{:>8,}{:>8}".format(*point) + "".join(f"{rates[(*point, reader)]:>20,.0f}" for reader in READERS))


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--slices", type=int, default=2000, help="slices written (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the turns (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round of 600 slices, to see that it runs")
    parser.add_argument("--child_cores", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    slices, rounds = (600, 1) if args.quick else (args.slices, args.rounds)
    if args.child_cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.child_cores])
        print(json.dumps(list(rows_here(slices, rounds))))
        return 0
    rows = [row for cores in CORES for row in in_fresh_process(cores, slices, rounds)]
    show(rows)
    if args.output:
        args.output.write_text(json.dumps({"epoch_slices": EPOCH, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
