"""One set of odds, calibration and thresholds for every door of a run; and a run of an earlier version fitted anew."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import small_runs
import tensorflow as tf

from ich_tfrecords.dataset import records
from trainer import evaluate, export, submit
from trainer.data import sampling
from trainer.data.dataset import open_dataset
from trainer.models import model_file
from trainer.models.model_file import About
from trainer.results import predictions
from trainer.results.predictions import Predictions


def evaluated(run: Path, *flags: str) -> Predictions:
    assert evaluate.main(["--job_dir", str(run), "--resamples", "100", *flags]) == 0
    return predictions.read(run / "evaluation/test/predictions.parquet")


def as_before(run: Path) -> About:
    """Make a run one of an earlier version: one shift a label, format 1. What it says then."""
    folder = run / "export"
    about = model_file.read_about(folder)
    train = open_dataset(about.facts["data_dir"]).split("train")
    shares = sampling.proportions("balanced", train.stratum_counts, {})
    strata = {name: train.labels[train.stratum == index] for index, name in enumerate(train.spec.labels.strata)}
    ones, zeros = ({name: (labels == value).sum(0) for name, labels in strata.items()} for value in (1, 0))
    shift = sampling.log_odds_shift(ones, zeros, shares)
    old = dataclasses.replace(about, odds=None, calibration=dataclasses.replace(about.calibration, shift=shift))
    values = json.loads(model_file.to_json(old))
    del values["odds"]
    (folder / "about.json").write_text(json.dumps({**values, "format": 1}))
    return old


def test_evaluate_submit_and_the_served_graph_say_the_same(blob_run_copy, blobs, tmp_path):
    """The same slices by the records of the data set: float64 on the host, plain ops in the SavedModel, and a CSV."""
    found = evaluated(blob_run_copy)
    about = model_file.read_about(blob_run_copy / "export")
    assert len(about.odds.drawn) == 32
    assert np.abs(about.odds.log_odds(found.logits) - found.logits).max() > 1
    np.testing.assert_array_equal(found.probabilities, about.probabilities(found.logits))

    assert export.main(["--job_dir", str(blob_run_copy), "--output", str(tmp_path / "served")]) == 0
    served = tf.saved_model.load(str(tmp_path / "served"))
    by_uid = {uid: row for row, uid in enumerate(found.ids["sop_uid"].to_pylist())}
    payloads = [one for shard in sorted(blobs.glob("*-test.*")) for _, one in records.read_records(shard.open("rb"))]
    table = records.features(about.spec)
    rows = [by_uid[records.parse(one, table)["sop_uid"].decode()] for one in payloads]
    answer = served.signatures["records"](records=tf.constant(payloads))["probabilities"].numpy()
    np.testing.assert_allclose(answer, found.probabilities[rows], atol=1e-6)
    assert (answer <= answer[:, :1]).all()

    flags = ["--data_dir", str(blobs), "--split", "test", "--output", str(tmp_path / "submission.csv")]
    assert submit.main(["--job_dir", str(blob_run_copy), *flags]) == 0
    with (tmp_path / "submission.csv").open() as file:
        told = {row["ID"]: float(row["Label"]) for row in csv.DictReader(file)}
    for uid, row in by_uid.items():
        for at, name in enumerate(found.names):
            assert told[f"{uid}_{name}"] == pytest.approx(found.probabilities[row, at], abs=1e-6)
            assert told[f"{uid}_{name}"] <= told[f"{uid}_any"]


def test_an_earlier_run_says_so_and_is_fitted_anew(blob_run_copy, capsys):
    written = model_file.read_about(blob_run_copy / "export")
    old = as_before(blob_run_copy)
    before = evaluated(blob_run_copy)
    assert f"--job_dir {blob_run_copy} --recalibrate" in capsys.readouterr().out
    kept = old.calibration.probabilities(before.logits)
    np.testing.assert_array_equal(before.probabilities, np.minimum(kept, kept[:, :1]))

    after = evaluated(blob_run_copy, "--recalibrate")
    told = capsys.readouterr().out
    assert "odds, calibration and thresholds fitted anew" in told
    assert "earlier kind" not in told
    found = model_file.read_about(blob_run_copy / "export")
    assert found.odds.to_dict() == written.odds.to_dict()
    np.testing.assert_allclose(found.calibration.slope, written.calibration.slope, rtol=1e-3)
    np.testing.assert_allclose(found.calibration.intercept, written.calibration.intercept, atol=1e-3)
    np.testing.assert_array_equal(after.probabilities, found.probabilities(after.logits))
    assert {name: set(rules) for name, rules in found.thresholds.items()} == {
        name: set(rules) for name, rules in written.thresholds.items()
    }


def test_a_calibration_is_fitted_on_the_data_that_the_run_knows(blob_run_copy, tiny_dataset, tmp_path, capsys):
    flags = ["--job_dir", str(blob_run_copy), "--recalibrate", "--output", str(tmp_path / "out")]
    folder = blob_run_copy / "export"
    about = model_file.read_about(folder)
    for change, words in (
        ({"fingerprint": "0" * 64}, "is not the data set that the model was trained on"),
        ({"settings": {**about.settings, "validation_split": ""}}, "the run had no validation split"),
    ):
        (folder / "about.json").write_text(model_file.to_json(dataclasses.replace(about, **change)))
        assert evaluate.main(flags) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "sets",
    [
        {"sampling": "explicit", "proportions": {"epidural": 1, "subdural": 1, "subarachnoid": 2}},
        {"sampling": "sqrt", "label_smoothing": 0.05, "focal_gamma": 2.0},
        {"sampling": "natural", "label_smoothing": 0.1},
    ],
    ids=["strata left out", "smoothed and focal", "natural"],
)
def test_every_draw_and_loss_ends_in_probabilities_that_hold_together(tiny_dataset, tmp_path, sets):
    run = tmp_path / "run"
    assert small_runs.train(tiny_dataset, run, **sets) == 0
    assert np.isfinite(small_runs.result_of(run)["best"]["value"])
    found = evaluated(run)
    assert np.isfinite(found.probabilities).all()
    assert (found.probabilities <= found.probabilities[:, :1]).all()
    assert export.main(["--job_dir", str(run)]) == 0  # which compares the graph with numpy
