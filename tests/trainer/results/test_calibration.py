"""Platt scaling beside scikit-learn's logistic regression, known answers and labels that cannot be fitted; calibration
error and reliability beside plain loops."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import f as f_distribution
from sklearn.linear_model import LogisticRegression

from trainer.results import calibration
from trainer.results.calibration import Calibration
from trainer.results.probability import log_losses, sigmoid
from trainer.shell.problems import WrongUse

NAMES = ("any", "epidural")
NO_SHIFT = np.zeros(2)


def drawn(size: int, slope: float, intercept: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels int64 [size, 1] of log odds slope * logit + intercept, and the logits float32 [size, 1]."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 2, (size, 1)).astype(np.float32)
    truth = sigmoid(slope * logits.astype(np.float64) + intercept)
    return (rng.random((size, 1)) < truth).astype(np.int64), logits


def fitted(labels, logits, shift: float = 0.0, patients=None, prevalence: float = 0.1) -> Calibration:
    """The calibration of one label; without `patients` each slice is of its own."""
    columns = np.reshape(labels, (-1, 1)), np.reshape(np.asarray(logits, np.float64), (-1, 1))
    patients = np.arange(len(columns[0])) if patients is None else np.asarray(patients)
    return calibration.fit(("any",), *columns, [shift], patients, [prevalence])


def platt(labels, logits) -> tuple[float, float]:
    """Slope and intercept without any shrinking."""
    return calibration.platt(np.ravel(labels) == 1, np.ravel(logits).astype(np.float64))


def by_sklearn(labels: np.ndarray, logits: np.ndarray) -> tuple[float, float]:
    """Slope and intercept for Platt's smoothed targets: each slice stands twice, as 1 and as 0, with its weights."""
    ones = int(labels.sum())
    target = np.where(labels == 1, (ones + 1) / (ones + 2), 1 / (len(labels) - ones + 2)).ravel()
    both = np.r_[logits, logits].astype(np.float64)
    values = np.r_[np.ones(len(labels)), np.zeros(len(labels))]
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    model.fit(both, values, sample_weight=np.r_[target, 1 - target])
    return float(model.coef_[0, 0]), float(model.intercept_[0])


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.4, -2.0), (2.5, 1.0), (0.05, -4.0)])
def test_platt_scaling_is_that_of_sklearn(slope, intercept):
    labels, logits = drawn(3000, slope, intercept)
    np.testing.assert_allclose(platt(labels, logits), by_sklearn(labels, logits), rtol=1e-6, atol=1e-7)


def test_a_known_slope_and_intercept_come_back_after_the_shift_of_the_sampler():
    labels, logits = drawn(200_000, 0.6, -1.5)
    found = fitted(labels, logits + np.float32(2), shift=2.0)
    np.testing.assert_allclose([found.slope[0], found.intercept[0]], [0.6, -1.5], atol=0.03)
    assert found.refused == {}


def test_a_model_that_is_right_already_is_left_nearly_alone():
    labels, logits = drawn(100_000, 1.0, 0.0)
    found = fitted(labels, logits)
    np.testing.assert_allclose([found.slope[0], found.intercept[0]], [1, 0], atol=0.03)


LOGITS = st.floats(-60, 60, width=32)
ROWS = st.lists(st.tuples(st.integers(-1, 1), LOGITS), min_size=2, max_size=40)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(ROWS, st.floats(-3, 3), st.integers(1, 6), st.randoms(use_true_random=False))
def test_order_and_unknown_labels_do_not_change_a_bit(rows, shift, count, random):
    of_patients = [(*row, at % count) for at, row in enumerate(rows)]
    again = [row for row in of_patients if row[0] >= 0]
    assume(again)
    random.shuffle(again)
    columns = (list(zip(*some)) for some in (of_patients, again))
    first, second = (fitted(labels, logits, shift, patients) for labels, logits, patients in columns)
    assert first.to_dict() == second.to_dict()


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(ROWS, st.lists(LOGITS, min_size=2, max_size=20))
def test_a_higher_logit_never_has_a_lower_probability(rows, logits):
    found = fitted(*zip(*rows))
    assert (found.slope[0] > 0) != bool(found.refused)
    shown = found.probabilities(np.sort(logits)[:, None])
    assert np.isfinite(shown).all()
    assert (np.diff(shown[:, 0]) >= 0).all()


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(ROWS, st.floats(-0.1, 0.1), st.floats(-0.1, 0.1))
def test_no_neighbour_of_platts_has_a_lower_loss(rows, more_slope, more_intercept):
    labels, logits = (np.array(column, np.float64) for column in zip(*rows))
    known = labels >= 0
    assume(len(set(labels[known])) == 2 and np.ptp(logits[known]) > 1e-3)
    ones = (labels == 1).sum()
    target = np.where(labels == 1, (ones + 1) / (ones + 2), 1 / ((labels == 0).sum() + 2))[known]

    def loss(slope: float, intercept: float) -> float:
        x = slope * logits[known] + intercept
        return float(np.mean(np.logaddexp(0, x) - target * x))

    slope, intercept = platt(labels[known], logits[known])
    assert loss(slope, intercept) <= loss(slope * (1 + more_slope), intercept + more_intercept) + 1e-12


def test_two_slices_apart_have_platts_targets_as_probabilities():
    """With two points the line goes through both: (1 + 1) / (1 + 2) for the positive, 1 / (1 + 2) for the negative."""
    slope, intercept = platt([0, 1], [-3.0, 5.0])
    np.testing.assert_allclose(sigmoid(slope * np.array([-3.0, 5.0]) + intercept), [1 / 3, 2 / 3], rtol=1e-12)


def test_slices_that_a_threshold_separates_stay_finite():
    """Without Platt's targets the slope would grow for ever."""
    labels, logits = np.repeat([0, 1], 500)[:, None], np.r_[np.linspace(-9, -1, 500), np.linspace(1, 9, 500)][:, None]
    found = platt(labels, logits)
    np.testing.assert_allclose(found, by_sklearn(labels, logits), rtol=1e-6, atol=1e-7)
    assert 1 < found[0] < 5


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6, 1e30])
def test_the_scale_of_the_logits_does_not_matter_to_platt(scale):
    labels, logits = drawn(500, 0.7, -1.0)
    slope, intercept = platt(labels, logits)
    scaled, offset = platt(labels, logits.astype(np.float64) * scale)
    np.testing.assert_allclose([scaled * scale, offset], [slope, intercept], rtol=1e-9)


@pytest.mark.parametrize(
    ("labels", "logits", "why"),
    [
        ([0, 0, -1], [1, 2, 3], "no positive slice among the 2 with a known label"),
        ([1, -1, 1], [1, 2, 3], "no negative slice among the 2 with a known label"),
        ([-1, -1, -1], [1, 2, 3], "no slice with a known label"),
        ([0, 1, 1], [7, 7, 7], "the model gives every slice the same logit"),
        ([0, 1, 1], [0.1, 0.1, 0.1], "the model gives every slice the same logit"),  # whose mean is not 0.1
        ([1, 1, 0, 0] * 20, [-2, -1, 1, 2] * 20, "the fitted slope is -"),  # ranked backwards, as 80 patients say
    ],
)
def test_a_label_that_cannot_be_fitted_says_its_prevalence(labels, logits, why):
    found = fitted(labels, logits, shift=0.5, prevalence=0.03)
    assert found.refused["any"].startswith(why)
    np.testing.assert_allclose(found.probabilities([[2.0], [-9.0]]), 0.03, rtol=1e-12)
    assert found.told() == [
        f"any has the same probability in every slice, its prevalence of 0.03: {found.refused['any']}"
    ]


def test_what_a_backwards_label_costs_is_no_more_than_its_prevalence():
    """A label whose logits speak against it: 0.3 and more with the shift alone, below 0.1 with its prevalence."""
    rng = np.random.default_rng(0)
    labels = (rng.random(2000) < 0.013).astype(int)
    logits = rng.normal(-1.5, 1, 2000) - 2 * labels
    found = fitted(labels, logits, prevalence=0.013)
    said = found.probabilities(logits[:, None])[:, 0]
    assert log_losses(labels == 1, sigmoid(logits)).mean() > 0.3
    assert log_losses(labels == 1, said).mean() == pytest.approx(log_losses(labels == 1, 0.013).mean())


# small samples


def right_model(positives: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Labels, true log odds and patients of so many expected positive slices, 3 in 100; 16 slices a patient."""
    patients = np.repeat(np.arange(positives * 2), 16)
    odds = rng.normal(-5, 2, len(patients))
    return (rng.random(len(odds)) < sigmoid(odds)).astype(int), odds, patients


MODELS = {"right": (1.0, 0.0), "too sure": (1.25, -0.4), "offset": (1.0, -0.7), "much too sure": (2.0, 3.0)}


@pytest.mark.slow
@pytest.mark.parametrize("positives", [5, 10, 20, 50])
@pytest.mark.parametrize("model", MODELS)
def test_calibration_on_few_positives_does_not_hurt(model, positives):
    """200 validation sets of a known model: no worse than the shift alone, measured on its own posterior."""
    rng = np.random.default_rng(positives)
    spread, moved = MODELS[model]
    truth = np.random.default_rng(9).normal(-5, 2, 20_000)
    said = spread * truth + moved

    def loss(logits) -> float:
        return float((np.logaddexp(0, logits) - sigmoid(truth) * logits).mean())

    ratios = []
    for _ in range(200):
        labels, odds, patients = right_model(positives, rng)
        if labels.sum() > 0:
            found = fitted(labels, spread * odds + moved, patients=patients)
            assert not found.refused
            ratios.append(loss(found.slope[0] * said + found.intercept[0]) / loss(said))
    assert len(ratios) >= 195
    # nothing can be better than a model that is right: there it is the harm of the few draws that look wrong
    assert np.mean(ratios) <= (1.001 if model == "right" else 1)
    assert np.mean(np.array(ratios) > 1.01) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "positive"), [(60, 0.05), (200, 0.1)])
def test_the_slices_of_a_patient_speak_once(patients, positive):
    """Each patient's finding stands in all of its slices or in none, and the model is right."""
    rng, of = np.random.default_rng(0), np.repeat(np.arange(patients), 16)
    moved = {"by patient": 0, "by slice": 0}
    for _ in range(200):
        odds = rng.normal(np.log(positive), 1, patients)
        labels = (rng.random(patients) < sigmoid(odds))[of].astype(int)
        said = odds[of] + rng.normal(0, 0.01, len(of))
        for name, groups in (("by patient", of), ("by slice", None)):
            moved[name] += fitted(labels, said, patients=groups).slope[0] != 1
    assert moved["by patient"] <= 14 < 100 < moved["by slice"]


@pytest.mark.parametrize("patients", [2, 3, 5, 20, 1000])
def test_chance_is_a_quantile_of_f(patients):
    assert calibration._chance(patients) == pytest.approx(2 * f_distribution.ppf(0.95, 2, patients - 1))


def test_one_patient_says_nothing_of_others():
    labels, logits = np.repeat([1, 0, 0, 0], 20), np.repeat([-3.0, 1, 2, 3], 20) + np.tile(np.arange(20) / 100, 4)
    found = fitted(labels, logits, patients=np.repeat([0, 1, 2, 3], 20))
    assert (found.slope[0], found.intercept[0], found.refused) == (1, 0, {})


@pytest.mark.parametrize("model", MODELS)
def test_a_thousand_positives_count_in_full(model):
    rng = np.random.default_rng(3)
    spread, moved = MODELS[model]
    labels, odds, patients = right_model(2_000, rng)
    assert labels.sum() > 1000
    logits = spread * odds + moved
    found, (slope, intercept) = fitted(labels, logits, patients=patients), platt(labels, logits)
    straight = (found.slope[0] * logits + found.intercept[0], slope * logits + intercept)
    losses = [log_losses(labels == 1, sigmoid(values)).mean() for values in straight]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_one_label_refused_leaves_the_others_fitted():
    labels, logits = drawn(500, 0.5, -1.0)
    columns = np.c_[labels, 0 * labels], np.c_[logits, logits]
    found = calibration.fit(NAMES, *columns, [0.0, 3.0], np.arange(500), [0.1, 0.5])
    assert list(found.refused) == ["epidural"]
    assert found.slope[0] == fitted(labels, logits).slope[0]
    assert (found.slope[1], found.intercept[1], found.shift[1]) == (0, 0, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_no_number_is_named(bad):
    with pytest.raises(WrongUse, match=f"a logit of label 'any' is {bad}; calibrate a model whose logits"):
        fitted([0, 1, 1], [0, bad, 1])
    assert fitted([0, 1, -1], [0, 1, bad]).refused == {}  # where the label is unknown it is not read


def some_calibration() -> Calibration:
    numbers = np.array([0.1, -1 / 3]), np.array([1e-300, 2 / 3]), np.array([np.pi, -0.0])
    return Calibration(NAMES, *numbers, {"epidural": "no positive slice"})


def test_the_steps_from_logit_to_probability():
    found = Calibration(NAMES, np.array([1.0, -1.0]), np.array([2.0, 0.5]), np.array([0.0, 1.0]), {})
    logits = np.array([[1.0, 2.0], [3.0, -5.0]], np.float32)
    np.testing.assert_array_equal(found.natural(logits), [[0, 3], [2, -4]])
    np.testing.assert_array_equal(found.logits(logits), [[0, 2.5], [4, -1]])
    expected = [[0.5, 1 / (1 + math.exp(-2.5))], [1 / (1 + math.exp(-4)), 1 / (1 + math.exp(1))]]
    np.testing.assert_allclose(found.probabilities(logits), expected, rtol=1e-15)
    scale, offset = found.scale_offset()
    np.testing.assert_array_equal(scale * logits + offset, found.logits(logits))


def test_without_a_fit_only_the_shift_is_taken_off():
    found = calibration.unfitted(NAMES, [0.5, -0.5], "the run has no validation split")
    np.testing.assert_array_equal(found.logits([[1.0, 1.0]]), [[0.5, 1.5]])
    assert found.refused == dict.fromkeys(NAMES, "the run has no validation split")
    why = "are not calibrated, but for the shift: the run has no validation split"
    assert found.told() == [f"probabilities of {name} {why}" for name in NAMES]


def test_json_keeps_every_bit():
    values = some_calibration().to_dict()
    again = calibration.from_dict(json.loads(json.dumps(values)))
    assert again.to_dict() == values
    assert again.names == NAMES
    for one, other in zip(again.scale_offset(), some_calibration().scale_offset()):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"names": ["any"]}, "it must be 1 finite numbers"),
        ({"names": ["any", "any"]}, "each must stand once"),
        ({"names": "any"}, "names is 'any'; it must be a list of labels"),
        ({"names": [1, 2]}, "it must be a list of labels"),
        ({"shift": [0.0, float("nan")]}, "shift is .*; it must be 2 finite numbers"),
        ({"intercept": [0.0, float("inf")]}, "intercept is"),
        ({"slope": [1.0, -1.0]}, "each must be above 0"),
        ({"slope": [0.0, 1.0]}, "each must be above 0, or 0 where the label is refused"),
        ({"slope": [1.0]}, "slope is"),
        ({"slope": 1.0}, "slope is 1.0; it must be a list of numbers"),
        ({"slope": ["1", "2"]}, "it must be a list of numbers"),
        ({"slope": [True, 1.0]}, "it must be a list of numbers"),
        ({"refused": ["any"]}, "it must say why"),
        ({"refused": {"any": 3}}, "it must say why"),
        ({"refused": {"subdural": "why"}}, r"refused names \['subdural'\]"),
        ({"more": 1}, "it must hold names, shift, slope, intercept, refused"),
    ],
)
def test_damaged_values_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        calibration.from_dict({**some_calibration().to_dict(), **change})


@pytest.mark.parametrize("values", [None, [], "text", {}, {"names": ["any"]}])
def test_values_that_are_no_calibration_are_refused(values):
    with pytest.raises(ValueError, match="it must hold names"):
        calibration.from_dict(values)


# calibration error


@pytest.mark.parametrize(
    ("labels", "probabilities", "bins", "error"),
    [
        ([1, 0], [1.0, 0.0], 15, 0.0),
        ([0, 1], [1.0, 0.0], 15, 1.0),
        ([1, 0, 0, 0], [0.25] * 4, 15, 0.0),
        ([1, 1, 0, 0], [0.25] * 4, 15, 0.25),
        # bins (0, 0.5] and (0.5, 1]: |0.1 + 0.5 - 1| and |0.6 + 0.9 - 1| over 4 slices
        ([0, 1, 0, 1], [0.1, 0.5, 0.6, 0.9], 2, 0.225),
        ([1, 0, -1, -1], [0.7, 0.7, 0.0, 1.0], 15, 0.2),
    ],
)
def test_calibration_error_of_hand_worked_cases(labels, probabilities, bins, error):
    assert calibration.calibration_error(labels, probabilities, bins) == pytest.approx(error, abs=1e-15)


@pytest.mark.parametrize("labels", [[], [-1, -1]])
def test_without_a_known_label_nothing_can_be_said(labels):
    assert math.isnan(calibration.calibration_error(labels, [0.5] * len(labels)))
    assert calibration.reliability(labels, [0.5] * len(labels)) == []


def test_edges_belong_to_the_bin_below():
    np.testing.assert_array_equal(calibration.bin_of([0.0, 1e-300, 0.25, 0.2500001, 0.5, 0.75, 1.0], 4), [
        0, 0, 0, 1, 1, 2, 3,
    ])  # fmt: skip


PAIRS = st.lists(st.tuples(st.integers(-1, 1), st.integers(0, 20).map(lambda n: n / 20)), min_size=1, max_size=60)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(PAIRS, st.integers(1, 15))
def test_calibration_error_is_the_mean_gap_of_the_bins(pairs, bins):
    known = [(label, p) for label, p in pairs if label >= 0]
    assume(known)
    parts: dict[int, list[tuple[int, float]]] = {}
    for label, p in known:
        parts.setdefault(max(math.ceil(p * bins), 1), []).append((label, p))
    gaps = [len(part) * abs(np.mean(part, axis=0) @ [1, -1]) for part in parts.values()]
    error = calibration.calibration_error(*zip(*pairs), bins)
    assert error == pytest.approx(sum(gaps) / len(known), abs=1e-12)
    assert 0 <= error <= 1


# reliability


def test_groups_of_distinct_probabilities_are_equal():
    labels, probabilities = [0, 0, 1, 0, 1, 1], [0.1, 0.2, 0.3, 0.4, 0.5, 0.9]
    points = calibration.reliability(labels, probabilities, bins=3)
    np.testing.assert_allclose(points, [(0.15, 0, 2), (0.35, 0.5, 2), (0.7, 1, 2)])


def test_equal_probabilities_stay_together():
    points = calibration.reliability([0, 1, 0, 0, 1], [0.2, 0.2, 0.2, 0.2, 0.9], bins=5)
    np.testing.assert_allclose(points, [(0.2, 0.25, 4), (0.9, 1, 1)])


@settings(max_examples=100, deadline=None)
@given(PAIRS, st.integers(1, 12))
def test_groups_hold_every_known_slice_once_lowest_first(pairs, bins):
    labels, probabilities = (np.array(column) for column in zip(*pairs))
    known = labels >= 0
    points = calibration.reliability(labels, probabilities, bins)
    assert len(points) <= bins
    means = [mean for mean, _, _ in points]
    assert means == sorted(means)
    assert sum(slices for _, _, slices in points) == known.sum()
    assert sum(share * slices for _, share, slices in points) == pytest.approx((labels == 1).sum())
    assert sum(mean * slices for mean, _, slices in points) == pytest.approx(probabilities[known].sum())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(1, 12))
def test_groups_differ_by_one_slice_at_most(size, bins):
    points = calibration.reliability(np.zeros(size), np.random.default_rng(size).permutation(size) / size, bins)
    sizes = [slices for _, _, slices in points]
    assert max(sizes) - min(sizes) <= 1
    assert len(points) == min(size, bins)
