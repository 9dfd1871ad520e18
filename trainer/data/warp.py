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

from trainer.data import lanes

BORDER = 2  # of air around an image, so that each place that is far outside has four neighbours there too
# along x and y: how far what is not air goes in each of these directions, and in the opposite one, makes the hull
_WAYS = ((1, 0), (0, 1), (1, 1), (1, -1))
_ROUNDED = 2.0**-20  # of how far a place may lie from 0, which is more than float32 misplaces it by
_BAND = 4  # rows that are looked at together for what is not air
_FLAT = 1e-20  # a lesser slope is taken for this, so that nothing is divided by 0

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
    for first in range(0, channels, lanes.WORD // bits):
        _kernel(side, channels, first, min(lanes.WORD // bits, channels - first), bits)(flat, changes)


@functools.cache
def _kernel(side: int, channels: int, first: int, count: int, bits: int) -> Callable[[Any, Any], None]:
    """A compiled function that changes `count` channels from `first` on of images [n, s * s * channels] in place.

    `bits`: 8 of grey levels, whose air is 0; 16 of HU. All that the shape says is a constant of the program, so that
    its loops become vector instructions. A pixel and its right neighbour are fetched as one word of 64 bits where their
    channels fit into it.
    """
    import numba
    from numba import float32, int32, uint8, uint16, uint32, uint64

    wide, pixels, stride, over = side + 2 * BORDER, uint64(side), uint64(channels), lanes.PAIR // bits
    together = bits * (channels + count) <= lanes.PAIR
    apart = bits * channels if together else lanes.WORD  # bits from a channel to that of the right neighbour
    kind_of = uint8 if bits == 8 else uint16
    group = uint64(lanes.LANES)
    full, ragged = pixels // group * group, side % lanes.LANES > 0  # a few pixels of a row may be less than a group
    room, bands = -(-side // lanes.LANES) * lanes.LANES, -(-side // _BAND)
    # from the upper neighbours of a row to the lower ones and from the parts across to those down; and to the next row
    below, beyond = uint64(room), uint64(2 * room)
    word_at = lanes.word_at()
    as_they_are, graded = (lanes.blended(bits, channels, count, apart, graded) for graded in (False, True))
    inlined = numba.njit(inline="always", fastmath=_FLOATS)
    slot_of = inlined(lanes.slot)

    @inlined
    def lay(image: Any, laid: Any, air: Any, band: Any, left: Any, right: Any) -> tuple[int, int]:
        """Copy the image into the border of air; returns the first and the last band of rows that is not all air.

        `left` and `right`: where each of them begins and ends, told by words of 64 bits, so that a few pixels of air
        may count. Bands of air between others are as the one above.
        """
        length = side * channels
        top, bottom = bands, -1
        for number in range(bands):
            band[:] = 0
            for y in range(number * _BAND, min((number + 1) * _BAND, side)):
                begin, row = uint64(y * length), uint64(((y + BORDER) * wide + BORDER) * channels)
                for at in range(pixels * stride):
                    value = image[begin + at]
                    laid[row + at] = value
                    band[at] = kind_of(band[at] | value ^ air)
            first, last = 0, length - 1
            while first < length and word_at(band, uint64(first)) == uint64(0):
                first += over
            while last >= first and word_at(band, uint64(max(last + 1 - over, 0))) == uint64(0):
                last -= over
            if last >= first:
                top, bottom = min(top, number), number
                left[number], right[number] = first // channels, last // channels
            elif number:
                left[number], right[number] = left[number - 1], right[number - 1]
        return top, bottom

    @inlined
    def spans(change: Any, top: int, bottom: int, left: Any, right: Any, begin: Any, end: Any) -> None:
        """The first and the last pixel of each row whose place may lie beside the hull around what is not air."""
        begin[:], end[:] = float32(0), float32(side - 1 if top <= bottom else -1)
        far = 0.0
        for row in (0, 3):
            far = max(far, side * (abs(float(change[row])) + abs(float(change[row + 1]))) + abs(float(change[row + 2])))
        for along, down in _WAYS:
            low, high = 4 * side, -4 * side
            for number in range(top, bottom + 1):
                one, other = along * left[number], along * right[number]
                first, last = down * number * _BAND, down * ((number + 1) * _BAND - 1)
                low = min(low, min(one, other) + min(first, last))
                high = max(high, max(one, other) + max(first, last))
            # of the places of a row, how far they lie in this direction, as its first pixel and what each adds
            slope = along * float(change[0]) + down * float(change[3])
            slope = slope if abs(slope) > _FLAT else _FLAT
            start = (along * float(change[2]) + down * float(change[5])) / slope
            more = float32((along * float(change[1]) + down * float(change[4])) / slope)
            reach = (abs(along) + abs(down)) * (1.0 + _ROUNDED * far)
            one, other = (low - reach) / slope - start, (high + reach) / slope - start
            least, most = float32(min(one, other)), float32(max(one, other))
            for y in range(side):
                begin[y] = max(begin[y], least - more * float32(int32(y)))
                end[y] = min(end[y], most - more * float32(int32(y)))

    @inlined
    def places(change: Any, y: int, at: Any, parts: Any, begin: Any, end: Any, to: Any) -> None:
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
            parts[to + x], parts[to + below + x] = u - left, v - top
            row, column = int32(min(max(top, low), high)), int32(min(max(left, low), high))
            pixel = (row + int32(BORDER)) * int32(wide) + column + int32(BORDER)
            at[x] = uint32(pixel * int32(channels) + int32(first))

    @inlined
    def pair(laid: Any, place: Any) -> Any:
        """The channels of a pixel and, from bit `apart` on, those of its right neighbour."""
        if together:
            return word_at(laid, place)
        return (word_at(laid, place) & uint64((1 << lanes.WORD) - 1)) | (
            word_at(laid, place + stride) << uint64(lanes.WORD)
        )

    @inlined
    def fetch(laid: Any, at: Any, near: Any, x: Any, to: Any) -> None:
        """The four neighbours of each pixel of a group."""
        for lane in range(lanes.LANES):
            place, slot = uint64(at[x + uint64(lane)]), to + x + uint64(slot_of(lane))
            near[slot], near[slot + below] = pair(laid, place), pair(laid, place + uint64(wide) * stride)

    def rows_by(blended: Any) -> Any:
        @inlined
        def rows(
            laid: Any,
            at: Any,
            near: Any,
            parts: Any,
            next_: Any,
            this: Any,
            image: Any,
            row: Any,
            rest: Any,
            levels: Any,
            air: Any,
        ) -> None:
            """Fetch what the next row needs while this one is written: neither waits for the other."""
            (low, high, to), (begin, end, of) = next_, this
            inside = min(end, full)
            both = min(high - low, max(inside, begin) - begin)
            ahead = low - begin
            for x in range(begin, begin + both, group):
                fetch(laid, at, near, x + ahead, to)
                blended(near, parts, of + x, below, image, row + stride * x, levels, air)
            for x in range(low + both, high, group):
                fetch(laid, at, near, x, to)
            for x in range(begin + both, inside, group):
                blended(near, parts, of + x, below, image, row + stride * x, levels, air)
            if ragged:
                for x in range(inside, end, group):  # fewer pixels than a group
                    blended(near, parts, of + x, below, rest, uint64(0), levels, air)
                    for lane in range(pixels - x):
                        for channel in range(count):
                            image[row + stride * (x + lane) + uint64(channel)] = rest[stride * lane + uint64(channel)]

        return rows

    write, write_graded = rows_by(as_they_are), rows_by(graded)

    @inlined
    def fill(image: Any, row: Any, begin: Any, end: Any, value: Any) -> None:
        for x in range(begin, end):
            for channel in range(count):
                image[row + stride * x + uint64(channel)] = value

    @numba.njit(nogil=True, error_model="numpy", fastmath=_FLOATS)
    def run(images: Any, changes: Any) -> None:
        laid, around = np.zeros(wide * wide * channels + over, images.dtype), int32(0)
        band, rest = np.zeros(side * channels + over, images.dtype), np.empty(lanes.LANES * channels, images.dtype)
        left, right = np.empty(bands, np.int32), np.empty(bands, np.int32)
        begin, end = np.empty(side, np.float32), np.empty(side, np.float32)
        at, near, parts = np.empty(room, np.uint32), np.empty(4 * room, np.uint64), np.empty(4 * room, np.float32)
        for number in range(len(images)):
            image, change = images[number], changes[number]
            gain, bias, air = change[8], change[9], int32(change[14])
            of_levels = bits == 8 and (gain != float32(1) or bias != float32(0))
            outside = kind_of(int32(np.rint(min(max(bias, float32(0)), float32(255))))) if bits == 8 else kind_of(air)
            if air != around:
                laid[:], around = kind_of(air), air
            top, bottom = lay(image, laid, kind_of(air), band, left, right)
            spans(change, top, bottom, left, right, begin, end)
            fill(image, uint64(first), uint64(0), pixels * pixels, outside)
            this = (uint64(0), uint64(0), beyond)
            for y in range(side + 1):
                next_ = (uint64(0), uint64(0), beyond - this[2])
                if y < side and begin[y] <= end[y]:
                    low = uint64(int(begin[y])) // group * group
                    high = (uint64(int(end[y])) // group + uint64(1)) * group
                    next_ = (low, high, beyond - this[2])
                    places(change, y, at, parts, low, high, next_[2])
                row = uint64((y - 1) * side * channels + first)
                if of_levels:
                    write_graded(laid, at, near, parts, next_, this, image, row, rest, (gain, bias), air)
                else:
                    write(laid, at, near, parts, next_, this, image, row, rest, (gain, bias), air)
                if y > 0 and change[11] <= y - 1 < change[13]:
                    fill(image, row, uint64(change[10]), uint64(change[12]), kind_of(air))
                this = next_

    return run
