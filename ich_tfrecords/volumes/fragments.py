"""Encapsulated PixelData of many frames (PS3.5 A.4): which fragments make which frame."""

from __future__ import annotations

import bisect
import struct
from typing import Any, BinaryIO

import numpy as np

from ich_tfrecords.dicom.ct_slice import UnreadableSlice

_ITEM, _END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_EXTENDED = 0x7FE00001  # ExtendedOffsetTable
_HEAD = struct.Struct("<HHL")
_UNDEFINED = 0xFFFFFFFF


class Fragments:
    """The encoded frames 1 to `frames` of a file that stands at the first item of PixelData."""

    def __init__(self, file: BinaryIO, frames: int, dataset: Any) -> None:
        self._file = file
        table, self._pieces = _walk(file)
        self._first = self._first_pieces(frames, _offsets(file, table, dataset))

    def frame(self, number: int) -> bytes:
        """The codestream of a frame."""
        data = []
        for at, size_bytes in self._pieces[self._first[number - 1] : self._first[number]]:
            self._file.seek(at)
            data.append(self._file.read(size_bytes))
        return b"".join(data)

    def _first_pieces(self, frames: int, offsets: list[int]) -> list[int]:
        """Number of the first fragment of each frame, and how many fragments there are.

        Where there are as many of them as frames, each is one, whatever a table says.
        """
        count = len(self._pieces)
        if count < frames:
            raise UnreadableSlice("truncated", f"PixelData has {count:,} fragments, too few for {frames:,} frames")
        if count == frames:
            return list(range(count + 1))
        if frames == 1:
            return [0, count]
        begins = [at - self._pieces[0][0] for at, _ in self._pieces]
        firsts = [bisect.bisect_left(begins, offset) for offset in offsets]
        found = [begins[first] if first < count else -1 for first in firsts]
        if len(offsets) != frames or found != offsets or firsts != sorted(set(firsts)) or firsts[:1] != [0]:
            raise UnreadableSlice(
                "bad_frames", f"PixelData has {count:,} fragments for {frames:,} frames and no table that parts them"
            )
        return [*firsts, count]


def _walk(file: BinaryIO) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Place and length of the offset table, and of each fragment. Raises `UnreadableSlice` where the file ends."""
    items: list[tuple[int, int]] = []
    while True:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            break
        *tag, size_bytes = _HEAD.unpack(head)
        if tuple(tag) == _END and items:
            return items[0], items[1:]
        if tuple(tag) != _ITEM or size_bytes == _UNDEFINED:
            raise UnreadableSlice("decode_failed", "PixelData holds something else than fragments")
        items.append((file.tell(), size_bytes))
        file.seek(size_bytes, 1)
    end = file.seek(0, 2)
    whole = [item for item in items if sum(item) <= end]
    raise UnreadableSlice("truncated", f"PixelData ends early, after {max(len(whole) - 1, 0):,} whole fragments")


def _offsets(file: BinaryIO, table: tuple[int, int], dataset: Any) -> list[int]:
    """Where each frame begins behind the offset table, by the extended table (PS3.5 A.4.1) or that one itself."""
    if _EXTENDED in dataset:
        return np.frombuffer(bytes(dataset[_EXTENDED].value or b""), "<u8").tolist()
    at, size_bytes = table
    file.seek(at)
    return np.frombuffer(file.read(size_bytes // 4 * 4), "<u4").tolist()
