"""Sums of weighted slices beside scikit-learn's measures and the calibration error of the slices themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from trainer.results import bootstrap, calibration, ratings
from trainer.results.probability import log_losses
from trainer.results.ratings import Rating
from trainer.training import metrics

SLICES = st.lists(st.tuples(st.integers(-1, 1), st.integers(0, 30), st.integers(0, 4)), min_size=1, max_size=40)


def columns(slices) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, scores, patients = (np.array(column) for column in zip(*slices))
    return labels, scores / 30, patients  # on the borders of the bins of the calibration error, too


def drawn(rating: Rating, patients, resamples: int = 4) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    counts = next(bootstrap.patient_counts(bootstrap.patients_in(patients), resamples, 0, resamples))
    return counts[:, patients], rating.drawn(counts)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(SLICES)
def test_decisions_are_those_of_sklearn_with_weights(slices):
    labels, shown, patients = columns(slices)
    rating = Rating(labels, shown, patients)
    rating.add_confusion("half", 0.5)
    slice_weights, found = drawn(rating, patients)
    every = ratings.decisions(found["half"])
    known = labels >= 0
    for row, weights in enumerate(slice_weights[:, known]):
        if not weights.sum():
            assert np.isnan([values[row] for values in every.values()]).all()
            continue
        truth, called = labels[known], (shown[known] >= 0.5).astype(int)
        with_weights = {"y_true": truth, "y_pred": called, "sample_weight": weights, "labels": [1, 0]}
        (tp, fn), (fp, tn) = confusion_matrix(**with_weights)
        assert found["half"][row].tolist() == [tp, fp, fn, tn]
        precision, recall, f1, _ = precision_recall_fscore_support(**with_weights, zero_division=np.nan)
        for key, value in (("precision", precision[0]), ("recall", recall[0]), ("f1", f1[0])):
            assert every[key][row] == pytest.approx(value, nan_ok=True)
        assert every["sensitivity"][row] == pytest.approx(recall[0], nan_ok=True)
        assert every["specificity"][row] == pytest.approx(recall[1], nan_ok=True)
        assert every["npv"][row] == pytest.approx(precision[1], nan_ok=True)
        assert every["accuracy"][row] == pytest.approx(accuracy_score(truth, called, sample_weight=weights))


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(SLICES)
def test_losses_and_calibration_errors_are_those_of_copied_slices(slices):
    labels, shown, patients = columns(slices)
    rating = Rating(labels, shown, patients)
    rating.add_calibration("_x", shown)
    slice_weights, found = drawn(rating, patients)
    errors = ratings.calibration_errors(found, "_x")
    with np.errstate(divide="ignore"):
        logits = np.log(shown) - np.log1p(-shown)
    for row, weights in enumerate(slice_weights):
        copies = np.repeat(np.arange(len(labels)), weights)
        expected = calibration.calibration_error(labels[copies], shown[copies])
        assert errors[row] == pytest.approx(expected, abs=1e-12, nan_ok=True)
        loss = metrics.log_loss(labels[copies, None], logits[copies, None], [1])
        mean = ratings.ratio(found["log_loss_x"][row, 0], found["known"][row, 0])
        assert mean == pytest.approx(loss, rel=1e-9, nan_ok=True)


def test_log_losses_are_clipped_on_both_sides():
    found = log_losses(np.array([True, False, True, False]), [0.0, 1.0, 0.25, 0.25])
    assert found.tolist() == [-math.log(1e-15), -math.log1p(-(1 - 1e-15)), -math.log(0.25), -math.log1p(-0.25)]


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(SLICES)
def test_areas_of_sklearn_are_those_of_the_ranking(slices):
    labels, shown, patients = columns(slices)
    rating = Rating(labels, shown, patients)
    once = rating.drawn(np.ones((1, patients.max() + 1), np.int32))
    found = [once["auc"][0], once["average_precision"][0]]
    assert rating.areas() == pytest.approx(found, abs=1e-12, nan_ok=True)
    assert (rating.known, rating.positives) == ((labels >= 0).sum(), (labels == 1).sum())


def test_the_first_row_is_of_the_slices_as_they_are():
    rng = np.random.default_rng(0)
    labels, shown, patients = rng.integers(0, 2, 60), rng.random(60), rng.integers(0, 9, 60)
    rating = Rating(labels, shown, patients)
    rating.add_confusion("half", 0.5)
    (found,) = ratings.resampled([rating], patients, 20, 4)
    assert {name: values.shape for name, values in found.items()} == {
        "auc": (21,),
        "average_precision": (21,),
        "known": (21, 1),
        "half": (21, 4),
    }
    assert (found["auc"][0], found["average_precision"][0]) == rating.areas()
    counts = next(bootstrap.patient_counts(9, 20, 4, 20))
    np.testing.assert_array_equal(found["auc"][1:], rating.drawn(counts)["auc"])
    assert found["half"][0].sum() == 60


@settings(max_examples=50, deadline=None)
@given(SLICES)
def test_patients_behind_a_rating(slices):
    labels, shown, patients = columns(slices)
    wanted = {"known": {0, 1}, "positive": {1}, "negative": {0}}
    expected = {
        what: len({p for label, p in zip(labels, patients) if label in values}) for what, values in wanted.items()
    }
    assert Rating(labels, shown, patients).patients == expected
    assert ratings.known_patients(labels[:, None], patients) == expected["known"]


def test_a_patient_known_in_any_label_is_known():
    labels = np.array([[1, -1], [-1, 0], [-1, -1], [0, 0]])
    assert ratings.known_patients(labels, np.array([0, 1, 2, 0])) == 2


@pytest.mark.parametrize(
    ("positive", "negative", "steady"),
    [
        (6, 6, set(ratings.NEEDS)),
        (5, 6, {"log_loss", "brier", "calibration_error", "accuracy", "specificity"}),
        (6, 5, {"log_loss", "brier", "calibration_error", "accuracy", "sensitivity", "recall"}),
        (1, 5, {"log_loss", "brier", "calibration_error", "accuracy"}),
        (1, 4, set()),
        (0, 6, {"log_loss", "brier", "calibration_error", "accuracy", "specificity"}),
    ],
)
def test_what_has_enough_patients_for_an_interval(positive, negative, steady):
    labels = np.repeat([1, 0], [positive, negative])
    rating = Rating(labels, np.full(len(labels), 0.5), np.arange(len(labels)))
    assert {measure for measure in ratings.NEEDS if rating.carriers(measure) >= bootstrap.FEWEST_PATIENTS} == steady
    assert rating.carriers("log_loss_before") == rating.carriers("log_loss")


def test_many_slices_of_few_patients_are_not_enough():
    labels = np.tile([1, 0], 50)
    assert Rating(labels, np.full(100, 0.5), np.arange(100) // 20).carriers("auc") == 5


@pytest.mark.parametrize(
    ("known", "rarer", "expected"), [(100, 8, 16), (100, 60, 100), (10, 8, 10), (100, 0, 6), (4, 0, 4), (100, 3, 6)]
)
def test_a_loss_is_told_by_the_patients_of_the_rarer_value_and_as_many_others(known, rarer, expected):
    assert ratings.telling(known, rarer) == expected


def test_the_carriers_of_a_loss_are_not_those_of_an_accuracy():
    labels = np.repeat([1, 0], [8, 50])
    rating = Rating(labels, np.full(58, 0.5), np.arange(58))
    found = [rating.carriers(measure) for measure in ("log_loss", "accuracy", "sensitivity", "specificity", "auc")]
    assert found == [16, 58, 8, 50, 8]


def test_skill_is_what_is_saved_of_the_loss_of_the_prevalence():
    value, low, high = ratings.skill(np.array([0.1, 0.09, 0.11]), np.array([0.2, 0.2, 0.2]), 30)
    assert value == pytest.approx(0.5)
    assert low < 0.5 < high < 1
    assert ratings.skill(np.array([0.3, 0.29, 0.31]), np.array([0.2, 0.2, 0.2]), 30)[2] < 0
    assert np.isnan(ratings.skill(np.array([0.1, 0.1]), np.array([0.2, 0.2]), 5)[1:]).all()


def test_what_is_not_defined_is_nan():
    every = ratings.decisions([[0, 0, 0, 0], [0, 0, 3, 5], [0, 2, 0, 4]])
    undefined = {name: np.flatnonzero(np.isnan(values)).tolist() for name, values in every.items()}
    assert undefined == {
        "sensitivity": [0, 2],
        "specificity": [0],
        "accuracy": [0],
        "precision": [0, 1],
        "recall": [0, 2],
        "f1": [0],
        "npv": [0],
    }


def test_patients_without_a_slice_of_the_rating_change_nothing():
    labels, shown = np.array([1, 0, 1]), np.array([0.9, 0.8, 0.3])
    rating = Rating(labels, shown, np.array([0, 1, 1]))
    counts = np.array([[1, 2, 5], [1, 1, 0]], np.int32)
    for name, values in rating.drawn(counts).items():
        np.testing.assert_array_equal(values, rating.drawn(counts[:, :2])[name])
