"""The order of files by study and series beside a plain sort, and what the first look costs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from dicom_files import DEFLATED, dicom_file, head_slice, slice_elements
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_tfrecords.dicom import ct_slice
from ich_tfrecords.spec import ImageSpec, Window, load
from ich_tfrecords.storage import listing_rows, sources
from trainer.prediction import heads
from trainer.prediction.heads import Heads

SPEC = dataclasses.replace(load("rsna_ich"), image=ImageSpec(8, -1000, (Window("brain", 40, 80),), "none", "windows"))


def write(folder: Path, name: str, uid: str, seed: int = 0, syntax: str = "", **changes: bytes | None) -> Path:
    elements = slice_elements(head_slice(seed=seed), SOPInstanceUID=uid.encode(), **changes)
    (folder / name).write_bytes(dicom_file(elements, syntax) if syntax else dicom_file(elements))
    return folder / name


def looked_at(*places: Path) -> tuple[Heads, list[str]]:
    found = Heads(sources.list_inputs([str(place) for place in places]).table, SPEC.accept)
    rejects = [reject.reason for outcome in found.read() for reject in outcome.rejects]
    return found, rejects


def names(found: Heads) -> list[str]:
    return [ref.name for ref in found.refs()]


def listing(count: int):
    rows = listing_rows.Rows()
    rows.add(listing_rows.plain_batch([(f"{number:04d}", 1, 1) for number in range(count)]))
    return listing_rows.container_table("/in", rows)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=30), st.integers(1, 7))
def test_files_come_by_study_and_series_as_they_were_first_met(drawn, part):
    header = ct_slice.SliceHeader("", "", "", "", 0.0, 1, 1, 16, 16, True, 1.0, 0.0, None, "", 0, False, {})
    kept = heads.PART_FILES, heads._header

    def known(ref, reader, accept):
        study, series = drawn[int(ref.name)]
        return header._replace(sop_uid=ref.name, study_uid=f"s{study}", series_uid=f"e{series}")

    try:
        heads.PART_FILES, heads._header = part, known
        found = Heads(listing(len(drawn)), SPEC.accept)
        looked = [outcome.files for outcome in found.read()]
        order = [int(name) for name in names(found)]
        assert list(found.settle(SPEC, 4)) == []
    finally:
        heads.PART_FILES, heads._header = kept
    assert sum(looked) == len(drawn) == len(found)
    studies = [study for study, _ in drawn]
    wanted = sorted(range(len(drawn)), key=lambda at: (studies.index(studies[at]), drawn.index(drawn[at]), at))
    assert order == wanted


def test_only_the_head_of_a_plain_file_is_read(tmp_path, monkeypatch):
    write(tmp_path, "a.dcm", "1.1")
    write(tmp_path, "b.dcm", "1.2", syntax=DEFLATED)
    whole, read = [], sources.SliceReader.read
    monkeypatch.setattr(sources.SliceReader, "read", lambda own, ref: (whole.append(ref.name), read(own, ref))[1])
    found, rejects = looked_at(tmp_path)
    assert (names(found), rejects, whole) == (["a.dcm", "b.dcm"], [], ["b.dcm"])


def test_files_that_are_no_slices_are_rejects_at_once(tmp_path):
    write(tmp_path, "a.dcm", "1.1")
    write(tmp_path, "b.dcm", "1.2", Modality=b"MR")
    write(tmp_path, "c.dcm", "1.3", ImagePositionPatient=None)
    path = write(tmp_path, "d.dcm", "1.4")
    path.write_bytes(path.read_bytes()[:-10])
    (tmp_path / "e.dcm").write_bytes(b"nonsense")
    found, rejects = looked_at(tmp_path)
    assert rejects == ["not_ct", "no_position", "truncated", "not_dicom"]
    assert (names(found), len(found)) == (["a.dcm"], 1)


@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_repeats_are_settled_in_order_of_the_listing(tmp_path, batch_size):
    write(tmp_path, "a.dcm", "1.1", SeriesInstanceUID=b"9")
    write(tmp_path, "b.dcm", "1.2")
    write(tmp_path, "c.dcm", "1.2", seed=1, SeriesInstanceUID=b"9")
    write(tmp_path, "d.dcm", "1.1", SeriesInstanceUID=b"9")
    write(tmp_path, "e.dcm", "1.3")
    found, _ = looked_at(tmp_path)
    rejects = [(one.file, one.reason) for rejects in found.settle(SPEC, batch_size) for one in rejects]
    assert rejects == [("c.dcm", "uid_conflict"), ("d.dcm", "duplicate_slice")]
    assert names(found) == ["a.dcm", "b.dcm", "e.dcm"]


def test_inputs_keep_their_numbers_when_some_of_them_repeat_slices(tmp_path):
    for place in "abc":
        (tmp_path / place).mkdir()
    write(tmp_path / "a", "1.dcm", "1.1")
    write(tmp_path / "b", "1.dcm", "1.2")
    write(tmp_path / "c", "1.dcm", "1.2")
    found, _ = looked_at(*(tmp_path / place for place in "abc"))
    assert [one.input for rejects in found.settle(SPEC, 4) for one in rejects] == [3]
    assert names(found) == ["1.dcm", "1.dcm"]


def test_a_file_takes_few_bytes():
    found = Heads(listing(1000), SPEC.accept)
    held = [value for value in vars(found).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in held) == 12 * 1000
