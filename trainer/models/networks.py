"""The classifiers: slices in, float32 logits out, the input scaling and perhaps the windows inside the model.

Every model takes `image`, uint8 [n, size, size, windows] or quarters of a HU int16 [n, size, size, 1]; where a slice is
seen with neighbours, the channels of one after the other (`neighbours.stacked`). It gives `logits` float32 [n, labels],
whatever the global dtype policy: windows, scaling, pooling and the last layer are float32, only what lies between
follows the policy. Layers are Keras's own, so that a saved `.keras` file opens with plain `keras.models.load_model`;
all weights have names that do not depend on what the process built before, so that a checkpoint fits.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from trainer.models import backbones, weight_files, window_layer
from trainer.models import windows as model_windows
from trainer.models.applications import ADAPTER, APPLICATIONS, REPEAT, RGB, Application
from trainer.models.pretrained import imagenet_weights
from trainer.models.weight_files import ADAPTER_LAYER, LOGITS, Ends
from trainer.models.windows import Windows
from trainer.shell.problems import WrongUse, hint

SMALLEST_PX = 8


def build(
    name: str,
    image_shape: Sequence[int],
    labels: int,
    weights: str,
    architecture: Mapping[str, Any],
    stem: str = ADAPTER,
    note: Callable[[str], None] = lambda text: None,
    windows: Windows | None = None,
) -> keras.Model:
    """The model `name` for images [n, *image_shape], with `labels` float32 logits in layer "logits".

    `image_shape` is (size_px, size_px, channels). `windows`: how images of HU are windowed; None for uint8, whose
    channels are windows. `weights`: "none" (random, from `keras.utils.set_random_seed`),
    "imagenet" (the application part only) or the path of a file, see `weight_files.load`; `note` is told what was taken
    of it. `architecture`: the keyword arguments of the builder. `stem`: how more than three windows get into an
    application, see `transfer`. Raises `WrongUse` for anything else.
    """
    seen = model_windows.seen(windows, image_shape)
    check(name, seen, labels, architecture, stem)
    path = imagenet_weights(name) if weights == "imagenet" else Path(weights)
    if weights != "none" and not path.is_file():
        raise WrongUse(f"weights {weights}: there is no such file; give 'none', 'imagenet' or the path of a file")

    def made(ends: Ends) -> keras.Model:
        inside = windows if windows is None or ends.learned else dataclasses.replace(windows, learned=False)
        windowed = _windowed((*image_shape[:2], ends.windows), inside, image_shape)
        if name not in APPLICATIONS:
            return cnn(*windowed, ends.labels, **architecture)
        return transfer(name, *windowed, ends.labels, ends.stem, **architecture)

    model = made(Ends(seen[2], stem, labels))
    if weights != "none":
        note(weight_files.load(model, path, made, stem))
    return model


def check(name: str, image_shape: Sequence[int], labels: int, architecture: Mapping[str, Any], stem: str) -> None:
    """Raises `WrongUse` for a model that cannot be, before anything is built or fetched for it."""
    if name not in BUILDERS:
        raise WrongUse(f"model {name!r} is unknown; {hint(name, BUILDERS)}")
    parameters = inspect.signature(BUILDERS[name]).parameters
    known = [key for key, value in parameters.items() if value.kind is value.KEYWORD_ONLY]
    for key in architecture:
        if key not in known:
            raise WrongUse(f"architecture of {name}: unknown key {key!r}; {hint(key, known)}")
    _check_shape(name, image_shape, labels)
    if name in APPLICATIONS:
        _check_application(name, APPLICATIONS[name], image_shape, stem)


def cnn(
    images: Any,
    x: Any,
    labels: int,
    *,
    filters: Sequence[int] = (32, 64),
    dense: Sequence[int] = (128, 64),
    dropout: float = 0.0,
) -> keras.Model:
    """The plain CNN: a block of 3x3 convolution, ReLU and 2x2 max-pooling for each of `filters`, then dense layers.

    `x`, made of `images`, in [0, 1] [n, size, size, windows] -> [n, size // 2**k, .., filters[-1]] -> flat ->
    `dense` with ReLU -> dropout -> float32 [n, labels]. Any size of at least 2**k px for k blocks.
    """
    _check_dropout("cnn", dropout)
    _check_widths("filters", filters, at_least=1)
    _check_widths("dense", dense, at_least=0)
    size_px = x.shape[1]
    if size_px >> len(filters) == 0:
        most = size_px.bit_length() - 1
        raise WrongUse(
            f"filters {list(filters)}: {len(filters)} poolings leave nothing of {size_px} px; give <= {most}"
        )
    for number, width in enumerate(filters, 1):
        x = keras.layers.Conv2D(width, 3, padding="same", activation="relu", name=f"conv_{number}")(x)
        x = keras.layers.MaxPooling2D(2, name=f"pool_{number}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    for number, width in enumerate(dense, 1):
        x = keras.layers.Dense(width, activation="relu", name=f"dense_{number}")(x)
    return keras.Model(images, _logits(_dropped(x, dropout), labels), name="cnn")


def transfer(name: str, images: Any, x: Any, labels: int, stem: str, *, dropout: float = 0.0) -> keras.Model:
    """A network of keras.applications with a head of its own.

    `x`, made of `images`, in [0, 1] [n, size, size, windows] -> scaled as the network takes it -> features
    [n, h, w, c], h about size / 32 -> mean over h and w -> dropout -> float32 [n, labels]. Fewer than three windows,
    and with stem `ADAPTER` more, pass a 1x1 convolution to three channels, see `rgb_kernel`. With `REPEAT` the first
    convolution takes them all.
    """
    _check_dropout(name, dropout)
    x = _scaled(x, APPLICATIONS[name], stem)
    x = backbones.make(name, tuple(x.shape[1:]))(x)
    x = keras.layers.GlobalAveragePooling2D(name="mean", dtype="float32")(x)
    return keras.Model(images, _logits(_dropped(x, dropout), labels), name=f"{name}_classifier")


BUILDERS: dict[str, Callable[..., keras.Model]] = {"cnn": cnn, **dict.fromkeys(APPLICATIONS, transfer)}


def rgb_kernel(windows: int) -> np.ndarray:
    """Where the 1x1 convolution "windows_to_rgb" starts: float32 [1, 1, windows, 3], each colour's weights sum to 1.

    Colour c is the mean of windows c, c + 3, c + 6, ...; with fewer than three windows they are cycled through. So
    every window is used, grey stays grey, and values stay in the range that pretrained weights were made for.
    """
    window, colour = np.arange(windows)[:, None], np.arange(RGB)[None, :]
    taken = (window % RGB == colour) if windows >= RGB else (colour % windows == window)
    return (taken / taken.sum(axis=0)).astype(np.float32)[None, None]


def _scaled(x: Any, application: Application, stem: str) -> Any:
    """Values in [0, 1] [n, size, size, windows] -> what the application takes, float32 [n, h, w, channels]."""
    if x.shape[1] < application.smallest_px:
        # Before the adapter, so that no gradient has to pass the resize.
        side = application.smallest_px
        x = keras.layers.Resizing(side, side, interpolation="bilinear", name="resize", dtype="float32")(x)
    if x.shape[-1] != RGB and stem != REPEAT:
        start = keras.initializers.Constant(rgb_kernel(x.shape[-1]).tolist())
        adapter = {"use_bias": False, "kernel_initializer": start, "dtype": "float32"}
        x = keras.layers.Conv2D(RGB, 1, name=ADAPTER_LAYER, **adapter)(x)
    of_channel = [colour % RGB for colour in range(x.shape[-1])]
    mean, std = application.scaling.mean, application.scaling.std
    scale = [1 / std[colour] for colour in of_channel]
    offset = [-mean[colour] / std[colour] for colour in of_channel]
    return keras.layers.Rescaling(scale, offset, name="imagenet_scale", dtype="float32")(x)


def _windowed(seen: Sequence[int], windows: Windows | None, image_shape: Sequence[int]) -> tuple[Any, Any]:
    """The input of a model, and what it shows in [0, 1], float32 [n, *seen]."""
    if windows is not None and tuple(seen) == model_windows.seen(windows, image_shape):
        images = keras.Input(tuple(image_shape), dtype="int16", name="image")
        return images, window_layer.layers(images, windows)
    images = keras.Input(tuple(seen), dtype="uint8", name="image")
    return images, keras.layers.Rescaling(1 / 255, name="unit_scale", dtype="float32")(images)


def _dropped(x: Any, dropout: float) -> Any:
    return keras.layers.Dropout(dropout, name="dropout", dtype="float32")(x) if dropout > 0 else x


def _logits(x: Any, labels: int) -> Any:
    return keras.layers.Dense(labels, name=LOGITS, dtype="float32")(x)


def _check_shape(name: str, image_shape: Sequence[int], labels: int) -> None:
    square = len(image_shape) == 3 and image_shape[0] == image_shape[1] >= SMALLEST_PX and image_shape[2] >= 1
    if not square or labels < 1:
        wanted = f"(size, size, channels) with size >= {SMALLEST_PX}, channels >= 1 and labels >= 1"
        raise WrongUse(f"model {name}: images {tuple(image_shape)} with {labels} labels; it takes {wanted}")


def _check_application(name: str, application: Application, image_shape: Sequence[int], stem: str) -> None:
    size, windows = image_shape[0], image_shape[2]
    if size < application.smallest_px and not application.enlarges:
        raise WrongUse(
            f"model {name} takes images of at least {application.smallest_px} px, and these have {size}; convert again "
            "with a larger size_px, or take another model"
        )
    if stem == REPEAT and windows < RGB:
        raise WrongUse(f"stem {REPEAT} needs at least {RGB} channels, and there are {windows}; set stem={ADAPTER}")


def _check_dropout(name: str, dropout: float) -> None:
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise WrongUse(f"architecture of {name}: dropout is {dropout!r}; give a number >= 0 and < 1")


def _check_widths(key: str, widths: Any, at_least: int) -> None:
    good = isinstance(widths, Sequence) and not isinstance(widths, str) and len(widths) >= at_least
    if not good or any(isinstance(width, bool) or not isinstance(width, int) or width < 1 for width in widths):
        raise WrongUse(f"architecture of cnn: {key} is {widths!r}; give a list of whole numbers >= 1 such as [32, 64]")
