"""Places in Cloud Storage that are used like `pathlib.Path`: `gs://bucket/folder/name`.

Only what conversion needs of a path is here, under pathlib's names and with its errors. A folder is not a thing
of its own: it is there when an object lies in it. An object appears whole or not at all.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import fnmatch
import io
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from ich_tfrecords.storage import buckets

SCHEME = "gs://"
_BLOCK_BYTES = 4 << 20  # of a file that is read in ranges
# https://cloud.google.com/storage/docs/buckets#naming
_is_bucket_name = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]").fullmatch


class Status(NamedTuple):
    """What `stat` tells of an object."""

    st_size: int


@dataclasses.dataclass(frozen=True, order=True)
class BucketPath:
    """An object or a folder of a bucket; `key` has no slash at its ends."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, name: str) -> BucketPath:
        return BucketPath(self.bucket, f"{self.key}/{name}".strip("/"))

    @property
    def name(self) -> str:
        """Last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """Suffix of the name, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> BucketPath:
        """The folder that this lies in."""
        return BucketPath(self.bucket, self.key.rpartition("/")[0])

    @property
    def prefix(self) -> str:
        """What the names of all objects in this folder begin with."""
        return f"{self.key}/" if self.key else ""

    def with_suffix(self, suffix: str) -> BucketPath:
        """The same with another suffix."""
        return self.parent / PurePosixPath(self.name).with_suffix(suffix).name

    def absolute(self) -> BucketPath:
        """Itself: no bucket path is relative."""
        return self

    def stat(self) -> Status:
        """Size of the object. Raises `FileNotFoundError`."""
        return Status(buckets.stat(self.bucket, self.key).size_bytes)

    def exists(self) -> bool:
        """Whether an object of this name, or any below it, is there."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether an object of this name is there."""
        try:
            buckets.stat(self.bucket, self.key)
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether an object lies below this."""
        try:
            return buckets.holds_any(self.bucket, self.prefix)
        except FileNotFoundError:
            return False

    def stored(self) -> dict[str, buckets.Stored]:
        """What the bucket tells of each object right in this folder, by name."""
        objects, _ = buckets.folder(self.bucket, self.prefix)
        return {stored.key[len(self.prefix) :]: stored for stored in objects if stored.key != self.prefix}

    def iterdir(self) -> Iterator[BucketPath]:
        """What lies right in this folder, objects and folders."""
        objects, folders = buckets.folder(self.bucket, self.prefix)
        keys = {stored.key for stored in objects} | {key[:-1] for key in folders}
        # not the marker of this folder, nor a folder without a name (of a//b), which no path leads to
        yield from (BucketPath(self.bucket, key) for key in sorted(keys) if key and not key.endswith("/"))

    def glob(self, pattern: str) -> Iterator[BucketPath]:
        """What lies right in this folder and matches."""
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there once an object lies in it."""

    def read_bytes(self) -> bytes:
        """The whole object, checked against its crc32c."""
        return buckets.read(self.bucket, self.key)

    def read_text(self, encoding: str) -> str:
        """The whole object as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> None:
        """Put the object in place, whole or not at all."""
        buckets.write(self.bucket, self.key, data)

    def write_file(self, file: BinaryIO, size_bytes: int) -> None:
        """Put the bytes of a file in place, whole or not at all."""
        buckets.write_file(self.bucket, self.key, file, size_bytes)

    def open(self, mode: str = "rb") -> BinaryIO:
        """The object as a file that is read in ranges of some megabytes. Raises `FileNotFoundError`."""
        if mode != "rb":
            raise ValueError(f"{self}: mode {mode!r}; an object is only opened to be read (rb)")
        stored = buckets.stat(self.bucket, self.key)
        return io.BufferedReader(_Ranges(self, stored.size_bytes, stored.generation), _BLOCK_BYTES)

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        try:
            buckets.delete(self.bucket, self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_all(self) -> None:
        """Remove every object below this."""

        def remove(stored: buckets.Stored) -> None:
            BucketPath(self.bucket, stored.key).unlink(missing_ok=True)

        buckets.each(remove, buckets.listed(self.bucket, self.prefix))


AnyPath = Path | BucketPath


def is_bucket(text: str) -> bool:
    """Whether a place is named in Cloud Storage."""
    return text.startswith(SCHEME)


class PlaceError(argparse.ArgumentTypeError, ValueError):
    """A text that names no place that can be used; argparse shows the message as it is."""


def local_path(text: str) -> Path:
    """The path of this machine that a text names. Raises `PlaceError` for an address elsewhere."""
    if not text:
        raise PlaceError("the path is empty")
    if "://" in text:
        raise PlaceError(f"{text!r} is an address, and a place on this machine is needed here; name a path")
    return Path(text)


def any_path(text: str) -> AnyPath:
    """The path that a text names. Raises `PlaceError` for `gs://` without a bucket, or with an impossible one."""
    if not is_bucket(text):
        return local_path(text)
    name, _, key = text[len(SCHEME) :].partition("/")
    if not name:
        raise PlaceError(f"{text!r} names no bucket; write gs://bucket/folder")
    if not _is_bucket_name(name):
        raise PlaceError(f"{text!r}: no bucket can be called {name!r} (small letters, digits, - _ . only)")
    return BucketPath(name, key.strip("/"))


class _Ranges(io.RawIOBase):
    """One generation of an object, read where it is asked for."""

    def __init__(self, path: BucketPath, size_bytes: int, generation: int) -> None:
        self._path, self._size_bytes, self._generation, self._at = path, size_bytes, generation, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size_bytes}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "seek to before the beginning", str(self._path))
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, target: Any) -> int:
        wanted = min(len(target), max(0, self._size_bytes - self._at))
        data = buckets.read_range(self._path.bucket, self._path.key, self._at, wanted, self._generation)
        target[: len(data)] = data
        self._at += len(data)
        return len(data)
