"""What people bring, from the command line to the data set: hospital CDs, archives, names and ids of all kinds."""

from __future__ import annotations

import csv
import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from dicom_files import JPEG_LOSSLESS_SV1, compressed_file, dicom_file, head_slice, slice_elements

from ich_tfrecords.dataset import manifest
from ich_tfrecords.dataset.verify import verify
from ich_tfrecords.dicom import jpeg_compiled
from ich_tfrecords.spec import load

LABELS = load("rsna_ich").labels
NFC, NFD = "M\u00fcller", "Mu\u0308ller"
REPORT = b"1.2.840.10008.5.1.4.1.1.88.67"  # X-Ray Radiation Dose SR


def ct(uid: str, **changes: bytes | None) -> bytes:
    place = f"-125\\-120\\{sum(uid.encode())}".encode()
    return dicom_file(slice_elements(head_slice(8), SOPInstanceUID=uid.encode(), ImagePositionPatient=place, **changes))


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def run(convert, place: object, labels: object = "none", *more: object) -> int:
    output = Path(str(place)).parent / "out"
    return convert("--input", place, "--labels", labels, "--output", output, *more)


def rejects(out: Path) -> dict[str, tuple[str, str]]:
    with (out / manifest.REJECTS).open(newline="", encoding="utf-8") as file:
        return {row["name"]: (row["reason"], row["detail"]) for row in csv.DictReader(file)}


def label_file(path: Path, *ids: str, column: str = "sop_uid") -> Path:
    lines = [",".join([column, *LABELS.names]), *(f'"{name}",0,0,0,0,0,0' for name in ids)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def cd(tmp_path: Path) -> Path:
    """28 slices without suffix, and what else lies on a CD from a hospital."""
    slices = {f"S1/IM{number:04}": ct(f"1.2.{number}") for number in range(1, 29)}
    others = {
        "DICOMDIR": ct("1.3.1", PixelData=None, Modality=None, SOPClassUID=b"1.2.840.10008.1.3.10"),
        "LICENSE": b"MIT\n" * 100,
        "AUTORUN.INF": b"[autorun]",
        "S0/IM0001": ct("1.3.2", ImageType=b"ORIGINAL\\PRIMARY\\LOCALIZER"),
        "S9/IM0001": ct("1.3.3", PixelData=None, Modality=b"SR", SOPClassUID=REPORT),
        "S1/._IM0001": b"\0\5\26\7",
        ".DS_Store": b"\0\0\0\1Bud1",
    }
    return put(tmp_path / "cd", slices | others)


def test_a_hospital_cd_converts(cd, convert, capfd):
    assert run(convert, cd) == 0
    out = cd.parent / "out"
    assert manifest.read(out).slices == 28
    found = {name: reason for name, (reason, _) in rejects(out).items()}
    expected = {"DICOMDIR": "no_pixel_data", "LICENSE": "not_dicom", "S0/IM0001": "localizer"}
    assert found == {**expected, "S9/IM0001": "no_pixel_data"}
    err = capfd.readouterr().err
    assert "32 files to read (1 with other suffixes left aside: 1 .INF)" in err
    assert (
        "\n4 files are no axial CT slices, which is no fault of the input: 2 no_pixel_data (first: DICOMDIR), "
        "1 not_dicom (first: LICENSE), 1 localizer (first: S0/IM0001)\n" in err
    )
    assert "NOT READ" not in err
    assert verify(out).problems == []


@pytest.mark.parametrize("column", ["sop_uid", "filename"])
def test_a_hospital_cd_with_labels_converts(cd, convert, column):
    """The localizer has no label, and needs none; nor is it told from a slice by its name."""
    ids = [f"1.2.{n}" if column == "sop_uid" else f"S1/IM{n:04}" for n in range(1, 29)]
    assert run(convert, cd, label_file(cd.parent / "l.csv", *ids, column=column)) == 0
    assert manifest.read(cd.parent / "out").slices == 28


def test_damaged_slices_of_a_cd_are_held_against_the_limit(cd, convert, capfd):
    path = cd / "S1/IM0005"
    path.write_bytes(path.read_bytes()[:-10])
    (cd / "S1/IM0006").write_bytes(b"\0" * 1000)  # a slice by its name, and nothing inside
    assert run(convert, cd) == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert "2 of 28 slices (7.1%) give no record, more than --max_reject_fraction 0.01 allows: " in line
    assert "1 truncated (first: S1/IM0005; " in line
    assert "1 not_dicom (first: S1/IM0006)" in line
    assert "localizer" not in line
    assert run(convert, cd, "none", "--max_reject_fraction", 0.08) == 0
    assert manifest.read(cd.parent / "out").rejects == {
        "localizer": 1, "no_pixel_data": 2, "not_dicom": 2, "truncated": 1,
    }  # fmt: skip


def test_a_folder_of_nothing_but_other_files_is_an_error(tmp_path, convert, capfd):
    put(tmp_path / "in", {"LICENSE": b"MIT", "IM1": ct("1.2", Modality=b"MR")})
    assert run(convert, tmp_path / "in") == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("convert: no slice can be converted: 1 not_")


def test_files_without_labels_that_are_slices_are_seen_before_any_work(tmp_path, convert, capfd):
    slices = {f"ID_{n:03}.dcm": ct(f"ID_{n:03}") for n in range(40)}
    put(tmp_path / "in", {**slices, "LICENSE": b"MIT"})
    labels = label_file(tmp_path / "l.csv", *(f"ID_{n:03}" for n in range(20)))
    assert run(convert, tmp_path / "in", labels) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert "21 of 41 files have no label in" in line
    assert (
        "(first: 'ID_020.dcm'; the label file has no row for 'ID_020'; its nearest id is 'ID_019'); choose the "
        "labelled ones with --include" in line
    )
    assert not (tmp_path / "out").exists()


def packed_file(path: Path) -> Path:
    if path.name.endswith(".dcm.gz"):
        path.write_bytes(gzip.compress(ct("1.2.9")))
    else:
        with tarfile.open(path, "w:" + {"gz": "gz", "xz": "xz"}.get(path.suffix[1:], "")) as archive:
            info = tarfile.TarInfo("a.dcm")
            info.size = len(ct("1.2.9"))
            archive.addfile(info, io.BytesIO(ct("1.2.9")))
    return path


@pytest.mark.parametrize("name", ["scans.tar", "scans.tar.gz", "scans.tar.xz", "one.dcm.gz", "tar.zip"])
def test_a_packed_input_is_one_line_that_says_how_to_go_on(tmp_path, convert, capfd, name):
    path = packed_file(tmp_path / name)
    assert run(convert, path) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    command = "gunzip -k" if name == "one.dcm.gz" else "tar xf"
    assert err.endswith(f"unpack it and give the folder: {command} {path}\n")
    assert not (tmp_path / "out").exists()


def test_archives_beside_slices_are_told_in_a_line_of_their_own(tmp_path, convert, capfd):
    folder = put(tmp_path / "in", {"a.dcm": ct("1.2.1"), "notes.txt": b"x"})
    packed_file(folder / "one.dcm.gz")
    for number in (2, 3):
        with zipfile.ZipFile(folder / f"{number}.zip", "w") as archive:
            archive.writestr(f"{number}.dcm", ct(f"1.2.{number}"))
    assert run(convert, folder) == 0
    err = capfd.readouterr().err
    assert err.startswith(
        "1 file to read (4 with other suffixes left aside: 2 .zip, 1 .dcm.gz, 1 .txt)\n"
        "NOT READ: 2 .zip, 1 .dcm.gz, which may hold slices; add --input 'FOLDER/**/*.zip' for zips in a folder, and "
        "unpack a zip that holds zips; unpack .dcm.gz first\n"
    )
    again = ("--input", folder / "**" / "*.zip", "--output", tmp_path / "all")
    assert run(convert, folder, "none", *again) == 0
    assert manifest.read(tmp_path / "all").slices == 3
    assert "NOT READ: 1 .dcm.gz," in capfd.readouterr().err


def test_names_in_another_unicode_form_than_the_list(tmp_path, convert):
    put(tmp_path / NFD, {f"{NFD}/{name}.dcm": ct(f"1.2.{at}") for at, name in enumerate(["b0", f"{NFD}1"])})
    labels = label_file(tmp_path / f"{NFD}.csv", f"{NFC}/b0.dcm", f"{NFC}/{NFC}1.dcm", column="filename")
    typed = labels.with_name(f"{NFC}.csv")
    assert run(convert, tmp_path / NFC, typed, "--include", f"{NFC}/*") == 0
    assert manifest.read(tmp_path / "out").slices == 2
    assert rejects(tmp_path / "out") == {}


def test_labels_by_their_name_in_another_unicode_form_inside_a_zip(tmp_path, convert):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("a.dcm", ct("1.2.1"))
        archive.writestr(f"{NFD}.csv", label_file(tmp_path / "l.csv", "1.2.1").read_bytes())
    assert run(convert, tmp_path / "in.zip", f"{NFC}.csv") == 0


def test_a_file_name_that_is_not_utf8_is_converted(tmp_path, convert):
    folder = put(tmp_path / "in", {"a.dcm": ct("1.2.1")})
    try:
        (folder / os.fsdecode(b"Zo\xeb.dcm")).write_bytes(ct("1.2.2"))
        (folder / os.fsdecode(b"\xff.dcm")).write_bytes(b"damaged")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    assert run(convert, folder, "none", "--max_reject_fraction", 0.5) == 0
    assert manifest.read(tmp_path / "out").slices == 2
    assert rejects(tmp_path / "out").keys() == {"\\xff.dcm"}


def test_ids_that_differ_a_little_are_matched_and_told(tmp_path, convert, capfd):
    put(tmp_path / "in", {f"{n}.dcm": ct(f"ID_{n}") for n in "abcd"})
    labels = label_file(tmp_path / "l.csv", "ID_a ", "id_b", "ID_c.dcm", "ID_d\u00a0")
    assert run(convert, tmp_path / "in", labels) == 0
    assert manifest.read(tmp_path / "out").slices == 4
    note = f"{labels}: 2 slices have their labels by an id that differs in letter case, white space or suffix"
    assert f"{note} (first: b.dcm by 'id_b')\n" in capfd.readouterr().err


def test_a_slice_without_a_label_is_told_with_the_nearest_id(tmp_path, convert, capfd):
    put(tmp_path / "in", {f"{n}.dcm": ct(f"ID_{n}") for n in "ab"})
    labels = label_file(tmp_path / "l.csv", "ID_a", "ID_b1")
    assert run(convert, tmp_path / "in", labels, "--max_reject_fraction", 0.5) == 0
    detail = "the label file has no row for 'ID_b'; its nearest id is 'ID_b1'"
    assert rejects(tmp_path / "out") == {"b.dcm": ("no_label", detail)}
    assert run(convert, tmp_path / "in", label_file(labels, "XY_a"), "--output", tmp_path / "none") == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.endswith(
        "no slice can be converted: 2 no_label (first: a.dcm; the label file has no row for 'ID_a'; "
        "its nearest id is 'XY_a')"
    )


def test_jpeg_lossless_without_numba_is_told_once_and_gives_the_same_bytes(convert, tmp_path, lose_numba, capsys):
    for number in range(3):
        uid, place = f"1.2.{number}".encode(), f"-125\\-120\\{number}".encode()
        fields = {"SOPInstanceUID": uid, "ImagePositionPatient": place}
        data = compressed_file(head_slice(16, number), JPEG_LOSSLESS_SV1, 16, tmp_path, **fields)
        put(tmp_path, {f"ct/{number}.dcm": data})
    assert convert("--input", tmp_path / "ct", "--labels", "none", "--output", tmp_path / "fast") == 0
    assert "numba" not in capsys.readouterr().err
    lose_numba()
    assert convert("--input", tmp_path / "ct", "--labels", "none", "--output", tmp_path / "plain") == 0
    assert capsys.readouterr().err.count(f"JPEG Lossless is decoded by numpy alone: {jpeg_compiled.ABSENT}\n") == 1
    shards = [sorted((tmp_path / name).glob("*.tfrecord-*")) for name in ("fast", "plain")]
    assert [path.read_bytes() for path in shards[0]] == [path.read_bytes() for path in shards[1]]
    assert sum(path.stat().st_size for path in shards[0])
