"""The loss and its gradient beside direct formulas in float64, eagerly and inside tf.function."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trainer.shell.problems import WrongUse
from trainer.training import losses, metrics

pytestmark = pytest.mark.slow  # traces graphs

NAMES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
WEIGHTS = np.array([1, 1, 1, 1, 1, 2], np.float32)
SETTINGS = [(0.0, 0.0), (0.1, 0.0), (0.0, 2.0), (0.2, 0.5)]  # smoothing, gamma
EDGES = [0.0, -0.0, 1e-30, 20.0, -20.0, 88.0, -90.0, 104.0, 1e3, -1e3, 1e4, -1e4]


def sums_and_gradient(labels, logits, smoothing, gamma):
    with tf.GradientTape() as tape:
        tape.watch(logits)
        total, weight = losses.loss_sums(labels, logits, tf.constant(WEIGHTS), smoothing, gamma)
    return total, weight, tape.gradient(total, logits)


IN_GRAPH = {
    pair: tf.function(
        lambda labels, logits, pair=pair: sums_and_gradient(labels, logits, *pair),
        input_signature=[tf.TensorSpec([None, 6], tf.int64), tf.TensorSpec([None, 6], tf.float32)],
    )
    for pair in SETTINGS
}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def oracle(labels, logits, smoothing, gamma):
    """Sum, weight and gradient by the formulas of the papers; float64."""
    x, known = logits.astype(np.float64), labels >= 0
    y = np.where(labels == 1, 1.0, 0.0) * (1 - smoothing) + smoothing / 2
    p, q = sigmoid(x), sigmoid(-x)
    minus_log_p, minus_log_q = np.logaddexp(0, -x), np.logaddexp(0, x)
    each = y * q**gamma * minus_log_p + (1 - y) * p**gamma * minus_log_q
    slope = -y * q**gamma * (gamma * p * minus_log_p + q) + (1 - y) * p**gamma * (gamma * q * minus_log_q + p)
    weights = known * WEIGHTS.astype(np.float64)
    return (weights * each).sum(), weights.sum(), weights * slope


def batches(elements):
    rows = st.integers(1, 5)
    labels = rows.flatmap(lambda n: hnp.arrays(np.int64, (n, 6), elements=st.integers(-1, 1)))
    return labels.flatmap(
        lambda known: st.tuples(st.just(known), hnp.arrays(np.float32, known.shape, elements=elements))
    )


LOGITS = st.one_of(st.floats(-30, 30, width=32), st.floats(-1e4, 1e4, width=32), st.sampled_from(EDGES))


@pytest.mark.parametrize("pair", SETTINGS)
@settings(max_examples=60, deadline=None)
@given(batch=batches(LOGITS))
def test_sums_and_gradient_are_those_of_the_formulas(pair, batch):
    labels, logits = batch
    expected = oracle(labels, logits, *pair)
    for compute in (IN_GRAPH[pair], lambda *tensors: sums_and_gradient(*tensors, *pair)):
        found = [part.numpy() for part in compute(tf.constant(labels), tf.constant(logits))]
        assert [part.dtype for part in found] == [np.float32] * 3
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-6)
        assert found[1] == expected[1]
        # atol: float32 carries no slope below it; a slope of 1e-7 moves no weight
        np.testing.assert_allclose(found[2], expected[2], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("pair", SETTINGS)
def test_extreme_logits_have_finite_and_right_gradients(pair):
    logits = np.tile(np.array(EDGES, np.float32)[:, None], (1, 6))
    for label in (0, 1):
        labels = np.full(logits.shape, label, np.int64)
        total, _, gradient = IN_GRAPH[pair](labels, logits)
        expected = oracle(labels, logits, *pair)
        np.testing.assert_allclose(total, expected[0], rtol=1e-6)
        np.testing.assert_allclose(gradient, expected[2], rtol=1e-5, atol=1e-7)


def test_literal_values():
    labels = np.array([[1, 0, -1, -1, -1, 1]])
    logits = np.zeros((1, 6), np.float32)
    total, weight = losses.loss_sums(labels, logits, WEIGHTS, 0.0, 0.0)
    np.testing.assert_allclose(total, 4 * np.log(2), rtol=1e-6)
    assert weight == 4
    focal, _ = losses.loss_sums(labels, logits, WEIGHTS, 0.0, 2.0)
    np.testing.assert_allclose(focal, np.log(2), rtol=1e-6)  # (1 - 0.5) ** 2 of it


def test_nothing_known_is_zero_of_zero():
    total, weight, gradient = IN_GRAPH[(0.0, 2.0)](np.full((3, 6), -1, np.int64), np.ones((3, 6), np.float32))
    assert (float(total), float(weight)) == (0, 0)
    assert not gradient.numpy().any()


def test_an_unknown_label_moves_nothing():
    labels = np.array([[1, 0, -1, 1, -1, 0]])
    first = np.linspace(-2, 2, 6, dtype=np.float32)[None]
    second = np.where(labels < 0, np.float32(77), first)
    for pair in SETTINGS:
        one, other = IN_GRAPH[pair](labels, first), IN_GRAPH[pair](labels, second)
        assert all(np.array_equal(a, b) for a, b in zip(one, other))
        assert not one[2].numpy()[labels < 0].any()


@given(batches(st.floats(-30, 30, width=32)).filter(lambda batch: (batch[0] >= 0).any()))
@settings(max_examples=50, deadline=None)
def test_the_loss_is_the_metric(batch):
    labels, logits = batch
    total, weight, _ = IN_GRAPH[(0.0, 0.0)](*batch)
    expected = metrics.log_loss(labels, logits, WEIGHTS)
    np.testing.assert_allclose(total / weight, expected, rtol=1e-3, atol=1e-6)  # float64's own clip beyond 28


def test_parts_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(-1, 2, (32, 6)), rng.normal(size=(32, 6)).astype(np.float32)
    whole = losses.loss_sums(labels, logits, WEIGHTS, 0.1, 1.5)
    parts = [losses.loss_sums(labels[at : at + 5], logits[at : at + 5], WEIGHTS, 0.1, 1.5) for at in range(0, 32, 5)]
    np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-5)


def test_small_labels_and_low_precision_logits_are_taken():
    labels = np.array([[1, 0, -1, 1, 0, 1]], np.int8)
    logits = tf.constant([[1, -2, 3, -4, 5, -6]], tf.bfloat16)
    total, weight = losses.loss_sums(labels, logits, WEIGHTS, 0.0, 0.0)
    assert (total.dtype, weight.dtype) == (tf.float32, tf.float32)
    np.testing.assert_allclose(total, oracle(labels, np.float32(logits), 0.0, 0.0)[0], rtol=1e-6)


def test_label_weights_are_the_competitions():
    weights = losses.label_weights(NAMES, "any", 2)
    assert weights.dtype == np.float32
    assert weights.tolist() == [1, 1, 1, 1, 1, 2]
    assert losses.label_weights(["bleed"], "bleed", 0.5).tolist() == [0.5]


@pytest.mark.parametrize(("any_name", "weight", "words"), [("Any", 2, "'Any' is not"), ("any", 0, "weight 0 of")])
def test_wrong_weights_are_refused(any_name, weight, words):
    with pytest.raises(WrongUse, match=words):
        losses.label_weights(NAMES, any_name, weight)
