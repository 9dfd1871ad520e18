"""The settings below `series:` of a series model's config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from trainer.data.series_feed import Blur
from trainer.shell.problems import WrongUse, hint


@dataclasses.dataclass(frozen=True)
class SeriesSettings:
    """What `configs/series.yaml` explains. Raises `WrongUse` for values out of range."""

    head_weight: float
    mil_weight: float
    noise: float
    vector_dropout: float
    slice_dropout: float
    slice_weight: float
    recompute: bool

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value <= most:
                raise WrongUse(f"series.{name} is {value!r}; use 0 to {most:g}")
        if not isinstance(self.recompute, bool):
            raise WrongUse(f"series.recompute is {self.recompute!r}; use true or false")

    @property
    def blur(self) -> Blur:
        """How vectors are changed while training."""
        return Blur(self.noise, self.vector_dropout, self.slice_dropout)


_MOST = {
    "head_weight": 100.0,
    "mil_weight": 100.0,
    "noise": 10.0,
    "vector_dropout": 0.9,
    "slice_dropout": 0.9,
    "slice_weight": 100.0,
}


def read(values: Mapping[str, Any]) -> SeriesSettings:
    """The settings of plain values. Raises `WrongUse` for unknown or missing keys."""
    known = [field.name for field in dataclasses.fields(SeriesSettings)]
    for key in values:
        if key not in known:
            raise WrongUse(f"series: unknown setting {key!r}; {hint(key, known)}")
    if missing := [key for key in known if key not in values]:
        raise WrongUse(f"series: missing setting {', '.join(missing)}")
    return SeriesSettings(**values)
