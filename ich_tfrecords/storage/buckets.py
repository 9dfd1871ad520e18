"""Requests to Cloud Storage, made again while they fail in passing.

What fails for good is an `OSError` whose `filename` is the object: `FileNotFoundError` for one that is not there,
`PermissionError` for one that may not be touched, else `NoAnswer`. The library is imported with the first request:
without a bucket no conversion pays for it.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import http.client
import io
import logging
import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

if TYPE_CHECKING:
    from google.cloud import storage

RETRY_S = 120.0  # for so long a request that fails in passing is made again, with growing pauses
FIRST_PAUSE_S = 0.25
IN_FLIGHT = 32  # requests of one bulk move at a time
UNKNOWN_CRC32C = -1
_PAGE_ROWS = 1000  # Cloud Storage gives no more in one answer
_TIMEOUT_S = 60  # of one request without a byte
_LIST_FIELDS = "items(name,size,generation,crc32c,updated),prefixes,nextPageToken"
_LOGIN = "log in with: gcloud auth application-default login"

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stored(NamedTuple):
    """An object as its bucket tells it: its name there, and what identifies its bytes; `updated_s` since 1970."""

    key: str
    size_bytes: int
    generation: int
    crc32c: int
    updated_s: float


class NoAnswer(OSError):
    """Cloud Storage failed for as long as a request is tried again."""


class Moved(OSError):
    """An object is not the generation that a write or delete was meant for."""


def read(bucket: str, key: str) -> bytes:
    """The whole object, checked against the crc32c that its bucket keeps."""
    blob = _blob(bucket, key)

    def fetch() -> bytes:
        # the library's own retry goes on where a download broke off, and then checks nothing
        return blob.download_as_bytes(checksum="crc32c", retry=None, timeout=_TIMEOUT_S)

    with _failures(bucket, key):
        return _retry()(fetch)()


def read_into(bucket: str, key: str, file: Any) -> None:
    """Write the whole object to `file`, which counts and checks: the bucket's own checksum is not looked at."""
    with _failures(bucket, key):
        _blob(bucket, key).download_to_file(file, raw_download=True, checksum=None, retry=_retry(), timeout=_TIMEOUT_S)


def read_range(bucket: str, key: str, start: int, size_bytes: int, generation: int | None = None) -> bytes:
    """Bytes of an object from `start`, as they are stored; fewer where it ends.

    Raises `FileNotFoundError` when `generation` is given and no longer the object's.
    """
    if size_bytes <= 0:
        return b""
    blob = _blob(bucket, key, generation)
    end = start + size_bytes - 1

    def fetch() -> bytes:
        # raw: a slice stored with a content encoding must not change its length on the way
        return blob.download_as_bytes(
            start=start, end=end, raw_download=True, checksum=None, retry=None, timeout=_TIMEOUT_S
        )

    with _failures(bucket, key):
        try:
            return _retry()(fetch)()
        except _api().RequestRangeNotSatisfiable:
            return b""


def write(bucket: str, key: str, data: bytes, generation: int | None = None) -> Stored:
    """Put an object in place, whole or not at all, its crc32c checked by the bucket.

    `generation`: replace this one only (0: there must be none), else `Moved`.
    """
    return write_file(bucket, key, io.BytesIO(data), len(data), generation)


def write_file(bucket: str, key: str, file: BinaryIO, size_bytes: int, generation: int | None = None) -> Stored:
    """Put the bytes of a file, from where it stands, in place as `write` does."""
    blob = _blob(bucket, key)
    with _failures(bucket, key):
        blob.upload_from_file(
            file, size=size_bytes, checksum="crc32c", if_generation_match=generation, retry=_retry(), timeout=_TIMEOUT_S
        )
        return _stored(blob)


def stat(bucket: str, key: str) -> Stored:
    """What the bucket tells of an object."""
    blob = _blob(bucket, key)
    with _failures(bucket, key):
        blob.reload(retry=_retry(), timeout=_TIMEOUT_S)
        return _stored(blob)


def delete(bucket: str, key: str, generation: int | None = None) -> None:
    """Remove an object; one that is not there raises `FileNotFoundError`."""
    blob, tries = _blob(bucket, key), 0

    def once() -> None:
        nonlocal tries
        tries += 1
        blob.delete(if_generation_match=generation, retry=None, timeout=_TIMEOUT_S)

    with _failures(bucket, key):
        try:
            _retry()(once)()
        except _api().NotFound:
            if tries == 1:  # else it was an earlier try that removed it, and its answer got lost
                raise


def listed(bucket: str, prefix: str, start: str = "", end: str = "") -> Iterator[Stored]:
    """Every object whose name begins with `prefix`, by name; `start` (within) and `end` (without) narrow it."""
    with _failures(bucket, prefix):
        yield from map(_stored, _listing(bucket, prefix, start_offset=start or None, end_offset=end or None))


def page(bucket: str, prefix: str, start: str = "", end: str = "") -> tuple[list[Stored], bool]:
    """The first page of what `listed` would give, and whether there is more; it holds more than `start` alone."""
    with _failures(bucket, prefix):
        found = _listing(bucket, prefix, start_offset=start or None, end_offset=end or None)
        rows: list[Stored] = []
        for blobs in found.pages:  # a page may be empty, and yet not the last
            rows += map(_stored, blobs)
            if len(rows) > 1:
                break
        return rows, bool(found.next_page_token)


def holds_any(bucket: str, prefix: str) -> bool:
    """Whether there is an object whose name begins with `prefix`."""
    with _failures(bucket, prefix):
        return any(True for _ in _listing(bucket, prefix, max_results=1))


def folder(bucket: str, prefix: str) -> tuple[list[Stored], list[str]]:
    """The objects right in a folder (`prefix` ends with a slash or is empty) and the prefixes of those in it."""
    with _failures(bucket, prefix):
        found = _listing(bucket, prefix, delimiter="/")
        return [_stored(blob) for blob in found], sorted(found.prefixes)


def read_many(places: Sequence[tuple[str, str]]) -> list[bytes | None]:
    """The whole objects (bucket, name), each checked as `read` does; None for one that is not there."""
    return [data for some in _some_at_a_time(places) for data in _read_some(some)]


def _some_at_a_time(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """The items in portions: without an answer a bulk move ends with its portion."""
    return (items[begin : begin + 2 * IN_FLIGHT] for begin in range(0, len(items), 2 * IN_FLIGHT))


def _read_some(places: Sequence[tuple[str, str]]) -> list[bytes | None]:
    from google.cloud.storage import transfer_manager

    files = [io.BytesIO() for _ in places]
    pairs = [(_blob(*place), file) for place, file in zip(places, files, strict=True)]
    options = {"checksum": "crc32c", "retry": None, "timeout": _TIMEOUT_S}
    done = transfer_manager.download_many(
        pairs, download_kwargs=options, worker_type=transfer_manager.THREAD, max_workers=IN_FLIGHT
    )
    found = [None if isinstance(result, Exception) else file.getvalue() for result, file in zip(done, files)]
    failed = [i for i, result in enumerate(done) if isinstance(result, Exception) and not _is_absent(result)]
    for i, data in zip(failed, each(lambda i: _read_if_there(*places[i]), failed)):
        found[i] = data
    return found


def _is_absent(error: Exception) -> bool:
    return isinstance(error, _api().NotFound)


def _read_if_there(bucket: str, key: str) -> bytes | None:
    try:
        return read(bucket, key)
    except FileNotFoundError:
        return None


def write_many(contents: Sequence[tuple[str, str, bytes]]) -> None:
    """Put objects (bucket, name, bytes) in place, each as `write` does."""
    for some in _some_at_a_time(contents):
        _write_some(some)


def _write_some(contents: Sequence[tuple[str, str, bytes]]) -> None:
    from google.cloud.storage import transfer_manager

    pairs = [(io.BytesIO(data), _blob(bucket, key)) for bucket, key, data in contents]
    options = {"checksum": "crc32c", "retry": None, "timeout": _TIMEOUT_S}
    done = transfer_manager.upload_many(
        pairs, upload_kwargs=options, worker_type=transfer_manager.THREAD, max_workers=IN_FLIGHT
    )
    failed = [content for content, result in zip(contents, done, strict=True) if isinstance(result, Exception)]
    each(lambda content: write(*content), failed)


def each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`function` of each item, many at a time, in the order of the items; the first failure ends it."""
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        try:
            return list(pool.map(function, items))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _listing(bucket: str, prefix: str, **options: Any) -> Any:
    """The library's iterator of a listing, in pages."""
    options |= {"page_size": _PAGE_ROWS, "fields": _LIST_FIELDS, "retry": _retry(), "timeout": _TIMEOUT_S}
    return _client().list_blobs(bucket, prefix=prefix, **options)


def _stored(blob: storage.Blob) -> Stored:
    # an object that its owner encrypted with a key of theirs shows none
    crc32c = struct.unpack(">I", base64.b64decode(blob.crc32c))[0] if blob.crc32c else UNKNOWN_CRC32C
    updated_s = blob.updated.timestamp() if blob.updated else 0.0
    return Stored(blob.name, int(blob.size), int(blob.generation), crc32c, updated_s)


def _blob(bucket: str, key: str, generation: int | None = None) -> storage.Blob:
    return _client().bucket(bucket).blob(key, generation=generation)


def _client() -> storage.Client:
    """The client of this process and this address, made once: its connections are shared by all threads."""
    return _made_client(os.getpid(), os.environ.get("STORAGE_EMULATOR_HOST", ""))


@functools.lru_cache(maxsize=1)
def _made_client(_process: int, emulator: str) -> storage.Client:
    import requests.adapters
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    _check_environment(emulator)
    # it warns of logins that name no project; objects have none
    logging.getLogger("google.auth._default").setLevel(logging.ERROR)
    with _failures("", ""):
        if emulator:
            made = storage.Client(project="emulator", credentials=AnonymousCredentials())
        else:
            made = storage.Client(project=None)
        # one connection a request in flight; the default keeps ten and throws the others away
        adapter = requests.adapters.HTTPAdapter(pool_connections=IN_FLIGHT, pool_maxsize=2 * IN_FLIGHT)
        for scheme in ("https://", "http://"):
            made._http.mount(scheme, adapter)
        return made


def _check_environment(emulator: str) -> None:
    """Tell of an emulator that stands for Cloud Storage, and refuse settings that every request would stumble over."""
    if emulator and not emulator.startswith(("http://", "https://")):
        raise _refused(f"STORAGE_EMULATOR_HOST={emulator} is no address; write http://HOST:PORT, or unset it")
    if emulator:
        print(f"gs:// leads to STORAGE_EMULATOR_HOST={emulator}, not to Cloud Storage", file=sys.stderr, flush=True)
    # requests looks at the second only without the first
    name = next((name for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if os.environ.get(name)), "")
    if name and not Path(os.environ[name]).exists():
        raise _refused(f"{name}={os.environ[name]}: no such file of certificates; unset it, or name one")


def _refused(text: str) -> OSError:
    return OSError(errno.EINVAL, text, "Cloud Storage")


def _retry() -> Any:
    """Cloud Storage's own rule of what passes, bytes that were damaged, and raw ones that end in the middle."""
    from google.api_core.retry import Retry
    from google.cloud.storage.exceptions import DataCorruption
    from google.cloud.storage.retry import DEFAULT_RETRY
    from urllib3.exceptions import HTTPError

    def passes(error: BaseException) -> bool:
        return DEFAULT_RETRY._predicate(error) or isinstance(error, (HTTPError, DataCorruption))

    return Retry(predicate=passes, initial=FIRST_PAUSE_S, maximum=30.0, multiplier=2.0, timeout=RETRY_S)


def _api() -> Any:
    from google.api_core import exceptions

    return exceptions


@contextlib.contextmanager
def _failures(bucket: str, key: str) -> Iterator[None]:
    """Turn what the library raises into an `OSError` about the object."""
    from google.api_core.exceptions import (
        ClientError,
        Forbidden,
        GoogleAPIError,
        NotFound,
        PreconditionFailed,
        TooManyRequests,
        Unauthorized,
    )
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage.exceptions import DataCorruption
    from requests import RequestException
    from urllib3.exceptions import HTTPError

    place = f"gs://{bucket}/{key}" if bucket else "Cloud Storage"
    try:
        yield
    except NotFound as error:
        raise FileNotFoundError(errno.ENOENT, "no such object or bucket", place) from error
    except (Forbidden, Unauthorized) as error:
        raise PermissionError(errno.EACCES, f"access denied ({_line(error)})", place) from error
    except GoogleAuthError as error:
        raise PermissionError(errno.EACCES, f"no access to Cloud Storage ({_line(error)}); {_LOGIN}", place) from error
    except PreconditionFailed as error:
        raise Moved(errno.ESTALE, "changed meanwhile", place) from error
    except TooManyRequests as error:
        raise NoAnswer(errno.EBUSY, f"no answer from Cloud Storage: {_line(error)}", place) from error
    except ClientError as error:
        raise OSError(errno.EINVAL, f"Cloud Storage refused: {_line(error)}", place) from error
    except (GoogleAPIError, DataCorruption, RequestException, HTTPError, ConnectionError) as error:
        raise NoAnswer(errno.EIO, f"no answer from Cloud Storage: {_line(error)}", place) from error


def _line(error: BaseException) -> str:
    """What went wrong, without the address of the request: names of objects may tell of patients."""
    from google.api_core.exceptions import GoogleAPICallError, RetryError

    if isinstance(error, RetryError) and error.cause is not None:
        return f"{_line(error.cause)}, for {RETRY_S:.0f} s"
    if isinstance(error, GoogleAPICallError) and error.code:
        return f"{int(error.code)} {http.client.responses.get(int(error.code), '')}".strip()
    while error.__context__ is not None and not isinstance(error, OSError | ValueError):
        error = error.__context__
    while isinstance(error, OSError) and error.__context__ is not None:  # requests' own errors are OSErrors
        error = error.__context__
    return " ".join(str(error).split())[:300] or type(error).__name__
