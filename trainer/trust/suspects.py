"""Which labels are most likely wrong: confident learning per label, what neighbours in the series and copies say.

Northcutt, Jiang and Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels (JAIR 2021), each label by
itself as a problem of two values. Probabilities must come from models that never saw the slice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Int8 = npt.NDArray[np.int8]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

LEAST = 10  # slices of either value: with fewer a label is not judged
COPY = float(np.log(9))  # log odds: of nine in ten copies the label is believed
_EDGE = 1e-6  # probabilities are kept this far from 0 and 1


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """What is thought of each label of each slice; arrays [n, L], false or nan where a label is not judged.

    `score` float64: 0 (surely wrong) to 1, the confidence in the given value beside that in slices that bear it.
    `suspect`: the other value has more, measured alike. `confident`: off the diagonal of the confident joint.
    `against`: all neighbours bear the other value; `with_it`: one bears the same; `border`: the two neighbours differ.
    `copied`: a slice of the same pixels bears the other value. `contradicts`: `any` and the kinds of the slice.
    `thresholds` float64 [L, 2]: mean confidence of slices that bear 0, and 1. `joint` int64 [L, 2, 2]: slices by given
    and confident value. `refused` [L]: why a label is not judged, empty where it is.
    """

    score: Float64
    suspect: Bools
    confident: Bools
    against: Bools
    with_it: Bools
    border: Bools
    copied: Bools
    contradicts: Bools
    thresholds: Float64
    joint: Int64
    refused: tuple[str, ...]

    def ranked(self) -> Int64:
        """int64 [k, 2]: slice and label of each suspect, the most suspicious first; equal ones in the order of rows."""
        rows, labels = np.nonzero(self.suspect)
        order = np.argsort(self.score[rows, labels], kind="stable")
        return np.stack([rows, labels], axis=1)[order]

    @property
    def judged(self) -> int:
        """How many labels of slices were judged."""
        return int(np.isfinite(self.score).sum())

    @property
    def clear(self) -> Bools:
        """Suspects that pass the rule of corrections: confident, and neighbours or copies bear the other value alone.

        A model by itself, which may be a weak one, corrects nothing.
        """
        return self.suspect & self.confident & (self.against | (self.copied & ~self.with_it))


def beside(series: Int64, place: Int64) -> Int64:
    """int64 [n, 2]: rows of the slices directly below and above each in its series, -1 where there is none.

    `series` int64 [n]: a number for each series; `place`: of the slice in it. A slice that lacks is no neighbour.
    """
    order = np.lexsort((place, series))
    found = np.full((len(series), 2), -1, np.int64)
    lower, upper = order[:-1], order[1:]
    near = (series[lower] == series[upper]) & (place[lower] + 1 == place[upper])
    found[upper[near], 0], found[lower[near], 1] = lower[near], upper[near]
    return found


def judge(labels: Int8, probabilities: Float64, neighbours: Int64, pixels: Int64, any_label: int) -> Judged:
    """`Judged` of n slices.

    `labels` int8 [n, L]: 1, 0, and -1 for unknown, which is never judged. `probabilities` float64 [n, L], of label 1,
    held out, nan where the model of a fold knows nothing of a label. `neighbours`: as `beside` gives them. `pixels`
    int64 [n]: alike for slices with the same pixels.
    `any_label`: number of the label that stands for all others.
    """
    refused = tuple(map(_refused, np.where(np.isnan(probabilities), np.int8(-1), labels).T))
    judged = (labels >= 0) & np.array([not why for why in refused])
    lower, upper = (_of_neighbours(labels, rows) for rows in neighbours.T)
    other = 1 - labels
    differs = [(one >= 0) & (one == other) for one in (lower, upper)]
    same = [(one >= 0) & (one == labels) for one in (lower, upper)]
    border = judged & (lower >= 0) & (upper >= 0) & (lower != upper)
    ones, zeros = _copies(labels, pixels)
    copied = judged & np.where(labels == 1, zeros > 0, ones > 0)
    contradicts = _contradicts(labels, any_label) & judged
    thresholds, joint = np.full((labels.shape[1], 2), np.nan), np.zeros((labels.shape[1], 2, 2), np.int64)
    confident, score, suspect = np.zeros_like(judged), np.full(judged.shape, np.nan), np.zeros_like(judged)
    for label in np.flatnonzero([not why for why in refused]):
        rows = np.flatnonzero(judged[:, label])
        given, seen = labels[rows, label], probabilities[rows, label]
        told = ~np.isnan(seen)
        thresholds[label], joint[label], confident[rows[told], label] = confident_joint(given[told], seen[told])
        seen = np.where(told, seen, (given == 1).mean())  # without an opinion of the model neighbours and copies speak
        moved = _log_odds(seen) + COPY * (ones[rows, label] - zeros[rows, label])
        moved += _of_series(labels[:, label], lower[:, label], upper[:, label])[rows]
        score[rows, label], suspect[rows, label] = _weighed(given, moved, border[rows, label])
    suspect |= (copied | contradicts) & (score < 1)
    against = judged & (differs[0] | differs[1]) & ~(same[0] | same[1])
    with_it = judged & (same[0] | same[1])
    return Judged(score, suspect, confident, against, with_it, border, copied, contradicts, thresholds, joint, refused)


def _refused(values: Int8) -> str:
    """Why a label cannot be judged: too few slices of a value; nothing where it can."""
    for value, word in ((1, "positive"), (0, "negative")):
        if (count := int((values == value).sum())) < LEAST:
            return f"{count:,} {word} slices, and {LEAST:,} are needed"
    return ""


def confident_joint(given: Int8, probabilities: Float64) -> tuple[Float64, Int64, Bools]:
    """Thresholds [2], the joint int64 [2, 2] of given and confident value, and bool [n], what is off its diagonal.

    `given` int8 [n]: 0 or 1, both of them there; `probabilities` float64 [n], of 1. A value is confident where its
    probability reaches the mean that it has over the slices that bear it; of two confident values the likelier counts.
    """
    told = np.stack([1 - probabilities, probabilities], axis=1)
    thresholds = np.array([told[given == value, value].mean() for value in (0, 1)])
    reached = told >= thresholds - _EDGE
    guess = np.where(reached.all(axis=1), told.argmax(axis=1), reached.argmax(axis=1))
    counted = reached.any(axis=1)
    joint = np.zeros((2, 2), np.int64)
    np.add.at(joint, (given[counted], guess[counted]), 1)
    return thresholds, joint, counted & (guess != given)


def _weighed(given: Int8, log_odds: Float64, border: Bools) -> tuple[Float64, Bools]:
    """Score and suspicion of slices by the log odds of 1, after neighbours and copies were heard.

    Next to a change a label is a matter of taste: there doubt counts half, in log.
    """
    chance = 1 / (1 + np.exp(-log_odds))
    told = np.stack([1 - chance, chance], axis=1)
    usual = np.array([told[given == value, value].mean() for value in (0, 1)])
    shares, at = told / usual, np.arange(len(given))
    own, other = shares[at, given], shares[at, 1 - given]
    score = np.minimum(own, 1.0)
    return np.where(border, np.sqrt(score), score), own < other


def _of_series(given: Int8, lower: Int8, upper: Int8) -> Float64:
    """float64 [n], by how much the neighbours of each slice move its log odds, as the labels themselves tell.

    Two that agree, or one alone, move it by what slices with such neighbours are more often than others; two that
    differ say nothing.
    """
    moved, known = np.zeros(len(given)), given >= 0
    whole = _share_log_odds(given[known])
    for value in (0, 1):
        for kinds in ((value, value), (value, -1), (-1, value)):
            alike = (lower == kinds[0]) & (upper == kinds[1])
            if (alike & known).any():
                moved[alike] = _share_log_odds(given[alike & known], whole) - whole
    return moved


def _share_log_odds(values: Int8, prior: float = 0.0) -> float:
    """Log odds of the share of ones; of few values near `prior`, as if two slices more had been seen there."""
    share = (np.sum(values == 1) + 2 / (1 + np.exp(-prior))) / (len(values) + 2)
    return float(np.log(share / (1 - share)))


def _log_odds(probabilities: Float64) -> Float64:
    kept = np.clip(probabilities, _EDGE, 1 - _EDGE)
    return np.asarray(np.log(kept / (1 - kept)))


def _of_neighbours(labels: Int8, rows: Int64) -> Int8:
    """int8 [n, L]: labels of the neighbours at `rows`, -1 where there is none."""
    return np.where((rows >= 0)[:, None], labels[rows], np.int8(-1))


def _copies(labels: Int8, pixels: Int64) -> tuple[Int64, Int64]:
    """int64 [n, L] each: how many other slices of the same pixels bear 1, and 0."""
    _, group = np.unique(pixels, return_inverse=True)
    found = []
    for value in (1, 0):
        bears = (labels == value).astype(np.int64)
        total = np.zeros((group.max(initial=-1) + 1, labels.shape[1]), np.int64)
        np.add.at(total, group, bears)
        found.append(total[group] - bears)
    return found[0], found[1]


def _contradicts(labels: Int8, any_label: int) -> Bools:
    """bool [n, L]: `any` is 0 beside a kind that is 1, or 1 where all kinds are 0; true for all labels involved."""
    kinds = np.delete(np.arange(labels.shape[1]), any_label)
    found = np.zeros(labels.shape, bool)
    if not len(kinds):
        return found
    either = labels[:, any_label]
    hidden, empty = (
        (either == 0)[:, None] & (labels[:, kinds] == 1),
        (either == 1) & (labels[:, kinds] == 0).all(axis=1),
    )
    found[:, kinds] = hidden | empty[:, None]
    found[:, any_label] = hidden.any(axis=1) | empty
    return found


def corrections(
    labels: Int8, chosen: Sequence[tuple[int, int]], doubted: Bools, any_label: int
) -> list[tuple[int, int, int]]:
    """Slice, label and new value of what turns `chosen` labels (slice, label) round and leaves `any` in order.

    Slices in the order of `chosen`. Kinds decide, and `any` follows with a row of its own. A slice whose last kind
    would fall is left out unless its `any` is `doubted` (bool [n, L]) too: perhaps it is another kind, which a person
    has to say.
    """
    turned: dict[int, list[int]] = {}
    for row, label in chosen:
        turned.setdefault(row, []).append(label)
    return [fix for row, own in turned.items() for fix in _of_slice(row, own, labels[row], doubted[row], any_label)]


def _of_slice(row: int, own: list[int], given: Int8, doubted: Bools, any_label: int) -> list[tuple[int, int, int]]:
    if len(given) == 1:
        return [(row, any_label, 1 - int(given[any_label]))]
    after = given.copy()
    falls = [label for label in own if label != any_label]
    after[falls] = 1 - given[falls]
    kinds = np.delete(after, any_label)
    if (kinds == 1).any():
        after[any_label] = 1
    elif (kinds == 0).all():
        after[any_label] = 0
    elif any_label in own:  # what its kinds are nobody knows
        after[any_label] = 1 - given[any_label]
    if after[any_label] == 0 and given[any_label] == 1 and not doubted[any_label]:
        return []
    order = [any_label, *(label for label in range(len(given)) if label != any_label)]
    return [(row, label, int(after[label])) for label in order if after[label] != given[label]]
