"""Listing and reading of folders, globs and zip archives, with `zipfile` as the oracle."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_tfrecords.storage import sources, zip_directory
from ich_tfrecords.storage.sources import SliceReader, SliceRef, SourceError, UnreadableSource

SLICE = bytes(range(256)) * 40 + os.urandom(3000)  # compressible in front, not behind


def make_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def make_folder(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 10)
    return root


def listed(*inputs: Path | str, include: tuple[str, ...] = ()) -> list[SliceRef]:
    return list(sources.refs(sources.list_inputs([str(text) for text in inputs], include).table))


def names(*inputs: Path | str, include: tuple[str, ...] = ()) -> list[str]:
    return [row.name for row in listed(*inputs, include=include)]


def reason(call: Callable[[], object]) -> str:
    with pytest.raises(UnreadableSource) as caught:
        call()
    assert caught.value.detail
    return caught.value.reason


def patched(path: Path, at: int, fresh: bytes) -> Path:
    """The file with some bytes replaced; a negative `at` counts from its end."""
    content = bytearray(path.read_bytes())
    at %= len(content)
    content[at : at + len(fresh)] = fresh
    path.write_bytes(content)
    return path


# Folders, files, globs.


def test_folder_lists_candidates_by_name_and_counts_the_rest(tmp_path):
    make_folder(tmp_path, "b/2.DCM", "b/x.IMA", "a.dicom", "DICOMDIR", "b/1.2.840.113", "v1.2/im")
    make_folder(tmp_path, "labels.csv", "b/readme.txt", "b/x.png", "b/y.")
    make_folder(tmp_path, ".DS_Store", "b/._2.dcm", "__MACOSX/a.dcm", ".git/a.dcm")
    listing = sources.list_inputs([str(tmp_path)])
    assert listing.table.schema == sources.LISTING_SCHEMA
    assert listing.table.column("name").to_pylist() == [
        "DICOMDIR", "a.dicom", "b/1.2.840.113", "b/2.DCM", "b/x.IMA", "v1.2/im",
    ]  # fmt: skip
    assert listing.ignored == {".csv": 1, ".txt": 1, ".png": 1, "other": 1}


def test_row_of_a_plain_file(tmp_path):
    make_folder(tmp_path, "s/a.dcm")
    os.utime(tmp_path / "s/a.dcm", ns=(5, 1_234_567_890_123_456_789))
    (row,) = listed(tmp_path)
    root = str(tmp_path.resolve())
    assert row == SliceRef(root, "s/a.dcm", -1, -1, 70, 70, -1, 1_234_567_890_123_456_789)


def test_one_file_is_a_candidate_whatever_its_suffix(tmp_path):
    make_folder(tmp_path, "odd.bin", "other.bin")
    assert names(tmp_path / "odd.bin") == ["odd.bin"]
    assert names(tmp_path / "*.bin") == ["odd.bin", "other.bin"]
    with SliceReader() as reader:
        assert bytes(reader.read(listed(tmp_path / "odd.bin")[0])) == b"odd.bin" * 10


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", ["p1/a.dcm", "p1/s/b.dcm", "p2/a.dcm"]),  # folders are walked
        ("*/a.dcm", ["p1/a.dcm", "p2/a.dcm"]),
        ("p[2-9]/*", ["p2/a.dcm"]),
        ("**/*.dcm", ["p1/a.dcm", "p1/s/b.dcm", "p2/a.dcm"]),  # ** also means no folder at all
        ("**", ["p1/a.dcm", "p1/s/b.dcm", "p2/a.dcm"]),
        ("p?/s", ["p1/s/b.dcm"]),
    ],
)
def test_glob_names_are_relative_to_the_part_without_wildcards(tmp_path, pattern, expected):
    make_folder(tmp_path, "p1/a.dcm", "p1/s/b.dcm", "p2/a.dcm", ".hidden/a.dcm")
    rows = listed(tmp_path / pattern)
    assert [row.name for row in rows] == expected
    assert {row.container for row in rows} == {str(tmp_path.resolve())}


def test_name_with_wildcard_characters_is_taken_as_it_stands(tmp_path):
    make_folder(tmp_path, "scan[1]/a.dcm", "scan1/b.dcm")
    assert names(tmp_path / "scan[1]") == ["a.dcm"]


def test_glob_of_archives(tmp_path):
    make_zip(tmp_path / "b.zip", {"x.dcm": b"b"})
    make_zip(tmp_path / "a.zip", {"y.dcm": b"a"})
    rows = listed(tmp_path / "*.zip")
    assert [(Path(row.container).name, row.name) for row in rows] == [("a.zip", "y.dcm"), ("b.zip", "x.dcm")]


def test_file_of_two_inputs_is_listed_once_whatever_their_order(tmp_path):
    make_folder(tmp_path, "p/a.dcm", "p/s/b.dcm", "p/note.txt")
    archive = make_zip(tmp_path / "z.zip", {"c.dcm": b"c"})
    inputs = [tmp_path / "p", tmp_path / "p/s", tmp_path / "p/a.dcm", tmp_path / "p/*/b.dcm", archive, archive]
    expected = ["a.dcm", "s/b.dcm", "c.dcm"]
    assert names(*inputs) == expected
    assert names(*reversed(inputs)) == expected
    # Left aside by the walk, and yet named by the user: it is listed.
    assert names(tmp_path / "p", tmp_path / "p/note.txt") == ["a.dcm", "note.txt", "s/b.dcm"]


def test_links_are_followed_once(tmp_path):
    make_folder(tmp_path, "p/a.dcm", "p/s/b.dcm", "elsewhere/c.dcm", "elsewhere/raw.bin")
    (tmp_path / "p/s/loop").symlink_to(tmp_path / "p")
    (tmp_path / "p/other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "p/again.dcm").symlink_to(tmp_path / "p/a.dcm")
    (tmp_path / "p/linked.dcm").symlink_to(tmp_path / "elsewhere/raw.bin")
    assert names(tmp_path / "p") == ["a.dcm", "linked.dcm", "other/c.dcm", "s/b.dcm"]


def test_broken_links_are_listed_and_fail_when_read(tmp_path):
    (tmp_path / "gone.dcm").symlink_to(tmp_path / "nowhere/x")
    (tmp_path / "self.dcm").symlink_to(tmp_path / "self.dcm")
    rows = listed(tmp_path)
    assert [(row.name, row.size_bytes, row.version) for row in rows] == [
        ("gone.dcm", -1, -1),
        ("self.dcm", -1, -1),
    ]
    for row in rows:
        assert reason(lambda row=row: SliceReader().read(row)) == "unreadable_file"
        assert reason(lambda row=row: SliceReader().read_head(row, 100)) == "unreadable_file"


def test_special_file_is_not_listed(tmp_path):
    make_folder(tmp_path, "a.dcm")
    os.mkfifo(tmp_path / "pipe")
    listing = sources.list_inputs([str(tmp_path)])
    assert listing.table.column("name").to_pylist() == ["a.dcm"]
    assert listing.ignored == {"pipe or device": 1}


def test_include_selects_by_name_in_folders_and_archives(tmp_path):
    make_folder(tmp_path / "d", "stage_2_train/a.dcm", "stage_2_test/b.dcm")
    archive = make_zip(tmp_path / "z.zip", {"k/stage_2_train/c.dcm": b"c", "k/stage_2_test/d.dcm": b"d"})
    train = ("*/stage_2_train/*",)
    assert names(tmp_path / "d", archive, include=train) == ["stage_2_train/a.dcm", "k/stage_2_train/c.dcm"]
    assert names(archive, include=("*c.dcm", "*d.dcm")) == ["k/stage_2_test/d.dcm", "k/stage_2_train/c.dcm"]
    assert names(tmp_path / "d", include=("stage_2_test/*",)) == ["stage_2_test/b.dcm"]


@pytest.mark.parametrize(
    ("inputs", "include", "message"),
    [
        ([], (), "no input given"),
        (["s3://bucket/data"], (), "s3://bucket/data: only gs:// and local paths"),
        (["gs://"], (), "names no bucket; write gs://bucket/folder"),
        (["{root}/nowhere"], (), "nowhere: no such file or folder"),
        (["{root}/nowhere/*.dcm"], (), "there is no folder .*nowhere"),
        (["{root}/*.nii"], (), "the pattern matches nothing"),
        (["{root}/texts"], (), "texts: no slice among 1 file in 1 folder"),
        (["{root}/data", "{root}/texts"], (), "texts: no slice"),  # each input must give something
        (["{root}/texts.zip"], (), r"texts.zip: no slice among 1 file"),
        (["{root}/pipe"], (), "pipe: is neither a file nor a folder"),
        (["{root}/data"], ("*/train/*",), r"include \*/train/\* matches none"),
    ],
)
def test_input_without_slices_is_refused(tmp_path, inputs, include, message):
    make_folder(tmp_path, "texts/a.txt", "data/a.dcm")
    make_zip(tmp_path / "texts.zip", {"a.txt": b"", "empty/": b"", ".hidden": b""})
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match=message) as caught:
        sources.list_inputs([text.format(root=tmp_path) for text in inputs], include)
    assert "\n" not in str(caught.value)


def test_unreadable_folder_is_named(tmp_path, monkeypatch):
    make_folder(tmp_path, "a.dcm", "locked/b.dcm")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # chmod does not stop root, as which tests may run
    for text in (tmp_path, tmp_path / "*/*.dcm"):
        with pytest.raises(SourceError, match=r"locked: cannot be listed \(Permission denied\)"):
            sources.list_inputs([str(text)])


def test_forbidden_input_is_named(tmp_path, monkeypatch):
    make_folder(tmp_path, "download")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "download")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SourceError, match=r"download: cannot be read \(Permission denied\)"):
        sources.list_inputs([str(tmp_path / "download")])


def test_archive_without_suffix_beside_slices_is_still_read(tmp_path):
    make_folder(tmp_path, "a.dcm")
    archive = make_zip(tmp_path / "download", {"b.dcm": b"b"})
    assert "b.dcm" in names(tmp_path, archive, archive)


def raw_folder(tmp_path: Path, *raw: bytes) -> Path:
    """A folder with `a.dcm` and files whose names are not UTF-8."""
    make_folder(tmp_path, "a.dcm")
    try:
        for name in raw:
            path = tmp_path / os.fsdecode(name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(name)
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    return tmp_path


def test_file_names_that_are_not_utf8_are_escaped_and_read(tmp_path):
    raw_folder(tmp_path, b"Zo\xeb.dcm", b"M\xfcller/b\xdf.dcm")
    rows = listed(tmp_path)
    assert [row.name for row in rows] == ["M\\xfcller/b\\xdf.dcm", "Zo\\xeb.dcm", "a.dcm"]
    with SliceReader() as reader:
        assert [bytes(reader.read(row)) for row in rows[:2]] == [b"M\xfcller/b\xdf.dcm", b"Zo\xeb.dcm"]
        assert bytes(reader.read_head(rows[1], 2)) == b"Zo"
    assert names(tmp_path / os.fsdecode(b"Zo\xeb.dcm")) == ["Zo\\xeb.dcm"]
    assert names(tmp_path / os.fsdecode(b"M\xfc*") / "*.dcm") == ["M\\xfcller/b\\xdf.dcm"]


def test_a_name_that_looks_escaped_is_taken_as_it_stands(tmp_path):
    make_folder(tmp_path, "Zo\\xeb.dcm", "C:\\xray.dcm")
    with SliceReader() as reader:
        assert {row.name: bytes(reader.read(row)) for row in listed(tmp_path)} == {
            name: name.encode() * 10 for name in ("Zo\\xeb.dcm", "C:\\xray.dcm")
        }
        for name in ("No\\xeb.dcm", "..\\x2fC:\\xray.dcm"):  # bytes of ASCII are never escaped, so no path is made
            gone = listed(tmp_path)[1]._replace(name=name)
            assert reason(lambda row=gone: reader.read(row)) == "unreadable_file"


def test_an_input_folder_whose_path_is_not_utf8_is_refused_in_a_line(tmp_path):
    folder = raw_folder(tmp_path, b"M\xfcller/a.dcm") / os.fsdecode(b"M\xfcller")
    with pytest.raises(SourceError, match="this path is not UTF-8; rename it, or give a link to it") as caught:
        sources.list_inputs([str(folder)])
    assert str(caught.value).isascii()
    (tmp_path / "link").symlink_to(tmp_path)
    assert "M\\xfcller/a.dcm" in names(tmp_path / "link")


NFC, NFD = "M\u00fcller", "Mu\u0308ller"


@pytest.mark.parametrize(("disk", "typed"), [(NFC, NFD), (NFD, NFC)])
def test_inputs_are_found_in_either_unicode_form(tmp_path, disk, typed):
    """What is listed bears the name that opens it."""
    make_folder(tmp_path, f"{disk}/s1/{disk}.dcm", f"{disk}/s2/b.dcm", "other/c.dcm")
    assert names(tmp_path / typed) == [f"s1/{disk}.dcm", "s2/b.dcm"]
    assert names(tmp_path / typed / "s1" / f"{typed}.dcm") == [f"{disk}.dcm"]
    assert names(tmp_path / typed / "s*" / "b.dcm") == ["s2/b.dcm"]
    assert names(tmp_path / f"{typed}*") == [f"{disk}/s1/{disk}.dcm", f"{disk}/s2/b.dcm"]
    assert names(tmp_path, include=(f"{typed}/s2/*",)) == [f"{disk}/s2/b.dcm"]
    with pytest.raises(SourceError, match="no such file or folder"):
        sources.list_inputs([str(tmp_path / f"{typed}x")])
    archive = make_zip(tmp_path / "a.zip", {f"{disk}/x.dcm": b"x", f"{disk}.csv": b"ID"})
    assert names(archive, include=(f"{typed}/*",)) == [f"{disk}/x.dcm"]
    assert sources.read_member(archive, f"{typed}.csv") == b"ID"


def tar_gz(path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.dcm"))
    return path


@pytest.mark.parametrize("name", ["scans.tar.gz", "scans.tgz", "download", "a.dcm"])
def test_a_packed_input_is_refused_with_the_command_that_unpacks_it(tmp_path, name):
    tar_gz(tmp_path / name)
    for text in (tmp_path / name, tmp_path / f"{name}*"):
        if name != "a.dcm" or text.exists():  # a glob does not open what is called like a slice
            line = refused(Path(text), name)
            assert "is packed (" in line
            assert line.endswith(f" {tmp_path}/{name}")


def test_archives_beside_slices_are_named_with_their_counts(tmp_path):
    make_folder(tmp_path, "d/a.dcm", "d/b.dcm.gz", "d/s/notes.txt", "d/Jane.Doe", "d/nii/h.nii.gz")
    make_zip(tmp_path / "d/s/one.zip", {"c.dcm": b"c"})
    make_zip(tmp_path / "d/two.ZIP", {"d.dcm": b"d"})
    tar_gz(tmp_path / "d/three.tar.gz")
    listing = sources.list_inputs([str(tmp_path / "d")])
    assert listing.table["name"].to_pylist() == ["a.dcm", "nii/h.nii.gz"]
    expected = {".zip": 1, ".ZIP": 1, ".dcm.gz": 1, ".tar.gz": 1, ".txt": 1, "other": 1}
    assert listing.ignored == expected
    # the step that the line names; what is read is not left aside any more
    both = sources.list_inputs([str(tmp_path / name) for name in ("d", "d/**/*.zip", "d/**/*.ZIP")])
    assert both.table["name"].to_pylist() == ["a.dcm", "nii/h.nii.gz", "c.dcm", "d.dcm"]
    assert both.ignored == {kind: count for kind, count in expected.items() if kind.lower() != ".zip"}
    # a glob of files takes all but what is packed
    globbed = sources.list_inputs([str(tmp_path / "d/*.*")])
    assert globbed.table["name"].to_pylist() == ["Jane.Doe", "a.dcm", "d.dcm"]
    assert globbed.ignored == {".dcm.gz": 1, ".tar.gz": 1}


def test_a_packed_file_without_a_suffix_among_the_files_of_a_glob_is_named(tmp_path):
    make_folder(tmp_path, "a.dcm", "IM2")
    tar_gz(tmp_path / "download")
    listing = sources.list_inputs([str(tmp_path / "*")])
    assert (listing.table["name"].to_pylist(), listing.ignored) == (["IM2", "a.dcm"], {".gz": 1})


def test_zips_in_a_zip_are_named(tmp_path):
    inner = make_zip(tmp_path / "inner.zip", {"a.dcm": b"a"}).read_bytes()
    path = make_zip(tmp_path / "outer.zip", {"p/inner.zip": inner, "b.dcm": b"b", "t.tar": b"t"})
    assert sources.list_inputs([str(path)]).ignored == {".zip": 1, ".tar": 1}
    line = refused(make_zip(path, {"p/inner.zip": inner}))
    assert "no slice among 1 file (1 .zip); NOT READ: 1 .zip" in line
    assert "unpack a zip that holds zips" in line


# Zip archives.

_NAME = st.text(st.sampled_from("abcXYZ019_-. é漢"), min_size=1, max_size=12)
_MEMBER = st.tuples(
    _NAME,
    st.binary(max_size=200) | st.integers(0, 30_000).map(lambda size: bytes(size)),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    st.booleans(),  # zip64
    st.binary(max_size=20),  # comment
    st.sampled_from([b"", struct.pack("<2H5s", 0x7075, 5, b"other")]),  # an extra in front of the zip64 one
)


def write_members(path: Path, members: list[tuple], prefix: bytes, comment: bytes) -> None:
    with path.open("wb") as file:
        file.write(prefix)
        with zipfile.ZipFile(file, "w") as archive:
            archive.comment = comment
            for name, content, method, zip64, note, extra in members:
                info = zipfile.ZipInfo(f"d/n{name}.dcm")
                info.compress_type, info.comment, info.extra = method, note, extra
                with archive.open(info, "w", force_zip64=zip64) as member:
                    member.write(content)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(max_examples=80, deadline=None)
@given(
    st.lists(_MEMBER, min_size=1, max_size=6),
    st.binary(max_size=50),
    st.binary(max_size=300) | st.just(b"PK\x05\x06" * 8),
    st.integers(0, 400),
)
def test_archives_read_as_zipfile_reads_them(members, prefix, comment, head_bytes):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.zip"
        write_members(path, members, prefix, comment)
        rows = listed(path)
        if b"PK\x05\x06" not in comment:  # which zipfile itself takes for the end record
            assert_equal_to_zipfile(path, rows)
        expected = sorted((f"d/n{name}.dcm", content) for name, content, *_ in members)
        with SliceReader() as reader:
            assert sorted((row.name, bytes(reader.read(row))) for row in rows) == expected
            for row in rows:
                whole = bytes(reader.read(row))
                assert bytes(reader.read_head(row, head_bytes)) == whole[:head_bytes]


def assert_equal_to_zipfile(path: Path, rows: list[SliceRef]) -> None:
    with zipfile.ZipFile(path) as archive:
        infos = sorted(archive.infolist(), key=lambda info: info.filename)
    assert [row[1:7] for row in rows] == [
        (info.filename, info.header_offset, info.compress_type, info.compress_size, info.file_size, info.CRC)
        for info in infos
    ]


def test_directory_longer_than_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(zip_directory, "_BLOCK_BYTES", 1000)
    members = {f"s/{index % 7:0{1 + index % 40}}_{index}.dcm": b"%d" % index for index in range(500)}
    path = make_zip(tmp_path / "a.zip", {**members, "labels.csv": b"ID"}, zipfile.ZIP_STORED)
    listing = sources.list_inputs([str(path)])
    assert listing.table.column("name").to_pylist() == sorted(members)
    assert listing.ignored == {".csv": 1}
    assert_equal_to_zipfile(make_zip(path, members), listed(path))


def test_zip64_end_record_and_far_offsets(tmp_path):
    """Behind a hole of 5 GB the offsets and the place of the directory need zip64."""
    path = tmp_path / "a.zip"
    with path.open("wb") as file:
        file.truncate(5 << 30)
        file.seek(5 << 30)
        with zipfile.ZipFile(file, "w") as archive:
            archive.start_dir = file.tell()
            archive._start_disk = 0  # so that the offsets count the hole
            for index in range(70):
                archive.writestr(f"{index}.dcm", b"" if index < 69 else SLICE)
    rows = listed(path)
    assert len(rows) == 70
    last = next(row for row in rows if row.name == "69.dcm")
    assert last.offset > 5 << 30
    with path.open("rb") as file:
        file.seek(-42, os.SEEK_END)
        assert file.read(4) == b"PK\x06\x07"
    assert bytes(SliceReader().read(last)) == SLICE


def test_latin_and_parent_names_are_only_names(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"../up.dcm": b"1", "/etc/x.dcm": b"2", "./here.dcm": b"3", "cafX.dcm": b"4"})
    path.write_bytes(path.read_bytes().replace(b"cafX", b"caf\x82"))  # é in code page 437
    with SliceReader() as reader:
        assert {row.name: bytes(reader.read(row)) for row in listed(path)} == {
            "../up.dcm": b"1", "/etc/x.dcm": b"2", "./here.dcm": b"3", "café.dcm": b"4",
        }  # fmt: skip


def without_flag(path: Path) -> Path:
    """The archive without bit 11, as macOS writes it: names are UTF-8 and nothing says so."""
    data = bytearray(path.read_bytes())
    for mark, field in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(mark)
        while at >= 0:
            data[at + field + 1] &= ~0x08
            at = data.find(mark, at + 1)
    path.write_bytes(data)
    return path


def test_names_of_members_in_every_encoding_are_read(tmp_path):
    """Listed alike and found again in the local header, whichever program wrote them."""
    utf8 = {"Müller/1.dcm": b"1", "漢/2.dcm": b"2", "p\\s\\3.dcm": b"3", "v1.2\\im4": b"4"}
    with SliceReader() as reader:
        for path in (make_zip(tmp_path / "a.zip", utf8), without_flag(make_zip(tmp_path / "b.zip", utf8))):
            assert {row.name: bytes(reader.read(row)) for row in listed(path)} == {
                "Müller/1.dcm": b"1", "漢/2.dcm": b"2", "p/s/3.dcm": b"3", "v1.2/im4": b"4",
            }  # fmt: skip


def test_a_flagged_name_that_is_not_utf8_is_only_a_name(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"é.dcm": b"1", "b.dcm": b"2"})
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))
    with SliceReader() as reader:
        assert [bytes(reader.read(row)) for row in listed(path)] == [b"2", b"1"]


def test_the_unicode_path_field_gives_the_name(tmp_path):
    raw, field = b"M?ller.dcm", "Müller.dcm".encode()
    extra = struct.pack("<2HBI", 0x7075, 5 + len(field), 1, zlib.crc32(raw)) + field
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo(raw.decode())
        info.extra = struct.pack("<2HBI", 0x5455, 5, 1, 0) + extra
        archive.writestr(info, SLICE)
        archive.writestr("plain.dcm", SLICE)
    rows = listed(tmp_path / "a.zip")
    assert [row.name for row in rows] == ["Müller.dcm", "plain.dcm"]
    with SliceReader() as reader:
        for row in rows:
            assert bytes(reader.read(row)) == SLICE
            assert bytes(reader.read_head(row, 100)) == SLICE[:100]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_of_one_name_stay_both_in_the_order_of_the_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in [("b.dcm", b"first"), ("a.dcm", b"a"), ("b.dcm", b"second")]:
            archive.writestr(name, content)
    with SliceReader() as reader:
        assert [bytes(reader.read(row)) for row in listed(tmp_path / "a.zip")] == [b"a", b"first", b"second"]


def test_archive_without_the_suffix_is_known_by_its_first_bytes(tmp_path):
    assert names(make_zip(tmp_path / "download", {"a.dcm": b"a"})) == ["a.dcm"]


def entry_at(path: Path, index: int = 0) -> int:
    """Where the central directory's entry begins."""
    at = -1
    for _ in range(index + 1):
        at = path.read_bytes().index(b"PK\x01\x02", at + 1)
    return at


def refused(path: Path, name: str = "") -> str:
    with pytest.raises(SourceError) as caught:
        sources.list_inputs([str(path)])
    assert "\n" not in str(caught.value)
    assert (name or path.name) in str(caught.value)
    return str(caught.value)


def test_damaged_or_unsupported_archives_are_refused(tmp_path):
    def fresh(compression: int = zipfile.ZIP_DEFLATED) -> Path:
        return make_zip(tmp_path / "a.zip", {"a.dcm": SLICE, "b.dcm": SLICE}, compression)

    def at_entry(field: int, value: bytes, index: int = 0) -> Path:
        path = fresh()
        return patched(path, entry_at(path, index) + field, value)

    assert "member 'a.dcm' is encrypted" in refused(at_entry(8, b"\x01"))
    assert "compression method 9;" in refused(at_entry(10, b"\x09"))
    assert "compression method 12;" in refused(fresh(zipfile.ZIP_BZIP2))
    assert "lies outside the file" in refused(at_entry(42, struct.pack("<I", 1 << 30)))
    assert "lies outside the file" in refused(at_entry(20, struct.pack("<I", 1 << 30)))
    assert "member 'b.dcm' overlaps" in refused(at_entry(42, struct.pack("<I", 0), 1))
    assert "entry has no signature" in refused(at_entry(0, b"XX", 1))
    assert "lacks its zip64 sizes" in refused(at_entry(42, b"\xff" * 4))
    assert "promises 3 members and holds 2" in refused(patched(fresh(), -14, b"\3\0\3\0"))
    assert "split archive" in refused(patched(fresh(), -18, b"\1\0"))
    assert "split archive" in refused(patched(fresh(), -14, b"\1\0"))
    assert "central directory should lie" in refused(patched(fresh(), -6, struct.pack("<I", 1 << 30)))
    assert "central directory should lie" in refused(patched(fresh(), -10, struct.pack("<I", 1 << 30)))
    path = fresh()
    path.write_bytes(path.read_bytes()[:-30])
    assert "cut short" in refused(path)
    path.write_bytes(b"not a zip")
    assert "is not a zip archive" in refused(path)
    path.write_bytes(b"")
    assert "is not a zip archive" in refused(path)


def test_only_slices_need_a_supported_method(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.dcm", SLICE)
        archive.writestr("notes.txt", b"x" * 100, zipfile.ZIP_LZMA)
    assert names(tmp_path / "a.zip") == ["a.dcm"]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_flipped_bytes_raise_only_our_errors(data):
    with tempfile.TemporaryDirectory() as folder:
        path = make_zip(Path(folder) / "a.zip", {"a.dcm": b"abc" * 30, "b.dcm": b"\0" * 50})
        size_bytes = path.stat().st_size
        for _ in range(data.draw(st.integers(1, 3))):
            patched(path, data.draw(st.integers(0, size_bytes - 1)), data.draw(st.binary(min_size=1, max_size=1)))
        try:
            rows = listed(path)
        except SourceError:
            return
        with SliceReader() as reader:
            for row in rows:
                try:
                    content = bytes(reader.read(row))
                except UnreadableSource:
                    continue
                assert zlib.crc32(content) == row.crc32


# Reading.


@pytest.fixture(params=[None, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["plain", "stored", "deflated"])
def container(request, tmp_path) -> Path:
    """A folder or archive with one slice `a.dcm` that holds SLICE."""
    if request.param is not None:
        return make_zip(tmp_path / "a.zip", {"a.dcm": SLICE}, request.param)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.dcm").write_bytes(SLICE)
    return tmp_path / "d"


def test_head_is_the_beginning_of_the_slice(container):
    (row,) = listed(container)
    with SliceReader() as reader:
        assert bytes(reader.read(row)) == SLICE
        for head_bytes in (0, 1, 1000, 11_000, len(SLICE) - 1, len(SLICE), len(SLICE) + 1, 1 << 40):
            assert bytes(reader.read_head(row, head_bytes)) == SLICE[:head_bytes]


def test_head_reads_little_of_the_stream(tmp_path, monkeypatch):
    path = make_zip(tmp_path / "a.zip", {"a.dcm": os.urandom(2_000_000)})
    (row,) = listed(path)
    asked: list[int] = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, to, at: asked.append(sum(map(len, to))) or preadv(fd, to, at))
    with SliceReader() as reader:
        assert len(reader.read_head(row, 4096)) == 4096
    assert sum(asked) < 8192


def deflated(data: bytes) -> bytes:
    """A raw deflate stream."""
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(data) + deflater.flush()


def test_head_of_a_stream_longer_than_its_content(tmp_path):
    """Empty deflate blocks in front: the first step of the reader brings nothing."""
    path = make_zip(tmp_path / "a.zip", {"a.dcm": b"x" * 6000}, zipfile.ZIP_STORED)
    stream = b"\x00\x00\x00\xff\xff" * 1000 + deflated(SLICE[:500])
    stream += bytes(6000 - len(stream))
    content = path.read_bytes().replace(b"x" * 6000, stream)
    path.write_bytes(content)
    row = listed(path)[0]._replace(method=8, size_bytes=500, crc32=zlib.crc32(SLICE[:500]))
    patched(path, 8, b"\x08")
    with SliceReader() as reader:
        assert bytes(reader.read_head(row, 100)) == SLICE[:100]
        assert bytes(reader.read(row)) == SLICE[:500]


def test_buffer_and_open_archive_are_reused(tmp_path, monkeypatch):
    paths = [make_zip(tmp_path / f"{name}.zip", {"a.dcm": SLICE, "b.dcm": SLICE}, 0) for name in "xy"]
    opened: list[str] = []
    real_open = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: opened.append(path) or real_open(path, *rest))
    rows = [SliceRef(*row) for path in paths for row in listed(path)]
    opened.clear()
    with SliceReader() as reader:
        buffers = [reader.read(row).obj for row in rows]
        assert all(buffer is buffers[0] for buffer in buffers)
        assert opened == [str(path.resolve()) for path in paths]
        reader.close()
        assert bytes(reader.read(rows[0])) == SLICE  # opens the archive again
        assert len(opened) == 3


def test_slice_larger_than_the_buffer(tmp_path):
    content = os.urandom(3 << 20)
    make_folder(tmp_path, "d/small.dcm")
    (tmp_path / "d/large.dcm").write_bytes(content)
    with SliceReader() as reader:
        assert [len(reader.read(row)) for row in listed(tmp_path / "d")] == [3 << 20, 110]
        assert bytes(reader.read(listed(tmp_path / "d")[0])) == content


def test_vanished_and_forbidden_sources(container, monkeypatch):
    (row,) = listed(container)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)  # chmod does not stop root
        assert reason(lambda: SliceReader().read(row)) == "unreadable_file"
    container.rename(container.with_name("moved"))
    assert reason(lambda: SliceReader().read(row)) == "unreadable_file"
    assert reason(lambda: SliceReader().read_head(row, 10)) == "unreadable_file"


def test_shortened_and_grown_sources_have_changed(container):
    (row,) = listed(container)
    path = container / "a.dcm" if container.is_dir() else container
    whole = path.read_bytes()
    path.write_bytes(whole[:3000])
    assert reason(lambda: SliceReader().read(row)) == "changed"
    if row.method == -1:
        path.write_bytes(whole + b"more")
        assert reason(lambda: SliceReader().read(row)) == "changed"
        assert reason(lambda: SliceReader().read_head(row, 10)) == "changed"


def test_a_file_rewritten_in_place_has_changed(tmp_path):
    (tmp_path / "a.dcm").write_bytes(SLICE)
    (row,) = listed(tmp_path)
    assert bytes(SliceReader().read(row)) == SLICE
    os.utime(tmp_path / "a.dcm", ns=(row.version, row.version + 1000))
    assert reason(lambda: SliceReader().read(row)) == "changed"
    assert reason(lambda: SliceReader().read_head(row, 10)) == "changed"
    assert bytes(SliceReader().read(row._replace(version=-1))) == SLICE


def test_an_unreadable_file_does_not_tell_its_folder(tmp_path):
    folder = tmp_path / "Doe_Jane"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(SLICE)
    (row,) = listed(folder)
    (folder / "a.dcm").unlink()
    with pytest.raises(UnreadableSource) as caught:
        SliceReader().read(row)
    assert str(caught.value) == "unreadable_file: a.dcm: No such file or directory"


def test_archive_with_other_members_has_changed(tmp_path):
    (row,) = listed(make_zip(tmp_path / "a.zip", {"a.dcm": SLICE}))
    make_zip(tmp_path / "a.zip", {"b.dcm": SLICE})
    assert reason(lambda: SliceReader().read(row)) == "changed"
    make_zip(tmp_path / "a.zip", {"a.dcm": SLICE}, zipfile.ZIP_STORED)
    assert reason(lambda: SliceReader().read_head(row, 10)) == "changed"


def test_damaged_members(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"a.dcm": SLICE})
    (row,) = listed(path)
    begin = 30 + len("a.dcm")
    patched(path, begin, b"\xff" * 8)  # block type 3 does not exist
    assert reason(lambda: SliceReader().read(row)) == "inflate_failed"
    assert reason(lambda: SliceReader().read_head(row, 10)) == "inflate_failed"
    make_zip(path, {"a.dcm": SLICE})
    cut = row._replace(stored_bytes=row.stored_bytes - 100)
    assert reason(lambda: SliceReader().read(cut)) == "inflate_failed"
    assert reason(lambda: SliceReader().read_head(cut, len(SLICE))) == "inflate_failed"
    patched(path, 0, b"XX")
    assert reason(lambda: SliceReader().read(row)) == "bad_local_header"
    make_zip(path, {"a.dcm": SLICE}, zipfile.ZIP_STORED)
    (row,) = listed(path)
    patched(path, begin + 100, b"\xaa\xaa")
    assert reason(lambda: SliceReader().read(row)) == "crc_mismatch"
    assert len(SliceReader().read_head(row, 10)) == 10


def test_wrong_crc_in_the_directory(container):
    (row,) = listed(container)
    if row.method != -1:
        assert reason(lambda: SliceReader().read(row._replace(crc32=row.crc32 ^ 1))) == "crc_mismatch"


@pytest.mark.parametrize("declared_bytes", [0, 100, len(SLICE) - 1, len(SLICE) + 1])
def test_wrong_size_in_the_directory(tmp_path, declared_bytes):
    (row,) = listed(make_zip(tmp_path / "a.zip", {"a.dcm": SLICE}))
    assert reason(lambda: SliceReader().read(row._replace(size_bytes=declared_bytes))) == "size_mismatch"
    (row,) = listed(make_zip(tmp_path / "a.zip", {"a.dcm": SLICE}, zipfile.ZIP_STORED))
    assert reason(lambda: SliceReader().read(row._replace(size_bytes=declared_bytes))) == "size_mismatch"
    assert reason(lambda: SliceReader().read_head(row._replace(size_bytes=declared_bytes), 9)) == "size_mismatch"


def test_zip_bomb_inflates_no_further_than_declared(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"a.dcm": bytes(50 << 20)})
    patched(path, entry_at(path) + 24, struct.pack("<I", 1000))
    (row,) = listed(path)
    assert row.size_bytes == 1000
    assert reason(lambda: SliceReader().read(row)) == "size_mismatch"
    assert bytes(SliceReader().read_head(row, 5000)) == bytes(1000)


def test_size_cap(container, tmp_path):
    (row,) = listed(container)
    for read in (SliceReader(len(SLICE) - 1).read, lambda row: SliceReader(len(SLICE) - 1).read_head(row, 1)):
        assert reason(lambda read=read: read(row)) == "too_large"
    assert bytes(SliceReader(len(SLICE) + 100).read(row)) == SLICE
    huge = row._replace(size_bytes=sources.MAX_SLICE_BYTES + 1, stored_bytes=sources.MAX_SLICE_BYTES + 1)
    assert reason(lambda: SliceReader().read(huge)) == "too_large"


def test_error_survives_pickling():
    error = pickle.loads(pickle.dumps(UnreadableSource("changed", "a.dcm: gone")))
    assert (error.reason, error.detail, str(error)) == ("changed", "a.dcm: gone", "changed: a.dcm: gone")


@pytest.mark.slow
def test_refs_over_many_batches_and_containers(tmp_path):
    make_folder(tmp_path / "d", *(f"{index:05}.dcm" for index in range(300)))
    archive = make_zip(tmp_path / "z.zip", {f"{index:05}.dcm": b"" for index in range(5000)})
    table = sources.list_inputs([str(archive), str(tmp_path / "d")]).table
    rows = list(sources.refs(table))
    assert [row._asdict() for row in rows] == [row | {"frame": 0} for row in table.to_pylist()]
    assert rows == sorted(rows, key=lambda row: (row.container, row.name))


# Digest.


def digest(*inputs: Path) -> str:
    return sources.listing_digest(sources.list_inputs([str(path) for path in inputs]).table)


def test_digest_of_an_archive_moves_with_it(tmp_path):
    one = make_zip(tmp_path / "a.zip", {"a.dcm": b"1", "b.dcm": b"2"})
    two = make_zip(tmp_path / "b.zip", {"c.dcm": b"3"})
    before, both = digest(one), digest(one, two)
    assert digest(two, one) == both != before
    moved = one.rename(tmp_path / "z.zip")
    assert digest(moved) == before
    assert digest(moved, two) == both  # although the containers now sort the other way round
    assert digest(make_zip(one, {"b.dcm": b"2", "a.dcm": b"1"}, zipfile.ZIP_STORED)) == before
    assert digest(make_zip(one, {"a.dcm": b"1", "b.dcm": b"X"})) != before  # same size, other crc32
    assert digest(make_zip(one, {"a.dcm": b"1", "c.dcm": b"2"})) != before


def test_digest_of_files_follows_size_and_time(tmp_path):
    path = make_folder(tmp_path, "a.dcm", "b.dcm") / "a.dcm"
    os.utime(path, ns=(0, 10**18))
    before = digest(tmp_path)
    assert digest(tmp_path) == before
    os.utime(path, ns=(0, 10**18 + 1))
    assert digest(tmp_path) != before
    path.write_bytes(path.read_bytes() + b"x")
    os.utime(path, ns=(0, 10**18))
    assert digest(tmp_path) != before


def test_digest_stays_what_it_was():
    """Frozen: a data set's resume check compares the digest of its input with the one it was made from."""
    rows = [SliceRef("z", "b", 9, 8, 1, 2, 3, -1), SliceRef("d", "é/a", -1, -1, 5, 5, -1, 7)]
    table = pa.Table.from_pylist([row._asdict() for row in rows], sources.LISTING_SCHEMA)
    numbers = struct.pack("<6q", 2, 5, 3, -1, -1, 7)
    expected = hashlib.sha256(struct.pack("<2q", 1, 4) + "bé/a".encode() + numbers).hexdigest()
    assert sources.listing_digest(table) == expected


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "ab"]), st.integers(0, 2)), max_size=8), st.randoms())
def test_digest_does_not_depend_on_the_order_of_rows(pairs, random):
    def table(pairs: list[tuple[str, int]]) -> pa.Table:
        rows = [SliceRef("z", name, 0, 0, size, size, size % 2, -1)._asdict() for name, size in pairs]
        return pa.Table.from_pylist(rows, sources.LISTING_SCHEMA)

    shuffled = list(pairs)
    random.shuffle(shuffled)
    assert sources.listing_digest(table(pairs)) == sources.listing_digest(table(shuffled))
    assert sources.listing_digest(table([*pairs, ("a", 3)])) != sources.listing_digest(table(pairs))


# Single members.


def test_read_member_by_name_or_end_of_path(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"k/train.csv": b"1", "k/old/train.csv": b"2", "k/test.csv": b"3"})
    assert sources.read_member(path, "test.csv") == b"3"
    assert sources.read_member(str(path), "k/train.csv") == b"1"
    assert sources.read_member(path, "old/train.csv") == b"2"
    with pytest.raises(SourceError, match=r"has 2 members called 'train\.csv': k/train\.csv, k/old/train\.csv"):
        sources.read_member(path, "train.csv")
    with pytest.raises(SourceError, match=r"has no member called 'rain\.csv'"):
        sources.read_member(path, "rain.csv")
    with pytest.raises(SourceError, match=r"nowhere\.zip: cannot be read"):
        sources.read_member(tmp_path / "nowhere.zip", "a")


def test_read_member_refuses_damage_and_unknown_methods(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"a.csv": b"x" * 100}, zipfile.ZIP_STORED)
    patched(path, 60, b"Y")
    with pytest.raises(SourceError, match=r"member 'a.csv' is damaged \(crc_mismatch"):
        sources.read_member(path, "a.csv")
    with pytest.raises(SourceError, match="compression method 12"):
        sources.read_member(make_zip(path, {"a.csv": b"x"}, zipfile.ZIP_BZIP2), "a.csv")
