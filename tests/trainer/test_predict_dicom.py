"""Results as DICOM: read back with the numbers that were written, under the patient and the study of their source."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import dicom_file, head_slice, slice_elements
from highdicom import sr
from pydicom.sr.codedict import codes
from volume_files import enhanced, head, nifti, written

from ich_tfrecords import NOT_A_DEVICE, __version__
from ich_tfrecords.views.montage import ACCENT
from trainer import predict
from trainer.models import model_file
from trainer.prediction import dicom_folder, dicom_objects

pytestmark = pytest.mark.slow  # the whole command, again and again

STANDARD = Path(sys.modules["highdicom"].__file__ or "").parent / "_standard"  # its tables of the standard's modules


@pytest.fixture
def run(export, tmp_path):
    """run(*inputs, flags) -> exit code, the folder of the results, and that of the DICOM results."""

    def predicted(*inputs: object, model: Path = export, output: str = "out", **flags: object):
        out, filed = tmp_path / output, tmp_path / f"{output}-dicom"
        given = {"model": model, "output": out, "dicom": filed, "pictures": 0, **flags}
        parts = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        return predict.main(parts + [part for one in inputs for part in ("--input", str(one))]), out, filed

    return predicted


def rows(path: Path) -> dict[str, dict[str, str]]:
    """Study UID -> row."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row["study_uid"]: row for row in csv.DictReader(file)}


def read(filed: Path) -> dict[str, tuple[sr.ComprehensiveSR, pydicom.Dataset]]:
    """Study UID -> report and picture."""
    found = {}
    for folder in filed.iterdir():
        assert {path.name for path in folder.iterdir()} == {"report.dcm", "picture.dcm"}
        report, picture = sr.srread(folder / "report.dcm"), pydicom.dcmread(folder / "picture.dcm")
        assert folder.name == report.StudyInstanceUID == picture.StudyInstanceUID
        found[folder.name] = report, picture
    return found


def probabilities(report: sr.ComprehensiveSR) -> dict[str, float]:
    """Label -> the probability that the report measures."""
    found = {}
    for group in report.content.get_image_measurement_groups():
        (measured,) = group.get_measurements(name=codes.DCM.Probability)
        found[group.tracking_identifier] = float(measured.value)
    return found


def put(
    folder: Path, name: str, sop: str, study: str, seed: int = 0, patient: dict[int, tuple[str, bytes]] | None = None
):
    folder.mkdir(exist_ok=True)
    uids = {
        "SOPInstanceUID": sop.encode(),
        "StudyInstanceUID": study.encode(),
        "SeriesInstanceUID": f"{study}.1".encode(),
    }
    elements = {**slice_elements(head_slice(64, seed), **uids), **(patient or {})}
    (folder / name).write_bytes(dicom_file(dict(sorted(elements.items()))))
    return folder / name


PLANTED = {
    0x00080005: ("CS", b"ISO_IR 100"),
    0x00080020: ("DA", b"20190517"),
    0x00080050: ("SH", b"ACC-1"),
    0x00080080: ("LO", b"Planted Hospital"),
    0x00100010: ("PN", "Müller^Jörg".encode("latin-1")),
    0x00100020: ("LO", b"MRN-0815"),
    0x00100030: ("DA", b"19470311"),
    0x00100040: ("CS", b"M"),
    0x00101010: ("AS", b"071Y"),
    0x00101040: ("LO", b"Planted Road 12"),
    0x00104000: ("LT", b"planted comment"),
}


def test_a_report_holds_the_numbers_of_triage_and_the_picture_is_whole(run, tmp_path, export, about, capsys):
    for number in range(6):
        study = f"1.2.{number % 2}"
        put(tmp_path / "in", f"{number}.dcm", f"1.3.{number}", study, number, PLANTED)
    code, out, filed = run(tmp_path / "in")
    told = capsys.readouterr().out
    assert code == 0
    assert f"\n2 studies as DICOM, each a report and a picture in new series\n{filed}\n" in told
    found, studies = read(filed), rows(out / "triage.csv")
    assert found.keys() == studies.keys() == {"1.2.0", "1.2.1"}
    for uid, (report, picture) in found.items():
        row = studies[uid]
        assert probabilities(report) == {name: float(row[name]) for name in about.spec.labels.names}
        for group in report.content.get_image_measurement_groups():
            (source,) = group.source_images
            assert source.referenced_sop_instance_uid == row["driven_by"]
            assert source.referenced_frame_numbers is None
        for made in (report, picture):
            assert (made.PatientName, made.PatientID) == ("Müller^Jörg", "MRN-0815")
            assert (made.PatientBirthDate, made.PatientSex, made.PatientAge) == ("19470311", "M", "071Y")
            assert (made.StudyDate, made.AccessionNumber) == ("20190517", "ACC-1")
            assert "Not a medical device" in made.SeriesDescription
        assert report.SeriesInstanceUID != picture.SeriesInstanceUID
        data = (filed / uid / "report.dcm").read_bytes()
        for text in (NOT_A_DEVICE, f"weights sha256 {model_file.digest(export)}", "ich-tfrecords cnn", __version__):
            assert text.encode() in data
        (source,) = picture.SourceImageSequence
        assert source.ReferencedSOPInstanceUID == row["driven_by"]
        pixels = picture.pixel_array
        assert pixels.shape == (picture.Rows, picture.Columns, 3)
        assert (pixels == ACCENT).all(axis=-1)[-60:].sum() > 10_000  # the warning on its bar
    facts = json.loads((out / "run.json").read_text())
    assert facts["dicom"] == {"studies": 2, "replaced": 0, "nifti": 0, "failed": 0}
    for data in (path.read_bytes() for path in filed.rglob("*.dcm")):
        assert not [word for word in (b"Planted Hospital", b"Planted Road", b"planted comment") if word in data]


def test_labels_have_codes_that_mean_the_same_or_our_own(run, tmp_path, about):
    put(tmp_path / "in", "a.dcm", "1.3", "1.2")
    _, _, filed = run(tmp_path / "in")
    ((report, _),) = read(filed).values()
    groups = {group.tracking_identifier: group.finding_type for group in report.content.get_image_measurement_groups()}
    coded = {label: (code.value, code.scheme_designator) for label, code in groups.items()}
    assert coded["any"] == (codes.SCT.IntracranialHemorrhage.value, "SCT")
    assert coded["epidural"] == ("epidural", "99ICHTF")
    (scheme,) = report.CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == "99ICHTF"


@pytest.mark.parametrize(
    ("name", "iod"), [("report.dcm", "comprehensive-sr"), ("picture.dcm", "secondary-capture-image")]
)
def test_every_attribute_that_the_standard_asks_for_is_there(run, tmp_path, name, iod):
    """PS3.3, by the tables of highdicom: type 1 with a value, type 2 at least empty.

    Of the content of a report they list every kind of item at its root; `srread` reads that.
    """
    put(tmp_path / "in", "a.dcm", "1.3", "1.2")
    _, _, filed = run(tmp_path / "in")
    made = pydicom.dcmread(next(filed.rglob(name)))
    modules = json.loads((STANDARD / "iod_module_map.json").read_text())[iod]
    attributes = json.loads((STANDARD / "module_attribute_map.json").read_text())
    asked = 0
    for module in {module["key"] for module in modules if module["usage"] == "M"} - {"sr-document-content"}:
        for attribute in attributes[module]:
            if attribute["path"] or attribute["type"] not in ("1", "2"):
                continue
            asked += 1
            assert attribute["keyword"] in made, (module, attribute)
            if attribute["type"] == "1":
                assert made[attribute["keyword"]].value not in (None, "", []), (module, attribute)
    assert asked > 20


def test_rsna_uids_give_way_to_the_same_ones_each_time(run, synthetic_set, synthetic_zip, capsys):
    """From a folder and from a zip; the patient is the one of the slices."""
    code, out, filed = run(synthetic_set.output / "stage_2_test")
    assert code == 0
    studies = rows(out / "triage.csv")
    told = capsys.readouterr().out
    assert f"UIDs of {len(studies)} studies are none that DICOM allows; there 2.25. ones stand" in told
    found = read(filed)
    assert all(uid.startswith("2.25.") for uid in found)
    assert all(pydicom.uid.UID(uid).is_valid for uid in found)
    patients = {one.study_uid: one.patient_id for one in synthetic_set.slices}
    for study, row in studies.items():
        report, picture = found[dicom_objects.valid_uid(study)]
        assert report.PatientID == picture.PatientID == patients[study]
        (series,) = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        (source,) = series.ReferencedSOPSequence
        assert source.ReferencedSOPInstanceUID == dicom_objects.valid_uid(row["driven_by"])
    code, _, again = run(synthetic_zip, output="zipped", include="*/stage_2_test/*")
    assert code == 0
    assert {uid: probabilities(report) for uid, (report, _) in read(again).items()} == {
        uid: probabilities(report) for uid, (report, _) in found.items()
    }


def test_a_uid_that_is_one_stays():
    assert dicom_objects.valid_uid("1.2.840.10008.1") == "1.2.840.10008.1"
    assert dicom_objects.valid_uid("1.02.3") != "1.02.3"  # a component must not begin with 0
    assert dicom_objects.valid_uid("ID_1") == dicom_objects.valid_uid("ID_1") != dicom_objects.valid_uid("ID_2")


def test_a_frame_is_named_by_its_number_and_a_volume_without_a_patient_is_told(run, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "whole.dcm").write_bytes(written(enhanced(head(5, seed=3))))
    (tmp_path / "in" / "head.nii.gz").write_bytes(nifti(head(7, seed=1), "LAI", packed=True))
    code, out, filed = run(tmp_path / "in")
    assert code == 0
    assert "\n1 study of NIfTI without a DICOM result: no patient is known\n" in capsys.readouterr().out
    ((report, _),) = read(filed).values()
    source = pydicom.dcmread(tmp_path / "in" / "whole.dcm")
    assert (report.StudyInstanceUID, report.PatientID) == (source.StudyInstanceUID, source.PatientID)
    (row,) = [row for row in rows(out / "triage.csv").values() if row["file"].startswith("whole")]
    for group in report.content.get_image_measurement_groups():
        (image,) = group.source_images
        assert image.referenced_sop_instance_uid == source.SOPInstanceUID
        assert image.referenced_frame_numbers == [int(row["file"].partition("#")[2])]


def test_a_partial_study_is_a_partial_report(run, tmp_path):
    put(tmp_path / "in", "a.dcm", "1.3.1", "1.2", 1)
    cut = put(tmp_path / "in", "b.dcm", "1.3.2", "1.2", 2)
    cut.write_bytes(cut.read_bytes()[:-100])
    _, _, filed = run(tmp_path / "in")
    ((report, _),) = read(filed).values()
    assert (report.CompletionFlag, report.VerificationFlag) == ("PARTIAL", "UNVERIFIED")
    assert report.CompletionFlagDescription == "judged by 1 of 2 slices (missing: 1 truncated)"


ODD = {
    "no patient at all": dict.fromkeys((0x00100020,), None),
    "values that no dictionary allows": {
        0x00100030: ("DA", b"XXXXXXXX"), 0x00100040: ("CS", b"unknown sex"), 0x00101010: ("AS", b"old"),
        0x00080020: ("DA", b"yesterday"), 0x00080030: ("TM", b"noon"),
    },
    "a name in another character set": {
        0x00080005: ("CS", b"\\ISO 2022 IR 87"), 0x00100010: ("PN", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B")
    },
    "bytes that are no text": {0x00080005: ("CS", b"ISO_IR 192"), 0x00100010: ("PN", b"\xff\xfe^\x81")},
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_odd_headers_are_filed_as_they_stand(run, tmp_path, kind):
    changes = {"PatientID": None} if kind == "no patient at all" else {}
    folder = tmp_path / "in"
    folder.mkdir()
    elements = slice_elements(head_slice(64), SOPInstanceUID=b"1.3", StudyInstanceUID=b"1.2", **changes)
    elements |= {tag: value for tag, value in ODD[kind].items() if value}
    (folder / "a.dcm").write_bytes(dicom_file(dict(sorted(elements.items()))))
    code, _, filed = run(folder)
    assert code == 0
    source = pydicom.dcmread(folder / "a.dcm")
    for made in next(iter(read(filed).values())):
        for keyword in (*dicom_objects.PATIENT, *dicom_objects.STUDY):
            assert str(made.get(keyword) or "") == str(source.get(keyword) or ""), keyword


def test_a_file_that_is_another_patient_by_now_gives_no_result(run, tmp_path, monkeypatch, capsys):
    for number in range(2):
        put(tmp_path / "in", f"{number}.dcm", f"1.3.{number}", f"1.2.{number}", number)
    write = dicom_folder.write

    def late(*args):
        before = (tmp_path / "in" / "0.dcm").stat()
        changed = put(tmp_path / "in", "0.dcm", "1.3.7", "1.2.7", patient={0x00100020: ("LO", b"ID_another")})
        assert changed.stat().st_size == before.st_size
        os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
        return write(*args)

    monkeypatch.setattr(dicom_folder, "write", late)
    code, out, filed = run(tmp_path / "in")
    assert code == 1
    assert read(filed).keys() == {"1.2.1"}
    err = capsys.readouterr().err.splitlines()
    assert err[-2] == "predict: no DICOM result of the study of 0.dcm: changed: the file is another slice by now"
    assert err[-1] == "predict: no DICOM result for 1 study, whose files changed meanwhile; predict again"
    assert json.loads((out / "run.json").read_text())["finished"] is True


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("full", "full is not empty, it holds a.txt; choose a new folder"),
        ("full/a.txt", "a.txt is a file, not a folder"),
        ("full/a.txt/below", "cannot be made: Not a directory"),
        ("out", "lies in --output"),
        ("out/dicom", "lies in --output"),
        ("gs://bucket/dicom", "is in a bucket"),
        ("", "--dicom: the path is empty"),
    ],
)
def test_a_place_that_cannot_be_is_one_line(run, tmp_path, place, words, capsys):
    path = put(tmp_path / "in", "a.dcm", "1.3", "1.2")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    where = place if place.startswith("gs:") or not place else tmp_path / place
    code, *_ = run(path, dicom=where)
    line = capsys.readouterr().err
    assert code == 2
    assert words in line
    assert line.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"in", "full"}


def test_without_highdicom_the_extra_is_named(run, tmp_path, monkeypatch, capsys):
    path = put(tmp_path / "in", "a.dcm", "1.3", "1.2")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    assert run(path)[0] == 2
    told = "predict: --dicom needs highdicom, which is not installed: pip install 'ich-tfrecords[dicom]'\n"
    assert capsys.readouterr().err == told
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def test_an_interruption_leaves_no_half_folder_and_an_empty_one_is_taken(run, tmp_path, monkeypatch):
    for number in range(2):
        put(tmp_path / "in", f"{number}.dcm", f"1.3.{number}", f"1.2.{number}", number)
    calls, capture = [], dicom_objects.capture

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return capture(*args)

    monkeypatch.setattr(dicom_objects, "capture", interrupted)
    code, out, filed = run(tmp_path / "in")
    assert (code, json.loads((out / "run.json").read_text())["finished"]) == (130, False)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
    monkeypatch.undo()
    filed.mkdir()
    assert run(tmp_path / "in")[0] == 0
    assert len(read(filed)) == 2


def test_a_place_that_is_taken_meanwhile_leaves_the_run_unfinished(run, tmp_path, monkeypatch, capsys):
    path, write = put(tmp_path / "in", "a.dcm", "1.3", "1.2"), dicom_folder.write

    def late(*args):
        (tmp_path / "out-dicom").mkdir()
        (tmp_path / "out-dicom" / "a.txt").write_text("of somebody else")
        return write(*args)

    monkeypatch.setattr(dicom_folder, "write", late)
    code, out, filed = run(path)
    assert (code, json.loads((out / "run.json").read_text())["finished"]) == (1, False)
    assert [one.name for one in filed.iterdir()] == ["a.txt"]
    assert {one.name for one in tmp_path.iterdir()} == {"in", "out", "out-dicom"}
    assert capsys.readouterr().err.startswith("predict: Directory not empty: ")


def test_a_series_model(run, series_run, runs_of_blobs):
    files = runs_of_blobs.parent / f"{runs_of_blobs.name}-dicom"
    code, out, filed = run(files, model=series_run, include="*ID_000[0-2]*")
    assert code == 0
    studies = rows(out / "triage.csv")
    found = read(filed)
    assert len(found) == len(studies) == 3
    for study, row in studies.items():
        report, _ = found[dicom_objects.valid_uid(study)]
        measured = probabilities(report)
        assert measured == {name: float(row[name]) for name in measured}
        assert np.isfinite(list(measured.values())).all()
