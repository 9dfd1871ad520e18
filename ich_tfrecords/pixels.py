"""Pure array maths from stored values to the image tensor: HU, repair, window, box-area resample, quantise.

Every step is exact in integers, so that numpy, TensorFlow and any machine give the same bits.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ich_tfrecords import crop
from ich_tfrecords.spec import HEAD, HU, STEPS_A_HU, ImageSpec, Window

INT16_MIN, INT16_MAX = -32768, 32767
AIR_HU = -1000  # by the definition of the Hounsfield scale
WRAP_LEVELS = 4096  # stored values of a 12-bit slice
WRAP_SHIFT = 1000
WRAP_INTERCEPT_HU = -100.0  # an unsigned 12-bit slice with a greater intercept holds wrapped values

Int16 = npt.NDArray[np.int16]
Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Ints = TypeVar("Ints", Int32, Int64)
UInt8 = npt.NDArray[np.uint8]
Tensor = npt.NDArray[Any]


def is_wrapped(bits_stored: int, signed: bool, intercept: float) -> bool:
    """True for the RSNA defect: unsigned 12-bit values that wrapped at 4096 under a wrong intercept."""
    return bits_stored == 12 and not signed and intercept > WRAP_INTERCEPT_HU


def to_hu(stored: npt.NDArray[np.integer], bits_stored: int, signed: bool, slope: float, intercept: float) -> Int16:
    """HU int16 of stored values: `round(stored * slope + intercept)`, half to even, saturating at int16.

    `stored`: 8 or 16 bits wide, any shape (`cells.stored_values`). `slope`, `intercept`: RescaleSlope and
    RescaleIntercept in HU (DICOM PS3.3 C.11.1). Wrapped 12-bit slices (see `is_wrapped`) are repaired first.
    """
    if is_wrapped(bits_stored, signed, intercept):
        stored = (stored + stored.dtype.type(WRAP_SHIFT)) % stored.dtype.type(WRAP_LEVELS)
        intercept = -float(WRAP_SHIFT)
    fits_int16 = stored.dtype.kind == "i" or bits_stored < 16
    if slope == 1 and intercept == int(intercept) and abs(intercept) <= INT16_MAX and fits_int16:
        return _shift_hu(stored.astype(np.int16, copy=False), int(intercept))
    with np.errstate(over="ignore"):  # a slope of 1e308 saturates like any other
        hu = np.rint(stored.astype(np.float64) * slope + intercept)
    return np.clip(hu, INT16_MIN, INT16_MAX).astype(np.int16)


def _shift_hu(stored: Int16, intercept_hu: int) -> Int16:
    """`stored` + `intercept_hu`, saturating: the limit is taken before the sum, which then cannot overflow."""
    if intercept_hu == 0:
        return stored
    lowest, highest = max(INT16_MIN, INT16_MIN - intercept_hu), min(INT16_MAX, INT16_MAX - intercept_hu)
    hu = np.clip(stored, np.int16(lowest), np.int16(highest))
    hu += np.int16(intercept_hu)
    return hu


def pad_square(hu: Int16, pad_hu: int) -> Int16:
    """`hu` [rows, columns] centred in a square of the longer side; an odd spare line goes last."""
    rows, columns = hu.shape
    if rows == columns:
        return hu
    side = max(rows, columns)
    square = np.full((side, side), pad_hu, np.int16)
    top, left = (side - rows) // 2, (side - columns) // 2
    square[top : top + rows, left : left + columns] = hu
    return square


def box_sums(values: Int32, size: int, most: int) -> Int64:
    """Sums [size, size] of square `values` [H, H] over the boxes of an exact area resample.

    Output i covers inputs [i*H/size, (i+1)*H/size); overlaps are counted in units of 1/size of an input,
    so they are whole and add up to H on each axis, H*H in all. `most`: no value is further from 0; H times it must be
    below 2**31.
    """
    by_row = _box_sums_rows(values, size)
    if most * len(values) ** 2 < 1 << 31:
        return _box_sums_rows(np.ascontiguousarray(by_row.T), size).T.astype(np.int64)
    return _box_sums_rows(by_row.T.astype(np.int64, order="C"), size).T


def _box_sums_rows(values: Ints, size: int) -> Ints:
    """Sums [size, columns] over rows, one after the other of the few that each output meets."""
    height, kind = len(values), values.dtype
    start = np.arange(size) * height
    sums = np.zeros((size, values.shape[1]), kind)
    met = np.empty_like(sums)
    for nth in range(-(-height // size) + 1):
        row = start // size + nth
        overlap = np.minimum((row + 1) * size, start + height) - np.maximum(row * size, start)
        np.take(values, row, axis=0, out=met, mode="clip")  # a row past the last has no overlap
        met *= np.maximum(overlap, 0).astype(kind)[:, None]
        sums += met
    return sums


def quantise(sums: Int64, low: int, width: int, weight: int) -> UInt8:
    """Grey levels floor(255*(sums/weight - low)/width + 1/2) of weighted sums, in integers throughout."""
    return ((510 * (sums - low * weight) + width * weight) // (2 * width * weight)).astype(np.uint8)


def window_channel(hu: Int16, window: Window, size_px: int) -> UInt8:
    """One channel [size_px, size_px] of a square slice `hu` [H, H]: clip, then area-resample, then quantise.

    DICOM PS3.3 C.11.2.1.3.2 (LINEAR_EXACT). Clipping comes before resampling, so that bone does not
    bleed into brain. H = 4 * size_px (512 to 128) takes a fast path, and every other H takes `box_sums`, to the same
    bits. H is at most 16,384; a slice has at most 4,096.
    """
    low, scale = _low_edge(window)
    side, width = hu.shape[0], scale * window.width_hu
    if side == 4 * size_px and scale == 1 and 16 * width < 1 << 16:
        return _window_quarter(hu, low, width)
    return quantise(box_sums(_above(hu, window), size_px, width), 0, width, side**2)


def _above(hu: Int16, window: Window) -> Int32:
    """`hu` above the lower edge of the window, clipped to it, in HU or, where a window ends on halves, in halves."""
    low, scale = _low_edge(window)
    width = scale * window.width_hu
    if scale == 1 and width <= INT16_MAX:
        clipped = np.clip(hu, np.int16(low), np.int16(low + width))
        clipped -= np.int16(low)  # at most `width`
        return clipped.astype(np.int32)
    return np.clip(hu.astype(np.int32) * np.int32(scale), low, low + width) - np.int32(low)


def _low_edge(window: Window) -> tuple[int, int]:
    """Lower edge of the window and the factor (1 or 2) that makes it whole: an odd width ends on halves."""
    low = 2 * window.level_hu - window.width_hu
    return (low // 2, 1) if low % 2 == 0 else (low, 2)


def _window_quarter(hu: Int16, low: int, width: int) -> UInt8:
    """`window_channel` for 4 x 4 boxes: four int16 lanes of one 64-bit word are added at once.

    Values above `low` are at most `width`, sixteen of them stay below 2**16, so no lane carries over.
    """
    size = hu.shape[0] // 4
    clipped = np.clip(hu, np.int16(low), np.int16(low + width), order="C")
    clipped -= np.int16(low)
    rows = clipped.view("<u8").reshape(size, 4, size)
    lanes = np.add.reduce(rows, axis=1)
    lanes *= np.uint64(0x0001_0001_0001_0001)
    sums = (lanes >> np.uint64(48)).astype(np.uint32)
    return ((sums * np.uint32(510) + np.uint32(16 * width)) // np.uint32(32 * width)).astype(np.uint8)


def image_of(hu: Int16, image: ImageSpec) -> Tensor:
    """Image tensor [size_px, size_px, channels] in C order of one slice `hu` int16 [rows, columns].

    uint8, a channel a window; of kind `hu` int16, one channel: the mean of each box (`mean_steps`).
    """
    square = pad_square(hu, image.pad_hu)
    if image.crop == HEAD:
        square = crop.cut(square, crop.head_square(square))
    square = np.ascontiguousarray(square)
    if image.kind == HU:
        return mean_steps(square, image.size_px)[:, :, None]
    return _windowed(square, image)


def mean_steps(hu: Int16, size_px: int) -> Int16:
    """int16 [size_px, size_px], the mean over each box of an exact area resample of `hu` [H, H], in quarters of a HU.

    floor(4 * mean + 1/2), saturating at -8192 and 8191.75 HU. In whole HU a step would be three grey levels of brain.
    """
    weight = hu.shape[0] ** 2
    sums = _block_sums(hu, size_px) if hu.shape[0] % size_px == 0 else _any_sums(hu, size_px)
    steps = (2 * STEPS_A_HU * sums + weight) // (2 * weight)
    return np.clip(steps, INT16_MIN, INT16_MAX).astype("<i2")


def _any_sums(hu: Int16, size_px: int) -> Int64:
    above = hu.astype(np.int32) - np.int32(INT16_MIN)
    return box_sums(above, size_px, INT16_MAX - INT16_MIN) + INT16_MIN * hu.shape[0] ** 2


def _block_sums(hu: Int16, size_px: int) -> Int64:
    """`_any_sums` where each box is a block of whole pixels; those weigh size_px**2."""
    times = hu.shape[0] // size_px
    rows = np.add.reduce(hu.reshape(size_px, times, -1), axis=1, dtype=np.int32)
    return np.add.reduce(rows.reshape(size_px, size_px, times), axis=2, dtype=np.int64) * size_px**2


def shown(tensor: Tensor, image: ImageSpec) -> UInt8:
    """uint8 [size_px, size_px, windows], what is shown of an image tensor: itself, or its HU in the spec's windows."""
    if image.kind != HU:
        return tensor
    steps, seen = tensor[:, :, 0].astype(np.int64), []
    for window in image.windows:
        low, width = (2 * window.level_hu - window.width_hu) * STEPS_A_HU // 2, window.width_hu * STEPS_A_HU
        seen.append(quantise(np.clip(steps, low, low + width), low, width, 1))
    return np.stack(seen, -1)


def _windowed(square: Int16, image: ImageSpec) -> UInt8:
    """uint8 [size_px, size_px, windows] in C order of a square slice."""
    size_px = image.size_px
    tensor = np.empty((size_px, size_px, len(image.windows)), np.uint8)
    for channel, window in enumerate(image.windows):
        tensor[:, :, channel] = window_channel(square, window, size_px)
    return tensor
