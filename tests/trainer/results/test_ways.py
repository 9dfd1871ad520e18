"""Studies judged in other ways than by their greatest slice: beside it, on the same studies and resamples."""

from __future__ import annotations

import numpy as np
import pytest
from made_predictions import NAMES, predictions_of
from sklearn.metrics import roc_auc_score

from trainer.results import measures, study_level, thresholds
from trainer.results.predictions import Predictions

LABELS = NAMES[:2]


def drawn(studies: int = 150, each: int = 5) -> Predictions:
    rng = np.random.default_rng(0)
    labels = (rng.random((studies * each, 2)) < 0.15).astype(np.int8)
    labels[:, 0] |= labels[:, 1]
    shown = np.clip(rng.normal(0.35 + 0.1 * labels, 0.25), 0.01, 0.99)
    return predictions_of(labels, shown, np.repeat(np.arange(studies), each).tolist())


def measured(said: Predictions, **ways: np.ndarray) -> dict:
    chosen = thresholds.unchosen(LABELS)
    judged = {name: (shown, chosen) for name, shown in ways.items()}
    shares = dict.fromkeys(LABELS, 0.2)
    return measures.measure(said, said.probabilities, chosen, chosen, shares, 100, 0, judged)


def test_a_way_is_measured_beside_the_greatest_slice():
    said = drawn()
    truth, greatest, _ = study_level.studies(said)
    better = np.clip(greatest + 0.3 * truth, 0, 1)
    found = measured(said, head=better, same=greatest)
    assert list(found["studies_by"]) == ["head", "same"]
    for at, name in enumerate(LABELS):
        plain, way = found["studies_level"][name], found["studies_by"]["head"][name]
        assert way["auc"]["value"] == pytest.approx(roc_auc_score(truth[:, at], better[:, at]))
        assert plain["auc"]["value"] == pytest.approx(roc_auc_score(truth[:, at], greatest[:, at]))
        gain = way["auc_gain"]
        assert gain["value"] == pytest.approx(way["auc"]["value"] - plain["auc"]["value"])
        assert 0 < gain["low"] <= gain["value"] <= gain["high"]


def test_the_same_way_gains_nothing_whatever_the_resample():
    said = drawn()
    _, greatest, _ = study_level.studies(said)
    found = measured(said, same=greatest)["studies_by"]["same"]
    for name in LABELS:
        assert found[name]["auc_gain"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_without_another_way_nothing_is_said_of_any():
    assert "studies_by" not in measured(drawn())
