"""Binary cross-entropy from logits, in the weighting of the competition, as two sums that workers can add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.shell.problems import WrongUse


def loss_sums(labels: Any, logits: Any, label_weights: Any, smoothing: float, gamma: float) -> tuple[Any, Any]:
    """Sum of the weighted losses of the known labels, and the sum of their weights; the loss is sum / weight.

    `labels`: integers [n, L], 1, 0 or -1 for unknown, which counts in neither sum. `logits`: float32 [n, L].
    `label_weights`: float32 [L]. Both results are float32 scalars; sums of parts of a batch add up to the sums
    of the batch. `smoothing` in [0, 1) draws the labels y to y * (1 - smoothing) + smoothing / 2. `gamma` > 0
    makes it the focal loss without alpha (Lin et al. 2017, arXiv:1708.02002), each half weighted by the drawn
    label. With both 0 and all labels known the loss is the metric of RSNA 2019, but for its clip at 1e-15.
    """
    weights = tf.cast(labels >= 0, tf.float32) * label_weights
    return tf.reduce_sum(weights * each(labels, logits, smoothing, gamma)), tf.reduce_sum(weights)


def each(labels: Any, logits: Any, smoothing: float, gamma: float) -> Any:
    """float32, the loss of each label, of the shape of `labels` and `logits`; that of an unknown one means nothing."""
    logits = tf.cast(logits, tf.float32)
    drawn = tf.cast(tf.maximum(labels, 0), tf.float32) * (1 - smoothing) + smoothing / 2
    return drawn * _focal(-logits, gamma) + (1 - drawn) * _focal(logits, gamma)


def _focal(away: Any, gamma: float) -> Any:
    """`p ** gamma * -log(1 - p)` with p = sigmoid(`away`), the probability given to what is not so."""
    losses = tf.math.softplus(away)
    if gamma == 0:
        return losses
    # p ** gamma by way of its logarithm: a power of an underflowed p would have an infinite gradient
    return tf.exp(-gamma * tf.math.softplus(-away)) * losses


def label_weights(names: Sequence[str], any_name: str, any_weight: float) -> np.ndarray:
    """float32 [L]: `any_weight` for the label `any_name`, 1 for the others. RSNA 2019: 2 for `any`, a sum of 7.

    Raises `WrongUse` for an `any_name` not among the names, or a weight that is not positive.
    """
    if any_name not in names:
        raise WrongUse(f"label {any_name!r} is not in the data set; its labels are {', '.join(names)}")
    if not 0 < any_weight < np.inf:
        raise WrongUse(f"weight {any_weight!r} of label {any_name!r}: expected a positive number, 2 in the competition")
    return np.array([any_weight if name == any_name else 1 for name in names], np.float32)
