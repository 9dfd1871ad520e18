"""What is kept of what arrives, apart from the network."""

from __future__ import annotations

from pathlib import Path

import pytest
from dicom_files import DEFLATED, dicom_file, head_slice, slice_elements
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords.storage import sources
from trainer.listening import inbox as inboxes
from trainer.listening.inbox import Inbox, study_id

CT = "1.2.840.10008.5.1.4.1.1.2"


def received(inbox: Inbox, data: bytes) -> Path:
    path = inbox.incoming / f"{inboxes.PREFIX}1.dcm"
    path.write_bytes(data)
    return path


def test_files_of_others_stay(studies, tmp_path):
    """Of the folder of objects that are not whole yet nothing goes but what this command called so."""
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    (incoming / "mine.txt").write_text("mine")
    (incoming / f"{inboxes.PREFIX}left.dcm").write_bytes(b"half")
    Inbox(incoming, studies)
    assert [path.name for path in incoming.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("side", [32, 1024])
def test_a_deflated_object_names_its_study_whatever_its_size(inbox, spool, side):
    """What is deflated has to be read whole; noise, so that it does not become small."""
    elements = slice_elements(head_slice(side), SOPInstanceUID=b"1.3", StudyInstanceUID=b"1.2")
    file = dicom_file(elements, DEFLATED)
    assert (len(file) > inboxes.HEAD_BYTES) is (side == 1024)
    taken = inbox.take(received(inbox, file), CT, "1.3")
    assert (taken.status, taken.study) == (0, study_id("1.2"))
    (path,) = spool.entry(study_id("1.2")).files.iterdir()
    assert path.read_bytes() == file


def test_of_a_file_of_many_slices_the_head_is_enough(inbox, monkeypatch):
    monkeypatch.setattr(sources, "MAX_SLICE_BYTES", 1000)
    monkeypatch.setattr(inboxes, "HEAD_BYTES", 2000)
    file = dicom_file(slice_elements(head_slice(64), SOPInstanceUID=b"1.3", StudyInstanceUID=b"1.2"))
    assert inbox.take(received(inbox, file), CT, "1.3").status == 0


def test_a_file_that_is_not_there_is_a_refusal(inbox, capsys):
    assert inbox.take(inbox.incoming / "gone.dcm", CT, "1.3").status == 0xA700
    assert "could not be written" in capsys.readouterr().err


@given(st.text())
def test_an_id_is_plain_and_belongs_to_its_uid(uid):
    assert len(study_id(uid)) == 32
    assert set(study_id(uid)) <= set("0123456789abcdef")
    assert study_id(uid) != study_id(uid + "0")
