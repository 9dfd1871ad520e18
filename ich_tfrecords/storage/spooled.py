"""The bytes of one listed file as an open file of this machine: for what is too large to be held in memory.

A plain file is itself opened. An object of a bucket and a member of a zip are copied to a nameless file in the folder
for temporary files, block after block.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

import google_crc32c
from isal import isal_zlib

from ich_tfrecords.storage import slice_reader
from ich_tfrecords.storage.bucket_path import is_bucket
from ich_tfrecords.storage.object_reader import ObjectReader, Wanted
from ich_tfrecords.storage.slice_reader import DEFLATED, OBJECT, PLAIN, SliceRef, UnreadableSource

MAX_FILE_BYTES = 4 << 30  # 2,000 slices of 512 x 512 voxels of eight bytes
_BLOCK_BYTES = 4 << 20


def opened(row: SliceRef) -> BinaryIO:
    """All bytes of a row, from the beginning, checked as `SliceReader.read` checks them. Raises `UnreadableSource`."""
    if max(row.size_bytes, row.stored_bytes) > MAX_FILE_BYTES:
        size_bytes = max(row.size_bytes, row.stored_bytes)
        raise UnreadableSource(
            "too_large", f"{row.name}: has {size_bytes:,} bytes; the limit of a volume is {MAX_FILE_BYTES:,}"
        )
    return slice_reader.tried(row, lambda: _plain(row) if row.method == PLAIN else _copied(row))


def _plain(row: SliceRef) -> BinaryIO:
    fd = slice_reader.open_plain(row)
    try:
        slice_reader.check_plain(row, fd)
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def _copied(row: SliceRef) -> BinaryIO:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile())
        extend: Callable[[int, bytes], int] = google_crc32c.extend if row.method == OBJECT else _extended
        size_bytes, crc = 0, 0
        for block in _blocks(row):
            size_bytes += len(block)
            if size_bytes > row.size_bytes:
                raise slice_reader.mismatch(row, size_bytes)
            crc = extend(crc, block)
            file.write(block)
        if size_bytes < row.size_bytes:
            raise slice_reader.mismatch(row, size_bytes)
        slice_reader.check_sum(row, crc)
        file.seek(0)
        stack.pop_all()
    return file


def _extended(crc32: int, block: bytes) -> int:
    return int(isal_zlib.crc32(block, crc32))


def _blocks(row: SliceRef) -> Iterator[bytes]:
    """The bytes of an object or a member, block after block."""
    if row.method == OBJECT:
        return _ranges(f"{row.container}/{row.name}", row.version, 0, row.size_bytes)
    guess = slice_reader.guess_bytes(row)
    found = b"".join(_ranges(row.container, None, row.offset, guess))
    begin = row.offset + slice_reader.header_bytes(row, memoryview(found))
    stored = _ranges(row.container, None, begin, row.stored_bytes)
    return _inflated(row, stored) if row.method == DEFLATED else stored


def _ranges(place: str, generation: int | None, begin: int, size_bytes: int) -> Iterator[bytes]:
    """Bytes of a file or an object, block after block; fewer where it ends."""
    end = begin + size_bytes
    parts = [(at, min(_BLOCK_BYTES, end - at)) for at in range(begin, end, _BLOCK_BYTES)]
    if not is_bucket(place):
        with open(place, "rb") as file:
            file.seek(begin)
            for _, size in parts:
                yield file.read(size)
        return
    with contextlib.closing(ObjectReader()) as reader:
        wanted = [Wanted(place, generation, at, size) for at, size in parts]
        reader.expect(wanted)
        for one in wanted:
            yield reader.fetch(one)


def _inflated(row: SliceRef, stored: Iterator[bytes]) -> Iterator[bytes]:
    inflater = slice_reader.new_inflater()
    for block in stored:
        data = memoryview(block)
        while not inflater.eof:
            # no more at a time than a block, whatever a zip bomb holds
            yield slice_reader.inflate(inflater, data, _BLOCK_BYTES, row)
            data = memoryview(b"")
            if inflater.needs_input:
                break
    if not inflater.eof:
        raise UnreadableSource("inflate_failed", f"{row.name}: the deflated stream ends early")
