"""Noise of a phantom: the folds of the cortex and the grain of the scanner; and the way from the grid to the slice.

Arrays are float32.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ich_tfrecords.synthetic.tissue import Array

SIDE_PX = 512
GRID_PX = SIDE_PX // 2


@dataclasses.dataclass(frozen=True)
class Textures:
    """Noise fields of unit deviation: folds [n, 256, 256] with a wavelength of a gyrus, grain [m, 512, 512]."""

    folds: Array
    grain: Array


def draw_textures(rng: np.random.Generator, folds: int = 24, grains: int = 6) -> Textures:
    """Textures from `rng`; grain is white noise with a short correlation, as after CT reconstruction."""
    bands = [_filtered(rng, GRID_PX, 0.034, 0.062) for _ in range(folds)]
    return Textures(np.stack(bands), np.stack([_filtered(rng, SIDE_PX, 0.0, 0.3) for _ in range(grains)]))


def enlarged(image: Array) -> Array:
    """Twice the rows and columns, bilinear about pixel centres."""
    return np.ascontiguousarray(_doubled(_doubled(image).T).T)


def _doubled(image: Array) -> Array:
    out = np.empty((2 * len(image), image.shape[1]), np.float32)
    near = image * np.float32(0.75)
    far = image * np.float32(0.25)
    out[2::2] = near[1:] + far[:-1]
    out[1:-1:2] = near[:-1] + far[1:]
    out[0], out[-1] = image[0], image[-1]
    return out


def _filtered(rng: np.random.Generator, side_px: int, low: float, high: float) -> Array:
    """Noise [side, side] of unit deviation whose frequencies lie between `low` and `high` cycles a pixel."""
    across, down = np.fft.rfftfreq(side_px), np.fft.fftfreq(side_px)
    radius = np.hypot(across[None, :], down[:, None])
    keep = np.exp(-((radius / high) ** 4)) * (1 - np.exp(-((radius / low) ** 4)) if low else 1)
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side_px, side_px))) * keep)
    return (field / field.std()).astype(np.float32)


def rolled(field: Array, rng: np.random.Generator) -> Array:
    """`field` moved round by a random number of rows and columns, perhaps flipped."""
    rows, columns, flip = rng.integers((len(field), len(field), 2))
    return np.roll(field[::-1] if flip else field, (int(rows), int(columns)), (0, 1))
