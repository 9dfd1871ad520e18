"""Data sets in Cloud Storage: their metadata, and a checked copy of their shards on a local disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
from google.api_core.exceptions import GoogleAPIError, NotFound
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY

from ich_tfrecords import atomic
from ich_tfrecords.manifest import MANIFEST, SLICES, Manifest
from trainer.problems import WrongUse

BLOCK_BYTES = 1 << 20
TRIES = 3
RETRY_S = 60.0  # so long a request that fails in passing is made again
STALE_S = 3600.0  # a temporary file that nobody wrote to for so long belongs to a process that is gone

Note = Callable[[str], None]
_FAULTS = (GoogleAPIError, GoogleAuthError, OSError)


def fetch(place: str, name: str, when_missing: str) -> bytes:
    """Bytes of an object in the folder `place`. Raises `WrongUse`, which ends with `when_missing` if there is none."""
    bucket, prefix = _bucket(place)
    try:
        return bucket.blob(prefix + name).download_as_bytes(retry=DEFAULT_RETRY.with_timeout(RETRY_S))
    except NotFound as error:
        raise WrongUse(f"{place} holds no {name}, so it is no converted data set; {when_missing}") from error
    except _FAULTS as error:
        raise _unreadable(place, name, error) from error


def sizes(place: str) -> dict[str, int]:
    """Bytes of each object in the folder `place`, by name."""
    bucket, prefix = _bucket(place)
    try:
        listed = bucket.list_blobs(prefix=prefix, delimiter="/", retry=DEFAULT_RETRY.with_timeout(RETRY_S))
        return {blob.name[len(prefix) :]: blob.size for blob in listed}
    except _FAULTS as error:
        raise _unreadable(place, "the list of its shards", error) from error


def copy(bucket_place: str, directory: Path, manifest: Manifest, note: Note, workers: int = 8) -> None:
    """Copy a data set to `directory`: the shards, each checked by size and crc32c, then the metadata.

    A copy of a shard that is there and whole is kept, so a copy that was cut off goes on. `note` is told what
    is done. Raises `WrongUse` when a shard fails its check `TRIES` times, or cannot be read or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_stale(directory)
    except OSError as error:
        raise WrongUse(f"cannot keep a copy in {directory}: {error}; name another folder") from error
    bucket, prefix = _bucket(bucket_place)
    note(f"copying {len(manifest.shards):,} shards of {bucket_place} to {directory}")
    kept = 0
    with ThreadPoolExecutor(workers) as pool:
        tasks = [pool.submit(_copy_shard, bucket, prefix, directory, shard, note) for shard in manifest.shards]
        try:
            for task in as_completed(tasks):
                kept += task.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for name in (SLICES, MANIFEST):
        data = fetch(bucket_place, name, "it was changed meanwhile")
        atomic.write_bytes(directory / name, data)
    atomic.sync_folder(directory)
    note(f"copied {len(manifest.shards) - kept:,} shards, kept {kept:,} that were there")


class _WrongCopy(Exception):
    """What came differs from what the manifest promises."""


def _copy_shard(bucket: Any, prefix: str, directory: Path, shard: dict[str, Any], note: Note) -> bool:
    """Copy a shard; True if a whole copy was there."""
    path, place = directory / shard["name"], f"gs://{bucket.name}/{prefix}".rstrip("/")
    try:
        if _is_whole(path, shard):
            return True
        for attempt in range(1, TRIES + 1):
            try:
                _download(bucket.blob(prefix + path.name), path, shard)
                return False
            except _WrongCopy as error:
                problem = error
                note(f"{path.name}: {error} (try {attempt} of {TRIES})")
    except _FAULTS as error:
        raise _unreadable(place, path.name, error) from error
    raise WrongUse(f"{place}: shard {path.name} {problem}, {TRIES} times; upload it again or convert again")


def _is_whole(path: Path, shard: dict[str, Any]) -> bool:
    if not path.is_file() or path.stat().st_size != shard["bytes"]:
        return False
    crc32c = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            crc32c = google_crc32c.extend(crc32c, block)
    return f"{crc32c:08x}" == shard["crc32c"]


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


def _download(blob: Any, path: Path, shard: dict[str, Any]) -> None:
    """Put an object at `path`, whole and checked, or not at all. Raises `_WrongCopy`."""
    with atomic.replacing(path) as file:
        counted = _Counted(file)
        # the manifest's crc32c counts, not the one that the bucket computed of whatever was uploaded
        retry = DEFAULT_RETRY.with_timeout(RETRY_S)
        blob.download_to_file(counted, checksum=None, raw_download=True, retry=retry)
        if counted.bytes != shard["bytes"]:
            raise _WrongCopy(f"has {counted.bytes:,} bytes, the manifest says {shard['bytes']:,}")
        if f"{counted.crc32c:08x}" != shard["crc32c"]:
            raise _WrongCopy(f"has crc32c {counted.crc32c:08x}, the manifest says {shard['crc32c']}")


def _remove_stale(directory: Path) -> None:
    """Remove temporary files of copies that were killed."""
    for path in directory.glob(f"*{atomic.TEMPORARY_SUFFIX}"):
        if time.time() - path.stat().st_mtime > STALE_S:
            path.unlink(missing_ok=True)


def _bucket(place: str) -> tuple[Any, str]:
    """The bucket of `gs://bucket/prefix`, and the prefix with a slash after it."""
    name, _, prefix = place.removeprefix("gs://").partition("/")
    prefix = prefix.strip("/")
    if not name:
        raise WrongUse(f"{place!r} names no bucket; write gs://bucket/folder")
    return _client().bucket(name), f"{prefix}/" if prefix else ""


def _client() -> storage.Client:
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return storage.Client(project="emulator", credentials=AnonymousCredentials())
    try:
        return storage.Client()
    except _FAULTS as error:
        login = "log in with: gcloud auth application-default login"
        raise WrongUse(f"no access to Cloud Storage: {_line(error)}; {login}") from error


def _unreadable(place: str, name: str, error: Exception) -> WrongUse:
    return WrongUse(f"{place}: cannot fetch {name}: {_line(error)}; run the same command again")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
