"""`python -m trainer.evaluate` of a series run: slices by the blend, studies by head and blend, on one page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import browser
import numpy as np
import pytest
from small_runs import train

from trainer import evaluate
from trainer.data import series
from trainer.data.dataset import open_dataset
from trainer.data.series_feed import SeriesFeed
from trainer.models import model_file
from trainer.results import predictions, study_level, vectors
from trainer.results.probability import sigmoid
from trainer.series import judging, scoring
from trainer.training import scoring as slice_scoring

pytestmark = pytest.mark.slow  # trains

ROUNDED = 2e-5


def run(*flags: object) -> int:
    return evaluate.main([*map(str, flags), "--resamples", "100"])


@pytest.fixture(scope="module")
def evaluated(series_run, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("evaluated") / "test"
    assert run("--job_dir", series_run, "--output", output) == 0
    return output


@pytest.fixture(scope="module")
def measured(evaluated) -> dict:
    return json.loads((evaluated / "metrics.json").read_text())["measures"]


@pytest.fixture(scope="module")
def by_hand(series_run, runs_of_blobs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Natural log odds of the slices of the test split, and those of its studies by head and by blend."""
    folder, data = series_run / "export", open_dataset(str(runs_of_blobs))
    about, slices = model_file.read_about(folder), data.split("test")
    mix, place = about.blend, str(series_run.parent / "slice_run")
    slice_about = model_file.read_about(model_file.find(place))
    view = vectors.read([slice_scoring.source(place, slice_about, data, False)], data, slices)
    feed = SeriesFeed(slices, series.plan(slices.table), [view], judging.AS_IT_IS)
    logits, model = view.logits(np.arange(len(slices))), model_file.load_model(folder, about)
    said = scoring.say(model, feed, [logits], 7, lambda done, total: None)
    odds = mix.slice_log_odds(said.slice_logits, said.context_logits)
    whose = np.unique(slices.table["study_uid"].to_pylist(), return_inverse=True)[1]
    heads = said.study_heads(whose)
    return odds, mix.odds.log_odds(heads), mix.study_log_odds(study_level.greatest(odds, whose), heads)


def test_predictions_are_those_of_both_networks(evaluated, by_hand, series_run, runs_of_blobs):
    found = predictions.read(evaluated / "predictions.parquet")
    slices = open_dataset(str(runs_of_blobs)).split("test")
    assert found.ids["sop_uid"].to_pylist() == slices.table["sop_uid"].to_pylist()
    np.testing.assert_allclose(found.logits, by_hand[0], atol=ROUNDED)
    about = model_file.read_about(series_run / "export")
    np.testing.assert_allclose(found.probabilities, about.probabilities(by_hand[0]), atol=ROUNDED)
    assert (found.probabilities <= found.probabilities[:, :1]).all()


def test_the_log_loss_is_that_of_the_end_of_the_run(measured, series_run):
    """Before the last calibration, and before kinds are lowered to `any`."""
    result = json.loads((series_run / "result.json").read_text())["test"]
    assert measured["log_loss_before"]["value"] == pytest.approx(result["log_loss_as_sampled"], abs=1e-5)


def test_studies_are_judged_by_head_and_blend_too(measured, evaluated, by_hand, series_run):
    assert list(measured["studies_by"]) == [judging.HEAD, judging.BLEND]
    found = predictions.read(evaluated / "predictions.parquet")
    truth, greatest, _ = study_level.studies(found)
    about = model_file.read_about(series_run / "export")
    shown = {judging.HEAD: sigmoid(by_hand[1]), judging.BLEND: about.blend.study_probabilities(by_hand[2])}
    for way, values in shown.items():
        for at, name in enumerate(found.names):
            one, plain = measured["studies_by"][way][name], measured["studies_level"][name]
            gain = one["auc_gain"]
            assert one["auc"]["value"] == pytest.approx(area(truth[:, at], values[:, at]), abs=2e-3), (way, name)
            assert plain["auc"]["value"] == pytest.approx(area(truth[:, at], greatest[:, at]), abs=1e-9)
            assert gain["value"] == pytest.approx(one["auc"]["value"] - plain["auc"]["value"], abs=1e-9)
            assert gain["low"] <= gain["high"]
            chosen = about.blend.study_thresholds[name] if way == judging.BLEND else {"even": 0.5}
            assert one["threshold"] in chosen.values()


def area(labels: np.ndarray, shown: np.ndarray) -> float:
    """AUC by counting pairs."""
    ones, zeros = shown[labels == 1][:, None], shown[labels == 0][None]
    return float(((ones > zeros) + (ones == zeros) / 2).mean())


def test_the_page_shows_the_ways_and_is_clean(evaluated, tmp_path):
    report = browser.render(evaluated / "report.html", tmp_path / "report.png")
    assert (report.console, report.requests, report.broken_images, report.scripts) == ([], [], 0, 0)
    assert not report.too_wide
    for words in ("by series head", "series head - greatest slice", "by blend", "blend - greatest slice"):
        assert words in report.text


def test_mirror_images_are_averaged(series_run, tmp_path, by_hand):
    copied = Path(shutil.copytree(series_run, tmp_path / "run"))
    assert run("--job_dir", copied, "--flip") == 0
    found = predictions.read(copied / "evaluation" / "test-flip" / "predictions.parquet")
    differ = np.abs(found.logits - by_hand[0])
    assert 1e-3 < differ.mean() < 1


def test_a_run_that_has_moved_away_from_its_slice_run(series_run, runs_of_blobs, tmp_path, by_hand):
    """Its own copy of the slice model makes the vectors."""
    copied = Path(shutil.copytree(series_run, tmp_path / "run"))
    about = copied / "export" / "about.json"
    values = json.loads(about.read_text())
    values["settings"]["slice_run"] = str(tmp_path / "gone")
    about.write_text(json.dumps(values))
    assert run("--job_dir", copied) == 0
    found = predictions.read(copied / "evaluation" / "test" / "predictions.parquet")
    np.testing.assert_allclose(found.logits, by_hand[0], atol=ROUNDED)
    assert (copied / "export" / "slice" / "vectors" / "test" / "index.json").is_file()


@pytest.mark.parametrize("harm", ["blend of other labels", "no slice model"])
def test_a_damaged_export(harm, series_run, tmp_path, capsys):
    copied = Path(shutil.copytree(series_run, tmp_path / "run"))
    if harm == "no slice model":
        shutil.rmtree(copied / "export" / "slice")
    else:
        about = copied / "export" / "about.json"
        about.write_text(about.read_text().replace('"epidural"', '"epidurel"', 1))
    code, told = run("--job_dir", copied), capsys.readouterr().err
    assert (code, told.count("\n")) == (2, 1), told
    assert told.startswith("evaluate: ")


def test_what_is_fitted_anew_is_what_the_run_ended_with(series_run, tmp_path):
    copied = Path(shutil.copytree(series_run, tmp_path / "run"))
    assert run("--job_dir", copied, "--recalibrate") == 0
    before, after = (model_file.read_about(folder / "export") for folder in (series_run, copied))
    np.testing.assert_array_equal(after.blend.slices.part, before.blend.slices.part)
    np.testing.assert_allclose(after.calibration.slope, before.calibration.slope, atol=1e-6)
    np.testing.assert_allclose(after.blend.study_calibration.slope, before.blend.study_calibration.slope, atol=1e-6)


def test_a_series_run_is_not_trained_as_a_cnn(series_run, runs_of_blobs, tmp_path, capsys):
    copied = Path(shutil.copytree(series_run, tmp_path / "run"))
    assert train(runs_of_blobs, copied) == 2
    told = capsys.readouterr().err
    assert f"{copied} holds another run (model: series, now cnn" in told
    assert told.count("\n") == 1
