"""Bad input, one test each: a typed reason or one clear line and exit code 2; never a traceback or a zero image."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest

from ich_tfrecords.conversion import job
from ich_tfrecords.dataset import manifest
from ich_tfrecords.dataset.verify import verify
from ich_tfrecords.dicom.writer import SliceFields, dicom_bytes
from ich_tfrecords.storage import atomic, sources

LABELS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")


def slice_bytes(uid: str, **fields) -> bytes:
    ids = {"sop_uid": uid, "patient_id": "ID_p", "study_uid": "ID_s", "series_uid": "ID_e"}
    stored = np.arange(64 * 64, dtype=np.int16).reshape(64, 64)
    return dicom_bytes(stored, SliceFields(**ids, **fields))


def edited(data: bytes, change) -> bytes:
    """The file after `change(dataset)`."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    change(dataset)
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def setting(**values):
    def change(dataset):
        for name, value in values.items():
            setattr(dataset, name, value)

    return change


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three good slices."""
    made = tmp_path / "in"
    made.mkdir()
    for uid in ("ID_a", "ID_b", "ID_c"):
        (made / f"{uid}.dcm").write_bytes(slice_bytes(uid))
    return made


def label_file(path: Path, *uids: str) -> Path:
    rows = [f"{uid}_{label},0" for uid in uids for label in LABELS]
    path.write_text("\n".join(["ID,Label", *rows]) + "\n")
    return path


def run(convert, folder: Path, *more: object, labels: object = "none") -> int:
    output = folder.parent / "out"
    return convert("--input", folder, "--labels", labels, "--output", output, "--max_reject_fraction", 0.9, *more)


def rejects(folder: Path) -> dict[str, tuple[str, str]]:
    with (folder.parent / "out" / manifest.REJECTS).open(newline="") as file:
        return {row["name"]: (row["reason"], row["detail"]) for row in csv.DictReader(file)}


GOOD = slice_bytes("ID_x")
BAD_FILES = {
    "truncated": (GOOD[:-100], "PixelData has 8,092 of 8,192 bytes"),
    "empty_file": (b"", "the file has no bytes"),
    "not_dicom": (b"dear diary\n" * 50, "no DICM at byte 128"),
    "wrong_pixel_length": (GOOD[:-8196] + struct.pack("<L", 8190) + GOOD[-8192:-2], "PixelData has 8,190 bytes"),
    "bad_geometry": (edited(GOOD, setting(Rows=65535)), "65535 rows and 64 columns"),
    "multi_frame": (edited(GOOD, setting(NumberOfFrames=2)), "NumberOfFrames is '2'"),
    "color": (edited(GOOD, setting(SamplesPerPixel=3, PhotometricInterpretation="RGB")), "3 samples a pixel, RGB"),
    "no_rescale": (edited(GOOD, lambda dataset: dataset.__delattr__("RescaleSlope")), "RescaleSlope is 'absent'"),
}


@pytest.mark.parametrize("reason", BAD_FILES)
def test_a_bad_file_is_a_row_with_its_reason(folder, convert, reason, capfd):
    data, words = BAD_FILES[reason]
    (folder / "bad.dcm").write_bytes(data)
    assert run(convert, folder) == 0
    [(name, (found, detail))] = rejects(folder).items()
    assert (name, found) == ("bad.dcm", reason)
    assert words in detail
    done = manifest.read(folder.parent / "out")
    assert (done.slices, done.rejects) == (3, {reason: 1})
    assert verify(folder.parent / "out").problems == []
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("change", [setting(PatientID=""), lambda dataset: dataset.__delattr__("PatientID")])
def test_a_slice_without_a_patient_cannot_be_split(folder, convert, change):
    (folder / "bad.dcm").write_bytes(edited(GOOD, change))
    assert run(convert, folder) == 0
    detail = "PatientID is empty; slices are told apart and split by their ids"
    assert rejects(folder) == {"bad.dcm": ("missing_id", detail)}
    assert manifest.read(folder.parent / "out").rejects == {"missing_id": 1}


def test_an_unreadable_file_is_a_row(folder, convert, monkeypatch):
    """Root reads everything, so the refusal is put into os.open."""
    real_open = os.open

    def refusing(path, *args, **kwargs):
        if str(path).endswith("ID_b.dcm"):
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refusing)
    assert run(convert, folder) == 0
    assert rejects(folder)["ID_b.dcm"][0] == "unreadable_file"
    assert manifest.read(folder.parent / "out").slices == 2


def test_a_file_that_vanishes_between_index_and_conversion_is_a_row(folder, convert, monkeypatch):
    real_read = sources.SliceReader.read

    def losing(self, ref):
        if ref.name == "ID_b.dcm":
            (folder / "ID_b.dcm").unlink(missing_ok=True)
        return real_read(self, ref)

    monkeypatch.setattr(sources.SliceReader, "read", losing)
    assert run(convert, folder) == 0
    assert rejects(folder)["ID_b.dcm"][0] == "unreadable_file"
    assert verify(folder.parent / "out").problems == []


def zipped(folder: Path) -> Path:
    path = folder.parent / "in.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return path


def test_a_zip_with_a_wrong_crc_rejects_that_slice(folder, convert):
    path = zipped(folder)
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("ID_b.dcm").header_offset
    data = bytearray(path.read_bytes())
    data[offset + 14] ^= 1  # in the local header, which nobody trusts
    central = data.rindex(b"ID_b.dcm") - 46
    data[central + 16] ^= 1  # in the central directory
    path.write_bytes(data)
    assert (
        convert("--input", path, "--labels", "none", "--output", folder.parent / "out", "--max_reject_fraction", 0.9)
        == 0
    )
    assert rejects(folder)["ID_b.dcm"][0] == "crc_mismatch"
    assert manifest.read(folder.parent / "out").slices == 2


def one_line(capsys) -> str:
    """The last words on stderr, which must be one line and no traceback."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


def test_a_folder_without_slices(tmp_path, convert, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("x")
    assert run(convert, tmp_path / "in") == 2
    assert one_line(capsys).startswith("convert: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["nowhere", "nothing_*.dcm", "ftp://host/prefix"])
def test_an_input_that_is_not_there(tmp_path, convert, capsys, name):
    place = name if "://" in name else tmp_path / name
    assert convert("--input", place, "--labels", "none", "--output", tmp_path / "out") == 2
    assert name.split("/")[-1] in one_line(capsys)


def test_only_unusable_files(folder, convert, capsys):
    for path in folder.iterdir():
        path.write_bytes(b"")
    assert run(convert, folder, "--max_reject_fraction", 1) == 2
    assert "no slice can be converted: 3 empty_file" in one_line(capsys)


def test_labels_for_absent_slices_are_counted(folder, convert, capsys):
    labels = label_file(folder.parent / "l.csv", "ID_a", "ID_b", "ID_c", "ID_gone")
    assert run(convert, folder, labels=labels) == 0
    assert manifest.read(folder.parent / "out").labels_unused == 1
    assert "labels of slices that are not in the data set: 1" in capsys.readouterr().out


def test_slices_without_labels_are_rows(folder, convert):
    labels = label_file(folder.parent / "l.csv", "ID_a", "ID_b")
    assert run(convert, folder, labels=labels) == 0
    assert rejects(folder)["ID_c.dcm"][0] == "no_label"


def test_labels_of_other_slices_only(folder, convert, capsys):
    labels = label_file(folder.parent / "l.csv", "ID_q")
    assert run(convert, folder, labels=labels) == 2
    assert "no slice can be converted: 3 no_label" in one_line(capsys)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("ID,Label\nID_a_any,2\n", "2"),
        ("ID,Label\nID_a_nonsense,1\n", "nonsense"),
        (None, "no such file"),
    ],
)
def test_bad_labels(folder, convert, capsys, text, words):
    path = folder.parent / "l.csv"
    if text is not None:
        path.write_text(text)
    assert run(convert, folder, labels=path) == 2
    assert words in one_line(capsys)
    assert not (folder.parent / "out").exists()


def test_the_output_cannot_be_made(folder, convert, capsys):
    (folder.parent / "out").write_text("a file")
    assert run(convert, folder) == 2
    assert "out" in one_line(capsys)


def test_the_output_holds_other_files(folder, convert, capsys):
    (folder.parent / "out").mkdir()
    (folder.parent / "out" / "thesis.doc").write_text("precious")
    assert run(convert, folder) == 2
    assert "thesis.doc" in one_line(capsys)


def test_the_output_cannot_be_written(folder, convert, capsys, monkeypatch):
    """Root writes everywhere, so the refusal is put into Path.mkdir."""

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert run(convert, folder) == 2
    assert "Permission denied" in one_line(capsys)


def test_two_conversions_into_one_output(folder, convert, capsys):
    with contextlib.closing(job.claim(folder.parent / "out")):
        assert run(convert, folder) == 2
        assert "another conversion is writing to" in one_line(capsys)
    assert run(convert, folder) == 0


class FullDisk:
    """Lets a file grow by some bytes, then says ENOSPC."""

    def __init__(self, file, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(28, "No space left on device")
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("victim", ["tfrecord", ".json", "slices.parquet", "index/000000.parquet"])
def test_a_full_disk(folder, convert, capsys, monkeypatch, victim):
    real = atomic.replacing

    @contextlib.contextmanager
    def filling(path, *args):
        with real(path, *args) as file:
            yield FullDisk(file, 10) if victim in str(path) else file

    monkeypatch.setattr(atomic, "replacing", filling)
    assert run(convert, folder) == 2
    assert "No space left on device" in one_line(capsys)
    with pytest.raises(manifest.DatasetError):
        verify(folder.parent / "out")
    assert not list((folder.parent / "out").rglob("*.tmp"))
    monkeypatch.setattr(atomic, "replacing", real)
    assert run(convert, folder) == 0
    assert verify(folder.parent / "out").problems == []


def test_a_really_full_disk(folder, convert, capsys):
    """The same on a small file system, where the machine lets us mount one."""
    output = folder.parent / "out"
    output.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", output], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a tmpfs needs more rights")
    try:
        assert run(convert, folder) == 2
        assert "No space left on device" in one_line(capsys)
        with pytest.raises(manifest.DatasetError):
            verify(output)
    finally:
        subprocess.run(["umount", output], check=True)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--bogus", "1"), "unknown flag --bogus"),
        (("--direct_num_workers", "1", "stray.dcm"), "stray.dcm follows no flag"),
        (("stray.dcm",), "stray.dcm follows no flag"),
        (("--direct_num_workers", "-1"), "--direct_num_workers is negative"),
        (("--runner", "Nonsense"), "--runner Nonsense: "),
        (("--runner", "DataflowRunner"), "--runner DataflowRunner: "),
        (("--spec", "rsna_icc"), "did you mean 'rsna_ich'"),
        (("--subset", "train"), "write SPLIT=N"),
        (("--subset", "train=5,train=9"), "--subset train=5,train=9: names a split twice"),
        (("--subset", "tarin=5"), "did you mean 'train'"),
        (("--subset", "train=500"), "the subset asks for 500 train slices"),
        (("--include", "*/nothing/*"), "nothing"),
    ],
)
def test_wrong_flags(folder, convert, capsys, more, words):
    assert run(convert, folder, *more) == 2
    assert words in one_line(capsys)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--input", "x"],
            "the following arguments are required: --labels, --output; `python -m beam_pipelines.convert",
        ),
        (
            ["--max_reject_fraction", "2"],
            "argument --max_reject_fraction: 2 is no number between 0 and 1, such as 0.01; `",
        ),
        (
            ["--max_reject_fraction", "1%"],
            "argument --max_reject_fraction: 1% is no number between 0 and 1, such as 0.01; `",
        ),
        (
            ["--input", "x", "--labels", "none", "--output", "o", "--job_name"],
            "argument --job_name: expected one argument",
        ),
    ],
)
def test_wrong_flags_are_one_line(flags, words, convert, capsys):
    assert convert(*flags) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"convert: {words}")
    assert told.err.count("\n") == 1


def test_formula_cells_are_neutralised(folder, convert):
    shutil.copy(folder / "ID_a.dcm", folder / "=1+1.dcm")
    assert run(convert, folder) == 0
    assert rejects(folder) == {"ID_a.dcm": ("duplicate_slice", "SOPInstanceUID ID_a stands in an earlier file too")}
    (folder / "=2+2.dcm").write_bytes(b"")
    shutil.rmtree(folder.parent / "out")
    assert run(convert, folder) == 0
    assert "\n'=2+2.dcm,,empty_file," in (folder.parent / "out" / manifest.REJECTS).read_text()


def test_an_empty_path_is_not_this_folder(tmp_path, convert, capsys):
    assert convert("--input", "", "--labels", "none", "--output", tmp_path / "out") == 2
    assert "the path is empty" in one_line(capsys)


def test_keys_that_cannot_be_used(folder, convert, capsys):
    key = folder.parent / "key"
    key.write_bytes(bytes(range(128, 160)))  # binary is welcome
    assert run(convert, folder, "--patient_key_file", key) == 0
    shutil.rmtree(folder.parent / "out")
    key.write_bytes(b"short")
    assert run(convert, folder, "--patient_key_file", key) == 2
    assert "holds 5 bytes; a patient key has 16 to 64" in one_line(capsys)
    assert run(convert, folder, "--patient_key_file", folder / "key") == 2
    assert "lies in an input folder" in one_line(capsys)
    assert not (folder / "key").exists()
