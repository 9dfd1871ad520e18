"""The slice model and the context network as one: per label and level the mix that held-out patients bear out.

The mix is of natural log odds, `(1 - part) * slice model + part * context`. A label that the context does not clearly
make better keeps the slice model: its part is 0. Float64, on numpy alone.
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
class Blend:
    """How a series model speaks: what joins its two networks, and what makes probabilities of studies.

    `slice_odds`, `odds`: from the logits of the slice model and of the context to natural log odds. `slices`,
    `studies`: float64 [L], the part of the context (its series head) in a slice and in a study, beside the slice model
    (the greatest slice). `study_calibration`, `study_thresholds`: of studies, label -> rule -> probability.
    """

    slice_odds: Odds
    odds: Odds
    slices: _Numbers
    studies: _Numbers
    study_calibration: Calibration
    study_thresholds: Mapping[str, Mapping[str, float]]

    def slice_log_odds(self, slice_logits: Any, context_logits: Any) -> _Numbers:
        """float64 [n, L], natural ones; both logits float [n, L], of the same slices."""
        return mixed(self.slice_odds.log_odds(slice_logits), self.odds.log_odds(context_logits), self.slices)

    def study_log_odds(self, greatest: Any, head_logits: Any) -> _Numbers:
        """float64 [m, L], natural ones; `greatest`: of `slice_log_odds` over each study's slices, `head_logits`: of
        the series head over its series, float [m, L] both."""
        return mixed(greatest, self.odds.log_odds(head_logits), self.studies)

    def study_probabilities(self, log_odds: Any) -> _Numbers:
        """float64 [m, L], calibrated, no kind above `any`."""
        return coherent(self.study_calibration.probabilities(log_odds), self.odds.any_index)

    def told(self) -> list[str]:
        """What part each label's context has, in words."""
        return [
            f"part of the context in {level}: {', '.join(map('{} {:g}'.format, self.odds.names, parts))}"
            for level, parts in (("slices", self.slices), ("studies", self.studies))
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` turns them back."""
        return {
            "slice_odds": self.slice_odds.to_dict(),
            "odds": self.odds.to_dict(),
            "slices": self.slices.tolist(),
            "studies": self.studies.tolist(),
            "study_calibration": self.study_calibration.to_dict(),
            "study_thresholds": {name: dict(rules) for name, rules in self.study_thresholds.items()},
        }


def from_dict(values: Mapping[str, Any]) -> Blend:
    """The `Blend` of `to_dict`'s values. Raises ValueError, KeyError or TypeError where they are no such thing."""
    odds = joint.from_dict(values["odds"])
    slices, studies = (np.asarray(values[key], np.float64) for key in ("slices", "studies"))
    for part in (slices, studies):
        if part.shape != (len(odds.names),) or not ((part >= 0) & (part <= 1)).all():
            raise ValueError(f"blend: parts are {part.tolist()}; each label has one from 0 to 1")
    study_calibration = calibration.from_dict(values["study_calibration"])
    slice_odds = joint.from_dict(values["slice_odds"])
    return Blend(slice_odds, odds, slices, studies, study_calibration, values["study_thresholds"])


def mixed(plain: Any, context: Any, part: Any) -> _Numbers:
    """`(1 - part) * plain + part * context`, float [n, L] both, `part` float [L].

    Exactly the one or the other where `part` is 0 or 1.
    """
    plain, context = np.asarray(plain, np.float64), np.asarray(context, np.float64)
    return np.where(part == 0, plain, np.where(part == 1, context, (1 - part) * plain + part * context))


def choose(labels: Any, plain: Any, context: Any, patients: npt.NDArray[np.int64]) -> _Numbers:
    """float64 [L], the part of the context for each label: the least log loss, if by more than its standard error.

    `labels`: integers [n, L], -1 unknown; `plain`, `context`: natural log odds [n, L]; `patients` int64 [n]. The
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
