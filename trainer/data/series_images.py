"""Batches of whole series as images, for a slice model and a context network that are trained together."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.data import augment
from trainer.data.input_pipeline import EpochPlan
from trainer.data.series_feed import SeriesFeed, seeds

Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFeed(SeriesFeed):
    """A `SeriesFeed` whose batches hold `images` [b, T, size, size, channels] in place of vectors.

    For training each series is turned, moved and mirrored as a whole, and `seed` int64 [b, 2] is of the blur of the
    vectors that are made of it. It has no `views`, and its slices are read by number.
    """

    @property
    def _shown(self) -> tuple[str, Any, tuple[int, ...]]:
        return "images", tf.as_dtype(self.slices.spec.image.dtype), self.slices.image_shape

    def _show(self, rows: Int64, mirrored: bool) -> npt.NDArray[Any]:
        return self.slices.read(rows)[0]

    def _drawn(self, plan: EpochPlan, series: Int64, position: Int64, **columns: Any) -> list[npt.NDArray[Any]]:
        return self._padded([self._kept(plan, self.series[number], at) for number, at in zip(series, position)], None)

    def _more(self, plan: EpochPlan) -> dict[str, npt.NDArray[Any]]:
        return plan.changes(self.slices.spec.image)

    def _blurred(self, plan: EpochPlan, batch: dict[str, Any]) -> dict[str, Any]:
        images = batch["images"]
        if "changes" in batch:
            shape = tf.shape(images)
            each = tf.repeat(batch["changes"], shape[1], axis=0)
            turned = augment.on_host(tf.reshape(images, (-1, *images.shape[2:])), each)
            images = tf.ensure_shape(tf.reshape(turned, shape), images.shape)
        kept = {name: batch[name] for name in ("place", "mask", "labels", "study", "share")}
        return {"images": images, "seed": seeds(plan, batch["position"]), **kept}
