"""Records of shards read, checked and changed in one compiled call, without Python's lock: threads work side by side.

numba is optional, and so is what this stands on: `preadv`, and the C function that google-crc32c is built around.
`shard_reader` reads record by record where one of them is missing, and whatever record is not as usual.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from ich_tfrecords.dataset import records
from trainer.data import warp

NO_FILE = -1
_KNOWN_TEXT, _KNOWN_CRC32C = b"123456789", 0xE3069283  # the check value of the CRC catalogue, CRC-32/ISCSI


class Heads(NamedTuple):
    """What stands before the pixels of records, which follows from the length of the payload.

    `kind`: row of the length in the others. `all_bytes` uint8 [k, h], the framing included; `crc32c` uint32 [k]: of
    those in the payload.
    """

    kind: Mapping[int, int]
    all_bytes: npt.NDArray[np.uint8]
    crc32c: npt.NDArray[np.uint32]

    @classmethod
    def of(cls, heads: Mapping[int, bytes]) -> Heads:
        """Of the bytes that stand before the pixels, by the length of the payload; all heads are of one length."""
        kind = {length: row for row, length in enumerate(heads)}
        told = [google_crc32c.value(head[12:]) for head in heads.values()]
        all_bytes = np.frombuffer(b"".join(heads.values()), np.uint8).reshape(len(heads), -1 if heads else 0)
        return cls(kind, all_bytes, np.array(told, np.uint32))


class Records(NamedTuple):
    """Where n records lie: `file` int32 [n], descriptor of the shard or `NO_FILE`; `offset` and `length` int64 [n],
    first byte of the framed record, and bytes of its payload."""

    file: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]


Changes = npt.NDArray[np.float32]
Gather = Callable[[Records, Heads, npt.NDArray[np.uint8], int, Changes | None], int]


@warp.once
def compiled(changed: tuple[int, int, int] | None = None) -> Gather | None:
    """What reads records from a position on into images uint8 [n, b], until one is not as usual.

    It returns the position of that one, or n: the record is damaged, laid out otherwise, or of a length that no head
    is of. `changed`: side, channels and bytes of a value of images that are changed by float32 [n, 15], each right
    after it is read, while it is in the cache. None where numba or one of the C functions is not there.
    """
    if not warp.installed() or (functions := _functions()) is None:
        return None
    run = _compiled(*functions, warp.kernel(*changed) if changed else None)

    def read(
        where: Records, heads: Heads, images: npt.NDArray[np.uint8], first: int, changes: Changes | None = None
    ) -> int:
        kinds = np.array([heads.kind.get(length, -1) for length in where.length.tolist()], np.int64)
        made = [images.view(f"u{changed[2]}"), changes] if changed else [images]
        return int(run(*where, kinds, heads.all_bytes, heads.crc32c, first, *made))

    return read


def _functions() -> tuple[Any, Any] | None:
    """`preadv` and `crc32c_extend`, as C has them; an address is a number."""
    try:
        from google_crc32c import _crc32c

        preadv, crc32c = ctypes.CDLL(None).preadv, ctypes.CDLL(_crc32c.__file__).crc32c_extend
    except (ImportError, OSError, TypeError, AttributeError):  # of another system, or built in another way
        return None
    preadv.argtypes, preadv.restype = (ctypes.c_int, ctypes.c_size_t, ctypes.c_int, ctypes.c_int64), ctypes.c_ssize_t
    crc32c.argtypes, crc32c.restype = (ctypes.c_uint32, ctypes.c_size_t, ctypes.c_size_t), ctypes.c_uint32
    text = ctypes.create_string_buffer(_KNOWN_TEXT)
    return (preadv, crc32c) if crc32c(0, ctypes.addressof(text), len(_KNOWN_TEXT)) == _KNOWN_CRC32C else None


def _compiled(preadv: Any, crc32c: Any, kernel: warp.Kernel | None) -> Callable[..., int]:
    import numba
    from numba import int32, uint32

    inlined = numba.njit(inline="always")
    masked = inlined(records.masked)

    @inlined
    def told(rest: Any, at: int) -> Any:
        """The crc32c that stands at the end of the framed record."""
        low, high = uint32(rest[at]) | uint32(rest[at + 1]) << uint32(8), uint32(rest[at + 2])
        return uint32(low | high << uint32(16) | uint32(rest[at + 3]) << uint32(24))

    @inlined
    def most(length: Any, kind: Any) -> int:
        """Bytes of the longest payload of a kind."""
        longest = 0
        for at in range(len(length)):
            if kind[at] >= 0:
                longest = max(longest, length[at])
        return longest

    @inlined
    def around(length: Any, kind: Any, heads: Any, pixels: int) -> Any:
        """Room for what stands before and after the pixels, and addresses and bytes of these and of the pixels."""
        began = np.empty(heads.shape[1], np.uint8)
        rest = np.empty(max(0, most(length, kind) - len(began) - pixels + 16), np.uint8)
        parts = np.empty(6, np.uint64)
        parts[0], parts[1], parts[3], parts[4] = began.ctypes.data, len(began), pixels, rest.ctypes.data
        return began, rest, parts

    @inlined
    def whole(file: Any, offset: Any, length: Any, kind: Any, heads: Any, crcs: Any, room: Any, pixels_at: Any) -> bool:
        """Read a record; whether it is as usual."""
        began, rest, parts = room
        before, pixels = len(began), int(parts[3])
        after = length + 16 - before - pixels  # the framing counts among the bytes before, and after
        if kind < 0 or file < 0 or after < 4:
            return False
        parts[2], parts[5] = pixels_at, after
        if preadv(file, parts.ctypes.data, int32(3), offset) != before + pixels + after:
            return False
        for place in range(before):
            if began[place] != heads[kind, place]:
                return False
        crc = crc32c(crc32c(crcs[kind], pixels_at, pixels), rest.ctypes.data, after - 4)
        return bool(masked(crc) == told(rest, after - 4))

    @numba.njit(nogil=True)
    def run(file: Any, offset: Any, length: Any, kind: Any, heads: Any, crcs: Any, first: int, images: Any) -> int:
        room = around(length, kind, heads, images.shape[1])
        for at in range(first, len(file)):
            if not whole(file[at], offset[at], length[at], kind[at], heads, crcs, room, images[at].ctypes.data):
                return at
        return len(file)

    if kernel is None:
        return run
    change, work = kernel.one, kernel.room

    @numba.njit(nogil=True)
    def run_changed(
        file: Any, offset: Any, length: Any, kind: Any, heads: Any, crcs: Any, first: int, images: Any, changes: Any
    ) -> int:
        image, to_work = np.empty(images.shape[1], images.dtype), work()
        room = around(length, kind, heads, image.nbytes)
        for at in range(first, len(file)):
            if not whole(file[at], offset[at], length[at], kind[at], heads, crcs, room, image.ctypes.data):
                return at
            change(image, images[at], changes[at], to_work)
        return len(file)

    return run_changed
