"""Pictures of slices: reading single records by shard and offset, windows side by side, and a captioned montage.

Pictures are for people: they are enlarged and captioned. `export` writes the exact pixels.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

from ich_tfrecords import pixels
from ich_tfrecords.dataset import records
from ich_tfrecords.dataset.manifest import SLICES, DatasetError, Manifest
from ich_tfrecords.spec import DatasetSpec
from ich_tfrecords.storage import atomic
from ich_tfrecords.storage.bucket_path import AnyPath

Uint8 = npt.NDArray[np.uint8]

PANEL_PX = 192
GAP_PX = 3  # between the panels of a slice
MARGIN_PX = 28
MAX_ROW_PX = 2600
TITLE_PX, HEAD_PX, CAPTION_PX, STRATUM_PX = 30, 17, 18, 22
BACKGROUND, BRIGHT, DIM, ACCENT = (14, 16, 20), (236, 239, 244), (152, 160, 172), (255, 184, 77)


class DamagedSlice(ValueError):
    """A record that cannot be read or is another than the table says; the message names the shard."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """One slice to show: its row of the slice table and what is shown of it, uint8 [size, size, windows]."""

    row: dict[str, Any]
    image: Uint8


def slice_rows(directory: AnyPath, spec: DatasetSpec) -> pa.Table:
    """The slice table of a data set. Raises `DatasetError` when it is missing, damaged or lacks a column."""
    path = directory / SLICES
    try:
        table = atomic.read_table(path)
    except FileNotFoundError as error:
        raise DatasetError(f"{directory} holds no {SLICES}, so the data set is not whole; copy it again") from error
    except pa.ArrowException as error:
        raise DatasetError(f"{path} is damaged: {error}; copy it again") from error
    missing = {*_NEEDED, *spec.labels.names} - set(table.column_names)
    if missing:
        raise DatasetError(f"{path} lacks the columns {', '.join(sorted(missing))}; copy it again")
    return table


_NEEDED = (
    *("sop_uid", "study_uid", "series_uid", "patient_key", "slice_index", "slice_count"),
    *("split", "stratum", "shard", "offset", "pixel_digest"),
)


def of_splits(rows: pa.Table, splits: Sequence[str]) -> pa.Table:
    """The rows of the slice table that stand in one of `splits`."""
    return rows.filter(pc.is_in(rows["split"], value_set=pa.array(splits, pa.string())))


def draw(rows: pa.Table, count: int, seed: int) -> pa.Table:
    """Up to `count` rows, drawn with a seed and of as many patients as possible, in the order of the table."""
    shuffled = np.random.default_rng(seed).permutation(rows.num_rows)
    patients = rows["patient_key"].combine_chunks().dictionary_encode().indices.to_numpy()[shuffled]
    first_seen = np.sort(np.unique(patients, return_index=True)[1])
    drawn = np.r_[shuffled[first_seen], np.delete(shuffled, first_seen)][:count]
    return rows.take(pa.array(np.sort(drawn), pa.int64()))


def draw_strata(rows: pa.Table, spec: DatasetSpec, count: int, seed: int) -> Iterator[tuple[str, int, pa.Table]]:
    """Name, number of slices and up to `count` drawn rows of each stratum that has any."""
    for stratum in spec.labels.strata:
        members = rows.filter(pc.equal(rows["stratum"], stratum))
        if members.num_rows:
            yield stratum, members.num_rows, draw(members, count, seed)


def read_pictures(directory: AnyPath, rows: pa.Table, spec: DatasetSpec) -> list[Picture]:
    """Picture of each row, read from its shard at its offset. Raises `DamagedSlice`."""
    return [Picture(row, pixels.shown(_read_image(directory, row, spec), spec.image)) for row in rows.to_pylist()]


def _read_image(directory: AnyPath, row: dict[str, Any], spec: DatasetSpec) -> pixels.Tensor:
    path = shard_path(directory, row["shard"])
    try:
        with path.open("rb") as file:
            file.seek(row["offset"])
            _, payload = next(records.read_records(file), (0, b""))
        values = records.parse(payload, records.features(spec))
    except (ValueError, FileNotFoundError) as error:
        raise DamagedSlice(f"{path}: no record at byte {row['offset']:,} ({error}); {VERIFY}") from error
    if values["sop_uid"] != row["sop_uid"].encode():
        raise DamagedSlice(
            f"{path}: the record at byte {row['offset']:,} is slice {values['sop_uid'].decode(errors='replace')}, "
            f"not {row['sop_uid']}; {VERIFY}"
        )
    return values["image"]


VERIFY = "`inspect verify` lists all damage"


def shard_path(directory: AnyPath, name: str) -> AnyPath:
    """Path of a shard inside the data set. Raises `DamagedSlice` for a name that leads elsewhere."""
    if Path(name).name != name or name in ("", ".."):
        raise DamagedSlice(f"{directory}: the shard name {name!r} leads out of the data set; {VERIFY}")
    return directory / name


def composite(image: Uint8) -> Uint8:
    """Colour image [h, w, 3] of an image [h, w, windows]: the first windows as red, green and blue.

    One window gives grey; of two, the second is green and blue.
    """
    return image[..., np.minimum([0, 1, 2], image.shape[-1] - 1)]


def panel_heads(spec: DatasetSpec) -> list[str]:
    """What stands above the panels of a slice: each window with level/width in HU, and the composite."""
    windows = [str(window) for window in spec.image.windows]
    return windows if len(windows) == 1 else [*windows, "composite RGB"]


def panels(image: Uint8, panel_px: int) -> list[Image.Image]:
    """Pictures of an image [h, w, windows]: each window in grey, then the composite, `panel_px` wide and high."""
    arrays = [image[..., channel] for channel in range(image.shape[-1])]
    if len(arrays) > 1:
        arrays.append(composite(image))
    square = (panel_px, panel_px)
    return [
        Image.fromarray(np.ascontiguousarray(array)).resize(square, Image.Resampling.BICUBIC).convert("RGB")
        for array in arrays
    ]


def strip(image: Uint8, panel_px: int) -> Image.Image:
    """The panels of an image side by side."""
    parts = panels(image, panel_px)
    canvas = Image.new("RGB", (strip_width_px(len(parts), panel_px), panel_px), BACKGROUND)
    for number, part in enumerate(parts):
        canvas.paste(part, (number * (panel_px + GAP_PX), 0))
    return canvas


def strip_width_px(count: int, panel_px: int) -> int:
    """Width of `count` panels side by side."""
    return count * panel_px + (count - 1) * GAP_PX


def png_bytes(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=3)  # as small as level 6 for windowed CT, in half the time
    return out.getvalue()


def positive_labels(row: dict[str, Any], spec: DatasetSpec) -> str:
    """The labels of a slice in words: the positive ones, `no hemorrhage`, or `labels unknown`."""
    values = {name: row[name] for name in spec.labels.names}
    if all(value == -1 for value in values.values()):
        return "labels unknown"
    found = [name for name, value in values.items() if value == 1 and name != spec.labels.any]
    if found:
        return ", ".join(found)
    return "no hemorrhage" if values[spec.labels.any] == 0 else f"{spec.labels.any}, kind unknown"


def place(row: dict[str, Any]) -> str:
    """Split and place in the series, as `train, slice 3 of 32`."""
    return f"{row['split']}, slice {row['slice_index'] + 1} of {row['slice_count']}"


def shortened(text: str, most: int = 22) -> str:
    """`text` on one line with at most `most` characters; the middle gives way, for ids differ at their end."""
    plain = "".join(character if character.isprintable() else "?" for character in text)
    if len(plain) <= most:
        return plain
    head = (most - 3) // 3
    return f"{plain[:head]}...{plain[len(plain) - (most - 3 - head) :]}"


def montage(manifest: Manifest, groups: Sequence[tuple[str, Sequence[Picture]]], subtitle: str) -> Image.Image:
    """One picture of all groups: under each heading its slices, windows side by side, captioned."""
    heads = panel_heads(manifest.spec)
    cell_px = strip_width_px(len(heads), PANEL_PX)
    across = _cells_across(cell_px, max(len(pictures) for _, pictures in groups))
    row_px = PANEL_PX + 2 * CAPTION_PX + 32
    bands = [-(-len(pictures) // across) * row_px + STRATUM_PX + 18 for _, pictures in groups]
    top = MARGIN_PX + TITLE_PX + CAPTION_PX + HEAD_PX + 46
    width = max(across * (cell_px + MARGIN_PX) + MARGIN_PX, 2 * MARGIN_PX + 600)
    canvas = Image.new("RGB", (width, top + sum(bands) + MARGIN_PX // 2), BACKGROUND)
    pen = _Pen(canvas)
    title = f"{manifest.spec.name} {manifest.spec.version}"
    pen.write((MARGIN_PX, MARGIN_PX - 4), title, TITLE_PX, BRIGHT, width - 2 * MARGIN_PX)
    pen.write((MARGIN_PX, MARGIN_PX + TITLE_PX + 8), subtitle, CAPTION_PX, DIM, width - 2 * MARGIN_PX)
    for cell in range(across):
        left = MARGIN_PX + cell * (cell_px + MARGIN_PX)
        for number, head in enumerate(heads):
            at = (left + number * (PANEL_PX + GAP_PX), top - HEAD_PX - 12)
            pen.write(at, head, HEAD_PX, DIM, PANEL_PX)
    for (heading, pictures), band_px in zip(groups, bands, strict=True):
        pen.rule(top, width)
        pen.write((MARGIN_PX, top + 8), heading, STRATUM_PX, ACCENT, width - 2 * MARGIN_PX)
        for number, picture in enumerate(pictures):
            left = MARGIN_PX + number % across * (cell_px + MARGIN_PX)
            _draw_cell(pen, (left, top + STRATUM_PX + 18 + number // across * row_px), picture, manifest.spec)
        top += band_px
    return canvas


def _cells_across(cell_px: int, most: int) -> int:
    return max(1, min(most, (MAX_ROW_PX - MARGIN_PX) // (cell_px + MARGIN_PX)))


def _draw_cell(pen: _Pen, at: tuple[int, int], picture: Picture, spec: DatasetSpec) -> None:
    left, top = at
    drawn = strip(picture.image, PANEL_PX)
    pen.canvas.paste(drawn, (left, top))
    under = top + PANEL_PX + 6
    pen.write((left, under), positive_labels(picture.row, spec), CAPTION_PX, BRIGHT, drawn.width)
    where = f"{shortened(picture.row['sop_uid'])}, {place(picture.row)}"
    pen.write((left, under + CAPTION_PX + 5), where, CAPTION_PX, DIM, drawn.width)


class _Pen:
    """Writes on a canvas; text that is too wide ends in dots."""

    def __init__(self, canvas: Image.Image) -> None:
        self.canvas = canvas
        self._draw = ImageDraw.Draw(canvas)

    def write(self, at: tuple[int, int], text: str, size_px: int, color: tuple[int, int, int], width_px: int) -> None:
        font = ImageFont.load_default(size=size_px)
        self._draw.text(at, fitted(text, width_px, font.getlength), fill=color, font=font)

    def rule(self, top: int, width_px: int) -> None:
        self._draw.line((MARGIN_PX, top, width_px - MARGIN_PX, top), fill=(48, 53, 62))


def fitted(text: str, width_px: float, length_px: Callable[[str], float]) -> str:
    """`text`, or as much of it as fits into `width_px` with three dots."""
    if length_px(text) <= width_px:
        return text
    kept = len(text)
    while kept and length_px(f"{text[:kept]}...") > width_px:
        kept -= 1
    return f"{text[:kept]}..."
