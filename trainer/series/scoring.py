"""A series model run over the series of a split: what the context says of each slice and of each series."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from trainer.data.input_pipeline import Share
from trainer.data.series import Series
from trainer.data.series_feed import INPUTS, SeriesFeed
from trainer.results import study_level
from trainer.shell.problems import WorkFailed

Float32 = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, eq=False)
class Said:
    """What both networks say of a split, a row a slice of its table: logits of the slice model and of the context.

    `heads` float32 [k, L]: logits of the series head, in the order of `series`.
    """

    slice_logits: Float32
    context_logits: Float32
    heads: Float32
    series: Series

    def study_heads(self, studies: npt.NDArray[np.int64]) -> Float32:
        """float32 [m, L], the greatest of the series of each study; `studies` int64 [n]: the study of each slice."""
        whose = studies[self.series.rows[self.series.offsets[:-1]]]
        return study_level.greatest(self.heads, whose)


def say(
    model: keras.Model, feed: SeriesFeed, logits: Sequence[Float32], batch_size: int, tell: Callable[[int, int], None]
) -> Said:
    """`Said` of the split of `feed`, the mean over its views. `logits`: of the slice model, float32 [n, L] a view.

    `batch_size`: series at a time. `tell(done, total)` is called with numbers of slices. Raises `WorkFailed` for logits
    that are not finite.
    """
    context, heads = np.zeros_like(logits[0]), np.zeros((len(feed.series), logits[0].shape[1]), np.float32)
    for at, view in enumerate(feed.views):
        one = dataclasses.replace(feed, views=[view])

        def told(done: int, total: int, before: int = at) -> None:
            tell(before * total + done, len(feed.views) * total)

        for found, added in zip((context, heads), _view(model, one, batch_size, told)):
            found += added / len(feed.views)
    return Said(np.mean(logits, axis=0, dtype=np.float32), context, heads, feed.series)


def _view(
    model: keras.Model, feed: SeriesFeed, batch_size: int, tell: Callable[[int, int], None]
) -> tuple[Float32, Float32]:
    """Logits of the context float32 [n, L], and of the series head [k, L]."""
    labels = len(feed.slices.spec.labels.names)
    context, heads = np.zeros((len(feed.slices), labels), np.float32), np.zeros((len(feed.series), labels), np.float32)
    score, done = scorer(model), 0
    for batch in feed.evaluation_batches(batch_size, Share.whole()).as_numpy_iterator():
        slices, series = score({name: batch[name] for name in INPUTS})
        mask, real = batch["mask"], batch["series"] >= 0
        context[batch["row"][mask]] = slices[mask]
        heads[batch["series"][real]] = series[real]
        done += int(mask.sum())
        tell(done, len(feed.slices))
    require_finite(context, heads, feed)
    return context, heads


def require_finite(logits: Float32, heads: Float32, feed: SeriesFeed) -> None:
    """Raises `WorkFailed` that names the first slice or series with a logit that is not finite.

    `logits` [n, L] of the slices, `heads` [k, L] of the series of `feed`.
    """
    first = feed.series.rows[feed.series.offsets[:-1]]
    for values, rows, name in ((logits, np.arange(len(logits)), "sop_uid"), (heads, first, "series_uid")):
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            uid = feed.slices.table[name][int(rows[np.argmax(bad)])].as_py()
            what = "slice" if name == "sop_uid" else "series"
            raise WorkFailed(
                f"{what} {uid}: the context gives logits that are not finite; the model is broken, train again"
            )


def scorer(model: keras.Model) -> Callable[[dict[str, Any]], tuple[Float32, ...]]:
    """A function from `INPUTS` of a batch to what `model` gives, float32; compiled once.

    A series model gives logits of slices [b, T, L] and of series [b, L].
    """
    import tensorflow as tf

    shapes = {one.name: tf.TensorSpec(one.shape, one.dtype) for one in model.inputs}

    @tf.function(input_signature=[shapes])
    def score(inputs: dict[str, Any]) -> Any:
        return [tf.cast(one, tf.float32) for one in model(inputs, training=False)]

    def scored(inputs: dict[str, Any]) -> tuple[Float32, ...]:
        found = score({name: tf.convert_to_tensor(value) for name, value in inputs.items()})
        return tuple(one.numpy() for one in found)

    return scored
