"""Images changed on the host as `augment.apply` changes them, compiled by numba: the same bits, many times faster.

numba is optional. It runs without Python's lock, so that other threads read meanwhile.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.data import lanes

BORDER = 2  # of air around an image, so that each place that is far outside has four neighbours there too
# along x and y: how far what is not air goes in each of these directions, and in the opposite one, makes the hull
_WAYS = ((1, 0), (0, 1), (1, 1), (1, -1))
_ROUNDED = 2.0**-20  # of how far a place may lie from 0, which is more than float32 misplaces it by
_TOGETHER = 64  # groups of pixels whose places are found before they are fetched: fewer would stop at each end of a row
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
    count, side, _, channels = images.shape
    if side < lanes.LANES:  # the same with more air to the right and below
        wider = np.empty((count, lanes.LANES, lanes.LANES, channels), images.dtype)
        wider[:] = changes[:, 14, None, None, None]
        wider[:, :side, :side] = images
        change(wider, changes)
        images[:] = wider[:, :side, :side]
        return
    run = _in_place(kernel(side, channels, images.dtype.itemsize))
    run(images.view(f"u{images.dtype.itemsize}").reshape(count, side * side * channels), changes)


class Kernel(NamedTuple):
    """Compiled functions, to be called from others.

    `room`: returns memory to work in. `one`: writes the flat image `made` that follows from a flat image, which may be
    the same memory, and its row of changes, in such a room.
    """

    room: Callable[[], Any]
    one: Callable[[Any, Any, Any, Any], None]


def once(make: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which makes each thing once, however many threads ask for it at the same time."""
    kept, lock = functools.cache(make), threading.Lock()

    @functools.wraps(make)
    def made(*given: Any) -> Any:
        with lock:
            return kept(*given)

    return made


@once
def kernel(side: int, channels: int, size: int) -> Kernel:
    """What changes images [side, side, channels] of 8 px or more; `size`: bytes of a value, 1 of levels, 2 of HU."""
    at_once = lanes.WORD // (8 * size)
    parts = [
        _kernel(side, channels, first, min(at_once, channels - first), 8 * size)
        for first in range(0, channels, at_once)
    ]
    return functools.reduce(_both, parts)


def _both(kernel: Kernel, other: Kernel) -> Kernel:
    """Of two kernels that change other channels of the same images."""
    import numba

    one, then = kernel.one, other.one

    @numba.njit
    def both(image: Any, made: Any, change: Any, room: Any) -> None:
        one(image, made, change, room)
        then(image, made, change, room)

    return Kernel(kernel.room, both)


@once
def _in_place(kernel: Kernel) -> Callable[[Any, Any], None]:
    import numba

    room, one = kernel

    @numba.njit(nogil=True)
    def run(images: Any, changes: Any) -> None:
        work = room()
        for number in range(len(images)):
            one(images[number], images[number], changes[number], work)

    return run


def _kernel(side: int, channels: int, first: int, count: int, bits: int) -> Kernel:
    """Of `count` channels from `first` on, which one word of 32 bits holds.

    `bits`: 8 of grey levels, whose air is 0; 16 of HU. All that the shape says is a constant of the program, so that
    its loops become vector instructions.
    """
    import numba
    from numba import float32, int32, uint8, uint16, uint64

    wide, pixels, stride, over = side + 2 * BORDER, uint64(side), uint64(channels), lanes.PAIR // bits
    kind_of, kind = (uint8, np.uint8) if bits == 8 else (uint16, np.uint16)
    group, bands = uint64(lanes.LANES), -(-side // _BAND)
    most = max(_TOGETHER, -(-side // lanes.LANES))
    word_at = lanes.word_at()
    placed = lanes.placed(wide, channels, first, BORDER, most * lanes.LANES)
    as_they_are, graded = (
        lanes.blended(bits, channels, count, wide * channels, most * lanes.LANES, graded) for graded in (False, True)
    )
    inlined = numba.njit(inline="always", fastmath=_FLOATS)

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
    def fill(made: Any, row: Any, begin: Any, end: Any, value: Any) -> None:
        for x in range(begin, end):
            for channel in range(count):
                made[row + stride * x + uint64(channel)] = value

    @inlined
    def write(laid: Any, at: Any, parts: Any, to: Any, groups: Any, made: Any, levels: Any, air: Any) -> None:
        """Groups of pixels that were placed; none is fetched from what is written here."""
        if bits == 8 and (levels[0] != float32(1) or levels[1] != float32(0)):
            for number in range(groups):
                graded(laid, at, parts, number * group, made, to[number], levels, air)
        else:
            for number in range(groups):
                as_they_are(laid, at, parts, number * group, made, to[number], levels, air)

    @numba.njit(error_model="numpy", fastmath=_FLOATS)
    def one(image: Any, made: Any, change: Any, room: Any) -> None:
        laid, around, band, left, right, begin, end, at, parts, to = room
        six = (change[0], change[1], change[2], change[3], change[4], change[5])
        levels, air = (change[8], change[9]), int32(change[14])
        outside = kind_of(int32(np.rint(min(max(levels[1], float32(0)), float32(255))))) if bits == 8 else kind_of(air)
        if around[0] != air:
            laid[:], around[0] = kind_of(air), air
        top, bottom = lay(image, laid, kind_of(air), band, left, right)
        spans(change, top, bottom, left, right, begin, end)
        fill(made, uint64(first), uint64(0), pixels * pixels, outside)
        ready = uint64(0)
        for y in range(side + 1):
            low, groups = uint64(0), uint64(0)
            if y < side and begin[y] <= end[y]:
                low = uint64(int(begin[y]))
                groups = (uint64(int(end[y])) - low) // group + uint64(1)
                low = min(low, max(groups * group, pixels) - groups * group)
            if y == side or ready + groups > uint64(most):
                write(laid, at, parts, to, ready, made, levels, air)
                ready = uint64(0)
            for number in range(groups):
                x = min(low + number * group, pixels - group)  # pixels of a row that is no multiple of eight come twice
                placed(six, float32(int32(x)), float32(int32(y)), at, parts, ready * group)
                to[ready] = (uint64(y) * pixels + x) * stride + uint64(first)
                ready += uint64(1)
        for y in range(max(int(np.ceil(change[11])), 0), min(int(np.ceil(change[13])), side)):
            fill(made, uint64(y * side * channels + first), uint64(change[10]), uint64(change[12]), kind_of(air))

    @numba.njit
    def room() -> Any:
        laid, around = np.zeros(wide * wide * channels + over, kind), np.zeros(1, np.int32)
        band = np.zeros(side * channels + over, kind)
        left, right = np.empty(bands, np.int32), np.empty(bands, np.int32)
        begin, end = np.empty(side, np.float32), np.empty(side, np.float32)
        at, parts = np.empty(most * lanes.LANES, np.uint32), np.empty(2 * most * lanes.LANES, np.float32)
        return laid, around, band, left, right, begin, end, at, parts, np.empty(most, np.uint64)

    return Kernel(room, one)
