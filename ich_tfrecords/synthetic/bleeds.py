"""Bleeds of a phantom head: where anatomy puts each label, and the shape of its blood in one slice.

Head coordinates and weights are those of `phantom`; arrays are float32[256,256], mm unless said otherwise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ich_tfrecords.synthetic.tissue import Array, edge, mean, mix

EXTRA_AXIAL = ("epidural", "subdural")
_USUAL_HEIGHT_MM = {
    "epidural": (36, 76),
    "intraparenchymal": (38, 76),
    "intraventricular": (46, 55),
    "subarachnoid": (20, 80),
    "subdural": (42, 80),
}


@dataclasses.dataclass(frozen=True)
class Bleed:
    """One hemorrhage: a label of the data set, its centre and its reach in mm, its density in HU.

    `angle_rad` counts from the front towards +x and places epidural and subdural blood. `width_mm` is half
    the reach along the skull or in the plane, `depth_mm` the thickness under the skull.
    """

    label: str
    centre_mm: tuple[float, float, float]
    half_height_mm: float
    angle_rad: float
    width_mm: float
    depth_mm: float
    density_hu: float


@dataclasses.dataclass(frozen=True)
class Plane:
    """The inside of the skull in one slice: its height, and what lies at each pixel, float32[256,256].

    `heights_mm` are those through its thickness at which blood is drawn, `scale` is the size of the outline
    relative to the widest slice, `shifted` is x from the middle of the brain where blood pushed it away. `inner` are mm
    under the skull; `inside` and `within` are the weights of the skull's inside and of the brain that blood left.
    """

    z_mm: float
    heights_mm: tuple[float, ...]
    scale: float
    x: Array
    y: Array
    shifted: Array
    angle: Array
    outline: Array
    inner: Array
    inside: Array
    within: Array
    folds: Array
    csf: Array
    ventricles: Array


def draw_bleed(label: str, heights_mm: Array, rng: np.random.Generator) -> Bleed:
    """A bleed where anatomy puts that label, centred on one of the slices at `heights_mm`."""
    low, high = _USUAL_HEIGHT_MM[label]
    z_mm = float(heights_mm[np.argmin(np.abs(heights_mm - rng.uniform(low, high)))])
    side = float(rng.choice([-1.0, 1.0]))
    density_hu = rng.uniform(60, 74)
    if label == "epidural":
        angle, reach = side * rng.uniform(0.7, 2.2), rng.uniform(22, 34)
        return Bleed(label, (0, 0, z_mm), rng.uniform(16, 24), angle, reach, rng.uniform(12, 22), density_hu)
    if label == "subdural":
        angle, reach = side * rng.uniform(1.0, 2.0), rng.uniform(55, 85)
        return Bleed(label, (0, 0, z_mm), rng.uniform(26, 40), angle, reach, rng.uniform(5, 12), density_hu)
    if label == "intraventricular":
        return Bleed(label, (side, 0, z_mm), rng.uniform(18, 26), 0, 0, rng.uniform(24, 34), density_hu)
    if label == "subarachnoid":
        x, y = (side * rng.uniform(5, 40), rng.uniform(-25, 10)) if z_mm < 45 else (side * 40, rng.uniform(-40, 40))
        return Bleed(label, (x, y, z_mm), rng.uniform(16, 26), 0, rng.uniform(32, 46), 0, density_hu - 2)
    x, y = (rng.uniform(22, 30), rng.uniform(-8, 12)) if z_mm < 56 else (rng.uniform(24, 38), rng.uniform(-36, 40))
    height, width, length = rng.uniform(15, 24), rng.uniform(9, 18), rng.uniform(11, 22)
    return Bleed(label, (side * x, y, z_mm), height, 0, width, length, density_hu)


def reached(bleed: Bleed, heights_mm: Sequence[float]) -> list[float]:
    """Those of `heights_mm` that the bleed reaches."""
    return [z_mm for z_mm in heights_mm if abs(z_mm - bleed.centre_mm[2]) < bleed.half_height_mm]


def draw_bleeds(hu: Array, bleeds: Sequence[Bleed], plane: Plane) -> list[tuple[str, Array]]:
    """Mix blood of slightly uneven density into `hu`, under the skull last; the label and weight of each bleed."""
    drawn = []
    for bleed in sorted(bleeds, key=lambda bleed: bleed.label in EXTRA_AXIAL):
        weight = _weight(hu, bleed, plane)
        mix(hu, weight, np.float32(bleed.density_hu) + 2 * plane.folds)
        drawn.append((bleed.label, weight))
    return drawn


def _weight(hu: Array, bleed: Bleed, plane: Plane) -> Array:
    """Weight of a bleed in a slice that it reaches: the mean over its thickness. Draws the swelling around a clot."""
    reached_mm, parts = reached(bleed, plane.heights_mm), len(plane.heights_mm)
    if bleed.label == "subarachnoid":
        return (
            in_csf(bleed, plane.x, plane.y, plane.folds, plane.csf) * plane.within * np.float32(len(reached_mm) / parts)
        )
    if bleed.label == "intraventricular":
        cast = in_ventricles(bleed, plane.shifted, plane.y, plane.ventricles)
        return cast * plane.within * np.float32(len(reached_mm) / parts)
    if bleed.label == "intraparenchymal":
        clots = [clot_mm(bleed, plane.x, plane.y, z_mm, plane.folds) for z_mm in reached_mm]
        mix(hu, 0.8 * mean((edge(inside_mm + 5, 6) for inside_mm in clots), parts), 17.0)
        return mean((edge(inside_mm, 2) for inside_mm in clots), parts) * plane.within
    layers = (under_skull(bleed, plane.angle, plane.outline, z_mm, plane.scale) for z_mm in reached_mm)
    return mean((edge(thickness - plane.inner, 1.5) for thickness in layers), parts) * plane.inside


def under_skull(bleed: Bleed, angle: Array, outline: Array, z_mm: float, scale: float) -> Array:
    """mm of blood under the inner table: a lens (epidural) or a long crescent (subdural); negative outside.

    `angle` is that of each pixel in radians and `outline` the mm to the skin in the widest slice, of which
    the slice at `z_mm` has the size `scale`.
    """
    height = math.sqrt(max(0.0, 1 - ((z_mm - bleed.centre_mm[2]) / bleed.half_height_mm) ** 2))
    turn = np.abs(np.remainder(angle - np.float32(bleed.angle_rad) + math.pi, 2 * math.pi) - math.pi)
    reach = turn * (outline * np.float32(scale / (bleed.width_mm * (0.3 + 0.7 * height))))
    shape = 1 - reach**2 if bleed.label == "epidural" else 1 - reach**4
    return np.float32(bleed.depth_mm * height) * shape


def in_csf(bleed: Bleed, x: Array, y: Array, folds: Array, csf: Array) -> Array:
    """Weight of subarachnoid blood: the CSF spaces near the centre, a little widened."""
    away = np.hypot(x - bleed.centre_mm[0], y - bleed.centre_mm[1]) / bleed.width_mm
    return np.minimum(csf * 1.7, 1) * edge(1 - away + 0.1 * folds, 0.35)


def in_ventricles(bleed: Bleed, x: Array, y: Array, ventricles: Array) -> Array:
    """Weight of intraventricular blood: a cast on the side of `centre_mm`, a level behind `depth_mm` on both."""
    cast = edge(x * math.copysign(1, bleed.centre_mm[0]) + 1, 2)
    level = edge(y - bleed.depth_mm, 2)
    return np.minimum(ventricles * 1.4, 1) * np.maximum(cast, level)


def clot_mm(bleed: Bleed, x: Array, y: Array, z_mm: float, folds: Array) -> Array:
    """mm inside the rough border of a clot in the brain, negative outside."""
    centre_x, centre_y, centre_z = bleed.centre_mm
    away = ((x - centre_x) / bleed.width_mm) ** 2 + ((y - centre_y) / bleed.depth_mm) ** 2
    away = np.sqrt(away + ((z_mm - centre_z) / bleed.half_height_mm) ** 2)
    return (1 - away + 0.09 * folds) * min(bleed.width_mm, bleed.depth_mm)


def midline_shift(bleeds: tuple[Bleed, ...], z_mm: float) -> float:
    """mm by which one-sided blood pushes the middle of the brain away from itself."""
    shift = 0.0
    for bleed in bleeds:
        if bleed.label in EXTRA_AXIAL:
            fade = max(0.0, 1 - ((z_mm - bleed.centre_mm[2]) / bleed.half_height_mm) ** 2)
            shift += 0.35 * max(bleed.depth_mm - 4, 0) * math.sin(bleed.angle_rad) * fade
    return shift
