"""The rules by which a series of a study is chosen: numbers and words of `configs/series_rules.yaml`."""

from __future__ import annotations

import dataclasses
import functools
import re

from ich_tfrecords import spec

NAME = "series_rules"
SOFT, SHARP, NEUTRAL = "soft", "sharp", ""


@dataclasses.dataclass(frozen=True)
class SeriesRules:
    """At least how many slices, the thickness to prefer (least and greatest, mm), and patterns of kernels in capitals.

    A kernel is soft or sharp where one of the patterns fits the whole of it; another one is neutral.
    """

    least_slices: int
    thickness_mm: tuple[int, ...]
    soft_kernels: tuple[str, ...]
    sharp_kernels: tuple[str, ...]

    def kernel(self, kernel: str) -> str:
        """`SOFT`, `SHARP`, or `NEUTRAL` for one that is unknown or not told."""
        if any(re.fullmatch(pattern, kernel) for pattern in self.sharp_kernels):
            return SHARP
        return SOFT if any(re.fullmatch(pattern, kernel) for pattern in self.soft_kernels) else NEUTRAL


@functools.cache
def packaged() -> SeriesRules:
    """The rules that come with the package."""
    return spec.packaged(SeriesRules, NAME)
