"""Bytes of one slice: a file, an object of a bucket, or a stored or deflated member of a zip read in place."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import google_crc32c
from isal import igzip_lib, isal_zlib

from ich_tfrecords.problems import Problem
from ich_tfrecords.storage import buckets, zip_directory
from ich_tfrecords.storage.bucket_path import is_bucket
from ich_tfrecords.storage.object_reader import ObjectReader, Wanted
from ich_tfrecords.storage.zip_directory import DEFLATED, STORED

# A CT slice of 2048x2048 16-bit pixels is 8 MiB, and an RSNA slice half a MiB. The cap is far above both and
# keeps a lying size, or a whole volume in one file, from filling the memory of a worker that reads many.
MAX_SLICE_BYTES = 64 << 20

PLAIN = -1  # method of a file that lies in no archive
OBJECT = -2  # method of an object that lies in no archive
RANGE = -3  # method of a range of a file or an object that this package wrote
TRIES = 3  # of bytes that came from far away and fail their check
# changed: a bit on the way may as well turn in the name that a local header bears
_MAY_PASS = frozenset(("crc_mismatch", "inflate_failed", "bad_local_header", "size_mismatch", "changed"))
_ESCAPE = re.compile(rb"\\x([89a-f][0-9a-f])")  # what `escaped` writes

Result = TypeVar("Result")


class UnreadableSource(Problem):
    """The bytes of one slice cannot be had.

    Reasons: unreadable_file, crc_mismatch, inflate_failed, size_mismatch, too_large, bad_local_header,
    and changed (the source no longer is what the listing says).
    """


class SliceRef(NamedTuple):
    """One row of a listing, or one slice of it. Sizes and offset in bytes; `method` is `PLAIN`, `OBJECT`, or the zip's.

    `frame`: the number of a slice in a file that holds many, from 1; 0 for a file that is one slice.
    """

    container: str
    name: str
    offset: int
    method: int
    stored_bytes: int
    size_bytes: int
    crc32: int
    version: int
    frame: int = 0


def slice_name(row: SliceRef) -> str:
    """What a slice is called for people: the name of its file, and behind # its number where there are many."""
    return f"{row.name}#{row.frame}" if row.frame else row.name


class SliceReader:
    """Bytes of slices, one at a time, through one reused buffer and one open archive.

    For one thread. A view that a method returns holds until the next call of a method. A bucket that gives no
    answer raises `OSError`: that is no fault of the slice.
    """

    def __init__(self, max_bytes: int = MAX_SLICE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._view = memoryview(bytearray(1 << 20))
        self._zip_path = ""
        self._zip_fd = -1
        self._objects = ObjectReader()

    def __enter__(self) -> SliceReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the archive; the reader opens it again when it is needed."""
        self._objects.close()
        fd, self._zip_fd, self._zip_path = self._zip_fd, -1, ""
        if fd >= 0:
            os.close(fd)

    def expect(self, rows: Iterable[SliceRef], head_bytes: int | None = None) -> None:
        """Announce what will be read next, in this order: all of each slice, or its head.

        What lies in buckets is fetched ahead, many requests in flight; for other rows this does nothing.
        """
        self._objects.expect(self._wanted(rows, head_bytes))

    def read(self, row: SliceRef) -> memoryview:
        """The whole slice, its size and (but for a plain file) its checksum checked. Raises `UnreadableSource`."""
        self._require_size(row)
        if row.method == PLAIN:
            return tried(row, lambda: self._read_plain(row, row.size_bytes))
        if row.method == OBJECT:
            return tried(row, lambda: _checked_object(row, self._read_object(row, row.size_bytes)))
        if row.method == RANGE:
            return tried(row, lambda: _checked_object(row, self._read_range(row)))
        return tried(row, lambda: self._checked(row, self._read_zipped(row)))

    def read_head(self, row: SliceRef, head_bytes: int) -> memoryview:
        """The first `head_bytes` of the slice, or all of a shorter one, without reading the rest.

        The crc32 covers the whole slice and is not checked. Raises `UnreadableSource`.
        """
        self._require_size(row)
        wanted = _head(row, head_bytes)
        if row.method == PLAIN:
            return tried(row, lambda: self._read_plain(row, wanted))
        if row.method == OBJECT:
            return tried(row, lambda: self._read_object(row, wanted))
        if row.method == STORED:
            return tried(row, lambda: self._stored_prefix(row, wanted))
        return tried(row, lambda: self._inflate_head(row, wanted))

    def _wanted(self, rows: Iterable[SliceRef], head_bytes: int | None) -> Iterator[Wanted]:
        """The range that each row in a bucket asks for first."""
        for row in rows:
            if not is_bucket(row.container) or max(row.size_bytes, row.stored_bytes) > self._max_bytes:
                continue
            size_bytes = row.stored_bytes if head_bytes is None else _first_step(row, head_bytes)
            if row.method == RANGE:
                yield _range(row)
            else:
                yield _object(row, size_bytes) if row.method == OBJECT else _member(row, guess_bytes(row) + size_bytes)

    def _require_size(self, row: SliceRef) -> None:
        for what, size_bytes in (("size", row.size_bytes), ("stored size", row.stored_bytes)):
            if size_bytes > self._max_bytes:
                raise UnreadableSource(
                    "too_large", f"{row.name}: {what} is {size_bytes:,} bytes; the limit is {self._max_bytes:,}"
                )
        if row.method == STORED and row.stored_bytes != row.size_bytes:
            raise mismatch(row, row.stored_bytes)

    def _read_plain(self, row: SliceRef, wanted: int) -> memoryview:
        # os.open and preadv into a buffer in use: a fresh half-megabyte buffer a slice costs page faults.
        fd = open_plain(row)
        try:
            check_plain(row, fd)
            got = self._fill(fd, 0, wanted)
        finally:
            os.close(fd)
        if got < wanted:
            raise changed(row, f"the file ended after {got:,} of {wanted:,} bytes")
        return self._view[:wanted]

    def _read_object(self, row: SliceRef, wanted: int) -> memoryview:
        data = self._objects.fetch(_object(row, wanted))
        if len(data) < wanted:
            raise changed(row, f"the object ended after {len(data):,} of {wanted:,} bytes")
        return memoryview(data)

    def _read_range(self, row: SliceRef) -> memoryview:
        if is_bucket(row.container):
            found = memoryview(self._objects.fetch(_range(row)))
        else:
            fd = open_plain(row)
            try:
                found = self._view[: self._fill(fd, row.offset, row.size_bytes)]
            finally:
                os.close(fd)
        if len(found) < row.size_bytes:
            raise changed(row, f"it ends {row.size_bytes - len(found):,} bytes early")
        return found

    def _read_zipped(self, row: SliceRef) -> memoryview:
        data = self._stored_prefix(row, row.stored_bytes)
        if row.method == STORED:
            return data
        inflater = new_inflater()
        # One byte more than declared is enough to catch a stream that holds more, and all that a zip bomb gets.
        content = inflate(inflater, data, row.size_bytes + 1, row)
        if not inflater.eof and len(content) <= row.size_bytes:
            raise cut_short(row, len(content))
        return memoryview(content)

    def _checked(self, row: SliceRef, content: memoryview) -> memoryview:
        if len(content) != row.size_bytes:
            raise mismatch(row, len(content))
        check_sum(row, isal_zlib.crc32(content))
        return content

    def _inflate_head(self, row: SliceRef, wanted: int) -> memoryview:
        """First `wanted` bytes of a deflated member, from as little of its stream as that takes."""
        inflater, head, at = new_inflater(), b"", 0
        while len(head) < wanted and not inflater.eof:
            if at == row.stored_bytes:
                raise cut_short(row, len(head))
            end = min(at + _first_step(row, wanted), row.stored_bytes)
            data = self._stored_prefix(row, end)[at:]
            head += inflate(inflater, data, wanted - len(head), row)
            at = end
        if len(head) < wanted:
            raise mismatch(row, len(head))
        return memoryview(head)

    def _stored_prefix(self, row: SliceRef, size_bytes: int) -> memoryview:
        """First bytes of a member as they lie in the archive."""
        found = self._archive_bytes(row, guess_bytes(row) + size_bytes)
        begin = header_bytes(row, found)
        end = begin + size_bytes
        if end > len(found):
            found = self._archive_bytes(row, end)
        if end > len(found):
            raise changed(row, f"the archive ends inside the slice, after {len(found):,} bytes")
        return found[begin:end]

    def _archive_bytes(self, row: SliceRef, size_bytes: int) -> memoryview:
        """Bytes of the archive from where the member begins; fewer at its end."""
        if is_bucket(row.container):
            return memoryview(self._objects.fetch(_member(row, size_bytes)))
        return self._view[: self._fill(self._open_zip(row.container), row.offset, size_bytes)]

    def _open_zip(self, path: str) -> int:
        if path != self._zip_path:
            self.close()
            self._zip_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._zip_path = path
        return self._zip_fd

    def _fill(self, fd: int, offset: int, size_bytes: int) -> int:
        """Read into the buffer; how many bytes came, fewer only at the end of the file."""
        if size_bytes > len(self._view):
            self._view = memoryview(bytearray(size_bytes))
        got = 0
        while got < size_bytes:
            fresh = os.preadv(fd, [self._view[got:size_bytes]], offset + got)
            if not fresh:
                break
            got += fresh
        return got


def tried(row: SliceRef, read: Callable[[], Result]) -> Result:
    """What `read` gives; bytes that came from a bucket and fail their check are fetched again."""
    far = is_bucket(row.container)
    for left in range(TRIES if far else 1, 0, -1):
        try:
            return read()
        except FileNotFoundError as error:
            raise changed(row, "it is gone") if far else _unreadable(row, error) from error
        except buckets.NoAnswer as error:
            raise buckets.NoAnswer(error.errno, error.strerror, row.container) from error  # the name stays here
        except OSError as error:
            if far:
                raise
            raise _unreadable(row, error) from error
        except UnreadableSource as error:
            if left == 1 or error.reason not in _MAY_PASS:
                raise
    raise AssertionError("the last try returns or raises")


def escaped(name: str) -> str:
    """A file name as text that can be stored: bytes that are not UTF-8 become `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def open_plain(row: SliceRef) -> int:
    """A descriptor of a file that lies in no archive, whatever bytes its name has. Raises `OSError`."""
    path = f"{row.container}/{row.name}"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raw = _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), path.encode())
        if raw == path.encode():
            raise
        return os.open(raw, os.O_RDONLY | os.O_CLOEXEC)


def check_plain(row: SliceRef, fd: int) -> None:
    """Raise `UnreadableSource` where an open file is no longer what was listed."""
    status = os.fstat(fd)
    size_bytes = status.st_size
    if size_bytes != row.size_bytes:
        raise changed(row, f"the file has {size_bytes:,} bytes; the listing said {row.size_bytes:,}")
    if row.version >= 0 and status.st_mtime_ns != row.version:
        raise changed(row, "the file was written after the listing")


def header_bytes(row: SliceRef, found: memoryview) -> int:
    """Length of the local header that a member of a zip begins with; `found`: the archive from there on."""
    header = zip_directory.parse_local_header(found)
    if header is None:
        raise UnreadableSource("bad_local_header", f"{row.name}: no member begins at byte {row.offset:,}")
    if (header.name, header.method) != (row.name, row.method):
        raise changed(row, f"another member begins at byte {row.offset:,}")
    return header.header_bytes


def _head(row: SliceRef, head_bytes: int) -> int:
    return min(max(0, head_bytes), row.size_bytes)


def _first_step(row: SliceRef, head_bytes: int) -> int:
    """Bytes of the source that give the first `head_bytes` of a slice, nearly always."""
    wanted = _head(row, head_bytes)
    # Deflate seldom makes bytes more, and never many.
    return min(wanted + 1024, row.stored_bytes) if row.method == DEFLATED else wanted


def guess_bytes(row: SliceRef) -> int:
    """Length of a local header: one read for it and the bytes, as local names and extras mostly are this short."""
    return zip_directory.LOCAL_HEADER_BYTES + 4 * len(row.name) + 64


def _range(row: SliceRef) -> Wanted:
    return Wanted(f"{row.container}/{row.name}", None, row.offset, row.size_bytes)


def _object(row: SliceRef, size_bytes: int) -> Wanted:
    return Wanted(f"{row.container}/{row.name}", row.version, 0, size_bytes)


def _member(row: SliceRef, size_bytes: int) -> Wanted:
    return Wanted(row.container, None, row.offset, size_bytes)


def _checked_object(row: SliceRef, content: memoryview) -> memoryview:
    check_sum(row, google_crc32c.value(bytes(content)))
    return content


def check_sum(row: SliceRef, found: int) -> None:
    """Raise `UnreadableSource` unless `found` is the sum of a row's bytes: the crc32 of a member, else the crc32c."""
    zipped = row.method >= 0
    kind, source = ("crc32", "archive") if zipped else ("crc32c", "bucket" if row.method == OBJECT else "index")
    if found != row.crc32 and (zipped or row.crc32 != buckets.UNKNOWN_CRC32C):
        raise UnreadableSource("crc_mismatch", f"{row.name}: {kind} is {found:08x}, the {source} says {row.crc32:08x}")


def new_inflater() -> igzip_lib.IgzipDecompressor:
    """Of the raw deflate streams that zips hold."""
    return igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_DEFLATE, 15)


def inflate(inflater: igzip_lib.IgzipDecompressor, data: memoryview, max_bytes: int, row: SliceRef) -> bytes:
    """The next bytes of a member, `max_bytes` at most. Raises `UnreadableSource`."""
    try:
        return inflater.decompress(data, max_bytes)
    except igzip_lib.IsalError as error:  # type: ignore[misc]  # its stub calls this class an instance
        raise UnreadableSource("inflate_failed", f"{row.name}: {error}") from error


def cut_short(row: SliceRef, got_bytes: int) -> UnreadableSource:
    """The problem of a member whose stream ends early."""
    return UnreadableSource("inflate_failed", f"{row.name}: the deflated stream ends after {got_bytes:,} bytes")


def mismatch(row: SliceRef, got_bytes: int) -> UnreadableSource:
    """The problem of a member of another size than the archive says."""
    more = "more than " if got_bytes > row.size_bytes else ""
    return UnreadableSource(
        "size_mismatch",
        f"{row.name}: holds {more}{min(got_bytes, row.size_bytes):,} bytes; the archive says {row.size_bytes:,}",
    )


def changed(row: SliceRef, fact: str) -> UnreadableSource:
    """The problem of a source that no longer is what was listed."""
    return UnreadableSource("changed", f"{row.name}: {fact}; it changed since it was listed")


def _unreadable(row: SliceRef, error: OSError) -> UnreadableSource:
    # The name alone: the folder may be called after a patient, and the reason goes into rejects.csv.
    return UnreadableSource("unreadable_file", f"{row.name}: {error.strerror or type(error).__name__}")
