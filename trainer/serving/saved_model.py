"""The trained model as a SavedModel: HU, records or a series in, calibrated probabilities with their labels out.

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
from trainer.serving import graph, neighbour_graph, series_graph
from trainer.serving.answers import Ask, Served

if TYPE_CHECKING:
    import keras

    from trainer.models.model_file import About

TOLERANCE = 1e-6  # of probabilities, between Keras and what was written


def write(
    folder: Path, model: keras.Model, about: About, slice_model: keras.Model | None = None, beside: int = 0
) -> None:
    """Put a SavedModel into `folder`; whoever wants it whole or not at all gives a temporary one.

    Signatures: `hu`, also as `serving_default`: `hu` int16 [n, rows, columns] -> `probabilities` float32 [n, L] and
    `labels` string [n, L]; `records`: `records` string [n], serialized -> the same; `image`: `hu` -> `image`
    [n, size_px, size_px, channels], uint8 or of HU records int16, as the model sees them.

    Of a series model `model` is the context, `slice_model` what it stands on, and the signatures are `series`, also as
    `serving_default`: `hu` int16 [n, rows, columns], `position_mm` float32 [n], both of one series in any order ->
    `probabilities` and `labels` as above, and `study_probabilities` float32 [L]; and `image`. There is no `hu`: the
    slice model alone is another model than the one that was evaluated. A slice model that sees neighbours has the same
    signatures without `study_probabilities`. `beside`: neighbours on either side that `slice_model` sees a slice with.
    Raises `OSError` or `tf.errors.OpError`.
    """
    networks = [model] if slice_model is None else [model, slice_model]
    with tempfile.TemporaryDirectory() as temporary:
        asset = Path(temporary) / model_file.ABOUT
        asset.write_text(model_file.to_json(about), encoding="utf-8")
        weights = [variable.value for one in networks for variable in one.variables]
        served = _Bundle(weights, tf.saved_model.Asset(str(asset)))
        # what Keras needs for gradients is of no use here, and would be Python code to other programs
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        made = signatures_of(model, about, slice_model, beside)
        tf.saved_model.save(served, str(folder), signatures=made, options=options)


def opened(folder: Path) -> Served:
    """The signatures of the SavedModel in `folder`, to be asked."""
    loaded = tf.saved_model.load(str(folder)).signatures
    return Served("SavedModel", {name: _asked(one) for name, one in loaded.items()}, TOLERANCE)


def _asked(signature: Any) -> Ask:
    def ask(**inputs: Any) -> dict[str, Any]:
        return {name: found.numpy() for name, found in signature(**inputs).items()}

    return ask


class _Bundle(tf.Module):
    """All that a loaded SavedModel holds besides its signatures."""

    def __init__(self, weights: Sequence[tf.Variable], about: Any) -> None:
        super().__init__()
        self.weights = weights
        self.about = about


def signatures_of(
    model: keras.Model, about: About, slice_model: keras.Model | None = None, beside: int = 0
) -> dict[str, Any]:
    """Name -> `tf.function` of each signature of `write`, which says what it takes."""
    if slice_model is not None:
        return series_signatures(model, about, slice_model, beside)
    return (neighbour_signatures if about.context_slices else signatures)(model, about)


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

    return {"hu": of_hu, "serving_default": of_hu, "records": of_records, "image": _image(about)}


def neighbour_signatures(model: keras.Model, about: About) -> dict[str, Any]:
    """Name -> `tf.function` of each signature of a slice model that sees neighbours."""
    answers = neighbour_graph.answers_of(model, about)

    @tf.function(input_signature=_of_a_series())
    def series(hu: Any, position_mm: Any) -> Mapping[str, Any]:
        slices = answers(hu, position_mm)
        return {"probabilities": slices, "labels": _labels(slices, about)}

    return {"series": series, "serving_default": series, "image": _image(about)}


def _of_a_series() -> list[Any]:
    """What a signature takes of a series."""
    hu = tf.TensorSpec((None, None, None), tf.int16, name="hu")
    return [hu, tf.TensorSpec((None,), tf.float32, name="position_mm")]


def series_signatures(context: keras.Model, about: About, slice_model: keras.Model, beside: int = 0) -> dict[str, Any]:
    """Name -> `tf.function` of each signature of a series model, bound to the variables of both networks."""
    answers = series_graph.answers_of(slice_model, context, about, beside)

    @tf.function(input_signature=_of_a_series())
    def series(hu: Any, position_mm: Any) -> Mapping[str, Any]:
        slices, study = answers(hu, position_mm)
        return {"probabilities": slices, "study_probabilities": study, "labels": _labels(slices, about)}

    return {"series": series, "serving_default": series, "image": _image(about)}


def _image(about: About) -> Any:
    @tf.function(input_signature=[tf.TensorSpec((None, None, None), tf.int16, name="hu")])
    def image(hu: Any) -> Mapping[str, Any]:
        return {"image": graph.image_of_hu(hu, about.spec.image)}

    return image


def _labels(slices: Any, about: About) -> Any:
    """String [n, L]: a row of names for each of `slices` [n, ...]: a server takes batches apart by their rows."""
    return tf.tile(tf.constant([about.spec.labels.names]), (tf.shape(slices)[0], 1))


def _scored(model: keras.Model, about: About) -> Callable[[Any], Mapping[str, Any]]:
    """A function: `image` [n, size_px, size_px, channels] -> the outputs of a signature."""
    probabilities = graph.probabilities_of(model, about)

    @tf.function(input_signature=[tf.TensorSpec((None, *about.spec.image.shape), about.spec.image.dtype)])
    def scored(image: Any) -> Mapping[str, Any]:
        return {"probabilities": probabilities(image), "labels": _labels(image, about)}

    return scored
