"""Data sets in Cloud Storage: their metadata, and a checked copy of their shards on a local disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c

from ich_tfrecords.dataset.manifest import MANIFEST, SLICES, Manifest
from ich_tfrecords.dataset.studies import STUDIES
from ich_tfrecords.storage import atomic, buckets
from ich_tfrecords.storage.bucket_path import BucketPath, any_path
from trainer.shell.problems import WrongUse

TRIES = 3
STALE_S = 3600.0  # a temporary file that nobody wrote to for so long belongs to a process that is gone

Note = Callable[[str], None]


def fetch(place: str, name: str, when_missing: str) -> bytes:
    """Bytes of an object in the folder `place`. Raises `WrongUse`, which ends with `when_missing` if there is none."""
    try:
        return (_folder(place) / name).read_bytes()
    except FileNotFoundError as error:
        raise WrongUse(f"{place} holds no {name}, so it is no converted data set; {when_missing}") from error
    except OSError as error:
        raise _unreadable(place, name, error) from error


def sizes(place: str) -> dict[str, int]:
    """Bytes of each object in the folder `place`, by name."""
    try:
        return {name: stored.size_bytes for name, stored in _folder(place).stored().items()}
    except OSError as error:
        raise _unreadable(place, "the list of its shards", error) from error


def copy(
    bucket_place: str,
    directory: Path,
    manifest: Manifest,
    metadata: Mapping[str, bytes],
    note: Note,
    workers: int = 8,
) -> None:
    """Copy a data set to `directory`: the shards, each checked by size and crc32c, then `metadata`.

    The metadata (bytes by file name) is what `manifest` was read from, whatever the bucket holds by now. A copy of
    a shard that is there and whole is kept, so a copy that was cut off goes on. `note` is told what is done.
    Raises `WrongUse` when a shard fails its check `TRIES` times, or cannot be read or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_stale(directory)
    except OSError as error:
        raise WrongUse(f"cannot keep a copy in {directory}: {error}; name another folder") from error
    folder = _folder(bucket_place)
    note(f"copying {len(manifest.shards):,} shards of {bucket_place} to {directory}")
    kept = 0
    with ThreadPoolExecutor(workers) as pool:
        tasks = [pool.submit(_copy_shard, folder, directory, shard, note) for shard in manifest.shards]
        try:
            for task in as_completed(tasks):
                kept += task.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for name in (name for name in (SLICES, STUDIES, MANIFEST) if name in metadata):
        atomic.write_bytes(directory / name, metadata[name])
    atomic.sync_folder(directory)
    note(f"copied {len(manifest.shards) - kept:,} shards, kept {kept:,} that were there")


class _WrongCopy(Exception):
    """What came differs from what the manifest promises."""


def _copy_shard(folder: BucketPath, directory: Path, shard: dict[str, Any], note: Note) -> bool:
    """Copy a shard; True if a whole copy was there."""
    path = directory / shard["name"]
    try:
        if _is_whole(path, shard):
            return True
        for attempt in range(1, TRIES + 1):
            try:
                _download(folder / path.name, path, shard)
                return False
            except _WrongCopy as error:
                problem = error
                note(f"{path.name}: {error} (try {attempt} of {TRIES})")
    except OSError as error:
        raise _unreadable(folder, path.name, error) from error
    raise WrongUse(f"{folder}: shard {path.name} {problem}, {TRIES} times; upload it again or convert again")


def _is_whole(path: Path, shard: dict[str, Any]) -> bool:
    if not path.is_file() or path.stat().st_size != shard["bytes"]:
        return False
    return atomic.file_crc32c(path) == shard["crc32c"]


class _Counted:
    """A file that counts the bytes written to it and keeps their crc32c."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.bytes, self.crc32c = 0, 0

    def write(self, block: bytes) -> int:
        self.bytes += len(block)
        self.crc32c = google_crc32c.extend(self.crc32c, block)
        return self._file.write(block)

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        self._file.flush()


def _download(source: BucketPath, path: Path, shard: dict[str, Any]) -> None:
    """Put an object at `path`, whole and checked, or not at all. Raises `_WrongCopy`."""
    with atomic.replacing(path) as file:
        counted = _Counted(file)
        # the manifest's crc32c counts, not the one that the bucket computed of whatever was uploaded
        buckets.read_into(source.bucket, source.key, counted)
        if counted.bytes != shard["bytes"]:
            raise _WrongCopy(f"has {counted.bytes:,} bytes, the manifest says {shard['bytes']:,}")
        if f"{counted.crc32c:08x}" != shard["crc32c"]:
            raise _WrongCopy(f"has crc32c {counted.crc32c:08x}, the manifest says {shard['crc32c']}")


def _remove_stale(directory: Path) -> None:
    """Remove temporary files of copies that were killed."""
    for path in directory.glob(atomic.TEMPORARY_GLOB):
        if time.time() - path.stat().st_mtime > STALE_S:
            path.unlink(missing_ok=True)


def _folder(place: str) -> BucketPath:
    try:
        path = any_path(place)
    except ValueError as error:
        raise WrongUse(str(error)) from error
    assert isinstance(path, BucketPath)
    return path


def _unreadable(place: object, name: str, error: OSError) -> WrongUse:
    return WrongUse(f"{place}: cannot fetch {name}: {error.strerror or error}; run the same command again")
