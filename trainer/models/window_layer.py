"""Windows as the first layers of a model of HU: fixed, or learned from where the data set's windows begin.

One window is a line through the HU and a bend at both ends (Karki et al. 2020; Lee, Kim and Do: Practical Window
Setting Optimization for Medical Image Deep Learning, arXiv 1812.00572): `clipped` is 0 below the window, 1 above it
and straight between; `sigmoid` has the slope of the clipped one at the level, and an end nowhere. The mean over a pixel
comes first and the window after it, whereas a data set of windows clips at full resolution; the two differ where a
pixel holds HU on both sides of an end of the window, as at the edge of bone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from ich_tfrecords.spec import STEPS_A_HU
from trainer.models.windows import CLIPPED, SIGMOID, Shown, Windows

LAYER, ENDS, TOGETHER = "windows", "window_ends", "slices_together"
# a learned window takes HU in units of 40 and gives its eighth: an optimizer's step of 0.001 then moves the ends of a
# window of 80 HU by half a HU, and its width by a hundredth
UNIT_HU, GAIN = 40.0, 8.0
_SLOPE = {CLIPPED: 1.0, SIGMOID: 4.0}  # sigmoid(4 x) has slope 1 at 0
_MIDDLE = {CLIPPED: 0.5, SIGMOID: 0.0}  # what the line says at the level


def layers(hu: Any, windows: Windows) -> Any:
    """float32 [n, size, size, c * w] in [0, 1] of quarters of a HU int16 [n, size, size, c]: the w windows of each.

    Layers of Keras alone. Learned ones are a 1x1 convolution called `LAYER`.
    """
    rows, columns, slices = hu.shape[1:]
    x = hu if slices == 1 else keras.layers.Reshape((rows, columns * slices, 1), name="slices_apart")(hu)
    x = _bent(_learned(x, windows) if windows.learned else _fixed(x, windows), windows.form)
    if slices == 1:
        return x
    return keras.layers.Reshape((rows, columns, slices * len(windows.shown)), name=TOGETHER)(x)


def _fixed(hu: Any, windows: Windows) -> Any:
    slope, offset = _lines(windows, 1 / STEPS_A_HU)
    repeated = [hu] * len(slope)
    wide = keras.layers.Concatenate(name="each_window", dtype="int16")(repeated) if len(slope) > 1 else hu
    return keras.layers.Rescaling(slope, offset, name=LAYER, dtype="float32")(wide)


def _learned(hu: Any, windows: Windows) -> Any:
    slope, offset = _lines(windows, UNIT_HU)
    x = keras.layers.Rescaling(1 / (STEPS_A_HU * UNIT_HU), name="hu_unit", dtype="float32")(hu)
    start = {
        "kernel_initializer": keras.initializers.Constant([[[each / GAIN for each in slope]]]),
        "bias_initializer": keras.initializers.Constant([each / GAIN for each in offset]),
    }
    x = keras.layers.Conv2D(len(slope), 1, name=LAYER, dtype="float32", **start)(x)
    return keras.layers.Rescaling(GAIN, name="window_gain", dtype="float32")(x)


def _bent(x: Any, form: str) -> Any:
    if form == SIGMOID:
        return keras.layers.Activation("sigmoid", name=ENDS, dtype="float32")(x)
    return keras.layers.ReLU(max_value=1.0, name=ENDS, dtype="float32")(x)


def _lines(windows: Windows, unit_hu: float) -> tuple[list[float], list[float]]:
    """Slope and offset of each window over HU in steps of `unit_hu`."""
    slope = [_SLOPE[windows.form] * unit_hu / one.width_hu for one in windows.shown]
    offset = [
        _MIDDLE[windows.form] - one.level_hu * each / unit_hu for one, each in zip(windows.shown, slope, strict=True)
    ]
    return slope, offset


def found(model: keras.Model, windows: Windows) -> tuple[Shown, ...]:
    """The windows that a model has, learned ones read off its weights. A width below 0 shows high HU dark."""
    if not windows.learned:
        return windows.shown
    kernel, bias = (np.asarray(weight, np.float64).ravel() for weight in model.get_layer(LAYER).get_weights())
    slope = GAIN * np.where(kernel == 0, np.finfo(np.float32).tiny, kernel) / UNIT_HU
    level, width = (_MIDDLE[windows.form] - GAIN * bias) / slope, _SLOPE[windows.form] / slope
    return tuple(
        Shown(one.name, float(at), float(wide)) for one, at, wide in zip(windows.shown, level, width, strict=True)
    )


def facts(model: keras.Model, windows: Windows) -> dict[str, Any]:
    """What is to be known of a model's windows, as plain values."""
    now = [dataclasses.asdict(one) for one in found(model, windows)]
    return {"form": windows.form, "learned": windows.learned, "begun": [str(one) for one in windows.shown], "now": now}
