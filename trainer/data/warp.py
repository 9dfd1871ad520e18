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
_LANES = 8  # pixels that are changed at once: what is changed of a row begins and ends at a multiple, or at its end
_WORD, _PAIR = 32, 64  # bits, which hold several channels of a pixel, or of two

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
def _word_at() -> Callable[[Any, Any], Any]:
    """A compiled function: the 64 bits that begin with an element of an array, whether or not they are aligned."""
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    @intrinsic
    def word_at(typing: Any, elements: Any, place: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            array = cgutils.create_struct_proxy(signature.args[0])(context, builder, given[0])
            word = context.get_value_type(types.uint64).as_pointer()
            return builder.load(builder.bitcast(builder.gep(array.data, [given[1]]), word), align=1)

        return types.uint64(elements, types.uint64), code

    return word_at


@functools.cache
def _kernel(side: int, channels: int, first: int, count: int, bits: int) -> Callable[[Any, Any], None]:
    """A compiled function that changes `count` channels from `first` on of images [n, s * s * channels] in place.

    `bits`: 8 of grey levels, whose air is 0; 16 of HU. All that the shape says is a constant of the program, so that
    its loops become vector instructions. A pixel and its right neighbour are fetched as one word of 64 bits where their
    channels fit into it.
    """
    import numba
    from numba import float32, int16, int32, uint8, uint16, uint32, uint64

    wide, pixels, stride = side + 2 * BORDER, uint64(side), uint64(channels)
    mask = uint32((1 << bits) - 1)
    together = bits * (channels + count) <= _PAIR
    apart = bits * channels if together else _WORD  # bits from a channel to that of the right neighbour
    word_at = _word_at()
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
        return float32(int32(int16(uint16(bits_found))) - air)

    @inlined
    def hu_of(value: Any, gain: Any, bias: Any, air: Any) -> Any:
        return uint16(int32(np.rint(value)) + air)

    above_air, level, kind_of = (grey_of, grey_level, uint8) if bits == 8 else (hu_above, hu_of, uint16)
    same_level = grey_as_it_is if bits == 8 else hu_of

    @inlined
    def lay(image: Any, laid: Any, columns: Any, air: Any) -> tuple[int, int]:
        """Copy the image into the border of air; returns the first and last row that is not all air."""
        top, bottom = side, -1
        columns[:] = 0
        for y in range(side):
            begin, row = uint64(y * side * channels), uint64(((y + BORDER) * wide + BORDER) * channels)
            filled = kind_of(0)
            for at in range(pixels * stride):
                value = image[begin + at]
                laid[row + at] = value
                differs = kind_of(value ^ air)
                columns[at] = kind_of(columns[at] | differs)
                filled = kind_of(filled | differs)
            if filled:
                top, bottom = min(top, y), y
        return top, bottom

    @inlined
    def filled_columns(columns: Any) -> tuple[int, int]:
        """The first and last column that is not all air."""
        left, right = side * channels, -1
        for at in range(side * channels):
            if columns[at]:
                left, right = min(left, at), at
        return left // channels, right // channels

    @inlined
    def crossing(begin: float, end: float, start: float, slope: float, low: int, high: int) -> tuple[float, float]:
        """The part of begin .. end where start + slope * x may lie within low .. high.

        A pixel more on each side, of both: float32 rounds the place of a pixel and `start` each in its own way.
        """
        low, high = low - 1, high + 1
        if slope == 0.0:
            return (begin, end) if low <= start <= high else (0.0, -1.0)
        one, other = (low - start) / slope, (high - start) / slope
        return max(begin, min(one, other) - 1.0), min(end, max(one, other) + 1.0)

    @inlined
    def places(change: Any, y: int, at: Any, parts: Any, begin: Any, end: Any) -> None:
        """Where each pixel of row `y` from `begin` to `end` lies, and the parts that right and lower neighbours have.

        The rest is that of the left and upper ones: where these lie in the image, 1 - (u - left) is (left + 1) - u to
        the bit; elsewhere they are air, and it multiplies 0.
        """
        across, down = change[1] * float32(y), change[4] * float32(y)
        low, high = float32(-BORDER), float32(side)
        for x in range(begin, end):
            u = (change[0] * float32(int32(x)) + across) + change[2]
            v = (change[3] * float32(int32(x)) + down) + change[5]
            left, top = np.floor(u), np.floor(v)
            parts[x], parts[pixels + x] = u - left, v - top
            row, column = int32(min(max(top, low), high)), int32(min(max(left, low), high))
            pixel = (row + int32(BORDER)) * int32(wide) + column + int32(BORDER)
            at[x] = uint32(pixel * int32(channels) + int32(first))

    @inlined
    def pair(laid: Any, place: Any) -> Any:
        """The channels of a pixel and, from bit `apart` on, those of its right neighbour."""
        if together:
            return word_at(laid, place)
        return (word_at(laid, place) & uint64((1 << _WORD) - 1)) | (word_at(laid, place + stride) << uint64(_WORD))

    @inlined
    def gather(laid: Any, at: Any, near: Any, begin: Any, end: Any) -> None:
        """The four neighbours of each pixel."""
        for x in range(begin, end):
            place = uint64(at[x])
            near[x], near[pixels + x] = pair(laid, place), pair(laid, place + uint64(wide) * stride)

    @inlined
    def value_at(words: Any, bit: int, air: Any) -> Any:
        """Above air, of the channel that begins at `bit` of a pair, which is two words."""
        word = words[0] if bit < _WORD else words[1]
        return above_air((word >> uint32(bit % _WORD)) & mask, air)

    def blend_to(level: Any) -> Any:
        @inlined
        def blend(
            halves: Any, parts: Any, image: Any, row: Any, begin: Any, end: Any, gain: Any, bias: Any, air: Any
        ) -> None:
            """Write the pixels from `begin` to `end` of a row."""
            for x in range(begin, end):
                before_x, before_y = parts[x], parts[pixels + x]
                after_x, after_y = float32(1) - before_x, float32(1) - before_y
                above, below = uint64(2) * x, uint64(2) * (pixels + x)
                upper, lower = (halves[above], halves[above + uint64(1)]), (halves[below], halves[below + uint64(1)])
                for channel in range(count):
                    left, right = bits * channel, apart + bits * channel
                    one, two = value_at(upper, left, air), value_at(upper, right, air)
                    three, four = value_at(lower, left, air), value_at(lower, right, air)
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
        laid = np.zeros(wide * wide * channels + _PAIR // bits, images.dtype)
        columns, at = np.empty(side * channels, images.dtype), np.empty(side, np.uint32)
        near, parts = np.empty(2 * side, np.uint64), np.empty(2 * side, np.float32)
        halves, around = near.view(np.uint32), int32(0)
        for number in range(len(images)):
            image, change = images[number], changes[number]
            gain, bias, air = change[8], change[9], int32(change[14])
            outside = level(float32(0), gain, bias, air)
            if air != around:
                laid[:], around = kind_of(air), air
            top, bottom = lay(image, laid, columns, kind_of(air))
            left, right = filled_columns(columns)
            fill(image, uint64(first), uint64(0), pixels * pixels, outside)
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
                    low = uint64(int(begin)) & ~uint64(_LANES - 1)
                    high = min(pixels, (uint64(int(end)) + uint64(_LANES)) & ~uint64(_LANES - 1))
                row = uint64(y * side * channels + first)
                if high > low:
                    places(change, y, at, parts, low, high)
                    gather(laid, at, near, low, high)
                    if gain == float32(1) and bias == float32(0):
                        blend_as_it_is(halves, parts, image, row, low, high, gain, bias, air)
                    else:
                        blend(halves, parts, image, row, low, high, gain, bias, air)
                if change[11] <= y < change[13]:
                    fill(image, row, uint64(change[10]), uint64(change[12]), kind_of(air))

    return run
