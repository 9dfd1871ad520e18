"""From HU and positions of a series to probabilities in TensorFlow ops alone: the graph of an exported series model.

The slices are windowed and encoded piece by piece, so that a series of any length needs the memory of a few slices;
the context then sees them all at once, in the order of their positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from trainer.models import model_file
from trainer.serving import graph, pieces

if TYPE_CHECKING:
    from trainer.models.model_file import About
    from trainer.results.blend import Mix
    from trainer.results.calibration import Calibration

Answers = tuple[Any, Any]


def answers_of(
    slice_model: keras.Model, context: keras.Model, about: About, beside: int = 0
) -> Callable[[Any, Any], Answers]:
    """A function: `hu` int16 [n, rows, columns], `position_mm` float32 [n] -> probabilities float32 [n, L] and [L].

    The first as the slices were handed in, the second of the series as a whole study. Slices at one position keep the
    order they came in. `beside`: neighbours on either side that the slice model sees a slice with. Raises
    `tf.errors.InvalidArgumentError` for no slices, and for positions that give no order.
    """
    blend, both = about.blend, model_file.with_vectors(slice_model)
    embed = pieces.asker(both, (tf.float16, tf.float32), about.spec.image, beside)
    assert blend is not None  # `about` is of a series model
    use_plain_ops(context)

    def answers(hu: Any, position_mm: Any) -> Answers:
        order = pieces.order_of(hu, position_mm)
        vectors, logits = embed(hu, order)
        inputs = {
            "vectors": vectors[None],
            "place": place(tf.cast(tf.gather(position_mm, order), tf.float64))[None],
            "mask": tf.ones((1, tf.shape(order)[0]), tf.bool),
        }
        slices, heads = (tf.cast(one, tf.float64) for one in context(inputs, training=False))
        seen, logits = (tf.gather(one, tf.math.invert_permutation(order)) for one in (slices[0], logits))
        plain = graph.log_odds(tf.cast(logits, tf.float64), blend.slice_odds)
        mixed = _mixed(plain, graph.log_odds(seen, blend.odds), blend.slices)
        greatest = tf.reduce_max(mixed, 0, keepdims=True)
        study = _mixed(greatest, graph.log_odds(heads, blend.odds), blend.studies)
        shown = graph.calibrated(study, blend.study_calibration, blend.odds.any_index)
        return graph.probabilities_of_logits(mixed, about), shown[0]

    return answers


def place(position_mm: Any) -> Any:
    """float32 [n, 3], `series.place` of `position_mm` float64 [n], ascending, one at least."""
    gaps = position_mm[1:] - position_mm[:-1]
    whole = position_mm[-1] - position_mm[0]
    above_first = position_mm - position_mm[0]
    height = tf.where(whole > 0, tf.math.divide_no_nan(above_first, whole), 0.5)
    below, above = tf.pad(gaps, [[1, 0]]), tf.pad(gaps, [[0, 1]])
    return tf.cast(tf.stack([below, above, height], 1), tf.float32)


def use_plain_ops(context: keras.Model) -> None:
    """Make the recurrent layers of `context` run on any device from now on.

    Where a GPU is at hand Keras would put cuDNN's own ops into the graph, and the export would answer on GPUs alone.
    """
    for layer in context.layers:
        if isinstance(layer, keras.layers.Bidirectional):
            layer.forward_layer.use_cudnn = layer.backward_layer.use_cudnn = False


def _mixed(plain: Any, context: Any, mix: Mix) -> Any:
    """`Mix.log_odds`; `plain` and `context`: natural log odds float64 [n, L]."""
    plain, context = _straightened(plain, mix.plain), _straightened(context, mix.context)
    both = (1 - mix.part) * plain + mix.part * context
    return tf.where(mix.part == 0, plain, tf.where(mix.part == 1, context, both))


def _straightened(log_odds: Any, calibration: Calibration) -> Any:
    """`Calibration.logits`."""
    scale, offset = calibration.scale_offset()
    return scale * log_odds + offset
