"""One SOP UID in several files, from the files to the data set: copies are told from other slices by their pixels."""

from __future__ import annotations

import csv
import hashlib
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from dicom_files import BIG, EXPLICIT, dicom_file, head_slice, slice_elements

from ich_tfrecords.dataset import manifest
from ich_tfrecords.dataset.verify import verify
from ich_tfrecords.storage.slice_reader import SliceReader, UnreadableSource


def write(path: Path, uid: str, seed: int = 0, syntax: str = EXPLICIT, **changes: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dicom_file(slice_elements(head_slice(seed=seed), SOPInstanceUID=uid.encode(), **changes), syntax))
    return path


def rejects(output: Path) -> dict[str, tuple[str, str]]:
    with (output / manifest.REJECTS).open(newline="") as file:
        return {row["name"]: (row["reason"], row["detail"]) for row in csv.DictReader(file)}


def shards(output: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in output.glob("*.tfrecord*")}


@pytest.fixture
def converted(tmp_path, convert):
    """converted(*inputs) -> a verified data set of all that can be used, unlabelled."""

    def run(*inputs: Path, output: str = "out", more: tuple[object, ...] = ()) -> Path:
        given = [part for one in inputs for part in ("--input", one)]
        flags = ("--labels", "none", "--max_reject_fraction", 1, "--output", tmp_path / output, *more)
        assert convert(*given, *flags) == 0
        assert verify(tmp_path / output).problems == []
        return tmp_path / output

    return run


def slices(output: Path) -> list[str]:
    return sorted(pq.read_table(output / manifest.SLICES)["sop_uid"].to_pylist())


def detail(uid: str, files: int) -> str:
    return f"SOPInstanceUID {uid} stands in {files} files with different pixels, so it names none"


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["here", "processes"])
def test_different_pixels_under_one_uid_are_no_copies(tmp_path, converted, runner):
    """A bad anonymiser gave one SOP UID to all slices (dcm2niix#211): none may be taken for the others."""
    for number in range(3):
        write(tmp_path / "in" / f"a{number}.dcm", "1.2", seed=number)
    write(tmp_path / "in" / "copy.dcm", "1.2", seed=1)
    write(tmp_path / "in" / "good.dcm", "1.3")
    more = ("--direct_num_workers", 2, "--direct_running_mode", "multi_processing") if runner == "processes" else ()
    output = converted(tmp_path / "in", more=more)
    assert slices(output) == ["1.3"]
    names = ["a0.dcm", "a1.dcm", "a2.dcm", "copy.dcm"]
    assert rejects(output) == dict.fromkeys(names, ("uid_conflict", detail("1.2", 4)))
    assert manifest.read(output).rejects == {"uid_conflict": 4}


def test_one_level_of_one_pixel_is_enough(tmp_path, converted):
    stored = head_slice()
    for number in range(2):
        stored[16, 16] += number
        elements = slice_elements(stored, SOPInstanceUID=b"1.2")
        write(tmp_path / "in" / "good.dcm", "1.3")
        (tmp_path / "in" / f"{number}.dcm").write_bytes(dicom_file(elements))
    assert {reason for reason, _ in rejects(converted(tmp_path / "in")).values()} == {"uid_conflict"}


def test_the_same_hu_stored_otherwise_are_a_copy(tmp_path, converted):
    write(tmp_path / "in" / "a.dcm", "1.2")
    write(tmp_path / "in" / "b.dcm", "1.2", syntax=BIG)
    shifted = slice_elements(head_slice() + np.int16(24), SOPInstanceUID=b"1.2", RescaleIntercept=b"-1048")
    (tmp_path / "in" / "c.dcm").write_bytes(dicom_file(shifted))
    output = converted(tmp_path / "in")
    told = ("duplicate_slice", "SOPInstanceUID 1.2 stands in an earlier file too")
    assert (slices(output), rejects(output)) == (["1.2"], {"b.dcm": told, "c.dcm": told})


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_given_twice_gives_the_same_shards(tmp_path, converted, synthetic_set, packed):
    folder = synthetic_set.output / "stage_2_train"
    once = converted(folder, output="once")
    if packed:
        other = tmp_path / "second.zip"
        with zipfile.ZipFile(other, "w") as archive:
            for path in folder.iterdir():
                archive.write(path, f"second/{path.name}")
    else:
        other = Path(shutil.copytree(folder, tmp_path / "second"))
    for output, inputs in (("there", (folder, other)), ("back", (other, folder))):
        twice = converted(*inputs, output=output)
        assert shards(twice) == shards(once)
        assert Counter(manifest.read(twice).rejects) == {"duplicate_slice": len(list(folder.iterdir()))}
    assert (tmp_path / "there" / manifest.REJECTS).read_bytes() == (tmp_path / "back" / manifest.REJECTS).read_bytes()


def test_too_many_repeats_are_told_before_any_slice_is_converted(tmp_path, convert, synthetic_set, capsys, monkeypatch):
    folder = synthetic_set.output / "stage_2_train"
    other = shutil.copytree(folder, tmp_path / "second")
    monkeypatch.setattr("ich_tfrecords.conversion.steps.write_shard", lambda *_: pytest.fail("converted all the same"))
    inputs = ("--input", folder, "--input", other)
    assert convert(*inputs, "--labels", "none", "--output", tmp_path / "out") == 1
    assert "(50.0%) give no record" in (err := capsys.readouterr().err)
    assert " duplicate_slice (first: " in err
    assert "stands in an earlier file too; pixels were not compared yet)" in err


@pytest.mark.parametrize("bad", ["a.dcm", "b.dcm"])
@pytest.mark.parametrize("late", [False, True])
def test_a_damaged_copy_is_damaged_and_the_good_one_converts(tmp_path, converted, bad, late, monkeypatch):
    """Whether the header shows it or not, and whichever comes first; the record is that of one whole file."""
    for name in ("a.dcm", "b.dcm", "c.dcm"):
        write(tmp_path / "in" / name, "1.2")
    only = converted(write(tmp_path / "one" / "a.dcm", "1.2").parent, output="once")
    if late:
        read = SliceReader.read

        def damaged(self, row):
            if row.name == bad:
                raise UnreadableSource("crc_mismatch", "x")
            return read(self, row)

        monkeypatch.setattr(SliceReader, "read", damaged)
    else:
        path = tmp_path / "in" / bad
        path.write_bytes(path.read_bytes()[:-100])
    output = converted(tmp_path / "in")
    reasons = {name: reason for name, (reason, _) in rejects(output).items()}
    copies = sorted({"a.dcm", "b.dcm", "c.dcm"} - {bad})[1:]
    assert reasons == {bad: "crc_mismatch" if late else "truncated", **dict.fromkeys(copies, "duplicate_slice")}
    assert shards(output) == shards(only)


def test_damaged_files_do_not_count_among_those_that_conflict(tmp_path, converted):
    for number in range(3):
        write(tmp_path / "in" / f"{number}.dcm", "1.2", seed=number)
    write(tmp_path / "in" / "good.dcm", "1.3")
    path = tmp_path / "in" / "0.dcm"
    path.write_bytes(path.read_bytes()[:-100])
    found = rejects(converted(tmp_path / "in"))
    assert found["0.dcm"][0] == "truncated"
    assert {found[name] for name in ("1.dcm", "2.dcm")} == {("uid_conflict", detail("1.2", 2))}


def test_repeats_outside_the_subset_are_rows_too(tmp_path, converted):
    for number in range(6):
        for name in ("a", "b"):
            write(tmp_path / "in" / f"{number}{name}.dcm", f"1.{number}", SeriesInstanceUID=f"2.{number}".encode())
    (tmp_path / "spec.yaml").write_text("extends: rsna_ich\nname: one_split\nsplit: {weights: {train: 1}}\n")
    output = converted(tmp_path / "in", more=("--spec", tmp_path / "spec.yaml", "--subset", "train=2"))
    done = manifest.read(output)
    assert (done.slices, done.not_drawn, done.rejects) == (2, 4, {"duplicate_slice": 6})
    assert sum("not compared" in told for _, told in rejects(output).values()) == 4


def test_an_interrupted_conversion_with_repeats_ends_in_the_same_bytes(tmp_path, converted, convert, monkeypatch):
    for number in range(8):
        for name in ("a", "b"):
            seed = number + (name == "b" and number % 3 == 0)
            write(tmp_path / "in" / f"{number}{name}.dcm", f"1.{number}", seed)
    whole = converted(tmp_path / "in", output="whole")
    from ich_tfrecords.storage import atomic

    real, made = atomic.replacing, []

    def stop_after_three(path, *args):
        if ".tfrecord" in path.name:
            made.append(path)
            if len(made) > 3:
                raise KeyboardInterrupt
        return real(path, *args)

    monkeypatch.setattr(atomic, "replacing", stop_after_three)
    flags = ("--labels", "none", "--max_reject_fraction", 1, "--output", tmp_path / "out")
    assert convert("--input", tmp_path / "in", *flags) in (1, 130)
    monkeypatch.setattr(atomic, "replacing", real)
    done = converted(tmp_path / "in")
    names = [path.name for path in whole.iterdir()]
    assert all((done / name).read_bytes() == (whole / name).read_bytes() for name in names)
    assert Counter(reason for reason, _ in rejects(done).values()) == {"uid_conflict": 6, "duplicate_slice": 5}
