"""How fast training batches are read, against the ways people use and against the ceiling; and in how much memory.

    python benchmarks/bench_reader.py [--output FILE.json] [--slices 3000] [--rounds 5] [--skip_memory]

Slices of 128 x 128 x 3 of a noisy disc (Keras reads its PNG file as fast as that of a synthetic CT slice) with six
strata, written as shards and as PNG files; batches of 32, all cores. An epoch reads each shard `TIMES` times,
since a short one would time the pauses of a shared machine. The ways take turns; a figure is the median over the
rounds of images a second after the first batch, so that no way pays for its start, a ratio that of each round:

- Keras ImageDataGenerator.flow_from_dataframe on the PNG files
- tf.data on the PNG files: read, decode, shuffle the names, AUTOTUNE
- bare tf.data.TFRecordDataset(files).batch(32): nothing shuffled, nothing parsed, the ceiling
- ours by number (local shards) and as streams (what a bucket gets), natural and balanced

Then what it costs to change a slice (flip, 10 degrees, 5%) by TensorFlow's operation and by numba, in processor time;
and the peak RSS of a process that reads a balanced epoch of six strata in 512 shards, with either reader.
Exit code 1 when a promise is broken: natural 25 and balanced 22 times Keras, both 60% of the ceiling, balanced 90% of
natural, and 60% of balanced with augmentation on the host (all by number), peak RSS under 2,500 MB.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
import pyarrow as pa
import tensorflow as tf

from benchmarks.peak import peak_bytes
from ich_tfrecords import spec
from ich_tfrecords.dataset import records
from ich_tfrecords.dataset.manifest import Manifest
from trainer.data import augment, sampling, warp
from trainer.data.augment import Augmentation
from trainer.data.dataset import Dataset, Slices
from trainer.data.input_pipeline import EpochPlan, Share, train_batches

SPEC = spec.load("rsna_ich")
STRATA = SPEC.labels.strata[:-1]
PARTS = (0.01, 0.07, 0.05, 0.06, 0.08, 0.73)  # of the strata, rarest first, about as in the RSNA set
BATCH = 32
TIMES = 15
CHANGES = Augmentation(True, 10.0, 0.05)
AUTOTUNE = tf.data.AUTOTUNE
WAYS = (
    *("keras generator, PNG", "tf.data, PNG", "bare TFRecordDataset", "natural", "balanced"),
    *("natural, stream", "balanced, stream", "balanced, augmented"),
)


def images(count: int) -> Iterator[np.ndarray]:
    """Discs with noise in them and air around, uint8 [128, 128, 3]."""
    side = SPEC.image.size_px
    y, x = np.mgrid[:side, :side] - side / 2
    disc = ((x / 0.38) ** 2 + (y / 0.45) ** 2 < side**2)[..., None]
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield (disc * rng.normal((100, 60, 90), 12, (side, side, 3)).clip(0, 255)).astype(np.uint8)


def write_set(folder: Path, slices: int, shards: int) -> Dataset:
    """A data set of one split in `shards` shards, each of one stratum, opened without its metadata files."""
    table, pictures = records.features(SPEC), images(slices)
    rows: list[dict] = []
    entries: list[dict[str, Any]] = []
    for number, (stratum, count) in enumerate(shard_plan(slices, shards)):
        name = f"bench-train.tfrecord-{number:05d}-of-{shards:05d}"
        with (folder / name).open("wb") as file:
            writer = records.ShardWriter(file)
            for row in range(count):
                uid = f"ID_{len(rows):09x}"
                offset = writer.write(record(next(pictures), stratum, uid.encode(), table))
                labels = dict.fromkeys(SPEC.labels.names, 0) | {stratum: 1} if stratum != "none" else {}
                place = {"shard": name, "row": row, "offset": offset, "split": "train", "stratum": stratum}
                rows.append(
                    {"sop_uid": uid, "study_uid": uid, **dict.fromkeys(SPEC.labels.names, 0), **labels, **place}
                )
        entries.append({"name": name, "split": "train", "slices": count, "bytes": writer.size_bytes})
    manifest = Manifest(SPEC, "", {}, {"train": {"slices": len(rows)}}, entries, {}, 0, 0, {}, [])
    types = {"row": pa.int32(), "offset": pa.int64(), **dict.fromkeys(SPEC.labels.names, pa.int8())}
    columns = pa.table({name: pa.array([row[name] for row in rows], types.get(name)) for name in rows[0]})
    sizes = {entry["name"]: entry["bytes"] for entry in entries}
    return Dataset(str(folder), manifest, True, columns, None, sizes)


def shard_plan(slices: int, shards: int) -> list[tuple[str, int]]:
    """Stratum and slices of each shard: shards and slices shared out by `PARTS`, at least one shard a stratum."""
    shares = dict(zip(STRATA, PARTS, strict=True))
    of_shards = {name: 1 + more for name, more in sampling.stratum_counts(shares, shards - len(STRATA)).items()}
    plan = []
    for name, count in sampling.stratum_counts(shares, slices).items():
        plan += [(name, len(part)) for part in np.array_split(np.arange(count), of_shards[name])]
    return plan


def record(image: np.ndarray, stratum: str, uid: bytes, table: tuple) -> bytes:
    """The record of an image with made-up ids."""
    values = {"image": image, "labels": [int(name == stratum) for name in SPEC.labels.names], "position_mm": 1.0}
    texts = dict.fromkeys(("sop_uid", "study_uid", "series_uid", "patient_key"), uid)
    digest = records.pixel_digest(image)
    return records.encode({**values, **texts, "slice_index": 1, "slice_count": 30, "pixel_digest": digest}, table)


def write_pngs(folder: Path, count: int) -> pd.DataFrame:
    """The first images of the set as PNG files: their names and six label columns."""
    for number, image in enumerate(images(count)):
        tf.io.write_file(str(folder / f"{number:06d}.png"), tf.io.encode_png(image))
    labels = np.random.default_rng(1).integers(0, 2, (count, len(SPEC.labels.names)))
    frame = pd.DataFrame(labels, columns=list(SPEC.labels.names))
    return frame.assign(filename=[f"{number:06d}.png" for number in range(count)])


def keras_batches(folder: Path, table: pd.DataFrame) -> Iterator[int]:
    """Sizes of the batches of Keras's generator, one epoch."""
    side = SPEC.image.size_px
    generator = tf.keras.preprocessing.image.ImageDataGenerator(rescale=1 / 255)
    columns, size = list(SPEC.labels.names), (side, side)
    flow = generator.flow_from_dataframe(
        table, str(folder), y_col=columns, class_mode="raw", batch_size=BATCH, target_size=size, verbose=0
    )
    for _ in range(len(flow)):
        yield len(next(flow)[0])


def png_batches(folder: Path, table: pd.DataFrame) -> Iterator[int]:
    """Sizes of the batches of a usual tf.data pipeline on the PNG files, one epoch."""
    paths, labels = [str(folder / name) for name in table["filename"]], table[list(SPEC.labels.names)].to_numpy()
    names = tf.data.Dataset.from_tensor_slices((paths, labels)).shuffle(len(paths))

    def decode(path: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.io.decode_png(tf.io.read_file(path), channels=3), label

    for image, _ in names.map(decode, num_parallel_calls=AUTOTUNE).batch(BATCH).prefetch(AUTOTUNE):
        yield image.shape[0]


def our_batches(slices: Slices, policy: str, size: int = 0, augmented: bool = False) -> Iterator[int]:
    """Sizes of the batches of an epoch of `size`, or as long as there are slices."""
    shares = sampling.proportions(policy, slices.stratum_counts, {})
    how = CHANGES if augmented else Augmentation(False, 0.0, 0.0)
    plan = EpochPlan(policy, shares, 0, 0, size or len(slices), BATCH, 1, how)
    for batch in train_batches(slices, plan, Share.whole()):
        yield batch["image"].shape[0]


def rate(sizes: Iterator[int]) -> float:
    """Images a second after the first batch."""
    next(sizes)
    begin = time.perf_counter()
    count = sum(sizes)
    return count / (time.perf_counter() - begin)


def repeated(slices: Slices, times: int) -> Slices:
    """The same shards as many times, as if they were so many more."""
    names = ("record", "offset", "length", "stratum", "labels")
    tiled: dict[str, Any] = {name: np.concatenate([getattr(slices, name)] * times) for name in names}
    shard = np.concatenate([slices.shard + again * len(slices.paths) for again in range(times)])
    return dataclasses.replace(slices, shard=shard, paths=slices.paths * times, names=slices.names * times, **tiled)


def bench(work: Path, count: int, rounds: int) -> dict[str, list[float]]:
    """Images a second of each way, a figure a round."""
    for name in ("set", "png"):
        (work / name).mkdir()
    dataset = write_set(work / "set", count, 32)
    table = write_pngs(work / "png", count)
    slices, streams = (repeated(dataset.split("train", stream), TIMES) for stream in (False, True))
    files = list(slices.paths)
    ways: tuple[Callable[[], Iterator[int]], ...] = (
        lambda: keras_batches(work / "png", table),
        lambda: png_batches(work / "png", table),
        lambda: (batch.shape[0] for batch in tf.data.TFRecordDataset(files).batch(BATCH)),
        lambda: our_batches(slices, "natural"),
        lambda: our_batches(slices, "balanced"),
        lambda: our_batches(streams, "natural"),
        lambda: our_batches(streams, "balanced"),
        lambda: our_batches(slices, "balanced", augmented=True),
    )
    seen: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in zip(WAYS, ways, strict=True):
            seen[name].append(rate(way()))
    return seen


def change_us(rounds: int) -> dict[str, float]:
    """Microseconds of processor time that it takes to change a slice, the median over rounds of four batches."""
    made = np.stack(list(images(4 * BATCH)))
    changes, room = augment.draw(CHANGES, 0, 0, len(made), SPEC.image.size_px), made.copy()
    ways: dict[str, Callable[[], Any]] = {"TensorFlow": lambda: augment.apply(room, changes)}
    if warp.installed():
        ways["numba"] = lambda: warp.change(room, changes)
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + 8 * rounds):
        for name, way in ways.items():
            room[:] = made
            begin = time.process_time()
            way()
            seen[name].append((time.process_time() - begin) / len(made) * 1e6)
    return {name: statistics.median(values[1:]) for name, values in seen.items()}


def peak_rss_mb(reader: str, shards: int) -> float:
    """Peak RSS of a process of its own that writes a set of many shards and reads a balanced epoch of it."""
    command = [sys.executable, __file__, "--peak_rss_of", reader, "--shards", str(shards)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def read_many_shards(reader: str, shards: int) -> float:
    """Peak RSS in MB of this process after a balanced epoch of twenty slices a shard, from shards of ten."""
    with tempfile.TemporaryDirectory() as name:
        slices = write_set(Path(name), 10 * shards, shards).split("train", stream=reader == "stream")
        read = sum(our_batches(slices, "balanced", 20 * shards))
    assert read == 20 * shards
    return peak_bytes() / 1e6


def ratios_of(rates: dict[str, list[float]]) -> dict[str, tuple[float, float]]:
    """Median over the rounds of each promised ratio, and the promise."""

    def ratio(name: str, other: str) -> float:
        return statistics.median(one / two for one, two in zip(rates[name], rates[other], strict=True))

    found = {}
    for name, promise in (("natural", 25.0), ("balanced", 22.0)):
        found[f"{name} / Keras generator"] = (ratio(name, "keras generator, PNG"), promise)
        found[f"{name} / ceiling"] = (ratio(name, "bare TFRecordDataset"), 0.6)
    found["balanced / natural"] = (ratio("balanced", "natural"), 0.9)
    return {**found, "augmented / balanced": (ratio("balanced, augmented", "balanced"), 0.6)}


def main() -> int:
    """Run, print, and say whether the promises hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--slices", type=int, default=3000, help="slices of the set (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the turns (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=512, help="shards of the memory test (default: %(default)s)")
    parser.add_argument("--skip_memory", action="store_true", help="leave out the memory test")
    parser.add_argument("--peak_rss_of", choices=("random", "stream"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_rss_of:
        print(read_many_shards(args.peak_rss_of, args.shards))
        return 0
    with tempfile.TemporaryDirectory() as name:
        rates = bench(Path(name), args.slices, args.rounds)
    memory = {} if args.skip_memory else {name: peak_rss_mb(name, args.shards) for name in ("random", "stream")}
    costs, ratios = change_us(args.rounds), ratios_of(rates)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    show(medians, ratios, memory, args.shards)
    print("to change a slice, processor time:", ", ".join(f"{name} {us:.1f} us" for name, us in costs.items()))
    if args.output:
        found = {"images_per_s": medians, "ratios": {name: value for name, (value, _) in ratios.items()}}
        args.output.write_text(json.dumps({**found, "change_us": costs, "peak_rss_mb": memory}, indent=1) + "\n")
    return int(any(value < promise for value, promise in ratios.values()) or any(mb > 2500 for mb in memory.values()))


def show(
    rates: dict[str, float], ratios: dict[str, tuple[float, float]], memory: dict[str, float], shards: int
) -> None:
    """Print the figures as tables."""
    print(f"images a second, batches of {BATCH}, {os.cpu_count()} cores")
    for name, value in rates.items():
        print(f"  {name:<26} {value:10,.0f}   {value / rates['keras generator, PNG']:6.1f} x Keras generator")
    print("ratios")
    for name, (value, promise) in ratios.items():
        print(f"  {name:<26} {value:10.2f}   promised {promise:g}")
    for name, mb in memory.items():
        print(f"peak RSS, {shards} shards, {name}: {mb:,.0f} MB   promised 2,500 at most")


if __name__ == "__main__":
    sys.exit(main())
