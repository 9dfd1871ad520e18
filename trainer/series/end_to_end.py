"""The second stage of the series model: slice model and context trained together, whole series at a time.

Batch norms of the slice model stay as its own training left them: a series is no sample of all slices, and statistics
of a few series would drift away from those that single slices are served with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from trainer.data.series_feed import Blur, blurred
from trainer.models import model_file
from trainer.series.objective import SeriesObjective


class EndToEnd(keras.Model):
    """Images of series in, logits of slices [b, T, L] and series [b, L] out, and [b, T, L] of the slice model alone.

    Takes `images` uint8 [b, T, size, size, windows], `place` and `mask` as the context does, and for training `seed`
    (`series_feed.blurred`). `recompute`: keep no activation of the slice model for the gradient, compute them twice.
    `whole`: compute what pads too, where a compiler wants shapes that are known.
    """

    def __init__(self, encoder: keras.Model, context: keras.Model, blur: Blur, recompute: bool, whole: bool) -> None:
        super().__init__(name="end_to_end")
        self.encoder, self.context = encoder, context
        self._both = model_file.with_vectors(encoder)
        self._blur, self._recompute, self._whole = blur, recompute, whole
        self.built = True

    def call(self, inputs: Mapping[str, Any], training: bool = False) -> list[Any]:
        """See the class."""
        mask = inputs["mask"]
        at = tf.where(tf.ones_like(mask) if self._whole else mask)
        vectors, logits = self._encoded(tf.gather_nd(inputs["images"], at), training)
        vectors, logits = (self._spread(one, at, mask) for one in (vectors, logits))
        if training:
            vectors = blurred(vectors, inputs["seed"], self._blur)
        given = {"vectors": vectors, "place": inputs["place"], "mask": mask}
        slices, series = self.context(given, training=training)
        return [slices, series, logits]

    def _encoded(self, images: Any, training: bool) -> list[Any]:
        """float32 vectors and logits of images [m, size, size, windows]."""

        def encode(_: Any) -> list[Any]:
            return [tf.cast(one, tf.float32) for one in self._both(images, training=False)]

        # images are whole numbers, which have no gradient, and TensorFlow wants an argument that has one
        return (tf.recompute_grad(encode) if training and self._recompute else encode)(tf.zeros(()))

    @staticmethod
    def _spread(values: Any, at: Any, mask: Any) -> Any:
        """float32 [b, T, ...] of a row a slice; 0 where there is none."""
        shape = tf.concat([tf.shape(mask, tf.int64), tf.shape(values, tf.int64)[1:]], 0)
        return tf.ensure_shape(tf.scatter_nd(at, values, shape), [None, None, values.shape[-1]])


@dataclasses.dataclass(frozen=True)
class BothObjective(SeriesObjective):
    """The `SeriesObjective` of `EndToEnd`, with a loss of the slice model's own logits.

    `slice_weight`: of that, so that the slice model stays one that the blend may fall back on.
    """

    slice_weight: float

    def inputs(self, batch: Mapping[str, Any]) -> Any:
        return {name: values for name, values in batch.items() if name in ("images", "place", "mask", "seed")}

    def loss_sums(self, batch: Mapping[str, Any], outputs: Any) -> tuple[Any, Any]:
        total, weight = super().loss_sums(batch, outputs[:2])
        own = self.of_slices(batch, tf.cast(outputs[2], tf.float32)) * tf.constant(self.label_weights)
        return total + self.slice_weight * tf.reduce_sum(batch["share"][:, None] * own), weight
