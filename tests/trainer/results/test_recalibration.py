"""A calibration fitted on some patients and tested on the others."""

from __future__ import annotations

import numpy as np
import pytest
from made_predictions import made

from trainer.results import recalibration
from trainer.results.predictions import Predictions
from trainer.results.probability import sigmoid
from trainer.shell.problems import WrongUse


def sides(found: Predictions, share: float = 0.5) -> tuple[recalibration.Said, recalibration.Said]:
    part, log_odds = recalibration.drawn(found, share), found.logits.astype(np.float64)
    return (recalibration.said(found.take(side), log_odds[side])[1] for side in (part, ~part))


def moved(found: Predictions, by: float) -> Predictions:
    """The same slices, said with log odds that lie `by` beside."""
    logits = (found.logits + by).astype(np.float32)
    return Predictions(found.names, found.any, found.ids, found.labels, logits, sigmoid(logits.astype(np.float64)))


def test_the_part_is_of_whole_patients_and_follows_from_their_keys():
    found = made(patients=60, seed=1)
    part = recalibration.drawn(found, 0.3)
    inside, outside = (set(found.patients[side].tolist()) for side in (part, ~part))
    assert not inside & outside
    assert 5 <= len(inside) <= 30
    order = np.random.default_rng(0).permutation(len(found))
    np.testing.assert_array_equal(recalibration.drawn(found.take(order), 0.3), part[order])
    assert recalibration.drawn(found, 0.6)[part].all()  # a greater share takes these too


def test_what_lies_beside_is_put_right():
    part, rest = sides(moved(made(patients=300, seed=2), 2.0))
    found = recalibration.compared(part, rest, 100, 0)
    assert found["fitted_on"] + found["tested_on"] == 300
    for one in found["labels"].values():
        assert one["log_loss"]["value"] < one["log_loss_before"]["value"]
        assert one["intercept"] < -1


def test_a_label_that_cannot_be_fitted_keeps_what_it_has():
    plain = moved(made(patients=200, seed=4), 1.0)
    labels = plain.labels.copy()
    labels[:, plain.any_index] = 1
    part, rest = sides(Predictions(plain.names, plain.any, plain.ids, labels, plain.logits, plain.probabilities))
    found = recalibration.compared(part, rest, 100, 0)["labels"]
    kept, other = found[plain.any], found[next(name for name in plain.names if name != plain.any)]
    assert kept["kept"].startswith("no negative slice among")
    assert kept["log_loss"] == kept["log_loss_before"]
    assert other["kept"] == ""
    assert other["log_loss"]["value"] < other["log_loss_before"]["value"]


def test_no_label_can_be_fitted():
    plain = made(patients=4, seed=5)
    nothing = 0 * plain.labels
    part, rest = sides(Predictions(plain.names, plain.any, plain.ids, nothing, plain.logits, plain.probabilities))
    with pytest.raises(WrongUse, match=r"no label can be calibrated on .* take a greater share"):
        recalibration.compared(part, rest, 100, 0)


def test_of_studies_where_no_slice_is_known():
    plain = made(patients=30, seed=6)
    whole = np.ones_like(plain.labels)
    found = Predictions(plain.names, plain.any, plain.ids, whole * -1, plain.logits, plain.probabilities, whole)
    level, of_studies = recalibration.said(found, plain.logits.astype(np.float64))
    assert level == recalibration.STUDIES
    assert of_studies.labels.shape == (plain.studies.max() + 1, len(plain.names))
    assert (of_studies.labels == 1).all()
