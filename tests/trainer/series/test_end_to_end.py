"""Slice model and context trained together: the same gradients however they are computed, and batch norm at rest."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.data.series_feed import Blur
from trainer.models import context
from trainer.series.end_to_end import BothObjective, EndToEnd

LABELS, SIDE = 3, 8
LENGTHS = (4, 1, 3)


@pytest.fixture
def networks():
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    images = keras.Input((SIDE, SIDE, 2), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.BatchNormalization(name="normal_1")(keras.layers.Conv2D(5, 3, name="conv")(x))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    encoder = keras.Model(images, keras.layers.Dense(LABELS, name="logits")(x))
    return encoder, context.build(5, LABELS, {"width": 6, "units": 4, "layers": 1}, "float32")


def batch(longest=4):
    rng = np.random.default_rng(1)
    mask = np.arange(longest) < np.array(LENGTHS)[:, None]
    images = np.zeros((3, longest, SIDE, SIDE, 2), np.uint8)
    labels = np.full((3, longest, LABELS), -1, np.int64)
    place = np.zeros((3, longest, 3), np.float32)
    for at, length in enumerate(LENGTHS):
        images[at, :length] = rng.integers(0, 256, (length, SIDE, SIDE, 2))
        labels[at, :length] = rng.integers(0, 2, (length, LABELS))
        place[at, :length] = rng.random((length, 3))
    seed = np.stack([np.full(3, 7), 2 * np.arange(3)], 1).astype(np.int64)
    found = {"images": images, "labels": labels, "place": place, "mask": mask, "seed": seed}
    return {
        name: tf.constant(values)
        for name, values in {**found, "study": np.full((3, LABELS), -1), "share": np.ones(3, np.float32)}.items()
    }


def loss_and_gradients(networks, given, recompute=False, whole=False, blur=Blur(0.1, 0.2, 0.0)):  # noqa: B008
    model = EndToEnd(*networks, blur, recompute, whole)
    objective = BothObjective(np.ones(LABELS, np.float32), 0.0, 0.0, 1, 3, 0.25, 0.1, 0.5)

    @tf.function
    def run(given):
        with tf.GradientTape() as tape:
            total, weight = objective.loss_sums(given, model(objective.inputs(given), training=True))
        return total / weight, tape.gradient(total, [variable.value for variable in model.trainable_variables])

    loss, gradients = run(given)
    return loss.numpy(), [tf.convert_to_tensor(one).numpy() for one in gradients]


@pytest.mark.slow
@pytest.mark.parametrize("other", [{"recompute": True}, {"whole": True}], ids=lambda one: next(iter(one)))
def test_gradients_do_not_depend_on_how_they_are_computed(networks, other):
    loss, gradients = loss_and_gradients(networks, batch())
    again, others = loss_and_gradients(networks, batch(), **other)
    assert again == pytest.approx(loss, rel=1e-6)
    assert len(gradients) == len(others) > 0
    for one, another in zip(gradients, others):
        np.testing.assert_allclose(one, another, atol=1e-5)
    assert all(np.abs(one).max() > 0 for one in gradients[:2])  # the slice model learns


@pytest.mark.slow
def test_what_pads_changes_nothing(networks):
    loss, gradients = loss_and_gradients(networks, batch())
    padded, others = loss_and_gradients(networks, batch(longest=9))
    assert padded == pytest.approx(loss, rel=1e-5)
    for one, another in zip(gradients, others):
        np.testing.assert_allclose(one, another, atol=1e-5)


@pytest.mark.slow
def test_batch_norm_stays_at_rest(networks):
    normal = networks[0].get_layer("normal_1")
    before = [normal.moving_mean.numpy().copy(), normal.moving_variance.numpy().copy()]
    loss_and_gradients(networks, batch())
    np.testing.assert_array_equal(normal.moving_mean.numpy(), before[0])
    np.testing.assert_array_equal(normal.moving_variance.numpy(), before[1])
