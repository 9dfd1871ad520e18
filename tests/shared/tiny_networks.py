"""Networks of keras.applications with few and narrow blocks, of the very layers of the whole ones.

Each stands in the place of a whole one: `monkeypatch.setattr(keras.applications, name, function)`.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
from keras.src.applications import convnext, efficientnet_v2

Shape = tuple[int, ...]


def tiny_convnext(
    include_top: bool, weights: None, input_shape: Shape, include_preprocessing: bool = True
) -> keras.Model:
    return convnext.ConvNeXt(
        [1, 1, 1, 1], [8, 8, 16, 16],
        include_top=include_top, weights=weights, input_shape=input_shape, include_preprocessing=include_preprocessing,
        name="convnext_tiny", weights_name="convnext_tiny",
    )  # fmt: skip


def tiny_efficientnet(
    include_top: bool, weights: None, input_shape: Shape, include_preprocessing: bool = True
) -> keras.Model:
    """Both kinds of blocks twice, so that there are paths that dropout cuts."""
    fused, squeezed = (
        efficientnet_v2.DEFAULT_BLOCKS_ARGS["efficientnetv2-b0"][1],
        dict(efficientnet_v2.DEFAULT_BLOCKS_ARGS["efficientnetv2-b0"][3]),
    )
    blocks = [{**fused, "num_repeat": 2, "input_filters": 8, "output_filters": 8}]
    blocks += [{**squeezed, "num_repeat": 2, "input_filters": 8, "output_filters": 16}]
    return efficientnet_v2.EfficientNetV2(
        1.0, 1.0, 224,
        drop_connect_rate=0.5, blocks_args=blocks, name="efficientnetv2-b0",
        include_top=include_top, weights=weights, input_shape=input_shape, include_preprocessing=include_preprocessing,
    )  # fmt: skip


TINY: dict[str, Callable[..., keras.Model]] = {"ConvNeXtTiny": tiny_convnext, "EfficientNetV2B0": tiny_efficientnet}
