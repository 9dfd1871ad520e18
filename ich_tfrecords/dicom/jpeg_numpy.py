"""The coded bits of JPEG Lossless and its predictors (ITU-T T.81, process 14) in numpy alone: what everybody has.

The Huffman steps are looked up for every bit position at once, so that the one sequential loop only adds.
`jpeg_compiled` has the same two functions, ten times as fast, for those who have numba; nothing may tell them apart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

UInt16 = npt.NDArray[np.uint16]

NO_CODE = -1  # for `Coded.bits`
NO_EXTRA = 16  # category of the one difference that no further bits follow: 32,768 (T.81 H.1.2.2)


class Huffman(NamedTuple):
    """By the next 16 bits: length of the code (0: no such code) and the category it stands for."""

    length: npt.NDArray[np.uint8]
    category: npt.NDArray[np.uint8]


class Coded(NamedTuple):
    """What the bits of one interval hold, whole or not.

    `differences`: uint16, modulo 2**16, to be used only where all `samples` asked for began inside the data and `bits`,
    the bits that they take, are no more than there are. `bits` is `NO_CODE` where a pattern is no Huffman code.
    """

    differences: UInt16
    samples: int
    bits: int


def read(data: bytes, table: Huffman, count: int) -> Coded:
    """The first `count` differences of one entropy-coded interval (T.81 H.1.2.2), without stuffed zeros."""
    packed = np.frombuffer(data + bytes(8), np.uint8).astype(np.uint32)
    words = packed[:-3] << 24 | packed[1:-2] << 16 | packed[2:-1] << 8 | packed[3:]
    next_16 = np.empty((len(data), 8), np.uint16)
    for bit in range(8):
        next_16[:, bit] = words[: len(data)] >> np.uint32(16 - bit)
    extra_bits = np.where(table.category == NO_EXTRA, 0, table.category)
    starts = _starts((table.length + extra_bits)[next_16].tobytes(), count)
    window = next_16.reshape(-1)[starts]
    length, category = table.length[window].astype(np.int64), table.category[window].astype(np.int64)
    if not length.all():
        return Coded(np.empty(0, np.uint16), int(length.argmin()), NO_CODE)
    at = starts + length
    bits = int(at[-1] + category[-1] % NO_EXTRA) if len(at) else 0
    wide = words[at >> 3].astype(np.int64) << (at & 7) & 0xFFFFFFFF
    value = wide >> (32 - category)
    negative = value < (1 << category >> 1)
    difference = np.where(negative, value - (1 << category) + 1, value)
    return Coded(np.where(category == NO_EXTRA, 1 << 15, difference).astype(np.uint16), len(starts), bits)


def _starts(steps: bytes, count: int) -> npt.NDArray[np.int64]:
    """Bit positions at which codes begin, up to `count`; `steps` has the bits to the next one for each position."""
    starts, at, place = [0] * count, 0, 0
    try:
        for place in range(count):
            starts[place] = at
            at += steps[at]
    except IndexError:
        del starts[place:]
    return np.array(starts, np.int64)


def undo(differences: UInt16, selection: int, first: int) -> UInt16:
    """Cells of differences [rows, columns] under one of the seven predictors (T.81 table H.1), modulo 2**16.

    The first row is predicted from the left, the first column from above, the first cell is `first`. Sums wrap as the
    standard's do.
    """
    cells = differences.copy()
    cells[:1, :1] += np.uint16(first)
    if selection == 1:
        cells[:, 0] = np.cumsum(cells[:, 0], dtype=np.uint16)
        return np.cumsum(cells, axis=1, dtype=np.uint16)
    cells[0] = np.cumsum(cells[0], dtype=np.uint16)
    for row in range(1, len(cells)):
        above = cells[row - 1].astype(np.int64)
        cells[row] = _undo_row(cells[row].astype(np.int64), above, selection)
    return cells


def _undo_row(row: npt.NDArray[np.int64], above: npt.NDArray[np.int64], selection: int) -> UInt16:
    row[0] += above[0]
    if selection in (6, 7):
        return _undo_row_in_turn(row.tolist(), above.tolist(), selection)
    if selection in (2, 3):
        row[1:] += above[1:] if selection == 2 else above[:-1]
        return row.astype(np.uint16)
    slope = np.diff(above)
    row[1:] += slope if selection == 4 else slope >> 1
    return np.cumsum(row).astype(np.uint16)


def _undo_row_in_turn(row: list[int], above: list[int], selection: int) -> UInt16:
    """Predictors 6 and 7 halve a sum with the left neighbour, so they go cell by cell."""
    left = row[0] = row[0] & 0xFFFF
    for column in range(1, len(row)):
        if selection == 6:
            guess = above[column] + ((left - above[column - 1]) >> 1)
        else:
            guess = (left + above[column]) >> 1
        left = row[column] = (row[column] + guess) & 0xFFFF
    return np.array(row, np.uint16)
