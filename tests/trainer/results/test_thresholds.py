"""Thresholds beside every threshold there is, tried one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.results import thresholds

SLICES = st.lists(
    st.tuples(st.integers(-1, 1), st.sampled_from([0.0, 1e-30, 0.1, 0.3, 0.3 + 1e-9, 0.5, 0.8, 1 - 1e-16, 1.0])),
    min_size=1,
    max_size=40,
)


def confusion(labels, probabilities, threshold) -> tuple[int, int, int, int]:
    pairs = [(label, p >= threshold) for label, p in zip(labels, probabilities) if label >= 0]
    return tuple(pairs.count(pair) for pair in ((1, True), (0, True), (1, False), (0, False)))


def scores(labels, probabilities, threshold) -> dict[str, float]:
    tp, fp, fn, tn = confusion(labels, probabilities, threshold)
    sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
    youden = tp * (tn + fp) + tn * (tp + fn)  # in whole numbers: no rounding between equals
    return {"youden": youden, "f1": 2 * tp / (2 * tp + fp + fn), "sensitive": sensitivity, "specific": specificity}


def tried(labels, probabilities) -> dict[str, float]:
    """Rule -> the score that flags least, of all scores, with the best value."""
    highest_first = sorted({p for label, p in zip(labels, probabilities) if label >= 0}, reverse=True)
    by_score = {p: scores(labels, probabilities, p) for p in highest_first}
    chosen = {rule: max(highest_first, key=lambda p, rule=rule: by_score[p][rule]) for rule in ("youden", "f1")}
    chosen["sensitivity_95"] = max(p for p in highest_first if by_score[p]["sensitive"] >= 0.95)
    specific = [p for p in highest_first if by_score[p]["specific"] >= 0.95]
    return chosen | ({"specificity_95": min(specific)} if specific else {})


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(SLICES)
def test_no_other_threshold_is_better(slices):
    labels, probabilities = (np.array(column) for column in zip(*slices))
    chosen = thresholds.choose(labels, probabilities)
    assert chosen["even"] == 0.5
    if not {0, 1} <= set(labels.tolist()):
        assert chosen == {"even": 0.5}
        return
    expected = tried(labels.tolist(), probabilities.tolist())
    assert set(chosen) == {*expected, "even"}
    assert list(chosen) == [rule for rule in thresholds.RULES if rule in chosen]
    for rule, score in expected.items():
        assert 0 <= chosen[rule] <= 1
        assert confusion(labels, probabilities, chosen[rule]) == confusion(labels, probabilities, score)


def test_by_hand():
    labels = np.array([1, 1, 0, 1, 0, 0, -1])
    probabilities = np.array([0.9, 0.8, 0.6, 0.4, 0.3, 0.1, 0.7])
    chosen = thresholds.choose(labels, probabilities)

    def midway(lower: float, upper: float) -> float:
        return 1 / (1 + math.sqrt((1 - lower) / lower * (1 - upper) / upper))

    # sensitivity and specificity: 2/3 and 1 at 0.8, 1 and 2/3 at 0.4; of the two equals the higher
    assert chosen["youden"] == pytest.approx(midway(0.6, 0.8))
    assert chosen["f1"] == pytest.approx(midway(0.3, 0.4))  # 2 * 3 / (6 + 1 + 0) beats 2 * 2 / (4 + 0 + 1)
    assert chosen["sensitivity_95"] == pytest.approx(midway(0.3, 0.4))
    assert chosen["specificity_95"] == pytest.approx(midway(0.6, 0.8))


def test_exactly_95_percent_is_enough():
    # 20 of each value: one may be missed
    probabilities = np.r_[np.linspace(0.50, 0.69, 20), np.linspace(0.30, 0.49, 20)]
    labels = np.r_[np.ones(20, int), np.zeros(20, int)]
    chosen = thresholds.choose(labels, probabilities)
    assert 0.50 < chosen["sensitivity_95"] <= 0.51
    assert 0.48 < chosen["specificity_95"] <= 0.49
    assert 0.49 < chosen["youden"] < 0.50


def test_rounding_a_probability_moves_no_slice():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 500)
    probabilities = 1 / (1 + np.exp(-rng.normal(3 * labels - 8, 2)))
    rounded = probabilities.astype(np.float32).astype(np.float64)
    for threshold in thresholds.choose(labels, probabilities).values():
        np.testing.assert_array_equal(probabilities >= threshold, rounded >= threshold)


def test_a_rule_that_nothing_meets_is_left_out():
    # the score that flags least flags every negative slice
    chosen = thresholds.choose(np.array([1, 0, 0, 1]), np.array([0.5, 0.5, 0.5, 0.2]))
    assert set(chosen) == {"youden", "f1", "sensitivity_95", "even"}


@pytest.mark.parametrize("labels", [[], [-1, -1], [1, 1], [0, 0, -1], [1, -1]])
def test_a_label_of_one_value_has_only_the_even_threshold(labels):
    probabilities = np.linspace(0.1, 0.9, len(labels))
    assert thresholds.choose(np.array(labels, np.int8), probabilities) == {"even": 0.5}


def test_a_model_that_ranks_backwards_still_gets_thresholds():
    chosen = thresholds.choose(np.array([1, 1, 0, 0]), np.array([0.1, 0.2, 0.8, 0.9]))
    assert chosen["youden"] == chosen["sensitivity_95"] == 0.1  # all flagged; no lower score to keep away from


# what they will hold


def made(patients: int, ill: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Labels, probabilities and patients; the first `ill` patients have 1 to 8 positive slices of 12."""
    of = np.repeat(np.arange(patients), 12)
    labels = (np.tile(np.arange(12), patients) < (rng.integers(1, 9, patients) * (np.arange(patients) < ill))[of]) * 1
    logits = -2 + 1.5 * labels + rng.normal(0, 0.7, patients)[of] + rng.normal(0, 1, len(of))
    return labels, 1 / (1 + np.exp(-logits)), of


@pytest.mark.slow
def test_what_thresholds_will_hold():
    """On few positives a threshold promises more than it holds, and the interval knows it."""
    many = made(4000, 800, np.random.default_rng(99))
    rng, held, promised = np.random.default_rng(0), [], []
    for _ in range(60):
        labels, shown, patients = made(40, 8, rng)
        chosen = thresholds.choose(labels, shown)["youden"]
        found = thresholds.foreseen(labels, shown, patients, 100, 0)["rules"]["youden"]
        truth, own = ((lambda c: (c[0] / (c[0] + c[2]), c[3] / (c[1] + c[3])))(counted(*of, chosen))
                      for of in (many[:2], (labels, shown)))  # fmt: skip
        values = [found[name] for name in ("sensitivity", "specificity")]
        held += [value["low"] <= share <= value["high"] for value, share in zip(values, truth)]
        promised.append((sum(own), sum(value["value"] for value in values), sum(truth)))
    own, foreseen, truth = np.mean(promised, axis=0) - 1
    assert own - truth > 0.05  # the promise
    assert abs(foreseen - truth) < 0.04
    assert np.mean(held) >= 0.93


def counted(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> tuple[int, ...]:
    called = probabilities >= threshold
    return tuple(int(((labels == value) & (called == says)).sum()) for says, value in ((1, 1), (1, 0), (0, 1), (0, 0)))


def test_what_thresholds_rest_on():
    labels, shown, patients = made(20, 4, np.random.default_rng(1))
    labels[patients == 19] = -1
    found = thresholds.foreseen(labels, shown, patients, 50, 0)
    assert (found["positives"], found["patients"]) == ((labels == 1).sum(), 4)
    assert list(found["rules"]) == list(thresholds.choose(labels, shown))
    for rule in found["rules"].values():
        assert rule["sensitivity"]["low"] is None  # 4 patients
        assert 0 <= rule["specificity"]["low"] <= rule["specificity"]["value"] <= rule["specificity"]["high"] <= 1
    assert found == thresholds.foreseen(labels, shown, patients, 50, 0)
    assert found["rules"]["sensitivity_95"]["sensitivity"]["value"] > found["rules"]["even"]["sensitivity"]["value"]


@pytest.mark.parametrize("labels", [[], [-1, -1], [1, 1], [0, 0]])
def test_nothing_is_foreseen_of_a_label_of_one_value(labels):
    found = thresholds.foreseen(np.array(labels, np.int8), np.full(len(labels), 0.5), np.arange(len(labels)), 20, 0)
    unknown = dict.fromkeys(("value", "low", "high"))
    assert found["rules"] == {"even": {"sensitivity": unknown, "specificity": unknown}}


def test_which_threshold_decides():
    assert thresholds.headline({"youden": 0.2, "f1": 0.3, "even": 0.5}) == ("youden", 0.2)
    assert thresholds.headline({"even": 0.5}) == ("even", 0.5)
    assert thresholds.unchosen(("any", "epidural")) == {"any": {"even": 0.5}, "epidural": {"even": 0.5}}
