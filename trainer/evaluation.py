"""Scores of a split: one pass, every slice once, exact whatever the devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from trainer import checkpoints, optimizers
from trainer.metrics import Scores


def scores(run: Callable[[Any], Any], iterator: Any, batches: int, after_batch: Callable[[int, int], None]) -> Scores:
    """`Scores` of `batches` batches of `steps.evaluation_step`; `after_batch(done, batches)` may raise to stop."""
    collected = Scores()
    for done in range(1, batches + 1):
        labels, logits, weight, row = (value.numpy() for value in run(iterator))
        collected.add(labels, logits, weight, row)
        after_batch(done, batches)
    return collected


@contextmanager
def averaged_weights(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """The model with its averaged weights, where the optimizer keeps them; after that the trained ones again."""
    if not optimizers.inner(optimizer).use_ema:
        yield
        return
    averaged = optimizers.inner(optimizer)._trainable_variables
    trained = checkpoints.values(averaged)
    optimizers.inner(optimizer).finalize_variable_values(averaged)
    try:
        yield
    finally:
        for variable, value in zip(averaged, trained):
            variable.value.assign(value)
