"""Phantom head CT: the HU and the bleeds of one axial slice, from a handful of numbers a head.

Pure array maths. The anatomy is drawn at 256x256, one pixel for two rows and two columns of the CT slice,
then interpolated and given its grain at 512x512. Head coordinates are in mm: x to the patient's left, y
to the back, z up, with z = 0 near the skull base and z of about 120 at the vertex. Weights are 0 to 1
float32 arrays that say how much of a pixel a tissue fills; a soft edge stands for the partial volume of
a thick slice.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ich_tfrecords.synthetic.bleeds import EXTRA_AXIAL, Bleed, Plane, draw_bleeds, midline_shift, reached, under_skull
from ich_tfrecords.synthetic.confounders import VISIBLE_SHARE, Context
from ich_tfrecords.synthetic.textures import GRID_PX, Textures, enlarged, rolled
from ich_tfrecords.synthetic.tissue import Array, edge, mix, rods

VISIBLE_MM2 = 30.0

CSF_HU, GREY_HU, WHITE_HU, AIR_HU, FAT_HU, MUSCLE_HU = 8.0, 38.0, 28.0, -1000.0, -95.0, 52.0

_FOLD_MM = 7.0
# Half of a symmetric skeleton of tapering rods: (x, y, z, radius) at one end, then at the other, in mm.
_VENTRICLES = (
    ((4.5, -20, 46, 4.0), (10, -34, 46, 3.0)),
    ((7.0, -20, 51, 4.2), (8.5, 10, 56, 4.6)),
    ((8.5, 10, 56, 4.6), (22, 30, 46, 6.5)),
    ((22, 30, 46, 6.0), (16, 50, 44, 3.0)),
    ((24, 28, 42, 4.0), (31, -2, 22, 2.0)),
    ((0, -9, 37, 1.6), (0, 11, 38, 2.2)),
    ((0, 35, -10, 4.0), (0, 30, 6, 6.0)),
)
_CISTERNS = (
    ((0, -12, 22, 5.0), (11, -18, 22, 3.0)),
    ((0, -14, 23, 3.0), (0, -32, 25, 1.6)),
    ((9, -13, 22, 2.6), (17, 2, 24, 2.0)),
    ((17, 2, 24, 2.2), (14, 18, 28, 2.2)),
    ((14, 18, 29, 2.2), (0, 24, 32, 3.6)),
    ((28, -16, 28, 2.6), (56, -8, 40, 3.4)),
    ((40, -10, 36, 2.0), (44, 8, 48, 2.0)),
)
_NUCLEI = (
    ((10, 6, 45, 8.0), (13, 14, 46, 7.0)),
    ((22, -10, 44, 5.5), (26, 6, 44, 6.0)),
    ((12, -24, 47, 4.5), (14, -12, 52, 3.5)),
)
_BASE_BONES = (
    ((14, -4, 2, 5.0), (66, 26, 4, 9.0)),
    ((9, -30, 12, 3.0), (56, -44, 20, 4.0)),
    ((0, -10, 8, 6.0), (0, 6, -18, 8.0)),
)
_AIR_CELLS = (
    ((5, -38, -3, 7.0), (7, -76, -4, 6.0)),
    ((0, -27, -2, 9.0), (9, -27, -2, 8.0)),
    ((26, -60, -30, 14.0), (27, -56, -26, 14.0)),
    ((6, -85, 17, 4.0), (15, -84, 20, 3.0)),
)


@dataclasses.dataclass(frozen=True)
class Head:
    """One head and how it lies in the scanner. Lengths in mm, `turn_rad` about the axis of the scanner."""

    half_width_mm: float
    half_length_mm: float
    height_mm: float
    centre_mm: tuple[float, float]
    turn_rad: float
    pixel_mm: float
    scalp_mm: float
    skull_mm: float
    ventricle_scale: float
    sulcus_scale: float
    lopsided: float
    holder_mm: float
    noise_hu: float
    texture: int


def draw_head(rng: np.random.Generator) -> Head:
    """A head of ordinary adult size; `ventricle_scale` and `sulcus_scale` grow together, as with age."""
    age = rng.uniform(0, 1)
    return Head(
        half_width_mm=rng.uniform(69, 77),
        half_length_mm=rng.uniform(87, 96),
        height_mm=rng.uniform(84, 92),
        centre_mm=(rng.normal(0, 3), rng.normal(0, 4)),
        turn_rad=rng.normal(0, 0.07),
        pixel_mm=float(rng.choice([0.449219, 0.468750, 0.488281, 0.5])),
        scalp_mm=rng.uniform(4.5, 7.5),
        skull_mm=rng.uniform(5.5, 8.5),
        ventricle_scale=0.75 + 0.6 * age + rng.uniform(0, 0.15),
        sulcus_scale=0.6 + 0.9 * age + rng.uniform(0, 0.2),
        lopsided=rng.uniform(-0.02, 0.02),
        holder_mm=rng.uniform(9, 16),
        noise_hu=rng.uniform(3, 5),
        texture=int(rng.integers(1 << 16)),
    )


class Phantom:
    """A head on its pixel grid. `render` draws one slice of it; nothing here changes after construction."""

    def __init__(self, head: Head, textures: Textures, context: Context | None = None) -> None:
        self.head, self.textures, self.context = head, textures, context
        self.visible_share = VISIBLE_SHARE if context else 0.5
        mm = (np.arange(GRID_PX, dtype=np.float32) - np.float32((GRID_PX - 1) / 2)) * np.float32(2 * head.pixel_mm)
        across, down = (
            mm[None, :] - np.float32(head.centre_mm[0]),
            mm[:, None] - np.float32(head.centre_mm[1]),
        )
        cos, sin = np.float32(math.cos(head.turn_rad)), np.float32(math.sin(head.turn_rad))
        self.x: Array = across * cos + down * sin
        self.y: Array = down * cos - across * sin
        self.angle: Array = np.arctan2(self.x, -self.y)
        self.rho: Array = np.hypot(self.x, self.y)
        self.outline: Array = _outline(head, self.angle)
        self.skull: Array = np.float32(head.skull_mm) * (
            1 + 0.22 * np.cos(2 * self.angle) + 0.1 * np.cos(5 * self.angle)
        )
        self.floor: Array = _floor(self.x, self.y)
        self.bulge: Array = np.exp(-((self.y / 50) ** 2))
        self.temple: Array = np.exp(-(((np.abs(self.angle) - 1.15) / 0.4) ** 2))
        self.pixel_mm2 = (2 * head.pixel_mm) ** 2

    def render(self, z_mm: float, bleeds: tuple[Bleed, ...], rng: np.random.Generator) -> tuple[Array, frozenset[str]]:
        """HU float32[512,512] of the slice at `z_mm`, and the labels of which enough mm2 is in it."""
        here = tuple(bleed for bleed in bleeds if reached(bleed, self.heights(z_mm)))
        shell = _Shell(self, z_mm)
        hu, areas = _head_hu(self, shell, here)
        out = enlarged(hu)
        grain = self.textures.grain[rng.integers(len(self.textures.grain))]
        out += rolled(grain, rng) * np.float32(self.head.noise_hu)
        return out, frozenset(label for label, area_mm2 in areas.items() if area_mm2 >= VISIBLE_MM2)

    def heights(self, z_mm: float) -> tuple[float, ...]:
        """Heights at which a bleed is drawn for the slice at `z_mm`: through its thickness where that is known."""
        return self.context.heights(z_mm) if self.context else (z_mm,)


class _Shell:
    """Depths of one slice, float32[256,256] in mm: `outer` under the skin, `inner` under the inner table.

    Near the vertex the slice cuts the skull aslant, so both layers look thicker by `slant`, and through the
    thickness of a slice their borders look softer.
    """

    def __init__(self, phantom: Phantom, z_mm: float) -> None:
        head = phantom.head
        self.z_mm = z_mm
        self.scale = _profile(z_mm, head.height_mm)
        slope = _profile(z_mm + 1, head.height_mm) - _profile(z_mm - 1, head.height_mm)
        self.slant = np.float32(min(math.hypot(1, 80 * slope / 2), 3.0))
        self.soft_mm, thick = 1.5, 1.0
        if phantom.context:
            self.soft_mm += min(0.5 * phantom.context.thickness_mm * abs(80 * slope / 2), 6.0)
            thick += phantom.context.vertex_bone * min(max((z_mm - 70) / 30, 0), 1)
        muscle = np.float32(9 * min(max((45 - z_mm) / 40, 0), 1))
        self.outer: Array = phantom.outline * np.float32(self.scale) - phantom.rho
        self.bone: Array = self.outer - (head.scalp_mm + muscle * phantom.temple) * self.slant
        self.thickness: Array = phantom.skull * (self.slant * np.float32(thick))
        self.inner: Array = self.bone - self.thickness


def _head_hu(phantom: Phantom, shell: _Shell, bleeds: tuple[Bleed, ...]) -> tuple[Array, dict[str, float]]:
    areas: dict[str, float] = {}
    if shell.scale <= 0:
        return _air(phantom, shell), areas
    inside = edge(shell.inner, shell.soft_mm)
    base = shell.z_mm < 24
    if base:
        inside *= edge(shell.z_mm - phantom.floor, 4)
    hu = _brain(phantom, shell, inside, bleeds, areas) if inside.any() else np.full_like(phantom.x, MUSCLE_HU)
    mix(hu, 1 - edge(shell.inner, shell.soft_mm), _skull_hu(shell))
    if base:
        _draw_base(phantom, shell, hu)
    mix(hu, 1 - edge(shell.bone, shell.soft_mm), _scalp_hu(shell))
    mix(hu, 1 - edge(shell.outer, shell.soft_mm), _air(phantom, shell))
    return hu, areas


def _air(phantom: Phantom, shell: _Shell) -> Array:
    """Air with the arc of the head holder below the head."""
    hu = np.full_like(phantom.x, AIR_HU)
    gap = np.abs(phantom.rho - (phantom.outline + np.float32(phantom.head.holder_mm)))
    return mix(hu, edge(2.2 - gap, 1.5) * edge(phantom.y - 5, 6), 60.0)


def _scalp_hu(shell: _Shell) -> Array:
    """Skin, fat, then muscle or galea."""
    fat = np.maximum(1 - ((shell.outer / shell.slant - 3.2) / 2.2) ** 2, 0)
    return MUSCLE_HU - 10 + fat * (FAT_HU - MUSCLE_HU)


def _skull_hu(shell: _Shell) -> Array:
    """Outer and inner table with the spongy diploe between them."""
    diploe = np.maximum(1 - ((shell.bone / shell.thickness - 0.5) / 0.32) ** 2, 0)
    return np.float32(1350) - np.float32(750) * diploe


def _brain(phantom: Phantom, shell: _Shell, inside: Array, bleeds: tuple[Bleed, ...], areas: dict[str, float]) -> Array:
    """HU inside the skull; adds the mm2 of each label of `bleeds` to `areas`."""
    hu, plane = _bloodless(phantom, shell, inside, bleeds)
    drawn = draw_bleeds(hu, bleeds, plane)
    if phantom.context:
        drawn += phantom.context.draw(hu, plane)
    for label, weight in drawn:
        visible = np.count_nonzero(weight > phantom.visible_share)
        areas[label] = areas.get(label, 0.0) + visible * phantom.pixel_mm2
    return hu


def _bloodless(phantom: Phantom, shell: _Shell, inside: Array, bleeds: tuple[Bleed, ...]) -> tuple[Array, Plane]:
    """HU of the brain that `bleeds` push aside, before their blood is drawn, and where they may lie."""
    depth = shell.inner
    for bleed in bleeds:
        if bleed.label in EXTRA_AXIAL:
            layer = under_skull(bleed, phantom.angle, phantom.outline, shell.z_mm, shell.scale)
            depth = depth - np.maximum(layer, 0)
    x = phantom.x + np.float32(midline_shift(bleeds, shell.z_mm)) * phantom.bulge
    folds = _folds(phantom, shell.z_mm)
    medial = _medial_depth(x, phantom.y, shell.z_mm)
    hu, csf = _cortex(phantom, depth, medial, folds, shell.z_mm)
    _draw_nuclei(hu, x, phantom.y, shell.z_mm)
    np.maximum(csf, rods(_CISTERNS, x, phantom.y, shell.z_mm, 0.75 + 0.25 * phantom.head.sulcus_scale), out=csf)
    ventricles = rods(_VENTRICLES, x, phantom.y, shell.z_mm, phantom.head.ventricle_scale)
    mix(hu, csf, CSF_HU)
    mix(hu, ventricles, CSF_HU)
    mix(hu, 0.6 * edge(0.9 - np.abs(x), 1.2) * edge(1.5 - medial, 1.5), 58.0)
    plane = Plane(
        z_mm=shell.z_mm,
        heights_mm=phantom.heights(shell.z_mm),
        scale=shell.scale,
        x=phantom.x,
        y=phantom.y,
        shifted=x,
        angle=phantom.angle,
        outline=phantom.outline,
        inner=shell.inner,
        inside=inside,
        within=inside * edge(depth, 1.0),
        folds=folds,
        csf=csf,
        ventricles=ventricles,
    )
    return hu, plane


def _cortex(phantom: Phantom, depth: Array, medial: Array, folds: Array, z_mm: float) -> tuple[Array, Array]:
    """HU of grey and white matter, and the weight of the CSF in sulci and over the surface."""
    scale = phantom.head.sulcus_scale
    surface = np.minimum(depth, medial)
    shallow = np.clip(1.4 - surface / 20, 0, 1)
    crease = np.abs(folds)
    grey = np.maximum(edge(5.0 - surface, 3), edge(0.85 - crease, 0.5) * shallow)
    sulci = np.maximum(1 - crease / np.float32(0.3 * scale + 0.1), 0) * shallow
    if z_mm < 18:
        behind = edge(phantom.y - 2, 20)
        grey = np.maximum(grey, 0.75 * behind)
        sulci *= 1 - 0.8 * behind
    hu = WHITE_HU + (GREY_HU - WHITE_HU) * grey
    gap = np.maximum(edge(0.4 + 1.1 * scale - depth, 1.2), 0.8 * edge(0.6 * scale - medial, 1.2))
    return hu, np.maximum(0.85 * sulci, gap)


def _medial_depth(x: Array, y: Array, z_mm: float) -> Array:
    """mm from the interhemispheric fissure, which the corpus callosum closes in the middle of the head."""
    closed = min(max((74 - z_mm) / 12, 0), 1)
    bridge = np.clip((34 - np.abs(y - 2)) / 8, 0, 1) * np.float32(40 * closed)
    tent = np.clip((y - 5) / 10, 0, 1) * np.float32(40 * min(max((22 - z_mm) / 6, 0), 1))
    return np.abs(x) + bridge + tent


def _draw_nuclei(hu: Array, x: Array, y: Array, z_mm: float) -> None:
    """Thalamus, lentiform nucleus and caudate head; between them the internal capsule stays pale."""
    mix(hu, 0.85 * rods(_NUCLEI, x, y, z_mm, 1.0, soft_mm=4), GREY_HU + 1)
    calcified = edge(2.0 - np.hypot(x, y - 19) - abs(z_mm - 40) / 3, 1.5)
    mix(hu, calcified, 120.0)


def _draw_base(phantom: Phantom, shell: _Shell, hu: Array) -> None:
    """Draw the skull floor, orbits, petrous bone and air cells of a low slice into `hu`."""
    z_mm, x, y = shell.z_mm, phantom.x, phantom.y
    side = np.abs(x)
    below = 1 - edge(z_mm - phantom.floor, 4)
    spongy = phantom.textures.folds[phantom.head.texture % len(phantom.textures.folds)]
    mix(hu, below * edge(shell.bone - 1, 2), MUSCLE_HU + np.minimum(spongy, 0) * 60)
    mix(hu, edge(1.6 - np.abs(z_mm - phantom.floor), 3) * edge(shell.bone, 2), 750.0)
    bones = rods(_BASE_BONES, x, y, z_mm, 1.0) * edge(shell.bone, 2)
    cells = edge(spongy - 0.7, 0.4) * edge(side - 38, 6)
    mix(hu, bones, np.float32(950) + 200 * spongy - 1500 * cells)
    orbit = np.sqrt((side - 33) ** 2 + (y + 62) ** 2 * np.float32(0.55) + np.float32((z_mm + 8) ** 2))
    mix(hu, edge(21.5 - orbit, 1.5), 600.0)
    mix(hu, edge(19.5 - orbit, 1.5), FAT_HU + 25)
    nerve = np.abs(side - (33 + (y + 72) * np.float32(-0.35)))
    mix(
        hu,
        edge(2.2 - nerve, 1.5) * edge(18 - orbit, 2) * edge(y + 72, 3) * max(0.0, 1 - abs(z_mm + 6) / 8),
        35.0,
    )
    eye = np.sqrt((side - 33) ** 2 + (y + 76) ** 2 + np.float32((z_mm + 6) ** 2))
    mix(hu, edge(12.5 - eye, 1.5), 55.0)
    mix(hu, edge(11.0 - eye, 1.5), 14.0)
    air = rods(_AIR_CELLS, x, y, z_mm, 1.0) * edge(shell.outer - 5, 2)
    mix(hu, air, np.where(np.abs(spongy) < 0.16, np.float32(250), np.float32(AIR_HU)))


def _folds(phantom: Phantom, z_mm: float) -> Array:
    """Fold field of a slice: two neighbouring fields blended, so that slices 5 mm apart look related."""
    fields, head = phantom.textures.folds, phantom.head
    whole = math.floor(z_mm / _FOLD_MM)
    turn = (z_mm / _FOLD_MM - whole) * math.pi / 2
    low, high = (fields[(head.texture + whole + step) % len(fields)] for step in (0, 1))
    return low * np.float32(math.cos(turn)) + high * np.float32(math.sin(turn))


def _outline(head: Head, angle: Array) -> Array:
    """mm from the centre to the skin in the widest slice: an oval, narrower in front."""
    front = np.cos(angle)
    width = head.half_width_mm * (1 - 0.05 * front - 0.04 * front**2) * (1 + head.lopsided * np.sin(2 * angle))
    across, along = np.abs(np.sin(angle)) / width, np.abs(front) / head.half_length_mm
    return (across**2.3 + along**2.3) ** np.float32(-1 / 2.3)


def _profile(z_mm: float, height_mm: float) -> float:
    """Size of the outline at `z_mm` relative to the widest slice; 0 above the vertex."""
    away = (z_mm - 34) / height_mm if z_mm > 34 else (34 - z_mm) / 165
    return max(0.0, 1 - away**2.4) ** (1 / 2.4)


def _floor(x: Array, y: Array) -> Array:
    """z in mm of the skull floor: high over the orbits, lower under the temporal lobes, lowest behind."""
    ahead = 0.5 - 0.5 * np.tanh((y + 37) / 3)
    behind = 0.5 + 0.5 * np.tanh((y - 6) / 6)
    orbits = 6 * np.exp(-(((np.abs(x) - 33) / 13) ** 2))
    return ahead * (22 - 0.2 * np.minimum(y + 45, 0) + orbits) - 12 - 34 * behind
