"""Slices that come series by series, to batches of slices stacked with their neighbours.

A series waits until it is whole; batches then go across the borders of series. So memory is that of one series, the
longest there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice

import numpy as np
import numpy.typing as npt

from ich_tfrecords.pixels import Tensor
from trainer.data import neighbours
from trainer.data.series import Series
from trainer.prediction import slice_stream
from trainer.prediction.slice_stream import Batch, FoundSlice, Reject

NO_ORDER = "no_order"

Int64 = npt.NDArray[np.int64]


def series_of(found: FoundSlice) -> tuple[str, str]:
    """The study and the series of a slice."""
    return found.study_uid, found.series_uid


def order(slices: Sequence[FoundSlice], lost: list[Reject]) -> Int64:
    """int64 [n], numbers of the slices of a series from feet to head.

    Where all of several are at one position nobody can tell: none are left then, and `lost` grows by them.
    """
    places = [(found.position_mm, found.sop_uid) for found in slices]
    rows = sorted(range(len(places)), key=places.__getitem__)
    count = len(rows)
    if count > 1 and places[rows[0]][0] == places[rows[-1]][0]:
        detail = f"series {slices[0].series_uid} has {count:,} slices at one position, so they have no order"
        lost += [slice_stream.refused(slices[row], NO_ORDER, detail) for row in rows]
        rows = []
    return np.array(rows, np.int64)


def batches(alone: Iterable[Batch], context: int, batch_size: int) -> Iterator[Batch]:
    """Batches of `batch_size` slices of those of `alone`, from feet to head, each stacked with its neighbours.

    `alone`: batches in which a series comes in one piece, in any order. `context`: neighbours on either side, as they
    are among the slices that could be read; `FoundSlice.beside` says which they are.
    """
    lost: list[Reject] = []  # on the way, until the next batch
    found = _stacked(_singly(alone, lost), context, lost)
    while some := list(islice(found, batch_size)):
        slices, images, contents = zip(*some)
        yield Batch([*slices], np.stack(images), lost[:], [*contents], len(some) + len(lost))
        lost.clear()
    if lost:
        yield Batch([], np.empty(0, np.uint8), lost, [], len(lost))


_Singly = tuple[FoundSlice, Tensor, int]


def _singly(alone: Iterable[Batch], lost: list[Reject]) -> Iterator[_Singly]:
    """Each slice with its image and `content`; `lost` grows by the rejects."""
    for batch in alone:
        lost += batch.rejects
        yield from zip(batch.slices, batch.images, batch.contents, strict=True)


def _stacked(found: Iterable[_Singly], context: int, lost: list[Reject]) -> Iterator[_Singly]:
    for _, some in groupby(found, lambda one: series_of(one[0])):
        slices, images, contents = zip(*some)
        rows = order(slices, lost)
        whole = Series(np.arange(len(rows)), np.array([0, len(rows)]))
        for row, beside in zip(rows, rows[neighbours.rows_beside(whole, context)]):
            near = tuple(slices[at].ref for at in beside)
            seen = neighbours.stacked(np.stack([images[at] for at in beside]))
            yield slices[row]._replace(beside=near), seen, contents[row]
