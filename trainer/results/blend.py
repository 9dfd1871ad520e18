"""The slice model and the context network as one: per label and level the mix that held-out patients bear out.

Both are first brought to honest log odds, each by a calibration of its own, so that what is sure without reason does
not outweigh what is right; the mix is `(1 - part) * slice model + part * context`. A label that the context does not
clearly make better keeps the slice model: its part is 0. Float64, on numpy alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.results import calibration, joint
from trainer.results.calibration import Calibration
from trainer.results.joint import Odds, coherent
from trainer.results.probability import log_losses, sigmoid

_Numbers = npt.NDArray[np.float64]

PARTS = np.linspace(0.0, 1.0, 11)  # of the context, that are tried
FEWEST_PATIENTS = 5  # with a known label, of whom some have and some have not; of fewer the slice model is kept


@dataclasses.dataclass(frozen=True, eq=False)
class Mix:
    """What joins natural log odds of the slice model and of the context: calibrations, and `part` float64 [L], 0 to 1.

    Raises ValueError for parts that do not fit.
    """

    plain: Calibration
    context: Calibration
    part: _Numbers

    def __post_init__(self) -> None:
        if self.part.shape != (len(self.plain.names),) or not ((self.part >= 0) & (self.part <= 1)).all():
            raise ValueError(f"blend: parts are {self.part.tolist()}; each label has one from 0 to 1")

    def log_odds(self, plain: Any, context: Any) -> _Numbers:
        """float64 [n, L]; `plain` and `context`: natural log odds, float [n, L]."""
        return mixed(self.plain.logits(plain), self.context.logits(context), self.part)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `Mix.from_dict` turns them back."""
        return {"plain": self.plain.to_dict(), "context": self.context.to_dict(), "part": self.part.tolist()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Mix:
        """The `Mix` of `to_dict`'s values. Raises ValueError, KeyError or TypeError where they are no such thing."""
        plain, context = (calibration.from_dict(values[key]) for key in ("plain", "context"))
        return Mix(plain, context, np.asarray(values["part"], np.float64))


@dataclasses.dataclass(frozen=True, eq=False)
class Blend:
    """How a series model speaks: what joins its two networks, and what makes probabilities of studies.

    `slice_odds`, `odds`: from the logits of the slice model and of the context to natural log odds. `slices`: the mix
    of both in a slice; `studies`: that of the greatest slice and of the series head in a study. `study_calibration`,
    `study_thresholds`: of studies, label -> rule -> probability.
    """

    slice_odds: Odds
    odds: Odds
    slices: Mix
    studies: Mix
    study_calibration: Calibration
    study_thresholds: Mapping[str, Mapping[str, float]]

    def slice_log_odds(self, slice_logits: Any, context_logits: Any) -> _Numbers:
        """float64 [n, L], natural ones; both logits float [n, L], of the same slices."""
        return self.slices.log_odds(self.slice_odds.log_odds(slice_logits), self.odds.log_odds(context_logits))

    def study_log_odds(self, greatest: Any, head_logits: Any) -> _Numbers:
        """float64 [m, L], natural ones, of studies.

        `greatest`: of `slice_log_odds` over the slices, `head_logits`: of the series head over the series; float
        [m, L] both.
        """
        return self.studies.log_odds(greatest, self.odds.log_odds(head_logits))

    def study_probabilities(self, log_odds: Any) -> _Numbers:
        """float64 [m, L], calibrated, no kind above `any`."""
        return coherent(self.study_calibration.probabilities(log_odds), self.odds.any_index)

    def told(self) -> list[str]:
        """What part each label's context has, in words."""
        return [
            f"part of the context in {level}: {', '.join(map('{} {:g}'.format, self.odds.names, mix.part))}"
            for level, mix in (("slices", self.slices), ("studies", self.studies))
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` turns them back."""
        parts = {name: getattr(self, name).to_dict() for name in _PARTS}
        return {**parts, "study_thresholds": {name: dict(rules) for name, rules in self.study_thresholds.items()}}


_PARTS = {
    "slice_odds": joint.from_dict,
    "odds": joint.from_dict,
    "slices": Mix.from_dict,
    "studies": Mix.from_dict,
    "study_calibration": calibration.from_dict,
}


def from_dict(values: Mapping[str, Any]) -> Blend:
    """The `Blend` of `to_dict`'s values. Raises ValueError, KeyError or TypeError where they are no such thing."""
    parts: dict[str, Any] = {name: read(values[name]) for name, read in _PARTS.items()}
    return Blend(**parts, study_thresholds=values["study_thresholds"])


def mixed(plain: Any, context: Any, part: Any) -> _Numbers:
    """`(1 - part) * plain + part * context`, float [n, L] both, `part` float [L].

    Exactly the one or the other where `part` is 0 or 1.
    """
    plain, context = np.asarray(plain, np.float64), np.asarray(context, np.float64)
    return np.where(part == 0, plain, np.where(part == 1, context, (1 - part) * plain + part * context))


def fit(
    names: Sequence[str], labels: Any, plain: Any, context: Any, patients: npt.NDArray[np.int64], prevalence: Any
) -> Mix:
    """The `Mix` of natural log odds float [n, L], on slices or studies of a split that was not trained on.

    `labels`: integers [n, L], -1 unknown; `patients` int64 [n]; `prevalence` float [L] of the training split.
    """
    nothing = np.zeros(len(names))
    first, second = (calibration.fit(names, labels, one, nothing, patients, prevalence) for one in (plain, context))
    return Mix(first, second, choose(labels, first.logits(plain), second.logits(context), patients))


def alone(names: Sequence[str], why: str) -> Mix:
    """The context alone, as it is, where there was nothing to choose on for the reason `why`."""
    as_it_is = calibration.unfitted(names, np.zeros(len(names)), why)
    return Mix(as_it_is, as_it_is, np.ones(len(names)))


def choose(labels: Any, plain: Any, context: Any, patients: npt.NDArray[np.int64]) -> _Numbers:
    """float64 [L], the part of the context for each label: the least log loss, if by more than its standard error.

    `labels`: integers [n, L], -1 unknown; `plain`, `context`: calibrated log odds [n, L]; `patients` int64 [n]. The
    standard error is of the paired difference to the slice model alone, over patients.
    """
    labels, plain, context = (np.asarray(one) for one in (labels, plain, context))
    return np.array([_chosen(labels[:, at], plain[:, at], context[:, at], patients) for at in range(labels.shape[1])])


def _chosen(labels: Any, plain: Any, context: Any, patients: npt.NDArray[np.int64]) -> float:
    known = labels >= 0
    whose = np.unique(patients[known], return_inverse=True)[1]
    if not known.any() or whose.max() + 1 < FEWEST_PATIENTS or len(np.unique(labels[known])) < 2:
        return 0.0
    losses = [log_losses(labels[known] == 1, sigmoid(mixed(plain[known], context[known], part))) for part in PARTS]
    best = int(np.argmin([loss.mean() for loss in losses]))
    return float(PARTS[best]) if _is_clear(losses[best] - losses[0], whose) else 0.0


def _is_clear(difference: _Numbers, whose: Sequence[int] | npt.NDArray[np.int64]) -> bool:
    """Whether a mean difference [n] is below 0 by more than its standard error over patients."""
    mean = difference.mean()
    sums = np.bincount(whose, difference - mean)
    count = len(sums)
    error = np.sqrt(count / (count - 1) * (sums**2).sum()) / len(difference)
    return bool(mean < -error)
