"""Results on their way out: by C-STORE and by STOW-RS, taken, refused, and tried again."""

from __future__ import annotations

import json
from pathlib import Path

import pydicom
import pytest
from dicom_files import dicom_file, head_slice, slice_elements
from dicom_peer import Archive, WebArchive
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SecondaryCaptureImageStorage
from pynetdicom import _config, dimse_messages

from trainer.listening import sending
from trainer.listening.peers import Entity, destination
from trainer.listening.sending import NotSent

pytestmark = pytest.mark.slow  # each test waits for its peer

CT, CAPTURE = CTImageStorage, SecondaryCaptureImageStorage


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    for where, name in (
        (_config, "STORE_SEND_CHUNKED_DATASET"), (_config, "STORE_RECV_CHUNKED_DATASET"),
        (dimse_messages, "NamedTemporaryFile"),
    ):  # fmt: skip
        monkeypatch.setattr(where, name, getattr(where, name))


@pytest.fixture
def made(tmp_path) -> list[Path]:
    """Two objects of different kinds."""
    paths = []
    for number, kind in enumerate((CT, CAPTURE)):
        found = pydicom.Dataset()
        found.SOPClassUID, found.SOPInstanceUID = kind, f"1.2.{number}"
        found.StudyInstanceUID, found.PatientName = "1.2.3", "Planted^Anna"
        found.file_meta = pydicom.dataset.FileMetaDataset()
        found.file_meta.MediaStorageSOPClassUID, found.file_meta.MediaStorageSOPInstanceUID = kind, f"1.2.{number}"
        found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        paths.append(tmp_path / f"{number}.dcm")
        found.save_as(paths[-1], enforce_file_format=True)
    return paths


def uids(held: list[pydicom.Dataset]) -> list[str]:
    return sorted(one.SOPInstanceUID for one in held)


def test_an_archive_holds_what_was_sent(made):
    with Archive().open([CT, CAPTURE]) as archive:
        sending.by(Entity("PACS", "127.0.0.1", archive.port), "ICH")(made)
    assert uids(archive.held) == ["1.2.0", "1.2.1"]
    assert archive.calls == ["ICH", "ICH"]
    assert archive.held[0].PatientName == "Planted^Anna"


@pytest.mark.parametrize("status", [0xB000, 0xB007])
def test_a_warning_is_a_success(made, status):
    with Archive().open([CT, CAPTURE]) as archive:
        archive.status = status
        sending.by(Entity("PACS", "127.0.0.1", archive.port), "ICH")(made)


@pytest.mark.parametrize(
    ("status", "kinds", "words"),
    [
        (0xA700, [CT, CAPTURE], "refuses CT Image Storage with status A700"),
        (0x0122, [CT, CAPTURE], "refuses CT Image Storage with status 0122"),
        (0x0000, [CT], "takes no Secondary Capture Image Storage"),
        (0x0000, ["1.2.840.10008.1.1"], "takes nothing of what is sent"),
    ],
)
def test_what_an_archive_refuses_is_not_sent(made, status, kinds, words):
    with Archive().open(kinds) as archive:
        archive.status = status
        with pytest.raises(NotSent, match=words) as error:
            sending.by(Entity("PACS", "127.0.0.1", archive.port), "ICH")(made)
    assert "Planted" not in str(error.value)


def test_an_archive_that_is_not_there(made):
    with Archive().open([CT]) as archive:
        gone = archive.port
    with pytest.raises(NotSent, match=f"PACS@127.0.0.1:{gone} does not answer"):
        sending.by(Entity("PACS", "127.0.0.1", gone), "ICH")(made)


def test_a_web_archive_holds_what_was_sent(made):
    archive = WebArchive()
    with archive.open() as url:
        sending.by(destination(url), "ICH")(made)
    assert uids(archive.held) == ["1.2.0", "1.2.1"]
    assert archive.paths == ["/dicom-web/studies"]  # all in one request
    assert archive.logins == [""]


def test_a_login_comes_from_netrc(made, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    archive = WebArchive()
    with archive.open() as url:
        sending.by(destination(url), "ICH")(made)
    assert archive.logins[0].startswith("Basic ")


FAILED = {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0xA700]}}]}}


@pytest.mark.parametrize(
    ("status", "answer", "words"),
    [
        (401, b"{}", "401"),
        (503, b"{}", "503"),
        (200, json.dumps(FAILED).encode(), r"refuses 1 of 2 objects \(A700\)"),
        (202, json.dumps(FAILED).encode(), r"refuses 1 of 2 objects \(A700\)"),
        (200, b"no json", "does not take them"),
    ],
)
def test_what_a_web_archive_refuses_is_not_sent(made, status, answer, words):
    archive = WebArchive()
    archive.status, archive.answer = status, answer
    with archive.open() as url, pytest.raises(NotSent, match=words):
        sending.by(destination(url), "ICH")(made)


def test_a_web_archive_that_is_not_there(made):
    with WebArchive().open() as url:
        gone = url
    with pytest.raises(NotSent, match="does not take them"):
        sending.by(destination(gone), "ICH")(made)


def test_a_file_that_is_gone_is_an_error_of_files(made):
    made[1].unlink()
    for where in (Entity("PACS", "127.0.0.1", 9), destination("http://127.0.0.1:9/studies")):
        with pytest.raises(OSError, match=r"1\.dcm"):
            sending.by(where, "ICH")(made)


def test_the_size_of_a_slice_does_not_matter(made, tmp_path):
    """Files go out as they stand, in parts, whatever their size."""
    file = dicom_file(
        slice_elements(head_slice(512), SOPInstanceUID=b"1.2.7", StudyInstanceUID=b"1.2.3", SeriesInstanceUID=b"1.2.4")
    )
    whole = pydicom.dcmread(pydicom.filebase.DicomBytesIO(file))
    whole.file_meta.MediaStorageSOPClassUID, whole.file_meta.MediaStorageSOPInstanceUID = CT, "1.2.7"
    whole.save_as(tmp_path / "large.dcm", enforce_file_format=True)
    with Archive().open([CT]) as archive:
        sending.by(Entity("PACS", "127.0.0.1", archive.port), "ICH")([tmp_path / "large.dcm"])
    assert archive.held[0].PixelData == whole.PixelData
