"""DICOM in, drift out: what a run keeps of a data set is what predict sees of the same files, and a shift is found."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import keras
import pydicom
import pytest

from ich_tfrecords.synthetic.rsna_layout import generate
from trainer import monitor
from trainer.data.joined import open_datasets
from trainer.models import model_file, networks
from trainer.training import scoring
from trainer.trust import drift

pytestmark = pytest.mark.slow  # predicts

SMALL = {"filters": [4, 4], "dense": [8]}
SHIFT_HU = 12


@pytest.fixture(autouse=True)
def _fewer_draws(monkeypatch):
    monkeypatch.setattr(drift, "DRAWS", 399)


@pytest.fixture(scope="module")
def slices(tmp_path_factory) -> Path:
    """The slices that `tiny_dataset` was converted from."""
    options = {"patients": 40, "test_patients": 1, "slices_per_study": 6, "positive_fraction": 0.8}
    made = generate(tmp_path_factory.mktemp("again") / "ct", **options, every_label=True, seed=5)
    return made.output / "stage_2_train"


@pytest.fixture(scope="module")
def run(about, tiny_dataset, tmp_path_factory) -> Path:
    """A model that nobody trained, which kept all series of `tiny_dataset` for those of training and of validation."""
    data = open_datasets([str(tiny_dataset)])
    known = dataclasses.replace(about, spec=data.manifest.spec, fingerprint=data.manifest.fingerprint)
    keras.utils.set_random_seed(3)
    model = networks.build("cnn", known.spec.image.shape, len(known.spec.labels.names), "none", SMALL)
    every = data.every()
    folder = tmp_path_factory.mktemp("kept") / "run" / "export"
    model_file.write(folder, model, known, scope=scoring.scope_of(model, known, every, every, lambda *_: None))
    (folder.parent / "config.yaml").write_text("model: cnn\n")
    return folder.parent


def monitored(run: Path, slices: Path, output: Path) -> dict:
    flags = ["--job_dir", str(run), "--input", str(slices), "--output", str(output)]
    assert monitor.main(flags) == 0
    return json.loads((output / "drift.json").read_text())


def test_the_files_of_training_have_not_moved(run, slices, tmp_path, capsys):
    found = monitored(run, slices, tmp_path)
    assert (found["moved"], found["patients"]) == (0, 40)
    assert max(one["separation"] for one in found["things"]) < 0.1
    assert "Nothing has moved that chance does not explain" in capsys.readouterr().out


def test_another_intercept_moves_grey_first(run, slices, tmp_path):
    for path in slices.iterdir():
        slice_ = pydicom.dcmread(path)
        slice_.RescaleIntercept = float(slice_.RescaleIntercept) + SHIFT_HU
        (tmp_path / "shifted").mkdir(exist_ok=True)
        slice_.save_as(tmp_path / "shifted" / path.name)
    found = monitored(run, tmp_path / "shifted", tmp_path / "drift")
    first = found["things"][0]
    assert (first["kind"], first["moved"]) == ("grey", True)
    assert {one["kind"] for one in found["things"] if one["moved"]} <= {"grey", "vectors", "probability"}


def test_an_input_without_a_slice_is_one_line(run, tmp_path, capsys):
    (tmp_path / "a.dcm").write_bytes(b"no slice")
    assert monitor.main(["--job_dir", str(run), "--input", str(tmp_path / "a.dcm")]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("monitor: no file gave a prediction (1 ")
