"""How far two samples lie apart, 0 to 1, and how far apart chance alone would put them.

One measure for all kinds of things: the greatest difference between the two in the share of series on one side of a
boundary (Kolmogorov and Smirnov), of words half the sum of differences of shares (total variation). 0.8 says: there
is a boundary beyond which 80 in 100 more of the one than of the other lie.

What chance does is seen by dealing the patients anew between the samples, each whole with all series; so a patient of
ten series says as much as one of one. That is exact for any numbers and any distribution, as long as patients are
exchangeable where nothing has moved (Fisher; Good 2005, Permutation, Parametric, and Bootstrap Tests).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Statistic = Callable[[Floats], Floats]  # of contrasts [b, N], see `Deals.contrasts`, to [b]
_AT_ONCE = 250  # draws, which bounds memory
_ROUNDING = 1e-9  # of sums in different orders
_SAME = 9  # digits to which scores of equal rows agree
_STILL = 1e-6  # a column whose spread is below this says nothing


class Apart(NamedTuple):
    """How far two samples lie apart, 0 to 1; the mean of that over deals by chance; and the p-value."""

    separation: float
    by_chance: float
    p: float

    @property
    def effect(self) -> float:
        """What of the separation is beyond chance: 0 for none, 1 for wholly apart."""
        return max(0.0, (self.separation - self.by_chance) / max(1 - self.by_chance, 1e-12))


class Deals:
    """The rows of two samples, and how each draw deals their patients; the first deal is the one that is there."""

    def __init__(self, before: Ints, now: Ints, seed: int, draws: int) -> None:
        """`before` [m] and `now` [n]: which patient of its sample each row is of; both hold a row at least."""
        own = [np.unique(units, return_inverse=True)[1] for units in (before, now)]
        patients = [int(units.max()) + 1 for units in own]
        self._unit = np.concatenate([own[0], own[1] + patients[0]])
        self._weight = 1 / np.bincount(self._unit)[self._unit]  # a patient has a weight of 1, however many series
        self._sizes = (patients[0], patients[1])
        self._is_now = _dealt(patients[0], patients[1], draws, np.random.default_rng(seed))

    def contrasts(self) -> Iterator[Floats]:
        """Deals [b, N], row by row what a sum over the rows takes of each: mean of now minus mean of before."""
        before, now = self._sizes
        for first in range(0, len(self._is_now), _AT_ONCE):
            dealt = self._is_now[first : first + _AT_ONCE][:, self._unit]
            yield np.where(dealt, self._weight / now, -self._weight / before)

    def measured(self, statistic: Statistic) -> Floats:
        """[1 + draws]: the statistic of what is there, then of each deal."""
        return np.concatenate([statistic(contrast) for contrast in self.contrasts()])

    def apart(self, separation: Statistic, test: Statistic | None = None) -> Apart:
        """`test`: the statistic of the p-value, where that is another than the separation."""
        found = self.measured(separation)
        tested = found if test is None else self.measured(test)
        as_far = int(np.count_nonzero(tested[1:] >= tested[0] * (1 - _ROUNDING) - _ROUNDING))
        own = 0.0 if found[0] < _ROUNDING else min(1.0, float(found[0]))
        return Apart(own, float(found[1:].mean()), (1 + as_far) / len(tested))

    def direction(self, rows: Floats) -> Floats:
        """[N], how far each of the rows [N, k] lies in the direction in which the means differ; see `of_rows`."""
        scaled = _scaled(rows)
        contrast = next(self.contrasts())[0]
        scores: Floats = scaled @ (contrast @ scaled)
        return scores


def _dealt(before: int, now: int, draws: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """[1 + draws, before + now], which patients each deal gives to now."""
    found = np.zeros((1 + draws, before + now), bool)
    found[0, before:] = True
    for row in found[1:]:
        row[rng.permutation(before + now)[:now]] = True
    return found


def of_numbers(values: Floats) -> Statistic:
    """Separation of numbers [N]; nan is a value of its own, below all others."""
    order, ends, _ = _ranked(values)
    return lambda contrast: np.abs(np.cumsum(contrast[:, order], axis=1)[:, ends]).max(axis=1)


def area(values: Floats) -> Statistic:
    """Area between the two distributions of numbers [N], in their unit (Wasserstein): for a test on the mean.

    It tells a change in how often something rare occurs better than the separation does.
    """
    order, ends, steps = _ranked(values)
    return lambda contrast: np.abs(np.cumsum(contrast[:, order], axis=1)[:, ends][:, :-1]) @ steps


def _ranked(values: Floats) -> tuple[Ints, Ints, Floats]:
    """Order of the values, the last place of each distinct one, and the steps between those."""
    known = np.where(np.isnan(values), -np.inf, values)
    order = np.argsort(known, kind="stable")
    ascending = known[order]
    ends = np.flatnonzero(np.append(ascending[1:] != ascending[:-1], True))
    return order, ends, np.diff(ascending[ends])


def of_words(codes: Ints) -> Statistic:
    """Separation of words, by the number of each, int64 [N] from 0."""
    one_hot = np.zeros((len(codes), int(codes.max()) + 1))
    one_hot[np.arange(len(codes)), codes] = 1
    return lambda contrast: np.abs(contrast @ one_hot).sum(axis=1) / 2


def of_rows(rows: Floats) -> Statistic:
    """Separation of rows of numbers [N, k], in the direction in which the means of the samples differ.

    Each deal has a direction of its own, so what fitting one gains by chance is in `Apart.by_chance` too.
    """
    scaled = _scaled(rows)

    def separation(contrast: Floats) -> Floats:
        scores = contrast @ scaled @ scaled.T
        scores = np.round(scores / np.maximum(np.abs(scores).max(axis=1, keepdims=True), 1e-300), _SAME)
        order = np.argsort(scores, axis=1)
        ascending = np.take_along_axis(scores, order, axis=1)
        gaps = np.cumsum(np.take_along_axis(contrast, order, axis=1), axis=1)
        gaps[:, :-1][ascending[:, 1:] == ascending[:, :-1]] = 0  # equal rows lie on one side together
        return np.abs(gaps).max(axis=1)

    return separation


def _scaled(rows: Floats) -> Floats:
    """Columns in units of their spread over both samples together; those that do not vary are left out."""
    spread = rows.std(axis=0)
    varies = spread > _STILL
    return (rows[:, varies] - rows[:, varies].mean(axis=0)) / spread[varies]


def holm(p: Floats) -> Floats:
    """p-values corrected for their number (Holm 1979): where nothing has moved, `p <= a` for any with chance a."""
    order = np.argsort(p, kind="stable")
    factors = len(p) - np.arange(len(p))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return corrected
