"""Where the model finds what speaks for a label, on the pixels of the slice itself, one slice at a time."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ich_tfrecords import crop, pixels
from ich_tfrecords.pixels import Int16
from ich_tfrecords.spec import HEAD, ImageSpec, LabelSpec
from ich_tfrecords.storage import sources
from ich_tfrecords.storage.sources import SliceRef
from ich_tfrecords.volumes.reader import FrameReader
from trainer.data import neighbours
from trainer.data.series import Series
from trainer.prediction import picture_files, slice_stream
from trainer.prediction.networks import Networks
from trainer.prediction.picture_files import Maps
from trainer.prediction.slice_stream import FoundSlice
from trainer.prediction.triage import ScoredSlice
from trainer.shell.problems import WrongUse

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Row = dict[str, str]  # of predictions.csv


class MapOnSlice(NamedTuple):
    """`strength` uint8 [rows, columns] of the slice, 0 nothing to 255 the most in it: what speaks for `label`."""

    strength: UInt8
    label: str


def of_slice(
    table: pa.Table, predictions: Path, place: int, file: str, networks: Networks, maps: Maps, method: str
) -> MapOnSlice:
    """The map of a slice that was predicted, for its leading label.

    `table`: of the listing that was read; `predictions`: the predictions.csv of that; `place` and `file`: the slice as
    it is named there ("input", "file"). Raises `Problem` where it cannot be read any more, `WrongUse` where it is not
    there.
    """
    about = networks.about
    scored = _scored(table, _series(predictions, place, file), (place, file), networks.beside, about.spec.labels)
    with sources.SliceReader() as reader, FrameReader(reader, about.spec.accept) as frames:
        image = picture_files.seen(scored.found, frames, about)
        found = picture_files.explained(image, scored, about, maps, method)
        return MapOnSlice(on_pixels(found.cam, frames.slice(scored.found.ref).hu, about.spec.image), found.label)


def on_pixels(cam: Float32, hu: Int16, image: ImageSpec) -> UInt8:
    """A map float32 [size, size] in [0, 1] of what a model sees of `hu` [rows, columns], on the pixels of that.

    What the model did not see of it (`ImageSpec.crop`) has 0.
    """
    side = max(hu.shape)
    square = crop.head_square(pixels.pad_square(hu, image.pad_hu)) if image.crop == HEAD else crop.Square(0, 0, side)
    wide = Image.fromarray(cam).resize((square.side, square.side), Image.Resampling.BICUBIC)
    whole = np.zeros((side, side), np.float32)
    whole[square.top : square.top + square.side, square.left : square.left + square.side] = np.asarray(wide)
    top, left = ((side - length) // 2 for length in hu.shape)
    own = whole[top : top + hu.shape[0], left : left + hu.shape[1]]
    return np.rint(255 * own.clip(0, 1)).astype(np.uint8)


def _series(predictions: Path, place: int, file: str) -> list[Row]:
    """The slices of the series of a slice, from feet to head."""
    with predictions.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    own = next((row for row in rows if _key(row) == (place, file)), None)
    if own is None:
        raise WrongUse(f"{predictions} has no slice {file} of input {place}")
    uids = ("study_uid", "series_uid")
    series = [row for row in rows if all(row[uid] == own[uid] for uid in uids)]
    return sorted(series, key=lambda row: (float(row["position_mm"]), row["sop_uid"]))


def _key(row: Row) -> tuple[int, str]:
    return int(row["input"]), row["file"]


def _scored(
    table: pa.Table, series: Sequence[Row], own: tuple[int, str], beside: int, labels: LabelSpec
) -> ScoredSlice:
    (at,) = (number for number, row in enumerate(series) if _key(row) == own)
    whole = Series(np.arange(len(series)), np.array([0, len(series)]))
    near = tuple(_ref(table, *_key(series[row])) for row in neighbours.rows_beside(whole, beside)[at])
    row = series[at]
    uids = (row["sop_uid"], row["study_uid"], row["series_uid"])
    found = FoundSlice(near[beside], own[0], *uids, float(row["position_mm"]), near)
    return ScoredSlice(found, np.array([float(row[name]) for name in labels.names]))


def _ref(table: pa.Table, place: int, file: str) -> SliceRef:
    (container,) = (path for path, number in slice_stream.input_numbers(table).items() if number == place)
    inside = table.filter(pc.equal(table["container"].cast(pa.string()), container))
    name, frame = file, 0
    if "#" in file and not pc.any(pc.equal(inside["name"], file)).as_py():
        name, _, number = file.rpartition("#")
        frame = int(number)
    (ref,) = sources.refs(inside.filter(pc.equal(inside["name"], name)))
    return ref._replace(frame=frame)
