"""What it costs to decode a JPEG Lossless slice, with numba and without, and to window one of an odd side.

    python benchmarks/bench_decode.py [--output FILE.json] [--rounds 9]

Decoding: a synthetic slice of 512x512, and noise of 12 bits, which is the most that a slice can hold, packed by gdcm:
from the codestream to samples by the form that numba compiled, and by numpy alone. Windowing: a slice of 500x500 to
the three windows of rsna_ich at 128 px, as it is and by cumulative sums, as it once was. The ways take turns; a figure
is the least over the rounds, since other work can only add to it. Exit code 1 when the synthetic slice takes over 10 ms
to decode, when one takes over 2 ms to window, or when two ways differ in a bit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pydicom
from pydicom.encaps import generate_frames

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.made_jpeg import pack
from ich_tfrecords import pixels, spec
from ich_tfrecords.dicom import ct_slice, jpeg_compiled, jpeg_lossless
from ich_tfrecords.dicom.writer import SliceFields, dicom_bytes
from ich_tfrecords.synthetic.rsna_layout import generate

MOST_DECODE_MS, MOST_WINDOW_MS = 10.0, 2.0
IMAGE = spec.load("rsna_ich").image
Way = Callable[[], np.ndarray]


def streams(work: Path) -> dict[str, bytes]:
    """A codestream of a synthetic head and one of noise, by name."""
    made = generate(work / "ct", patients=1, test_patients=0, slices_per_study=3)
    head = ct_slice.read_slice(next((made.output / "stage_2_train").glob("*.dcm")).read_bytes()).hu
    noise = np.random.default_rng(0).integers(0, 1 << 12, (512, 512)).astype(np.int16)
    return {"head": packed(work, head), "noise of 12 bits": packed(work, noise)}


def packed(work: Path, stored: np.ndarray) -> bytes:
    """The codestream of stored values."""
    ids: dict[str, Any] = {"sop_uid": "1.2.3", "patient_id": "1", "study_uid": "1.2", "series_uid": "1.2.4"}
    (work / "plain.dcm").write_bytes(dicom_bytes(stored, SliceFields(**ids, position_mm=(0.0, 0.0, 0.0))))
    pack(work / "plain.dcm", work / "packed.dcm")
    return next(generate_frames(pydicom.dcmread(work / "packed.dcm").PixelData, number_of_frames=1))


def decoding(stream: bytes) -> dict[str, Way]:
    """A way to the samples of a stream by each form."""

    def decode() -> np.ndarray:
        return jpeg_lossless.decode(stream, 512, 512, 16).values

    def plainly() -> np.ndarray:
        with mock.patch.object(jpeg_compiled, "forms", return_value=jpeg_compiled.ABSENT):
            return decode()

    return {"numba": decode, "numpy alone": plainly}


def windowing() -> dict[str, Way]:
    """A way to the image of a slice of 500x500 by each form."""
    hu = np.random.default_rng(0).integers(-1000, 1500, (500, 500)).astype(np.int16)

    def cumulated() -> np.ndarray:
        with mock.patch.object(pixels, "_box_sums_rows", cumulated_rows):
            return pixels.image_of(hu, IMAGE)

    return {"rows that are met": lambda: pixels.image_of(hu, IMAGE), "cumulative sums": cumulated}


def cumulated_rows(values: np.ndarray, size: int) -> np.ndarray:
    """`pixels._box_sums_rows` as it was."""
    height = len(values)
    whole, part = np.divmod(np.arange(size + 1, dtype=np.int64) * height, size)
    before = np.zeros((height + 1, values.shape[1]), np.int64)
    np.cumsum(values, axis=0, out=before[1:])
    edge_row = values[np.minimum(whole, height - 1)]
    return np.diff(before[whole] * size + edge_row * part[:, None], axis=0)


def in_turns(ways: dict[str, Way], rounds: int) -> dict[str, float]:
    """Least milliseconds of each way. Raises `AssertionError` where they differ."""
    first, *others = [way() for way in ways.values()]
    for other in others:
        np.testing.assert_array_equal(first, other)
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            took[name].append(1000 * (time.perf_counter() - begin))
    return {name: min(times) for name, times in took.items()}


def main() -> int:
    """Print the tables; returns 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        made = streams(Path(name))
    figures: dict[str, Any] = {f"decode, {name}": in_turns(decoding(data), args.rounds) for name, data in made.items()}
    figures["window 500x500"] = in_turns(windowing(), args.rounds)
    for title, times in figures.items():
        print(f"{title:26} " + ", ".join(f"{name} {time_ms:.2f} ms" for name, time_ms in times.items()))
    print(f"promised: at most {MOST_DECODE_MS:g} ms to decode a slice, {MOST_WINDOW_MS:g} ms to window one")
    if args.output:
        args.output.write_text(json.dumps(figures, indent=1) + "\n")
    decode_ms, window_ms = figures["decode, head"]["numba"], figures["window 500x500"]["rows that are met"]
    return int(decode_ms > MOST_DECODE_MS or window_ms > MOST_WINDOW_MS)


if __name__ == "__main__":
    sys.exit(main())
