"""First weights from a file: all of it where it fits, and of another head or stem what can be taken."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import h5py
import keras
import numpy as np

from trainer.models import window_layer
from trainer.models.applications import ADAPTER, REPEAT, RGB
from trainer.models.backbones import backbone, first_kernel, repeated
from trainer.shell.problems import WrongUse, in_short

Shapes = Counter[tuple[int, ...]]
ADAPTER_LAYER, LOGITS = "windows_to_rgb", "logits"


@dataclass(frozen=True)
class Ends:
    """What two models of one backbone may differ in: windows and how they get in, and labels.

    `stem`: `ADAPTER`, `REPEAT`, or "" where a backbone of three channels takes three windows. `learned`: False where
    one of them learns its windows and the other does not.
    """

    windows: int
    stem: str
    labels: int
    learned: bool = True


def load(model: keras.Model, path: Path, like: Callable[[Ends], keras.Model], stem: str) -> str:
    """Sets the weights of `model` from a file; one line that says what of it was taken, and what begins anew.

    `*.weights.h5` and `*.keras`: of a model of this trainer with the same backbone, maybe with other labels or windows.
    Other `*.h5`: the application alone, as keras.applications publishes it. HDF5 has no checksum: of
    changed bytes inside an `.h5` only those that make a weight infinite or no number are noticed; `.keras` has one.

    `like`: makes the model of other ends. `stem`: of the run. Raises `WrongUse` which names file and reason.
    """
    if path.name.endswith((".weights.h5", ".keras")):
        told = _load_whole(model, path, like, stem)
    elif path.suffix == ".h5":
        told = _load_application(model, path, like)
    else:
        raise WrongUse(f"weights {path}: unknown kind of file; give a .weights.h5, a .keras or an application's .h5")
    finite = {weight.path: np.isfinite(keras.ops.convert_to_numpy(weight)).all() for weight in model.weights}
    broken = [name for name, good in finite.items() if not good]
    if broken:
        raise WrongUse(f"weights {path}: {broken[0]} has values that are not finite; give an undamaged file")
    return f"weights {path}: {told}"


def _load_application(model: keras.Model, path: Path, like: Callable[[Ends], keras.Model]) -> str:
    part = backbone(model)
    if part is None:
        raise WrongUse(f"weights {path}: {model.name} has no application part; give a .weights.h5 or .keras file of it")
    source = model if first_kernel(part).shape[2] == RGB else like(Ends(RGB, "", _labels(model)))
    _read(backbone(source), path)
    anew = [layer.name for layer in model.layers if layer.weights and layer is not part]
    return f"all of {_taken(part, backbone(source))}; begins anew: {', '.join(anew)}"


def _load_whole(model: keras.Model, path: Path, like: Callable[[Ends], keras.Model], stem: str) -> str:
    found = _shapes_in(path, model.name)
    source = model
    if found != _shapes(model.weights):
        ends = _ends(found, model)
        if ends is not None and ends.stem not in ("", stem):
            raise WrongUse(
                f"weights {path}: its stem is {ends.stem}, and that of this run {stem}; set stem={ends.stem}"
            )
        source = model if ends is None else like(ends)
        if difference := _difference(found, _shapes(source.weights)):
            raise WrongUse(
                f"weights {path}: another architecture than {model.name}: {difference}; give a file of this one"
            )
    _read(source, path)
    return f"all of {model.name}" if source is model else _take(model, source)


def _read(part: Any, path: Path) -> None:
    try:
        part.load_weights(path)
    except Exception as error:  # h5py and Keras raise many kinds for a damaged file
        raise _unreadable(path, part.name, error) from error


def _unreadable(path: Path, name: str, error: Exception) -> WrongUse:
    return WrongUse(
        f"weights {path}: cannot be read into {name}: {in_short(error)}; give a whole file of this architecture"
    )


def _take(model: keras.Model, source: keras.Model) -> str:
    """Give `model` what it shares with `source`; in words."""
    theirs = {layer.name: layer for layer in source.layers if layer.weights}
    taken, anew = [], []
    for layer in (layer for layer in model.layers if layer.weights):
        other = theirs.pop(layer.name, None)
        fits = other is not None and (layer is backbone(model) or _shapes(layer.weights) == _shapes(other.weights))
        if fits:
            taken.append(_taken(layer, other))
        else:
            anew.append(layer.name)
    left = f"; left aside: {', '.join(theirs)}" if theirs else ""
    difference = (
        f"{_windows(source)} channels and {_labels(source)} labels, here {_windows(model)} and {_labels(model)}"
    )
    return f"it is of {difference}; taken: {', '.join(taken)}; begins anew: {', '.join(anew) or 'nothing'}{left}"


def _taken(layer: Any, other: Any) -> str:
    """Give a layer, or a backbone, the weights of another; its name, and what was made of them."""
    word = layer.name
    for weight, given in zip(layer.weights, other.weights, strict=True):
        values = keras.ops.convert_to_numpy(given)
        if weight.shape != given.shape:  # the first kernel of a backbone
            values = repeated(values, weight.shape[2])
            word += f" (first kernels of {given.shape[2]} channels repeated for {weight.shape[2]})"
        weight.assign(values)
    return word


def _labels(model: keras.Model) -> int:
    return int(model.output.shape[-1])


def _windows(model: keras.Model) -> int:
    """Channels that all but the first layers of a model see."""
    names = {layer.name: layer for layer in model.layers}
    last = next((name for name in (window_layer.TOGETHER, window_layer.ENDS) if name in names), None)
    return int((names[last].output if last else model.input).shape[-1])


def _ends(found: Shapes, model: keras.Model) -> Ends | None:
    """Of the model that weights of shapes `found` are of, if it has the backbone of `model`, else perhaps None."""
    part = backbone(model)
    learning = [layer for layer in model.layers if layer.name == window_layer.LAYER and layer.weights]
    learned = not learning or not _shapes(learning[0].weights) - found
    own = {LOGITS, ADAPTER_LAYER, part.name if part else "", "" if learned else window_layer.LAYER}
    inside = [weight for layer in model.layers if layer.name not in own for weight in layer.weights]
    if part is not None:
        inside += [weight for weight in part.weights if weight is not first_kernel(part)]
    rest = sorted((found - _shapes(inside)).elements(), key=len)
    adapters = [shape for shape in rest if len(shape) == 4 and (*shape[:2], shape[3]) == (1, 1, RGB)]
    kernels = [shape for shape in rest if len(shape) == 4 and shape not in adapters]
    if not rest or len(rest[0]) != 1 or len(kernels) != (part is not None):
        return None
    (labels,) = rest[0]
    if adapters:
        return Ends(adapters[0][2], ADAPTER, labels, learned)
    channels = kernels[0][2] if kernels else _windows(model)
    return Ends(channels, REPEAT if kernels and channels > RGB else "", labels, learned)


def _difference(found: Shapes, wanted: Shapes) -> str:
    """How the shapes in a file differ from the model's; "" when they agree.

    Needed because Keras lets weights that the model has no place for pass in silence.
    """
    extra, missing = sorted((found - wanted).elements()), sorted((wanted - found).elements())
    if not extra and not missing:
        return ""
    first = [f"{text} {shapes[0]}" for text, shapes in (("it has", extra), ("the model has", missing)) if shapes]
    return f"{found.total()} weights, {wanted.total()} wanted; " + ", ".join(first)


def _shapes(weights: Any) -> Shapes:
    return Counter(tuple(weight.shape) for weight in weights)


def _shapes_in(path: Path, name: str) -> Shapes:
    """Of the weights in a .weights.h5 or .keras file."""
    try:
        if path.suffix != ".keras":
            with path.open("rb") as file:
                return _shapes_of_hdf5(file)
        with zipfile.ZipFile(path) as archive:
            # read as a whole, so that the archive's checksum is tested
            return _shapes_of_hdf5(io.BytesIO(archive.read("model.weights.h5")))
    except Exception as error:  # h5py and zipfile raise many kinds for a damaged file
        raise _unreadable(path, name, error) from error


def _shapes_of_hdf5(file: IO[bytes]) -> Shapes:
    shapes: Shapes = Counter()

    def count(name: str, member: Any) -> None:
        # A dropout's random state is stored beside the weights.
        if isinstance(member, h5py.Dataset) and name.startswith("layers/") and "seed_generator" not in name:
            shapes[member.shape] += 1

    with h5py.File(file, "r") as content:
        content.visititems(count)
    return shapes
