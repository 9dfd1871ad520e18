"""Natural log odds beside Bayes' rule on every combination, labels counted by hand, losses minimised on a grid."""

from __future__ import annotations

import json
import math
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.results import joint
from trainer.results.joint import Odds
from trainer.results.probability import sigmoid

NAMES = ("any", "a", "b", "c")
unhurried = settings(max_examples=60, deadline=None)


def odds_of(natural, weight, names=NAMES, smoothing=0.0, gamma=0.0) -> Odds:
    """Of slices whose combinations have the shares `natural` and are drawn in proportion to `weight`."""
    natural, drawn = np.array(natural, np.float64), np.array(natural) * weight
    nothing = np.zeros(len(names))
    return Odds(names, "any", smoothing, gamma, natural / natural.sum(), drawn / drawn.sum(), nothing)


def marginals(share: np.ndarray, names=NAMES) -> np.ndarray:
    """Log odds of each label, by adding up combinations one by one; `share` [n, 2 ** kinds]."""
    found = np.empty((len(share), len(names)))
    for label in range(len(names)):
        member = [row[label] == 1 for row in joint.combinations(names, "any").tolist()]
        for row, values in enumerate(share):
            ones = math.fsum(value for value, inside in zip(values, member) if inside)
            found[row, label] = math.log(ones) - math.log(math.fsum(values) - ones)
    return found


def evidence(logs: np.ndarray, names=NAMES) -> np.ndarray:
    """What slices say of each combination where they speak of each kind alone: `logs` [n, kinds] log ratios."""
    kinds = np.delete(joint.combinations(names, "any"), names.index("any"), axis=1)
    return np.exp(logs @ kinds.T.astype(float))


# the joint


def test_combinations_hold_every_kind_and_any():
    assert joint.combinations(("a", "any", "b"), "any").tolist() == [[0, 0, 0], [0, 1, 1], [1, 1, 0], [1, 1, 1]]
    assert joint.combinations(("any",), "any").tolist() == [[0]]


SHARES = st.lists(st.floats(0.02, 1), min_size=8, max_size=8)
WEIGHTS = st.lists(st.floats(0.1, 10), min_size=8, max_size=8)


@pytest.mark.slow
@unhurried
@given(SHARES, WEIGHTS, st.lists(st.floats(-4, 4), min_size=3, max_size=3))
def test_kinds_that_are_seen_apart_get_bayes_probabilities(natural, weight, logs):
    """The logits of an ideal model of the draw, turned into those of an ideal model of nature; sweeps without end."""
    seen = evidence(np.array([logs]))
    drawn = marginals(seen * (np.array(natural) * weight))
    with mock.patch.object(joint, "KIND_SWEEPS", 1000):
        found = odds_of(natural, weight).log_odds(drawn)
    np.testing.assert_allclose(found, marginals(seen * np.array(natural)), atol=1e-5)


def test_the_sweeps_are_enough_for_a_balanced_draw():
    """Shares as in the RSNA data, the rarest positive label drawn as often as none, and kinds that come together."""
    natural = np.array([0.87, 0.05, 0.04, 0.01, 0.02, 0.006, 0.003, 0.001])
    strata = np.array([0, 1, 2, 2, 3, 3, 3, 3])
    weight = 1 / np.bincount(strata, natural)[strata]
    seen = evidence(np.random.default_rng(0).normal(size=(1000, 3)) * 3)
    found = odds_of(natural, weight).log_odds(marginals(seen * (natural * weight)))
    np.testing.assert_allclose(found, marginals(seen * natural), atol=1e-3)


def test_one_kind_is_shifted_by_the_weights_alone():
    """Bayes by hand: 0.9 and 0.1 by nature, half and half as drawn, so nine times the odds."""
    odds = odds_of([0.9, 0.1], [1, 9], ("any", "a"))
    np.testing.assert_allclose(odds.log_odds([[0.5, 0.5]]), [[0.5 - math.log(9)] * 2], rtol=1e-12)


def test_the_order_of_the_labels_does_not_matter():
    rng = np.random.default_rng(0)
    natural, weight = rng.uniform(0.1, 1, 8), rng.uniform(0.1, 5, 8)
    logits = rng.normal(size=(20, 4))
    last = odds_of(natural, weight, ("a", "b", "c", "any")).log_odds(logits[:, [1, 2, 3, 0]])
    np.testing.assert_allclose(last[:, [3, 0, 1, 2]], odds_of(natural, weight).log_odds(logits), rtol=1e-12)


@unhurried
@given(SHARES, WEIGHTS, st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4))
def test_whatever_a_model_says_is_finite_and_no_kind_above_any(natural, weight, logits):
    found = odds_of(natural, weight).log_odds([logits])
    assert np.isfinite(found).all()
    assert (found[:, 1:] <= found[:, :1] + 1e-9).all()


def test_rows_do_not_depend_on_each_other(monkeypatch):
    odds = odds_of(np.arange(1, 9), np.arange(8, 0, -1))
    logits = np.random.default_rng(1).normal(size=(11, 4))
    whole = odds.log_odds(logits)
    monkeypatch.setattr(joint, "_ROWS", 3)
    np.testing.assert_allclose(odds.log_odds(logits), whole, rtol=1e-12)
    assert odds.log_odds(np.empty((0, 4))).shape == (0, 4)


def test_a_combination_that_is_never_drawn_is_held_by_its_prevalence():
    """`none`, 0.6 by nature, is left out: whatever a slice shows, 0.6 of it is none."""
    odds = odds_of([0.6, 0.3, 0.1, 0], [0, 1, 1, 1], ("any", "a", "b"))
    found = sigmoid(odds.log_odds([[9.0, 2.0, -2.0], [9.0, -30.0, 30.0]]))
    np.testing.assert_allclose(found[:, 0], 0.4)
    np.testing.assert_allclose(found[1], [0.4, 0, 0.4], atol=1e-6)


def test_a_label_that_no_slice_has_keeps_its_logit():
    natural = np.array([0.7, 0, 0.3, 0])  # b is the last bit: a is there alone, b never
    found = odds_of(natural, [1, 1, 2, 2], ("any", "a", "b")).log_odds([[0.0, 0.0, -7.5]])
    np.testing.assert_allclose(found, [[-math.log(2), -math.log(2), -7.5]], atol=1e-3)


def test_no_kind_is_above_any():
    found = joint.coherent([[0.2, 0.1, 0.3], [0.5, 0.5, 0.6]], 0)
    np.testing.assert_array_equal(found, [[0.2, 0.1, 0.2], [0.5, 0.5, 0.5]])


def test_alone_takes_the_shift_off():
    odds = joint.alone(("any", "a"), "any", [1, -1])
    np.testing.assert_array_equal(odds.log_odds([[3.0, 3.0]]), [[2, 4]])


# counting


def test_shares_of_labels_that_are_all_known():
    """30 none, 8 a, 2 a and b; those with b twice as often. 32 slices more, kinds apart: a 1, b 0.2 of any."""
    labels = np.repeat([[0, 0, 0], [1, 1, 0], [1, 1, 1]], [30, 8, 2], axis=0)
    of_combination = np.array([1.0, 2, 1, 2])
    natural, drawn = joint.estimate(("any", "a", "b"), "any", labels, 1.0 + labels[:, 2], of_combination)
    more = 32 * np.array([0.75, 0, 0.25 * 0.8, 0.25 * 0.2])
    counted = np.array([30, 0, 8, 2]) + more
    np.testing.assert_allclose(natural, counted / 72)
    np.testing.assert_allclose(drawn, counted * of_combination / (counted @ of_combination))


def test_unknown_labels_are_filled_in_by_what_is_known():
    """b is hidden in every second slice with a: they are shared out as the known ones are."""
    known = np.repeat([[0, 0, 0], [1, 1, 0], [1, 1, 1]], [3000, 800, 200], axis=0)
    hidden = known.copy()
    hidden[3000::2, 2] = -1
    every = np.ones(4)
    full, _ = joint.estimate(("any", "a", "b"), "any", known, np.ones(len(known)), every)
    found, drawn = joint.estimate(("any", "a", "b"), "any", hidden, np.ones(len(known)), every)
    np.testing.assert_allclose(found, full, atol=1e-6)
    np.testing.assert_allclose(drawn, found)


def test_a_stratum_without_slices_gets_nothing_that_was_not_counted():
    labels = np.repeat([[0, 0, 0], [1, 1, 0], [1, 1, 1]], [30, 8, 2], axis=0)
    natural, drawn = joint.estimate(("any", "a", "b"), "any", labels, np.ones(40), np.array([1.0, 1, 1, np.nan]))
    assert natural[3] == pytest.approx(2 / (40 + 32 * 0.95))
    assert drawn.sum() == pytest.approx(1)


@pytest.mark.parametrize("labels", [[[0, 0, 0]], [[1, 1, 1]], [[-1, -1, -1]], [[1, -1, -1]], [[0, -1, -1], [1, -1, 1]]])
def test_few_slices_still_make_shares(labels):
    shares = joint.estimate(("any", "a", "b"), "any", np.array(labels), np.ones(len(labels)), np.ones(4))
    for share in shares:
        assert share.sum() == pytest.approx(1)
        assert (share >= 0).all()


@unhurried
@given(st.lists(st.tuples(*[st.integers(-1, 1)] * 2), min_size=1, max_size=30))
def test_what_is_known_of_one_label_stays_what_it_was(rows):
    """The share of a label among 10,000 copies of the slices is the one counted, when all its values are known."""
    kinds = np.array([row for row in rows if row[0] >= 0] or [[1, 0]])
    labels = np.c_[np.where((kinds == 1).any(1), 1, np.where((kinds == 0).all(1), 0, -1)), kinds]
    natural, _ = joint.estimate(
        ("any", "a", "b"), "any", np.repeat(labels, 10_000, 0), np.ones(10_000 * len(labels)), np.ones(4)
    )
    counted = (labels[:, 1] == 1).mean()
    assert natural @ joint.combinations(("any", "a", "b"), "any")[:, 1] == pytest.approx(counted, abs=0.005)


# the loss


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_logit_of_least_loss_gives_the_truth_back(gamma, smoothing):
    """The loss of `losses.loss_sums`, minimised on a fine grid of logits."""
    grid = np.linspace(-12, 12, 480_001)
    p = sigmoid(grid)
    for truth in (0.001, 0.02, 0.3, 0.5, 0.9):
        drawn = truth * (1 - smoothing) + smoothing / 2
        loss = -drawn * (1 - p) ** gamma * np.log(p) - (1 - drawn) * p**gamma * np.log1p(-p)
        found = joint.unsmoothed(joint.unfocused(grid[loss.argmin()], gamma), smoothing)
        assert sigmoid(found) == pytest.approx(truth, abs=2e-4 * (1 + gamma))


@unhurried
@given(st.floats(0, 10), st.floats(0, 0.9), st.lists(st.floats(-600, 600), min_size=2, max_size=20))
def test_a_higher_logit_never_has_lower_odds(gamma, smoothing, logits):
    found = joint.unsmoothed(joint.unfocused(np.sort(logits), gamma), smoothing)
    assert np.isfinite(found).all()
    assert (np.diff(found) >= -1e-9).all()


@unhurried
@given(st.floats(0, 10), st.floats(0, 0.9), st.floats(-50, 50))
def test_the_two_sides_are_alike(gamma, smoothing, logit):
    up, down = (joint.unsmoothed(joint.unfocused(side * logit, gamma), smoothing) for side in (1, -1))
    assert up == pytest.approx(-down, abs=1e-9)


def test_nothing_to_undo_changes_no_bit():
    logits = np.array([[0.1, -7.3, 900.0, -1e-300]])
    np.testing.assert_array_equal(joint.unchanged(NAMES, "any").log_odds(logits), logits)


def test_beyond_the_smoothed_labels_the_distance_counts():
    end = joint.smooth_end(0.1)
    assert sigmoid(-end) == pytest.approx(0.0505)
    found = joint.unsmoothed([-end - 1, -end, end, end + 2], 0.1)
    np.testing.assert_allclose(np.diff(found)[[0, 2]], [1, 2])
    assert sigmoid(found[1]) == pytest.approx(0.0005 / 0.9)


# on disk


def some() -> Odds:
    return odds_of([0.5, 0.3, 0.1, 0.1], [1, 2, 1 / 3, 4], ("any", "a", "b"), 0.01, 2.0)


def test_json_keeps_every_bit():
    values = some().to_dict()
    again = joint.from_dict(json.loads(json.dumps(values)))
    assert again.to_dict() == values
    logits = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_array_equal(again.log_odds(logits), some().log_odds(logits))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"names": "any"}, "it must be a list of labels"),
        ({"names": ["any", "a", "a"]}, "each must stand once"),
        ({"any": "none"}, "'none' among them"),
        ({"smoothing": 1.0}, "smoothing is 1.0"),
        ({"gamma": -1}, "gamma -1"),
        ({"gamma": "2"}, "they must be numbers"),
        ({"natural": [1.0]}, "natural is .*; it must be 4 shares that sum to 1"),
        ({"natural": []}, "natural is .*; it must be 4 shares"),
        ({"drawn": [0.5, 0.5, 0.5, -0.5]}, "drawn is"),
        ({"drawn": [0.5, 0.5, 0.5, 0.5]}, "drawn is"),
        ({"drawn": ["1", 0, 0, 0]}, "it must be a list of numbers"),
        ({"natural": [0.5, 0.5, 0, 0]}, "a combination is drawn that does not occur by nature"),
        ({"shift": [0, 0]}, "it must be 3 finite numbers"),
        ({"shift": [0, 0, float("nan")]}, "it must be 3 finite numbers"),
        ({"more": 1}, "they must hold names, any"),
    ],
)
def test_damaged_values_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        joint.from_dict({**some().to_dict(), **change})


@pytest.mark.parametrize("values", [[], "text", {}, {"names": ["any"]}])
def test_values_that_are_no_odds_are_refused(values):
    with pytest.raises(ValueError, match="they must hold names"):
        joint.from_dict(values)
