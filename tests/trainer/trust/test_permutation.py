"""Separation, and whether a p-value keeps its word."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from trainer.trust import permutation
from trainer.trust.permutation import Apart, Deals

SEEDS = 200


def deals(before: int, now: int, draws: int = 19, seed: int = 0) -> Deals:
    return Deals(np.arange(before), np.arange(now), seed, draws)


@pytest.mark.parametrize("values", [np.arange(50.0) ** 1.5 % 7, np.arange(50.0) % 3])
def test_numbers_are_apart_as_kolmogorov_and_smirnov_say(values):
    rng = np.random.default_rng(1)
    both = rng.permutation(values)
    found = deals(30, 20).apart(permutation.of_numbers(both)).separation
    assert found == pytest.approx(stats.ks_2samp(both[:30], both[30:]).statistic)


def test_the_area_is_wassersteins():
    both = np.random.default_rng(2).normal(size=50)
    found = deals(30, 20).measured(permutation.area(both))[0]
    assert found == pytest.approx(stats.wasserstein_distance(both[:30], both[30:]))


def test_what_is_not_told_lies_below_all():
    both = np.array([1.0, 2.0, 3.0, 4.0, np.nan, np.nan, 3.0, 4.0])
    assert deals(4, 4).apart(permutation.of_numbers(both)).separation == 0.5


def test_words_are_apart_by_the_shares_that_changed():
    codes = np.array([0, 0, 0, 1, 0, 2, 2, 1])
    assert deals(4, 4).apart(permutation.of_words(codes)).separation == 0.5


def test_rows_are_apart_in_the_direction_of_their_means():
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(80, 6))
    rows[40:, 2] += 20
    found = deals(40, 40, 199).apart(permutation.of_rows(rows))
    assert found.separation == 1
    assert found.by_chance < 0.6
    assert found.p == 1 / 200
    scores = deals(40, 40).direction(rows)
    assert scores[:40].max() < scores[40:].min()


@pytest.mark.parametrize("rows", [np.ones((40, 3)), np.tile([0.1, 0.7, 0.2], (40, 1))])
def test_rows_that_are_all_alike_are_not_apart(rows):
    found = deals(20, 20).apart(permutation.of_rows(rows))
    assert (found.separation, found.p) == (0, 1)


def test_equal_rows_lie_on_one_side_together():
    """Whatever order a sort gives them in."""
    rng = np.random.default_rng(5)
    few = rng.normal(size=(4, 3))
    rows = few[np.r_[np.zeros(15, int), np.ones(5, int), np.zeros(15, int), np.ones(5, int)]]
    assert deals(20, 20).apart(permutation.of_rows(rows)).separation == 0


def test_the_same_series_on_both_sides_are_as_near_as_can_be():
    values = np.random.default_rng(6).normal(size=30)
    found = deals(30, 30, 99).apart(permutation.of_numbers(np.tile(values, 2)))
    assert (found.separation, found.effect, found.p) == (0, 0, 1)


def test_a_series_counts_as_a_part_of_its_study():
    values = np.array([0.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    found = Deals(np.array([0, 1]), np.array([0, 0, 0, 1]), 0, 9).apart(permutation.of_numbers(values))
    assert found.separation == 0


def test_the_effect_is_what_is_beyond_chance():
    assert Apart(0.55, 0.1, 0.01).effect == pytest.approx(0.5)
    assert Apart(0.05, 0.1, 0.9).effect == 0
    assert Apart(1.0, 0.3, 0.01).effect == 1


KINDS = {
    "numbers": lambda both: permutation.of_numbers(both[:, 0]),
    "numbers of few values": lambda both: permutation.of_numbers(np.round(both[:, 0])),
    "area": lambda both: permutation.area(both[:, 0]),
    "words": lambda both: permutation.of_words((both[:, 0] * 2).astype(int) % 5),
    "rows": permutation.of_rows,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("series", [1, 4])
def test_false_alarms_are_as_rare_as_promised(kind, series):
    """40 studies of validation, 20 now, the series of a study alike: at most 5% of the seeds reach p <= 0.05."""
    alarms = 0
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        now = np.repeat(rng.normal(size=(20, 3)), series, axis=0)
        both = np.concatenate([rng.normal(size=(40, 3)), now])
        dealt = Deals(np.arange(40), np.repeat(np.arange(20), series), seed, 39)
        alarms += dealt.apart(KINDS[kind](both)).p <= 0.05
    assert stats.binomtest(alarms, SEEDS, 0.05, "greater").pvalue > 0.001


def test_p_values_are_corrected_as_holm_says():
    assert permutation.holm(np.array([0.01, 0.04, 0.03, 0.5])) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert permutation.holm(np.array([0.9, 0.8])) == pytest.approx([1, 1])
    assert permutation.holm(np.array([])).shape == (0,)


def test_the_same_seed_deals_the_same():
    both = np.random.default_rng(7).normal(size=50)
    one, two = (deals(30, 20, 99, 4).apart(permutation.of_numbers(both)) for _ in range(2))
    assert one == two
