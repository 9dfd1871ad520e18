"""Whether a series looks like what a model was trained on, at a stated rate of false alarms.

Three things are looked at: where the vectors of its slices lie (Lee et al. 2018), how their grey is shared out, and the
numbers in its headers. Each is put on one scale, the greatest counts, and what is rarer than the rate among the
patients of the validation split is out of scope. That is conformal (Vovk, Gammerman and Shafer 2005; Bates et al. 2023
for this very use): as long as a patient is like those, at most that part of them is refused, whatever the model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ich_tfrecords.dataset import splits
from ich_tfrecords.plural import counted
from trainer.data import series
from trainer.results import conformal
from trainer.results.predictions import patients_of
from trainer.trust import measure
from trainer.trust.measure import Measure
from trainer.trust.portraits import FACTS, NUMBERS, UIDS, Gathered, Known, Looks

RATE = 0.05  # of patients like those of the validation split that are refused, by all checks together
MOST_SERIES, MOST_SLICES = 2_000, 10_000  # of a split that are looked at
YES, NO, UNKNOWN = "yes", "no", "unknown"
VECTORS, GREY, HEADER = CHECKS = ("vectors", "grey", "header")
BEYOND = 5.0  # what a number counts that lies as far outside of training as training is wide
EDGES = (0.005, 0.995)  # of the series of training, between which a number is as in training
LEAST_WIDTH = 0.1  # of a number, that training counts as wide at least
LEAST_SPREAD = 0.02  # of the logarithm of a distance
WORDS = {"kvp": ("tube voltage", "kV"), "thickness_mm": ("slice thickness", "mm"),
         "spacing_mm": ("pixel spacing", "mm"), "tilt_deg": ("gantry tilt", "degrees")}  # fmt: skip

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


class Judgement(NamedTuple):
    """`in_scope`: `YES`, `NO` or `UNKNOWN`; `reason` in words, "" where it is in scope."""

    in_scope: str
    reason: str = ""


class Sample(NamedTuple):
    """n slices of a split. `table`: ids and facts of each; `grey` float32 [n, windows * BINS]; `vectors` [n, dim];
    `probabilities` float [n, L].
    """

    table: pa.Table
    grey: npt.NDArray[np.float32]
    vectors: npt.NDArray[np.float16]
    probabilities: Float64


@dataclasses.dataclass(frozen=True, eq=False)
class Scope:
    """What a model was trained on, as far as that can be told from a series.

    `weights`: sha256 of its model file. `vectors`, `grey`: where those of slices lie. `training`, `validation`: series
    of both splits.
    """

    weights: str
    vectors: Measure
    grey: Measure
    training: Known
    validation: Known

    def looks(self, grey: npt.NDArray[np.float32], vectors: npt.NDArray[np.float16]) -> Looks:
        """Of k slices: `grey` of `portraits.shares`, `vectors` float16 [k, dim] of `model_file.embedder`."""
        finite = np.nan_to_num(vectors).astype(np.float32)
        root = np.sqrt(grey)
        distances = (self.vectors.distance(finite), self.grey.distance(root))
        return Looks(grey, self.vectors.whitened(finite), *distances)

    def lacking(self, rate: float = RATE) -> str:
        """Why nothing can be judged at that rate; empty where it can."""
        patients, needed = self.validation.many, conformal.needed(rate)
        if patients >= needed:
            return ""
        return f"{counted(patients, 'patient')} in validation, and a false-alarm rate of {100 * rate:g}% needs {needed}"

    def judge(self, portraits: pa.Table, rate: float = RATE) -> list[Judgement]:
        """Of each series of a table of portraits."""
        if why := self.lacking(rate):
            return [Judgement(UNKNOWN, why)] * len(portraits)
        ranges = self._ranges()
        known = self._of_patients(ranges)
        return [self._judged(row, known, ranges, rate) for row in portraits.to_pylist()]

    def _of_patients(self, ranges: dict[str, tuple[float, float]]) -> Float64:
        """float64 [m, 3], the greatest score of each check over the series of each validation patient."""
        scores = np.array([_scores(row, ranges) for row in self.validation.portraits.to_pylist()])
        numbers, whose = np.unique(self.validation.whose, return_inverse=True)
        found = np.full((len(numbers), len(CHECKS)), -np.inf)
        np.maximum.at(found, whose, scores)
        return found

    def _ranges(self) -> dict[str, tuple[float, float]]:
        """From where to where each number of the headers lies in training; none that training does not tell."""
        told = {name: self.training.portraits[name].drop_null().to_numpy().astype(np.float64) for name in NUMBERS}
        return {
            name: (
                float(np.quantile(values, EDGES[0], method="lower")),
                float(np.quantile(values, EDGES[1], method="higher")),
            )
            for name, values in told.items()
            if len(values)
        }

    def _judged(
        self, row: dict[str, object], known: Float64, ranges: dict[str, tuple[float, float]], rate: float
    ) -> Judgement:
        pool = np.vstack([known, _scores(row, ranges)])
        scaled = _scaled(pool)
        greatest = scaled.max(axis=1)
        strange = [check for check, value in zip(CHECKS, scaled[-1]) if np.mean(greatest >= value) <= rate + 1e-9]
        if not strange:
            return Judgement(YES)
        return Judgement(NO, "; ".join(part for check in strange for part in _told(check, row, known, ranges, rate)))


def _scores(row: dict[str, object], ranges: dict[str, tuple[float, float]]) -> Float64:
    """float64 [3], in the order of `CHECKS`: two logarithms of a distance, and how far a header is outside."""
    distances = [float(row[name]) for name in ("distance", "grey_distance")]  # type: ignore[arg-type]
    outside = [_outside(row[name], *edges) for name, edges in ranges.items()]
    return np.array([*np.log(np.maximum(distances, 1e-6)), BEYOND * max(outside, default=0.0)])


def _outside(value: object, low: float, high: float) -> float:
    """How many widths of training a number is outside of it; 0 of one that is not known."""
    if value is None:
        return 0.0
    number = float(value)  # type: ignore[arg-type]
    width = max(high - low, LEAST_WIDTH * max(abs(low), abs(high)), 1e-6)
    return max(low - number, number - high, 0.0) / width


def _scaled(pool: Float64) -> Float64:
    """Each check on one scale: deviations from the median, by the spread of the whole pool.

    The new one is part of the pool, so that all of them are treated alike, which the promise rests on.
    """
    of_distances = pool[:, :2]
    middle = np.median(of_distances, axis=0)
    spread = 1.4826 * np.median(np.abs(of_distances - middle), axis=0)
    return np.c_[(of_distances - middle) / np.maximum(spread, LEAST_SPREAD), pool[:, 2]]


def _told(
    check: str, row: dict[str, object], known: Float64, ranges: dict[str, tuple[float, float]], rate: float
) -> Iterator[str]:
    """What is strange about a series, in words."""
    if check == HEADER:
        for name, (low, high) in ranges.items():
            if _outside(row[name], low, high) > 0:
                what, unit = WORDS[name]
                yield f"{what} {row[name]:.3g} {unit}, training {_edges(low, high)}"
        return
    at = CHECKS.index(check)
    name = ("distance", "grey_distance")[at]
    edge = math.exp(float(np.quantile(known[:, at], 1 - rate, method="higher")))
    times = float(row[name]) / max(edge, 1e-6)  # type: ignore[arg-type]
    yield f"{check} {_times(times)} as far as {100 * (1 - rate):g}% of validation"


def _edges(low: float, high: float) -> str:
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _times(times: float) -> str:
    return f"{times:.1f} times" if times < 99.95 else f"over {min(times, 1e6):,.0f} times"


def drawn(table: pa.Table, seed: int, most_series: int = MOST_SERIES, most_slices: int = MOST_SLICES) -> Int64:
    """Rows of whole series, patient after patient by a hash of `seed` and their keys, until either limit; ascending.

    `table`: a row a slice, with the columns patient_key, study_uid and series_uid. One series at least.
    """
    number = series.numbers(table, UIDS)
    _, first, slices = np.unique(number, return_index=True, return_counts=True)
    hashed = [
        splits.hash64(f"scope {seed}", table[name].take(pa.array(first)).to_pylist())
        for name in ("series_uid", "patient_key")
    ]
    order = np.lexsort(hashed)
    fits = np.cumsum(slices[order]) <= most_slices
    fits[:1] = True
    return np.flatnonzero(np.isin(number, order[: min(most_series, int(fits.sum()))]))


def fit(weights: str, training: Sample, validation: Sample | None) -> Scope:
    """The scope of a model by slices of its training split, and thresholds by those of validation."""
    nobody = Known(Gathered().table(), np.empty(0, np.int64))
    vectors, grey = measure.fit(np.nan_to_num(training.vectors)), measure.fit(np.sqrt(training.grey))
    whole = Scope(weights, vectors, grey, nobody, nobody)
    held = _known(whole, validation) if validation is not None else nobody
    return dataclasses.replace(whole, training=_known(whole, training), validation=held)


def _known(scope: Scope, sample: Sample) -> Known:
    """Portraits of the series of a sample, and whose they are."""
    gathered, number = Gathered(), series.numbers(sample.table, UIDS)
    gathered.take(
        number.tolist(), facts_of(sample.table), scope.looks(sample.grey, sample.vectors), sample.probabilities
    )
    first = np.unique(number, return_index=True)[1]
    return Known(gathered.table(), patients_of(sample.table)[first[np.array(gathered.keys, np.int64)]])


class _Facts(NamedTuple):
    manufacturer: str | None
    kernel: str | None
    kvp: float | None
    thickness_mm: float | None
    spacing_mm: float | None
    tilt_deg: float | None


def facts_of(table: pa.Table) -> Sequence[_Facts]:
    """What the headers of the slices of a data set said; None of what it does not tell."""
    nothing = [None] * len(table)
    columns = [table[name].to_pylist() if name in table.column_names else nothing for name in FACTS]
    return [_Facts(*row) for row in zip(*columns, strict=True)]
