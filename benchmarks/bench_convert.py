"""How fast one slice is converted, how well Beam uses the cores, and what the zip costs: ratios of one run.

    python benchmarks/bench_convert.py [--output FILE.json] [--slices 8000] [--skip_beam]

Three tables:
1. One core pinned, one uncompressed 512x512 slice a step, all in turns: the plain way that people write
   (pydicom dcmread, pixel_array, float64 windows stacked to an image, cv2.resize INTER_AREA, a record), the same
   tuned (each window resized by itself), ours, and a bare read() of the file as the floor.
2. The same slices deflated in a zip: zipfile + pydicom against ours.
3. The Beam job with two processes at `--slices` slices against cores x single-process speed, its start-up apart.

Exit code 1 when a ratio falls short of the promise: 8 times (1), 4 times (2), 70% (3).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pydicom

from ich_tfrecords import pixels, spec
from ich_tfrecords.dataset import records
from ich_tfrecords.dicom import ct_slice
from ich_tfrecords.storage import sources
from ich_tfrecords.synthetic import rsna_layout

SPEC = spec.load("rsna_ich")
TABLE = records.features(SPEC)
PROMISES = {"slice": 8.0, "zip": 4.0, "beam": 0.70}


def plain_image(data: bytes | Path) -> np.ndarray:
    """The plain way: pydicom, float64 HU, float64 windows stacked to an image, OpenCV area resize of the image."""
    stacked = np.stack(float_windows(data), axis=-1)
    small = cv2.resize(stacked, (SPEC.image.size_px, SPEC.image.size_px), interpolation=cv2.INTER_AREA)
    return (small * 255 + 0.5).astype(np.uint8)


def tuned_image(data: bytes | Path) -> np.ndarray:
    """The plain way by somebody who knows that OpenCV resizes three planes faster than one interleaved image."""
    size = (SPEC.image.size_px, SPEC.image.size_px)
    small = [cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in float_windows(data)]
    return np.stack([(plane * 255 + 0.5).astype(np.uint8) for plane in small], axis=-1)


def float_windows(data: bytes | Path) -> list[np.ndarray]:
    """Each window of a slice, float64 [512, 512] from 0 to 1."""
    dataset = pydicom.dcmread(data if isinstance(data, Path) else io.BytesIO(data))
    hu = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    lows = [window.level_hu - window.width_hu / 2 for window in SPEC.image.windows]
    return [
        (np.clip(hu, low, low + window.width_hu) - low) / window.width_hu
        for low, window in zip(lows, SPEC.image.windows, strict=True)
    ]


def record(image: np.ndarray, uid: bytes) -> bytes:
    """The record of an image with made-up ids."""
    values = {"image": image, "labels": [0] * 6, "position_mm": 1.0, "slice_index": 1, "slice_count": 30}
    texts = dict.fromkeys(("study_uid", "series_uid", "patient_key"), uid)
    digest = records.pixel_digest(image)
    return records.encode(values | texts | {"sop_uid": uid, "pixel_digest": digest}, TABLE)


class Ours:
    """The path of `conversion.convert_shard` for one slice, to a shard that is thrown away."""

    def __init__(self) -> None:
        self._reader = sources.SliceReader()
        self._writer = records.ShardWriter(open(os.devnull, "wb"))  # noqa: SIM115

    def __call__(self, ref: sources.SliceRef) -> None:
        slice_ = ct_slice.read_slice(self._reader.read(ref))
        image = pixels.image_of(slice_.hu, SPEC.image)
        self._writer.write(record(image, slice_.header.sop_uid.encode()))


def turns(ways: dict, items: dict, rounds: int) -> dict[str, float]:
    """Median milliseconds a slice of each way; the ways take turns, so that noise falls on all."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begin = time.perf_counter()
            for item in items[name]:
                way(item)
            times[name].append((time.perf_counter() - begin) / len(items[name]) * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def bench_slices(folder: Path, rounds: int) -> dict[str, float]:
    """Milliseconds a slice from plain files."""
    listing = sources.list_inputs([str(folder)]).table
    refs = list(sources.refs(listing))[:60]
    paths = [Path(ref.container) / ref.name for ref in refs]
    writer = records.ShardWriter(open(os.devnull, "wb"))  # noqa: SIM115
    ways = {
        "plain way": lambda path: writer.write(record(plain_image(path), b"x")),
        "plain way, tuned": lambda path: writer.write(record(tuned_image(path), b"x")),
        "ours": Ours(),
        "bare read()": lambda path: path.open("rb", buffering=0).read(),
    }
    items = {"plain way": paths, "plain way, tuned": paths, "ours": refs, "bare read()": paths}
    return turns(ways, items, rounds)


def bench_zip(folder: Path, work: Path, rounds: int) -> dict[str, float]:
    """Milliseconds a slice from a deflated zip."""
    path = work / "slices.zip"
    files = sorted(folder.iterdir())[:60]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.name)
    refs = list(sources.refs(sources.list_inputs([str(path)]).table))
    archive = zipfile.ZipFile(path)
    writer = records.ShardWriter(open(os.devnull, "wb"))  # noqa: SIM115
    ways = {
        "zipfile + pydicom": lambda name: writer.write(record(plain_image(archive.read(name)), b"x")),
        "zipfile + pydicom, tuned": lambda name: writer.write(record(tuned_image(archive.read(name)), b"x")),
        "ours": Ours(),
    }
    names = [file.name for file in files]
    return turns(ways, {"zipfile + pydicom": names, "zipfile + pydicom, tuned": names, "ours": refs}, rounds)


def many_names(folder: Path, work: Path, count: int) -> Path:
    """`count` slices with ids of their own: copies of a few, the SOP UID patched in place."""
    made = work / "many"
    made.mkdir()
    files = [path.read_bytes() for path in sorted(folder.iterdir())[:40]]
    uids = [pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True).SOPInstanceUID.encode() for data in files]
    for number in range(count):
        data, uid = files[number % len(files)], uids[number % len(files)]
        fresh = f"ID_{number:09x}".encode()
        patched = data.replace(uid, fresh, 2)
        (made / f"{fresh.decode()}.dcm").write_bytes(patched)
    return made


def bench_beam(folder: Path, work: Path) -> dict[str, float]:
    """Slices a second of the convert step in one process and in two, and the seconds that are start-up."""
    seconds: dict[str, float] = {}
    for name, flags in (
        ("one", ["--direct_num_workers", "1", "--runner", "DirectRunner"]),
        ("two", ["--direct_num_workers", "2", "--direct_running_mode", "multi_processing"]),
    ):
        empty = work / "few"
        if not empty.exists():
            empty.mkdir()
            for path in sorted(folder.iterdir())[:4]:
                os.link(path, empty / path.name)
        for kind, source in (("start", empty), ("all", folder)):
            seconds[f"{name} {kind}"] = run_convert(source, work / f"out_{name}_{kind}", flags)
    return seconds


def run_convert(source: Path, output: Path, flags: list[str]) -> float:
    """Seconds of the convert stage, as the command tells them."""
    command = [sys.executable, "-m", "beam_pipelines.convert", "--input", source, "--labels", "none"]
    command += ["--output", output, *flags]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("seconds "))
    stages = dict(part.rsplit(" ", 1) for part in line.removeprefix("seconds ").strip().split(", "))
    return float(stages["convert"])


def main() -> int:
    """Run, print, and say whether the promises hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--slices", type=int, default=8000, help="slices of the Beam job (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the turns (default: %(default)s)")
    parser.add_argument("--skip_beam", action="store_true", help="leave out the Beam job")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    warnings.filterwarnings("ignore", module="pydicom")
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        rsna_layout.generate(work / "ct", patients=3, test_patients=0, slices_per_study=24)
        folder = work / "ct" / "stage_2_train"
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})
        figures["ms_per_slice"] = slices = bench_slices(folder, args.rounds)
        figures["ms_per_zipped_slice"] = zipped = bench_zip(folder, work, args.rounds)
        os.sched_setaffinity(0, cores)
        ratios = {"slice": slices["plain way"] / slices["ours"], "zip": zipped["zipfile + pydicom"] / zipped["ours"]}
        if not args.skip_beam:
            many = many_names(folder, work, args.slices)
            figures["beam_seconds"] = beam = bench_beam(many, work)
            single = args.slices / (beam["one all"] - beam["one start"])
            double = args.slices / (beam["two all"] - beam["two start"])
            figures["beam_slices_per_s"] = {"one process": single, "two processes": double}
            ratios["beam"] = double / (2 * single)
    figures["ratios"] = ratios
    show(figures)
    if args.output:
        args.output.write_text(json.dumps(figures, indent=1) + "\n")
    return int(any(ratios[name] < PROMISES[name] for name in ratios))


def show(figures: dict) -> None:
    """Print the figures as tables."""
    for title, values in figures.items():
        print(title)
        for name, value in values.items():
            promise = f"   promised {PROMISES[name]:g}" if title == "ratios" else ""
            print(f"  {name:<26} {value:10.3f}{promise}")


if __name__ == "__main__":
    sys.exit(main())
