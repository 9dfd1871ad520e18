"""Batches of images beside a plain loop over the files; faults, repeats, and how far ahead the thread may read."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from dicom_files import dicom_file, head_slice, slice_elements
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_tfrecords import pixels
from ich_tfrecords.dicom import ct_slice
from ich_tfrecords.spec import ImageSpec, Window, load
from ich_tfrecords.storage import sources
from trainer.prediction import slice_stream
from trainer.prediction.slice_stream import AHEAD, SeenSlices

IMAGE = ImageSpec(8, -1000, (Window("brain", 40, 80), Window("bone", 40, 380)), "none", "windows")
SPEC = dataclasses.replace(load("rsna_ich"), image=IMAGE)


def write(folder: Path, name: str, uid: str, seed: int = 0, **changes: bytes | None) -> Path:
    path = folder / name
    elements = slice_elements(head_slice(seed=seed), SOPInstanceUID=uid.encode(), **changes)
    path.write_bytes(dicom_file(elements))
    return path


def write_many(folder: Path, count: int) -> None:
    for number in range(count):
        write(folder, f"{number:03d}.dcm", f"1.2.{number}", seed=number)


def listing(*places: Path):
    return sources.list_inputs([str(place) for place in places]).table


def stream(table, batch_size: int) -> list[slice_stream.Batch]:
    with contextlib.closing(slice_stream.batches(table, SPEC, batch_size)) as batches:
        return list(batches)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_every_slice_comes_once_in_order_with_its_image(tmp_path, batch_size):
    write_many(tmp_path, 7)
    batches = stream(listing(tmp_path), batch_size)
    assert [len(batch.slices) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert [found.sop_uid for batch in batches for found in batch.slices] == [f"1.2.{n}" for n in range(7)]
    images = np.concatenate([batch.images for batch in batches])
    for number, image in enumerate(images):
        hu = ct_slice.read_slice((tmp_path / f"{number:03d}.dcm").read_bytes()).hu
        np.testing.assert_array_equal(image, pixels.image_of(hu, IMAGE))


def test_the_ids_are_those_of_the_header_without_the_patient(tmp_path):
    changes = {"StudyInstanceUID": b"1.5", "SeriesInstanceUID": b"1.6", "PatientID": b"SECRET"}
    write(tmp_path, "a.dcm", "1.2", **changes)
    ((found,), *_) = stream(listing(tmp_path), 4)[0]
    assert found[1:6] == (1, "1.2", "1.5", "1.6", 37.5)
    assert found.ref.name == "a.dcm"
    assert "SECRET" not in repr(found)


def test_broken_files_are_rejects_and_the_rest_goes_on(tmp_path):
    write_many(tmp_path, 6)
    (tmp_path / "001.dcm").write_bytes(b"no DICOM at all")
    cut = (tmp_path / "004.dcm").read_bytes()[:-100]
    (tmp_path / "004.dcm").write_bytes(cut)
    batches = stream(listing(tmp_path), 2)
    assert [[found.ref.name for found in batch.slices] for batch in batches] == [
        ["000.dcm"],
        ["002.dcm", "003.dcm"],
        ["005.dcm"],
    ]
    assert [[reject[:4] for reject in batch.rejects] for batch in batches] == [
        [(1, "001.dcm", "", "not_dicom")],
        [],
        [(1, "004.dcm", "ID_study", "truncated")],
    ]
    assert [len(batch.images) for batch in batches] == [1, 2, 1]


def test_a_batch_of_rejects_alone_is_empty(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"")
    (batch,) = stream(listing(tmp_path), 2)
    assert (batch.slices, batch.images.shape, len(batch.rejects)) == ([], (0, *IMAGE.shape), 1)


@pytest.mark.parametrize("batch_size", [1, 2, 10])
def test_of_files_with_one_sop_uid_the_first_counts(tmp_path, batch_size):
    for name, seed in (("a.dcm", 0), ("b.dcm", 1), ("c.dcm", 0), ("d.dcm", 3)):
        write(tmp_path, name, "1.2" if name in "a.dcm c.dcm d.dcm" else "1.3", seed)
    batches = stream(listing(tmp_path), batch_size)
    assert [found.ref.name for batch in batches for found in batch.slices] == ["a.dcm", "b.dcm"]
    rejects = [reject for batch in batches for reject in batch.rejects]
    assert [reject[:4] for reject in rejects] == [
        (1, "c.dcm", "ID_study", "duplicate_slice"),
        (1, "d.dcm", "ID_study", "uid_conflict"),
    ]
    told = "SOPInstanceUID 1.2 stands in an earlier file too"
    assert [reject.detail for reject in rejects] == [told, f"{told}, which is another slice and was used"]
    hu = ct_slice.read_slice((tmp_path / "b.dcm").read_bytes()).hu
    images = np.concatenate([batch.images for batch in batches])
    np.testing.assert_array_equal(images[1], pixels.image_of(hu, IMAGE))


def test_equal_names_in_two_inputs_are_told_apart_by_the_number_of_their_folder(tmp_path):
    for number, place in enumerate("ba"):
        (tmp_path / place).mkdir()
        write(tmp_path / place, "1.dcm", f"1.{number}", number)
        (tmp_path / place / "2.dcm").write_bytes(b"broken")
    (batch,) = stream(listing(tmp_path / "b", tmp_path / "a"), 9)
    assert [(found.input, found.ref.name, found.sop_uid) for found in batch.slices] == [
        (1, "1.dcm", "1.1"),
        (2, "1.dcm", "1.0"),
    ]
    assert [reject[:2] for reject in batch.rejects] == [(1, "2.dcm"), (2, "2.dcm")]


def rejected(*places: Path) -> list[slice_stream.Reject]:
    return [reject for batch in stream(listing(*places), 4) for reject in batch.rejects]


def test_the_study_of_a_reject_is_told_where_its_header_can_be_read(tmp_path):
    study = {"StudyInstanceUID": b"1.5"}
    write(tmp_path, "1_scout.dcm", "1.1", ImageType=b"ORIGINAL\\PRIMARY\\LOCALIZER", **study)
    cut = write(tmp_path, "2_cut.dcm", "1.2", **study)
    cut.write_bytes(cut.read_bytes()[:-10])
    (tmp_path / "3_broken.dcm").write_bytes(b"no DICOM at all")
    (tmp_path / "4_gone.dcm").symlink_to("nowhere")
    found = [(reject.file[0], reject.study_uid, reject.reason) for reject in rejected(tmp_path)]
    assert found == [
        ("1", "1.5", "localizer"),
        ("2", "1.5", "truncated"),
        ("3", "", "not_dicom"),
        ("4", "", "unreadable_file"),
    ]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_study_of_a_zip_member_that_fails_its_check(tmp_path, method):
    data, path = write(tmp_path, "a.dcm", "1.2").read_bytes(), tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.dcm", data)
    whole = bytearray(path.read_bytes())
    whole[whole.rindex(b"a.dcm") - 46 + 16] ^= 1  # the crc32 in the central directory
    path.write_bytes(whole)
    assert [reject[1:4] for reject in rejected(path)] == [("a.dcm", "ID_study", "crc_mismatch")]


def test_the_study_of_a_file_that_is_too_large_to_read(tmp_path):
    path = write(tmp_path, "a.dcm", "1.2")
    os.truncate(path, sources.MAX_SLICE_BYTES + 2)
    assert [reject[1:4] for reject in rejected(path)] == [("a.dcm", "ID_study", "too_large")]


def test_a_slice_without_a_patient_id_is_found(tmp_path):
    write(tmp_path, "a.dcm", "1.2", PatientID=b"")
    write(tmp_path, "b.dcm", "1.3", PatientID=None)
    assert [found.sop_uid for found in stream(listing(tmp_path), 4)[0].slices] == ["1.2", "1.3"]


def test_an_unforeseen_failure_of_the_thread_reaches_the_caller(tmp_path, monkeypatch):
    write_many(tmp_path, 10)
    read, calls = ct_slice.read_slice, []

    def failing(data, accept):
        calls.append(1)
        if len(calls) == 5:
            raise MemoryError("no room")
        return read(data, accept)

    monkeypatch.setattr(ct_slice, "read_slice", failing)
    got = []
    with pytest.raises(MemoryError, match="no room"):
        got.extend(slice_stream.batches(listing(tmp_path), SPEC, 2))
    assert no_decoding_thread()


def no_decoding_thread() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def counted_reads(monkeypatch) -> list[int]:
    """Grows by one with each slice that is decoded."""
    read, calls = ct_slice.read_slice, []

    def counting(data, accept):
        calls.append(1)
        return read(data, accept)

    monkeypatch.setattr(ct_slice, "read_slice", counting)
    return calls


def test_a_slow_consumer_is_waited_for(tmp_path, monkeypatch):
    write_many(tmp_path, 40)
    calls = counted_reads(monkeypatch)
    with contextlib.closing(slice_stream.batches(listing(tmp_path), SPEC, 2)) as batches:
        for taken, _ in enumerate(batches, 1):
            settle(calls)
            assert len(calls) <= min(40, 2 * (taken + AHEAD))


def settle(calls: list[int]) -> None:
    """Wait until the thread has nothing to do."""
    before = -1
    while before != len(calls):
        before = len(calls)
        time.sleep(0.01)


def test_the_thread_ends_when_the_consumer_stops(tmp_path, monkeypatch):
    write_many(tmp_path, 40)
    calls = counted_reads(monkeypatch)
    with contextlib.closing(slice_stream.batches(listing(tmp_path), SPEC, 2)) as batches:
        next(batches)
    assert no_decoding_thread()
    assert len(calls) <= 2 * (1 + AHEAD)


def test_a_consumer_that_fails_leaves_no_thread_behind(tmp_path):
    write_many(tmp_path, 20)

    def interrupted() -> None:
        with contextlib.closing(slice_stream.batches(listing(tmp_path), SPEC, 2)) as batches:
            next(batches)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert no_decoding_thread()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=3), st.integers(0, 2**64 - 1)), max_size=60))
def test_seen_slices_are_a_dict(slices):
    seen, known = SeenSlices(len(slices)), {}
    for uid, content in slices:
        assert seen.earlier(uid, content) == known.get(uid)
        known.setdefault(uid, content)


def test_seen_slices_take_few_bytes_each():
    seen = SeenSlices(1000)
    assert all(seen.earlier(str(number), number) is None for number in range(1000))
    assert all(seen.earlier(str(number), 0) == number for number in range(1000))
    assert sum(len(part) * part.itemsize for part in (seen._slots, seen._contents)) <= 64 * 1000


SAME = {"PatientID": b"other", "WindowCenter": b"1"}
OTHER = [
    {"StudyInstanceUID": b"9"},
    {"SeriesInstanceUID": b"9"},
    {"ImagePositionPatient": b"-125\\-120\\37.6"},
    {"RescaleSlope": b"2"},
]


@pytest.mark.parametrize(("changes", "reason"), [(SAME, "duplicate_slice"), *((one, "uid_conflict") for one in OTHER)])
def test_the_header_tells_another_slice_under_one_uid(tmp_path, changes, reason):
    write(tmp_path, "a.dcm", "1.2")
    write(tmp_path, "b.dcm", "1.2", **changes)
    assert [(one.file, one.reason) for one in rejected(tmp_path)] == [("b.dcm", reason)]


@pytest.mark.parametrize("level", [-500, 40, 2000])
def test_one_pixel_tells_another_slice_whether_a_window_shows_it_or_not(tmp_path, level):
    for number in range(2):
        stored = head_slice()
        stored[9, 9] = level + 1024 + number
        elements = slice_elements(stored, SOPInstanceUID=b"1.2")
        (tmp_path / f"{number}.dcm").write_bytes(dicom_file(elements))
    assert [one.reason for one in rejected(tmp_path)] == ["uid_conflict"]


def test_the_same_hu_stored_otherwise_are_a_copy(tmp_path):
    write(tmp_path, "a.dcm", "1.2")
    elements = slice_elements(head_slice() + np.int16(24), SOPInstanceUID=b"1.2", RescaleIntercept=b"-1048")
    (tmp_path / "b.dcm").write_bytes(dicom_file(elements))
    assert [one.reason for one in rejected(tmp_path)] == ["duplicate_slice"]


def test_the_table_of_uids_grows():
    """Files of many slices hold more UIDs than there are files."""
    seen = SeenSlices(1)
    assert [seen.earlier(f"1.2.{number}", number + 7) for number in range(500)] == [None] * 500
    assert [seen.earlier(f"1.2.{number}", 0) for number in range(500)] == [number + 7 for number in range(500)]
