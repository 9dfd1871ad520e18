"""A slice network over all slices of a series, a piece at a time, so that one of any length needs little memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from trainer.serving import graph

if TYPE_CHECKING:
    import keras

    from ich_tfrecords.spec import ImageSpec

PIECE = 32  # slices encoded at once; a network gives the same for any such number, but not always for one alone

NO_SLICES = "a series must have at least one slice"
NO_PAIRS = "position_mm must hold one number for each slice of hu"
NOT_FINITE = "position_mm must hold finite numbers"
NO_ORDER = "several slices, and all at one position_mm: they have no order"

Ask = Callable[[Any, Any], list[Any]]


def order_of(hu: Any, position_mm: Any) -> Any:
    """int32 [n], numbers of the slices of a series by their positions float32 [n]; equal ones keep their order.

    Raises `tf.errors.InvalidArgumentError` for no slices, and for positions that give no order.
    """
    count, ends = tf.shape(hu)[0], (tf.reduce_min(position_mm), tf.reduce_max(position_mm))
    checks = [
        tf.debugging.assert_positive(count, NO_SLICES),
        tf.debugging.assert_equal(tf.shape(position_mm)[0], count, NO_PAIRS),
        tf.debugging.Assert(tf.reduce_all(tf.math.is_finite(position_mm)), [NOT_FINITE]),
        tf.debugging.Assert((count == 1) | (ends[0] < ends[1]), [NO_ORDER]),
    ]
    with tf.control_dependencies(checks):
        return tf.argsort(position_mm, stable=True)


def in_order(hu: Any, position_mm: Any) -> Any:
    """Whether `order_of` would take them, as a tensor: for runtimes that cannot refuse."""
    count, ends = tf.shape(hu)[0], (tf.reduce_min(position_mm), tf.reduce_max(position_mm))
    right = (count > 0) & tf.equal(tf.shape(position_mm)[0], count) & tf.reduce_all(tf.math.is_finite(position_mm))
    return right & ((count == 1) | (ends[0] < ends[1]))


def asker(network: keras.Model, dtypes: Sequence[Any], image: ImageSpec, context: int) -> Ask:
    """A function: `hu` int16 [n, rows, columns], `order_of` it -> the outputs of `network` [n, ...], in that order.

    `dtypes`: of each output. `context`: neighbours on either side that the network sees a slice with.
    """
    shapes = [(None, *one.shape[1:]) for one in network.outputs]

    def ask(hu: Any, order: Any) -> list[Any]:
        # windowed once: neighbours stand in several pieces
        images = tf.gather(graph.image_of_hu(hu, image), order) if context else None
        count = tf.shape(hu)[0]
        pieces = (count + PIECE - 1) // PIECE
        # grown by concatenation, which other runtimes can do; of arrays of tensors they know only equal parts
        made = [tf.zeros((0, *shape[1:]), dtype) for dtype, shape in zip(dtypes, shapes, strict=True)]

        def body(at: Any, *made: Any) -> tuple[Any, ...]:
            rows = tf.range(at * PIECE, tf.minimum((at + 1) * PIECE, count))
            if images is None:
                seen = graph.image_of_hu(tf.gather(hu, tf.gather(order, rows)), image)
            else:
                seen = beside(images, rows, context)
            found = tf.nest.flatten(network(seen, training=False))
            return at + 1, *(tf.concat([one, tf.cast(new, one.dtype)], 0) for one, new in zip(made, found, strict=True))

        _, *made = tf.while_loop(
            lambda at, *_: at < pieces,
            body,
            (0, *made),
            shape_invariants=(tf.TensorShape([]), *map(tf.TensorShape, shapes)),
            parallel_iterations=1,
        )
        return made

    return ask


def beside(images: Any, rows: Any, context: int) -> Any:
    """[m, size, size, channels] of the slices at `rows` int32 [m] of a series, each `neighbours.stacked` with others.

    `images` [n, size, size, windows]: of the series, from below to above.
    """
    at = rows[:, None] + tf.range(-context, context + 1)
    near = tf.gather(images, tf.clip_by_value(at, 0, tf.shape(images)[0] - 1))
    # m, neighbour, row, column, window
    return tf.concat(tf.unstack(tf.ensure_shape(near, (None, 2 * context + 1, *images.shape[1:])), axis=1), -1)
