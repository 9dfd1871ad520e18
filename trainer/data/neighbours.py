"""A slice with its neighbours as channels: which rows lie beside it in its series, and how their images are stacked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainer.data import series, warp
from trainer.data.series import Series
from trainer.shell.problems import WrongUse

WORTH_COMPILING_BYTES = 1 << 20  # a batch; of fewer numpy is done before numba is imported

Int64 = npt.NDArray[np.int64]


def shape(image_shape: Sequence[int], context: int) -> tuple[int, ...]:
    """(rows, columns, channels) of what a model takes of a slice of `image_shape` with `context` neighbours a side.

    The one definition: what reads, trains, predicts and serves takes it from here.
    """
    *sides, channels = image_shape
    return (*sides, channels * (2 * context + 1))


def rows_beside(found: Series, context: int) -> Int64:
    """int64 [n, 2 * context + 1], for each of n planned rows the rows from `context` below it to `context` above.

    By their order in the series, however far apart they lie. Beyond an end the last slice there is repeats. `found`: a
    plan of all rows of a table.
    """
    at = np.arange(len(found.rows))[:, None] + np.arange(-context, context + 1)
    first, last = (np.repeat(ends, found.lengths)[:, None] for ends in (found.offsets[:-1], found.offsets[1:] - 1))
    beside = np.empty_like(at)
    beside[found.rows] = found.rows[np.clip(at, first, last)]
    return beside


def rows_of(table: pa.Table, part: npt.NDArray[np.int8], context: int, what: str) -> Int64:
    """`rows_beside` of the slices of a table as `series.plan` takes it, each among those of its own data set.

    `part` int8 [n]: number of that data set. Raises `WrongUse` for slices without a position or an order, and where no
    series has two slices; `what`: how it calls them.
    """
    table = table.select([*series.KEY, "position_mm", "sop_uid"])
    beside = np.empty((len(table), 2 * context + 1), np.int64)
    several = False
    for number in np.unique(part):
        rows = np.flatnonzero(part == number)
        own = table.take(pa.array(rows))
        found = series.plan(own)
        series.require_order(found, own)
        beside[rows] = rows[rows_beside(found, context)]
        several |= bool((found.lengths > 1).any())
    if not several:
        raise WrongUse(
            f"no series of {what} has two slices, so no slice has a neighbour, and the model sees {context} on either "
            "side (context_slices); take a model of single slices"
        )
    return beside


def stacked(images: npt.NDArray[Any], into: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
    """[..., size, size, m * channels] of `images` [..., m, size, size, channels], slice after slice.

    `into`: where it is put, contiguous and of the same bytes; new memory otherwise.
    """
    *head, count, rows, columns, channels = images.shape
    found = np.empty(images.size, images.dtype) if into is None else into.reshape(-1).view(images.dtype)
    if images.nbytes >= WORTH_COMPILING_BYTES and warp.installed():
        flat = (-1, count, rows * columns * channels)
        _interleave(count, channels)(images.reshape(flat), found.reshape(-1, rows * columns * channels * count))
        return found.reshape(*head, rows, columns, count * channels)
    found = found.reshape(*head, rows, columns, count * channels)
    # a channel at a time: three times faster than one transposed copy, which moves a few bytes at a time
    for at in range(count):
        for channel in range(channels):
            found[..., at * channels + channel] = images[..., at, :, :, channel]
    return found


@warp.once
def _interleave(count: int, channels: int) -> Callable[[Any, Any], None]:
    """A compiled function: [n, count, pixels * channels] into [n, pixels * count * channels].

    What the shape says is a constant of the program, which makes it twice as fast as numpy.
    """
    import numba

    @numba.njit(nogil=True)
    def run(images: Any, found: Any) -> None:
        for number in range(len(images)):
            for pixel in range(images.shape[2] // channels):
                for at in range(count):
                    for channel in range(channels):
                        to = (pixel * count + at) * channels + channel
                        found[number, to] = images[number, at, pixel * channels + channel]

    return run


def own(images: Any, channels: int) -> Any:
    """[..., channels] of `images` [..., m * channels], m odd: the slice itself, in the middle of its neighbours."""
    begin = (images.shape[-1] - channels) // 2
    return images[..., begin : begin + channels]
