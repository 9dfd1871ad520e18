"""Enhanced CT: a file of frames, each with header and HU as if it were a single-frame slice. One frame in memory."""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
import zlib
from collections.abc import Collection
from typing import Any, BinaryIO

from ich_tfrecords.dicom import by_pydicom, ct_slice
from ich_tfrecords.dicom.ct_slice import CtSlice, SliceHeader, SliceProblem, UnreadableSlice, UnsupportedSlice
from ich_tfrecords.dicom.header import (
    DEFLATED,
    ENHANCED,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    NATIVE,
    ORIGINAL_ALONE,
    PIXEL_DATA,
    checked,
    matrix,
)
from ich_tfrecords.volumes import volume
from ich_tfrecords.volumes.fragments import Fragments
from ich_tfrecords.volumes.groups import Frames

MAX_HEADER_BYTES = 1 << 28  # of one element in front of the pixels; the groups of 8,192 frames take 20 MB
MAX_INFLATED_BYTES = 4 << 30
_UNDEFINED = 0xFFFFFFFF
_BLOCK_BYTES = 1 << 22


class EnhancedCt:
    """The frames of an open file (`volume.Volume`)."""

    def __init__(self, file: BinaryIO, accept: Collection[str] = ORIGINAL_ALONE) -> None:
        """`accept`: which slices count (`DatasetSpec.accept`).

        Raises `SliceProblem` for a file that gives no slice at all.
        """
        self._accept = accept
        with contextlib.ExitStack() as stack:
            stack.callback(file.close)
            self._file = _inflated(file)
            stack.callback(self._file.close)
            stack.enter_context(by_pydicom.typed_problems())
            dataset = _up_to_pixel_data(self._file)
            top = by_pydicom.fields_of(dataset) | {"TransferSyntaxUID": by_pydicom.syntax_of(dataset)}
            if top.get("SOPClassUID") not in ENHANCED:
                raise UnsupportedSlice("enhanced_ct", "the file is no enhanced CT any more")
            self._groups = Frames(dataset, top)
            self.frames = self._groups.count
            self._pixels = _pixels(self._file, dataset, top, self.frames)
            self._frame_bytes = len(self._pixels) // self.frames if isinstance(self._pixels, range) else 0
            self._require_one()
            stack.pop_all()

    def header(self, frame: int) -> SliceHeader:
        """The header of a frame. Raises `SliceProblem`."""
        with by_pydicom.typed_problems():
            fields = self._groups.fields(frame)
            return checked(fields, self._frame_bytes, self._frame_bytes, -1, self._accept)

    def slice(self, frame: int) -> CtSlice:
        """Header and HU of a frame. Raises `SliceProblem`."""
        header = self.header(frame)
        with by_pydicom.typed_problems():
            if isinstance(self._pixels, range):
                self._file.seek(self._pixels.start + (frame - 1) * self._frame_bytes)
                plain = by_pydicom.native(header, self._file.read(self._frame_bytes))
            else:
                fragments = self._pixels
                plain = by_pydicom.encoded(header, lambda: fragments.frame(frame))
            return CtSlice(header, ct_slice.hu_of(header, plain))

    def digest(self) -> bytes:
        """128 bits that stand for the bytes of the file."""
        return volume.digest(self._file)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _require_one(self) -> None:
        """Raise what keeps the first frame from being a slice where none is one: it is a fault of the file."""
        first: SliceProblem | None = None
        for frame in range(1, self.frames + 1):
            try:
                self.header(frame)
                return
            except SliceProblem as problem:
                first = first or problem
        assert first is not None
        raise first


def _up_to_pixel_data(file: BinaryIO) -> Any:
    """The data set in front of PixelData, at which the file is left."""
    from pydicom.filereader import read_partial

    def is_after(tag: int, vr: str | None, length: int) -> bool:
        if tag < PIXEL_DATA - 0xF and length != _UNDEFINED and length > MAX_HEADER_BYTES:
            raise UnreadableSlice("too_large", f"an element in front of PixelData has {length:,} bytes")
        return tag >= PIXEL_DATA

    with by_pydicom.quiet():
        return read_partial(file, is_after, force=True)


def _pixels(file: BinaryIO, dataset: Any, top: dict[str, Any], frames: int) -> range | Fragments:
    """Where the native cells of all frames lie in the file, or the encoded frames; `top`: its elements by keyword."""
    syntax = top["TransferSyntaxUID"]
    at, length = _pixel_data(file, dataset, syntax)
    rows, columns, allocated, _ = matrix(top)
    if syntax not in NATIVE:
        return Fragments(file, frames, dataset)
    size_bytes = rows * columns * allocated // 8 * frames
    if length not in (size_bytes, size_bytes + size_bytes % 2):
        raise UnreadableSlice(
            "wrong_pixel_length", f"PixelData has {length:,} bytes, the {frames:,} frames need {size_bytes:,}"
        )
    there = file.seek(0, os.SEEK_END) - at
    if there < size_bytes:
        raise UnreadableSlice("truncated", f"PixelData has {max(there, 0):,} of {size_bytes:,} bytes")
    return range(at, at + size_bytes)


def _pixel_data(file: BinaryIO, dataset: Any, syntax: str) -> tuple[int, int]:
    """Where the value of PixelData begins, and its declared length; the file is left there."""
    implicit, _ = dataset.original_encoding
    order = ">" if syntax == EXPLICIT_BIG else "<"
    head = file.read(8)
    if len(head) < 8 or struct.unpack_from(f"{order}HH", head) != (PIXEL_DATA >> 16, PIXEL_DATA & 0xFFFF):
        raise UnsupportedSlice("no_pixel_data", "no PixelData element behind the functional groups")
    if not implicit:
        head = file.read(4)
    (length,) = struct.unpack(f"{order}L", head[-4:])
    return file.tell(), length


def _inflated(file: BinaryIO) -> BinaryIO:
    """The file, or for a deflated data set (PS3.5 A.5) a nameless one of it, as explicit little endian."""
    file.seek(0)
    head = file.read(144)
    meta = head + file.read(min(int.from_bytes(head[140:144], "little"), 1 << 16))
    if head[128:132] != b"DICM" or DEFLATED.encode() not in meta:
        file.seek(0)
        return file
    with contextlib.ExitStack() as stack:
        whole = stack.enter_context(tempfile.TemporaryFile())
        whole.write(meta.replace(DEFLATED.encode(), EXPLICIT_LITTLE.encode().ljust(len(DEFLATED), b"\0")))
        inflater, size_bytes = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while not inflater.eof:
            data = inflater.unconsumed_tail or file.read(_BLOCK_BYTES)
            if not data:
                raise UnreadableSlice("truncated", f"the deflated data set ends early, after {size_bytes:,} bytes")
            try:
                size_bytes += whole.write(inflater.decompress(data, _BLOCK_BYTES))
            except zlib.error as error:
                raise UnreadableSlice("decode_failed", "the deflated data set is damaged") from error
            if size_bytes > MAX_INFLATED_BYTES:
                raise UnreadableSlice("too_large", f"the deflated data set is larger than {MAX_INFLATED_BYTES:,} bytes")
        whole.seek(0)
        stack.pop_all()
    file.close()
    return whole
