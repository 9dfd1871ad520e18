"""What a series model is trained for: the loss of its slices, of its series head, and of its greatest slice."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from trainer.data.series_feed import INPUTS
from trainer.training import losses
from trainer.training.steps import Objective

FAR = 1e9  # below every logit
PADDED = (*INPUTS, "labels", "images")  # in a batch, behind the series


@dataclasses.dataclass(frozen=True)
class SeriesObjective(Objective):
    """An `Objective` of series; outputs are logits of the slices [b, T, L] and of the series [b, L].

    `head_weight`, `mil_weight`: of the series head, and of the greatest slice logit against the label of the series
    (multiple-instance learning), beside 1 of the slices.
    """

    head_weight: float
    mil_weight: float

    def inputs(self, batch: Mapping[str, Any]) -> Any:
        return {name: batch[name] for name in INPUTS}

    def part(self, batch: Mapping[str, Any], begin: Any, size: Any) -> dict[str, Any]:
        """So many series of a batch, no longer padded than the longest of them needs."""
        found = super().part(batch, begin, size)
        if found["mask"].shape[1] is not None:
            return found  # a compiler wants shapes that are known
        longest = tf.reduce_max(tf.reduce_sum(tf.cast(found["mask"], tf.int32), 1))
        return {name: values[:, :longest] if name in PADDED else values for name, values in found.items()}

    def logits(self, outputs: Any) -> Any:
        return self.by_slice(outputs[0])

    def by_slice(self, values: Any) -> Any:
        shape = tf.shape(values)
        return tf.reshape(values, tf.concat([[shape[0] * shape[1]], shape[2:]], 0))

    def loss_sums(self, batch: Mapping[str, Any], outputs: Any) -> tuple[Any, Any]:
        """Each series counts as one, whatever its length: its slices by their mean, times its `share` of nature.

        What is known of a series as its `study` int64 [b, L] (-1: nothing) comes before what follows from its slices.
        So a study that is known to bleed teaches the head and the greatest slice, wherever it bleeds.
        """
        labels, mask = batch["labels"], batch["mask"][..., None]
        slices, series = (tf.cast(one, tf.float32) for one in outputs)
        whole = tf.where(batch["study"] >= 0, batch["study"], series_labels(labels, mask))
        greatest = tf.reduce_max(tf.where(mask, slices, -FAR), 1)
        of_series = self.head_weight * self._each(whole, series) + self.mil_weight * self._each(whole, greatest)
        total = self.of_slices(batch, slices) + tf.where(whole >= 0, of_series, 0.0)
        weights = batch["share"][:, None] * tf.constant(self.label_weights)
        known = tf.cast(tf.reduce_any(labels >= 0, 1) | (whole >= 0), tf.float32)
        return tf.reduce_sum(weights * total), tf.reduce_sum(weights * known)

    def of_slices(self, batch: Mapping[str, Any], logits: Any) -> Any:
        """float32 [b, L], the mean loss of the known slices of each series, 0 where none is; `logits` [b, T, L]."""
        known = tf.cast(batch["labels"] >= 0, tf.float32)
        return tf.math.divide_no_nan(
            tf.reduce_sum(known * self._each(batch["labels"], logits), 1), tf.reduce_sum(known, 1)
        )

    def _each(self, labels: Any, logits: Any) -> Any:
        return losses.each(labels, logits, self.smoothing, self.gamma)


def series_labels(labels: Any, mask: Any) -> Any:
    """Integers [b, L]: 1 where a slice is positive, 0 where all are known to be negative, else -1.

    `labels` integers [b, T, L], -1 for unknown and behind `mask` bool [b, T, 1].
    """
    most = tf.reduce_max(labels, 1)
    lost = tf.reduce_any((labels < 0) & mask, 1)
    return tf.where((most == 0) & lost, -tf.ones_like(most), most)
