"""From HU and positions of a series to probabilities in TensorFlow ops alone: the graph of an exported series model.

The slices are windowed and encoded piece by piece, so that a series of any length needs the memory of a few slices;
the context then sees them all at once, in the order of their positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from trainer.models import model_file
from trainer.serving import graph

if TYPE_CHECKING:
    from trainer.models.model_file import About
    from trainer.results.blend import Mix
    from trainer.results.calibration import Calibration

PIECE = 32  # slices encoded at once; a network gives the same for any such number, but not always for one alone

NO_SLICES = "a series must have at least one slice"
NO_PAIRS = "position_mm must hold one number for each slice of hu"
NOT_FINITE = "position_mm must hold finite numbers"
NO_ORDER = "several slices, and all at one position_mm: they have no order"

Answers = tuple[Any, Any]


def answers_of(slice_model: keras.Model, context: keras.Model, about: About) -> Callable[[Any, Any], Answers]:
    """A function: `hu` int16 [n, rows, columns], `position_mm` float32 [n] -> probabilities float32 [n, L] and [L].

    The first as the slices were handed in, the second of the series as a whole study. Slices at one position keep the
    order they came in. Raises `tf.errors.InvalidArgumentError` for no slices, and for positions that give no order.
    """
    blend, embed = about.blend, _embed_of(slice_model, about)
    assert blend is not None  # `about` is of a series model
    use_plain_ops(context)

    def answers(hu: Any, position_mm: Any) -> Answers:
        with tf.control_dependencies(list(_checks(hu, position_mm))):
            order = tf.argsort(position_mm, stable=True)
        vectors, logits = embed(hu)
        inputs = {
            "vectors": tf.gather(vectors, order)[None],
            "place": place(tf.cast(tf.gather(position_mm, order), tf.float64))[None],
            "mask": tf.ones((1, tf.shape(order)[0]), tf.bool),
        }
        slices, heads = (tf.cast(one, tf.float64) for one in context(inputs, training=False))
        seen = tf.gather(slices[0], tf.math.invert_permutation(order))
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


def _checks(hu: Any, position_mm: Any) -> Iterator[Any]:
    count, ends = tf.shape(hu)[0], (tf.reduce_min(position_mm), tf.reduce_max(position_mm))
    yield tf.debugging.assert_positive(count, NO_SLICES)
    yield tf.debugging.assert_equal(tf.shape(position_mm)[0], count, NO_PAIRS)
    yield tf.debugging.Assert(tf.reduce_all(tf.math.is_finite(position_mm)), [NOT_FINITE])
    yield tf.debugging.Assert((count == 1) | (ends[0] < ends[1]), [NO_ORDER])


def _embed_of(slice_model: keras.Model, about: About) -> Callable[[Any], Answers]:
    """A function: `hu` int16 [n, rows, columns] -> vectors float16 [n, dim], logits float32 [n, L]: `embedder`'s."""
    both = model_file.with_vectors(slice_model)
    shapes = [(None, *one.shape[1:]) for one in both.outputs]

    def embed(hu: Any) -> Answers:
        pieces = -(-tf.shape(hu)[0] // PIECE)
        made = [
            tf.TensorArray(dtype, pieces, element_shape=shape, infer_shape=False)
            for dtype, shape in zip((tf.float16, tf.float32), shapes, strict=True)
        ]

        def body(at: Any, vectors: Any, logits: Any) -> tuple[Any, Any, Any]:
            found = both(graph.image_of_hu(hu[at * PIECE : (at + 1) * PIECE], about.spec.image), training=False)
            return at + 1, *(one.write(at, tf.cast(new, one.dtype)) for one, new in zip((vectors, logits), found))

        _, *made = tf.while_loop(lambda at, *_: at < pieces, body, (0, *made), parallel_iterations=1)
        return tuple(tf.ensure_shape(one.concat(), shape) for one, shape in zip(made, shapes))

    return embed


def _mixed(plain: Any, context: Any, mix: Mix) -> Any:
    """`Mix.log_odds`; `plain` and `context`: natural log odds float64 [n, L]."""
    plain, context = _straightened(plain, mix.plain), _straightened(context, mix.context)
    both = (1 - mix.part) * plain + mix.part * context
    return tf.where(mix.part == 0, plain, tf.where(mix.part == 1, context, both))


def _straightened(log_odds: Any, calibration: Calibration) -> Any:
    """`Calibration.logits`."""
    scale, offset = calibration.scale_offset()
    return scale * log_odds + offset
