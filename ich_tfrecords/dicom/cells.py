"""Cells as they lie in a file -> stored values: their sign, the bits above BitsStored, what is padding.

Headers and codestreams contradict each other, and the cells contradict both. Where two readings are possible, the
one that the standard names is taken only if the picture does not speak against it: a wrong reading tears edges of
2**BitsStored levels into smooth tissue. A slice that cannot be told is refused (docs/decisions/0025).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ich_tfrecords.dicom.header import SliceHeader, UnsupportedSlice
from ich_tfrecords.pixels import AIR_HU, INT16_MAX, Int16, is_wrapped

HIGHEST_HU = 3071  # of twelve bits from -1024 on; metal and bone end here in most scanners
NO_AIR_HU = -500  # a slice of which no cell is darker shows no air
LOWEST, MANY = -8192, 256  # so many different values below any HU are noise
CLEARLY = 5  # times smoother: overlays and zero-extended signs measure 8 and more, wide values below 3

Stored = npt.NDArray[np.signedinteger] | npt.NDArray[np.unsignedinteger]
Cells = npt.NDArray[np.unsignedinteger]
Bools = npt.NDArray[np.bool_]


class Samples(NamedTuple):
    """Decoded samples [rows, columns] as the codestream means them, and the precision that it declares, in bits.

    `signed` None: this kind of stream has no sign, and decoders do not agree on one (JPEG Lossless). `near`: how far a
    sample may be from what was encoded (near-lossless JPEG-LS).
    """

    values: Stored
    precision: int
    signed: bool | None
    near: int = 0


def from_stream(samples: Samples, bits_allocated: int, bits_stored: int, signed: bool) -> Cells:
    """Cells [rows * columns] of decoded samples, unsigned, `bits_allocated` wide, with the sign of the header.

    PS3.5 8.2 asks that a stream agrees with BitsStored. A signed slice in a stream without sign keeps its
    two's complement of `precision` bits, so the sign is that of the stream's top bit, as most decoders take it; a
    stream as wide as the cells holds the cells themselves. Raises `UnsupportedSlice` (ambiguous_sign).
    """
    values, precision = samples.values.astype(np.int64), samples.precision
    if signed and not samples.signed:
        if samples.near:
            _check_near(values, samples)
        values = _extended(values, precision)
    elif samples.signed and not signed:
        values &= (1 << precision) - 1
    holds_cells = precision == bits_allocated and not samples.signed
    if not holds_cells and (values != samples.values).any():
        _check_sign(values, samples, bits_stored, signed)
    return values.astype(f"u{bits_allocated // 8}").reshape(-1)


def _check_near(values: npt.NDArray[np.int64], samples: Samples) -> None:
    """Refuse samples so near to the greatest positive value that the encoder may have turned them to the least."""
    top = 1 << samples.precision - 1
    if ((values >= top - samples.near) & (values < top + samples.near)).any():
        raise UnsupportedSlice(
            "ambiguous_sign",
            f"signed values within {samples.near} of {top:,}, where the sign turns, in a near-lossless stream that may "
            "be off by as much",
        )


def _extended(values: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.int64]:
    """Two's complement of the lowest `bits` bits."""
    top = 1 << bits - 1
    return ((values & (2 * top - 1)) ^ top) - top


def _check_sign(values: npt.NDArray[np.int64], samples: Samples, bits_stored: int, signed: bool) -> None:
    """Refuse `values`, the samples with another sign than the stream's, where that is anybody's guess.

    Decoders take no sign from a JPEG Lossless stream, so there its top bit must be the one of BitsStored.
    """
    other = samples.values.astype(np.int64)
    torn, smooth = _roughness(values, values != other), _roughness(other, values != other)
    is_unknown = samples.signed is None and (values != _extended(other, bits_stored)).any()
    if is_unknown or smooth < torn:
        stream = {True: "signed", False: "unsigned", None: "JPEG Lossless"}[samples.signed]
        header = f"{'signed' if signed else 'unsigned'} values of {bits_stored} bits"
        raise UnsupportedSlice(
            "ambiguous_sign",
            f"the header says {header}, the {stream} stream has {samples.precision} bits and uses the topmost one; "
            "both signs are possible",
        )


def stored_values(
    cells: Cells, bits_stored: int, signed: bool, padding: Bools | None = None, overlays: bool = True
) -> Stored:
    """Stored values of unsigned cells [rows, columns]: sign from bit `bits_stored` - 1, bits above it dropped.

    PS3.5 8.1.1: the bits above are no part of the value, and overlays lay there. Yet some writers declare fewer bits
    than they use. Signed cells whose negative values fill the bits above leave no place for an overlay: there the
    whole cell is the value. Returns the cells themselves where every one fits. `padding`: cells that are taken whole.
    `overlays`: whether anything but values can lie in the bits above, as it cannot in a JPEG stream. Raises
    `UnsupportedSlice` (bits_contradict) where the cells need more bits than are declared, or may.
    """
    whole, spare = as_signed(cells, signed), 8 * cells.itemsize - bits_stored
    if not spare:
        return whole
    low, high = (-(1 << bits_stored - 1), (1 << bits_stored - 1) - 1) if signed else (0, (1 << bits_stored) - 1)
    if whole.min() >= low and whole.max() <= high:
        return whole
    masked = (whole << spare) >> spare if signed else cells & cells.dtype.type(high)
    if padding is not None:
        masked = np.where(padding, whole, masked)
    contested = whole != masked
    if not contested.any():
        return masked
    # negative values in cells that are called unsigned fill the bits above, too
    torn = min(_roughness(whole, contested), _roughness(as_signed(cells, True), contested))
    overlaid = overlays and CLEARLY * _roughness(masked, contested) <= torn
    counted = np.ones(cells.shape, bool) if padding is None else ~padding
    extended = signed and _fills_signs(whole[counted], contested[counted])
    if overlaid == extended:
        raise UnsupportedSlice(
            "bits_contradict",
            f"BitsStored is {bits_stored}, but stored values run from {whole[counted].min():,} to "
            f"{whole[counted].max():,}; which bits are the value cannot be told (PS3.5 8.1.1)",
        )
    return whole if extended else masked


def _fills_signs(whole: Stored, contested: Bools) -> bool:
    """Whether negative values fill the bits above: several do, and they are no noise, which has every value."""
    negative = np.unique(whole[~contested & (whole < 0)])
    return len(negative) > 1 and len(np.unique(whole[whole < LOWEST])) < MANY


def as_signed(cells: Cells, signed: bool) -> Stored:
    """The whole cells, with a sign where the header says so; no copy."""
    return cells.view(f"i{cells.itemsize}") if signed else cells


def check_sign(stored: Stored, header: SliceHeader, padding: Bools | None = None) -> None:
    """Refuse stored values that look like two's complement which the header does not tell of.

    Such a slice has no air, or HU beyond any scanner's, and is smooth once the upper half of its values is taken for
    negative. `padding`: cells that do not count. Raises `UnsupportedSlice` (ambiguous_sign).
    """
    if header.slope < 0 or is_wrapped(header.bits_stored, header.signed, header.intercept):
        return
    counted = stored if padding is None else stored[~padding]
    may_exceed = not header.signed and (1 << header.bits_stored) * header.slope + header.intercept > INT16_MAX
    if not may_exceed and not _lacks_air(_least(counted[::32]), header):  # most slices show it in a few rows
        return
    least = _least(counted)
    greatest = int(counted.max(initial=0)) if may_exceed or _lacks_air(least, header) else 0
    exceeds = greatest * header.slope + header.intercept > INT16_MAX
    if least < 0 or not (exceeds or _lacks_air(least, header)):
        return
    bits = max(greatest.bit_length(), 1)
    contested = stored >= 1 << bits - 1
    if padding is not None:
        contested &= ~padding
    negative = np.where(contested, stored.astype(np.int32) - (1 << bits), stored)
    torn = _roughness(stored, contested)
    if torn and CLEARLY * _roughness(negative, contested) <= torn:
        raise UnsupportedSlice(
            "ambiguous_sign",
            f"stored values run from {least:,} to {greatest:,} and are smooth as two's complement of {bits} bits, but "
            f"the header says {'signed' if header.signed else 'unsigned'} values of {header.bits_stored} bits",
        )


def _least(stored: Stored) -> int:
    return int(stored.min(initial=np.iinfo(stored.dtype).max))


def _lacks_air(least: int, header: SliceHeader) -> bool:
    """Whether neither a negative value nor air is among the stored values from `least` on."""
    return least >= 0 and least * header.slope + header.intercept > NO_AIR_HU


def _roughness(values: Stored, contested: Bools) -> int:
    """Sum of the steps between neighbours of which one is contested: where a wrong reading shows."""
    wide, total = values.astype(np.int64), 0
    for axis in (0, 1):
        edge = np.diff(contested, axis=axis)
        total += int(np.abs(np.diff(wide, axis=axis))[edge].sum())
    return total


def padding(cells: Cells, header: SliceHeader) -> Bools | None:
    """Which cells [rows, columns] hold a padding value (PS3.3 C.7.5.1.1.2); None where that changes nothing.

    Padding at or below air is dark in every window and stays what it is. Raises `UnsupportedSlice` (bad_padding)
    where the range of padding begins in air and ends in tissue, all of which would be lost.
    """
    if header.padding is None:
        return None
    low, high = header.padding
    darkest, brightest = sorted(value * header.slope + header.intercept for value in header.padding)
    if darkest <= AIR_HU and brightest > NO_AIR_HU:
        raise UnsupportedSlice(
            "bad_padding",
            f"the range of PixelPaddingValue, {low:,} to {high:,}, is air as well as tissue (PS3.3 C.7.5.1.1.2)",
        )
    if brightest <= AIR_HU and header.bits_stored == 8 * cells.itemsize:
        return None
    whole = as_signed(cells, header.signed)
    found = (whole >= low) & (whole <= high)
    return found if found.any() else None


def with_air(hu: Int16, cells: Cells, found: Bools, header: SliceHeader) -> Int16:
    """`hu` [rows, columns] with air where the cells in `found` are padding, and not tissue of the same value.

    By the clause no cell of the image itself has a padding value, yet devices declare ordinary ones. So a value up to
    `HIGHEST_HU` is padding only outside of the scan: where it reaches a corner of the slice through its like. A
    higher one is padding everywhere. What is darker than air stays.
    """
    with np.errstate(over="ignore"):  # as in `pixels.to_hu`
        value_hu = as_signed(cells, header.signed) * header.slope + header.intercept
    outside = found & (value_hu > HIGHEST_HU)
    if (found & ~outside).any():
        outside |= _reached_from_corners(found)
    return np.where(outside & (value_hu > AIR_HU), np.int16(AIR_HU), hu)


def _reached_from_corners(open_: Bools) -> Bools:
    """Cells of `open_` that a corner reaches through others of it, side by side."""
    starts = np.ones(open_.shape, bool)
    starts[:, 1:] = open_[:, 1:] != open_[:, :-1]
    run = np.cumsum(starts.ravel()).reshape(open_.shape) - 1  # the number of each run of like cells in its row
    touching = open_[1:] & open_[:-1] & (starts[1:] | starts[:-1])  # once for each two runs
    root = _joined(int(run[-1, -1]) + 1, run[:-1][touching], run[1:][touching])
    corners = np.ix_((0, -1), (0, -1))
    return open_ & np.isin(root, root[run[corners][open_[corners]]])[run]


def _joined(count: int, one: npt.NDArray[np.intp], other: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """For each of `count` runs the least of those that the pairs `one`, `other` join to it.

    Trees are joined and flattened in turn: a few rounds, even where padding winds through a whole slice.
    """
    root = np.arange(count)
    while (root[one] != root[other]).any():
        least = np.minimum(root[one], root[other])
        np.minimum.at(root, root[one], least)
        np.minimum.at(root, root[other], least)
        while (root != (above := root[root])).any():
            root = above
    return root
