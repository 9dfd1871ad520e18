"""Nothing that tells who a patient is leaves: every file and line of the whole way is searched for what was planted."""

from __future__ import annotations

import csv
import io
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pydicom
import pytest
from small_runs import main, train

from ich_tfrecords import inspect
from ich_tfrecords.synthetic.rsna_layout import generate
from trainer import compare, evaluate, export, predict, submit

pytestmark = pytest.mark.slow  # converts, trains

PLANTED = {
    "PatientName": "PLANTED^ANNA",
    "PatientBirthDate": "19470311",
    "PatientAge": "071Y",
    "PatientAddress": "Planted Road 12",
    "PatientComments": "planted comment",
    "OtherPatientNames": "PLANTED^OTHER",
    "AccessionNumber": "ACC-774310",
    "StudyDate": "20190517",
    "SeriesDate": "20190518",
    "AcquisitionDate": "20190519",
    "ContentDate": "20190520",
    "StudyTime": "081733.123",
    "StudyID": "SID-55120",
    "StudyDescription": "planted study",
    "SeriesDescription": "planted series",
    "ProtocolName": "planted protocol",
    "InstitutionName": "Planted Hospital",
    "StationName": "PLANTEDSTATION",
    "DeviceSerialNumber": "SN-990471",
    "ReferringPhysicianName": "PLANTED^DOCTOR",
    "OperatorsName": "PLANTED^OPERATOR",
    "ConvolutionKernel": "PLANTED KERNEL",
    "ManufacturerModelName": "PLANTED MODEL",
    "ContrastBolusAgent": "",
}
PREFIX = "MRN-00815-"  # of every PatientID
# what results as DICOM bear on purpose, to be filed under the right patient and study
FILED = (
    *("PatientName", "PatientBirthDate", "PatientAge", "AccessionNumber", "StudyDate", "StudyTime", "StudyID"),
    *("StudyDescription", "ReferringPhysicianName"),
)


def plant(folder: Path) -> None:
    """Write all of it into the slices of a folder; patients stay apart."""
    known: dict[str, str] = {}
    for path in sorted(folder.glob("*.dcm")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # RSNA's uids are none
            found = pydicom.dcmread(path)
            found.PatientID = known.setdefault(found.PatientID, f"{PREFIX}{len(known):04d}")
            for name, value in PLANTED.items():
                if value:
                    setattr(found, name, value)
            found.private_block(0x0019, "PLANTED", create=True).add_new(1, "LO", "planted private")
            found.save_as(path)


def secrets() -> list[bytes]:
    return [value.encode() for value in (*PLANTED.values(), PREFIX, "planted private") if value]


def contents(path: Path) -> Iterator[bytes]:
    """The bytes of a file, and what it holds compressed."""
    data = path.read_bytes()
    yield data
    if path.suffix == ".parquet":
        yield repr(pq.read_table(path).to_pylist()).encode()
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name) for name in archive.namelist())


def leaks(folder: Path) -> set[tuple[str, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    names = {
        (str(path), word) for path in files for word in secrets() if word in str(path.relative_to(folder)).encode()
    }
    return names | {
        (str(path), word) for path in files for data in contents(path) for word in secrets() if word in data
    }


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> tuple[Path, Path]:
    """A folder of slices, and label files of slices and of patients."""
    folder = tmp_path_factory.mktemp("ct")
    made = generate(folder / "ct", patients=24, test_patients=1, slices_per_study=5, positive_fraction=0.8,
                    every_label=True, seed=5)  # fmt: skip
    slices = made.output / "stage_2_train"
    plant(slices)
    return slices, made.output / "stage_2_train.csv"


def test_what_was_planted_is_there(planted):
    """The search finds it in what goes in; a test that finds nothing anywhere would tell nothing."""
    slices, _ = planted
    assert {word for _, word in leaks(slices)} == set(secrets())


@pytest.mark.long
def test_it_is_in_nothing_that_comes_out(planted, tmp_path, convert, capfd):
    slices, labels = planted
    out = tmp_path / "out"
    patients = tmp_path / "in" / "patients.csv"
    patients.parent.mkdir()
    with patients.open("w", newline="") as file:
        csv.writer(file).writerows([["patient_id", "any"], [f"{PREFIX}0000", ""], [f"{PREFIX}0001", "-1"]])
    (patients.parent / "small.yaml").write_text(
        "extends: rsna_ich\nname: small\nimage: {size_px: 32}\nshards: {min_shards: 1}\n"
        "split: {weights: {train: 2, validation: 1, test: 1}}\n"
    )
    flags = ["--spec", patients.parent / "small.yaml", "--input", slices, "--labels", labels, "--labels", patients]
    assert convert(*flags, "--labels_may_miss", "--output", out / "data") == 0
    assert inspect.main(["verify", str(out / "data")]) == 0
    assert inspect.main(["info", str(out / "data")]) == 0

    assert train(out / "data", out / "cnn", epochs=1, absent_labels=True) == 0
    series = ["--model", "series", "--data_dir", str(out / "data"), "--slice_run", str(out / "cnn")]
    tiny = ["--set", "architecture.width=8", "--set", "architecture.units=8", "--set", "batch_size=4"]
    tiny += ["--set", "absent_labels=true", "--set", "warmup_epochs=0", "--epochs", "1"]
    assert main([*series, *tiny, "--job_dir", str(out / "series")]) == 0
    for run in ("cnn", "series"):
        given = ["--job_dir", str(out / run), "--resamples", "100", "--by", "slice_count", "--prevalence", "0.1"]
        assert evaluate.main(given) == 0
        assert export.main(["--job_dir", str(out / run), "--output", str(out / f"{run}-saved")]) == 0
        said = out / f"{run}-said"
        filed = tmp_path / f"{run}-filed"
        places = ["--input", str(slices), "--output", str(said), "--dicom", str(filed)]
        assert predict.main(["--model", str(out / run), *places]) == 0
        assert any((said / "pictures").iterdir())
        assert b"<svg" in (said / "triage.html").read_bytes()
        assert {word for _, word in leaks(filed)} == {PREFIX.encode(), *(PLANTED[name].encode() for name in FILED)}
    assert compare.main([str(out / "cnn"), str(out / "series"), "--output", str(out / "page.html")]) == 0
    submission = ["--data_dir", str(out / "data"), "--split", "test", "--output", str(out / "submission.csv")]
    assert submit.main(["--job_dir", str(out / "cnn"), *submission]) == 0

    assert leaks(out) == set()
    told = "".join(capfd.readouterr()).encode()
    assert [word for word in secrets() if word in told] == []
    assert b"log loss" in told
