"""The trained model as a SavedModel: HU or records in, calibrated probabilities with their labels out.

TensorFlow alone loads it: everything, pixels included, is plain ops, and the only objects are the variables of the
model and `about.json`, which lies among the assets.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from trainer.models import model_file
from trainer.serving import graph

if TYPE_CHECKING:
    import keras

    from trainer.models.model_file import About


def write(folder: Path, model: keras.Model, about: About) -> None:
    """Put a SavedModel into `folder`; whoever wants it whole or not at all gives a temporary one.

    Signatures: `hu`, also as `serving_default`: `hu` int16 [n, rows, columns] -> `probabilities` float32 [n, L] and
    `labels` string [n, L]; `records`: `records` string [n], serialized -> the same; `image`: `hu` -> `image` uint8
    [n, size_px, size_px, windows], as the model sees them. Raises `OSError` or `tf.errors.OpError`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        asset = Path(temporary) / model_file.ABOUT
        asset.write_text(model_file.to_json(about), encoding="utf-8")
        served = _Served([variable.value for variable in model.variables], tf.saved_model.Asset(str(asset)))
        # what Keras needs for gradients is of no use here, and would be Python code to other programs
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(served, str(folder), signatures=signatures(model, about), options=options)


class _Served(tf.Module):
    """All that a loaded SavedModel holds besides its signatures."""

    def __init__(self, weights: Sequence[tf.Variable], about: Any) -> None:
        super().__init__()
        self.weights = weights
        self.about = about


def signatures(model: keras.Model, about: About) -> dict[str, Any]:
    """Name -> `tf.function` of each signature of `write`, bound to the variables of `model`."""
    spec = about.spec
    hu = tf.TensorSpec((None, None, None), tf.int16, name="hu")
    scored = _scored(model, about)

    @tf.function(input_signature=[hu])
    def of_hu(hu: Any) -> Mapping[str, Any]:
        return scored(graph.image_of_hu(hu, spec.image))

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="records")])
    def of_records(records: Any) -> Mapping[str, Any]:
        return scored(graph.image_of_records(records, spec))

    @tf.function(input_signature=[hu])
    def image(hu: Any) -> Mapping[str, Any]:
        return {"image": graph.image_of_hu(hu, spec.image)}

    return {"hu": of_hu, "serving_default": of_hu, "records": of_records, "image": image}


def _scored(model: keras.Model, about: About) -> Callable[[Any], Mapping[str, Any]]:
    """A function: `image` uint8 [n, size_px, size_px, windows] -> the outputs of a signature."""
    probabilities = graph.probabilities_of(model, about)
    names = tf.constant([about.spec.labels.names])

    @tf.function(input_signature=[tf.TensorSpec((None, *about.spec.image.shape), tf.uint8)])
    def scored(image: Any) -> Mapping[str, Any]:
        # a row of names for each slice: a server takes batches apart, so every output must have one
        return {"probabilities": probabilities(image), "labels": tf.tile(names, (tf.shape(image)[0], 1))}

    return scored
