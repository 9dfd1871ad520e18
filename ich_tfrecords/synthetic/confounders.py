"""What fools a reader of one slice, and not one who scrolls: `synthetic --context`.

A focus is a bright spot at one of four sites: plexus, falx, base of the skull, vertex. As a bleed it goes
through three slices or more; as a calcification, a streak or an edge of bone it is denser than blood but
thinner than a slice, so that one slice, at most two, show it at blood's HU. Place, size, shape and HU in a
slice are drawn alike for both. Coordinates, arrays and weights are those of `phantom`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from ich_tfrecords.synthetic.bleeds import Bleed, Plane, under_skull
from ich_tfrecords.synthetic.tissue import Array, edge, mix

FEWEST_SLICES = 16  # of a study: with fewer, a slice is thicker than what a bleed needs to go through three
BLEEDING, CONFOUNDING = 0.7, 0.5  # chance that a bleed becomes a focus; chance of a confounder a free site
VISIBLE_SHARE = 1 / 3  # part of the thickness of a slice, from which blood in it is labelled
_PARTS = 4  # heights within the thickness of a slice at which a bleed is drawn
_REACH_SLICES = (3.4, 5.0)  # of a bleed, in thicknesses of a slice
_THIN_SLICES = (0.6, 0.9)  # of a confounder
_OFF_SLICES = 0.25  # of a confounder, at most, from the middle of its slice
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

    def share(self, z_mm: float, thickness_mm: float) -> float:
        """Part of the thickness of the slice at `z_mm` that the focus fills."""
        low, high = z_mm - thickness_mm / 2, z_mm + thickness_mm / 2
        return max(0.0, min(high, self.high_mm) - max(low, self.low_mm)) / thickness_mm

    def size(self, z_mm: float) -> float:
        """Size at `z_mm` relative to the middle: a focus tapers to both ends."""
        middle, half = (self.low_mm + self.high_mm) / 2, (self.high_mm - self.low_mm) / 2
        return math.sqrt(1 - _TAPER * min(abs(z_mm - middle) / half, 1) ** 2)


@dataclasses.dataclass(frozen=True)
class Context:
    """What is hard about a head: slices so thick, foci, bone that is so much thicker at the vertex, streaks."""

    thickness_mm: float
    foci: tuple[Focus, ...]
    vertex_bone: float
    streak_rad: float

    def heights(self, z_mm: float) -> tuple[float, ...]:
        """Heights, evenly through the thickness of the slice at `z_mm`."""
        return tuple(z_mm + self.thickness_mm * ((part + 0.5) / _PARTS - 0.5) for part in range(_PARTS))

    def draw(self, hu: Array, plane: Plane) -> list[tuple[str, Array]]:
        """Draw foci and streaks into `hu`; the label and weight of each focus that bleeds."""
        drawn: list[tuple[str, Array]] = []
        for focus in self.foci:
            share = np.float32(focus.share(plane.z_mm, self.thickness_mm))
            if share > 0:
                weight, rim = _SITES[focus.site].shape(focus, plane, focus.size(plane.z_mm))
                mix(hu, rim * plane.inside * share, 20.0)
                weight = weight * plane.inside * share
                mix(hu, weight, np.float32(focus.density_hu) + 2 * plane.folds)
                drawn += [(focus.label, weight)] * focus.bleeds
        _draw_streaks(hu, plane, self.streak_rad)
        return drawn


def draw_context(
    bleeds: tuple[Bleed, ...], heights_mm: Array, step_mm: float, rng: np.random.Generator
) -> tuple[tuple[Bleed, ...], Context]:
    """The bleeds that stay, long enough for three slices, and what is hard about the head: some bleeds as foci."""
    foci: dict[str, Focus] = {}
    kept: list[Bleed] = []
    for bleed in bleeds:
        free = [name for name, site in _SITES.items() if bleed.label in site.labels and name not in foci]
        if free and rng.random() < BLEEDING:
            name = str(rng.choice(free))
            foci[name] = _bleeding(name, bleed.label, bleed.density_hu, step_mm, rng)
        else:
            kept.append(dataclasses.replace(bleed, half_height_mm=max(bleed.half_height_mm, 2 * step_mm)))
    for name in _SITES:
        if name not in foci and rng.random() < CONFOUNDING:
            foci[name] = _confounding(name, heights_mm, step_mm, rng)
    return tuple(kept), Context(step_mm, tuple(foci.values()), rng.uniform(0.1, 0.7), rng.uniform(0, 2 * math.pi))


def _bleeding(name: str, label: str, density_hu: float, step_mm: float, rng: np.random.Generator) -> Focus:
    """A bleed at a site: at least three slices hold a good part of it."""
    low, high = _SITES[name].heights_mm
    least, most = _REACH_SLICES
    half = min(step_mm * rng.uniform(least, most), max(high - low, step_mm * least)) / 2
    middle = rng.uniform(min(low + half, (low + high) / 2), max(high - half, (low + high) / 2))
    place, half_mm = _SITES[name].draw(label, rng)
    return Focus(name, label, True, middle - half, middle + half, place, half_mm, density_hu)


def _confounding(name: str, heights_mm: Array, step_mm: float, rng: np.random.Generator) -> Focus:
    """What is no blood, and looks like one slice of a bleed: thinner than a slice, and denser by as much."""
    label = str(rng.choice(_SITES[name].labels))
    bleed = _bleeding(name, label, rng.uniform(60, 74), step_mm, rng)
    z_mm = float(heights_mm[np.argmin(np.abs(heights_mm - rng.uniform(bleed.low_mm, bleed.high_mm)))])
    thin = rng.uniform(*_THIN_SLICES)
    middle, half = z_mm + step_mm * rng.uniform(-_OFF_SLICES, _OFF_SLICES), step_mm * thin / 2
    denser = max(bleed.share(z_mm, step_mm), VISIBLE_SHARE) / thin
    around_hu = _SITES[name].around_hu
    return dataclasses.replace(
        bleed,
        bleeds=False,
        low_mm=middle - half,
        high_mm=middle + half,
        half_mm=(bleed.half_mm[0] * bleed.size(z_mm), bleed.half_mm[1] * bleed.size(z_mm)),
        density_hu=around_hu + (bleed.density_hu - around_hu) * denser,
    )


def _draw_streaks(hu: Array, plane: Plane, streak_rad: float) -> None:
    """Beam hardening: a dark bar between the petrous bones, and streaks that fan out from both."""
    strength = np.float32(math.exp(-(((plane.z_mm - 3) / 11) ** 2)))
    if strength < 0.02:
        return
    field = -11 * np.exp(-(((plane.y - 5) / 8) ** 2)) * edge(34 - np.abs(plane.x), 20)
    for side in (-1, 1):
        across, down = plane.x - np.float32(34 * side), plane.y - np.float32(10)
        turn = np.arctan2(down, across * side)
        fan = np.sin(9 * turn + np.float32(streak_rad + 0.4 * plane.z_mm)) + np.sin(17 * turn - np.float32(streak_rad))
        field += 4.5 * fan * np.exp(np.hypot(across, down) * np.float32(-1 / 35))
    hu += strength * plane.inside * field


def _oval_mm(plane: Plane, x: Array, x_mm: float, y_mm: float, across: float, along: float) -> Array:
    """mm inside the rough border of an oval, negative outside."""
    away = np.hypot((x - np.float32(x_mm)) / across, (plane.y - np.float32(y_mm)) / along)
    return (1 - away + np.float32(0.09) * plane.folds) * min(across, along)


def _in_plexus(focus: Focus, plane: Plane, size: float) -> tuple[Array, Array]:
    """Weight of a clot or of calcium along the choroid plexus; it has no dark rim."""
    side, offset = focus.place
    x, y = (float(np.interp(plane.z_mm, _PLEXUS[0], row)) for row in _PLEXUS[1:])
    across, along = (half * size for half in focus.half_mm)
    return edge(_oval_mm(plane, plane.shifted, side * (x + offset), y, across, along), 2), np.zeros_like(plane.x)


def _by_falx(focus: Focus, plane: Plane, size: float) -> tuple[Array, Array]:
    """Weight of a band on one side of the falx, thickest in its middle; it has no dark rim."""
    side, y = focus.place
    thick, along = (half * size for half in focus.half_mm)
    width = 2 * thick * (1 - ((plane.y - np.float32(y)) / along) ** 2) + np.float32(0.5) * plane.folds
    across = plane.shifted * np.float32(side)
    return edge(np.minimum(across + np.float32(0.8), width - across), 1.5), np.zeros_like(plane.x)


def _at_base(focus: Focus, plane: Plane, size: float) -> tuple[Array, Array]:
    """Weight of a spot beside or behind the petrous bone, and of the dark rim of swelling or hardening."""
    across, along = (half * size for half in focus.half_mm)
    inside_mm = _oval_mm(plane, plane.x, *focus.place, across, along)
    return edge(inside_mm, 2), 0.5 * edge(inside_mm + 4, 5)


def _at_vertex(focus: Focus, plane: Plane, size: float) -> tuple[Array, Array]:
    """Weight of a lens (epidural) or crescent (subdural) under the skull; it has no dark rim."""
    reach, depth = (half * size for half in focus.half_mm)
    layer = Bleed(focus.label, (0, 0, plane.z_mm), 1.0, focus.place[0], reach, depth, focus.density_hu)
    thickness = under_skull(layer, plane.angle, plane.outline, plane.z_mm, plane.scale)
    return edge(thickness - plane.inner, 1.5), np.zeros_like(plane.x)


_Place = tuple[tuple[float, float], tuple[float, float]]


def _draw_plexus(label: str, rng: np.random.Generator) -> _Place:
    return (float(rng.choice([-1.0, 1.0])), rng.uniform(-2, 2)), (rng.uniform(5, 8), rng.uniform(6, 11))


def _draw_falx(label: str, rng: np.random.Generator) -> _Place:
    y = rng.normal(-42, 7) if rng.random() < 0.5 else rng.normal(40, 7)
    return (float(rng.choice([-1.0, 1.0])), y), (rng.uniform(1.8, 3.2), rng.uniform(13, 22))


def _draw_base(label: str, rng: np.random.Generator) -> _Place:
    side = float(rng.choice([-1.0, 1.0]))
    return (side * rng.uniform(12, 27), rng.uniform(25, 42)), (rng.uniform(8, 14), rng.uniform(6, 10))


def _draw_vertex(label: str, rng: np.random.Generator) -> _Place:
    angle = float(rng.choice([-1.0, 1.0])) * rng.uniform(0.4, 2.7)
    if label == "epidural":
        return (angle, 0), (rng.uniform(20, 28), rng.uniform(8, 13))
    return (angle, 0), (rng.uniform(30, 48), rng.uniform(5, 9))


@dataclasses.dataclass(frozen=True)
class _Site:
    """Where a focus can lie: between these heights, in tissue of `around_hu`; whose labels, place and shape."""

    labels: tuple[str, ...]
    heights_mm: tuple[float, float]
    around_hu: float
    draw: Callable[[str, np.random.Generator], _Place]
    shape: Callable[[Focus, Plane, float], tuple[Array, Array]]


_SITES = {
    "plexus": _Site(("intraventricular",), (30, 58), 8, _draw_plexus, _in_plexus),
    "falx": _Site(("subdural",), (52, 98), 33, _draw_falx, _by_falx),
    "base": _Site(("intraparenchymal",), (-18, 20), 36, _draw_base, _at_base),
    "vertex": _Site(("epidural", "subdural"), (60, 96), 33, _draw_vertex, _at_vertex),
}
