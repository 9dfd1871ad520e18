"""The square around the head in a slice, found in whole numbers, so that every machine and a served graph agree.

A table and a headrest are shells of a few millimetres: no block of a head's thickness is filled by them. What counts is
filled blocks, and of those the rows and columns that hang together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

BLOCKS = 32  # on a side of a slice, 7 mm at a field of view of 230 mm
TISSUE_HU = -200  # and more: skin, fat, brain and bone; foam and air are less
FILLED = (3, 4)  # of a block's pixels that make it filled; a shell fills two thirds
LEAST = 2  # filled blocks of a row or column that counts
MARGIN = 1  # blocks around what was found: skin and ears fill none
SMALLEST = 2  # the side is at least this part of the slice's: the top of a head is not blown up without end
KEPT = (1, 2)  # of all tissue must lie in the square; of heads 0.59 and more did, the rest is headrest


class Square(NamedTuple):
    """First row and column, and the side, in pixels."""

    top: int
    left: int
    side: int


def head_square(hu: npt.NDArray[np.int16]) -> Square:
    """The square of a square slice `hu` [H, H] that holds the head; the whole slice where none is found."""
    height = hu.shape[0]
    whole, block = Square(0, 0, height), height // BLOCKS
    if not block:
        return whole
    tissue = hu >= TISSUE_HU
    filled = FILLED[1] * _block_counts(tissue, block) >= FILLED[0] * block**2
    rows = _longest(filled.sum(axis=1))
    columns = _longest(filled[rows].sum(axis=0))
    blocks = max(rows.stop - rows.start, columns.stop - columns.start)
    if not blocks:
        return whole
    side = min(max((blocks + 2 * MARGIN) * block, height // SMALLEST), height)
    top, left = (min(max((run.start + run.stop) * block - side, 0) // 2, height - side) for run in (rows, columns))
    inside = np.count_nonzero(tissue[top : top + side, left : left + side])
    kept = KEPT[1] * inside >= KEPT[0] * np.count_nonzero(tissue)
    return Square(top, left, side) if kept else whole


def cut(hu: npt.NDArray[np.int16], square: Square) -> npt.NDArray[np.int16]:
    """A view of the square of a slice."""
    return hu[square.top : square.top + square.side, square.left : square.left + square.side]


def _block_counts(tissue: npt.NDArray[np.bool_], block: int) -> npt.NDArray[np.int64]:
    """int64 [B, B], pixels that are True in each whole block; the few at the end that fill none are left out."""
    blocks = tissue.shape[0] // block
    ones = tissue[: blocks * block, : blocks * block].view(np.uint8)
    rows = np.add.reduce(ones.reshape(blocks, block, -1), axis=1, dtype=np.uint16)
    return rows.reshape(blocks, blocks, block).sum(axis=2, dtype=np.int64)


def _longest(counts: npt.NDArray[np.int64]) -> slice:
    """Of the runs of `LEAST` and more the one with the greatest sum, the first of equals; empty where there is none."""
    kept = np.where(counts >= LEAST, counts, 0)
    run = np.cumsum(kept == 0)  # which run each place is of; the zeros between begin one each
    sums = np.bincount(run, kept)
    if not sums.any():
        return slice(0, 0)
    found = np.flatnonzero((run == sums.argmax()) & (kept > 0))
    return slice(int(found[0]), int(found[-1]) + 1)
