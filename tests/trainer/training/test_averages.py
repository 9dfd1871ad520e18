"""Averaged weights and the batch-norm statistics that belong to them: against averages by hand, and their log loss."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from trainer.training import averages, hparams, metrics, optimizers, steps, strategy
from trainer.training.averages import Averages, Statistics

pytestmark = pytest.mark.slow  # trains

RATES = np.array([0.2, 0.1, 0.15])
LABEL_WEIGHTS = np.ones(3, np.float32)


# how much a step counts


@pytest.mark.parametrize(
    ("momentum", "step", "part"),
    [
        (0.999, 0, 1),  # nothing is left of where it began
        (0.999, 1, 0.9),
        (0.999, 81, 0.1),
        (0.999, 8991, 0.001),
        (0.999, 10**6, 0.001),
        (0.5, 8, 9 / 17),
        (0.5, 9, 0.5),
        (0.5, 10, 0.5),
    ],
)
def test_the_part_that_a_step_replaces(momentum, step, part):
    assert float(averages.share(momentum, step)) == pytest.approx(part, rel=1e-5)


@given(st.floats(0, 0.999999), st.integers(2, 5000))
def test_no_step_keeps_more_than_those_after_it(momentum, steps_done):
    """The weights of the steps in an average add up to 1, and never fall from one step to the next."""
    parts = averages.share(momentum, np.arange(steps_done)).numpy().astype(np.float64)
    left = np.r_[np.cumprod((1 - parts)[::-1])[::-1][1:], 1]
    assert (parts * left).sum() == pytest.approx(1, abs=1e-5)
    assert (np.diff(parts * left) >= -1e-9).all()


# a small network with batch norm


def blobs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Slices uint8 [n, 8, 8, 1] of noise with a faint spot for each label int64 [n, 3]."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((count, 3)) < RATES).astype(np.int64)
    images = rng.normal(100, 30, (count, 8, 8, 1))
    for at, (row, column) in enumerate([(2, 2), (5, 2), (4, 6)]):
        faint = labels[:, at] * rng.normal(50, 25, count)
        images[:, row - 1 : row + 2, column - 1 : column + 2] += faint[:, None, None, None]
    return np.clip(images, 0, 255).astype(np.uint8), labels


def network() -> keras.Model:
    layers = keras.layers
    inside = keras.Sequential([keras.Input((8, 8, 4)), layers.BatchNormalization(momentum=0.9), layers.ReLU()])
    start = [keras.Input((8, 8, 1)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3, padding="same"), inside]
    end = [layers.Flatten(), layers.Dense(16), layers.BatchNormalization(), layers.ReLU(), layers.Dense(3)]
    return keras.Sequential([*start, *end])


class Run:
    """The network and its train step, `accumulate` parts a batch of 16 slices."""

    def __init__(self, accumulate: int = 1, precision: str = "float32", **settings: object) -> None:
        sets = {"batch_size": 16, "deterministic": False, "strategy": "default", "precision": precision, **settings}
        chosen = hparams.resolve("cnn", None, {"optimizer": "adamw", "ema": 0.999, **sets})
        devices = strategy.prepare(chosen, {})
        self.model = network()
        optimizer = optimizers.make(chosen, precision == "mixed_float16")
        optimizer.build(self.model.trainable_variables)
        self.averages = Averages(self.model, chosen.ema)
        self.update = steps.Update(optimizer, optimizers.schedule(chosen, 100), self.averages)
        objective = steps.Objective(LABEL_WEIGHTS, 0.0, 0.0, accumulate, 16)
        variables = self.model.trainable_variables
        self._run = steps.train_steps(self.model, self.update, variables, objective, devices, False)
        self.images, self.labels = blobs(4096, 1)
        self.step = 0

    def take(self, count: int) -> None:
        """Steps on the next batches, drawn by the number of the step."""
        rows = np.random.default_rng(0).integers(0, len(self.images), (self.step + count, 16))[self.step :]
        batches = {"image": self.images[rows], "labels": self.labels[rows]}
        done, _ = self._run(
            iter(tf.data.Dataset.from_tensor_slices(batches)), np.int32(self.step), np.int32(count), np.zeros(2, "f4")
        )
        assert len(done) == count
        self.step += count

    def variables(self) -> list[np.ndarray]:
        """Of the model, without the state of random numbers."""
        return [variable.value.numpy() for variable in self.model.variables]

    def log_loss(self) -> float:
        """On slices that were not trained on."""
        images, labels = blobs(2048, 2)
        return metrics.log_loss(labels, self.model(images, training=False).numpy(), LABEL_WEIGHTS)


@pytest.fixture(autouse=True)
def float32_policy():
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_the_averages_are_those_by_hand(precision):
    """Of the weights after each step, and of the batches' own means and variances; momentum 0.5."""
    run = Run(precision=precision, ema=0.5)
    statistics = Statistics(run.model)
    moving = [id(variable) for variable in statistics.variables]
    assert len(moving) == 4
    expected: list[np.ndarray] = []
    for step in range(12):
        before = run.variables()
        run.take(1)
        rates = iter([0.1, 0.1, 0.01, 0.01])
        values = [
            was + (now - was) / next(rates) if id(variable) in moving else now
            for variable, was, now in zip(run.model.variables, before, run.variables())
        ]
        part = max(0.5, 9 / (9 + step))
        expected = [part * value + (1 - part) * old for value, old in zip(values, expected or values)]
    trained = run.variables()
    with run.averages.shown():
        shown = run.variables()
    for found, wanted in zip(shown, expected):
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-5)
    assert not any(np.array_equal(a, b) for a, b in zip(shown, trained))


def test_the_trained_weights_are_there_again_to_the_bit():
    run = Run()
    run.take(3)
    trained = run.variables()
    with pytest.raises(ZeroDivisionError), run.averages.shown():
        _ = 1 / 0
    for found, wanted in zip(run.variables(), trained):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"learning_rate": 0.001}, {"learning_rate": 0.02, "optimizer": "sgd"}], ids=["adamw", "sgd"]
)
def test_averages_are_as_good_as_the_trained_weights(settings):
    """From the beginning of a run on, at the momentum of the modern configs."""
    run = Run(**settings)
    for until in (200, 800, 5000):
        run.take(until - run.step)
        trained = run.log_loss()
        with run.averages.shown():
            assert run.log_loss() <= 1.05 * trained, until
    knowing_nothing = -(RATES * np.log(RATES) + (1 - RATES) * np.log(1 - RATES)).mean()
    assert trained < 0.5 * knowing_nothing


@pytest.mark.slow
def test_parts_of_a_batch_move_the_statistics_once():
    """From one start to the mean over the parts, each of which is normalised by itself."""
    run, parts = Run(accumulate=4), Run()
    start = Statistics(run.model).read().numpy()
    np.testing.assert_array_equal(start, Statistics(parts.model).read())
    run.take(1)
    ends = []
    rows = np.random.default_rng(0).integers(0, len(run.images), (1, 16))[0]
    for part in np.split(rows, 4):
        Statistics(parts.model).write(start)
        parts.model(parts.images[part], training=True)
        ends.append(Statistics(parts.model).read().numpy())
    assert np.ptp(ends, axis=0).max() > 1e-3
    np.testing.assert_allclose(Statistics(run.model).read(), np.mean(ends, axis=0), atol=1e-5)


def test_a_model_without_batch_norm_has_no_statistics():
    statistics = Statistics(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
    assert statistics.read().shape == (0,)
    statistics.write(statistics.read())
