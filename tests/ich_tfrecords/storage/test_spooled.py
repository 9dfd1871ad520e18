"""The bytes of one row as an open file: from folders, zips and buckets, whole or with the reason of `SliceReader`."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ich_tfrecords.storage import sources, spooled
from ich_tfrecords.storage.sources import SliceRef, UnreadableSource

DATA = np.random.default_rng(0).integers(0, 16, 300_000, np.uint8).tobytes()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(spooled, "_BLOCK_BYTES", 10_007)


def listed(place: object) -> SliceRef:
    (row,) = sources.refs(sources.list_inputs([str(place)]).table)
    return row


def zipped(folder: Path, method: int, data: bytes = DATA) -> SliceRef:
    with zipfile.ZipFile(folder / "a.zip", "w", method) as archive:
        archive.writestr("ä/v.nii", data)
    return listed(folder / "a.zip")


def plain(folder: Path) -> SliceRef:
    (folder / "v.nii").write_bytes(DATA)
    return listed(folder / "v.nii")


def reason(row: SliceRef) -> str:
    with pytest.raises(UnreadableSource) as problem:
        spooled.opened(row)
    return problem.value.reason


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, None])
def test_all_bytes_from_a_file_or_a_member(tmp_path, method):
    row = plain(tmp_path) if method is None else zipped(tmp_path, method)
    with spooled.opened(row) as file:
        assert file.read() == DATA
        assert file.seek(5) == 5
        assert file.fileno() >= 0


@pytest.mark.parametrize("kind", ["object", zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_all_bytes_from_a_bucket(gcs, tmp_path, kind):
    name = gcs.bucket()
    if kind == "object":
        gcs.client().bucket(name).blob("in/v.nii").upload_from_string(DATA)
    else:
        zipped(tmp_path, kind)
        gcs.client().bucket(name).blob("in/a.zip").upload_from_filename(tmp_path / "a.zip")
    place = f"gs://{name}/in/" + ("v.nii" if kind == "object" else "a.zip")
    with spooled.opened(listed(place)) as file:
        assert file.read() == DATA


@pytest.mark.slow
def test_an_object_that_is_not_what_the_listing_says(gcs):
    name = gcs.bucket()
    blob = gcs.client().bucket(name).blob("in/v.nii")
    blob.upload_from_string(DATA)
    row = listed(f"gs://{name}/in/v.nii")
    assert reason(row._replace(crc32=row.crc32 ^ 1)) == "crc_mismatch"
    blob.upload_from_string(DATA[::-1])
    assert reason(row) == "changed"
    blob.delete()
    assert reason(row) == "changed"


def test_a_file_that_changed(tmp_path):
    row = plain(tmp_path)
    os.utime(tmp_path / "v.nii", ns=(1, 1))
    assert reason(row) == "changed"
    (tmp_path / "v.nii").unlink()
    assert reason(row) == "unreadable_file"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member(tmp_path, method):
    row = zipped(tmp_path, method)
    assert reason(row._replace(crc32=row.crc32 ^ 1)) == "crc_mismatch"
    assert reason(row._replace(size_bytes=row.size_bytes + 1)) == "size_mismatch"
    assert reason(row._replace(size_bytes=row.size_bytes - 1)) == "size_mismatch"
    assert reason(row._replace(offset=1)) == "bad_local_header"
    assert reason(row._replace(name="other")) == "changed"
    if method == zipfile.ZIP_DEFLATED:
        assert reason(row._replace(stored_bytes=row.stored_bytes - 9)) == "inflate_failed"


def test_a_member_that_holds_more_than_it_says_is_not_unpacked_to_its_end(tmp_path, monkeypatch):
    written = []
    row = zipped(tmp_path, zipfile.ZIP_DEFLATED, bytes(50_000_000))
    monkeypatch.setattr(spooled, "_extended", lambda crc, block: written.append(len(block)) or 0)
    assert reason(row._replace(size_bytes=30_000)) == "size_mismatch"
    assert sum(written) <= 30_000


def test_a_file_beyond_the_cap_is_not_opened(tmp_path, monkeypatch):
    row = plain(tmp_path)
    monkeypatch.setattr(spooled, "MAX_FILE_BYTES", row.size_bytes - 1)
    assert reason(row) == "too_large"
