"""Bright foci of a phantom head at four sites: plexus, falx, base of the skull, vertex.

A focus is a bleed, or what looks like one in a single slice; nothing here tells them apart. Coordinates, arrays
and weights are those of `phantom`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from ich_tfrecords.synthetic.bleeds import Bleed, Plane, under_skull
from ich_tfrecords.synthetic.tissue import Array, edge, mix

_TAPER = 0.6
# The choroid plexus from the temporal horn through the atrium to the body of the ventricle: z, then x and y in mm.
_PLEXUS = ((30, 42, 46, 56, 62), (28, 24, 22, 10, 8), (15, 28, 30, 12, 6))


@dataclasses.dataclass(frozen=True)
class Focus:
    """A bright focus at `site`, from `low_mm` to `high_mm`; `label` if it bleeds, else that of what it looks like.

    `place` is x and y in mm, or the angle from the front and 0; `half_mm` half the size across and along, at the
    vertex half the reach along the skull and the depth.
    """

    site: str
    label: str
    bleeds: bool
    low_mm: float
    high_mm: float
    place: tuple[float, float]
    half_mm: tuple[float, float]
    density_hu: float

    def draw(self, hu: Array, plane: Plane, thickness_mm: float) -> Array | None:
        """Weight of the focus in a slice of that thickness, after it was mixed into `hu`; None where it has no part."""
        share = np.float32(self.share(plane.z_mm, thickness_mm))
        if share == 0:
            return None
        inside_mm = SITES[self.site].inside_mm(self, plane, self.size(plane.z_mm))
        if SITES[self.site].rim:
            mix(hu, 0.5 * edge(inside_mm + 4, 5) * plane.inside * share, 20.0)
        weight = edge(inside_mm, 2) * plane.inside * share
        mix(hu, weight, np.float32(self.density_hu) + 2 * plane.folds)
        return weight

    def share(self, z_mm: float, thickness_mm: float) -> float:
        """Part of the thickness of the slice at `z_mm` that the focus fills."""
        low, high = z_mm - thickness_mm / 2, z_mm + thickness_mm / 2
        return max(0.0, min(high, self.high_mm) - max(low, self.low_mm)) / thickness_mm

    def size(self, z_mm: float) -> float:
        """Size at `z_mm` relative to the middle: a focus tapers to both ends."""
        middle, half = (self.low_mm + self.high_mm) / 2, (self.high_mm - self.low_mm) / 2
        return math.sqrt(1 - _TAPER * min(abs(z_mm - middle) / half, 1) ** 2)


def _oval_mm(plane: Plane, x: Array, x_mm: float, y_mm: float, across: float, along: float) -> Array:
    """mm inside the rough border of an oval, negative outside."""
    away = np.hypot((x - np.float32(x_mm)) / across, (plane.y - np.float32(y_mm)) / along)
    return (1 - away + np.float32(0.09) * plane.folds) * min(across, along)


def _in_plexus(focus: Focus, plane: Plane, size: float) -> Array:
    """A clot in the ventricle, or calcium, along the choroid plexus of one side."""
    side, offset = focus.place
    x, y = (float(np.interp(plane.z_mm, _PLEXUS[0], row)) for row in _PLEXUS[1:])
    return _oval_mm(plane, plane.shifted, side * (x + offset), y, focus.half_mm[0] * size, focus.half_mm[1] * size)


def _by_falx(focus: Focus, plane: Plane, size: float) -> Array:
    """A band on one side of the falx, thickest in its middle."""
    side, y = focus.place
    thick, along = (half * size for half in focus.half_mm)
    width = 2 * thick * (1 - ((plane.y - np.float32(y)) / along) ** 2) + np.float32(0.5) * plane.folds
    across = plane.shifted * np.float32(side)
    return np.minimum(across + np.float32(0.8), width - across)


def _at_base(focus: Focus, plane: Plane, size: float) -> Array:
    """A clot in the cerebellum, or a streak, behind the petrous bone."""
    return _oval_mm(plane, plane.x, *focus.place, focus.half_mm[0] * size, focus.half_mm[1] * size)


def _at_vertex(focus: Focus, plane: Plane, size: float) -> Array:
    """A lens (epidural) or crescent (subdural) under the skull."""
    reach, depth = (half * size for half in focus.half_mm)
    layer = Bleed(focus.label, (0, 0, plane.z_mm), 1.0, focus.place[0], reach, depth, focus.density_hu)
    return under_skull(layer, plane.angle, plane.outline, plane.z_mm, plane.scale) - plane.inner


_Place = tuple[tuple[float, float], tuple[float, float]]


def _draw_plexus(label: str, rng: np.random.Generator) -> _Place:
    return (float(rng.choice([-1.0, 1.0])), rng.uniform(-2, 2)), (rng.uniform(7, 11), rng.uniform(9, 15))


def _draw_falx(label: str, rng: np.random.Generator) -> _Place:
    y = rng.uniform(-54, -32) if rng.random() < 0.5 else rng.uniform(30, 50)
    return (float(rng.choice([-1.0, 1.0])), y), (rng.uniform(3, 4.5), rng.uniform(18, 28))


def _draw_base(label: str, rng: np.random.Generator) -> _Place:
    side = float(rng.choice([-1.0, 1.0]))
    return (side * rng.uniform(12, 27), rng.uniform(25, 42)), (rng.uniform(11, 17), rng.uniform(8, 13))


def _draw_vertex(label: str, rng: np.random.Generator) -> _Place:
    angle = float(rng.choice([-1.0, 1.0])) * rng.uniform(0.4, 2.7)
    if label == "epidural":
        return (angle, 0), (rng.uniform(26, 34), rng.uniform(13, 18))
    return (angle, 0), (rng.uniform(40, 64), rng.uniform(8, 13))


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a focus can lie: whose labels, between which heights, in tissue of `around_hu`, its place and shape.

    `inside_mm` gives the mm inside its border, negative outside. A `rim` is dark: swelling, or hardened rays.
    """

    labels: tuple[str, ...]
    heights_mm: tuple[float, float]
    around_hu: float
    rim: bool
    draw_place: Callable[[str, np.random.Generator], _Place]
    inside_mm: Callable[[Focus, Plane, float], Array]


SITES = {
    "plexus": Site(("intraventricular",), (30, 58), 15, False, _draw_plexus, _in_plexus),
    "falx": Site(("subdural",), (52, 98), 33, False, _draw_falx, _by_falx),
    "base": Site(("intraparenchymal",), (-18, 20), 36, True, _draw_base, _at_base),
    "vertex": Site(("epidural", "subdural"), (60, 96), 33, False, _draw_vertex, _at_vertex),
}
