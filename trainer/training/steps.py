"""The compiled steps of training and evaluation: the same program on one device, on several, on several machines."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.data import augment
from trainer.training import losses, metrics, optimizers
from trainer.training.averages import Averages, Statistics
from trainer.training.optimizers import Schedule
from trainer.training.strategy import Devices

SUMS = ("loss", "loss_weight", "log_loss", "log_loss_weight", "correct", "known")


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised: the weight of each label, smoothing, focal gamma, and parts a batch is computed in.

    And how a batch meets the model: what goes in, and what of batch and outputs is said of each slice.
    """

    label_weights: npt.NDArray[np.float32]
    smoothing: float
    gamma: float
    accumulate: int
    batch_size: int

    def inputs(self, batch: Mapping[str, Any]) -> Any:
        """What the model takes of a batch; what shall happen to its slices on the device happens here."""
        if "changes" in batch:
            return augment.in_step(batch["image"], batch["changes"])
        return batch["image"]

    def part(self, batch: Mapping[str, Any], begin: Any, size: Any) -> dict[str, Any]:
        """The `size` samples of a batch from `begin` on."""
        return {name: values[begin : begin + size] for name, values in batch.items()}

    def logits(self, outputs: Any) -> Any:
        """[n, L], a row a slice, of the outputs of the model."""
        return outputs

    def by_slice(self, values: Any) -> Any:
        """`labels`, `weight` or `row` of a batch with a row a slice, in the order of `logits`."""
        return values

    def loss_sums(self, batch: Mapping[str, Any], outputs: Any) -> tuple[Any, Any]:
        """Two float32 scalars, a weighted sum of losses and the sum of their weights, see `losses.loss_sums`."""
        weights = tf.constant(self.label_weights)
        return losses.loss_sums(batch["labels"], outputs, weights, self.smoothing, self.gamma)


@dataclasses.dataclass(frozen=True)
class Update:
    """How a step changes a model: the optimizer, its learning rate at each step, and the averages kept, or None."""

    optimizer: keras.optimizers.Optimizer
    rate: Schedule
    averages: Averages | None

    @property
    def state(self) -> list[Any]:
        """The variables that a checkpoint holds beside those of the model."""
        return [*optimizers.state(self.optimizer), *(self.averages.variables if self.averages else ())]

    def shown(self) -> contextlib.AbstractContextManager[None]:
        """The model with its averages where they are kept; after that as it was."""
        return self.averages.shown() if self.averages else contextlib.nullcontext()


def train_steps(
    model: keras.Model,
    update: Update,
    variables: Sequence[Any],
    objective: Objective,
    devices: Devices,
    jit_compile: bool,
) -> Callable[..., Any]:
    """A function (iterator, step, count, votes float32 [2]) -> (sums float64 [steps, 6], votes float32 [2]).

    It takes `count` steps from `step` on, which counts over the whole run from 0, or fewer when the loss of one
    is not finite: that is then the last row. `sums` is in the order of `SUMS`, over all replicas. `votes` come
    back added over all replicas, so that workers agree when one of them wants to stop.
    """
    strategy = devices.strategy
    learning_rate = optimizers.inner(update.optimizer).learning_rate
    replica_step = _replica_step(model, update, variables, objective)
    if jit_compile:
        replica_step = tf.function(replica_step, jit_compile=True)

    @tf.function
    def run(iterator: Any, step: Any, count: Any, votes: Any) -> Any:
        rows = tf.TensorArray(tf.float32, size=0, dynamic_size=True, element_shape=(len(SUMS),))
        added = tf.zeros_like(votes)
        done, finite = tf.constant(0), tf.constant(True)
        while done < count and finite:
            # of the step and not of the optimizer's iterations: a step whose gradient overflows is none of those
            learning_rate.assign(update.rate(step + done))
            both = strategy.run(replica_step, args=(next(iterator), step + done, votes))
            row, added = (strategy.experimental_local_results(value)[0] for value in both)
            rows = rows.write(done, row)
            finite = tf.math.is_finite(row[0])
            done += 1
        return tf.cast(rows.stack(), tf.float64), added

    return run


def _replica_step(model: Any, update: Update, variables: Sequence[Any], objective: Objective) -> Callable[..., Any]:
    """One optimizer step of one replica; all that is added over the replicas goes in one exchange.

    Each part of each replica's batch is normalised by its own statistics. The moving ones move once a step, from
    where they were to the mean over all parts: Keras would let each replica keep its own, and each part move them.
    """
    optimizer, statistics = update.optimizer, Statistics(model)
    weights = tf.constant(objective.label_weights)
    # the gradient of a mean needs the weight over all replicas, known after the exchange only; until then
    # a constant of the same size keeps float16 within its range
    typical = float(objective.label_weights.sum()) * objective.batch_size

    def part(batch: Mapping[str, Any]) -> tuple[list[Any], Any]:
        before = statistics.read()
        with tf.GradientTape() as tape:
            outputs = model(objective.inputs(batch), training=True)
            total, weight = objective.loss_sums(batch, outputs)
            scaled = optimizer.scale_loss(total / typical)
        gradients = tape.gradient(scaled, [variable.value for variable in variables])
        moved = statistics.read() - before
        if objective.accumulate > 1:
            statistics.write(before)
        told = metrics.step_sums(objective.by_slice(batch["labels"]), objective.logits(outputs), weights)
        return gradients, tf.concat([[total, weight], told, moved], 0)

    def step(batch: dict[str, Any], number: Any, votes: Any) -> tuple[Any, Any]:
        context = tf.distribute.get_replica_context()
        before, parts = statistics.read(), objective.accumulate * context.num_replicas_in_sync
        gradients, sums = _over_parts(part, batch, objective)
        *gradients, sums, votes = context.all_reduce(tf.distribute.ReduceOp.SUM, [*gradients, sums, tf.identity(votes)])
        sums, moved = sums[: len(SUMS)], sums[len(SUMS) :] / parts
        mean = tf.math.divide_no_nan(typical, sums[1])
        optimizer.apply([gradient * mean for gradient in gradients], variables)
        if parts > 1:
            statistics.write(before + moved)
        if update.averages is not None:
            update.averages.update(number, before + moved / statistics.rates)
        return sums, votes

    return step


def _over_parts(part: Callable[..., Any], batch: Mapping[str, Any], objective: Objective) -> tuple[list[Any], Any]:
    """Sums of `part` over the equal parts of a batch (its size is a multiple of them)."""
    if objective.accumulate == 1:
        return part(batch)
    size = tf.shape(batch["labels"])[0] // objective.accumulate

    def add(number: Any, gradients: list[Any], sums: Any) -> tuple[Any, list[Any], Any]:
        more, more_sums = part(objective.part(batch, number * size, size))
        return number + 1, [one + other for one, other in zip(gradients, more)], sums + more_sums

    # a loop of TensorFlow: parts laid out side by side it would compute at once, and nothing were saved
    begun = [tf.constant(1), *part(objective.part(batch, 0, size))]
    _, gradients, sums = tf.while_loop(
        lambda number, *_: number < objective.accumulate, add, begun, parallel_iterations=1
    )
    return gradients, sums


def evaluation_step(model: keras.Model, objective: Objective, devices: Devices) -> Callable[[Any], Any]:
    """A function (iterator) -> labels, logits float32 [n, L], weight, row [n] of a batch's slices, of all workers."""
    strategy = devices.strategy

    def replica(batch: dict[str, Any]) -> Any:
        logits = tf.cast(objective.logits(model(objective.inputs(batch), training=False)), tf.float32)
        labels, weight, row = (objective.by_slice(batch[name]) for name in ("labels", "weight", "row"))
        return labels, logits, weight, row

    def whole(value: Any) -> Any:
        if devices.workers > 1:
            return strategy.gather(value, axis=0)
        return tf.concat(strategy.experimental_local_results(value), 0)

    @tf.function
    def run(iterator: Any) -> Any:
        return [whole(value) for value in strategy.run(replica, args=(next(iterator),))]

    return run


def summed(devices: Devices, values: Sequence[float]) -> npt.NDArray[np.float64]:
    """float64, the sum of each value over all replicas. It waits for every worker, so it is a meeting point too."""

    @tf.function
    def run(local: Any) -> Any:
        def add(mine: Any) -> Any:
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(mine))

        return devices.strategy.experimental_local_results(devices.strategy.run(add, args=(local,)))[0]

    return run(np.asarray(values, np.float64)).numpy()


def distribute(devices: Devices, dataset: tf.data.Dataset) -> Any:
    """Iterator of a data set of replica batches, over the replicas of this worker."""
    # a data set that never ends spares TensorFlow an exchange before each step about who has data left
    endless = dataset.concatenate(dataset.take(1).repeat())
    if devices.kind == "default":
        return iter(endless)
    return iter(devices.strategy.distribute_datasets_from_function(lambda _: endless))
