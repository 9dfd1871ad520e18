"""The optimizer of a run and its learning rate, from the settings."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras

from trainer.training.hparams import HParams


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate of a step: a linear rise over the warm-up, then lower each epoch or along a cosine.

    `shape` steps: rate * decay_per_epoch ** epoch. `shape` cosine: half a cosine from the end of the warm-up
    to 0 at the last step (Loshchilov and Hutter 2017, without restarts).
    """

    rate: float
    shape: str
    steps_per_epoch: int
    epochs: int
    warmup_steps: int
    decay_per_epoch: float

    def __call__(self, step: Any) -> Any:
        """float32 scalar; `step` counts from 0."""
        step = keras.ops.cast(step, "float32")
        warmup = keras.ops.minimum(1.0, (step + 1.0) / max(1, self.warmup_steps))
        return self.rate * warmup * (self._cosine(step) if self.shape == "cosine" else self._steps(step))

    def _steps(self, step: Any) -> Any:
        return self.decay_per_epoch ** keras.ops.floor(step / self.steps_per_epoch)

    def _cosine(self, step: Any) -> Any:
        length = max(1, self.steps_per_epoch * self.epochs - self.warmup_steps)
        part = keras.ops.clip((step - self.warmup_steps) / length, 0.0, 1.0)
        return 0.5 * (1.0 + keras.ops.cos(math.pi * part))


def schedule(hparams: HParams, steps_per_epoch: int) -> Schedule:
    """The learning rate of each step of a run."""
    warmup_steps = round(hparams.warmup_epochs * steps_per_epoch)
    return Schedule(
        hparams.learning_rate,
        hparams.schedule,
        steps_per_epoch,
        hparams.epochs,
        warmup_steps,
        hparams.decay_per_epoch,
    )


def make(hparams: HParams, float16: bool) -> keras.optimizers.Optimizer:
    """The optimizer, wrapped in dynamic loss scaling for float16; each step sets its learning rate (`schedule`).

    It expects gradients that are summed over the replicas already, so that clipping and the test for
    overflow see the whole gradient; Keras would sum them itself, after clipping.
    """
    kinds = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW, "sgd": keras.optimizers.SGD}
    common: dict[str, Any] = {"global_clipnorm": hparams.clip_norm or None}
    if hparams.optimizer == "adamw":
        common["weight_decay"] = hparams.weight_decay
    if hparams.optimizer == "sgd":
        common["momentum"] = 0.9
    optimizer = kinds[hparams.optimizer](hparams.learning_rate, **common)
    if hparams.optimizer == "adamw":
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    optimizer._all_reduce_sum_gradients = list  # decision 0009: they arrive summed
    if float16:
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def state(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """The variables that a checkpoint holds: all but the learning rate, which follows from the step."""
    rate = inner(optimizer).learning_rate
    return [variable for variable in optimizer.variables if variable is not rate]


def loss_scale(optimizer: keras.optimizers.Optimizer) -> float:
    """The present loss scale; 1 without loss scaling."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return float(optimizer.dynamic_scale.value.numpy())
    return 1.0


def inner(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer itself, without loss scaling around it."""
    return getattr(optimizer, "inner_optimizer", optimizer)
