"""The file beside a shard that makes it count as done: what the writer tells of it, and of which plan it is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """What the writer of a shard tells about it.

    `labels`: positives by label. `rows`, `offsets`, `digests`: for each record the row of the plan it came
    from, its first byte, and its pixel digest in hexadecimal. `rejects`: row, reason and detail; the row is the number
    of a file as `PlannedShard` counts them.
    """

    name: str
    split: str
    stratum: str
    slices: int
    bytes: int
    sha256: str
    crc32c: str
    labels: dict[str, int]
    rows: list[int]
    offsets: list[int]
    digests: list[str]
    rejects: list[dict[str, Any]]


_KEYS = tuple(field.name for field in dataclasses.fields(Sidecar))


def as_bytes(sidecar: Sidecar, plan_sha256: str) -> bytes:
    """The file's content: the sha256 of what follows, a newline, the sidecar as JSON with the digest of its plan."""
    data = json.dumps({"plan_sha256": plan_sha256, **dataclasses.asdict(sidecar)}).encode()
    return hashlib.sha256(data).hexdigest().encode() + b"\n" + data


def parse(content: bytes | None) -> tuple[Sidecar, str] | None:
    """The sidecar and the digest of its plan; None for no file or a damaged one."""
    sha256, _, data = (content or b"").partition(b"\n")
    if hashlib.sha256(data).hexdigest().encode() != sha256:
        return None
    try:
        facts = json.loads(data)
        return Sidecar(**{key: facts[key] for key in _KEYS}), facts["plan_sha256"]
    except (ValueError, KeyError, TypeError):  # a damaged one is as good as none
        return None
