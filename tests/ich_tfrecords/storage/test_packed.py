"""What is packed, by name and by first bytes, against files that the standard library packs."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shlex
import subprocess
import tarfile
from collections import Counter

import pytest

from ich_tfrecords.storage import packed

DICOM = bytes(128) + b"DICM" + bytes(300)


def tar(mode: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        info = tarfile.TarInfo("a/IM1.dcm")
        info.size = len(DICOM)
        archive.addfile(info, io.BytesIO(DICOM))
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "packing"),
    [
        ("scans.tar", tar("w:"), ".tar"),
        ("scans.tar.gz", tar("w:gz"), ".tar.gz"),
        ("scans.TGZ", tar("w:gz"), ".tgz"),
        ("scans.tar.bz2", tar("w:bz2"), ".tar.bz2"),
        ("scans.tar.xz", tar("w:xz"), ".tar.xz"),
        ("one.dcm.gz", gzip.compress(DICOM), ".dcm.gz"),
        ("cut.tar.gz", b"", ".tar.gz"),  # its name says what it should be
        ("cd.iso", bytes(40_000), ".iso"),
        ("scans.7z", b"7z\xbc\xaf\x27\x1c\0\4", ".7z"),
        # by their first bytes alone
        ("download", gzip.compress(DICOM), ".gz"),
        ("download", bz2.compress(DICOM), ".bz2"),
        ("download", lzma.compress(DICOM), ".xz"),
        ("download", tar("w:"), ".tar"),
        ("IM1.dcm", gzip.compress(DICOM), ".gz"),
        ("download", b"7z\xbc\xaf\x27\x1c\0\4", ".7z"),
        ("download", b"Rar!\x1a\x07\x01\0", ".rar"),
        ("download", b"\x28\xb5\x2f\xfd\0", ".zst"),
        # not packed, or no slices in it
        ("IM1.gz", DICOM, ""),
        ("IM1", b"\x1f\x8b" + DICOM[2:], ""),  # a preamble may hold anything (PS3.10 7.1)
        ("labels.csv.gz", gzip.compress(b"ID,Label"), ""),
        ("head.nii.gz", gzip.compress(bytes(400)), ""),
        ("a.zip", b"PK\x03\x04", ""),
        ("IM1", b"", ""),
        ("notes.txt", b"BZhello", ""),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",  # packing writes the time
)
def test_packing(name, data, packing):
    assert packed.packing(name, data[: packed.HEAD_BYTES]) == packing


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a/b.ZIP", ".ZIP"),
        ("x.tar.gz", ".tar.gz"),
        ("IM.dcm.GZ", ".dcm.GZ"),
        ("1.2.840.gz", ".gz"),
        ("notes.txt", ".txt"),
        ("y.", "other"),
        ("Jane.Doe", "other"),  # names of people are not told
        ("report of Dr. Roe", "other"),
        ("zip", "other"),
        ("a.zip\n", "other"),
    ],
)
def test_only_known_suffixes_are_told(name, suffix):
    assert packed.suffix(name) == suffix


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scans.tar", "two words.tar.gz", "one.dcm.gz", "one.dcm.bz2", "one.dcm.xz"])
def test_the_command_of_the_advice_unpacks(tmp_path, name):
    whole = tar("w:")
    packers = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".tar": bytes}
    content = whole if ".tar" in name else DICOM
    (tmp_path / name).write_bytes(packers[name[name.rindex(".") :]](content))
    line = packed.advice(str(tmp_path / name), packed.suffix(name))
    assert "\n" not in line
    (tmp_path / "here").mkdir()
    subprocess.run(shlex.split(line.rpartition("folder: ")[2]), cwd=tmp_path / "here", check=True)
    fresh = [path for path in tmp_path.rglob("*.dcm") if path.is_file()]
    assert [path.read_bytes() for path in fresh] == [DICOM]


def test_what_has_another_name_is_left_to_7z():
    assert packed.advice("in/download", ".gz").endswith("folder: 7z x in/download")
    assert packed.advice("in/download", ".tar").endswith("folder: tar xf in/download")
    assert packed.advice("in/a.rar", ".rar").endswith("folder: 7z x in/a.rar")


def test_an_object_is_fetched_first():
    line = packed.advice("gs://b/p q/t.tar.gz", ".tar.gz")
    assert line.endswith("folder: gcloud storage cp 'gs://b/p q/t.tar.gz' . && tar xf t.tar.gz")


def test_archives_left_aside_get_a_line_of_their_own():
    ignored = Counter({".txt": 3, ".zip": 2, ".tar.gz": 1, "other": 1})
    assert packed.counted(ignored) == "3 .txt, 2 .zip, 1 .tar.gz, 1 other"
    assert packed.unread(ignored) == (
        "NOT READ: 2 .zip, 1 .tar.gz, which may hold slices; add --input 'FOLDER/**/*.zip' for zips in a folder, "
        "and unpack a zip that holds zips; unpack .tar.gz first"
    )
    assert "--input 'FOLDER/**/*.ZIP' --input 'FOLDER/**/*.zip'" in packed.unread(Counter({".zip": 2, ".ZIP": 1}))
    assert "; give only --input 'FOLDER/**/*.zip' for" in packed.unread(Counter({".zip": 2}), beside=False)
    assert packed.unread(Counter({".txt": 3, ".nii.gz": 1, ".csv.gz": 1})) == ""
