"""From which probability on a slice is called positive: a few rules, each of one label, chosen on one split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

RULES = ("youden", "f1", "sensitivity_95", "specificity_95", "even")
HEADLINE = "youden"
EVEN = "even"

_WANTED = 0.95
_LEAST = 1e-15  # of a probability and of what it lacks to 1, so that its logit is finite

_Numbers = npt.NDArray[np.float64]
Value = TypeVar("Value")


def choose(labels: Any, probabilities: Any) -> dict[str, float]:
    """Rule -> threshold t of one label: positive is a slice with probability >= t.

    `labels`: integers [n], -1 left out; `probabilities` float [n]. `youden`: greatest sensitivity + specificity - 1
    (Youden 1950). `f1`: greatest F1. `sensitivity_95`: the highest with a sensitivity of 0.95 or more.
    `specificity_95`: the lowest with a specificity of 0.95 or more; missing where only a threshold that flags
    nothing would do. `even`: 0.5. Of equally good thresholds the highest. A label without both values has only
    `even`.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    known = labels >= 0
    positive, scores = labels[known] == 1, probabilities[known]
    if positive.all() or not positive.any():
        return {EVEN: 0.5}
    hits, alarms, steps = _steps(positive, scores)
    chosen = {rule: _between(steps, at) for rule, at in _places(hits, alarms).items()}
    return {rule: chosen.get(rule, 0.5) for rule in RULES if rule in chosen or rule == EVEN}


def foreseen(
    labels: Any, probabilities: Any, patients: npt.NDArray[np.int64], resamples: int, seed: int
) -> dict[str, Any]:
    """What the thresholds of `choose` rest on, and what they will hold on new patients, ready for JSON.

    "positives", "patients": positive slices, and patients that have one. "rules": rule -> sensitivity and specificity,
    each a dict of value, low and high (95%, see `bootstrap.interval`), None where nothing is known. On the slices that
    chose it a threshold looks better than it is. So each of `resamples` draws of the patients chooses anew, and the
    patients that were not drawn measure it (Efron 1983); the value is the mean. `patients`: int64 [n], 0 to P - 1.
    """
    from trainer.results import bootstrap

    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    known = labels >= 0
    positive, scores, people = labels[known] == 1, probabilities[known], patients[known]
    counts = {"positive": len(np.unique(people[positive])), "negative": len(np.unique(people[~positive]))}
    rests = {"positives": int(positive.sum()), "patients": counts["positive"]}
    held: dict[str, list[tuple[float, float]]] = {rule: [] for rule in choose(labels, probabilities)}
    if counts["positive"] and counts["negative"]:
        order = np.argsort(-scores, kind="stable")
        positive, scores, people = positive[order], scores[order], people[order]
        for drawn in bootstrap.patient_counts(bootstrap.patients_in(patients), resamples, seed, resamples):
            for weights in drawn:
                _measure_left_out(held, positive, scores, weights[people])
    shares = {rule: np.array(rows).reshape(-1, 2) for rule, rows in held.items()}
    return rests | {
        "rules": {
            rule: {
                name: _foreseen(values[:, at], counts[carries])
                for at, (name, carries) in enumerate((("sensitivity", "positive"), ("specificity", "negative")))
            }
            for rule, values in shares.items()
        }
    }


def _measure_left_out(
    held: Mapping[str, list[tuple[float, float]]],
    positive: npt.NDArray[np.bool_],
    scores: _Numbers,
    weights: npt.NDArray[np.int32],
) -> None:
    """Add to `held` the sensitivity and specificity of each rule, chosen by `weights` and measured where they are 0.

    Slices in order of their `scores`, highest first. Nothing is added where either side lacks a value.
    """
    ends = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True])
    hits, alarms = (np.cumsum(weights * of, dtype=np.int64)[ends] for of in (positive, ~positive))
    left_hits, left_alarms = (np.cumsum((weights == 0) & of)[ends] for of in (positive, ~positive))
    if not all(sums[-1] for sums in (hits, alarms, left_hits, left_alarms)):
        return
    last = int(np.searchsorted(-scores[ends], -0.5, side="right")) - 1  # that reaches one half
    for rule, at in ({EVEN: last} | _places(hits, alarms)).items():
        if rule in held:
            flagged, alarmed = (left_hits[at], left_alarms[at]) if at >= 0 else (0, 0)
            held[rule].append((flagged / left_hits[-1], 1 - alarmed / left_alarms[-1]))


def _foreseen(values: _Numbers, patients: int) -> dict[str, float | None]:
    """Mean of `values` float64 [r], each of the patients that a resample left out, with its interval."""
    from trainer.results import bootstrap

    if not len(values):
        return dict.fromkeys(("value", "low", "high"))
    mean = float(values.mean())
    # a resample leaves out 37% of the patients, who scatter more than all, so that the interval is rather too wide
    low, high = bootstrap.interval([mean, *values], bootstrap.SHARE, patients)
    return {name: None if np.isnan(end) else end for name, end in (("value", mean), ("low", low), ("high", high))}


def unchosen(names: Iterable[str]) -> dict[str, dict[str, float]]:
    """Label -> rule -> threshold where there is nothing to choose on: `even` alone."""
    return {name: {EVEN: 0.5} for name in names}


def headline(chosen: Mapping[str, Value]) -> tuple[str, Value]:
    """The rule that decides about a label, and what stands there: `HEADLINE`, or `even` where that was not chosen."""
    rule = HEADLINE if HEADLINE in chosen else EVEN
    return rule, chosen[rule]


def _steps(positive: npt.NDArray[np.bool_], scores: _Numbers) -> tuple[npt.NDArray[np.int64], ...]:
    """Positive and negative slices at or above each distinct score, int64 [k], and the scores, highest first."""
    from sklearn.metrics import roc_curve

    false_rate, true_rate, steps = roc_curve(positive, scores, drop_intermediate=False)
    # whole numbers again, so that equally good thresholds are equal; the first step of scikit-learn flags nothing
    ones = np.count_nonzero(positive)
    hits, alarms = np.rint(true_rate * ones), np.rint(false_rate * (len(positive) - ones))
    return hits[1:].astype(np.int64), alarms[1:].astype(np.int64), steps[1:]


def _places(hits: npt.NDArray[np.int64], alarms: npt.NDArray[np.int64]) -> dict[str, int]:
    """Rule -> index of the step it chooses; the last step flags every slice."""
    ones, zeros = int(hits[-1]), int(alarms[-1])
    sensitive = hits / ones >= _WANTED
    specific = (zeros - alarms) / zeros >= _WANTED
    places = {
        "youden": int(np.argmax(hits * zeros - alarms * ones)),
        "f1": int(np.argmax(2 * hits / (hits + alarms + ones))),
        "sensitivity_95": int(np.argmax(sensitive)),
    }
    if specific.any():
        places["specificity_95"] = int(np.flatnonzero(specific)[-1])
    return places


def _between(steps: Any, at: int) -> float:
    """A threshold that parts step `at` from the next lower one, midway on the scale of logits.

    Rounding a probability then moves no slice across. The lowest step has no neighbour and is its own threshold.
    """
    upper = float(steps[at])
    if at + 1 == len(steps):
        return upper
    lower = float(steps[at + 1])
    middle = float(1 / (1 + np.exp(-(_logit(upper) + _logit(lower)) / 2)))
    return middle if lower < middle <= upper else upper


def _logit(probability: float) -> float:
    inside = min(max(probability, _LEAST), 1 - _LEAST)
    return float(np.log(inside) - np.log1p(-inside))
