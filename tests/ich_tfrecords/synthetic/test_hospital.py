"""The made-up second hospital: its files, its headers, what tells its series apart, and its labels."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pydicom
import pytest

from ich_tfrecords.dicom import ct_slice, facts
from ich_tfrecords.synthetic import command, hospital
from ich_tfrecords.synthetic.rsna_layout import RSNA_LABELS, Summary

WANTED = {"patients": 3, "test_patients": 1, "slices_per_study": 6, "every_label": True, "seed": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Summary:
    return hospital.generate(tmp_path_factory.mktemp("hospital"), **WANTED)


def read(folder: Path, series: str) -> list[ct_slice.CtSlice]:
    return [ct_slice.read_slice(path.read_bytes()) for path in sorted((folder / series).iterdir())]


def studies(made: Summary) -> list[Path]:
    return sorted((made.output / "ct").iterdir())


def test_headers_tell_the_series_apart(made):
    for folder in studies(made):
        told = {word: facts.of(read(folder, word)[0].header.facts) for word in ("plain", "bone", "contrast")}
        assert {word: (one.kernel, one.contrast) for word, one in told.items()} == {
            "plain": ("H31S", False),
            "bone": ("H60S", False),
            "contrast": ("H31S", True),
        }
        assert {one[:2] for one in told.values()} == {("synthetic", "Phantom 2")}
        headers = [one.header for word in told for one in read(folder, word)]
        assert len({header.series_uid for header in headers}) == 3
        assert len({header.sop_uid for header in headers}) == len(headers)
        assert {header.study_uid for header in headers} == {folder.name}
        (localizer,) = (folder / "localizer").iterdir()
        with pytest.raises(ct_slice.UnsupportedSlice, match="localizer"):
            ct_slice.read_slice(localizer.read_bytes())


def test_the_series_show_one_head_each_in_its_way(made):
    """The bone kernel is sharper and noisier, contrast brighter; the middle of the head is the same."""
    plain, bone, contrast = (read(studies(made)[0], word)[3].hu.astype(float) for word in ("plain", "bone", "contrast"))
    brain = (plain > 20) & (plain < 45)
    assert brain.sum() > 10_000
    assert abs(plain[brain].mean() - bone[brain].mean()) < 2
    assert bone[brain].std() > 3 * plain[brain].std()
    assert 5 < contrast[brain].mean() - plain[brain].mean() < 15


def test_the_tilt_is_that_of_the_orientation(made):
    for folder in studies(made):
        (path, *_) = sorted((folder / "plain").iterdir())
        header = pydicom.dcmread(path)
        normal_z = np.cross(*np.array(header.ImageOrientationPatient, float).reshape(2, 3))[2]
        assert np.isclose(np.degrees(np.arccos(normal_z)), abs(float(header.GantryDetectorTilt)), atol=0.01)
        assert header.ImageType == ["ORIGINAL", "PRIMARY", "AXIAL"]


def test_a_study_has_the_labels_of_its_slices(made):
    with (made.output / "studies.csv").open(newline="") as file:
        rows = {row.pop("study_uid"): row for row in csv.DictReader(file)}
    assert rows.keys() == {folder.name for folder in studies(made)}  # the test patients have none
    assert rows.keys() == {one.study_uid for one in made.slices if one.split == "train"}
    for uid, row in rows.items():
        slices = [one.labels for one in made.slices if one.study_uid == uid]
        assert [int(row[name]) for name in RSNA_LABELS] == np.max(slices, axis=0).tolist()
    assert all(any(row[name] == "1" for row in rows.values()) for name in RSNA_LABELS)
    assert len(list((made.output / "ct_unlabelled").iterdir())) >= 1


@pytest.mark.slow
def test_the_same_arguments_give_the_same_bytes(made, tmp_path):
    hospital.generate(tmp_path, **WANTED)

    def sums(folder: Path) -> dict[str, str]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    assert sums(tmp_path) == sums(made.output)


def test_the_command(tmp_path, capsys):
    flags = ["--hospital", "--patients", "1", "--test_patients", "0", "--slices_per_study", "2"]
    assert command.main(["--output", str(tmp_path / "out"), *flags]) == 0
    assert "train and 0 test slices" in capsys.readouterr().out
    assert (tmp_path / "out" / "studies.csv").exists()
    assert command.main(["--output", str(tmp_path / "new"), *flags, "--zip"]) == 2
    assert "--hospital writes folders without RSNA's defects: leave out --zip" in capsys.readouterr().err
    assert command.main(["--output", str(tmp_path / "out"), *flags]) == 2
    assert "is not an empty directory" in capsys.readouterr().err
