"""Pages of a listing and parts of an answer, as Cloud Storage's JSON API cuts them."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Any

from bucket_requests import Refused

PAGE = 1000


def page(found: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
    """One page of a listing: objects and prefixes together in the order of their names' UTF-8 bytes."""
    entries = _entries(found, query)
    last = base64.urlsafe_b64decode(query.get("pageToken", "")).decode()
    left = sorted(name for name in entries if name > last)  # code points sort as UTF-8 does
    size = max(1, min(int(query.get("maxResults", PAGE)), PAGE))
    names = left[:size]
    items = [entries[name] for name in names if entries[name]]
    prefixes = [name for name in names if not entries[name]]
    token = base64.urlsafe_b64encode(names[-1].encode()).decode() if len(left) > size else ""
    parts = {"items": items, "prefixes": prefixes, "nextPageToken": token}
    return {"kind": "storage#objects"} | {name: part for name, part in parts.items() if part}


def _entries(found: list[dict[str, Any]], query: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Object by name; a name beyond the delimiter becomes its prefix, with nothing."""
    delimiter, skip = query.get("delimiter", ""), len(query.get("prefix", ""))
    entries: dict[str, dict[str, Any]] = {}
    for item in found:
        name = item["name"]
        at = name.find(delimiter, skip) if delimiter else -1
        entries[name if at < 0 else name[: at + len(delimiter)]] = item if at < 0 else {}
    return entries


def only(content: Any, fields: str | None) -> Any:
    """The part of an answer that `fields` names, such as `items(name,size),nextPageToken` or `items/name`."""
    if fields is None or not isinstance(content, dict | list):
        return content
    if isinstance(content, list):
        return [only(one, fields) for one in content]
    kept: dict[str, Any] = {}
    for part in _parts(fields):
        match = re.fullmatch(r"(\*|\w+)(?:/(.+)|\((.+)\))?", part)
        if match is None:
            raise Refused(400, f"Invalid field selection {part}")
        names = list(content) if match[1] == "*" else [match[1]]
        kept |= {name: only(content[name], match[2] or match[3]) for name in names if name in content}
    return kept


def _parts(fields: str) -> Iterator[str]:
    """The selections between commas outside brackets."""
    depth, part = 0, ""
    for letter in fields.replace(" ", "") + ",":
        if letter == "," and not depth:
            yield part
            part = ""
        else:
            depth += (letter == "(") - (letter == ")")
            part += letter
