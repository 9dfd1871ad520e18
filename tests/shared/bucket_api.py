"""The JSON API of Cloud Storage without a socket: gcp-storage-emulator, and what it lacks.

The emulator keeps the buckets and carries out every write. Added here, as the JSON API reference has it: listings in
pages sorted by name (UTF-8 bytes), `fields`, preconditions, `generation`, ranges (suffix, and 416), the headers of a
download, error bodies, uploads whose bytes survive (the emulator hands a multipart body to the email package, which
loses line ends) and resumable uploads that a client may continue after a lost answer. Left as the emulator has it:
batch requests (no preconditions there), ACLs, compose, the XML API, a copy's metadata (always the source's). Versions
and soft delete are refused.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import urllib.parse
from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace
from typing import Any

from bucket_listing import only, page
from bucket_requests import Answer, Headers, Refused, Request, error, json_answer, parse
from gcp_storage_emulator.server import Router  # type: ignore[import-untyped]
from gcp_storage_emulator.storage import Storage  # type: ignore[import-untyped]

_REFUSED = ("versions", "softDeleted", "includeFoldersAsPrefixes", "includeTrailingDelimiter")


class _Memory(Storage):
    """The emulator's storage, quick with many objects and exact in their names."""

    def __init__(self) -> None:
        super().__init__(use_memory_fs=True)

    def _write_config_to_file(self) -> None:
        """Nothing: the emulator would dump every bucket as JSON at every write, though nobody reads it back."""

    def _object_path(self, bucket_name: str, file_name: str) -> str:
        """A path of its own for each name; as folders a//b would be a/b."""
        return f"{bucket_name}/name-{urllib.parse.quote(file_name, safe='')}"

    def create_bucket(self, bucket_name: str, bucket_obj: dict[str, Any]) -> Any:
        return super().create_bucket(bucket_name, bucket_obj | {"softDeletePolicy": {"retentionDurationSeconds": "0"}})

    def create_file(
        self, bucket: str, name: str, content: bytes, resource: dict[str, Any], file_id: Any = None
    ) -> None:
        # the emulator counts the metadata of an upload as a change, and the size of a composed object is a number
        resource |= {"metageneration": "1", "size": str(resource["size"])}
        super().create_file(bucket, name, content, resource, file_id)


class _Call:
    """What the emulator's router takes for a request handler."""

    def __init__(self, storage: Any, target: str, headers: Headers, body: bytes) -> None:
        self.storage, self.path, self.headers = storage, target, Headers(headers)
        self.headers["content-length"] = str(len(body))
        self.rfile, self.wfile = BytesIO(body), BytesIO()
        self.server = SimpleNamespace(server_address=("127.0.0.1", 0))
        self.status, self.sent = 0, dict[str, str]()

    def send_response(self, status: int, _phrase: str) -> None:
        self.status = status

    def send_header(self, name: str, value: str) -> None:
        self.sent[name] = value

    def end_headers(self) -> None:
        self.sent.pop("Content-Length")  # the one who sends the answer counts


class Api:
    """`answer(parse(...))`: one request at a time, so a precondition and its write are one step."""

    def __init__(self) -> None:
        for name in ("gcp_storage_emulator", "api.object", "api.bucket"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._storage = _Memory()
        self.rewrite_calls = 1
        self._finished: dict[str, Answer] = {}
        self._one_at_a_time = threading.Lock()
        self._handlers = {
            "list": self._list,
            "get": self._get,
            "media": self._media,
            "upload": self._upload,
            "start": self._start,
            "chunk": self._chunk,
            "delete": self._delete,
            "patch": self._patch,
            "copy": self._copy,
            "rewrite": self._rewrite,
        }

    def parse(self, method: str, target: str, headers: Headers, body: bytes) -> Request:
        request = parse(method, target, headers, body)
        if request.kind != "chunk":
            return request
        return replace(request, name=self._storage.resumable.get(request.query["upload_id"], {}).get("name", ""))

    def answer(self, request: Request) -> Answer:
        with self._one_at_a_time:
            try:
                return self._handlers.get(request.kind, self._plain)(request)
            except Refused as refusal:
                return refusal.answer

    def _emulator(self, method: str, target: str, headers: Headers, body: bytes = b"") -> Answer:
        call = _Call(self._storage, target, headers, body)
        Router(call).handle(method)
        return Answer(call.status, call.sent, call.wfile.getvalue())

    def _plain(self, request: Request) -> Answer:
        answer = self._emulator(request.method, request.target, request.headers, request.body)
        if answer.status >= 400 and not answer.body:
            return error(answer.status, f"{request.method} {request.target}: {answer.status} from the emulator")
        return answer

    def _live(self, bucket: str, name: str) -> dict[str, Any] | None:
        return self._storage.objects.get(bucket, {}).get(name)

    def _found(self, bucket: str, name: str, generation: str | None) -> dict[str, Any]:
        live = self._live(bucket, name)
        if live is None or generation not in (None, live["generation"]):
            raise Refused(404, f"No such object: {bucket}/{name}" + (f"#{generation}" if generation else ""))
        return live

    def _get(self, request: Request) -> Answer:
        live = self._found(request.bucket, request.name, request.query.get("generation"))
        _check(request.query, live, unchanged=304)
        return json_answer(only(live, request.query.get("fields")))

    def _media(self, request: Request) -> Answer:
        live = self._found(request.bucket, request.name, request.query.get("generation"))
        _check(request.query, live, unchanged=304)
        asked = _whole_range(request.headers.get("range"), int(live["size"]))
        headers = Headers({"range": asked} if asked else {})
        answer = self._emulator("GET", request.target, headers)
        return replace(answer, headers=answer.headers | _download_headers(live))

    def _delete(self, request: Request) -> Answer:
        live = self._found(request.bucket, request.name, request.query.get("generation"))
        _check(request.query, live)
        self._plain(request)
        return Answer(204)

    def _patch(self, request: Request) -> Answer:
        live = self._found(request.bucket, request.name, request.query.get("generation"))
        _check(request.query, live)
        return self._plain(request)

    def _copy(self, request: Request) -> Answer:
        source = self._found(*request.source, request.query.get("sourceGeneration"))
        _check(request.query, source, "ifSource")
        _check(request.query, self._live(request.bucket, request.name))
        return self._plain(request)

    def _rewrite(self, request: Request) -> Answer:
        """A copy in `rewrite_calls` calls; the token is the number of the call it is for."""
        call = int(request.query.get("rewriteToken", "1"))
        if call >= self.rewrite_calls:
            return self._copy(request)
        source = self._found(*request.source, request.query.get("sourceGeneration"))
        done = int(source["size"]) * call // self.rewrite_calls
        sizes = {"objectSize": source["size"], "totalBytesRewritten": str(done)}
        return json_answer({"kind": "storage#rewriteResponse", **sizes, "done": False, "rewriteToken": str(call + 1)})

    def _start(self, request: Request) -> Answer:
        _check(request.query, self._live(request.bucket, request.name))
        return self._plain(request)

    def _upload(self, request: Request) -> Answer:
        """A whole upload carried out as a resumable one, which the emulator takes byte for byte."""
        _check(request.query, self._live(request.bucket, request.name))
        path = f"/upload/storage/v1/b/{request.bucket}/o"
        target = f"{path}?uploadType=resumable&name={urllib.parse.quote(request.name, safe='')}"
        headers = Headers({"content-type": "application/json", "host": request.headers.get("host", "")})
        begun = self._emulator("POST", target, headers, json.dumps(request.meta).encode())
        if begun.status != 200:
            return error(begun.status, f"{path}: {begun.status} from the emulator")
        upload = begun.headers["Location"].partition("upload_id=")[2]
        size = len(request.body)
        headers["content-range"] = f"bytes 0-{size - 1}/{size}" if size else "bytes */0"
        headers["content-type"] = "application/octet-stream"
        done = self._emulator("PUT", f"{target}&upload_id={upload}", headers, request.body)
        if done.status != 200:  # its bytes do not match the crc32c or the MD5 that came with them
            self._storage.delete_resumable_file_obj(urllib.parse.unquote_plus(upload))
        return done

    def _chunk(self, request: Request) -> Answer:
        """The next piece of a resumable upload; pieces that are there already are passed over."""
        upload = request.query["upload_id"]
        if upload in self._finished:
            return self._finished[upload]
        if upload not in self._storage.resumable:
            raise Refused(404, f"No such upload: {upload}")
        _check(request.query, self._live(request.bucket, request.name))
        received = self._storage.get_resumable_byte_count(upload)
        headers, body = _unseen(request.headers, request.body, received)
        answer = self._emulator("PUT", request.target, headers, body)
        if answer.status == 200:
            self._finished[upload] = answer
        if answer.status == 308 and not self._storage.get_resumable_byte_count(upload):
            return replace(answer, headers={})  # no Range is how nothing received is said
        return answer

    def _list(self, request: Request) -> Answer:
        query = request.query
        wrong = [name for name in _REFUSED if query.get(name, "").lower() == "true"]
        if wrong:
            raise Refused(501, f"{wrong[0]}=true: not in this test server")
        if request.bucket not in self._storage.buckets:
            raise Refused(404, f"The specified bucket does not exist: {request.bucket}")
        shown = page(self._within(request.bucket, query), query)
        entries = len(shown.get("items", [])) + len(shown.get("prefixes", []))
        return replace(json_answer(only(shown, query.get("fields"))), entries=entries)

    def _within(self, bucket: str, query: dict[str, str]) -> list[dict[str, Any]]:
        """Objects with the prefix within the offsets; the emulator would sort them all for every page."""
        prefix, glob = query.get("prefix", ""), query.get("matchGlob")
        start, end = query.get("startOffset", ""), query.get("endOffset", "")
        if glob is None:
            found = self._storage.objects.get(bucket, {}).values()
        else:
            found, _ = self._storage.get_file_list(bucket, None, None, glob)
        # code points sort as UTF-8 does
        return [
            item for item in found
            if start <= item["name"] and item["name"].startswith(prefix) and (not end or item["name"] < end)
        ]  # fmt: skip


def _check(query: dict[str, str], live: dict[str, Any] | None, prefix: str = "if", unchanged: int = 412) -> None:
    """Refuses with 412 (`unchanged` for a NotMatch) what a precondition forbids; generation 0 is no object."""
    for number in ("generation", "metageneration"):
        now = str(live[number]) if live else "0"
        name = f"{prefix}{number.capitalize()}"
        if query.get(f"{name}Match", now) != now:
            raise Refused(412, f"{name}Match={query[f'{name}Match']}: it is {now}")
        if query.get(f"{name}NotMatch") == now:
            raise Refused(unchanged, f"{name}NotMatch={now}: it is {now}")


def _whole_range(asked: str | None, size: int) -> str | None:
    """A range with both ends for one that may lack either, None for the whole object; 416 past the end."""
    match = re.fullmatch(r"\s*bytes=(\d*)-(\d*)\s*", asked or "")
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(int(last), size - 1) if first and last else size - 1
    if start >= size:
        raise Refused(416, f"Range {asked} cannot be satisfied of {size} bytes", Content_Range=f"bytes */{size}")
    return f"bytes={start}-{end}"


def _download_headers(live: dict[str, Any]) -> dict[str, str]:
    return {
        "X-Goog-Hash": f"crc32c={live['crc32c']},md5={live['md5Hash']}",
        "X-Goog-Generation": live["generation"],
        "X-Goog-Metageneration": live["metageneration"],
        "X-Goog-Storage-Class": live["storageClass"],
        "X-Goog-Stored-Content-Encoding": "identity",
        "X-Goog-Stored-Content-Length": live["size"],
        "ETag": live["etag"],
    }


def _unseen(headers: Headers, body: bytes, received: int) -> tuple[Headers, bytes]:
    """A chunk less the bytes that an earlier request brought, whose answer the client did not see."""
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("content-range", ""))
    if match is None or int(match[1]) >= received:
        return headers, body
    rest = body[received - int(match[1]) :]
    sent = f"{received}-{match[2]}" if rest else "*"
    return Headers(headers | {"content-range": f"bytes {sent}/{match[3]}"}), rest
