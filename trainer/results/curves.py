"""Points to draw: ROC and precision-recall curves of one label, thinned, and bands over resamples of patients."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.results import bootstrap
from trainer.results.bootstrap import FEWEST_PATIENTS, LEVEL, Ranking, Steps

POINTS = 200  # of a curve at most
GRID = 101  # places of a band, 0 to 1

_Numbers = npt.NDArray[np.float64]
_Band = tuple[_Numbers, _Numbers, _Numbers]


def roc_points(labels: Any, scores: Any) -> tuple[_Numbers, _Numbers]:
    """False and true positive rates, float64 [k], ascending from (0, 0) to (1, 1), k up to `POINTS`.

    `labels`: integers [n], -1 left out; `scores` float [n]. Both are empty where the known labels are not both of
    0 and 1.
    """
    from sklearn.metrics import roc_curve

    labels, scores = _known(labels, scores)
    if not _both(labels):
        return np.empty(0), np.empty(0)
    false_rate, true_rate, _ = roc_curve(labels, scores)
    return thinned(false_rate, true_rate, POINTS)


def pr_points(labels: Any, scores: Any) -> tuple[_Numbers, _Numbers]:
    """Recall and precision, float64 [k], recall ascending from 0 (there precision 1) to 1, k up to `POINTS`.

    `labels`: integers [n], -1 left out; `scores` float [n]. Both are empty where the known labels are not both of
    0 and 1.
    """
    from sklearn.metrics import precision_recall_curve

    labels, scores = _known(labels, scores)
    if not _both(labels):
        return np.empty(0), np.empty(0)
    precision, recall, _ = precision_recall_curve(labels, scores)
    # thresholds below the last positive slice only lengthen the fall at recall 1, which is not part of the picture
    first = int(np.flatnonzero(recall == 1)[-1])
    return thinned(recall[first:][::-1], precision[first:][::-1], POINTS)


def roc_band(
    labels: Any, scores: Any, patients: npt.NDArray[np.int64], resamples: int, seed: int, level: float = LEVEL
) -> _Band:
    """False positive rates float64 [`GRID`], and between what the middle `level` of the true positive rates lies.

    `labels`: integers [n], -1 left out; `scores` float [n]; `patients` int64 [n], 0 to P - 1, which are drawn
    whole. The curves of the resamples are averaged vertically (Fawcett 2006). nan where too few are defined, and
    everywhere with fewer than `bootstrap.FEWEST_PATIENTS` of either value.
    """
    return _band(_true_rates, labels, scores, patients, resamples, seed, level)


def pr_band(
    labels: Any, scores: Any, patients: npt.NDArray[np.int64], resamples: int, seed: int, level: float = LEVEL
) -> _Band:
    """Recalls float64 [`GRID`], and between what the middle `level` of the precisions lies at each.

    As `roc_band`. The precision at a recall is that of the highest threshold that reaches it, the one that average
    precision counts.
    """
    return _band(_precisions, labels, scores, patients, resamples, seed, level)


def thinned(x: _Numbers, y: _Numbers, points: int) -> tuple[_Numbers, _Numbers]:
    """At most `points` of the points of a line, float64 [k] each, chosen where leaving them out shows most.

    Douglas and Peucker (1973), farthest point first. The ends always stay.
    """
    kept = {0, len(x) - 1}
    spans = [_farthest(x, y, 0, len(x) - 1)]
    while spans and len(kept) < points:
        distance, at, first, last = heapq.heappop(spans)
        if distance == 0:
            break
        kept.add(at)
        for part in ((first, at), (at, last)):
            heapq.heappush(spans, _farthest(x, y, *part))
    chosen = sorted(kept)
    return x[chosen], y[chosen]


def _farthest(x: _Numbers, y: _Numbers, first: int, last: int) -> tuple[float, int, int, int]:
    """Minus the distance of the point farthest from the line between two points, which point it is, and the two."""
    across, up = x[last] - x[first], y[last] - y[first]
    right, over = x[first : last + 1] - x[first], y[first : last + 1] - y[first]
    length = float(np.hypot(across, up))
    # where both ends are one point there is no line, and the distance is that from the point
    away = np.abs(across * over - up * right) / length if length else np.hypot(right, over)
    at = int(np.argmax(away))
    return -float(away[at]), first + at, first, last


def _known(labels: Any, scores: Any) -> tuple[Any, Any]:
    known = np.asarray(labels) >= 0
    return np.asarray(labels)[known], np.asarray(scores)[known]


def _both(labels: Any) -> bool:
    return bool((labels == 1).any() and (labels == 0).any())


def _band(
    read: Callable[[Steps], _Numbers],
    labels: Any,
    scores: Any,
    patients: npt.NDArray[np.int64],
    resamples: int,
    seed: int,
    level: float,
) -> _Band:
    grid = np.linspace(0, 1, GRID)
    ranking = Ranking(labels, scores, patients)
    if min(ranking.positive_patients, ranking.negative_patients) < FEWEST_PATIENTS:
        return grid, np.full(GRID, np.nan), np.full(GRID, np.nan)
    chunk = bootstrap.rows_at_a_time(len(patients))
    draws = bootstrap.patient_counts(bootstrap.patients_in(patients), resamples, seed, chunk)
    curves = np.concatenate([read(ranking.steps(counts)) for counts in draws] or [np.empty((0, GRID))])
    low, high = np.array([bootstrap.middle(curves[:, at], level) for at in range(GRID)]).T
    return grid, low, high


def _true_rates(steps: Steps) -> _Numbers:
    """float64 [c, `GRID`]: the true positive rate of each resample along the grid of false positive rates."""
    return np.array([_true_rate(*row) for row in zip(*steps)])


def _true_rate(hits: _Numbers, above: _Numbers, through: _Numbers, positives: float, negatives: float) -> _Numbers:
    if not (positives and negatives):
        return np.full(GRID, np.nan)
    # level up to each step, then up (or aslant, where negatives share the score), then level to the end
    alarms = np.r_[0, np.stack([above, through], axis=1).ravel(), negatives]
    found = np.r_[0, np.stack([np.r_[0, hits[:-1]], hits], axis=1).ravel(), positives]
    return np.interp(false_alarms(negatives), alarms, found) / positives


def false_alarms(negatives: float) -> _Numbers:
    """float64 [`GRID`]: the false alarms that the grid of false positive rates stands for, exact where whole."""
    # the product first: np.linspace falls short of some whole numbers, and the step that lies there is missed
    return np.arange(GRID) * negatives / (GRID - 1)


def _precisions(steps: Steps) -> _Numbers:
    """float64 [c, `GRID`]: the precision of each resample along the grid of recalls."""
    return np.array([_precision(*row) for row in zip(*steps)])


def _precision(hits: _Numbers, above: _Numbers, through: _Numbers, positives: float, negatives: float) -> _Numbers:
    if not (positives and negatives):
        return np.full(GRID, np.nan)
    # in whole numbers, so that a recall met exactly counts as met; recall 0 is the first hit
    wanted = np.maximum(np.arange(GRID) * positives, 1)
    at = np.searchsorted(hits.astype(np.float64) * (GRID - 1), wanted)
    return hits[at] / (hits[at] + through[at])
