"""From the logits of a model to probabilities that can be relied on, and how far they can; float64, on numpy alone.

It starts from natural log odds (`trainer.results.joint`); the logits of an earlier version's model still bear a shift of each
label, which is taken off first. Then, for each label, a slope and an intercept fitted on a natural split straighten
what is left (Platt scaling), as far as its patients speak against leaving it. A label that cannot be calibrated says
its prevalence.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.results.probability import logit, sigmoid
from trainer.shell.problems import WrongUse

_Numbers = npt.NDArray[np.float64]

_STEPS = 100  # of Newton's method; a dozen do
_TOLERANCE = 1e-12  # of the mean gradient, over standardised logits
_SHORTEST = 2.0**-40  # part of a Newton step below which rounding decides and no longer the loss
_RARELY = 0.05  # of the samples of a model that is right may speak against it
_LEAST_RANGE = 1e-9  # of logits, relative to the greatest or to 1: finer than float32 has them


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """What turns the logits of a model into probabilities: sigmoid(slope * (logit - shift) + intercept).

    `shift`, `slope`, `intercept`: float64 [L], in the order of `names`. `refused`: label -> why nothing was fitted
    for it. Such a label has slope 0 and says its prevalence, whatever the logit; only where there was nothing to fit
    on at all, it has slope 1 and intercept 0. Raises ValueError for values that are not finite, a slope below 0, one
    of 0 that is not refused, and lengths or labels that do not fit together.
    """

    names: tuple[str, ...]
    shift: _Numbers
    slope: _Numbers
    intercept: _Numbers
    refused: Mapping[str, str]

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"calibration: labels are {list(self.names)}; each must stand once")
        for what in ("shift", "slope", "intercept"):
            _check_numbers(what, getattr(self, what), len(self.names))
        if unknown := sorted(set(self.refused) - set(self.names)):
            raise ValueError(f"calibration: refused names {unknown}; labels are {list(self.names)}")
        least = np.array([name not in self.refused for name in self.names])
        if not ((self.slope > 0) | (~least & (self.slope == 0))).all():
            raise ValueError(
                f"calibration: slope is {self.slope.tolist()}; each must be above 0, or 0 where the label is refused"
            )

    def natural(self, logits: Any) -> _Numbers:
        """float64 [n, L], the logits as if slices had been sampled by nature; `logits` float [n, L]."""
        return np.asarray(logits, np.float64) - self.shift

    def logits(self, logits: Any) -> _Numbers:
        """float64 [n, L], the logits of the calibrated probabilities; `logits` float [n, L] of the model."""
        return self.slope * self.natural(logits) + self.intercept

    def probabilities(self, logits: Any) -> _Numbers:
        """float64 [n, L], calibrated; `logits` float [n, L] of the model."""
        return sigmoid(self.logits(logits))

    def scale_offset(self) -> tuple[_Numbers, _Numbers]:
        """Two float64 [L], such that a calibrated probability is sigmoid(first * logit + second)."""
        return self.slope, self.intercept - self.slope * self.shift

    def told(self) -> list[str]:
        """A sentence for each refused label, without a full stop: what its probabilities are in place of calibrated."""
        return [self._told(self.names.index(name), why) for name, why in self.refused.items()]

    def _told(self, at: int, why: str) -> str:
        if self.slope[at]:
            return f"probabilities of {self.names[at]} are not calibrated, but for the shift: {why}"
        prevalence = float(sigmoid(self.intercept[at]))
        return f"{self.names[at]} has the same probability in every slice, its prevalence of {prevalence:.3g}: {why}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which keeps every bit of a float64; `from_dict` turns them back."""
        return {
            "names": list(self.names),
            "shift": self.shift.tolist(),
            "slope": self.slope.tolist(),
            "intercept": self.intercept.tolist(),
            "refused": dict(self.refused),
        }


def from_dict(values: Any) -> Calibration:
    """`Calibration` of the plain values of `to_dict`. Raises ValueError where they are damaged."""
    keys = [field.name for field in dataclasses.fields(Calibration)]
    if not isinstance(values, Mapping) or set(values) != set(keys):
        found = sorted(values) if isinstance(values, Mapping) else values
        raise ValueError(f"calibration holds {found}; it must hold {', '.join(keys)}")
    names, refused = values["names"], values["refused"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"calibration: names is {names!r}; it must be a list of labels")
    if not isinstance(refused, Mapping) or not all(isinstance(why, str) for why in refused.values()):
        raise ValueError(f"calibration: refused is {refused!r}; it must say why, label by label")
    shift, slope, intercept = (_numbers(what, values[what]) for what in ("shift", "slope", "intercept"))
    return Calibration(tuple(names), shift, slope, intercept, dict(refused))


def _numbers(what: str, values: Any) -> _Numbers:
    plain = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    if not plain:
        raise ValueError(f"calibration: {what} is {values!r}; it must be a list of numbers")
    return np.array(values, np.float64)


def _check_numbers(what: str, values: _Numbers, size: int) -> None:
    if values.shape != (size,) or not np.isfinite(values).all():
        raise ValueError(f"calibration: {what} is {values.tolist()}; it must be {size} finite numbers")


def unfitted(names: Sequence[str], shift: Any, why: str) -> Calibration:
    """A calibration that only takes the sampler's `shift` (float [L]) off; every label is refused with `why`.

    For a run without a validation split, which has nothing that could speak against its logits.
    """
    ones = np.ones(len(names))
    return Calibration(tuple(names), np.asarray(shift, np.float64), ones, 0 * ones, dict.fromkeys(names, why))


def fit(
    names: Sequence[str], labels: Any, logits: Any, shift: Any, patients: npt.NDArray[np.int64], prevalence: Any
) -> Calibration:
    """Platt scaling of each label on its natural logits, shrunk towards the shift alone; float64.

    `labels`: integers [n, L], -1 for unknown (left out); `logits` float [n, L] of a split that was not trained on,
    in its natural proportions; `shift` float [L], see `sampling.log_odds_shift`; `patients` int64 [n], 0 to P - 1;
    `prevalence` float [L] of the training split, in (0, 1). The order of the slices does not change a bit.

    Slope and intercept go the part 1 - chance / evidence of the way from 1 and 0 to those of `platt`, and no step where
    the evidence is no more than chance: a Gaussian prior around the shift alone whose width follows from the data, as
    in the estimator of James and Stein (1961). So few patients change nothing unless they speak clearly, and of many
    all counts.

    A label is refused, and says its `prevalence`, where its known values are not both of 0 and 1, where its logits do
    not differ, and where the slope is not positive. Raises `WrongUse` for a logit that is not finite.
    """
    labels, logits = np.asarray(labels), np.asarray(logits, np.float64)
    natural = logits - np.asarray(shift, np.float64)
    slope, intercept, refused = np.zeros(len(names)), logit(prevalence), {}
    for at, name in enumerate(names):
        known = labels[:, at] >= 0
        fitted = _fit_label(name, labels[known, at] == 1, natural[known, at], patients[known])
        if isinstance(fitted, str):
            refused[name] = fitted
        else:
            slope[at], intercept[at] = fitted
    return Calibration(tuple(names), np.array(shift, np.float64), slope, intercept, refused)


def _fit_label(
    name: str, positive: npt.NDArray[np.bool_], logits: _Numbers, patients: npt.NDArray[np.int64]
) -> tuple[float, float] | str:
    """Slope and intercept, or why there are none; `positive` bool [k], `logits` float64 [k], natural ones."""
    if not np.isfinite(logits).all():
        bad = logits[~np.isfinite(logits)][0]
        raise WrongUse(f"a logit of label {name!r} is {bad}; calibrate a model whose logits are finite")
    if not len(positive):
        return "no slice with a known label"
    if positive.all() or not positive.any():
        return f"no {'negative' if positive.all() else 'positive'} slice among the {len(positive):,} with a known label"
    if np.ptp(logits) <= _LEAST_RANGE * max(1.0, np.abs(logits).max()):
        return "the model gives every slice the same logit"
    # one order of summation, whatever the order of the slices
    order = np.lexsort((patients, positive, logits))
    logits, positive, patients = logits[order], positive[order], patients[order]
    scale, offset = platt(positive, logits)
    chance = _chance(min(len(np.unique(patients[positive])), len(np.unique(patients[~positive]))))
    evidence = _evidence(positive, logits, patients, scale, offset)
    part = 1 - chance / evidence if evidence > chance else 0.0
    slope = 1 + part * (scale - 1)
    if not slope > 0:
        return f"the fitted slope is {slope:.3g}: a higher logit of this model does not speak for the label"
    return slope, part * offset


def _chance(patients: int) -> float:
    """What `_evidence` stays below in all but `_RARELY` of the samples of a model that is right.

    `patients`: those with a slice of the rarer value. Twice a quantile of F with 2 and `patients` - 1 degrees of
    freedom, since the design effect is an estimate, too; infinite with one patient, who says nothing of others.
    """
    freedom = patients - 1
    return freedom * (_RARELY ** (-2 / freedom) - 1) if freedom else math.inf


def _evidence(
    positive: npt.NDArray[np.bool_], logits: _Numbers, patients: npt.NDArray[np.int64], slope: float, offset: float
) -> float:
    """How strongly the patients speak for `slope` and `offset` against 1 and 0: twice the gain in log likelihood.

    Divided by how much more the slices of a patient go together than independent ones do (the design effect: the
    mean of the eigenvalues of White's sandwich over the Fisher information, at least 1).
    """
    straight = slope * logits + offset
    truth = positive.astype(np.float64)
    gain = len(logits) * (_mean_loss(logits, truth) - _mean_loss(straight, truth))
    shown = sigmoid(straight)
    design = np.stack([(logits - logits.mean()) / logits.std(), np.ones_like(logits)], axis=1)
    information = (design * (shown * (1 - shown))[:, None]).T @ design
    scores = np.stack([np.bincount(patients, column * (truth - shown)) for column in design.T], axis=1)
    together = np.linalg.solve(information + _TOLERANCE * len(logits) * np.eye(2), scores.T @ scores)
    return float(2 * gain / max(1.0, np.trace(together) / 2))


def platt(positive: npt.NDArray[np.bool_], logits: _Numbers) -> tuple[float, float]:
    """Slope and intercept of least log loss (Platt 1999); `positive` bool [k], both values; `logits` float64 [k]."""
    centre, spread = logits.mean(), logits.std()
    scale, offset = _newton((logits - centre) / spread, _smoothed(positive))
    slope = scale / spread
    return float(slope), float(offset - slope * centre)


def _smoothed(positive: npt.NDArray[np.bool_]) -> _Numbers:
    """Platt's targets in place of 1 and 0: what keeps the fit of separable slices finite; bool [k] -> float64 [k]."""
    ones = np.count_nonzero(positive)
    return np.where(positive, (ones + 1) / (ones + 2), 1 / (len(positive) - ones + 2))


def _newton(inputs: _Numbers, targets: _Numbers) -> _Numbers:
    """float64 [2], the scale and offset of least mean log loss; by Newton's method with line search.

    `inputs`: float64 [k], mean 0 and standard deviation 1; `targets` float64 [k] in (0, 1). The loss is strictly
    convex and its minimum finite. Written as in Lin, Lin and Weng (2007), without a cancelling difference.
    """
    design = np.stack([inputs, np.ones_like(inputs)], axis=1)
    found = np.zeros(2)
    loss = _mean_loss(design @ found, targets)
    for _ in range(_STEPS):
        shown = sigmoid(design @ found)
        gradient = design.T @ (shown - targets) / len(inputs)
        if np.abs(gradient).max() < _TOLERANCE:
            break
        curvature = (design * (shown * (1 - shown))[:, None]).T @ design / len(inputs)
        # as small as Lin et al. have it: only there where every probability is 0 or 1
        step = np.linalg.solve(curvature + _TOLERANCE * np.eye(2), gradient)
        part = 1.0
        while (new := _mean_loss(design @ (found - part * step), targets)) >= loss and part > _SHORTEST:
            part /= 2
        if new >= loss:
            break
        found, loss = found - part * step, new
    return found


def _mean_loss(logits: _Numbers, targets: _Numbers) -> float:
    return float((np.logaddexp(0, logits) - targets * logits).mean())


def bin_of(probabilities: Any, bins: int) -> npt.NDArray[np.int64]:
    """int64, which of `bins` equal parts of [0, 1] each probability falls into: (0, 1/bins] is 0, and 0 too."""
    return np.clip(np.ceil(np.asarray(probabilities, np.float64) * bins).astype(np.int64) - 1, 0, bins - 1)


def calibration_error(labels: Any, probabilities: Any, bins: int = 15) -> float:
    """Expected calibration error: mean distance of probability and share of positives (Guo et al. 2017).

    `labels`: integers [n], -1 left out; `probabilities` float [n]. The slices of each of `bins` parts of [0, 1] of
    equal width are compared as one, and weigh as many as they are. nan without a known label.
    """
    labels, probabilities = _known(labels, probabilities)
    if not len(labels):
        return float("nan")
    part = bin_of(probabilities, bins)
    distance = np.bincount(part, probabilities, bins) - np.bincount(part, labels, bins)
    return float(np.abs(distance).sum() / len(labels))


def reliability(labels: Any, probabilities: Any, bins: int = 10) -> list[tuple[float, float, int]]:
    """Mean probability, share of positives and slices of each of up to `bins` groups, lowest probability first.

    `labels`: integers [n], -1 left out; `probabilities` float [n]. The groups hold equal numbers of slices, but for
    slices of equal probability, which stay together; a group that has none is left out.
    """
    labels, probabilities = _known(labels, probabilities)
    values, which, slices = np.unique(probabilities, return_inverse=True, return_counts=True)
    # the middle of its ranks says where a value belongs
    middle = np.cumsum(slices) - slices / 2
    group = np.minimum(np.floor(middle * bins / max(len(labels), 1)), bins - 1).astype(np.int64)
    size = np.bincount(group, slices, bins)
    ones = np.bincount(group[which], labels, bins)
    total = np.bincount(group, values * slices, bins)
    return [(float(t / n), float(y / n), int(n)) for t, y, n in zip(total, ones, size) if n]


def _known(labels: Any, probabilities: Any) -> tuple[_Numbers, _Numbers]:
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    known = labels >= 0
    return labels[known].astype(np.float64), probabilities[known]
