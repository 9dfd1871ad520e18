"""A run on two data sets: slices of one are known, of the other the studies alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import blob_dataset
import numpy as np
import pytest
from small_runs import SMALL as SMALL_CNN
from small_runs import main, result_of, train

from trainer import embed, evaluate, export, predict
from trainer.data.joined import open_datasets
from trainer.models import model_file

pytestmark = pytest.mark.slow  # trains

SMALL = {"architecture.width": 16, "architecture.units": 8, "architecture.layers": 1, "epochs": 3, "batch_size": 8,
         "learning_rate": 0.005, "warmup_epochs": 0}  # fmt: skip


@pytest.fixture(scope="module")
def second(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere")
    source = blob_dataset.make(folder / "source", patients=40, seed=6, draw=blob_dataset.in_runs, first=500)
    return blob_dataset.second_hospital(folder / "second", source)


@pytest.fixture(scope="module")
def slice_run(series_run, tmp_path_factory) -> Path:
    return Path(shutil.copytree(series_run.parent / "slice_run", tmp_path_factory.mktemp("two") / "slice_run"))


def flags(*places: Path, model: str = "series", **settings: object) -> list[str]:
    given = {**(SMALL if model == "series" else SMALL_CNN), **settings}
    sets = [part for key, value in given.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    return ["--model", model, *(part for place in places for part in ("--data_dir", str(place))), *sets]


@pytest.fixture(scope="module")
def run(runs_of_blobs, second, slice_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("both") / "run"
    more = ["--slice_run", str(slice_run), "--job_dir", str(folder), "--set", "data_shares=[1, 3]"]
    assert main([*flags(runs_of_blobs, second), *more]) == 0
    return folder


def test_it_learns_from_both_and_says_so(run, runs_of_blobs, second, slice_run):
    about = model_file.read_about(run / "export")
    data = open_datasets([str(runs_of_blobs), str(second)])
    assert about.facts["data_dir"] == [str(runs_of_blobs), str(second)]
    assert about.fingerprints == (data.manifest.fingerprint, *(part.manifest.fingerprint for part in data.parts))
    assert result_of(run)["fingerprint"] == data.manifest.fingerprint
    assert about.settings["data_shares"] == [1, 3]
    names = {path.name for path in (slice_run / "vectors").iterdir() if path.is_dir()}
    other = data.parts[1].manifest.fingerprint[:8]
    assert names >= {f"{split}{end}" for split in ("train", "validation", "test") for end in ("", f"-{other}")}


@pytest.mark.long
def test_the_same_command_goes_on(run, runs_of_blobs, second, slice_run, tmp_path, capsys):
    """To the bits of a run that never stopped; on one of the sets alone it is another run."""
    folder = tmp_path / "run"
    more = ["--slice_run", str(slice_run), "--job_dir", str(folder), "--set", "data_shares=[1, 3]", "--epochs"]
    for epochs in ("1", "3"):
        settings = flags(runs_of_blobs, second, schedule="steps")
        assert main([*settings, *more, epochs]) == 0
    whole = tmp_path / "whole"
    more[3] = str(whole)
    assert main([*flags(runs_of_blobs, second, schedule="steps"), *more, "3"]) == 0
    models = [model_file.load_model(one / "export", model_file.read_about(one / "export")) for one in (folder, whole)]
    for one, other in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(one, other)
    capsys.readouterr()
    assert main([*flags(runs_of_blobs, schedule="steps"), "--slice_run", str(slice_run), "--job_dir", str(folder)]) == 2
    assert "data set" in capsys.readouterr().err


def test_it_is_tested_on_both_and_on_each(run, runs_of_blobs, second, slice_run, tmp_path, capsys):
    """No doubt in a test on one of its own sets; what was trained on is not tested as a whole."""
    few = ["--resamples", "100", "--job_dir", str(run)]
    assert evaluate.main(few) == 0
    assert (run / "evaluation/test/report.html").exists()
    found = json.loads((run / "evaluation/test/metrics.json").read_text())
    capsys.readouterr()
    assert evaluate.main([*few, "--data_dir", str(second), "--output", str(tmp_path)]) == 0
    assert "another data set" not in capsys.readouterr().out
    alone = json.loads((tmp_path / "metrics.json").read_text())
    assert alone["what"]["dataset"]["fingerprint"] in alone["what"]["trained_on_parts"]
    assert "cohort" not in alone
    assert "another data set" not in (tmp_path / "report.html").read_text()
    assert 0 < alone["measures"]["studies"] < found["measures"]["studies"]
    swapped = ["--data_dir", str(second), "--data_dir", str(runs_of_blobs), "--output", str(tmp_path / "swapped")]
    assert evaluate.main([*few, *swapped]) == 0
    assert json.loads((tmp_path / "swapped/metrics.json").read_text())["measures"] == found["measures"]
    assert evaluate.main(["--job_dir", str(slice_run), *swapped]) == 2
    assert "was trained on" in capsys.readouterr().err
    assert evaluate.main([*few, "--data_dir", str(second), "--split", "all"]) == 2
    assert "holds the slices that the model was trained on" in capsys.readouterr().err


def test_it_is_fitted_anew_exported_and_predicts(run, second, tmp_path, capsys):
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    assert evaluate.main(["--resamples", "100", "--job_dir", str(copied), "--recalibrate"]) == 0
    assert evaluate.main(["--job_dir", str(copied), "--data_dir", str(second), "--recalibrate"]) == 2
    assert "name that one with --data_dir" in capsys.readouterr().err
    assert export.main(["--job_dir", str(copied), "--output", str(tmp_path / "saved")]) == 0
    files = second.parent / f"{second.name}-dicom"
    assert predict.main(["--model", str(copied), "--input", str(files), "--output", str(tmp_path / "said")]) == 0
    assert (tmp_path / "said/triage.csv").exists()


def test_vectors_of_several_sets_at_once(run, runs_of_blobs, second, slice_run, capsys):
    assert embed.main(["--job_dir", str(slice_run), "--data_dir", str(runs_of_blobs), "--data_dir", str(second)]) == 0
    assert capsys.readouterr().out.count("vectors of") == 6


def test_both_networks_are_trained_on_both(runs_of_blobs, second, slice_run, run, tmp_path):
    """The second stage: its slice model has seen both sets too."""
    both = tmp_path / "both"
    settings = flags(
        runs_of_blobs, second, end_to_end=True, weights=str(run), epochs=1, steps_per_epoch=2, sampling="balanced"
    )
    assert main([*settings, "--slice_run", str(slice_run), "--job_dir", str(both)]) == 0
    about = model_file.read_about(both / "export")
    of_slices = model_file.read_about(both / "slice_model")
    assert of_slices.fingerprints == about.fingerprints
    assert evaluate.main(["--resamples", "100", "--job_dir", str(both), "--data_dir", str(second)]) == 0


def test_a_model_of_slices_on_both(runs_of_blobs, second, tmp_path, capsys):
    """It learns from slices that are known, of which the second set has none."""
    settings = flags(runs_of_blobs, second, model="cnn", sampling="balanced")
    assert main([*settings, "--set", "data_shares=[3, 1]", "--job_dir", str(tmp_path / "run")]) == 2
    assert "no labelled slices" in capsys.readouterr().err
    assert main([*settings, "--job_dir", str(tmp_path / "run")]) == 0
    assert "have no label and are not trained on" in capsys.readouterr().out


@pytest.mark.parametrize("shares", ["[1]", "[1, 2, 3]", "[-1, 2]", "[0, 0]", "3", "[a, b]"])
def test_shares_that_fit_no_data_sets(shares, runs_of_blobs, second, tmp_path, capsys):
    given = ["--set", f"data_shares={shares}", "--job_dir", str(tmp_path / "run")]
    assert main([*flags(runs_of_blobs, second, model="cnn"), *given]) == 2
    text = capsys.readouterr().err
    assert "data_shares is" in text
    assert text.count("\n") == 1


def test_a_slice_run_that_has_not_seen_what_is_held_out(runs_of_blobs, second, slice_run, tmp_path, capsys):
    folded = flags(runs_of_blobs, second, folds=3)
    assert main([*folded, "--slice_run", str(slice_run), "--job_dir", str(tmp_path / "run")]) == 2
    assert "whose folds may be others" in capsys.readouterr().err
    third = blob_dataset.make(tmp_path / "third", patients=20, slices_a_patient=4, first=900)
    assert train(third, tmp_path / "run", "--slice_run", str(slice_run), model="series") == 2
    assert "trained on another data set" in capsys.readouterr().err
