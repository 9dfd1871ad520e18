"""One label of many slices, or of many studies: its probabilities beside the truth, under any counts of patients."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.results import bootstrap, calibration
from trainer.results.bootstrap import AVERAGE_PRECISION, FEWEST_PATIENTS, LOSS, SHARE, Ranking, per_patient
from trainer.results.probability import log_losses

BINS = 15  # of the calibration error
# measure -> what the patients behind its interval must have: a known slice, a positive one, a negative one
NEEDS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("log_loss", "brier", "calibration_error", "accuracy"), ("known",)),
    **dict.fromkeys(("sensitivity", "recall"), ("positive",)),
    "specificity": ("negative",),
    **dict.fromkeys(("auc", "average_precision", "precision", "f1"), ("positive", "negative")),
}

_LOSSES = ("log_loss", "brier", "calibration_error")

_Numbers = npt.NDArray[np.float64]
Drawn = dict[str, _Numbers]


class Rating:
    """The known slices (or studies) of one label, each with a probability and a patient.

    `patients`: how many have a known one, a positive one, a negative one.
    """

    def __init__(self, labels: Any, probabilities: Any, patients: npt.NDArray[np.int64]) -> None:
        """`labels`: integers [n], -1 for unknown; `probabilities` float [n]; `patients` int64 [n], 0 to P - 1."""
        self._labels, self._patients = np.asarray(labels), patients
        self._probabilities = np.asarray(probabilities, np.float64)
        self._ranking = Ranking(labels, probabilities, patients)
        self._sums = {"known": self._summed(np.ones(len(self._labels)))}
        self.patients = {
            "known": int(np.count_nonzero(self._sums["known"])),
            "positive": self._ranking.positive_patients,
            "negative": self._ranking.negative_patients,
        }

    @property
    def known(self) -> int:
        """Slices whose label is known."""
        return int((self._labels >= 0).sum())

    @property
    def positives(self) -> int:
        """Slices whose label is 1."""
        return int((self._labels == 1).sum())

    @property
    def defined(self) -> bool:
        """Whether slices of both values are there."""
        return self._ranking.defined

    def carriers(self, measure: str) -> int:
        """How many patients carry `measure`, one of `NEEDS` or that `_before`: of what it needs, those who have it.

        A loss is mostly that of the rarer value, so no more than twice those who have that count, see `telling`.
        """
        plain = measure.removesuffix("_before")
        fewest = min(self.patients[what] for what in NEEDS[plain])
        return telling(fewest, self.rarer) if plain in _LOSSES else fewest

    @property
    def rarer(self) -> int:
        """Patients with a slice of the value that fewer have."""
        return min(self.patients["positive"], self.patients["negative"])

    def add_confusion(self, name: str, threshold: float) -> None:
        """Let `drawn` give the sums `name`, [c, 4]: true positives, false positives, false and true negatives.

        A slice is called positive where its probability is `threshold` or more.
        """
        called = self._probabilities >= threshold
        place = np.where(called, np.where(self._labels == 1, 0, 1), np.where(self._labels == 1, 2, 3))
        self._sums[name] = self._summed(np.ones(len(called)), place, 4)

    def add_losses(self, suffix: str, probabilities: Any) -> None:
        """Let `drawn` give `log_loss` and `brier` (both with `suffix`), [c, 1], of `probabilities`, float [n].

        The sums of the log losses, and of the squares of probability - label (Brier 1950).
        """
        shown = np.asarray(probabilities, np.float64)
        positive = self._labels == 1
        self._sums["log_loss" + suffix] = self._summed(log_losses(positive, shown))
        self._sums["brier" + suffix] = self._summed((shown - positive) ** 2)

    def add_calibration(self, suffix: str, probabilities: Any) -> None:
        """Let `drawn` give the losses of `add_losses`, and `distance` with `suffix`, of `probabilities`, float [n].

        `distance` [c, BINS] is the sum of probability - label in each of the parts of [0, 1] that the calibration
        error compares.
        """
        self.add_losses(suffix, probabilities)
        shown = np.asarray(probabilities, np.float64)
        positive = self._labels == 1
        self._sums["distance" + suffix] = self._summed(shown - positive, calibration.bin_of(shown, BINS), BINS)

    def _summed(self, values: Any, places: Any = 0, size: int = 1) -> _Numbers:
        """float64 [P, size] of values [n] of the known slices alone, see `bootstrap.per_patient`."""
        return per_patient(np.where(self._labels >= 0, values, 0.0), self._patients, places, size)

    def drawn(self, counts: npt.NDArray[np.int32]) -> Drawn:
        """`auc` and `average_precision`, float64 [c], and the sums added, float64 [c, k]; `counts` int32 [c, P]."""
        area, precision = self._ranking.areas(counts)
        # patients beyond the last of the rating have no slice in it
        times = counts[:, : len(self._sums["known"])].astype(np.float64)
        sums = {name: times @ of_patients for name, of_patients in self._sums.items()}
        return {"auc": area, "average_precision": precision, **sums}

    def areas(self) -> tuple[float, float]:
        """Area under the ROC curve and average precision of the slices as they are, by scikit-learn.

        nan where the known labels are not both of 0 and 1.
        """
        from sklearn.metrics import average_precision_score, roc_auc_score

        if not self.defined:
            return float("nan"), float("nan")
        known = self._labels >= 0
        labels, shown = self._labels[known], self._probabilities[known]
        return float(roc_auc_score(labels, shown)), float(average_precision_score(labels, shown))


def scale(measure: str) -> str:
    """The scale of `bootstrap.interval` that fits a measure, whose name may go on behind it."""
    if measure.startswith(_LOSSES):
        return LOSS
    return AVERAGE_PRECISION if measure.startswith("average_precision") else SHARE


def telling(known: int, rarer: int) -> int:
    """How many of `known` patients tell of a loss: as many as have the `rarer` value, and as many others.

    Where hardly any have it, still `FEWEST_PATIENTS` if they are known: what a loss is without it can be told.
    """
    return min(known, max(2 * rarer, FEWEST_PATIENTS))


def skill(loss: _Numbers, of_prevalence: _Numbers, patients: int) -> tuple[float, float, float]:
    """1 - loss / loss of the prevalence, and its interval; both float64 [1 + r], see `bootstrap.interval`.

    1 for a model that knows, 0 for one that knows no more than how often a label is positive, below 0 for one that
    knows less.
    """
    part = ratio(loss, of_prevalence)
    low, high = bootstrap.interval(part, LOSS, patients)
    return 1 - float(part[0]), 1 - high, 1 - low


def known_patients(labels: Any, patients: npt.NDArray[np.int64]) -> int:
    """How many patients have a slice of which some label is known; `labels` integers [n, L], `patients` int64 [n]."""
    return len(np.unique(patients[(np.asarray(labels) >= 0).any(axis=1)]))


def resampled(ratings: Sequence[Rating], patients: npt.NDArray[np.int64], resamples: int, seed: int) -> list[Drawn]:
    """What each rating has on the slices as they are, row 0, and on every resample of the patients after it.

    `patients`: int64 [n], 0 to P - 1, of the slices. Each name of `Rating.drawn` has 1 + `resamples` rows.
    """
    people, chunk = bootstrap.patients_in(patients), bootstrap.rows_at_a_time(len(patients))
    as_is = np.ones((1, people), np.int32)
    draws = itertools.chain([as_is], bootstrap.patient_counts(people, resamples, seed, chunk))
    parts = [[rating.drawn(counts) for rating in ratings] for counts in draws]
    every = [{name: np.concatenate([part[name] for part in of_one]) for name in of_one[0]} for of_one in zip(*parts)]
    for rating, drawn in zip(ratings, every):
        drawn["auc"][0], drawn["average_precision"][0] = rating.areas()
    return every


def decisions(confusion: Any) -> Drawn:
    """Measures of yes or no, float64 [c] each, from true and false positives, false and true negatives [c, 4].

    nan where nothing is left to divide by: precision where nothing is called positive, sensitivity without
    positives, and so on.
    """
    tp, fp, fn, tn = np.asarray(confusion, np.float64).T
    return {
        "sensitivity": ratio(tp, tp + fn),
        "specificity": ratio(tn, tn + fp),
        "accuracy": ratio(tp + tn, tp + fp + fn + tn),
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, tp + fn),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
        "npv": ratio(tn, tn + fn),
    }


def predictive(found: Mapping[str, _Numbers], share: float) -> Drawn:
    """`precision` and `npv`, float64 [c], by sensitivity and specificity where `share` is positive (Bayes)."""
    hits, alarms = found["sensitivity"] * share, (1 - found["specificity"]) * (1 - share)
    missed, left = (1 - found["sensitivity"]) * share, found["specificity"] * (1 - share)
    return {"precision": ratio(hits, hits + alarms), "npv": ratio(left, left + missed)}


def calibration_errors(drawn: Mapping[str, _Numbers], suffix: str) -> _Numbers:
    """float64 [c]: the calibration error of each row of what `drawn` gave, see `calibration.calibration_error`.

    It is a sum of distances, which noise makes greater, so that few slices have a greater one than many.
    """
    return ratio(np.abs(drawn["distance" + suffix]).sum(axis=1), drawn["known"][:, 0])


def ratio(part: Any, whole: Any) -> _Numbers:
    """float64, part / whole, nan where the whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)
