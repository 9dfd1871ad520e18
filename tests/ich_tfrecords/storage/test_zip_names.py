"""Names of zip members as programs really write them."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords.storage import zip_names

TIME = struct.pack("<2HBI", 0x5455, 5, 1, 0)  # Info-ZIP's extended timestamp


def unicode_path(raw: bytes, text: str, version: int = 1) -> bytes:
    field = struct.pack("<BI", version, zlib.crc32(raw)) + text.encode()
    return struct.pack("<2H", 0x7075, len(field)) + field


@pytest.mark.parametrize(
    ("raw", "extra", "name"),
    [
        (b"a/IM1.dcm", b"", "a/IM1.dcm"),
        (b"a/IM1.dcm", TIME, "a/IM1.dcm"),
        ("Müller/b0.dcm".encode(), b"", "Müller/b0.dcm"),  # flagged, or macOS, which sets no flag
        ("Mu\u0308ller/b0.dcm".encode(), b"", "Mu\u0308ller/b0.dcm"),  # as it is stored; compared in NFC
        ("Müller/b0.dcm".encode("cp437"), b"", "Müller/b0.dcm"),  # Windows; 850 has ä ö ü ß in these places too
        (b"pat\\s1\\IM1.dcm", b"", "pat/s1/IM1.dcm"),  # .NET before 4.6.1
        ("Müller\\IM1".encode("cp437"), b"", "Müller/IM1"),
        (b"M?ller.dcm", TIME + unicode_path(b"M?ller.dcm", "Müller.dcm"), "Müller.dcm"),
        ("Мозг.dcm".encode("cp866"), unicode_path("Мозг.dcm".encode("cp866"), "Мозг.dcm"), "Мозг.dcm"),
        (b"new.dcm", unicode_path(b"old.dcm", "Müller.dcm"), "new.dcm"),  # renamed by a program without the field
        (b"new.dcm", unicode_path(b"new.dcm", "Müller.dcm", version=2), "new.dcm"),
        (b"new.dcm", unicode_path(b"new.dcm", "Müller.dcm")[:7], "new.dcm"),
    ],
)
def test_name(raw, extra, name):
    assert zip_names.name(raw, extra) == name


@given(st.binary(), st.binary())
def test_every_name_has_a_text(raw, extra):
    name = zip_names.name(raw, extra)
    assert name.encode().decode() == name
    assert "\\" not in name


@given(st.lists(st.text(st.characters(codec="ascii")).map(str.encode) | st.binary(), max_size=4), st.binary())
def test_plain_names_are_their_own_text(names, tail):
    if zip_names.are_plain(names, b"".join(names) + tail):
        assert [zip_names.name(name, tail).encode() for name in names] == names
