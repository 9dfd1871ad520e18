"""An upload on its way to the disk: octets as they come, files under numbers, names only in a list beside them.

Nothing of the body stays in memory but the piece that came last. A name from outside never becomes a path.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from ich_tfrecords.storage import atomic, zip_directory
from ich_tfrecords.storage.folder_walk import HIDDEN
from trainer.web.limits import (
    LEAST_BYTES_S,
    LEAST_FREE_BYTES,
    MOST_FILES,
    MOST_NAME,
    PATIENCE_S,
    RETRY_S,
)
from trainer.web.refusal import Refusal

FIELD = b"files"
NAMES = "names.json"
_HEAD_BYTES = 4
_MOST_HEADER_BYTES = 1 << 14  # holds the longest paths
_VOLUMES = (".nii.gz", ".nii")
_ZIP, _SLICE, _GROWING = ".zip", ".dcm", ".part"


class Files:
    """The files of an upload in `folder`, which grow one after the other; `names`: what they were called."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.names: list[str] = []
        self._file: BinaryIO | None = None
        self._head = b""

    def begin(self, name: str) -> None:
        """Open the next file. Raises `Refusal` where there are too many."""
        if len(self.names) == MOST_FILES:
            raise Refusal(413, f"more than {MOST_FILES:,} files; send a zip of fewer, or several uploads")
        self._file, self._head = self._growing().open("wb"), b""
        self.names.append(name[:MOST_NAME])

    def write(self, data: bytes) -> None:
        """Add to the file that is open; without one nothing is kept."""
        if self._file is not None:
            self._head = (self._head + data[:_HEAD_BYTES])[:_HEAD_BYTES]
            self._file.write(data)

    def end(self) -> None:
        """Close the file, and give it the suffix by which its kind is known."""
        if self._file is not None:
            self.close()
            number = len(self.names) - 1
            grown = self._folder / f"{number:06d}{_GROWING}"
            grown.replace(self._folder / f"{number:06d}{_suffix(self.names[-1], self._head)}")

    def close(self) -> None:
        """Close what is open."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _growing(self) -> Path:
        return self._folder / f"{len(self.names):06d}{_GROWING}"


def _suffix(name: str, head: bytes) -> str:
    if zip_directory.is_zip(name, head):
        return _ZIP
    return next((suffix for suffix in _VOLUMES if name.lower().endswith(suffix)), _SLICE)


class Form:
    """A multipart body (RFC 7578) whose parts of the field `files` become files."""

    def __init__(self, boundary: bytes, files: Files) -> None:
        """Raises `Refusal` for a boundary that cannot be one."""
        self._files, self.ended = files, False
        self._field, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}
        callbacks = {
            "on_part_begin": self._headers.clear,
            "on_header_field": self._take_field,
            "on_header_value": self._take_value,
            "on_header_end": self._header_ends,
            "on_headers_finished": self._begin,
            "on_part_data": lambda data, start, end: files.write(data[start:end]),
            "on_part_end": files.end,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks, max_header_size=_MOST_HEADER_BYTES)  # type: ignore[arg-type]
        except FormParserError as error:
            raise Refusal(400, "the boundary of the multipart body cannot be one") from error

    def write(self, data: bytes) -> None:
        """Take the next octets. Raises `Refusal` where they are no multipart body."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise Refusal(
                400, "the body is no multipart form as RFC 7578 says; use a library that makes one"
            ) from error

    def _take_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _take_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field, self._value = b"", b""

    def _begin(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"filename", b"").decode(errors="replace")
        # a browser sends an empty file for a form without one
        if options.get(b"name") == FIELD and name and not re.search(HIDDEN, name):
            self._files.begin(name)

    def _end(self) -> None:
        self.ended = True


async def receive(request: Request, folder: Path, most_bytes: int) -> list[str]:
    """The names of the files of a request, which lie in `folder` then. Raises `Refusal`; some may lie there even so.

    The body is a multipart form with a field `files`, or one zip archive.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    _require_room(request, folder, most_bytes)
    files = Files(folder)
    try:
        if kind == b"multipart/form-data":
            form = Form(options.get(b"boundary", b""), files)
            await _write(request, form, most_bytes)
            if not form.ended:
                raise Refusal(400, "the body ends before its last boundary; send it again")
        elif kind == b"application/zip":
            files.begin("upload.zip")
            await _write(request, files, most_bytes)
            files.end()
        else:
            raise Refusal(400, "send multipart/form-data with a field called files, or application/zip")
    finally:
        files.close()
    if not files.names:
        raise Refusal(400, "no file in the field called files; a hidden one (.name) is not taken")
    return files.names


async def _write(request: Request, sink: Form | Files, most_bytes: int) -> None:
    got_bytes = 0
    async for data in paced(request):
        got_bytes += len(data)
        if got_bytes > most_bytes:
            raise _too_large(most_bytes)
        await run_in_threadpool(sink.write, data)


async def paced(request: Request) -> AsyncIterator[bytes]:
    """The pieces of a body. Raises `Refusal` where they come too slowly, or not to their end."""
    begin, got_bytes = time.monotonic(), 0
    pieces = request.stream()
    while True:
        left_s = PATIENCE_S + got_bytes / LEAST_BYTES_S - (time.monotonic() - begin)
        try:
            data = await asyncio.wait_for(anext(pieces), max(0.0, left_s))
        except StopAsyncIteration:
            return
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise Refusal(408, f"the body comes at less than {LEAST_BYTES_S:,.0f} bytes a second; try again") from error
        except ClientDisconnect as error:
            raise Refusal(400, "the connection ended inside the body") from error
        got_bytes += len(data)
        yield data


def _require_room(request: Request, folder: Path, most_bytes: int) -> None:
    length = request.headers.get("content-length", "")
    announced = int(length) if length.isascii() and length.isdecimal() and len(length) < 20 else 0
    if announced > most_bytes:
        raise _too_large(most_bytes)
    found = os.statvfs(folder)
    if found.f_bavail * found.f_frsize - announced < LEAST_FREE_BYTES:
        raise no_room()


def _too_large(most_bytes: int) -> Refusal:
    return Refusal(413, f"an upload may have {most_bytes:,} bytes; send fewer files, or raise --most_upload")


def no_room() -> Refusal:
    """What a sender hears where the disk has no room; it may try again."""
    return Refusal(503, "the disk of this server is full; try again later, or delete studies", RETRY_S)


def write_names(folder: Path, names: list[str]) -> None:
    """Keep what the files were called."""
    atomic.write_bytes(folder / NAMES, json.dumps(names).encode())


def read_names(folder: Path) -> list[str]:
    """What the files were called, by their numbers."""
    found: list[str] = json.loads((folder / NAMES).read_bytes())
    return found


def title(names: list[str]) -> str:
    """What an upload is called: its file, the folder of all its files, or how many there are."""
    if len(names) == 1:
        return names[0]
    tops = {name.replace("\\", "/").partition("/")[0] for name in names if "/" in name.replace("\\", "/")}
    inside = all("/" in name.replace("\\", "/") for name in names)
    return f"{tops.pop()} ({len(names):,} files)" if inside and len(tops) == 1 else f"{len(names):,} files"
