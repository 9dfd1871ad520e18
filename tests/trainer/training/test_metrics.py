"""Metrics beside the competition's formula, sklearn and plain loops; scores beside the whole arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trainer.results import joint
from trainer.results.probability import sigmoid
from trainer.shell.problems import TrainingFailed, WrongUse
from trainer.training import metrics

NAMES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
WEIGHTS = np.array([1, 1, 1, 1, 1, 2], np.float32)
AS_IT_IS = joint.unchanged(NAMES, "any")
EDGES = [0.0, -0.0, 30.0, 36.0, -36.0, 800.0, -800.0, 1e4, -1e4]
# without numbers below 1.2e-38, which TensorFlow takes for 0
LOGITS = st.one_of(st.floats(-40, 40, width=32, allow_subnormal=False), st.sampled_from(EDGES))


def drawn(rows: int, seed: int = 0, unknown: bool = True) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1 if unknown else 0, 2, (rows, 6)).astype(np.int64)
    return labels, rng.normal(0, 3, (rows, 6)).round(1).astype(np.float32)  # rounded: ties


def competition(labels, logits, weights) -> float:
    """The weighted mean over the labels of their mean clipped log losses; plain loops."""
    means = []
    for label in range(labels.shape[1]):
        losses = []
        for y, x in zip(labels[:, label].tolist(), logits[:, label].tolist()):
            p = 1 / (1 + math.exp(-x)) if x > -700 else 0.0
            p = min(max(p, 1e-15), 1 - 1e-15)
            losses.append(-math.log(p) if y else -math.log1p(-p))
        means.append(sum(losses) / len(losses))
    return float(np.average(means, weights=weights))


def arrays(low: int, elements=LOGITS):
    def with_logits(labels):
        return st.tuples(st.just(labels), hnp.arrays(np.float32, labels.shape, elements=elements))

    rows = st.integers(1, 8).flatmap(lambda n: hnp.arrays(np.int64, (n, 6), elements=st.integers(low, 1)))
    return rows.flatmap(with_logits)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(arrays(low=-1))
def test_what_lacks_a_value_is_known_from_the_labels(batch):
    labels, logits = batch
    found = metrics.Scores()
    found.add(labels, logits, np.ones(len(labels)), np.arange(len(labels)))
    for name, value in found.result(AS_IT_IS).items():
        assert bool(metrics.lacking(name, NAMES, labels)) == math.isnan(value), name


@pytest.mark.parametrize(
    ("name", "any_labels", "words"),
    [
        ("auc_any", [0, 0, -1], "0 positive and 2 negative slices of any"),
        ("auc_any", [1, 1, -1], "2 positive and 0 negative slices of any"),
        ("auc_any", [-1, -1, -1], "0 positive and 0 negative slices of any"),
        ("auc", [1, 1, -1], "no label that is positive in some slices and negative in others"),
        ("accuracy_any", [-1, -1, -1], "no slice where any is known"),
        ("accuracy", [-1, -1, -1], "no slice with a known label"),
        ("log_loss", [-1, -1, -1], "no slice with a known label"),
        ("log_loss", [0, -1, -1], ""),
        ("auc", [0, 1, -1], ""),
    ],
)
def test_what_lacks_is_told_in_counts(name, any_labels, words):
    labels = np.full((3, 6), -1)
    labels[:, 5] = any_labels
    assert metrics.lacking(name, NAMES, labels) == words


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(arrays(low=0))
def test_log_loss_is_the_competitions(batch):
    labels, logits = batch
    assert metrics.log_loss(labels, logits, WEIGHTS) == pytest.approx(competition(labels, logits, WEIGHTS), rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(arrays(low=-1))
def test_unknown_labels_count_nowhere(batch):
    labels, logits = batch
    known = labels >= 0
    if not known.any():
        assert math.isnan(metrics.log_loss(labels, logits, WEIGHTS))
        return
    parts = [(weight, competition(np.array([[y]]), np.array([[x]]), [1])) for y, x, weight in terms(labels, logits)]
    expected = sum(weight * loss for weight, loss in parts) / sum(weight for weight, _ in parts)
    assert metrics.log_loss(labels, logits, WEIGHTS) == pytest.approx(expected, rel=1e-12)


def terms(labels, logits):
    """Label, logit and weight of each known label, one by one."""
    cells = [(row, label) for row, label in np.ndindex(labels.shape) if labels[row, label] >= 0]
    return [(labels[cell], logits[cell], float(WEIGHTS[cell[1]])) for cell in cells]


def test_log_loss_agrees_with_sklearn():
    labels, logits = drawn(200, unknown=False)
    p = sigmoid(logits)
    means = [sklearn.metrics.log_loss(labels[:, at], p[:, at]) for at in range(6)]
    assert metrics.log_loss(labels, logits, WEIGHTS) == pytest.approx(np.average(means, weights=WEIGHTS), rel=1e-12)


def test_log_loss_is_clipped_on_both_sides():
    labels, logits = np.array([[1], [0]]), np.array([[-1e4], [1e4]])
    assert metrics.log_loss(labels[:1], logits[:1], [1]) == -math.log(1e-15)
    assert metrics.log_loss(labels[1:], logits[1:], [1]) == -math.log1p(-(1 - 1e-15))
    assert metrics.log_loss(labels, -logits, [1]) == pytest.approx(1e-15, rel=0.2)


def test_memory_order_does_not_matter():
    labels, logits = drawn(999)
    turned = metrics.log_loss(np.asfortranarray(labels), np.asfortranarray(logits), WEIGHTS)
    assert turned == metrics.log_loss(labels, logits, WEIGHTS)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 1), st.integers(-3, 3)), max_size=30))
def test_auc_is_the_share_of_pairs_in_order(pairs):
    labels = np.array([label for label, _ in pairs], np.int64)
    scores = np.array([score for _, score in pairs], np.float32)
    above, below = scores[labels == 1], scores[labels == 0]
    if len(above) == 0 or len(below) == 0:
        assert math.isnan(metrics.auc(labels, scores))
        return
    wins = (above[:, None] > below).mean() + (above[:, None] == below).mean() / 2
    assert metrics.auc(labels, scores) == pytest.approx(wins, abs=1e-12)
    known = labels >= 0
    assert metrics.auc(labels, scores) == sklearn.metrics.roc_auc_score(labels[known], scores[known])


def test_accuracy_counts_known_labels_only():
    labels = np.array([[1, 0, -1], [1, -1, -1], [0, 1, -1]])
    logits = np.array([[0.0, -1, 5], [-0.1, 9, 5], [-3, -2, 5]])
    np.testing.assert_array_equal(metrics.accuracy(labels, logits), [2 / 3, 0.5, np.nan])


def scores_of(labels, logits, parts, padding=0) -> metrics.Scores:
    """Scores of the rows, given in the parts, each with rows of padding."""
    scores = metrics.Scores()
    for rows in parts:
        weight = np.r_[np.ones(len(rows)), np.zeros(padding)].astype(np.float32)
        filled = np.r_[rows, np.zeros(padding, np.int64)]
        shown = np.where(weight[:, None] > 0, logits[filled], np.float32(np.nan))  # padding may hold anything
        scores.add(tf.constant(labels[filled]), tf.constant(shown), weight, filled)
    return scores


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(2, 60), st.integers(1, 17), st.integers(0, 3))
def test_scores_are_those_of_the_whole_arrays(random, size, batch, padding):
    labels, logits = drawn(size, seed=size)
    odds = joint.alone(NAMES, "any", np.linspace(-1, 2, 6))
    order = list(range(size))
    random.shuffle(order)
    parts = [np.array(order[at : at + batch]) for at in range(0, size, batch)]
    scores = scores_of(labels, logits, parts, padding)
    result = scores.result(odds)
    natural = joint.coherent(odds.log_odds(logits), NAMES.index("any"))
    areas = [metrics.auc(labels[:, at], natural[:, at]) for at in range(6)]
    shares = metrics.accuracy(labels, natural)
    expected = {
        "log_loss": metrics.log_loss(labels, natural, WEIGHTS),
        "log_loss_as_sampled": metrics.log_loss(labels, logits, WEIGHTS),
        "auc": np.mean([area for area in areas if not np.isnan(area)] or [np.nan]),
        "accuracy": np.mean([share for share in shares if not np.isnan(share)] or [np.nan]),
        **{f"auc_{name}": area for name, area in zip(NAMES, areas)},
        **{f"accuracy_{name}": share for name, share in zip(NAMES, shares)},
    }
    assert list(result) == list(expected) == metrics.metric_names(NAMES)
    assert all(type(value) is float for value in result.values())
    np.testing.assert_array_equal(list(result.values()), list(expected.values()))  # bit for bit, nan where nan
    assert len(scores) == size
    for found, given_array in zip(scores.arrays(), (np.arange(size), labels, logits)):
        np.testing.assert_array_equal(found, given_array)


def test_undone_shift_gives_the_natural_log_loss():
    labels, logits = drawn(50, unknown=False)
    shift = np.array([1.5, 0, -1, 2, 0.5, 3])
    parts = [np.arange(50)]
    natural = scores_of(labels, logits, parts).result(AS_IT_IS)
    shifted = scores_of(labels, (logits + shift).astype(np.float64), parts).result(joint.alone(NAMES, "any", shift))
    assert shifted["log_loss"] == pytest.approx(natural["log_loss"], rel=1e-12)
    assert shifted["log_loss_as_sampled"] > natural["log_loss_as_sampled"]
    assert shifted["auc"] == natural["auc"]


def test_a_row_scored_twice_is_refused():
    labels, logits = drawn(10)
    scores = scores_of(labels, logits, [np.arange(4)])
    with pytest.raises(TrainingFailed, match="row 3 of the split was scored twice"):
        scores.add(labels[:3], logits[:3], np.ones(3), np.array([7, 3, 2]))
    with pytest.raises(TrainingFailed, match="row 6 of the split was scored twice"):
        scores_of(labels, logits, [np.array([5, 6, 6])])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_refused(value):
    labels, logits = drawn(10)
    logits[6, 2] = logits[8, 0] = value
    with pytest.raises(TrainingFailed, match=f"row 6 of the split: logit 2 is {value}") as caught:
        scores_of(labels, logits, [np.arange(10)])
    assert "\n" not in str(caught.value)


def test_no_slice_has_no_result():
    with pytest.raises(TrainingFailed, match="no slice was scored"):
        scores_of(*drawn(1), [np.array([], np.int64)], padding=2).result(AS_IT_IS)


IN_GRAPH = tf.function(
    lambda labels, logits: metrics.step_sums(labels, logits, tf.constant(WEIGHTS)),
    input_signature=[tf.TensorSpec([None, 6], tf.int64), tf.TensorSpec([None, 6], tf.float32)],
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(arrays(low=-1))
def test_step_sums_are_those_of_the_metrics(batch):
    labels, logits = batch
    known = labels >= 0
    for sums in (IN_GRAPH(labels, logits).numpy(), metrics.step_sums(labels, logits, WEIGHTS).numpy()):
        assert (sums.shape, sums.dtype) == ((4,), np.float32)
        assert sums[1] == (known * WEIGHTS).sum()
        assert sums[3] == known.sum()
        assert sums[2] == (((logits >= 0) == (labels == 1)) & known).sum()
        if known.any():
            # 2e-2: log(1 - p) in float64 has steps near p = 1 (0.35 at 36), the softplus of the step has none
            assert sums[0] / sums[1] == pytest.approx(metrics.log_loss(labels, logits, WEIGHTS), rel=2e-2, abs=1e-5)


def test_step_sums_inside_a_map():
    labels, logits = drawn(8)
    data = tf.data.Dataset.from_tensor_slices((labels, logits)).batch(3)
    sums = sum(part.numpy() for part in data.map(lambda y, x: metrics.step_sums(y, x, WEIGHTS)))
    np.testing.assert_allclose(sums, metrics.step_sums(labels, logits, WEIGHTS), rtol=1e-6)


def test_which_way_is_better():
    assert [metrics.better(name) for name in ("log_loss", "log_loss_as_sampled")] == [-1, -1]
    assert [metrics.better(name) for name in ("auc", "accuracy", "auc_any", "accuracy_bleed")] == [1, 1, 1, 1]
    assert all(metrics.better(name, NAMES) for name in metrics.metric_names(NAMES))


@pytest.mark.parametrize(
    ("name", "labels", "hint"),
    [
        ("logloss", None, "did you mean 'log_loss'?"),
        ("AUC", None, "did you mean 'auc'?"),
        ("auc_epidual", NAMES, "did you mean 'auc_epidural'?"),
        ("f1", None, "known are log_loss, log_loss_as_sampled, auc, accuracy"),
        ("", NAMES, "known are log_loss"),
    ],
)
def test_an_unknown_metric_is_refused(name, labels, hint):
    with pytest.raises(WrongUse, match=rf"^no metric is named '{name}'; {hint.replace('?', '[?]')}"):
        metrics.better(name, labels)
