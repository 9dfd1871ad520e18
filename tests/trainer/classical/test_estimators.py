"""What is fitted: slices whose label is known, as scikit-learn called by hand does; how far it is; what it takes."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from trainer.classical import estimators
from trainer.classical.kinds import DEFAULTS, FOREST, LOGISTIC, SVM, Wanted

TREES = 25


def made(slices: int = 400, dim: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Vectors float32 that are float16, and two labels, of the second a third unknown."""
    rng = np.random.default_rng(7)
    vectors = rng.normal(size=(slices, dim)).astype(np.float16).astype(np.float32)
    logits = np.stack([vectors[:, 0] + vectors[:, 1] - 1, 2 * vectors[:, 2] - 2], axis=1)
    labels = (rng.random(logits.shape) < 1 / (1 + np.exp(-2 * logits))).astype(np.int8)
    labels[::3, 1] = -1
    return vectors, labels


def wanted(kind: str, **more: object) -> Wanted:
    return Wanted(kind, {**DEFAULTS[kind], **({"trees": TREES} if kind == FOREST else {}), **more}, 3)


def fitted(kind: str, told: list | None = None, **more: object):
    vectors, labels = made()
    tell = (lambda done, total: told.append((done, total))) if told is not None else lambda done, total: None
    return estimators.fit(wanted(kind, **more), vectors, labels, tell)


@pytest.mark.slow
def test_unknown_labels_are_left_out_of_a_forest_that_grows():
    """Grown ten trees at a time, it is the forest of one fit."""
    last, _ = fitted(FOREST)
    vectors, labels = made()
    known = labels[:, 1] >= 0
    forest = RandomForestClassifier(TREES, max_depth=12, min_samples_leaf=5, random_state=3, n_jobs=1)
    shown = forest.fit(vectors[known], labels[known, 1] == 1).predict_proba(vectors)[:, 1]
    shares = last.shares(vectors).numpy().reshape(len(vectors), 2, TREES)[:, 1]
    np.testing.assert_array_equal(np.cumsum(shares, 1)[:, -1] / TREES, shown)


def test_unknown_labels_are_left_out_of_a_linear_fit():
    last, astray = fitted(LOGISTIC)
    vectors, labels = made()
    scaled, known = StandardScaler().fit_transform(vectors), labels[:, 1] >= 0
    found = LogisticRegression(C=1.0, max_iter=1000).fit(scaled[known], labels[known, 1] == 1)
    np.testing.assert_allclose(last(vectors).numpy()[:, 1], found.decision_function(scaled), atol=1e-4)
    assert astray == []


@pytest.mark.parametrize("kind", [SVM, LOGISTIC])
def test_a_feature_that_never_changes_harms_nothing(kind):
    vectors, labels = made()
    vectors[:, 4] = 1000
    last, _ = estimators.fit(wanted(kind), vectors.copy(), labels, lambda done, total: None)
    logits = last(vectors).numpy()
    assert np.isfinite(logits).all()
    assert logits[labels[:, 0] == 1, 0].mean() > logits[labels[:, 0] == 0, 0].mean() + 1


def test_margins_become_log_odds_whatever_the_weights_of_values():
    """The SVM weighs positives up; its probabilities are as many as there are positives all the same."""
    last, _ = fitted(SVM)
    vectors, labels = made()
    shown = 1 / (1 + np.exp(-last(vectors).numpy().astype(np.float64)))
    for at in range(2):
        known = labels[:, at] >= 0
        assert shown[known, at].mean() == pytest.approx((labels[known, at] == 1).mean(), abs=0.01)


@pytest.mark.slow
def test_how_far_a_fit_is():
    told: list[tuple[int, int]] = []
    fitted(FOREST, told)
    assert told == [(10, 50), (20, 50), (25, 50), (35, 50), (45, 50), (50, 50)]
    assert wanted(FOREST).steps(2) == (50, "trees")
    told.clear()
    fitted(SVM, told)
    assert told == [(1, 2), (2, 2)]
    assert wanted(SVM).steps(2) == (2, "labels")


def test_a_tree_draws_no_more_than_it_may():
    few, many = (estimators.estimator(wanted(FOREST), slices) for slices in (32_768, 32_769))
    assert (few.max_samples, many.max_samples) == (None, 32_768)


@pytest.mark.parametrize(("slices", "epochs"), [(1, 1_000_000), (3000, 334), (200_000, 5), (10**6, 5)])
def test_an_svm_sees_a_million_slices_and_each_five_times(slices, epochs):
    found = estimators.estimator(wanted(SVM), slices)
    assert (found.max_iter, found.alpha) == (epochs, pytest.approx(1 / slices))


def test_a_fit_that_had_not_converged_is_named(monkeypatch, recwarn):
    monkeypatch.setattr(estimators, "MOST_STEPS", 2)
    assert fitted(LOGISTIC)[1] == [0, 1]
    assert len(recwarn) == 0
