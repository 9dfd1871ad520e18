"""Three groups with a promise: of patients who have a kind of hemorrhage at most a stated part is called negative.

Split-conformal prediction, for each value of each label by itself (Vovk, Gammerman and Shafer 2005, chapter 4.5;
"label-conditional"), with the patient as the unit: patients of the calibration and a new one are taken to be drawn
alike, studies of one patient are not. Nothing is asked of the model, and the rarest label has the promise of its own
patients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ich_tfrecords.plural import counted
from trainer.results import bootstrap, study_level
from trainer.shell.problems import WrongUse

NEGATIVE, UNCERTAIN, POSITIVE = GROUPS = ("negative", "uncertain", "positive")
ALPHA = 0.05
WRONG = {POSITIVE: NEGATIVE, NEGATIVE: POSITIVE}  # what a study is called at worst, by what it is

_Numbers = npt.NDArray[np.float64]
Scores = Mapping[str, Mapping[str, Sequence[float]]]


class Limits(NamedTuple):
    """A study below `low` is called negative, one above `high` positive; one that is both or neither is uncertain.

    -inf and inf where there are too few patients: then nobody is called so.
    """

    low: float
    high: float


def scores(names: Sequence[str], labels: Any, probabilities: Any, patients: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Label -> `POSITIVE` and `NEGATIVE` -> a probability for each patient who has such a study, ascending, for JSON.

    `labels` integers [m, L] of studies of a split that was not trained on, -1 for unknown; `probabilities` float
    [m, L]; `patients` int64 [m]. Of a patient the study counts that is furthest from its truth: the lowest of the
    positive ones, the highest of the negative ones. So the promise holds for all studies of a patient at once.
    """
    return {name: _scores(labels[:, at], np.asarray(probabilities)[:, at], patients) for at, name in enumerate(names)}


def _scores(labels: Any, shown: _Numbers, patients: npt.NDArray[np.int64]) -> dict[str, list[float]]:
    found = {}
    for group, value, sign in ((POSITIVE, 1, -1), (NEGATIVE, 0, 1)):
        of = labels == value
        worst = sign * study_level.greatest(sign * shown[of], patients[of]) if of.any() else np.empty(0)
        found[group] = sorted(worst.tolist())
    return found


def needed(alpha: float) -> int:
    """How many patients the promise takes at an error rate of `alpha`."""
    return math.ceil(round(1 / alpha, 9)) - 1


def limits(of_label: Mapping[str, Sequence[float]], alpha: float) -> Limits:
    """From `scores` of one label. `alpha`: at most this part of patients is called wrongly, of either kind."""
    positive, negative = (np.asarray(of_label[group], np.float64) for group in (POSITIVE, NEGATIVE))
    return Limits(_lowest(positive, alpha), -_lowest(np.sort(-negative), alpha))


def _lowest(ascending: _Numbers, alpha: float) -> float:
    """What a new patient of the same kind stays below with a probability of at most `alpha`."""
    rank = math.floor(round(alpha * (len(ascending) + 1), 9))  # of equally likely places among them
    return float(ascending[rank - 1]) if rank else -math.inf


def group(probability: float, limits: Limits) -> str:
    """One of `GROUPS`, of a study with that probability."""
    below, above = probability < limits.low, probability > limits.high
    return UNCERTAIN if below == above else NEGATIVE if below else POSITIVE


def lacking(of_label: Mapping[str, Sequence[float]], alpha: float) -> str:
    """Why no study can be called negative, or positive, at that error rate; empty where both can."""
    few = [
        f"{counted(len(of_label[known]), 'patient')} with a {known} study, so that none is called {called}"
        for known, called in ((POSITIVE, NEGATIVE), (NEGATIVE, POSITIVE))
        if len(of_label[known]) < needed(alpha)
    ]
    return f"{' and '.join(few)}; an error rate of {alpha:g} needs {needed(alpha)}" if few else ""


class Promise(NamedTuple):
    """What is promised: the error rate, and the limits of each label."""

    alpha: float
    limits: Mapping[str, Limits]

    def groups(self, probabilities: _Numbers, sure: bool = True) -> tuple[str, ...]:
        """The group of a study for each label, of its `probabilities` float64 [L] in label order.

        One that is not `sure`, since slices may lack or it is unlike validation, is never called negative.
        """
        found = map(group, probabilities.tolist(), self.limits.values())
        return tuple(UNCERTAIN if one == NEGATIVE and not sure else one for one in found)

    def sentence(self) -> str:
        """What it says, without a full stop."""
        per = f"{100 * self.alpha:g} of 100"
        return (
            f"of patients who have a kind of hemorrhage at most {per} are called negative for it, and of patients who "
            f"have not at most {per} positive, on average, as long as they are like those of the validation split"
        )


def promise(found: Scores, alpha: float) -> Promise:
    """Raises `WrongUse` where no label has the patients for it."""
    if not found:
        raise WrongUse(
            "the model has no patients to promise by; if it was trained before they were kept, python -m "
            "trainer.evaluate --job_dir RUN --recalibrate adds them; if without a validation split, train with one"
        )
    told = {name: lacking(of_label, alpha) for name, of_label in found.items()}
    decided = {name: limits(of_label, alpha) for name, of_label in found.items()}
    if all(math.isinf(one.low) and math.isinf(one.high) for one in decided.values()):
        name, why = next(iter(told.items()))
        raise WrongUse(f"no promise can be made: {name} has {why}")
    return Promise(alpha, decided)


def notes(found: Scores, alpha: float) -> list[str]:
    """A line for each label of which a group stays empty."""
    told = {name: lacking(of_label, alpha) for name, of_label in found.items()}
    return [f"{name}: the validation split has {why}" for name, why in told.items() if why]


def measured(promise: Promise, labels: Any, shown: Any, patients: npt.NDArray[np.int64]) -> dict[str, Any]:
    """For JSON: "alpha", and by label how many studies are in each group, and how often patients are called wrongly.

    `labels` integers [m, L] of studies, -1 for unknown; `shown` float64 [m, L], their probabilities; `patients` int64
    [m]. "wrong": `POSITIVE` and `NEGATIVE` -> patients who have such a study, how many of them have one that is
    called the opposite, and that share with its exact binomial interval (Clopper and Pearson 1934).
    """
    called = np.array([promise.groups(row) for row in np.asarray(shown, np.float64)]).reshape(len(labels), -1)
    found = {name: _label(labels[:, at], called[:, at], patients) for at, name in enumerate(promise.limits)}
    return {"alpha": promise.alpha, "labels": found}


def _label(labels: Any, called: npt.NDArray[np.str_], patients: npt.NDArray[np.int64]) -> dict[str, Any]:
    groups = {group: int((called[labels >= 0] == group).sum()) for group in GROUPS}
    wrong = {kind: _wrong(labels == value, called, patients, kind) for kind, value in ((POSITIVE, 1), (NEGATIVE, 0))}
    return {"studies": groups, "wrong": wrong}


def _wrong(
    of: npt.NDArray[np.bool_], called: npt.NDArray[np.str_], patients: npt.NDArray[np.int64], kind: str
) -> Mapping[str, Any]:
    every, wrong = (len(np.unique(patients[which])) for which in (of, of & (called == WRONG[kind])))
    if not every:
        return {"patients": 0, "called_wrongly": 0, "value": None, "low": None, "high": None}
    from scipy import stats  # takes two seconds and 50 MB to import

    ends = stats.binomtest(wrong, every).proportion_ci(bootstrap.LEVEL, method="exact")
    found = {"value": wrong / every, "low": float(ends.low), "high": float(ends.high)}
    return {"patients": every, "called_wrongly": wrong, **found}
