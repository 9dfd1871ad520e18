"""The backbone of a model, one of keras.applications without its top: how it is made, found, and widened."""

from __future__ import annotations

import functools
import inspect
import re
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from trainer.models.applications import APPLICATIONS, RGB

_UNNAMED = re.compile(r"(conv2d|batch_normalization|layer_normalization)(_\d+)?")


def make(name: str, shape: tuple[int, ...]) -> keras.Model:
    """The application `name` for scaled images float32 [n, *shape], its weights under names of their own.

    Keras numbers what has no name through the process: `conv2d_7`, and the weights of ConvNeXt's LayerScale.
    """
    function = getattr(keras.applications, APPLICATIONS[name].function)
    # a network that scales by itself does it for three channels, and otherwise for more
    own_scaling = {"include_preprocessing"} & inspect.signature(function).parameters.keys()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This model usually expects 1 or 3 input channels")
        options = dict.fromkeys(own_scaling, False)
        made = function(include_top=False, weights=None, input_shape=shape, **options)
    made.name = name  # not before: EfficientNetV2 looks up its blocks by the name that Keras gives it
    unnamed = [layer.name for layer in made.layers if _UNNAMED.fullmatch(layer.name)]
    if not unnamed:
        return made
    word = "shortcut" if name == "xception" else "unnamed"  # as checkpoints of xception have them
    names = {old: f"{word}_{number}" for number, old in enumerate(unnamed, 1)}
    return keras.models.clone_model(made, clone_function=functools.partial(_copy, names))


def _copy(names: Mapping[str, str], layer: Any) -> Any:
    copy = type(layer).from_config({**layer.get_config(), "name": names.get(layer.name, layer.name)})
    if type(layer).__name__ == "LayerScale":  # the one layer of all that leaves its weight without a name
        copy.add_weight = functools.partial(copy.add_weight, name="gamma")
    return copy


def backbone(model: keras.Model) -> keras.Model | None:
    """The application part of a model, scaled float32 images -> features [n, h, w, c]; None where there is none.

    `backbone(model).trainable = False` freezes it, and its batch norms then use their stored means also in training.
    """
    return next((layer for layer in model.layers if isinstance(layer, keras.Model)), None)


def first_kernel(part: keras.Model) -> Any:
    """The kernel of the first convolution of an application, a variable [h, w, channels, filters]."""
    return next(weight for weight in part.weights if len(weight.shape) == 4)


def repeated(kernel: npt.NDArray[np.float32], channels: int) -> npt.NDArray[np.float32]:
    """`kernel` [h, w, n, filters], n >= 3, for another number of channels of at least 3.

    Channel k stands for colour k modulo 3. What a colour's channels weigh together goes to its new channels in equal
    parts: from 3 to 3m channels the kernels are repeated and scaled by 1 / m. So an image whose channels are all equal
    is answered as before.
    """
    of_colour = np.stack([kernel[:, :, colour::RGB].sum(2) for colour in range(RGB)], 2)
    colours = np.arange(channels) % RGB
    return (of_colour[:, :, colours] / np.bincount(colours)[colours][:, None]).astype(np.float32)
