"""The three classifiers: uint8 windowed slices in, float32 logits out, the input scaling inside the model.

Every model takes `image` uint8 [n, size, size, windows] and gives `logits` float32 [n, labels], whatever the global
dtype policy: scaling, pooling and the last layer are float32, only what lies between follows the policy. Layers are
Keras's own, so that a saved `.keras` file opens with plain `keras.models.load_model`; all weights have names that do
not depend on what the process built before, so that a checkpoint fits.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from trainer.models.pretrained import APPLICATIONS, Application, imagenet_weights, load_weights
from trainer.shell.problems import WrongUse, hint

SMALLEST_PX = 8
RGB = 3


def build(
    name: str, image_shape: Sequence[int], labels: int, weights: str, architecture: Mapping[str, Any]
) -> keras.Model:
    """The model `name` for images uint8 [n, *image_shape], with `labels` float32 logits in layer "logits".

    `image_shape` is (size_px, size_px, windows). `weights`: "none" (random, from `keras.utils.set_random_seed`),
    "imagenet" (the application part only) or the path of a file, see `load_weights`. `architecture`: the keyword
    arguments of the builder. Raises `WrongUse` for anything else.
    """
    if name not in BUILDERS:
        raise WrongUse(f"model {name!r} is unknown; {hint(name, BUILDERS)}")
    builder = BUILDERS[name]
    known = [key for key, value in inspect.signature(builder).parameters.items() if value.kind is value.KEYWORD_ONLY]
    for key in architecture:
        if key not in known:
            raise WrongUse(f"architecture of {name}: unknown key {key!r}; {hint(key, known)}")
    _check_shape(name, image_shape, labels)
    path = imagenet_weights(name) if weights == "imagenet" else Path(weights)
    if weights != "none" and not path.is_file():
        raise WrongUse(f"weights {weights}: there is no such file; give 'none', 'imagenet' or the path of a file")
    model = builder(image_shape, labels, **architecture)
    if weights != "none":
        load_weights(model, path)
    return model


def cnn(
    image_shape: Sequence[int],
    labels: int,
    *,
    filters: Sequence[int] = (32, 64),
    dense: Sequence[int] = (128, 64),
    dropout: float = 0.0,
) -> keras.Model:
    """The plain CNN: a block of 3x3 convolution, ReLU and 2x2 max-pooling for each of `filters`, then dense layers.

    uint8 [n, size, size, windows] / 255 -> [n, size // 2**k, .., filters[-1]] -> flat -> `dense` with ReLU ->
    dropout -> float32 [n, labels]. Any size of at least 2**k px for k blocks.
    """
    _check_dropout("cnn", dropout)
    _check_widths("filters", filters, at_least=1)
    _check_widths("dense", dense, at_least=0)
    size_px = image_shape[0]
    if size_px >> len(filters) == 0:
        most = size_px.bit_length() - 1
        raise WrongUse(
            f"filters {list(filters)}: {len(filters)} poolings leave nothing of {size_px} px; give <= {most}"
        )
    images = _image_input(image_shape)
    x = _unit_scale(images)
    for number, width in enumerate(filters, 1):
        x = keras.layers.Conv2D(width, 3, padding="same", activation="relu", name=f"conv_{number}")(x)
        x = keras.layers.MaxPooling2D(2, name=f"pool_{number}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    for number, width in enumerate(dense, 1):
        x = keras.layers.Dense(width, activation="relu", name=f"dense_{number}")(x)
    return keras.Model(images, _logits(_dropped(x, dropout), labels), name="cnn")


def densenet121(image_shape: Sequence[int], labels: int, *, dropout: float = 0.0) -> keras.Model:
    """DenseNet-121 (Huang, Liu, van der Maaten, Weinberger: Densely Connected Convolutional Networks, CVPR 2017).

    uint8 [n, size, size, windows] -> RGB, ImageNet mean and deviation -> features [n, h, w, 1024], h = size / 32 ->
    mean over h and w -> float32 [n, labels]. Below 32 px the image is resized to 32 px.
    """
    return _transfer("densenet121", image_shape, labels, dropout)


def xception(image_shape: Sequence[int], labels: int, *, dropout: float = 0.0) -> keras.Model:
    """Xception (Chollet: Xception: Deep Learning with Depthwise Separable Convolutions, CVPR 2017).

    uint8 [n, size, size, windows] -> RGB in [-1, 1] -> features [n, h, w, 2048], h about size / 32 -> mean over h
    and w -> dropout -> float32 [n, labels]. Below 71 px the image is resized to 71 px.
    """
    return _transfer("xception", image_shape, labels, dropout)


BUILDERS: dict[str, Callable[..., keras.Model]] = {"cnn": cnn, "densenet121": densenet121, "xception": xception}


def rgb_kernel(windows: int) -> np.ndarray:
    """Where the 1x1 convolution "windows_to_rgb" starts: float32 [1, 1, windows, 3], each colour's weights sum to 1.

    Colour c is the mean of windows c, c + 3, c + 6, ...; with fewer than three windows they are cycled through. So
    every window is used, grey stays grey, and values stay in the range that pretrained weights were made for.
    """
    window, colour = np.arange(windows)[:, None], np.arange(RGB)[None, :]
    taken = (window % RGB == colour) if windows >= RGB else (colour % windows == window)
    return (taken / taken.sum(axis=0)).astype(np.float32)[None, None]


def _transfer(name: str, image_shape: Sequence[int], labels: int, dropout: float) -> keras.Model:
    _check_dropout(name, dropout)
    application = APPLICATIONS[name]
    images = _image_input(image_shape)
    x = _rgb(_unit_scale(images), application)
    x = _application(name, tuple(x.shape[1:]))(x)
    x = keras.layers.GlobalAveragePooling2D(name="mean", dtype="float32")(x)
    return keras.Model(images, _logits(_dropped(x, dropout), labels), name=f"{name}_classifier")


def _rgb(x: Any, application: Application) -> Any:
    """Values in [0, 1] [n, size, size, windows] -> what the application takes, float32 [n, h, w, 3]."""
    if x.shape[1] < application.smallest_px:
        # Before the adapter, so that no gradient has to pass the resize.
        side = application.smallest_px
        x = keras.layers.Resizing(side, side, interpolation="bilinear", name="resize", dtype="float32")(x)
    if x.shape[-1] != RGB:
        start = keras.initializers.Constant(rgb_kernel(x.shape[-1]).tolist())
        adapter = {"use_bias": False, "kernel_initializer": start, "dtype": "float32"}
        x = keras.layers.Conv2D(RGB, 1, name="windows_to_rgb", **adapter)(x)
    scale = [1 / std for std in application.std]
    offset = [-mean / std for mean, std in zip(application.mean, application.std)]
    return keras.layers.Rescaling(scale, offset, name="imagenet_scale", dtype="float32")(x)


def _application(name: str, shape: tuple[int, ...]) -> keras.Model:
    """The application without its top, all weights under names of their own.

    Keras numbers unnamed layers through the process (`conv2d_7`); Xception has eight of them, its shortcuts.
    """
    made = APPLICATIONS[name].make(include_top=False, weights=None, input_shape=shape, name=name)
    unnamed = [layer.name for layer in made.layers if re.fullmatch(r"(conv2d|batch_normalization)(_\d+)?", layer.name)]
    if not unnamed:
        return made
    names = {old: f"shortcut_{number}" for number, old in enumerate(unnamed, 1)}
    return keras.models.clone_model(
        made,
        clone_function=lambda layer: type(layer).from_config(
            {**layer.get_config(), "name": names.get(layer.name, layer.name)}
        ),
    )


def _image_input(image_shape: Sequence[int]) -> Any:
    return keras.Input(tuple(image_shape), dtype="uint8", name="image")


def _unit_scale(images: Any) -> Any:
    return keras.layers.Rescaling(1 / 255, name="unit_scale", dtype="float32")(images)


def _dropped(x: Any, dropout: float) -> Any:
    return keras.layers.Dropout(dropout, name="dropout", dtype="float32")(x) if dropout > 0 else x


def _logits(x: Any, labels: int) -> Any:
    return keras.layers.Dense(labels, name="logits", dtype="float32")(x)


def _check_shape(name: str, image_shape: Sequence[int], labels: int) -> None:
    square = len(image_shape) == 3 and image_shape[0] == image_shape[1] >= SMALLEST_PX and image_shape[2] >= 1
    if not square or labels < 1:
        wanted = f"(size, size, windows) with size >= {SMALLEST_PX}, windows >= 1 and labels >= 1"
        raise WrongUse(f"model {name}: images {tuple(image_shape)} with {labels} labels; it takes {wanted}")


def _check_dropout(name: str, dropout: float) -> None:
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise WrongUse(f"architecture of {name}: dropout is {dropout!r}; give a number >= 0 and < 1")


def _check_widths(key: str, widths: Any, at_least: int) -> None:
    good = isinstance(widths, Sequence) and not isinstance(widths, str) and len(widths) >= at_least
    if not good or any(isinstance(width, bool) or not isinstance(width, int) or width < 1 for width in widths):
        raise WrongUse(f"architecture of cnn: {key} is {widths!r}; give a list of whole numbers >= 1 such as [32, 64]")
