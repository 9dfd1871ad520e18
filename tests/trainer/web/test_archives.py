"""Archives among uploads: bombs end at the cap, before anything is unpacked."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from web_server import slice_bytes, zip_bytes

from trainer.web import archives
from trainer.web.limits import UNPACKED
from trainer.web.refusal import Refusal
from trainer.worklist.spool import Entry

CAP = 10_000


def put(folder: Path, *files: bytes) -> tuple[Entry, list[str]]:
    """An upload of these files, and what they were called."""
    entry = Entry(folder / ("0" * 32))
    entry.begin()
    for number, data in enumerate(files):
        suffix = ".zip" if data.startswith(b"PK") else ".dcm"
        (entry.files / f"{number:06d}{suffix}").write_bytes(data)
    return entry, [f"sent {number}" for number in range(len(files))]


def bomb(members: int, size_bytes: int) -> bytes:
    """An archive whose members all hold zeros, each a thousandth of what it unpacks to."""
    return zip_bytes({f"{n}.dcm": bytes(size_bytes) for n in range(members)})


def lying(size_bytes: int) -> bytes:
    """An archive whose directory says that its member has so many bytes."""
    data = bytearray(zip_bytes({"1.dcm": bytes(10)}))
    at = data.rfind(b"PK\x01\x02")
    struct.pack_into("<I", data, at + 24, size_bytes)
    return bytes(data)


@pytest.mark.parametrize(
    "files",
    [
        (bomb(1, UNPACKED * CAP + 1),),
        (bomb(10, UNPACKED * CAP // 9),),
        (lying(0xFFFFFFF0),),
        (bomb(1, UNPACKED * CAP // 2 + 1), slice_bytes("1.2"), bomb(1, UNPACKED * CAP // 2 + 1)),
    ],
)
def test_a_bomb_is_refused(tmp_path, files, monkeypatch):
    monkeypatch.setattr(zlib, "decompressobj", None)  # nothing is unpacked to find out
    with pytest.raises(Refusal) as found:
        archives.require_readable(*put(tmp_path, *files), CAP)
    assert found.value.status == 413
    assert f"{UNPACKED * CAP:,} bytes" in found.value.text


def test_too_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_FILES", 5)
    with pytest.raises(Refusal) as found:
        archives.require_readable(*put(tmp_path, bomb(3, 1), bomb(3, 1)), CAP)
    assert found.value.status == 413


def test_at_the_cap_it_is_taken(tmp_path):
    archives.require_readable(*put(tmp_path, bomb(1, UNPACKED * CAP)), CAP)


def test_members_that_overlap_are_refused_under_the_name_they_were_sent_as(tmp_path):
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr("a.dcm", bytes(1000))
        archive.writestr("b.dcm", bytes(1000))
        archive.getinfo("b.dcm").header_offset = 0
    entry, names = put(tmp_path, slice_bytes("1.2"), (tmp_path / "z").read_bytes())
    with pytest.raises(Refusal) as found:
        archives.require_readable(entry, names, CAP)
    assert found.value.status == 400
    assert found.value.text.startswith("sent 1: ")
    assert str(tmp_path) not in found.value.text


def test_without_archives_nothing_is_looked_at(tmp_path):
    archives.require_readable(*put(tmp_path, b"", b"no slice"), CAP)
