"""Prediction of a hospital's folders: one series of a study is judged, the others are rejects with their reason."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections import Counter
from pathlib import Path

import blob_dataset
import keras
import numpy as np
import pytest
from series_files import write_series

from trainer import predict
from trainer.models import model_file, networks
from trainer.models.model_file import About
from trainer.results import calibration

pytestmark = pytest.mark.slow  # the whole command, again and again

SMALL = {"filters": [4, 4], "dense": [8]}
DERIVED = b"DERIVED\\SECONDARY\\AXIAL"


def slice_model(folder: Path, spec) -> Path:
    """A small network with weights that nobody trained."""
    names = spec.labels.names
    found, even = calibration.unfitted(names, [0.0] * len(names), "none"), {name: {"even": 0.5} for name in names}
    about = About(spec, "f" * 64, {"model": "cnn"}, found, even, even, {"parameters": 1, "epoch": 1, "step": 1})
    keras.utils.set_random_seed(3)
    model_file.write(folder / "export", networks.build("cnn", spec.image.shape, len(names), "none", SMALL), about)
    return folder / "export"


@pytest.fixture(scope="module", params=["slices", "series"])
def model(request, tmp_path_factory) -> Path:
    """A model of each kind that predicts."""
    if request.param == "series":
        return request.getfixturevalue("series_run")
    return slice_model(tmp_path_factory.mktemp("model"), blob_dataset.small_spec())


@pytest.fixture
def run(model, tmp_path):
    """run(flags) -> exit code and the folder of the results, of the files in `tmp_path/ct`."""

    def predicted(*flags: str, model: Path = model, output: str = "out") -> tuple[int, Path]:
        paths = ["--model", str(model), "--input", str(tmp_path / "ct"), "--output", str(tmp_path / output)]
        return predict.main([*paths, "--pictures", "0", *flags]), tmp_path / output

    return predicted


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def judged(out: Path) -> Counter[str]:
    return Counter(row["series_uid"] for row in rows(out / "predictions.csv"))


@pytest.mark.parametrize("flags", [(), ("--series", "best")])
def test_the_plain_series_is_judged(run, tmp_path, capsys, flags):
    write_series(tmp_path / "ct", "late", ContrastBolusAgent=b"IOMEPROL")
    write_series(tmp_path / "ct", "plain", ConvolutionKernel=b"H31s", SliceThickness=b"5")
    write_series(tmp_path / "ct", "bone", ConvolutionKernel=b"H60s", SliceThickness=b"5")
    write_series(tmp_path / "ct", "thin", 20, ConvolutionKernel=b"H31s", SliceThickness=b"0.6")
    write_series(tmp_path / "ct", "scout", 1, ImageType=b"ORIGINAL\\PRIMARY\\LOCALIZER")
    code, out = run(*flags)
    assert code == 0
    assert judged(out) == {"plain": 12}
    whys = Counter((row["reason"], row["detail"], row["study_uid"]) for row in rows(out / "rejects.csv"))
    taken = "series plain was taken"
    assert whys == {
        ("other_series", f"contrast agent; {taken}", "study"): 12,
        ("other_series", f"sharp kernel H60S; {taken}", "study"): 12,
        ("other_series", f"slices of 0.6 mm, 2 to 6 mm are preferred; {taken}", "study"): 20,
        ("localizer", "ImageType is ORIGINAL\\PRIMARY\\LOCALIZER", "study"): 1,
    }
    (study,) = rows(out / "triage.csv")
    assert (study["slices"], study["rejected"], study["partial"]) == ("12", "45", "")
    told = capsys.readouterr().out
    line = "44 slices of 3 series left out, as a better series of the study was taken (1 sharp kernel, 1 c"
    assert told.count(line) == 1
    assert "without a prediction" not in told


def test_all_series_are_judged_where_that_is_asked_for(run, tmp_path):
    write_series(tmp_path / "ct", "late", ContrastBolusAgent=b"IOMEPROL")
    write_series(tmp_path / "ct", "plain")
    code, out = run("--series", "all")
    assert code == 0
    assert judged(out) == {"late": 12, "plain": 12}
    assert json.loads((out / "run.json").read_text())["flags"]["series"] == "all"


def test_the_plain_series_is_judged_as_it_is_alone(run, tmp_path):
    write_series(tmp_path / "ct", "plain")
    code, alone = run(output="alone")
    write_series(tmp_path / "ct", "late", ContrastBolusAgent=b"IOMEPROL")
    code, out = run()
    assert code == 0
    one, other = (rows(folder / "predictions.csv") for folder in (alone, out))
    assert [row["sop_uid"] for row in one] == [row["sop_uid"] for row in other]
    label = blob_dataset.small_spec().labels.any
    np.testing.assert_allclose(*([float(row[label]) for row in some] for some in (one, other)), rtol=1e-4)


def test_nothing_qualifies(run, tmp_path, capsys):
    write_series(tmp_path / "ct", "late", ContrastBolusAgent=b"IOMEPROL")
    code, out = run("--series", "best")
    assert code == 2
    told = capsys.readouterr()
    assert "no series qualifies in 1 study: study study (series late: contrast agent)" in told.out
    assert "--series all takes every one" in told.err
    assert {row["reason"] for row in rows(out / "rejects.csv")} == {"unfit_series"}
    write_series(tmp_path / "ct", "plain", study="other")
    code, out = run("--series", "best")
    assert code == 0
    ranked, unread = rows(out / "triage.csv")
    assert ranked["study_uid"] == "other"
    assert (unread["study_uid"], unread["partial"]) == ("study", "0 of 12 slices (missing: 12 unfit_series)")
    assert run()[0] == 0  # by itself it takes what there is
    assert judged(out) == {"late": 12, "plain": 12}


def test_a_model_takes_the_slices_that_its_data_set_took(run, tmp_path):
    write_series(tmp_path / "ct", "a", ImageType=DERIVED)
    code, out = run()
    assert code == 1
    assert {row["reason"] for row in rows(out / "rejects.csv")} == {"derived_secondary"}
    both = dataclasses.replace(blob_dataset.small_spec(), accept=("original", "derived"))
    code, out = run("--pictures", "1", model=slice_model(tmp_path, both), output="new")
    assert code == 0
    assert judged(out) == {"a": 12}
    assert len(list((out / "pictures").iterdir())) == 1
