"""Slices in memory: few uploads open, few bytes kept, many threads."""

from __future__ import annotations

import io
import sys
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from web_server import slice_bytes, zip_bytes

from ich_tfrecords.dicom import ct_slice
from trainer.web import slices
from trainer.web.slices import Slices

ORIGINAL = ("original",)


@pytest.fixture
def upload(server):
    """upload(*uids) -> its entry, with slices of 16x16 in an archive."""

    def send(*uids: str):
        return server.spool.entry(server.send({"a.zip": zip_bytes({uid: slice_bytes(uid) for uid in uids})}))

    return send


def octets(kept: Slices, entry, n: int) -> bytes:
    return kept.octets(entry.id, kept.opened(entry), n)


def test_no_more_uploads_are_open_than_the_cap(upload, monkeypatch):
    monkeypatch.setattr(slices, "MOST_OPEN", 2)
    entries, kept = [upload(f"1.2.{n}") for n in range(5)], Slices(ORIGINAL)
    before = _open_files()
    for entry in entries:
        octets(kept, entry, 0)
    assert _open_files() == before + 2
    kept.forget(entries[-1].id)
    kept.forget("0" * 32)
    assert _open_files() == before + 1


def _open_files() -> int:
    if not sys.platform.startswith("linux"):
        pytest.skip("counts files in /proc")
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_who_holds_an_upload_that_was_closed_reads_on(upload, monkeypatch):
    monkeypatch.setattr(slices, "MOST_OPEN", 1)
    one, other, kept = upload("1.2.1"), upload("1.2.2"), Slices(ORIGINAL)
    opened = kept.opened(one)
    octets(kept, other, 0)
    before = _open_files()
    np.testing.assert_array_equal(opened.hu(0), ct_slice.read_slice(slice_bytes("1.2.1")).hu)
    assert [size.rows for size in opened.sizes()] == [16]
    assert _open_files() == before


def test_no_more_bytes_are_kept_than_the_cap(upload, monkeypatch):
    size = 2 * 16 * 16
    monkeypatch.setattr(slices, "MOST_BYTES", 3 * size)
    entry, kept, decoded = upload(*(f"1.2.{n}" for n in range(6))), Slices(ORIGINAL), []
    own = slices.Opened.hu
    monkeypatch.setattr(slices.Opened, "hu", lambda opened, n: decoded.append(n) or own(opened, n))
    for n in (0, 1, 2, 0, 3, 0, 1):  # 0 is asked for again and again, and stays
        assert len(octets(kept, entry, n)) == size
    assert decoded == [0, 1, 2, 3, 1]
    assert kept._kept_bytes == sum(map(len, kept._kept.values())) <= 3 * size
    kept.forget(entry.id)
    assert kept._kept_bytes == len(kept._kept) == 0


def test_threads_get_their_own_slices(upload):
    entry, kept = upload(*(f"1.2.{n}" for n in range(8))), Slices(ORIGINAL)
    expected = {ct_slice.read_slice(slice_bytes(f"1.2.{n}")).hu.tobytes() for n in range(8)}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: (n % 8, octets(kept, entry, n % 8)), range(200)))
    assert set(dict(found).values()) == expected
    assert len(set(found)) == 8


def test_members_of_one_name_are_told_apart_by_their_ids(server):
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
        warnings.simplefilter("ignore")  # of the name that comes twice
        archive.writestr("same", slice_bytes("1.2.1", z_mm=0.0))
        archive.writestr("same", slice_bytes("1.2.2", z_mm=5.0))
    upload = server.send({"a.zip": out.getvalue()})
    for n, uid in enumerate(("1.2.1", "1.2.2")):
        data = server.client.get(f"/api/studies/{upload}/slices/{n}").content
        assert data == ct_slice.read_slice(slice_bytes(uid)).hu.tobytes()
