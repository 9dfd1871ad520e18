"""The loss of series beside a plain loop over series, labels and slices: padding, lengths, unknown labels, shares."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.series.objective import SeriesObjective, series_labels
from trainer.training import losses

WEIGHTS = np.array([2, 1], np.float32)


def objective(smoothing: float = 0.0, gamma: float = 0.0, head: float = 0.25, mil: float = 0.1) -> SeriesObjective:
    return SeriesObjective(WEIGHTS, smoothing, gamma, 1, 4, head, mil)


def batch_of(
    some: list[np.ndarray], share: list[float] | None = None, length: int = 0, study: Any = None
) -> dict[str, np.ndarray]:
    """Labels of series, int [n, 2] each, padded to `length` or the longest; `study` int [b, 2], or nothing known."""
    longest = max(length, 1, *map(len, some))
    labels, mask = np.full((len(some), longest, 2), -1, np.int64), np.zeros((len(some), longest), bool)
    for at, one in enumerate(some):
        labels[at, : len(one)], mask[at, : len(one)] = one, True
    whole = np.full((len(some), 2), -1, np.int64) if study is None else np.array(study, np.int64)
    shares = np.array(share or [1] * len(some), np.float32)
    return {"labels": labels, "mask": mask, "study": whole, "share": shares}


def each(label: int, logit: float, smoothing: float, gamma: float) -> float:
    """The loss of one label by the formulas of the papers, in float64."""
    p, q = 1 / (1 + math.exp(-logit)), 1 / (1 + math.exp(logit))
    drawn = label * (1 - smoothing) + smoothing / 2
    return drawn * q**gamma * -math.log(p) + (1 - drawn) * p**gamma * -math.log(q)


def plain(some, slices, heads, share, study, smoothing, gamma, head, mil) -> tuple[float, float]:
    """Both sums, a loop over series and labels."""
    total = weight = 0.0
    for at, labels in enumerate(some):
        for name in range(2):
            counts = float(share[at]) * float(WEIGHTS[name])
            known = [row for row in range(len(labels)) if labels[row, name] >= 0]
            values = labels[:, name].tolist()
            whole = int(1 in values) if 1 in values or -1 not in values else -1
            whole = study[at][name] if study[at][name] >= 0 else whole
            if not known and whole < 0:
                continue
            weight += counts
            found = [each(labels[row, name], slices[at][row, name], smoothing, gamma) for row in known]
            total += counts * sum(found) / max(1, len(found))
            if whole >= 0:
                greatest = max(slices[at][: len(labels), name])
                total += counts * head * each(whole, heads[at][name], smoothing, gamma)
                total += counts * mil * each(whole, greatest, smoothing, gamma)
    return total, weight


def sums(batch: dict[str, np.ndarray], slices: Any, heads: Any, *args: float) -> list[float]:
    outputs = [tf.constant(np.asarray(slices), tf.float32), tf.constant(np.asarray(heads), tf.float32)]
    return [float(one) for one in objective(*args).loss_sums(batch, outputs)]


LABELS = st.lists(st.lists(st.tuples(*[st.integers(-1, 1)] * 2), min_size=1, max_size=4), min_size=1, max_size=4)
SETTINGS = st.sampled_from([(0.0, 0.0, 0.25, 0.1), (0.1, 0.0, 1.0, 0.0), (0.0, 2.0, 0.0, 1.0), (0.2, 0.5, 0.0, 0.0)])


@pytest.mark.slow
@settings(max_examples=60)
@given(LABELS, st.integers(0, 9), st.integers(0, 2**32 - 1), SETTINGS)
def test_as_a_plain_loop_has_it(labels, length, seed, given_settings):
    some = [np.array(one) for one in labels]
    rng = np.random.default_rng(seed)
    share = (0.1 + rng.random(len(some))).astype(np.float32)
    study = rng.integers(-1, 2, (len(some), 2))
    batch = batch_of(some, share.tolist(), length, study)
    slices = rng.normal(0, 3, (*batch["mask"].shape, 2)).astype(np.float32)
    heads = rng.normal(0, 3, (len(some), 2)).astype(np.float32)
    wanted = plain(some, slices.astype(float), heads.astype(float), share, study, *given_settings)
    np.testing.assert_allclose(sums(batch, slices, heads, *given_settings), wanted, rtol=2e-5, atol=1e-6)


def test_padding_does_not_count_and_has_no_gradient():
    some = [np.array([[1, 0]]), np.array([[0, 0], [1, 1], [0, -1]])]
    found = []
    for length, behind in ((0, 0.0), (8, 50.0), (8, -50.0)):
        batch = batch_of(some, length=length)
        slices = np.where(batch["mask"][..., None], 0.5, behind)
        found.append(sums(batch, slices, np.zeros((2, 2))))
    np.testing.assert_allclose(found, [found[0]] * 3, rtol=1e-6)
    variable = tf.Variable(slices, dtype=tf.float32)
    with tf.GradientTape() as tape:
        total, _ = objective(0.0, 0.0, 1.0, 1.0).loss_sums(batch, [variable, tf.zeros((2, 2))])
    gradient = tape.gradient(total, variable).numpy()
    assert not gradient[~batch["mask"]].any()
    assert gradient[batch["mask"]].any()


def test_a_series_that_is_all_padding_counts_nothing():
    some = [np.array([[1, 0], [0, 0]])]
    alone = sums(batch_of(some), np.ones((1, 2, 2)), np.ones((1, 2)))
    beside = sums(batch_of([*some, np.empty((0, 2))]), np.ones((2, 2, 2)), np.ones((2, 2)))
    assert beside == pytest.approx(alone)
    assert np.isfinite(sums(batch_of([np.empty((0, 2))]), np.ones((1, 1, 2)), np.ones((1, 2)))).all()


def test_each_series_counts_once_whatever_its_length():
    """Without the terms of the series: thirty slices alike are as one."""
    some, logits = [np.zeros((1, 2), int), np.zeros((30, 2), int)], np.zeros((2, 30, 2))
    logits[1] = 2.0
    total, weight = sums(batch_of(some), logits, np.zeros((2, 2)), 0.0, 0.0, 0.0, 0.0)
    assert weight == 2 * WEIGHTS.sum()
    assert total == pytest.approx(float(WEIGHTS.sum()) * (math.log(2) + math.log1p(math.exp(2))), rel=1e-6)


def test_share_weighs_a_series_in_both_sums():
    some = [np.array([[1, 0]]), np.array([[0, 0]])]
    logits, heads = np.array([[[1.0, 2.0]], [[-1.0, 0.5]]]), np.array([[0.3, 0.1], [-2.0, 1.0]])
    one, other = (sums(batch_of([labels]), logits[[at]], heads[[at]]) for at, labels in enumerate(some))
    both = sums(batch_of(some, [3.0, 0.5]), logits, heads)
    np.testing.assert_allclose(both, 3 * np.array(one) + 0.5 * np.array(other), rtol=1e-6)
    assert sums(batch_of(some, [0.0, 0.0]), logits, heads) == [0, 0]


def test_unknown_labels_say_nothing():
    some = [np.array([[-1, 0], [-1, 1]]), np.array([[-1, -1]])]
    batch = batch_of(some)
    first = sums(batch, np.zeros((2, 2, 2)), np.zeros((2, 2)))
    changed, heads = np.zeros((2, 2, 2)), np.zeros((2, 2))
    changed[:, :, 0], changed[1], heads[:, 0], heads[1] = 9.0, 9.0, 9.0, 9.0
    assert sums(batch, changed, heads) == pytest.approx(first)
    assert first[1] == 1.0  # of the second label of the first series


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ([[0], [0]], 0), ([[0], [1]], 1), ([[-1], [1]], 1), ([[-1], [0]], -1), ([[-1], [-1]], -1),
        ([[0]], 0), ([[1]], 1), ([], -1),
    ],
)  # fmt: skip
def test_labels_of_series(labels, wanted):
    for length in (2, 4):
        batch = batch_of([np.array([row * 2 for row in labels]).reshape(-1, 2)], length=length)
        assert series_labels(batch["labels"], batch["mask"][..., None]).numpy().tolist() == [[wanted] * 2]


def test_rows_of_slices_and_what_goes_in():
    found, batch = objective(), batch_of([np.array([[1, 0]]), np.array([[0, 0], [0, 1]])])
    assert found.by_slice(batch["labels"]).numpy().tolist() == [[1, 0], [-1, -1], [0, 0], [0, 1]]
    assert found.by_slice(batch["mask"]).numpy().tolist() == [True, False, True, True]
    logits = np.arange(8.0).reshape(2, 2, 2)
    assert found.logits([logits, None]).numpy().tolist() == logits.reshape(4, 2).tolist()
    given_inputs = found.inputs({**batch, "vectors": 1, "place": 2, "row": 3, "slice_logits": 4})
    assert set(given_inputs) == {"vectors", "place", "mask"}


def test_one_slice_without_the_series_is_the_loss_of_slices():
    labels, logits = np.array([[1, 0]]), np.array([[0.7, -0.2]])
    total, weight = losses.loss_sums(labels, tf.constant(logits, tf.float32), tf.constant(WEIGHTS), 0.1, 1.0)
    found = sums(batch_of([labels]), logits[None], np.zeros((1, 2)), 0.1, 1.0, 0.0, 0.0)
    assert found == pytest.approx([float(total), float(weight)])
