"""From HU and positions of a series to probabilities, of a slice model that sees each slice with its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from trainer.serving import graph, pieces

if TYPE_CHECKING:
    import keras

    from trainer.models.model_file import About


def answers_of(model: keras.Model, about: About) -> Callable[[Any, Any], Any]:
    """A function: `hu` int16 [n, rows, columns], `position_mm` float32 [n] -> probabilities float32 [n, L], as of `hu`.

    Slices at one position keep the order they came in. Raises `tf.errors.InvalidArgumentError` for no slices, and for
    positions that give no order.
    """
    ask = pieces.asker(model, (tf.float32,), about.spec.image, about.context_slices)

    def answers(hu: Any, position_mm: Any) -> Any:
        order = pieces.order_of(hu, position_mm)
        (logits,) = ask(hu, order)
        as_given = tf.gather(logits, tf.math.invert_permutation(order))
        return graph.probabilities_of_logits(tf.cast(as_given, tf.float64), about)

    return answers
