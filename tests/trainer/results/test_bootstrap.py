"""Draws of whole patients, and areas of weighted slices beside scikit-learn's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as t_distribution
from sklearn.metrics import average_precision_score, roc_auc_score

from trainer.results import bootstrap
from trainer.results.bootstrap import Ranking
from trainer.results.ratings import scale

# label, score with ties, patient
SLICES = st.lists(st.tuples(st.integers(-1, 1), st.integers(-3, 3), st.integers(0, 4)), min_size=1, max_size=40)


def columns(slices) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, scores, patients = (np.array(column) for column in zip(*slices))
    return labels, scores / 2, patients


def all_counts(patients: int, resamples: int, seed: int = 0, chunk: int = 7) -> np.ndarray:
    return np.concatenate(list(bootstrap.patient_counts(patients, resamples, seed, chunk)))


def test_the_draws_are_these():
    # reports that are compared years apart, on another numpy, rely on the same draws
    assert all_counts(5, 3, seed=0).tolist() == [[0, 0, 2, 1, 2], [0, 2, 1, 1, 1], [2, 0, 1, 1, 1]]
    assert all_counts(5, 1, seed=1).tolist() == [[0, 1, 4, 0, 0]]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 31), st.integers(0, 5))
def test_draws_do_not_depend_on_the_chunk(patients, resamples, chunk, seed):
    counts = all_counts(patients, resamples, seed, chunk)
    assert (counts.shape, counts.dtype) == ((resamples, patients), np.int32)
    assert (counts.sum(axis=1) == patients).all()
    np.testing.assert_array_equal(counts, all_counts(patients, resamples + 3, seed, 1000)[:resamples])


def test_every_patient_is_drawn_alike():
    counts = all_counts(20, 4000)
    # binomial with 20 tries of 1/20: mean 1, variance 0.95
    assert counts.mean(axis=0) == pytest.approx(np.ones(20), abs=5 * math.sqrt(0.95 / 4000))
    assert counts.var(axis=0) == pytest.approx(np.full(20, 0.95), rel=0.15)
    assert not np.array_equal(counts, all_counts(20, 4000, seed=1))


def test_the_slices_of_a_patient_stay_together():
    patients = np.array([2, 0, 0, 1, 2, 2, 1])
    slices = np.concatenate(list(bootstrap.weights(patients, 50, 3, 8)))
    assert slices.shape == (50, 7)
    for patient in range(3):
        of_one = slices[:, patients == patient]
        assert (of_one == of_one[:, :1]).all()
    np.testing.assert_array_equal(slices[:, [1, 3, 0]], all_counts(3, 50, seed=3))


def test_chunks_keep_to_the_memory_meant_for_them():
    assert bootstrap.rows_at_a_time(100_000) == 30
    assert bootstrap.rows_at_a_time(10**9) == bootstrap.rows_at_a_time(3_000_000) == 1
    assert bootstrap.rows_at_a_time(0) == bootstrap.rows_at_a_time(1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(-5, 5)), min_size=1, max_size=30))
def test_sums_of_each_patient(rows):
    patients, places, values = (np.array(column) for column in zip(*rows))
    expected = np.zeros((patients.max() + 1, 3))
    for patient, place, value in rows:
        expected[patient, place] += value
    np.testing.assert_array_equal(bootstrap.per_patient(values, patients, places, 3), expected)
    np.testing.assert_array_equal(bootstrap.per_patient(values, patients), expected.sum(axis=1, keepdims=True))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(SLICES, st.integers(0, 100))
def test_areas_are_those_of_sklearn_with_weights(slices, seed):
    labels, scores, patients = columns(slices)
    counts = all_counts(5, 6, seed)
    ranking = Ranking(labels, scores, patients)
    found = ranking.areas(counts)
    known = labels >= 0
    assert ranking.defined == (len(np.unique(labels[known])) == 2)
    for row, area, precision in zip(counts, *found):
        weights = row[patients][known]
        if len(np.unique(labels[known][weights > 0])) < 2:
            assert math.isnan(area)
            assert math.isnan(precision)
            continue
        arguments = {"y_true": labels[known], "y_score": scores[known], "sample_weight": weights}
        assert area == pytest.approx(roc_auc_score(**arguments), abs=1e-12)
        assert precision == pytest.approx(average_precision_score(**arguments), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(SLICES)
def test_a_weight_is_as_good_as_copies(slices):
    labels, scores, patients = columns(slices)
    counts = all_counts(5, 4)
    for row, *areas in zip(counts, *Ranking(labels, scores, patients).areas(counts)):
        copies = np.repeat(np.arange(len(labels)), row[patients])
        if len(copies):
            once = np.ones((1, 5), np.int32)
            again = Ranking(labels[copies], scores[copies], patients[copies]).areas(once)
            np.testing.assert_array_equal(areas, np.ravel(again))


def test_four_slices_by_hand():
    labels, scores = np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.7, 0.1])
    ranking = Ranking(labels, scores, np.arange(4))
    area, precision = ranking.areas(np.array([[1, 1, 1, 1], [1, 3, 1, 1], [2, 0, 1, 1]], np.int32))
    # as they are: 3 of 4 pairs in order; precision 1/1 and 2/3. Slice 1 thrice: 5 of 8 pairs; 1/1 and 2/5
    assert area == pytest.approx([3 / 4, 5 / 8, 1])
    assert precision == pytest.approx([(1 + 2 / 3) / 2, (1 + 2 / 5) / 2, 1])


def test_patients_behind_a_ranking():
    labels, patients = np.array([1, 1, 0, 0, -1, 1]), np.array([0, 0, 0, 2, 3, 5])
    ranking = Ranking(labels, np.zeros(6), patients)
    assert (ranking.positive_patients, ranking.negative_patients) == (2, 2)
    none = Ranking(labels[4:5], np.zeros(1), patients[4:5])
    assert (none.positive_patients, none.negative_patients) == (0, 0)


def test_six_slices_with_ties_and_an_unknown_by_hand():
    labels, scores = np.array([1, 0, 1, 0, -1, 0]), np.array([0.9, 0.9, 0.5, 0.5, 0.95, 0.2])
    steps = Ranking(labels, scores, np.array([0, 0, 1, 1, 2, 2])).steps(np.array([[1, 1, 1], [2, 1, 0]], np.int32))
    assert steps.hits.tolist() == [[1, 2], [2, 3]]
    assert steps.above.tolist() == [[0, 1], [0, 2]]
    assert steps.through.tolist() == [[1, 2], [2, 3]]
    assert (steps.positives.tolist(), steps.negatives.tolist()) == ([2, 3], [3, 3])
    area, precision = Ranking(labels, scores, np.array([0, 0, 1, 1, 2, 2])).areas(np.ones((1, 3), np.int32))
    # pairs: 0.9 wins 2 and ties 1, 0.5 wins 1 and ties 1 of 6; precision 1/2 at both steps
    assert (area[0], precision[0]) == (pytest.approx(4 / 6), pytest.approx(1 / 2))


SHARE, LOSS, DIFFERENCE = bootstrap.SHARE, bootstrap.LOSS, bootstrap.DIFFERENCE


def spread(value: float, error: float) -> list[float]:
    """A value, and resamples whose standard deviation is `error`."""
    return [value, value - error, value + error]


def test_intervals_by_hand():
    times = t_distribution.ppf(0.975, 7) * math.sqrt(8 / 7)
    assert bootstrap.interval(spread(0.3, 0.1), DIFFERENCE, 8) == pytest.approx((0.3 - 0.1 * times, 0.3 + 0.1 * times))
    wide = t_distribution.ppf(0.99, 7) * math.sqrt(8 / 7)
    assert bootstrap.interval(spread(0.3, 0.1), DIFFERENCE, 8, 0.98)[1] == pytest.approx(0.3 + 0.1 * wide)
    low, high = bootstrap.interval(spread(0.2, 0.05), LOSS, 8)
    assert (low, high) == pytest.approx((0.2 * math.exp(-times / 4), 0.2 * math.exp(times / 4)))
    assert bootstrap.interval([0.0, 0.0, 0.0], LOSS, 8) == (0, 0)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.2])
def test_a_share_of_independent_patients_has_wilsons_interval_wider_towards_a_half(share):
    # the resamples of 100 patients have the standard deviation that the bootstrap gives
    found = bootstrap.interval(spread(share, math.sqrt(share * (1 - share) / 100)), SHARE, 100)
    times = t_distribution.ppf(0.975, 101)
    lean = 2 * (2 * share - 1) * (times - 1.959964)
    low, high = (proportion_confint(share, 100, of)[end] for end, of in enumerate((times + lean, times - lean)))
    assert found == pytest.approx((low, high), abs=1e-4)


def proportion_confint(share: float, trials: int, times: float) -> tuple[float, float]:
    """Where the distance of `share` is `times` the standard error at the end itself (Wilson 1927), by bisection."""

    def end(side: int) -> float:
        inner, outer = share, float(side > 0)
        for _ in range(60):
            middle = (inner + outer) / 2
            inside = abs(share - middle) <= times * math.sqrt(middle * (1 - middle) / trials)
            inner, outer = (middle, outer) if inside else (inner, middle)
        return inner

    return end(-1), end(1)


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1), st.floats(0, 0.3), st.integers(6, 1000))
def test_the_interval_of_a_share_holds_it_and_stays_inside_of_0_to_1(value, error, patients):
    low, high = bootstrap.interval(spread(value, error), SHARE, patients)
    assert 0 <= low <= value <= high <= 1


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1), st.floats(0, 0.3), st.integers(6, 1000))
def test_the_interval_of_misses_is_the_mirror_of_that_of_hits(value, error, patients):
    low, high = bootstrap.interval(spread(value, error), SHARE, patients)
    assert bootstrap.interval(spread(1 - value, error), SHARE, patients) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_no_error_among_few_patients_is_no_proof():
    low, high = bootstrap.interval([1.0] * 100, SHARE, 8)
    assert (low, high) == (pytest.approx(0.66, abs=0.01), 1)  # 0.63 of 8 independent trials (Clopper and Pearson)
    assert low < bootstrap.interval([1.0] * 100, SHARE, 80)[0] < 1


def test_an_average_precision_has_three_degrees_of_freedom_above_its_patients():
    """t of 11 is 2.201 and of 9, which a share of 8 patients has, 2.262; 1.960 from the normal distribution."""
    drawn = spread(0.5, 0.001)  # at 1/2 the ends are even, and so near that Wilson's scale is none
    low, high = bootstrap.interval(drawn, bootstrap.AVERAGE_PRECISION, 8)
    assert (high - low) / 2 == pytest.approx(2.201 * 0.001 * 8 / 8.01, rel=1e-3)
    low, high = bootstrap.interval(drawn, SHARE, 8)
    assert (high - low) / 2 == pytest.approx(2.262 * 0.001 * 8 / 8.01, rel=1e-3)
    assert [scale(name) for name in ("auc", "average_precision", "average_precision_before", "precision")] == [
        SHARE, bootstrap.AVERAGE_PRECISION, bootstrap.AVERAGE_PRECISION, SHARE,
    ]  # fmt: skip


def test_without_a_value_or_enough_patients_there_is_no_interval():
    for drawn in ([np.nan, 1, 1], [1.0], [1, np.nan], [1, np.nan, 1, np.nan]):
        assert np.isnan(bootstrap.interval(drawn, SHARE, 9)).all()
    assert np.isnan(bootstrap.interval(spread(0.5, 0.1), SHARE, 5)).all()
    assert not np.isnan(bootstrap.interval([0.5, np.nan, 0.4, 0.6], SHARE, 6)).any()


def test_the_middle_of_values_by_hand():
    values = np.arange(101.0)
    assert bootstrap.middle(values) == pytest.approx((2.5, 97.5))
    assert bootstrap.middle(values[::-1], level=0.5) == pytest.approx((25, 75))
    assert bootstrap.middle([3.0]) == (3, 3)
    assert bootstrap.middle([np.nan, 1, 2, np.nan]) == pytest.approx((1.025, 1.975))
    for undefined in ([], [np.nan], [np.nan, 1, np.nan]):
        assert np.isnan(bootstrap.middle(undefined)).all()


@pytest.mark.parametrize("slices", [1, 12])
@pytest.mark.parametrize("patients", [12, 40, 150])
def test_intervals_cover_what_they_should(slices, patients):
    # a patient's slices are all alike: only draws of whole patients know how little 12 of them say
    rng = np.random.default_rng(slices)
    of_slice = np.repeat(np.arange(patients), slices)
    counts = all_counts(patients, 400, chunk=400)
    covered = []
    for _ in range(400):
        values = (rng.random(patients) < 0.3)[of_slice].astype(float)
        sums, sizes = (bootstrap.per_patient(part, of_slice) for part in (values, np.ones(len(values))))
        drawn = np.r_[sums.sum() / sizes.sum(), (counts @ sums / (counts @ sizes))[:, 0]]
        low, high = bootstrap.interval(drawn, SHARE, patients)
        covered.append(low <= 0.3 <= high)
    assert 0.92 <= np.mean(covered) <= 0.99


def test_intervals_over_slices_would_cover_too_little():
    rng = np.random.default_rng(0)
    counts = all_counts(600, 200, chunk=200)
    covered = []
    for _ in range(200):
        values = np.repeat(rng.random(50) < 0.3, 12).astype(float)
        low, high = bootstrap.interval(np.r_[values.mean(), counts @ values / 600], SHARE, 600)
        covered.append(low <= 0.3 <= high)
    assert np.mean(covered) < 0.6  # what the module is there to avoid
