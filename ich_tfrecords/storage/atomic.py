"""Files that are there whole or not at all: temporary name, fsync, rename; in a bucket, one upload."""

from __future__ import annotations

import contextlib
import io
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq

from ich_tfrecords.storage import buckets, file_system
from ich_tfrecords.storage.bucket_path import AnyPath, BucketPath

TEMPORARY_SUFFIX = ".tmp"
_BLOCK_BYTES = 1 << 20
TEMPORARY_GLOB = f"*.{'[0-9a-f]' * 32}{TEMPORARY_SUFFIX}"


@contextlib.contextmanager
def replacing(path: AnyPath, temporary_dir: AnyPath | None = None) -> Iterator[BinaryIO]:
    """An open file that becomes `path` when the block ends well, and vanishes when it does not.

    `temporary_dir` (on the same file system) holds it meanwhile; the folder of `path` by default. Every
    writer has a temporary name of its own, so that two of them never mix. What becomes an object of a bucket
    grows in a nameless file of this machine: an upload puts it in place whole or not at all.
    """
    if isinstance(path, BucketPath):
        with tempfile.TemporaryFile() as file:
            yield file
            size_bytes = file.tell()
            file.seek(0)
            path.write_file(file, size_bytes)
        return
    assert not isinstance(temporary_dir, BucketPath)
    temporary = (temporary_dir or path.parent) / f"{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            file_system.sync(file.fileno(), path.parent)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Put `data` at `path`, whole or not at all."""
    if isinstance(path, BucketPath):
        path.write_bytes(data)
        return
    with replacing(path) as file:
        file.write(data)


def write_many(contents: Sequence[tuple[AnyPath, bytes]]) -> None:
    """Put each of these in place as `write_bytes` does, in this order; those of buckets many at a time."""
    far = [(path.bucket, path.key, data) for path, data in contents if isinstance(path, BucketPath)]
    if far:
        buckets.write_many(far)
    for path, data in contents:
        if not isinstance(path, BucketPath):
            write_bytes(path, data)


def read_many(paths: Sequence[AnyPath]) -> list[bytes | None]:
    """Bytes of each file, None for one that is not there; those of buckets many at a time."""
    far = [(path.bucket, path.key) for path in paths if isinstance(path, BucketPath)]
    fetched = iter(buckets.read_many(far) if far else ())
    return [next(fetched) if isinstance(path, BucketPath) else _read_if_there(path) for path in paths]


def _read_if_there(path: AnyPath) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def write_table(path: AnyPath, table: pa.Table) -> bytes:
    """Put `table` at `path` as Parquet, whole or not at all; returns the bytes written."""
    data = table_bytes(table)
    write_bytes(path, data)
    return data


def table_bytes(table: pa.Table, **options: bool) -> bytes:
    """A table as a Parquet file; `options`: of `pq.write_table`."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", **options)
    return buffer.getvalue()


def read_table(path: AnyPath, columns: Sequence[str] | None = None) -> pa.Table:
    """The Parquet table at `path`, or some of its columns."""
    return pq.read_table(pa.BufferReader(path.read_bytes()), columns=columns)


def file_crc32c(path: Path) -> str:
    """crc32c of a file of this machine, hexadecimal, as manifests and sidecars bear it."""
    crc32c = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            crc32c = google_crc32c.extend(crc32c, block)
    return f"{crc32c:08x}"


def sync_folder(path: AnyPath) -> None:
    """Make the renames inside a folder last through a power cut; an upload lasts by itself."""
    if not isinstance(path, BucketPath):
        file_system.sync_folder(path)
