"""The trained model as ONNX files, a signature each: the graphs of the SavedModel for runtimes without TensorFlow.

Needs the extra `onnx`. What ONNX has no operator for is refused by its name, and nothing of it is approximated.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import tensorflow as tf
import tf2onnx

from ich_tfrecords import NOT_A_DEVICE, __version__
from ich_tfrecords.storage import atomic
from trainer.models import model_file
from trainer.serving import pieces, saved_model
from trainer.serving.answers import Ask, Served
from trainer.shell import quiet
from trainer.shell.problems import WrongUse, in_short

if TYPE_CHECKING:
    import keras

    from trainer.models.model_file import About

OPSET = 18  # of ONNX 1.13 and onnxruntime 1.14
SUFFIX = ".onnx"
TOLERANCE = 1e-5  # of probabilities: other kernels sum in another order
RECORDS = "records"  # the signature that ONNX cannot have: it reads no serialized examples
TWICE = "serving_default"  # another name of a signature that has a file of its own
ERRORS_ONLY = 3  # onnxruntime's grades of what it says
DIMENSIONS = {"hu": ("n", "rows", "columns"), "position_mm": ("n",), "probabilities": ("n",), "image": ("n",)}


def write(
    folder: Path, model: keras.Model, about: About, slice_model: keras.Model | None = None, beside: int = 0
) -> None:
    """Put `<signature>.onnx` into `folder` for each that ONNX can have; arguments as of `saved_model.write`.

    `folder` holds `model.keras` already, whose sha256 is told in each file. Positions that give a series no order
    make its probabilities nan, for ONNX cannot refuse. Raises `OSError`, and `WrongUse` that names what ONNX lacks.
    """
    made = saved_model.signatures_of(model, about, slice_model, beside)
    for name, signature in made.items():
        if name not in (RECORDS, TWICE):
            found = _converted(_without_refusal(signature) if name == "series" else signature, about.network)
            _describe(found, name, about, model_file.digest(folder))
            atomic.write_bytes(folder / f"{name}{SUFFIX}", found.SerializeToString())


def opened(folder: Path) -> Served:
    """The files of `folder`, to be asked."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    sessions = {
        path.stem: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for path in folder.glob(f"*{SUFFIX}")
    }
    return Served("ONNX", {name: _asked(session) for name, session in sessions.items()}, TOLERANCE)


def _asked(session: Any) -> Ask:
    names = [output.name for output in session.get_outputs()]

    def ask(**inputs: Any) -> dict[str, Any]:
        return dict(zip(names, session.run(names, inputs), strict=True))

    return ask


def _without_refusal(series: Any) -> Any:
    """The signature `series` with nan in place of a refusal: the conversion drops assertions."""

    @tf.function(input_signature=series.input_signature)
    def answered(hu: Any, position_mm: Any) -> Mapping[str, Any]:
        right = pieces.in_order(hu, position_mm)
        found = series(hu, position_mm)
        return {name: tf.where(right, one, np.nan) if one.dtype.is_floating else one for name, one in found.items()}

    return answered


# conversion


def _converted(signature: Any, network: str) -> Any:
    """An ONNX model of a `tf.function`. Raises `WrongUse` for operators that ONNX does not have."""
    try:
        with quiet.kept_back():
            found = _convert(signature)
    except (ValueError, TypeError, KeyError, NotImplementedError, AssertionError) as error:
        raise WrongUse(f"tf2onnx does not know how to convert {network}: {in_short(error)}{_OTHERWISE}") from error
    if lacking := Counter(_lacking(found.graph)):
        named = ", ".join(f"{kind} ({times})" for kind, times in sorted(lacking.items()))
        raise WrongUse(f"ONNX has no operator for what {network} needs: {named}{_OTHERWISE}")
    return found


_OTHERWISE = "; leave out --format, a SavedModel holds every model"


def _convert(signature: Any) -> Any:
    eager = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)  # inside the trace: no call is left that XLA alone could look into
    try:
        found, _ = tf2onnx.convert.from_function(
            signature,
            input_signature=signature.input_signature,
            opset=OPSET,
            custom_op_handlers={name: (handler, []) for name, handler in HANDLERS.items()},
        )
    finally:
        tf.config.run_functions_eagerly(eager)
    return found


def _erfc(graph: Any, node: Any, name: str, _: Any) -> None:
    """1 - erf in place of erfc, which Keras has in GELU and ONNX has not."""
    (output,) = node.output
    dtype, shape = graph.get_dtype(output), graph.get_shape(output)
    one = graph.make_const(f"{name}_one", np.ones((), tf2onnx.utils.map_onnx_to_numpy_type(dtype)))
    graph.remove_node(name)
    erf = graph.make_node("Erf", node.input, dtypes=[dtype], shapes=[shape])
    graph.make_node("Sub", [one.output[0], erf.output[0]], outputs=[output], dtypes=[dtype], shapes=[shape])


def _log(*_: Any) -> None:
    """As it is: tf2onnx would take it to float32, since an onnxruntime of long ago had no other."""


def _select(graph: Any, node: Any, *_: Any) -> None:
    """A choice: tf2onnx would make it a sum of products, in which what is not chosen still makes nan."""
    node.type = "Where"


HANDLERS = {"Erfc": _erfc, "Log": _log, "SelectV2": _select}


def _lacking(graph: Any) -> Iterator[str]:
    """Kinds of the nodes of a graph, and of the loops in it, that are no operators of ONNX."""
    for node in graph.node:
        if not onnx.defs.has(node.op_type, node.domain):
            yield node.op_type
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _lacking(attribute.g)


# what a file says of itself


def _describe(found: Any, name: str, about: About, weights: str) -> None:
    """Names of axes, who made it of what, and the sentence that it is no medical device."""
    for value in (*found.graph.input, *found.graph.output):
        axes = DIMENSIONS.get(value.name, ("n",) if _has_open_axis(value) else ())
        for axis, label in zip(value.type.tensor_type.shape.dim, axes):
            axis.dim_param = label
    found.producer_name, found.producer_version = "ich-tfrecords", __version__
    found.doc_string = f"{about.network}, signature {name}. {NOT_A_DEVICE}"
    onnx.helper.set_model_props(found, _facts(about, weights))


def _has_open_axis(value: Any) -> bool:
    dimensions = value.type.tensor_type.shape.dim
    return len(dimensions) > 0 and not dimensions[0].HasField("dim_value")


def _facts(about: About, weights: str) -> dict[str, str]:
    """Metadata of a file: `about` is the text of about.json, spec and calibration included."""
    fixed = [dataclasses.asdict(window) for window in about.spec.image.windows]
    windows = about.facts["windows"]["now"] if "windows" in about.facts else fixed
    return {
        "not_a_device": NOT_A_DEVICE,
        "labels": json.dumps(about.spec.labels.names),
        "windows": json.dumps(windows),
        "weights": weights,
        "fingerprint": about.fingerprint,
        "about": model_file.to_json(about),
    }
