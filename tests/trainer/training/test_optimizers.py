"""Learning-rate schedules against closed formulas; optimizers as the settings say."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest

from trainer.training import hparams, optimizers


def settings(**sets):
    return hparams.resolve("cnn", None, {"epochs": 4, "learning_rate": 0.1, **sets})


def rates(made, steps):
    return np.array([float(made(step)) for step in range(steps)])


def test_steps_lower_the_rate_after_each_epoch():
    found = rates(optimizers.schedule(settings(decay_per_epoch=0.5), steps_per_epoch=3), 12)
    np.testing.assert_allclose(found, 0.1 * 0.5 ** (np.arange(12) // 3), rtol=1e-6)


def test_warm_up_rises_and_cosine_ends_at_zero():
    found = rates(optimizers.schedule(settings(schedule="cosine", warmup_epochs=1), steps_per_epoch=10), 41)
    np.testing.assert_allclose(found[:10], 0.1 * np.arange(1, 11) / 10, rtol=1e-6)
    expected = [0.05 * (1 + math.cos(math.pi * (step - 10) / 30)) for step in range(10, 41)]
    np.testing.assert_allclose(found[10:], expected, atol=1e-7)
    assert found[40] == pytest.approx(0, abs=1e-8)


def test_kinds_and_options():
    assert type(optimizers.make(settings(), float16=False)) is keras.optimizers.Adam
    adamw = optimizers.make(settings(optimizer="adamw", weight_decay=0.1, clip_norm=2), float16=False)
    assert (adamw.weight_decay, adamw.global_clipnorm) == (0.1, 2)
    scaled = optimizers.make(settings(optimizer="sgd"), float16=True)
    assert isinstance(scaled, keras.optimizers.LossScaleOptimizer)
    assert scaled.inner_optimizer.momentum == 0.9
    scaled.build([keras.Variable(np.ones(2, "float32"))])
    assert optimizers.loss_scale(scaled) == 2.0**15
    assert optimizers.loss_scale(adamw) == 1.0


@pytest.mark.parametrize("float16", [False, True])
def test_a_checkpoint_holds_all_but_the_learning_rate(float16):
    optimizer = optimizers.make(settings(), float16)
    optimizer.build([keras.Variable(np.ones(2, "float32"), name="w")])
    kept = [variable.path.rpartition("/")[2] for variable in optimizers.state(optimizer)]
    assert kept[-3:] == ["iteration", "w_momentum", "w_velocity"]  # as checkpoints had it when the rate was Keras's
    assert kept.count("dynamic_scale") == int(float16)
    assert len(kept) == len(optimizer.variables) - 1


def test_the_optimizer_inside():
    plain = keras.optimizers.SGD()
    assert optimizers.inner(plain) is plain
    assert optimizers.inner(keras.optimizers.LossScaleOptimizer(plain)) is plain
