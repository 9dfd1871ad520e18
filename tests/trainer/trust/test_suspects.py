"""Which labels are most likely wrong, against cleanlab, a plain loop, and labels that were turned round."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.trust import suspects

SERIES, SLICES = 120, 24


def simulated(seed: int = 0, noise: float = 2.0):
    """True labels int8 [n, 2] (any, kind) in runs along series, given ones of which 2% are turned, held-out chances."""
    rng = np.random.default_rng(seed)
    starts = rng.random((SERIES, SLICES)) < 0.02
    kind = np.zeros((SERIES, SLICES), bool)
    for shift in range(5):
        kind[:, shift:] |= starts[:, : SLICES - shift]
    true = np.stack([kind.ravel()] * 2, axis=1).astype(np.int8)
    turned = rng.random(true.shape) < 0.02
    odds = np.where(true == 1, 1.0, -4.0) + rng.normal(0, noise, true.shape)
    series, place = np.divmod(np.arange(len(true)), SLICES)
    return true ^ turned, turned, 1 / (1 + np.exp(-odds)), suspects.beside(series, place)


def judged(labels, probabilities, neighbours=None, pixels=None, any_label=0):
    neighbours = np.full((len(labels), 2), -1) if neighbours is None else neighbours
    pixels = np.arange(len(labels)) if pixels is None else np.asarray(pixels)
    return suspects.judge(np.asarray(labels, np.int8), np.asarray(probabilities, float), neighbours, pixels, any_label)


def column(values):
    """One label: these slices (given, chance), then 20 of either value that nobody doubts."""
    sure = [0] * 20 + [1] * 20
    labels, chances = zip(*values, *((one, 0.05 + 0.9 * one) for one in sure))
    return np.array(labels, np.int8)[:, None], np.array(chances)[:, None]


def found_first(found, turned, share=0.04) -> float:
    first = found.ranked()[: int(share * turned.size)]
    return turned[first[:, 0], first[:, 1]].sum() / turned.sum()


@pytest.mark.parametrize("seed", range(3))
def test_turned_labels_stand_in_front_and_neighbours_bring_them_there(seed):
    labels, turned, chances, neighbours = simulated(seed)
    with_series, alone = judged(labels, chances, neighbours, any_label=1), judged(labels, chances, any_label=1)
    assert found_first(with_series, turned) > 0.9
    assert found_first(with_series, turned) > found_first(alone, turned) + 0.05
    assert not alone.clear.any()  # a model by itself proposes nothing
    clear = with_series.clear
    assert turned[clear].mean() > 0.95  # what is proposed is right, though nobody looked
    assert clear[turned].mean() > 0.6


def test_where_every_label_is_right_few_are_proposed():
    labels, turned, chances, neighbours = simulated()
    found = judged(labels ^ turned, chances, neighbours, any_label=1)
    assert found.clear.mean() < 0.002


@pytest.mark.parametrize("seed", range(5))
def test_the_confident_joint_against_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    given = (rng.random(200) < 0.2).astype(np.int8)
    chances = np.clip(rng.beta(1 + 3 * given, 4 - 2 * given), 0.001, 0.999)
    chances = 1 - chances if seed % 2 else chances  # of a model worse than chance both values may be confident
    thresholds, joint, off = suspects.confident_joint(given, chances)
    means = [
        np.mean([1 - p for p, g in zip(chances, given) if g == 0]),
        np.mean([p for p, g in zip(chances, given) if g]),
    ]
    counts, wrong = [[0, 0], [0, 0]], []
    for p, g in zip(chances.tolist(), given.tolist()):
        sure = [value for value, own in ((0, 1 - p), (1, p)) if own >= means[value]]
        guess = max(sure, key=lambda value: (1 - p, p)[value]) if sure else None
        if guess is not None:
            counts[g][guess] += 1
        wrong.append(guess is not None and guess != g)
    assert thresholds.tolist() == pytest.approx(means)
    assert joint.tolist() == counts
    assert off.tolist() == wrong


@pytest.mark.parametrize("seed", range(3))
def test_the_confident_joint_against_cleanlab(seed):
    count = pytest.importorskip("cleanlab.count")
    labels, _, chances, _ = simulated(seed)
    for label in range(2):
        given, told = labels[:, label], chances[:, label]
        both = np.stack([1 - told, told], axis=1)
        thresholds, joint, off = suspects.confident_joint(given, told)
        expected, wrong = count.compute_confident_joint(
            given.astype(int), both, calibrate=False, return_indices_of_off_diagonals=True
        )
        assert joint.tolist() == expected.tolist()
        assert np.flatnonzero(off).tolist() == sorted(wrong)
        assert thresholds == pytest.approx(count.get_confident_thresholds(given.astype(int), both), abs=1e-5)


def test_a_neighbour_is_the_slice_directly_beside_in_the_same_series():
    series, place = np.array([1, 0, 1, 1, 0]), np.array([2, 0, 1, 4, 1])
    assert suspects.beside(series, place).tolist() == [[2, -1], [-1, 4], [-1, 0], [-1, -1], [1, -1]]


def test_neighbours_that_contradict_make_more_suspect_and_a_border_less():
    """Three slices in doubt, each given 0: one between ones, one beside a one and a zero, one between zeros.

    A fourth is alone: neighbours that differ move nothing, but doubt counts half.
    """
    rows = [(1, 0.9), (0, 0.5), (1, 0.9), (1, 0.9), (0, 0.5), (0, 0.1), (0, 0.1), (0, 0.5), (0, 0.1), (0, 0.5)]
    labels, chances = column(rows)
    series = np.r_[np.repeat(np.arange(3), 3), 3, 4 + np.repeat(np.arange(2), 20)]
    place = np.r_[np.tile(np.arange(3), 3), 0, np.tile(np.arange(20), 2)]
    found = judged(labels, chances, suspects.beside(series, place))
    inside, border, apart = found.score[[1, 4, 7], 0]
    assert inside < found.score[9, 0] < border < apart
    assert border == pytest.approx(np.sqrt(found.score[9, 0]))
    assert found.against[[1, 4, 7], 0].tolist() == [True, False, False]
    assert found.border[[1, 4, 7], 0].tolist() == [False, True, False]
    assert found.with_it[[1, 4, 7], 0].tolist() == [False, True, True]


def test_the_same_pixels_with_another_label_are_suspects_and_the_minority_first():
    labels, chances = column([(0, 0.5), (1, 0.5), (0, 0.5)])
    found = judged(labels, chances, pixels=[0, 0, 0, *range(1, 41)])
    assert found.copied[:3, 0].all()
    assert not found.copied[3:].any()
    assert found.ranked()[0].tolist() == [1, 0]
    assert found.score[1, 0] < 0.1 * found.score[0, 0]
    assert found.suspect[:3, 0].all()


def test_unknown_labels_and_rare_values_are_never_suspects():
    labels, chances = column([(-1, 0.99), (0, 0.99)])
    rare = np.zeros_like(labels)
    rare[:9] = 1
    found = judged(np.c_[labels, rare], np.c_[chances, 1 - rare])
    assert not found.suspect[0].any()
    assert found.suspect[1, 0]
    assert np.isnan(found.score[:, 1]).all()
    assert found.refused == ("", "9 positive slices, and 10 are needed")
    assert found.judged == len(labels) - 1


def test_a_model_that_knows_nothing_of_a_label_doubts_none_of_it():
    """Its slices are judged by what stands beside them, and corrected by nobody."""
    labels, turned, chances, neighbours = simulated()
    blind = chances.copy()
    blind[: len(blind) // 2, 0] = np.nan
    found = judged(labels, blind, neighbours, any_label=1)
    unseen = np.isnan(blind)
    assert not (found.confident & unseen).any()
    assert not (found.clear & unseen).any()
    assert turned[found.suspect & unseen].mean() > 10 * turned.mean()
    assert np.isfinite(found.score).all()
    nobody = np.where(np.arange(2) == 0, np.nan, chances)
    refused = judged(labels, nobody, neighbours, any_label=1).refused
    assert refused == ("0 positive slices, and 10 are needed", "")


def test_any_without_a_kind_contradicts():
    labels, chances = column([(0, 0.05), (1, 0.95), (1, 0.95)])
    kind = labels.copy()
    kind[0], kind[1], kind[2] = 1, 0, -1
    found = judged(np.c_[labels, kind], np.c_[chances, chances])
    assert found.contradicts[:3].tolist() == [[True, True], [True, True], [False, False]]
    assert not found.contradicts[3:].any()


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ([(0, 1)], [(0, 0, 1), (0, 1, 1)]),  # any follows
        ([(1, 1)], [(1, 0, 0), (1, 1, 0)]),  # of the last kind, where any is in doubt too
        ([(2, 1)], []),  # where it is not: perhaps another kind
        ([(2, 1), (2, 2)], [(2, 1, 0), (2, 2, 1)]),
        ([(0, 0), (1, 0)], []),  # any without its kinds: which ones nobody knows
        ([(0, 0), (0, 2)], [(0, 0, 1), (0, 2, 1)]),
        ([(3, 0)], [(3, 0, 0)]),  # kinds that are not known say nothing
        ([(2, 2), (1, 1)], [(2, 2, 1), (1, 0, 0), (1, 1, 0)]),
    ],
)
def test_corrections_leave_any_in_order(chosen, expected):
    labels = np.array([[0, 0, 0], [1, 1, 0], [1, 1, 0], [1, -1, 0]], np.int8)
    doubted = np.array([[0, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0]], bool)
    assert suspects.corrections(labels, chosen, doubted, 0) == expected


def test_corrections_of_one_label_alone():
    assert suspects.corrections(np.array([[0], [1]], np.int8), [(1, 0)], np.ones((2, 1), bool), 0) == [(1, 0, 0)]
