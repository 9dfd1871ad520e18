"""The weights a model starts from: ImageNet's, found in Keras's cache or downloaded, or those of a file."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import socket
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import h5py
import keras
import numpy as np

from ich_tfrecords import environment
from trainer.shell.problems import WrongUse

SILENCE_S = 60.0


@dataclass(frozen=True)
class Application:
    """One of keras.applications: how to make it, what it takes, where its ImageNet weights are.

    It takes float32 RGB `(v / 255 - mean) / std` of bytes v, at least `smallest_px` on a side (Keras's own limit).
    `weights_md5` is the checksum that Keras publishes with the file.
    """

    make: Callable[..., Any]
    smallest_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights_url: str
    weights_md5: str

    @property
    def weights_file(self) -> str:
        return self.weights_url.rsplit("/", 1)[-1]


_WEIGHTS_URL = "https://storage.googleapis.com/tensorflow/keras-applications"
APPLICATIONS = {
    "densenet121": Application(
        make=keras.applications.DenseNet121,
        smallest_px=32,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        weights_url=f"{_WEIGHTS_URL}/densenet/densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5",
        weights_md5="30ee3e1110167f948a6b9946edeeb738",
    ),
    "xception": Application(
        make=keras.applications.Xception,
        smallest_px=71,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        weights_url=f"{_WEIGHTS_URL}/xception/xception_weights_tf_dim_ordering_tf_kernels_notop.h5",
        weights_md5="b0042744bf5b25fce3cb969f33bebb97",
    ),
}


def backbone(model: keras.Model) -> keras.Model | None:
    """The application part of a model of this file, float32 [n, h, w, 3] -> features; None for `cnn`.

    `backbone(model).trainable = False` freezes it, and its batch norms then use their stored means also in training.
    """
    return next((layer for layer in model.layers if isinstance(layer, keras.Model)), None)


def imagenet_weights(name: str) -> Path:
    """The file of ImageNet weights of an application (without its top), from Keras's cache folder or downloaded.

    Only a file with the published checksum is taken. A download goes to a folder of its own and is moved into place
    when whole, so that one broken off, or two at the same time, spoil nothing. Raises `WrongUse` with the ways out.
    """
    if name not in APPLICATIONS:
        raise WrongUse(f"weights imagenet: there are none for {name}; give --weights none, or the path of its own file")
    application = APPLICATIONS[name]
    folder = _keras_folder() / "models"
    target = folder / application.weights_file
    try:
        if not _has_md5(target, application.weights_md5):
            _download(application, folder)
    except Exception as error:  # get_file raises bare Exception
        reason = _one_line(error).replace(application.weights_url, "the address below")
        here = f"{target.name} is neither whole in {folder} nor can it be downloaded ({reason})"
        fetch = f"get {application.weights_url} elsewhere and place it in {folder} or give --weights PATH of it"
        raise WrongUse(f"weights imagenet: {here}; give --weights none, or {fetch}") from error
    return target


def _keras_folder() -> Path:
    """Keras's own rule for the folder that it keeps downloads in."""
    if os.environ.get("KERAS_HOME"):
        return environment.expanded(os.environ["KERAS_HOME"])
    home = environment.expanded("~")
    return (home if os.access(home, os.W_OK) else Path(tempfile.gettempdir())) / ".keras"


def _has_md5(path: Path, md5: str) -> bool:
    return path.is_file() and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == md5


def _download(application: Application, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as staging:
        where = {"cache_dir": staging, "cache_subdir": ".", "file_hash": application.weights_md5}
        with _silence_ends(SILENCE_S):
            got = Path(keras.utils.get_file(application.weights_file, application.weights_url, **where))
        if not _has_md5(got, application.weights_md5):
            raise ValueError(f"{got.stat().st_size:,} bytes came, not the file of md5 {application.weights_md5}")
        got.replace(folder / application.weights_file)


@contextlib.contextmanager
def _silence_ends(seconds: float) -> Iterator[None]:
    """Connections opened meanwhile fail after so many quiet seconds; `get_file` would wait without an end."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def load_weights(model: keras.Model, path: Path) -> None:
    """Sets the weights of `model` from a file made by the same architecture; `WrongUse` names file and reason.

    `*.weights.h5` and `*.keras`: all weights of a model of this file. Other `*.h5`: the application alone, as
    keras.applications publishes it (`*_notop.h5`); adapter and logits keep their start. HDF5 has no checksum: of
    changed bytes inside an `.h5` only those that make a weight infinite or no number are noticed; `.keras` has one.
    """
    whole = path.name.endswith((".weights.h5", ".keras"))
    if not whole and path.suffix != ".h5":
        raise WrongUse(f"weights {path}: unknown kind of file; give a .weights.h5, a .keras or an application's .h5")
    part = model if whole else backbone(model)
    if part is None:
        raise WrongUse(f"weights {path}: {model.name} has no application part; give a .weights.h5 or .keras file of it")
    try:
        differences = _differences(part, path) if whole else ""
        if not differences:
            part.load_weights(path)
    except Exception as error:  # h5py and Keras raise many kinds for a damaged file
        reason = f"cannot be read into {part.name}: {_one_line(error)}"
        raise WrongUse(f"weights {path}: {reason}; give a whole file of this architecture") from error
    if differences:
        raise WrongUse(f"weights {path}: another architecture than {part.name}: {differences}; give a file of this one")
    finite = {weight.path: np.isfinite(keras.ops.convert_to_numpy(weight)).all() for weight in part.weights}
    broken = [name for name, good in finite.items() if not good]
    if broken:
        raise WrongUse(f"weights {path}: {broken[0]} has values that are not finite; give an undamaged file")


def _differences(model: keras.Model, path: Path) -> str:
    """How the shapes in a .weights.h5 or .keras file differ from the model's; "" when they agree.

    Needed because Keras lets weights that the model has no place for pass in silence.
    """
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            # Read as a whole, so that the archive's checksum is tested.
            found = _shapes(io.BytesIO(archive.read("model.weights.h5")))
    else:
        with path.open("rb") as file:
            found = _shapes(file)
    wanted = Counter(tuple(weight.shape) for weight in model.weights)
    extra, missing = sorted((found - wanted).elements()), sorted((wanted - found).elements())
    if not extra and not missing:
        return ""
    first = [f"{text} {shapes[0]}" for text, shapes in (("it has", extra), ("the model has", missing)) if shapes]
    return f"{found.total()} weights, {wanted.total()} wanted; " + ", ".join(first)


def _shapes(file: IO[bytes]) -> Counter[tuple[int, ...]]:
    shapes: Counter[tuple[int, ...]] = Counter()

    def count(name: str, member: Any) -> None:
        # A dropout's random state is stored beside the weights.
        if isinstance(member, h5py.Dataset) and name.startswith("layers/") and "seed_generator" not in name:
            shapes[member.shape] += 1

    with h5py.File(file, "r") as content:
        content.visititems(count)
    return shapes


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
