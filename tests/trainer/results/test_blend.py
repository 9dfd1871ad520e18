"""The blend of slice model and context: literal values, JSON and its damage, and labels that keep the slice model."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.results import blend, calibration, joint
from trainer.results.blend import PARTS, Blend, Mix
from trainer.results.probability import log_losses, sigmoid

NAMES = ("any", "epidural")
PREVALENCE = [0.3, 0.3]


def plain(**changes: Any) -> calibration.Calibration:
    return dataclasses.replace(calibration.unfitted(NAMES, np.zeros(2), "made up"), **changes)


def mix(part: list[float], slope: float = 1.0, intercept: float = 0.0) -> Mix:
    """The context is calibrated by slope and intercept, the slice model is as it is."""
    return Mix(plain(), plain(slope=np.full(2, slope), intercept=np.full(2, intercept)), np.array(part))


def whole(**changes: Any) -> Blend:
    unchanged = joint.unchanged(NAMES, "any")
    thresholds = {name: {"even": 0.5} for name in NAMES}
    given = (unchanged, unchanged, mix([0.0, 0.5]), mix([1.0, 0.25]), plain(), thresholds)
    return dataclasses.replace(Blend(*given), **changes)


# values


def test_a_mix_of_log_odds():
    found = mix([0.0, 0.25], slope=2.0, intercept=1.0).log_odds([[4.0, 4.0]], [[8.0, 8.0]])
    assert found.tolist() == [[4.0, 0.75 * 4 + 0.25 * 17]]
    assert found.dtype == np.float64


@pytest.mark.parametrize("other", [np.nan, 1e308])
def test_exactly_the_one_or_the_other(other):
    values = np.array([[1.1, 2.2]])
    assert blend.mixed(values, np.full((1, 2), other), np.zeros(2)).tolist() == values.tolist()
    assert blend.mixed(np.full((1, 2), other), values, np.ones(2)).tolist() == values.tolist()


def test_a_blend_of_slices_and_studies():
    """Each network's own odds come first: here the slice model was trained with smoothed labels."""
    smoothed = joint.unchanged(NAMES, "any", smoothing=0.1)
    found = whole(slice_odds=smoothed)
    slices, contexts = np.array([[1.0, -2.0]]), np.array([[3.0, 4.0]])
    one = smoothed.log_odds(slices)
    np.testing.assert_allclose(found.slice_log_odds(slices, contexts), [[one[0, 0], (one[0, 1] + 4) / 2]])
    np.testing.assert_allclose(found.study_log_odds([[1.0, 2.0]], [[5.0, 6.0]]), [[5.0, 3.0]])
    assert found.told() == [
        "part of the context in slices: any 0, epidural 0.5",
        "part of the context in studies: any 1, epidural 0.25",
    ]


def test_no_kind_of_a_study_is_above_any():
    found = whole().study_probabilities([[-1.0, 2.0], [2.0, -1.0]])
    np.testing.assert_allclose(found, [[sigmoid(-1.0)] * 2, [sigmoid(2.0), sigmoid(-1.0)]])


def test_without_a_validation_split_the_context_speaks_alone():
    found = blend.alone(NAMES, "there was none")
    assert found.log_odds([[9.0, 9.0]], [[1.0, -2.0]]).tolist() == [[1.0, -2.0]]
    assert found.plain.refused == dict.fromkeys(NAMES, "there was none")


# on disk


def test_json_keeps_every_bit():
    rng = np.random.default_rng(0)
    kept = whole(slices=mix([0.1, 0.7], *rng.normal(size=2)), slice_odds=joint.unchanged(NAMES, "any", 0.1, 2.0))
    again = blend.from_dict(json.loads(json.dumps(kept.to_dict(), allow_nan=False)))
    assert again.to_dict() == kept.to_dict()
    logits = rng.normal(size=(2, 7, 2))
    np.testing.assert_array_equal(again.slice_log_odds(*logits), kept.slice_log_odds(*logits))
    np.testing.assert_array_equal(again.study_log_odds(*logits), kept.study_log_odds(*logits))


def damaged(path: str, value: Any) -> dict[str, Any]:
    """A blend as plain values, with another value at a dotted path; `...` takes it away."""
    values = copy.deepcopy(whole().to_dict())
    *above, last = path.split(".")
    inside = values
    for key in above:
        inside = inside[key]
    if value is ...:
        del inside[last]
    else:
        inside[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("slices", ...), ("studies", None), ("studies", []), ("slices.part", ...), ("slices.part", [0.5]),
        ("slices.part", [0.5, 1.5]), ("slices.part", [0.5, -0.1]), ("slices.part", [0.5, None]),
        ("slices.part", [0.5, "x"]), ("slices.part", 0.5), ("slices.plain", ...), ("slices.context", 3),
        ("slices.context.names", ["any", "subdural"]), ("slices.context.names", ["epidural", "any"]),
        ("studies.plain.names", ["a", "b"]), ("odds", ...), ("odds.names", ["any", "subdural"]),
        ("slice_odds.any", "epidural"), ("slice_odds", None), ("study_calibration", ...),
        ("study_calibration.names", ["any"]), ("study_thresholds", ...), ("study_thresholds", None),
        ("study_thresholds", [0.5, 0.5]), ("study_thresholds.any", ...), ("study_thresholds.any", 0.5),
        ("study_thresholds.any", {}),
    ],
)  # fmt: skip
def test_damaged_values(path, value):
    with pytest.raises((ValueError, KeyError, TypeError)):
        blend.from_dict(damaged(path, value))


@pytest.mark.parametrize("values", [None, [], 3, "blend", {}])
def test_no_blend_at_all(values):
    with pytest.raises((ValueError, KeyError, TypeError)):
        blend.from_dict(values)


def test_parts_that_do_not_fit():
    with pytest.raises(ValueError, match=r"^blend: parts are \[0.5\]; each label has one from 0 to 1$"):
        mix([0.5])
    with pytest.raises(ValueError, match="parts are"):
        mix([0.5, np.nan])


# chosen


def drawn(patients: int, each: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels [n, 2], log odds that are right but for noise [n, 2], and patients [n]."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(-1, 2, (patients * each, 2))
    labels = (rng.random(truth.shape) < sigmoid(truth)).astype(np.int64)
    return labels, truth, np.repeat(np.arange(patients), each)


def blurred(values: np.ndarray, noise: float, seed: int) -> np.ndarray:
    return values + np.random.default_rng(seed).normal(0, noise, values.shape)


def test_a_label_that_the_context_makes_worse_keeps_the_slice_model():
    """Planted: the context is noise for one label, and far better for the other."""
    labels, truth, patients = drawn(60)
    noisy = blurred(truth, 3, 1)
    context = np.stack([noisy[::-1, 0], truth[:, 1]], axis=1)
    fitted = blend.fit(NAMES, labels, noisy, context, patients, PREVALENCE)
    assert fitted.part[0] == 0
    assert fitted.part[1] >= 0.5
    said = fitted.log_odds(noisy, context)
    np.testing.assert_array_equal(said[:, 0], fitted.plain.logits(noisy)[:, 0])
    np.testing.assert_array_equal(said[:, 0], fitted.log_odds(noisy, np.full_like(context, 50.0))[:, 0])


def test_two_that_know_different_things_are_mixed():
    labels, truth, patients = drawn(200)
    one, other = blurred(truth, 2, 1), blurred(truth, 2, 2)
    found = blend.fit(NAMES, labels, one, other, patients, PREVALENCE)
    assert ((found.part > 0.2) & (found.part < 0.8)).all()


def test_what_is_sure_without_reason_does_not_outweigh_what_is_right():
    labels, truth, patients = drawn(100)
    found = blend.fit(NAMES, labels, blurred(truth, 1.5, 1), 5 * truth, patients, PREVALENCE)
    assert (found.part >= 0.8).all()


def test_ties_keep_the_slice_model():
    labels, truth, patients = drawn(60)
    assert blend.choose(labels, truth, truth, patients).tolist() == [0, 0]


def test_a_difference_within_its_error_keeps_the_slice_model():
    """One patient is better, and by much, and one a little worse: a lower mean, and an error that is as large."""
    labels, truth, patients = drawn(40)
    plain_odds, context = truth.copy(), truth.copy()
    plain_odds[patients == 0] *= -3
    context[patients == 1] *= -0.5
    mean = [log_losses(labels == 1, sigmoid(one)).mean(0) for one in (plain_odds, context)]
    assert (mean[1] < mean[0]).all()
    assert blend.choose(labels, plain_odds, context, patients).tolist() == [0, 0]


@pytest.mark.parametrize(("patients", "chosen"), [(4, False), (5, True)])
def test_few_patients_keep_the_slice_model(patients, chosen):
    labels, truth, whose = drawn(patients, each=400)
    found = blend.choose(labels, blurred(truth, 5, 1), truth, whose)
    assert (found > 0).tolist() == [chosen] * 2


@pytest.mark.parametrize("value", [0, 1])
def test_a_label_without_both_values_keeps_the_slice_model(value):
    labels, truth, patients = drawn(60)
    labels[:, 0] = np.where(labels[:, 0] == value, value, -1)
    found = blend.choose(labels, blurred(truth, 5, 1), truth, patients)
    assert found[0] == 0
    assert found[1] > 0


def test_unknown_labels_count_nowhere():
    labels, truth, patients = drawn(80)
    noisy, context = blurred(truth, 2, 1), blurred(truth, 1, 2)
    known = np.random.default_rng(3).random(labels.shape) < 0.6
    hidden = np.where(known, labels, -1)
    wanted = [
        blend.choose(labels[rows][:, [at]], noisy[rows][:, [at]], context[rows][:, [at]], patients[rows])[0]
        for at, rows in enumerate(known.T)
    ]
    assert blend.choose(hidden, noisy, np.where(known, context, 1e3), patients).tolist() == wanted
    assert blend.choose(np.full_like(labels, -1), noisy, context, patients).tolist() == [0, 0]


def test_patients_may_have_any_numbers():
    labels, truth, patients = drawn(30)
    noisy = blurred(truth, 2, 1)
    wanted = blend.choose(labels, noisy, truth, patients)
    shuffled = np.random.default_rng(0).permutation(len(labels))
    found = blend.choose(labels[shuffled], noisy[shuffled], truth[shuffled], 1000 - 7 * patients[shuffled])
    assert found.tolist() == wanted.tolist()


ROWS = st.lists(
    st.tuples(st.integers(-1, 1), st.floats(-9, 9), st.floats(-9, 9), st.integers(0, 8)), min_size=1, max_size=60
)


@pytest.mark.slow
@settings(max_examples=200)
@given(ROWS)
def test_never_worse_on_the_slices_it_was_chosen_on(rows):
    """Beside a plain loop: the part is the first of the least log loss, and only where that is clearly lower."""
    labels, one, other, patients = (np.array(column) for column in zip(*rows))
    (part,) = blend.choose(labels[:, None], one[:, None], other[:, None], patients)
    assert part in PARTS
    known = labels >= 0
    if part == 0:
        return
    losses = [
        log_losses(labels[known] == 1, sigmoid((1 - p) * one[known] + p * other[known])).mean() for p in (0.0, *PARTS)
    ]
    chosen = losses[1 + list(PARTS).index(part)]
    assert chosen < losses[0]
    assert chosen == pytest.approx(min(losses), abs=1e-12)
    assert len(set(patients[known])) >= blend.FEWEST_PATIENTS
