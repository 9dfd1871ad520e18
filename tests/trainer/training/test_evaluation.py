"""Scores of a pass over batches."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from trainer.data import dataset, input_pipeline
from trainer.data.input_pipeline import Share
from trainer.models import networks
from trainer.results import joint
from trainer.training import evaluation, hparams, metrics, steps, strategy


def run_of(batches):
    """What `steps.evaluation_step` gives, from a list of arrays."""
    waiting = [[tf.constant(part) for part in batch] for batch in batches]
    return lambda iterator: waiting[next(iterator)]


def batch(rows, weight):
    generator = np.random.default_rng(rows[0])
    labels = generator.integers(0, 2, (len(rows), 2))
    return labels, generator.normal(size=(len(rows), 2)).astype(np.float32), np.float32(weight), np.int64(rows)


def test_padding_is_left_out_and_order_restored():
    batches = [batch([3, 2], [1, 1]), batch([1, 0], [1, 1]), batch([4, 0], [1, 0])]
    told = []
    found = evaluation.scores(run_of(batches), iter(range(3)), 3, lambda done, total: told.append((done, total)))
    rows, labels, logits = found.arrays()
    assert rows.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(labels[4], batches[2][0][0])
    np.testing.assert_array_equal(logits[:2], batches[1][1][::-1])
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_caller_may_stop_it():
    class Enough(Exception):
        pass

    def stop(done, total):
        raise Enough

    with pytest.raises(Enough):
        evaluation.scores(run_of([batch([0], [1])]), iter(range(1)), 1, stop)


@pytest.mark.parametrize("batch_size", [1, 7, 60, 64])
def test_every_batch_size_gives_the_scores_of_the_whole(batch_size, tiny_dataset):
    """60 slices; against one pass of the model over all of them."""
    devices = strategy.prepare(hparams.resolve("cnn", None, {}), {})
    slices = dataset.open_dataset(str(tiny_dataset)).split("test")
    model = networks.build("cnn", (32, 32, 3), 6, "none", {"filters": [2], "dense": []})
    share = Share.whole()
    iterator = steps.distribute(devices, input_pipeline.evaluation_batches(slices, batch_size, share))
    count = input_pipeline.evaluation_steps(slices, batch_size, share)
    objective = steps.Objective(np.ones(6, np.float32), 0.0, 0.0, 1, 60)
    found = evaluation.scores(steps.evaluation_step(model, objective, devices), iterator, count, lambda *_: None)
    images = next(iter(input_pipeline.evaluation_batches(slices, 60, share)))["image"]
    logits = model(images).numpy()
    rows, labels, scored = found.arrays()
    assert rows.tolist() == list(range(60))
    np.testing.assert_array_equal(labels, slices.labels)
    np.testing.assert_allclose(scored, logits, atol=1e-5)
    weights = np.array([2, 1, 1, 1, 1, 1])
    result = found.result(joint.unchanged(slices.spec.labels.names, "any"))
    assert result["log_loss_as_sampled"] == pytest.approx(metrics.log_loss(slices.labels, logits, weights), rel=1e-5)
