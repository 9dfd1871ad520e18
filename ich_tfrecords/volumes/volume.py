"""What a file of many slices is, whatever its format, and how many of them are read."""

from __future__ import annotations

import hashlib
from typing import BinaryIO, Protocol

from ich_tfrecords.dicom.ct_slice import CtSlice, SliceHeader, UnreadableSlice
from ich_tfrecords.dicom.header import MAX_SIDE_PX

MAX_FRAMES = 8192  # the longest scans of a whole body have 4,000 slices
_BLOCK_BYTES = 1 << 22


class Volume(Protocol):
    """Slices 1 to `frames` of one file, in its order."""

    frames: int

    def header(self, frame: int) -> SliceHeader:
        """The header of a slice. Raises `SliceProblem`."""

    def slice(self, frame: int) -> CtSlice:
        """Header and HU of a slice, which stay as they are. Raises `SliceProblem`."""

    def digest(self) -> bytes:
        """128 bits that stand for the bytes of the file."""

    def close(self) -> None:
        """Give back what the volume holds open."""


def require_frames(frames: int, what: str) -> None:
    """Raise `UnreadableSlice` for a number of slices that is not read."""
    if frames > MAX_FRAMES:
        raise UnreadableSlice("too_large", f"{what} is {frames:,}; at most {MAX_FRAMES:,} slices of a file are read")
    if frames < 1:
        raise UnreadableSlice("bad_frames", f"{what} is {frames:,}")


def require_sides(rows: int, columns: int) -> None:
    """Raise `UnreadableSlice` for a matrix that is not read."""
    if not (0 < rows <= MAX_SIDE_PX and 0 < columns <= MAX_SIDE_PX):
        raise UnreadableSlice("bad_geometry", f"{rows} rows and {columns} columns; 1 to {MAX_SIDE_PX} are read")


def digest(file: BinaryIO) -> bytes:
    """128 bits that stand for the bytes of a file."""
    found = hashlib.blake2b(digest_size=16)
    file.seek(0)
    while block := file.read(_BLOCK_BYTES):
        found.update(block)
    return found.digest()


def hashed_uid(*parts: object) -> str:
    """A UID of a hash of what is given, `2.25.` and a number of 128 bits (PS3.5 B.2)."""
    hashed = hashlib.blake2b("\n".join(map(str, parts)).encode(), digest_size=16).digest()
    return f"2.25.{int.from_bytes(hashed, 'big')}"
