"""A request to Cloud Storage's JSON API as it is understood, and an answer; no socket, no bucket."""

from __future__ import annotations

import json
import re
import urllib.parse
from dataclasses import dataclass, field, replace
from typing import Any

_PATH = re.compile(
    r"(?:/(?P<area>upload|download))?(?:/storage/v1)?/b(?:/(?P<bucket>[^/]+)(?P<objects>/o(?:/(?P<name>.+?)"
    r"(?:/(?P<verb>copyTo|rewriteTo)/b/(?P<to_bucket>[^/]+)/o/(?P<to_name>.+)|/(?P<sub>compose|restore|acl))?)?)?)?"
)
_UPLOADS = {"media": "upload", "multipart": "upload", "resumable": "start"}
_REASONS = {404: "notFound", 412: "conditionNotMet", 416: "requestedRangeNotSatisfiable", 429: "rateLimitExceeded"}


class Headers(dict[str, str]):
    """Headers under lower-case names; `get` takes any case, as the emulator asks."""

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(key.lower(), default)


@dataclass(frozen=True)
class Answer:
    """`entries` is how many objects and prefixes a page of a listing has."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    entries: int | None = None


@dataclass(frozen=True)
class Request:
    """`kind` is list, get, media, upload (media or multipart), start and chunk (resumable), delete, patch, copy,
    rewrite, bucket, batch or other; `name` the object (of a copy the destination), "" where there is none."""

    method: str
    target: str
    headers: Headers
    body: bytes
    kind: str
    bucket: str
    name: str
    query: dict[str, str]
    source: tuple[str, str] = ("", "")
    meta: dict[str, Any] = field(default_factory=dict)


class Refused(Exception):
    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.answer = error(status, message, **headers)


def error(status: int, message: str, **headers: str) -> Answer:
    """An error as the JSON API words it; 304 has no body."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if status == 304:
        return Answer(status, headers)
    one = {"message": message, "domain": "global", "reason": _REASONS.get(status, "backendError")}
    return json_answer({"error": {"code": status, "message": message, "errors": [one]}}, status, headers)


def json_answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    kind = {"Content-Type": "application/json; charset=UTF-8"}
    return Answer(status, kind | (headers or {}), json.dumps(content).encode())


def parse(method: str, target: str, headers: Headers, body: bytes) -> Request:
    """The request; of a whole upload `body` is the object's bytes alone, of a chunk the name is not known here."""
    path, _, query_text = target.partition("?")
    query = dict(urllib.parse.parse_qsl(query_text, keep_blank_values=True))
    match = _PATH.fullmatch(path)
    parts = {key: urllib.parse.unquote(value or "") for key, value in match.groupdict().items()} if match else {}
    kind = _kind(method, parts, query) if parts else "batch" if path.startswith("/batch/") else "other"
    bucket, name = parts.get("bucket", ""), parts.get("name", "")
    request = Request(method, target, headers, body, kind, bucket, name, query)
    if kind in ("copy", "rewrite"):
        return replace(request, bucket=parts["to_bucket"], name=parts["to_name"], source=(bucket, name))
    return _with_metadata(request) if kind in ("upload", "start") else request


def _kind(method: str, parts: dict[str, str], query: dict[str, str]) -> str:
    if parts["verb"]:
        return parts["verb"].removesuffix("To")
    if parts["sub"]:
        return "other"
    if parts["name"]:
        media = query.get("alt") == "media" or parts["area"] == "download"
        return {"GET": "media" if media else "get", "DELETE": "delete", "PATCH": "patch"}.get(method, "other")
    if not parts["objects"]:
        return "bucket"
    if "upload_id" in query:
        return "chunk"
    return "list" if method == "GET" else _UPLOADS.get(query.get("uploadType", ""), "other")


def _with_metadata(request: Request) -> Request:
    """The upload with its metadata as `meta`, its name, and (not of a resumable start) the bare bytes as `body`."""
    meta, body, content_type = {}, request.body, request.headers.get("content-type", "application/octet-stream")
    if request.kind == "start":
        meta = json.loads(body or b"{}")
    elif request.query["uploadType"] == "multipart":
        meta, body, content_type = multipart(content_type, body)
    if request.kind == "upload":
        meta = {"contentType": content_type} | meta
    return replace(request, meta=meta, body=body, name=request.query.get("name") or meta.get("name", ""))


def multipart(content_type: str, body: bytes) -> tuple[dict[str, Any], bytes, str]:
    """Metadata, bytes and their content type of a multipart/related upload (RFC 2387)."""
    found = re.search(r'boundary="?([^";]+)', content_type)
    mark = b"--" + (found.group(1) if found else "").encode()
    newline = b"\r\n" if body.startswith(mark + b"\r\n") else b"\n"
    # the content may hold anything, so its end is sought from the end
    whole, _, _ = body.removeprefix(mark + newline).rpartition(newline + mark + b"--")
    first, _, second = whole.partition(newline + mark + newline)
    head, _, media = second.partition(newline * 2)
    kind = re.search(rb"(?im)^content-type:[ \t]*([^\r\n]+)", head)
    meta = json.loads(first.partition(newline * 2)[2])
    return meta, media, kind.group(1).decode() if kind else "application/octet-stream"
