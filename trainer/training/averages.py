"""Averages over the steps of a run: of a model's weights, and of what its batch norms met meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.training import checkpoints

WARM_UP = 9.0


class Statistics:
    """The moving means and variances of a model's batch norms as one vector, float32 [n]; n is 0 without any.

    `rates`: float32 [n], the part of a moving statistic that a step replaces by that of its batch.
    """

    def __init__(self, model: keras.Model) -> None:
        layers = list(_batch_norms(model))
        self.variables = [kept for layer in layers for kept in (layer.moving_mean, layer.moving_variance)]
        self._sizes = [int(np.prod(variable.shape)) for variable in self.variables]
        momenta = np.repeat([layer.momentum for layer in layers], 2)
        self.rates: npt.NDArray[np.float32] = np.repeat(1 - momenta, self._sizes).astype(np.float32)

    def read(self) -> Any:
        """float32 [n], as they are now."""
        flat = [tf.reshape(variable.value, [-1]) for variable in self.variables]
        return tf.concat([tf.zeros(0), *flat], 0)

    def write(self, values: Any) -> None:
        """Give them `values` float32 [n]."""
        for variable, part in zip(self.variables, tf.split(values, self._sizes) if self._sizes else ()):
            variable.value.assign(tf.reshape(part, variable.shape))


def _batch_norms(model: keras.Model) -> Iterator[keras.layers.BatchNormalization]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _batch_norms(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            yield layer


def share(momentum: float, step: Any) -> Any:
    """The part of an average that `step`, counted from 0, replaces; a float32 scalar from 1 down to 1 - `momentum`.

    As long as 9 / (9 + step) is more it is that. So the first step replaces all, nothing is left of where the
    average began, and early averages are of the last tenth of the steps and not of the first ones.
    """
    return tf.maximum(1.0 - momentum, WARM_UP / (WARM_UP + tf.cast(step, tf.float32)))


class Averages:
    """The averaged weights of a model with the batch-norm statistics that belong to them.

    Made under the strategy of the run, like the model. `variables`: what a checkpoint holds of them.
    """

    def __init__(self, model: keras.Model, momentum: float) -> None:
        self._model, self._momentum = model, momentum
        self._weights, self._statistics = list(model.trainable_variables), Statistics(model)
        names = [f"average/{variable.path}" for variable in self._weights]
        self._of_weights = [_variable(name, one.shape) for name, one in zip(names, self._weights)]
        self._of_statistics = _variable("average/batch_norm", self._statistics.rates.shape)
        self.variables = [*self._of_weights, self._of_statistics]

    def update(self, step: Any, met: Any) -> None:
        """Take in the weights as `step`, counted from 0, left them, and the statistics of its batch float32 [n].

        Those, and not the moving statistics, which are averages themselves: averaged again they would be of an
        earlier model than the weights. Called on every replica, with the same values.
        """
        part = share(self._momentum, step)
        values = [*(variable.value for variable in self._weights), met]
        for average, value in zip(self.variables, values):
            average.assign_add(part * (value - average))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The model with its averages; after that as it was, to the bit."""
        trained = checkpoints.values(self._model.variables)
        for variable, average in zip(self._weights, checkpoints.values(self._of_weights)):
            variable.value.assign(average)
        self._statistics.write(self._of_statistics.numpy())
        try:
            yield
        finally:
            for variable, value in zip(self._model.variables, trained):
                variable.value.assign(value)


def _variable(name: str, shape: Any) -> tf.Variable:
    """One a replica, which all compute alike, so that no step has to exchange it."""
    once = {"synchronization": tf.VariableSynchronization.ON_READ, "trainable": False}
    return tf.Variable(tf.zeros(shape), name=name, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA, **once)
