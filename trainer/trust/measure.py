"""How far slices lie from those of training: Mahalanobis after a projection (Lee et al. 2018, for one Gaussian)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_AXES = 32
RIDGE = 1e-3  # of the greatest variance, that each variance is raised by: what hardly varied must not count for all
TINY = 1e-12  # of what is left beside the axes, below which nothing is

Float32 = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, eq=False)
class Measure:
    """Where values of `dim` numbers lie, seen from training.

    `centre` float32 [dim]; `axes` float32 [dim, m], the directions in which training varies most, divided by how far it
    does. `rest` float32 [2]: mean and spread of the logarithm of the squared length that is beside the axes; it counts
    as one more direction, either way. A spread of 0: there is nothing beside them.
    """

    centre: Float32
    axes: Float32
    rest: Float32

    def whitened(self, values: Any) -> Float32:
        """float32 [k, m] of `values` float [k, dim], of variance 1 in each direction over training."""
        found: Float32 = (self._moved(values) @ self.axes.astype(np.float64)).astype(np.float32)
        return found

    def distance(self, values: Any) -> Float32:
        """float32 [k], the Mahalanobis distance from the mean of training."""
        along, beside = self._moved(values) @ self.axes.astype(np.float64), np.zeros(len(values))
        mean, spread = self.rest.astype(np.float64)
        if spread:
            beside = (np.log(_beside(self._moved(values), self.axes) + TINY) - mean) / spread
        return np.sqrt((along**2).sum(axis=1) + beside**2).astype(np.float32)

    def to_arrays(self, name: str) -> dict[str, Float32]:
        """For a file of arrays."""
        return {f"{name}_{field.name}": getattr(self, field.name) for field in dataclasses.fields(self)}

    def _moved(self, values: Any) -> npt.NDArray[np.float64]:
        return np.asarray(values, np.float64) - self.centre


def of_arrays(arrays: Mapping[str, Any], name: str) -> Measure:
    """What `Measure.to_arrays` gave. Raises `KeyError`, `ValueError`."""
    found = [np.asarray(arrays[f"{name}_{field.name}"], np.float32) for field in dataclasses.fields(Measure)]
    centre, axes, rest = found
    if axes.ndim != 2 or centre.shape != axes.shape[:1] or rest.shape != (2,):
        raise ValueError(f"{name} has parts of different sizes")
    return Measure(centre, axes, rest)


def fit(values: Any) -> Measure:
    """The measure of `values` float [n, dim] of training; at most `MOST_AXES` directions, fewer of few slices."""
    values = np.asarray(values, np.float64)
    centre = values.mean(axis=0).astype(np.float32)
    moved = values - centre
    variance, directions = np.linalg.eigh(moved.T @ moved / max(1, len(values) - 1))
    count = max(1, min(MOST_AXES, values.shape[1], len(values) // 4))
    kept = np.argsort(-variance, kind="stable")[:count]
    ridge = RIDGE * max(float(variance.max()), TINY)
    axes = (_signed(directions[:, kept]) / np.sqrt(np.maximum(variance[kept], 0) + ridge)).astype(np.float32)
    if count == values.shape[1]:
        return Measure(centre, axes, np.zeros(2, np.float32))
    lengths = np.log(_beside(moved, axes) + TINY)
    return Measure(centre, axes, np.array([lengths.mean(), max(float(lengths.std()), 0.1)], np.float32))


def _signed(directions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Each direction with its greatest part positive: whichever of the two is found is by chance."""
    greatest = np.abs(directions).argmax(axis=0)
    return directions * np.where(directions[greatest, np.arange(directions.shape[1])] < 0, -1.0, 1.0)


def _beside(moved: npt.NDArray[np.float64], axes: Float32) -> npt.NDArray[np.float64]:
    """float64 [k], the squared length of each row of `moved` that is not along `axes`."""
    plain = axes.astype(np.float64)
    plain = plain / np.linalg.norm(plain, axis=0)
    rest = moved - (moved @ plain) @ plain.T
    return np.asarray((rest**2).sum(axis=1))
