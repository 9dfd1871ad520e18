"""Where in a slice a model finds what speaks for a label: class activation maps from the last convolution.

Both methods take the activation A [h, w, c] of the last convolution and the gradient G [h, w, c] of one logit with
respect to it; the logit, for the gradient of a probability vanishes where the model is sure.

- gradcam: sum over c of A times the mean of G over all places (Selvaraju et al.: Grad-CAM, ICCV 2017)
- hirescam: sum over c of A * G (Draelos and Carin: Use HiResCAM instead of Grad-CAM, arXiv 2011.08891, 2020)

Where a mean over places stands between the convolution and the logits (densenet121, xception), G is the same at every
place and the two agree. The dense layers of the cnn weigh each place by itself, and the mean of G throws that away:
trained to see discs in the left half alone (test_explain.py), it has 0.21 of the mass of Grad-CAM in the disc
that counts and 0.21 in an equal one on the right that does not; of HiResCAM 0.59 and 0.00. So hirescam is the default.

Guided variants are left out: guided backpropagation draws nearly the same edges for a model with random weights
(Adebayo et al.: Sanity Checks for Saliency Maps, NeurIPS 2018), which looks sharp and explains nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.shell.problems import WrongUse, hint

Float32 = npt.NDArray[np.float32]

_POOLING = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)


def _hirescam(activation: Any, gradient: Any) -> Any:
    return tf.reduce_sum(activation * gradient, -1)


def _gradcam(activation: Any, gradient: Any) -> Any:
    return tf.reduce_sum(activation * tf.reduce_mean(gradient, (1, 2), keepdims=True), -1)


METHODS: dict[str, Callable[[Any, Any], Any]] = {"hirescam": _hirescam, "gradcam": _gradcam}
DEFAULT = "hirescam"


def explainer(model: keras.Model, method: str = DEFAULT) -> Callable[[npt.NDArray[Any], int], Float32]:
    """A function (images [b, size, size, channels], index of a label) -> maps float32 [b, size, size].

    A map is 0 where nothing speaks for the label, and 1 where most does in that slice: maps of two slices do not
    compare. It is compiled at the first call, once for all b and labels. Its detail is that of the last convolution,
    size / 32 for densenet121 and xception. Raises `WrongUse` for an unknown method or a model without a convolution.
    """
    if method not in METHODS:
        raise WrongUse(f"method {method!r} of explaining is unknown; {hint(method, METHODS)}")
    features, head = _split(model)
    images = tf.TensorSpec(model.input.shape, model.input.dtype)

    @tf.function(input_signature=[images, tf.TensorSpec((), tf.int32)])
    def compiled(images: Any, label: Any) -> Any:
        activation = tf.cast(features(images, training=False), tf.float32)
        found = METHODS[method](activation, _gradient(activation, head, label))
        return _enlarged(_smoothed(found), model.input.shape[1:3])

    return lambda images, label: compiled(images, label).numpy()


def _split(model: keras.Model) -> tuple[keras.Model, list[keras.Layer]]:
    """The model up to the activation of its last convolution, and the layers from there to the logits.

    The activation is the last 4-D tensor of the chain of layers that ends in the logits; poolings behind it belong to
    the head, so that the map keeps the detail of the convolution. A nested application is one layer of the chain.
    """
    layers = model.layers
    at = len(layers) - 1
    while at > 1 and (len(layers[at].input.shape) != 4 or isinstance(layers[at - 1], _POOLING)):
        at -= 1
    if not any(isinstance(layer, (keras.layers.Conv2D, keras.Model)) for layer in layers[:at]):
        raise WrongUse(f"model {model.name} has no convolution, and a map needs one; give a model of this trainer")
    nested = layers[at - 1]
    tail = _tail(nested) if isinstance(nested, keras.Model) else []
    if not tail:
        return keras.Model(model.input, layers[at].input), layers[at:]
    before = keras.Model(nested.input, tail[0].input)
    return keras.Model(model.input, before(layers[at - 2].output)), [*tail, *layers[at:]]


def _tail(application: keras.Model) -> list[keras.Layer]:
    """The poolings that an application ends in, as VGG does."""
    layers = application.layers
    at = len(layers)
    while isinstance(layers[at - 1], _POOLING):
        at -= 1
    return layers[at:]


def _gradient(activation: Any, head: Sequence[keras.Layer], label: Any) -> Any:
    """The slope of each slice's logit `label` at its activation, float32 [b, h, w, c]."""
    with tf.GradientTape() as tape:
        tape.watch(activation)
        x = activation
        for layer in head:
            x = layer(x, training=False)
        logits = tf.gather(x, label, axis=1)
    # a slice's logit hears its own activation alone, so the gradient of their sum is that of each
    return tape.gradient(logits, activation)


def _smoothed(found: Any) -> Any:
    """Maps [b, h, w] as means over a neighbourhood of about a twelfth of a side; those of up to 31 cells as they are.

    What two neighbours say for and against the label is settled between them before the negative becomes 0. Without
    that the fine map of the cnn is specks: its max-pooling hands each slope to one place in four.
    """
    side = 2 * (found.shape[1] // 32) + 1  # odd, so that nothing moves by half a cell
    for _ in range(2 if side > 1 else 0):
        found = tf.nn.avg_pool2d(found[..., None], side, 1, "SAME")[..., 0]
    return found


def _enlarged(found: Any, size_px: Sequence[int]) -> Any:
    """What is positive of maps [b, h, w], bilinear at `size_px` [2], divided by each map's maximum (or all 0)."""
    positive = tf.nn.relu(found)[..., None]
    maps = tf.image.resize(positive, size_px, "bilinear")[..., 0]
    return tf.math.divide_no_nan(maps, tf.reduce_max(maps, (1, 2), keepdims=True))
