"""One big file over HTTP into a `.part` that survives anything: ranges, retries, and a record of what it is part of.

Beside the part lies `.part.json` with the size and the ETag of the file on the server, so that bytes of two
versions are never joined.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO
from urllib.parse import urlsplit

from ich_tfrecords.storage import atomic, file_system
from ich_tfrecords.views import progress_line
from ich_tfrecords.views.progress_line import bar, time_left

SPARE_BYTES = 1 << 30  # left free on the disk: a full one breaks more than this download
MAX_CHANGES = 3
_BLOCK_BYTES = 1 << 18
_RANGE_NOT_SATISFIABLE = 416
_MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+)")

_CAUSE = re.compile(r"Caused by \w+\((['\"])(.*)\1\)")  # the end of what urllib3 says


class DownloadError(Exception):
    """A download that failed; the message names the value, the place and the next step."""


class NoRoom(ValueError):
    """A disk or folder that cannot take the file; the message says how much is missing."""


class Lost(Exception):
    """An attempt that ended early and may go better the next time, not before `wait_s` seconds."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = wait_s


class _Changed(Exception):
    """The file on the server is no longer the one the part belongs to."""


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long to go on: `attempts` in a row without a new byte, waits that double between two bounds."""

    attempts: int = 8
    first_wait_s: float = 2.0
    longest_wait_s: float = 60.0
    silence_s: float = 60.0  # a connection that is quiet for so long is given up

    def wait_s(self, failures: int) -> float:
        """Seconds before the next attempt, after `failures` in a row (1 or more)."""
        return float(min(self.first_wait_s * 2 ** (failures - 1), self.longest_wait_s))


class Remote(NamedTuple):
    """The file on the server. `mark` is its ETag, else Last-Modified, else empty."""

    size_bytes: int
    mark: str


class Part:
    """The bytes fetched so far, open for appending and locked against a second process."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self.size_bytes = file.seek(0, os.SEEK_END)
        self.record = path.with_name(f"{path.name}.json")
        self.remote = self._read_record() if self.size_bytes else None

    def _read_record(self) -> Remote | None:
        """What the part belongs to; None when that is not known, or cannot be true."""
        try:
            known = json.loads(self.record.read_text(encoding="utf-8"))
            remote = Remote(int(known["size_bytes"]), str(known["mark"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return remote if self.size_bytes <= remote.size_bytes else None

    def start_over(self, remote: Remote | None = None) -> None:
        """Empty the part, to hold bytes of `remote` from now on."""
        self._file.seek(0)
        self._file.truncate()
        self.size_bytes, self.remote = 0, remote
        if remote is None:
            self.record.unlink(missing_ok=True)
        else:
            atomic.write_bytes(self.record, json.dumps(remote._asdict()).encode())

    def append(self, block: bytes) -> None:
        """Add bytes; raises `DownloadError` when the disk does not take them."""
        left = memoryview(block)
        try:
            while left:  # a nearly full disk takes a part of them first
                written = self._file.write(left)
                self.size_bytes += written
                left = left[written:]
        except OSError as error:
            why = error.strerror or str(error)
            raise DownloadError(
                f"{self.path}: {why} at {gigabytes(self.size_bytes)}; make room there, then the same command goes on"
            ) from error

    def sync(self) -> None:
        """Bring the bytes to the disk."""
        file_system.sync(self._file.fileno(), self.path.parent)

    def become(self, target: Path) -> None:
        """Give the part its final name, for good."""
        self.sync()
        self.path.replace(target)
        atomic.sync_folder(target.parent)
        self.record.unlink(missing_ok=True)


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[Part]:
    """The part at `path`, made where it is missing. Raises `NoRoom` when another process holds it."""
    # Unbuffered, so that what was received is in the file whatever ends this process.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    with open(descriptor, "r+b", buffering=0) as file:
        if not file_system.lock(file.fileno(), path.parent):
            raise NoRoom(f"{path} is being written by another process; wait for it, or stop it")
        if not _same_file(file.fileno(), path):
            raise NoRoom(f"{path} was finished by another process just now; run the same command again")
        part = Part(path, file)
        try:
            yield part
        finally:
            if not part.size_bytes and _same_file(file.fileno(), path):  # nothing to keep
                path.unlink()
                part.record.unlink(missing_ok=True)


def _same_file(descriptor: int, path: Path) -> bool:
    """Whether `path` still names the open file; the holder before may have renamed or removed it."""
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


def gigabytes(size_bytes: float) -> str:
    """`180.0 GB` (10^9 bytes); smaller sizes as `1.2 MB` or `12 bytes`."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= one:
            return f"{size_bytes / one:,.1f} {unit}"
    return f"{size_bytes:,.0f} bytes"


def fetch(locate: Callable[[], str], part: Part, patience: Patience, tell: Callable[[str], None], out: TextIO) -> None:
    """Fill `part` with the file whose address `locate()` gives; asked anew for each attempt, as links expire.

    Progress goes to `out`, everything out of the ordinary to `tell`. `locate` may raise `Lost`. Raises
    `DownloadError` after `patience`, and `NoRoom` before the first byte when the disk is too small.
    """
    if part.size_bytes and part.remote is None:
        tell(f"{part.path}: {gigabytes(part.size_bytes)} of an unknown file; starting over")
        part.start_over()
    furthest, failures, changes = part.size_bytes, 0, 0
    while True:
        try:
            return _attempt(locate(), part, patience, tell, out)
        except _Changed as error:
            changes += 1
            if changes > MAX_CHANGES:
                raise DownloadError(f"{error}, {changes} times in a row; run the same command again later") from error
            tell(f"{error}; starting over")
        except Lost as error:
            failures = 1 if part.size_bytes > furthest else failures + 1
            furthest = max(furthest, part.size_bytes)
            _rest(error, failures, part, patience, tell)


def _rest(error: Lost, failures: int, part: Part, patience: Patience, tell: Callable[[str], None]) -> None:
    """Wait before the next attempt; raises `DownloadError` when there is none left."""
    if failures >= patience.attempts:
        kept = f", {part.path} keeps {gigabytes(part.size_bytes)}" if part.size_bytes else ""
        raise DownloadError(
            f"{error}; gave up after {failures} attempts without a new byte{kept}: check the network, then the "
            "same command goes on"
        ) from error
    wait_s = max(patience.wait_s(failures), min(error.wait_s, patience.longest_wait_s))
    tell(f"{error} at {gigabytes(part.size_bytes)}; attempt {failures + 1} of {patience.attempts} in {wait_s:.0f} s")
    time.sleep(wait_s)


def _attempt(url: str, part: Part, patience: Patience, tell: Callable[[str], None], out: TextIO) -> None:
    """Ask for what is missing and take all that comes; raises `Lost` when that is less."""
    response = _opened(url, part, patience.silence_s)
    if response is None:
        return
    with response:
        remote, begins_at = _described(response, url)
        if part.remote is not None and remote != part.remote:
            old = part.remote
            part.start_over()
            raise _Changed(
                f"the file on the server has changed ({old.size_bytes:,} bytes {old.mark}, "
                f"now {remote.size_bytes:,} bytes {remote.mark})"
            )
        if begins_at != part.size_bytes:
            if begins_at:
                raise Lost(f"{_host(url)} sent bytes from {begins_at:,}, asked for {part.size_bytes:,}")
            tell(f"{_host(url)} cannot go on at {gigabytes(part.size_bytes)} (it ignores ranges); starting over")
            part.start_over(remote)
        require_room(part.path.parent, remote.size_bytes - part.size_bytes)
        if part.remote is None:
            part.start_over(remote)
        try:
            _copy(response, part, remote.size_bytes, url, out)
        finally:
            part.sync()


def _opened(url: str, part: Part, silence_s: float) -> http.client.HTTPResponse | None:
    """The answer from byte `part.size_bytes` on; None when the part is complete."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"the link to the archive begins with {urlsplit(url).scheme!r}, not https; report this")
    request = urllib.request.Request(url)
    if part.size_bytes:
        request.add_header("Range", f"bytes={part.size_bytes}-")
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=silence_s)
    except urllib.error.HTTPError as error:
        with error:
            if _nothing_missing(error, part):
                return None
            raise _refusal(error, url, part) from error
    except (OSError, http.client.HTTPException) as error:
        raise Lost(f"no connection to {_host(url)} ({reason(error)})") from error
    return response


def _nothing_missing(error: urllib.error.HTTPError, part: Part) -> bool:
    """Whether 416 means that the part ends where the file does."""
    found = _CONTENT_RANGE.match(error.headers.get("Content-Range", ""))
    total_bytes = int(found[2]) if found else part.size_bytes
    whole = part.remote is not None and part.size_bytes == part.remote.size_bytes == total_bytes
    return error.code == _RANGE_NOT_SATISFIABLE and whole


def _refusal(error: urllib.error.HTTPError, url: str, part: Part) -> Exception:
    """What a status means: another version of the file, a bad moment, or a link that does not work."""
    if error.code == _RANGE_NOT_SATISFIABLE and part.size_bytes:
        part.start_over()
        return _Changed(f"{_host(url)} has no bytes after those fetched (416), so the file has changed")
    if error.code in _MAY_PASS:
        after = error.headers.get("Retry-After", "")
        return Lost(f"{_host(url)} answered {error.code}", float(after) if after.isdecimal() else 0.0)
    return DownloadError(
        f"{_host(url)} refuses the link that Kaggle gave ({error.code}); run the same command again in some minutes"
    )


def _described(response: http.client.HTTPResponse, url: str) -> tuple[Remote, int]:
    """The file on the server, and the place in it at which this answer begins."""
    headers = response.headers
    if headers.get("Content-Type", "").startswith("text/"):
        # A login page of a network would otherwise look like a changed file and cost the part.
        raise Lost(f"{_host(url)} answered with a page of text, not with the archive")
    mark = headers.get("ETag") or headers.get("Last-Modified") or ""
    if response.status == http.client.PARTIAL_CONTENT:
        found = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
        if found and found[1]:
            return Remote(int(found[2]), mark), int(found[1])
    elif headers.get("Content-Length", "").isdecimal():
        return Remote(int(headers["Content-Length"]), mark), 0
    raise DownloadError(f"{_host(url)} does not say how large the archive is; run the same command again later")


def require_room(folder: Path, missing_bytes: int) -> None:
    """Raise `NoRoom` unless the disk of `folder` takes so many bytes more."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < missing_bytes + SPARE_BYTES:
        raise NoRoom(
            f"{folder} has {gigabytes(free_bytes)} free, {gigabytes(missing_bytes)} are still to come and "
            f"{gigabytes(SPARE_BYTES)} must stay free; make room, or name another --output"
        )


def _copy(response: http.client.HTTPResponse, part: Part, size_bytes: int, url: str, out: TextIO) -> None:
    with progress_line.shown("download", "GB", out, words=progress_words, first=part.size_bytes) as tell:
        while part.size_bytes < size_bytes:
            try:
                block = response.read(min(_BLOCK_BYTES, size_bytes - part.size_bytes))
            except (OSError, http.client.HTTPException) as error:
                raise Lost(f"the connection to {_host(url)} broke ({reason(error)})") from error
            if not block:
                raise Lost(f"{_host(url)} closed the connection early")
            part.append(block)
            tell(part.size_bytes, size_bytes)


def progress_words(what: str, unit: str, done: int, total: int, done_now: int, seconds: float) -> str:
    """`download [###...] 12.30/180.00 GB, 45.1 MB/s, 1:02:03 left`; the rate counts this connection's bytes only."""
    rate = done_now / seconds if seconds > 0 else 0.0
    tail = time_left(done, total, rate, seconds)
    return f"{what} {bar(done, total)} {done / 1e9:,.2f}/{total / 1e9:,.2f} {unit}, {rate / 1e6:,.1f} MB/s, {tail}"


def reason(error: BaseException) -> str:
    """An error in one line, without the signature of a link."""
    text = str(getattr(error, "reason", None) or error) or type(error).__name__
    cause = _CAUSE.search(text)
    text = cause[2].rsplit(": ", 1)[-1] if cause else text
    return re.sub(r"\?\S+", "?...", " ".join(text.split()))[:300]


def _host(url: str) -> str:
    # The rest of the link is signed, so whoever reads it could download with it.
    return urlsplit(url).hostname or "the server"
