"""Images changed on the host as `augment.apply` changes them, compiled by numba: the same bits, many times faster.

numba is optional. It runs without Python's lock, so that other threads read meanwhile.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

BORDER = 2  # of air around an image, so that each place that is far outside has four neighbours there too
_WORD = 32  # bits, which hold several channels

# what may be done to floats: nothing that changes a finite number, so no fused multiply-add
_FLOATS = {"nnan", "ninf", "nsz"}


@functools.cache
def installed() -> bool:
    """Whether numba is there and can be imported: it refuses a numpy that is newer than itself."""
    try:
        importlib.import_module("numba")
    except Exception:  # in words of its own; the plain operations give the same bits
        return False
    return True


def changed(images: npt.NDArray[Any], changes: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """[n, s, s, c], copies of `images` after their `changes` float32 [n, 15]."""
    made = images.copy()
    change(made, changes)
    return made


def change(images: npt.NDArray[Any], changes: npt.NDArray[np.float32]) -> None:
    """Change `images` uint8 or int16 [n, s, s, c] in place by `changes` float32 [n, 15], see `augment.apply`."""
    side, channels, bits = images.shape[1], images.shape[3], 8 * images.dtype.itemsize
    flat = images.view(f"u{images.dtype.itemsize}").reshape(len(images), side * side * channels)
    for first in range(0, channels, _WORD // bits):
        _kernel(side, channels, first, min(_WORD // bits, channels - first), bits)(flat, changes)


@functools.cache
def _kernel(side: int, channels: int, first: int, count: int, bits: int) -> Callable[[Any, Any], None]:
    """A compiled function that changes `count` channels from `first` on of images [n, s * s * channels] in place.

    `bits`: 8 of grey levels, whose air is 0; 16 of HU, which in a word are combined with the bits of air, so that it is
    0 there too. All that the shape says is a constant of the program, so that its loops become vector instructions.
    """
    import numba
    from numba import float32, int16, int32, uint8, uint16, uint32, uint64

    wide, pixels, stride = side + 2 * BORDER, uint64(side), uint64(channels)
    mask = uint32((1 << bits) - 1)
    inlined = numba.njit(inline="always", fastmath=_FLOATS)

    @inlined
    def grey_of(bits_found: Any, air: Any) -> Any:
        return float32(int32(bits_found))

    @inlined
    def grey_level(value: Any, gain: Any, bias: Any, air: Any) -> Any:
        """A grey level after gain and bias."""
        return uint8(int32(np.rint(min(max(np.rint(value) * gain + bias, float32(0)), float32(255)))))

    @inlined
    def grey_as_it_is(value: Any, gain: Any, bias: Any, air: Any) -> Any:
        """The same where gain is 1 and bias 0: a mean of grey levels is one."""
        return uint8(int32(np.rint(value)))

    @inlined
    def hu_above(bits_found: Any, air: Any) -> Any:
        return float32(int32(int16(uint16(bits_found ^ (uint32(air) & mask)))) - air)

    @inlined
    def hu_of(value: Any, gain: Any, bias: Any, air: Any) -> Any:
        return uint16(int32(np.rint(value)) + air)

    above_air, level, word_of = (grey_of, grey_level, uint8) if bits == 8 else (hu_above, hu_of, uint16)
    same_level = grey_as_it_is if bits == 8 else hu_of

    @inlined
    def pack(image: Any, words: Any, columns: Any, air: Any) -> tuple[int, int]:
        """Put the channels of each pixel into a word; returns the first and last row that is not all air."""
        top, bottom = side, -1
        columns[:] = 0
        for y in range(side):
            begin, filled = uint64(y * side * channels + first), uint32(0)
            row = uint64((y + BORDER) * wide + BORDER)
            for x in range(pixels):
                word = uint32(0)
                for channel in range(count):
                    word |= (uint32(image[begin + stride * x + uint64(channel)]) ^ air) << uint32(bits * channel)
                words[row + x] = word
                columns[x] |= word
                filled |= word
            if filled:
                top, bottom = min(top, y), y
        return top, bottom

    @inlined
    def filled_columns(columns: Any) -> tuple[int, int]:
        """The first and last column that is not all air."""
        left, right = side, -1
        for x in range(side):
            if columns[x]:
                left, right = min(left, x), x
        return left, right

    @inlined
    def crossing(begin: float, end: float, start: float, slope: float, low: int, high: int) -> tuple[float, float]:
        """The part of begin .. end where start + slope * x may lie within low .. high, a pixel more on each side."""
        if slope == 0.0:
            return (begin, end) if low - 1 <= start <= high + 1 else (0.0, -1.0)
        one, other = (low - start) / slope, (high - start) / slope
        return max(begin, min(one, other) - 1.0), min(end, max(one, other) + 1.0)

    @inlined
    def places(change: Any, y: int, at: Any, parts: Any, begin: Any, end: Any) -> None:
        """Where each pixel of row `y` from `begin` to `end` lies, and the parts that its neighbours have in it."""
        across, down = change[1] * float32(y), change[4] * float32(y)
        low, high = float32(-BORDER), float32(side)
        for x in range(begin, end):
            u = (change[0] * float32(int32(x)) + across) + change[2]
            v = (change[3] * float32(int32(x)) + down) + change[5]
            left, top = np.floor(u), np.floor(v)
            parts[x], parts[pixels + x] = (left + float32(1)) - u, u - left
            parts[uint64(2) * pixels + x], parts[uint64(3) * pixels + x] = (top + float32(1)) - v, v - top
            row, column = int32(min(max(top, low), high)), int32(min(max(left, low), high))
            at[x] = uint32((row + int32(BORDER)) * int32(wide) + column + int32(BORDER))

    @inlined
    def gather(words: Any, at: Any, near: Any, begin: Any, end: Any) -> None:
        """The four neighbours of each pixel."""
        for x in range(begin, end):
            place = uint64(at[x])
            near[x], near[pixels + x] = words[place], words[place + uint64(1)]
            near[uint64(2) * pixels + x] = words[place + uint64(wide)]
            near[uint64(3) * pixels + x] = words[place + uint64(wide + 1)]

    def blend_to(level: Any) -> Any:
        @inlined
        def blend(
            near: Any, parts: Any, image: Any, row: Any, begin: Any, end: Any, gain: Any, bias: Any, air: Any
        ) -> None:
            """Write the pixels from `begin` to `end` of a row."""
            for x in range(begin, end):
                after_x, before_x = parts[x], parts[pixels + x]
                after_y, before_y = parts[uint64(2) * pixels + x], parts[uint64(3) * pixels + x]
                for channel in range(count):
                    shift = uint32(bits * channel)
                    one = above_air((near[x] >> shift) & mask, air)
                    two = above_air((near[pixels + x] >> shift) & mask, air)
                    three = above_air((near[uint64(2) * pixels + x] >> shift) & mask, air)
                    four = above_air((near[uint64(3) * pixels + x] >> shift) & mask, air)
                    value = after_y * (after_x * one + before_x * two) + before_y * (after_x * three + before_x * four)
                    image[row + stride * x + uint64(channel)] = level(value, gain, bias, air)

        return blend

    blend, blend_as_it_is = blend_to(level), blend_to(same_level)

    @inlined
    def fill(image: Any, row: Any, begin: Any, end: Any, value: Any) -> None:
        for x in range(begin, end):
            for channel in range(count):
                image[row + stride * x + uint64(channel)] = value

    @numba.njit(nogil=True, error_model="numpy", fastmath=_FLOATS)
    def run(images: Any, changes: Any) -> None:
        words, columns = np.zeros(wide * wide, np.uint32), np.empty(side, np.uint32)
        at, near, parts = np.empty(side, np.uint32), np.empty(4 * side, np.uint32), np.empty(4 * side, np.float32)
        for number in range(len(images)):
            image, change = images[number], changes[number]
            gain, bias, air = change[8], change[9], int32(change[14])
            outside = level(float32(0), gain, bias, air)
            top, bottom = pack(image, words, columns, uint32(air) & mask)
            left, right = filled_columns(columns)
            for y in range(side):
                # what lies outside of the box around all that is not air is air
                begin, end = 0.0, float(side - 1) if bottom >= 0 else -1.0
                begin, end = crossing(
                    begin, end, float(change[1] * float32(y) + change[2]), float(change[0]), left - 1, right + 1
                )
                begin, end = crossing(
                    begin, end, float(change[4] * float32(y) + change[5]), float(change[3]), top - 1, bottom + 1
                )
                low, high = uint64(0), uint64(0)
                if end >= begin:
                    low, high = uint64(int(begin)), uint64(int(end) + 1)
                row = uint64(y * side * channels + first)
                fill(image, row, uint64(0), low, outside)
                fill(image, row, high, pixels, outside)
                if high > low:
                    places(change, y, at, parts, low, high)
                    gather(words, at, near, low, high)
                    if gain == float32(1) and bias == float32(0):
                        blend_as_it_is(near, parts, image, row, low, high, gain, bias, air)
                    else:
                        blend(near, parts, image, row, low, high, gain, bias, air)
                if change[11] <= y < change[13]:
                    fill(image, row, uint64(change[10]), uint64(change[12]), word_of(air))

    return run
