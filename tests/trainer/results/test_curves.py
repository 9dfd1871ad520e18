"""Thinned curves beside whole ones, bands beside the curves of copied slices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, precision_recall_curve, roc_curve

from trainer.results import bootstrap, curves


def drawn(size: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice([-1, 0, 1], size, p=[0.05, 0.85, 0.1])
    return labels, rng.normal(1.2 * (labels == 1), 1).round(3)


def distance(x, y, thin_x, thin_y) -> float:
    """The greatest distance of a point of a line from the thinned line."""
    found = []
    for point in zip(x, y):
        ends = np.stack([thin_x, thin_y], axis=1)
        start, along = ends[:-1], np.diff(ends, axis=0)
        length = np.maximum((along**2).sum(axis=1), 1e-30)
        part = np.clip(((np.array(point) - start) * along).sum(axis=1) / length, 0, 1)
        found.append(np.hypot(*(start + part[:, None] * along - point).T).min())
    return max(found)


def test_the_thinned_roc_curve_is_the_same_picture():
    labels, scores = drawn()
    known = labels >= 0
    whole = roc_curve(labels[known], scores[known])[:2]
    x, y = curves.roc_points(labels, scores)
    assert len(x) == len(y) <= curves.POINTS < len(whole[0])
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert (np.diff(x) >= 0).all()
    assert (np.diff(y) >= 0).all()
    assert distance(*whole, x, y) < 0.003  # under a pixel of 300
    assert auc(x, y) == pytest.approx(auc(*whole), abs=0.001)


def test_the_thinned_precision_recall_curve_is_the_same_picture():
    labels, scores = drawn()
    known = labels >= 0
    precision, recall, _ = precision_recall_curve(labels[known], scores[known])
    x, y = curves.pr_points(labels, scores)
    assert len(x) == len(y) <= curves.POINTS < len(recall)
    assert (x[0], y[0], x[-1]) == (0, 1, 1)
    assert (np.diff(x) >= 0).all()
    shown = precision >= y[-1]  # not the fall at recall 1
    assert distance(recall[shown], precision[shown], x, y) < 0.005


def test_short_curves_are_left_whole():
    labels, scores = np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.7, 0.1])
    assert [part.tolist() for part in curves.roc_points(labels, scores)] == [[0, 0, 0.5, 0.5, 1], [0, 0.5, 0.5, 1, 1]]
    recall, precision = curves.pr_points(labels, scores)
    assert recall.tolist() == [0, 0.5, 0.5, 1]
    assert precision.tolist() == pytest.approx([1, 1, 0.5, 2 / 3])


def test_thinning_keeps_the_corners():
    x = np.linspace(0, 1, 1001)
    y = np.where(x < 0.5, x, 1 - x)
    assert [part.tolist() for part in curves.thinned(x, y, 200)] == [[0, 0.5, 1], [0, 0.5, 0]]
    loop = np.array([0, 1, 1, 0.0]), np.array([0, 0, 1, 0.0])  # it ends where it began
    assert [part.tolist() for part in curves.thinned(*loop, 3)] == [[0, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize("labels", [[1, 1], [0, -1], [-1, -1], []])
def test_a_label_of_one_value_has_no_curve(labels):
    labels, scores, patients = np.array(labels, int), np.linspace(0, 1, len(labels)), np.arange(len(labels))
    for points in (curves.roc_points, curves.pr_points):
        assert [len(part) for part in points(labels, scores)] == [0, 0]
    for band in (curves.roc_band, curves.pr_band):
        grid, low, high = band(labels, scores, patients, 10, 0)
        assert grid.tolist() == np.linspace(0, 1, 101).tolist()
        assert np.isnan([low, high]).all()


def roc_by_copies(labels, scores, grid) -> np.ndarray:
    false_rate, true_rate, _ = roc_curve(labels, scores, drop_intermediate=False)
    return np.interp(grid, false_rate, true_rate)


def precision_by_copies(labels, scores, grid) -> np.ndarray:
    precision, recall, _ = precision_recall_curve(labels, scores)
    # recall falls with the threshold; the last that reaches it, and for 0 the first hit
    return np.array([precision[:-1][recall[:-1] >= max(wanted, 1e-9)][-1] for wanted in grid - 1e-12])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("band", "by_copies"), [(curves.roc_band, roc_by_copies), (curves.pr_band, precision_by_copies)]
)
@settings(max_examples=25, deadline=None)
@given(size=st.integers(24, 60), seed=st.integers(0, 10_000))
def test_bands_are_those_of_the_curves_of_copied_slices(band, by_copies, size, seed):
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(-1, 2, size), rng.integers(0, 9, size)
    patients = np.arange(size) % 8
    labels[:16] = np.repeat([0, 1], 8)  # every patient has both
    grid, low, high = band(labels, scores, patients, 12, 1)
    rows = []
    for weights in next(bootstrap.weights(patients, 12, 1, 12)):
        copies = np.repeat(np.arange(len(labels)), np.where(labels >= 0, weights, 0))
        both = len(np.unique(labels[copies])) == 2
        rows.append(by_copies(labels[copies], scores[copies], grid) if both else np.full(101, np.nan))
    expected = np.array([bootstrap.middle(values) for values in np.array(rows).T])
    np.testing.assert_allclose(np.stack([low, high], axis=1), expected, atol=1e-9)


@pytest.mark.parametrize("band", [curves.roc_band, curves.pr_band])
@pytest.mark.parametrize(("positive", "negative", "drawn"), [(6, 6, True), (5, 20, False), (20, 5, False)])
def test_a_band_needs_six_patients_of_either_value(band, positive, negative, drawn):
    labels = np.repeat([1, 0], [2 * positive, 2 * negative])
    _, low, high = band(labels, np.linspace(0, 1, len(labels)), np.arange(len(labels)) // 2, 60, 0)
    assert np.isfinite([low, high]).all() == drawn
    assert np.isnan([low, high]).all() != drawn


def test_places_of_the_grid_that_are_whole_slices_are_whole():
    assert curves.false_alarms(58.0)[50] == 29  # np.linspace falls short of it
    for negatives in range(1, 3000):
        places, hundredths = curves.false_alarms(float(negatives)), np.arange(curves.GRID) * negatives
        whole = hundredths % 100 == 0
        np.testing.assert_array_equal(places[whole], hundredths[whole] // 100)


def test_a_rate_met_exactly_counts_what_lies_there():
    # all patients alike, so that every resample is: 19 false alarms of 38, and then the positive slice
    scores, labels = np.linspace(1, 0, 39), np.r_[np.zeros(19, int), 1, np.zeros(19, int)]
    patients = np.repeat(np.arange(6), 39)
    grid, low, high = curves.roc_band(np.tile(labels, 6), np.tile(scores, 6), patients, 5, 0)
    assert low.tolist() == high.tolist() == (grid >= 0.5).tolist()


def test_bands_hold_their_curves():
    labels, scores = drawn(2000)
    patients = np.arange(2000) // 4
    for points, band in ((curves.roc_points, curves.roc_band), (curves.pr_points, curves.pr_band)):
        grid, low, high = band(labels, scores, patients, 200, 0)
        # half-way between places of the grid the precision of few slices jumps
        inside = (grid > 0.1) & (grid < 0.95)
        curve = np.interp(grid, *points(labels, scores))
        assert ((low <= curve + 0.02) & (curve <= high + 0.02))[inside].all()
        assert 0.01 < (high - low)[inside].mean() < 0.2
