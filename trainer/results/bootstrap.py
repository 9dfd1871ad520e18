"""Intervals from resamples of patients: how often each one is drawn, and ranked slices weighted so.

The slices of a patient resemble each other, so whole patients are drawn, with replacement, and each brings all of
its slices (cluster bootstrap; Davison and Hinkley 1997, section 3.8). A resample is nothing but a row of counts, one
a patient. What is a sum over slices is then a matrix product with the sums of each patient; what depends on the
order of the scores is read off cumulative sums along that order, which no resample changes.

The resamples give a standard error; the interval around the value follows from Student's t, by how many patients
carry the measure, on a scale that fits it. The percentiles of the resamples themselves (Efron 1981) would cover 80 to
90% in place of 95 with few patients (docs/decisions/0027-small-samples.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

from trainer.data.sampling import random_words

LEVEL = 0.95  # of the intervals
SHARE, AVERAGE_PRECISION, LOSS, DIFFERENCE = "share", "average precision", "loss", "difference"  # scales
GUESSING = 0.01  # of a patient, of whom a model that guesses is right in half: no share is known to be 0 or 1
# behind an interval: of 5, all lie on the same side of the truth with a chance of 2 * 0.5**5 = 6% (the sign test), and
# then no resample reaches across it; of 6, with 3%
FEWEST_PATIENTS = 6
_CELLS = 3_000_000  # counts of slices held at a time, 4 bytes each and a few times over

_Counts = npt.NDArray[np.int32]
_Numbers = npt.NDArray[np.float64]


def patient_counts(patients: int, resamples: int, seed: int, chunk: int) -> Iterator[_Counts]:
    """Yields int32 [up to `chunk`, `patients`]: how often each patient is drawn in each of the next resamples.

    Each row sums to `patients`. Row r depends on `patients`, `seed` and r alone, so that two models scored on the
    same patients are resampled alike, whatever the chunk.
    """
    for first in range(0, resamples, chunk):
        rows = min(chunk, resamples - first)
        words = random_words("bootstrap", seed, first * patients, rows * patients)
        # a word modulo the patients: the bias is below 2**-40
        drawn = (words % np.uint64(patients)).astype(np.int64).reshape(rows, patients)
        places = drawn + patients * np.arange(rows)[:, None]
        yield np.bincount(places.ravel(), minlength=rows * patients).astype(np.int32).reshape(rows, patients)


def weights(patients: npt.NDArray[np.int64], resamples: int, seed: int, chunk: int) -> Iterator[_Counts]:
    """Yields int32 [up to `chunk`, n]: how often each slice counts in each of the next resamples.

    `patients`: int64 [n], the patient of each slice, 0 to P - 1. The slices of a patient count alike.
    """
    for counts in patient_counts(patients_in(patients), resamples, seed, chunk):
        yield counts[:, patients]


def patients_in(patients: npt.NDArray[np.int64]) -> int:
    """How many patients the codes (int64 [n], 0 to P - 1) name."""
    return int(patients.max()) + 1 if len(patients) else 0


def rows_at_a_time(slices: int) -> int:
    """Resamples of so many slices that fit into the memory meant for them; at least 1."""
    return max(1, _CELLS // max(slices, 1))


def per_patient(values: Any, patients: npt.NDArray[np.int64], places: Any = 0, size: int = 1) -> _Numbers:
    """float64 [P, size]: each patient's sum of `values` (float [n]), apart for each of the `places`.

    `patients`: int64 [n], 0 to P - 1. `places`: which of the `size` columns takes the value, an integer or int [n].
    A row of `patient_counts` times this is the sum over a resample.
    """
    total = patients_in(patients) * size
    sums: _Numbers = np.bincount(patients * size + places, np.asarray(values, np.float64), total).astype(np.float64)
    return sums.reshape(-1, size)


def interval(drawn: Any, scale: str, patients: int, level: float = LEVEL) -> tuple[float, float]:
    """Low and high end of the interval of `level` around the first of `drawn`, float [1 + r]; the others: resamples.

    `patients`: how many carry the measure. `scale`: `SHARE` (0 to 1) Wilson's interval of as many independent trials
    as have that standard error, wider towards 1/2; `AVERAGE_PRECISION` the same with more degrees of freedom; `LOSS`
    (0 and more) even on the scale of logarithms; `DIFFERENCE` even as it is.
    (nan, nan) where the value is not defined, with fewer than `FEWEST_PATIENTS`, and with fewer than half of the
    resamples defined, or none at all.
    """
    drawn = np.asarray(drawn, np.float64)
    value, defined = float(drawn[0]), drawn[1:][~np.isnan(drawn[1:])]
    undefined = np.isnan(value) or not len(defined) or 2 * len(defined) < len(drawn) - 1
    if undefined or patients < FEWEST_PATIENTS:
        return float("nan"), float("nan")
    return _SCALES[scale](value, float(defined.std()), patients, (1 + level) / 2)


def _share(value: float, deviation: float, patients: int, below: float, more: int = 1) -> tuple[float, float]:
    """Wilson's interval with `GUESSING` added to the `patients`, each end at its own multiple of the error.

    How many patients carry the measure differs between resamples, which widens them by what n / (n - 1) would.
    `more`: degrees of freedom above them.
    """
    every = patients + GUESSING
    centre = (patients * value + GUESSING / 2) / every
    variance = ((patients * deviation) ** 2 + GUESSING * patients / every * (value - 0.5) ** 2) / every**2
    times = float(stdtrit(patients + more, below))
    # a sample of easy patients has a value too near to its bound and an error too low, one of hard patients has not;
    # how much wider one end is than the other for that was chosen by simulation
    lean = 2 * (2 * centre - 1) * (times - float(ndtri(below)))
    low, high = _wilson(centre, variance, times + lean)[0], _wilson(centre, variance, times - lean)[1]
    # GUESSING alone could put a value of 0 or 1 outside
    return max(0.0, min(value, low)), min(1.0, max(value, high))


def _wilson(share: float, variance: float, times: float) -> tuple[float, float]:
    """Where the distance to `share` is `times` the standard error that is found there (Wilson 1927)."""
    # of so many independent trials; times ** 2 of them are added, half of which succeed
    added = times**2 * variance / (share * (1 - share))
    middle = (share + added / 2) / (1 + added)
    reach = times / (1 + added) * math.sqrt(variance + added * variance / 4 / (share * (1 - share)))
    return middle - reach, middle + reach


def _loss(value: float, deviation: float, patients: int, below: float) -> tuple[float, float]:
    factor = math.exp(_reach(deviation, patients, below) / value) if value else 1.0
    return value / factor, value * factor


def _difference(value: float, deviation: float, patients: int, below: float) -> tuple[float, float]:
    reach = _reach(deviation, patients, below)
    return value - reach, value + reach


def _reach(deviation: float, patients: int, below: float) -> float:
    """Half the width of the interval of Student's t; the variance of resamples is (n - 1) / n of what it should be."""
    return float(stdtrit(patients - 1, below)) * deviation * math.sqrt(patients / (patients - 1))


# what an average precision errs by is partly known from the patients without the label, of whom there are many
_precision = functools.partial(_share, more=3)
_SCALES: dict[str, Callable[[float, float, int, float], tuple[float, float]]] = {
    SHARE: _share,
    AVERAGE_PRECISION: _precision,
    LOSS: _loss,
    DIFFERENCE: _difference,
}


def middle(values: Any, level: float = LEVEL) -> tuple[float, float]:
    """Low and high end of the central part `level` of the values (float [r]) that are defined, not nan.

    For bands in pictures. (nan, nan) with fewer than half of the values defined, or none at all.
    """
    values = np.asarray(values, np.float64)
    defined = values[~np.isnan(values)]
    if not len(defined) or 2 * len(defined) < len(values):
        return float("nan"), float("nan")
    low, high = np.percentile(defined, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


class Steps(NamedTuple):
    """What lies at or above each distinct score of a positive slice, highest first, resample by resample.

    `hits` int32 [c, K]: positive slices at or above it; `above` and `through` int32 [c, K]: negative slices above
    it, and those at or above it; `positives` and `negatives` float64 [c]: all of them.
    """

    hits: _Counts
    above: _Counts
    through: _Counts
    positives: _Numbers
    negatives: _Numbers


class Ranking:
    """The slices of one label in the order of their scores; its areas for any counts of the patients."""

    def __init__(self, labels: Any, scores: Any, patients: npt.NDArray[np.int64]) -> None:
        """`labels`: integers [n], -1 (unknown) left out; `scores` float [n]; `patients` int64 [n], 0 to P - 1."""
        known = np.asarray(labels) >= 0
        order = np.argsort(-np.asarray(scores)[known], kind="stable")
        scores, positive = np.asarray(scores)[known][order], np.asarray(labels)[known][order] == 1
        self._positives = patients[known][order][positive]
        self._negatives = patients[known][order][~positive]
        # equal scores stand or fall together, so only their last one is a step
        ends = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True][: len(scores)]) + 1
        ones = np.cumsum(positive)[ends - 1]
        stepped = np.diff(ones, prepend=0) > 0
        self._hits = ones[stepped]
        self._through = (ends - ones)[stepped]
        self._above = np.r_[0, ends - ones][:-1][stepped]

    @property
    def defined(self) -> bool:
        """Whether there are slices of both values, without which no area is defined."""
        return len(self._positives) > 0 and len(self._negatives) > 0

    @property
    def positive_patients(self) -> int:
        """Patients with a slice whose label is 1."""
        return len(np.unique(self._positives))

    @property
    def negative_patients(self) -> int:
        """Patients with a slice whose label is 0."""
        return len(np.unique(self._negatives))

    def steps(self, counts: _Counts) -> Steps:
        """`Steps` of the resamples; `counts` int32 [c, P], a few rows of `patient_counts`."""
        ones, zeros = _running(counts, self._positives), _running(counts, self._negatives)
        total, others = ones[:, -1].astype(np.float64), zeros[:, -1].astype(np.float64)
        return Steps(ones[:, self._hits], zeros[:, self._above], zeros[:, self._through], total, others)

    def areas(self, counts: _Counts) -> tuple[_Numbers, _Numbers]:
        """float64 [c] twice: area under the ROC curve, ties counted half, and average precision.

        As scikit-learn has them with `counts` (int32 [c, P]) for weights; nan in a resample without slices of
        both values.
        """
        found = self.steps(counts)
        new = np.diff(found.hits, axis=1, prepend=np.int32(0)).astype(np.float64)
        wins = found.negatives[:, None] - (found.above + found.through.astype(np.float64)) / 2
        precision = found.hits / np.maximum(found.hits + found.through, 1)
        both = (found.positives > 0) & (found.negatives > 0)
        ones, zeros = np.where(both, found.positives, np.nan), np.where(both, found.negatives, np.nan)
        return (new * wins).sum(axis=1) / (ones * zeros), (new * precision).sum(axis=1) / ones


def _running(counts: _Counts, patients: npt.NDArray[np.int64]) -> _Counts:
    """int32 [c, k + 1], sums of the counts of the first 0, 1, ... k of `patients` (int64 [k])."""
    sums = np.zeros((len(counts), len(patients) + 1), np.int32)
    # row by row: what is gathered then still lies in the cache when it is summed
    for row, into in zip(counts, sums):
        np.cumsum(np.take(row, patients), out=into[1:])
    return sums
