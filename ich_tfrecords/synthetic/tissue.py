"""How much of a pixel a tissue fills: soft borders, tapering rods, and their mixing into HU.

Arrays are float32, a pixel each; weights are 0 to 1.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Rods = tuple[tuple[tuple[float, float, float, float], tuple[float, float, float, float]], ...]


def edge(inside_mm: Array, soft_mm: float) -> Array:
    """Weight of a tissue from the mm inside its border: 0.5 on it, 0 and 1 half of `soft_mm` away."""
    weight = inside_mm * np.float32(1 / soft_mm)
    weight += np.float32(0.5)
    return np.clip(weight, 0, 1, out=weight)


def mix(hu: Array, weight: Array, tissue_hu: Array | float) -> Array:
    """`hu` after `weight` of it became `tissue_hu`, changed in place."""
    hu += weight * (tissue_hu - hu)
    return hu


def mean(weights: Iterable[Array], parts: int) -> Array:
    """Mean weight of a slice of so many parts, of which all but `weights` are empty: partial volume."""
    return functools.reduce(np.add, weights) / np.float32(parts)


def rods(skeleton: Rods, x: Array, y: Array, z_mm: float, scale: float, soft_mm: float = 1.8) -> Array:
    """Weight of tapering rods and of their mirror images; `scale` multiplies their radii."""
    side = np.abs(x)
    weight = np.zeros_like(x)
    for (ax, ay, az, a_mm), (bx, by, bz, b_mm) in skeleton:
        reach = scale * max(a_mm, b_mm) + soft_mm
        if not min(az, bz) - reach < z_mm < max(az, bz) + reach:
            continue
        dx, dy, dz = bx - ax, by - ay, bz - az
        px, py, pz = side - ax, y - ay, z_mm - az
        along = np.clip((px * dx + py * dy + pz * dz) * (1 / (dx * dx + dy * dy + dz * dz)), 0, 1)
        away = np.sqrt((px - along * dx) ** 2 + (py - along * dy) ** 2 + (pz - along * dz) ** 2)
        np.maximum(weight, edge(scale * (a_mm + (b_mm - a_mm) * along) - away, soft_mm), out=weight)
    return weight
