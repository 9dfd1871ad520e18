"""Small pictures of every slice, in a nameless file until it is known which studies are shown.

Which study is urgent is known at the end alone, and slices of many studies may come mixed. So each slice leaves a
record of about 4 kB in the folder of the results, and 4 bytes in memory beside the names of its study and series.
"""

from __future__ import annotations

import array
import dataclasses
import io
from collections import defaultdict
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ich_tfrecords import pixels
from ich_tfrecords.pixels import Tensor
from ich_tfrecords.spec import ImageSpec
from ich_tfrecords.views.montage import ACCENT, BACKGROUND
from trainer.data import neighbours
from trainer.prediction.slice_stream import FoundSlice, uid_hash
from trainer.prediction.triage import Outcome

MOST_PX = 64  # a side of a thumbnail
GAP_PX, RING_PX = 2, 3
LEAST_WIDE = 10  # thumbnails
QUALITY = 82  # of JPEG

Uint8 = npt.NDArray[np.uint8]
Float64 = npt.NDArray[np.float64]
Records = npt.NDArray[Any]


def _blocks(size: int) -> tuple[int, int]:
    """Pixels of a side of a thumbnail, at most `MOST_PX`, and of the blocks that they stand for."""
    block = -(-size // MOST_PX)
    return size // block, block


def of_images(images: Tensor, looks: ImageSpec) -> Uint8:
    """Thumbnails [k, px, px] of images [k, size, size, channels] as a slice model sees them; `looks`: `About.shown`'s.

    The slice itself in the first window, means over whole blocks; what is left over at the right and lower edge is cut.
    """
    px, block = _blocks(looks.size_px)
    total = np.zeros((len(images), px, px), np.int32)
    first = neighbours.own(images, looks.shape[2])[..., 0]
    for row in range(block):
        for column in range(block):
            total += first[:, row : px * block : block, column : px * block : block]
    means = (total // block**2).astype(images.dtype)
    one_window = dataclasses.replace(looks, windows=looks.windows[:1])
    shown = [pixels.shown(mean[..., None], one_window)[..., 0] for mean in means]
    return np.stack(shown) if shown else np.empty((0, px, px), np.uint8)


class Thumbnails:
    """The scored slices of a prediction with their thumbnails, kept in `file`, to be read series by series."""

    def __init__(self, file: BinaryIO, labels: int, image_px: int) -> None:
        """`file`: empty, to be written and read; `labels`: how many; `image_px`: a side of the images."""
        px, _ = _blocks(image_px)
        self._dtype = np.dtype(
            [("uid", "u8"), ("position_mm", "f4"), ("probabilities", "f4", (labels,)), ("thumbnail", "u1", (px, px))]
        )
        self._rows: dict[str, dict[str, array.array[int]]] = defaultdict(dict)  # by study and series
        self._count = 0
        self._file = file

    def take(self, outcome: Outcome) -> None:
        """Keep the slices of `outcome`, which has a thumbnail of each."""
        found, records = outcome.slices, np.zeros(len(outcome.slices), self._dtype)
        if not found:
            return
        records["uid"] = [uid_hash(one.sop_uid) for one in found]
        records["position_mm"] = [one.position_mm for one in found]
        records["probabilities"], records["thumbnail"] = outcome.probabilities, outcome.thumbnails
        self._file.write(records.data)
        for row, one in enumerate(found, self._count):
            self._rows[one.study_uid].setdefault(one.series_uid, array.array("I")).append(row)
        self._count += len(found)

    def series(self, found: FoundSlice) -> Records:
        """The slices of the series of a slice that was kept, from feet to head.

        Fields: uid (`uid_hash`), position_mm float32, probabilities float32 [L], thumbnail uint8 [px, px].
        """
        parts = []
        for row in self._rows[found.study_uid][found.series_uid]:
            self._file.seek(row * self._dtype.itemsize)
            parts.append(self._file.read(self._dtype.itemsize))
        records = np.frombuffer(b"".join(parts), self._dtype)
        return records[np.argsort(records["position_mm"], kind="stable")]


def chosen(count: int, most: int, ringed: int) -> list[int]:
    """Numbers of up to `most` of `count` slices, ascending: one of each of so many equal parts, `ringed` among them."""
    cells = min(count, most)
    rows = [(2 * cell + 1) * count // (2 * cells) for cell in range(cells)]
    rows[min((2 * ringed + 1) * cells // (2 * count), cells - 1)] = ringed
    return rows


def strip(thumbnails: Uint8, ringed: int) -> Image.Image:
    """Thumbnails [k, px, px], each in the middle of its part of equal parts; that of the number `ringed` has a frame.

    As wide as `LEAST_WIDE` of them at least, so that few are not shown larger than many.
    """
    count, px, _ = thumbnails.shape
    wide = px + GAP_PX
    canvas = Image.new("RGB", (max(count, LEAST_WIDE) * wide, px), BACKGROUND)
    lefts = [(2 * at + 1) * canvas.width // (2 * count) - wide // 2 for at in range(count)]
    for left, one in zip(lefts, thumbnails, strict=True):
        canvas.paste(Image.fromarray(one).convert("RGB"), (left + GAP_PX // 2, 0))
    frame = (lefts[ringed], 0, lefts[ringed] + wide - 1, px - 1)
    ImageDraw.Draw(canvas).rectangle(frame, outline=ACCENT, width=RING_PX)
    return canvas


def jpeg_bytes(image: Image.Image) -> bytes:
    """The image as a JPEG file: a quarter of what PNG takes, for pages that hold hundreds."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
