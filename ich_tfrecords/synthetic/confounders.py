"""What fools a reader of one slice, and not one who scrolls: `synthetic --context`.

Some bleeds become foci (`foci`), which go through three slices or more. Other foci are calcifications, streaks and
edges of bone: denser than blood, but thinner than a slice, so that one slice, at most two, show them at blood's HU.
Each is drawn as one slice of a bleed that might have been: in that slice place, size, shape and HU say nothing.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ich_tfrecords.synthetic.bleeds import Bleed, Plane
from ich_tfrecords.synthetic.foci import SITES, Focus
from ich_tfrecords.synthetic.tissue import Array, edge

FEWEST_SLICES = 16  # of a study: with fewer, a slice is thicker than what a bleed needs to go through three
BLEEDING, CONFOUNDING = 0.7, 0.4  # chance that a bleed becomes a focus; chance of a confounder a free site
VISIBLE_SHARE = 1 / 3  # part of the thickness of a slice, from which blood in it is labelled
_PARTS = 4  # heights within the thickness of a slice at which a bleed is drawn
_REACH_SLICES = (3.4, 5.0)  # of a bleed, in thicknesses of a slice
_THIN_SLICES = (0.55, 0.8)  # of a confounder
_OFF_SLICES = 0.2  # of a confounder, at most, from the middle of its slice


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
            weight = focus.draw(hu, plane, self.thickness_mm)
            if weight is not None and focus.bleeds:
                drawn.append((focus.label, weight))
        _draw_streaks(hu, plane, self.streak_rad)
        return drawn


def draw_context(
    bleeds: tuple[Bleed, ...], heights_mm: Array, step_mm: float, rng: np.random.Generator
) -> tuple[tuple[Bleed, ...], Context]:
    """The bleeds that stay, long enough for three slices, and what is hard about the head: some bleeds as foci."""
    foci: dict[str, Focus] = {}
    kept: list[Bleed] = []
    for bleed in bleeds:
        free = [name for name, site in SITES.items() if bleed.label in site.labels and name not in foci]
        if free and rng.random() < BLEEDING:
            name = str(rng.choice(free))
            foci[name] = _bleeding(name, bleed.label, bleed.density_hu, step_mm, rng)
        else:
            kept.append(dataclasses.replace(bleed, half_height_mm=max(bleed.half_height_mm, 2 * step_mm)))
    for name in SITES:
        if name not in foci and rng.random() < CONFOUNDING:
            foci[name] = _confounding(name, heights_mm, step_mm, rng)
    return tuple(kept), Context(step_mm, tuple(foci.values()), rng.uniform(0.1, 0.7), rng.uniform(0, 2 * math.pi))


def _bleeding(name: str, label: str, density_hu: float, step_mm: float, rng: np.random.Generator) -> Focus:
    """A bleed at a site: at least three slices hold a good part of it."""
    low, high = SITES[name].heights_mm
    least, most = _REACH_SLICES
    half = min(step_mm * rng.uniform(least, most), max(high - low, step_mm * least)) / 2
    middle = rng.uniform(min(low + half, (low + high) / 2), max(high - half, (low + high) / 2))
    place, half_mm = SITES[name].draw_place(label, rng)
    return Focus(name, label, True, middle - half, middle + half, place, half_mm, density_hu)


def _confounding(name: str, heights_mm: Array, step_mm: float, rng: np.random.Generator) -> Focus:
    """What is no blood, and looks like one slice of a bleed: thinner than a slice, and denser by as much."""
    label = str(rng.choice(SITES[name].labels))
    bleed = _bleeding(name, label, rng.uniform(60, 74), step_mm, rng)
    z_mm = float(heights_mm[np.argmin(np.abs(heights_mm - rng.uniform(bleed.low_mm, bleed.high_mm)))])
    thin = rng.uniform(*_THIN_SLICES)
    middle, half = z_mm + step_mm * rng.uniform(-_OFF_SLICES, _OFF_SLICES), step_mm * thin / 2
    denser = max(bleed.share(z_mm, step_mm), VISIBLE_SHARE) / thin
    around_hu = SITES[name].around_hu
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
