"""A file that Keras saved, made the same whenever and wherever the same weights are saved."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path


def without_chance(path: Path) -> None:
    """Write a model file anew without what differs between writings, so that the same weights have the same digest.

    Those are dates, and addresses in memory by which Keras knows objects that several layers share.
    """
    as_saved = path.with_name(f"saved-{path.name}")
    path.rename(as_saved)
    with zipfile.ZipFile(as_saved) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.infolist():
            data = old.read(member)
            if member.filename == _METADATA:
                data = json.dumps({**json.loads(data), "date_saved": _NO_DATE}).encode()
            elif member.filename == _CONFIG:
                data = _numbered(data)
            plain = zipfile.ZipInfo(member.filename)  # its date is the first that a zip can hold
            plain.compress_type, plain.external_attr = member.compress_type, member.external_attr
            new.writestr(plain, data)
    as_saved.unlink()


_METADATA, _CONFIG, _NO_DATE = "metadata.json", "config.json", "1980-01-01@00:00:00"
_SHARED = re.compile(rb'("shared_object_id": )(\d+)')


def _numbered(config: bytes) -> bytes:
    """The config of a model whose shared objects are numbered 1, 2, ... as they are met."""
    numbers: dict[bytes, int] = {}
    return _SHARED.sub(lambda found: found[1] + b"%d" % numbers.setdefault(found[2], len(numbers) + 1), config)
