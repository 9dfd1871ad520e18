"""Scores of a split: one pass, every slice once, exact whatever the devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainer.training.metrics import Scores


def scores(run: Callable[[Any], Any], iterator: Any, batches: int, after_batch: Callable[[int, int], None]) -> Scores:
    """`Scores` of `batches` batches of `steps.evaluation_step`; `after_batch(done, batches)` may raise to stop."""
    collected = Scores()
    for done in range(1, batches + 1):
        labels, logits, weight, row = (value.numpy() for value in run(iterator))
        collected.add(labels, logits, weight, row)
        after_batch(done, batches)
    return collected
