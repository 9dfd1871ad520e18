"""The context network: vectors of the slices of a series in, logits of each slice and of the series out.

It takes `vectors` float16 [n, slices, dim], `place` float32 [n, slices, 3] (`series.place`) and `mask` bool
[n, slices], False behind the last slice of a shorter series, and gives logits float32 [n, slices, L] and [n, L]. What
lies behind the mask changes nothing. Layers are Keras's own, as in `networks`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import keras

from trainer.shell.problems import WrongUse, hint

GAP_MM = 10.0  # a distance of this is 1 for the network
WAVES = 6  # of the height in the series, the shortest a sixteenth of it: what a transformer tells neighbours by
HEADS = 4
SLICE_LOGITS, SERIES_LOGITS, ATTENTION = "logits", "series_logits", "attention_weights"


def build(dim: int, labels: int, architecture: Mapping[str, Any], vectors: str = "float16") -> keras.Model:
    """The network for vectors of `dim` numbers. `architecture`: the keyword arguments of the function `kind` names.

    `vectors`: their dtype, float32 where a gradient has to pass.

    Raises `WrongUse` for anything else.
    """
    settings = dict(architecture)
    kind = settings.pop("kind", "gru")
    if not isinstance(kind, str) or kind not in KINDS:
        raise WrongUse(f"architecture of series: kind is {kind!r}; {hint(str(kind), KINDS)}")
    known = [name for name, one in inspect.signature(KINDS[kind]).parameters.items() if one.kind is one.KEYWORD_ONLY]
    for key, value in settings.items():
        if key not in known:
            raise WrongUse(f"architecture of series: unknown key {key!r}; {hint(key, ['kind', *known])}")
        settings[key] = _checked(key, value)
    given = keras.Input((None, dim), dtype=vectors, name="vectors")
    place = keras.Input((None, 3), dtype="float32", name="place")
    mask = keras.Input((None,), dtype="bool", name="mask")
    # a vector's scale is its network's own; given float16, the layer would round what it gives to float16 too, and what
    # a series is beside would move the last bit
    exact = keras.ops.cast(given, "float32")
    normal = keras.layers.LayerNormalization(name="normal", dtype="float32")(exact)
    near = keras.layers.Rescaling([1 / GAP_MM, 1 / GAP_MM, 1.0], name="near", dtype="float32")(place)
    seen = KINDS[kind](normal, near, mask, **settings)
    outputs = [keras.layers.Dense(labels, name=SLICE_LOGITS, dtype="float32")(seen), _series_logits(seen, mask, labels)]
    return keras.Model({"vectors": given, "place": place, "mask": mask}, outputs, name="series")


def gru(
    normal: Any, near: Any, mask: Any, *, width: int = 384, units: int = 256, layers: int = 2, dropout: float = 0.0
) -> Any:
    """Bidirectional GRUs one over the other (Cho et al. 2014), beside what they were given.

    -> [n, slices, width + 2 * units].
    """
    x = first = _projected([normal, near], width)
    # of a series that is all padding one slice is read: cuDNN stops at a sequence without any
    begun = keras.ops.concatenate([keras.ops.ones_like(mask[:, :1]), mask[:, 1:]], 1)
    for number in range(1, layers + 1):
        x = _dropped(x, dropout, f"dropout_{number}")
        one = keras.layers.GRU(units, return_sequences=True, name=f"gru_{number}")
        x = keras.layers.Bidirectional(one, name=f"both_ways_{number}")(x, mask=begun)
    return keras.ops.concatenate([first, x], -1)


def transformer(
    normal: Any, near: Any, mask: Any, *, width: int = 256, units: int = 512, layers: int = 2, dropout: float = 0.0
) -> Any:
    """Self-attention over the slices (Vaswani et al. 2017), norms first, the height in the series as waves.

    `units`: of the dense layer behind each attention. -> [n, slices, width].
    """
    angle = keras.ops.concatenate([near[..., 2:] * (math.pi * 2**power) for power in range(WAVES)], -1)
    x = _projected([normal, near, keras.ops.sin(angle), keras.ops.cos(angle)], width)
    pairs = keras.ops.expand_dims(mask, 1)  # whoever asks, what lies behind the mask does not answer
    for number in range(1, layers + 1):
        y = keras.layers.LayerNormalization(name=f"normal_{number}a")(x)
        heads = keras.layers.MultiHeadAttention(HEADS, max(1, width // HEADS), name=f"attend_{number}")
        y = _dropped(heads(y, y, attention_mask=pairs), dropout, f"dropout_{number}a")
        x = keras.layers.Add(name=f"add_{number}a")([x, y])
        y = keras.layers.LayerNormalization(name=f"normal_{number}b")(x)
        y = keras.layers.Dense(units, activation="gelu", name=f"wide_{number}")(y)
        y = _dropped(keras.layers.Dense(width, name=f"narrow_{number}")(y), dropout, f"dropout_{number}b")
        x = keras.layers.Add(name=f"add_{number}b")([x, y])
    return keras.layers.LayerNormalization(name="seen")(x)


KINDS: dict[str, Callable[..., Any]] = {"gru": gru, "transformer": transformer}


def _projected(parts: list[Any], width: int) -> Any:
    x = keras.layers.Concatenate(name="told", dtype="float32")(parts)
    return keras.layers.Dense(width, activation="gelu", name="project")(x)


def _series_logits(seen: Any, mask: Any, labels: int) -> Any:
    """[n, L]: for each label the mean of a number a slice, weighed by that label's own attention over the slices."""
    scores = keras.layers.Dense(labels, name="attention", dtype="float32")(seen)
    each = keras.ops.repeat(keras.ops.expand_dims(mask, -1), labels, -1)
    weights = keras.layers.Softmax(axis=1, name=ATTENTION, dtype="float32")(scores, mask=each)
    values = keras.layers.Dense(labels, name="series_values", dtype="float32")(seen)
    return keras.ops.sum(weights * values, axis=1)


def _dropped(x: Any, dropout: float, name: str) -> Any:
    return keras.layers.Dropout(dropout, name=name)(x) if dropout > 0 else x


def _checked(key: str, value: Any) -> float | int:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if key == "dropout":
        if not (number and 0 <= value < 1):
            raise WrongUse(f"architecture of series: dropout is {value!r}; give a number >= 0 and < 1")
        return float(value)
    if not (number and float(value).is_integer() and value >= 1):
        raise WrongUse(f"architecture of series: {key} is {value!r}; give a whole number >= 1")
    return int(value)
