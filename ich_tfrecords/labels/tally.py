"""What the rows of a label file say of each image, study or whatever its ids name: merged where they agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ich_tfrecords.spec import LabelSpec

LABEL_CONFLICT = "label_conflict"
LABEL_INCOMPLETE = "label_incomplete"
LABEL_ANY_CONTRADICTION = "label_any_contradiction"
DROP_REASONS = (LABEL_CONFLICT, LABEL_INCOMPLETE, LABEL_ANY_CONTRADICTION)  # an id gets the first that holds
KEPT = len(DROP_REASONS)  # stands for none of them
DROP_COUNTS = ("conflicting_images", "incomplete_images", "any_contradictions")

Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class Tally:
    """How many rows of each label of each id there are, say it, and say 1: all int32 [labels, ids]."""

    rows: Int32
    said: Int32
    positive: Int32


def count(size: int, ids: Sequence[npt.NDArray[np.integer]], codes: Sequence[Int8]) -> Tally:
    """Tally of `size` ids; for each label, the id of each row that speaks of it and what it says (1, 0, -1)."""
    rows, said, positive = (np.empty((len(ids), size), np.int32) for _ in range(3))
    for label, (at, code) in enumerate(zip(ids, codes, strict=True)):
        rows[label] = np.bincount(at, minlength=size)
        unknown = code < 0
        said[label] = np.bincount(at[~unknown], minlength=size) if unknown.any() else rows[label]
        positive[label] = np.bincount(at[code == 1], minlength=size)
    return Tally(rows, said, positive)


def merged(tally: Tally, labels: LabelSpec, may_miss: bool) -> tuple[Int8, npt.NDArray[np.int64]]:
    """Labels of each id, int8 [labels, ids], and its drop reason: an index into `DROP_REASONS`, or `KEPT`.

    Where a label `may_miss`, one that no row says is unknown (-1), unless it follows from the others.
    """
    values = (tally.positive > 0).astype(np.int8)
    conflict = ((tally.positive > 0) & (tally.positive < tally.said)).any(axis=0)
    lacking = tally.said == 0
    incomplete = lacking.any(axis=0)
    if may_miss and incomplete.any():
        values[lacking] = -1
        incomplete = np.zeros_like(incomplete)
    checks = [conflict, incomplete, contradicts_any(values, labels)]
    reason = np.select(checks, list(range(KEPT)), KEPT)
    return close(values, labels), reason


def contradicts_any(values: Int8, labels: LabelSpec) -> npt.NDArray[np.bool_]:
    """bool [ids], where `any` is 0 and another label 1, or 1 and all others 0 (`values` int8 [labels, ids])."""
    if len(labels.names) == 1:
        return np.zeros(values.shape[1], bool)
    either = values[labels.names.index(labels.any)]
    most = values[[labels.names.index(name) for name in labels.rarest_first]].max(axis=0)
    least = values[[labels.names.index(name) for name in labels.rarest_first]].min(axis=0)
    return ((either == 0) & (most == 1)) | ((either == 1) & (most == 0) & (least == 0))


def close(values: Int8, labels: LabelSpec) -> Int8:
    """`values` (int8 [labels, ids], changed in place) with what follows: `any` from the other labels, and back.

    A 1 makes `any` 1, all others 0 make `any` 0, and `any` 0 makes all others 0. Nothing that is known changes.
    """
    if len(labels.names) == 1 or not (values < 0).any():
        return values
    either = values[labels.names.index(labels.any)]
    others = [labels.names.index(name) for name in labels.rarest_first]
    positive, negative = (values[others] == 1).any(axis=0), (values[others] == 0).all(axis=0)
    either[(either < 0) & positive] = 1
    either[(either < 0) & negative] = 0
    for label in others:
        values[label, (values[label] < 0) & (either == 0)] = 0
    return values


def counts(tally: Tally, reason: npt.NDArray[np.int64], per_row: int) -> dict[str, int]:
    """Sizes of a label file (`LabelTable.counts`), in which `per_row` labels stand in one row."""
    repeats = np.maximum(tally.rows - 1, 0).sum(axis=0) // per_row
    told = repeats[reason != DROP_REASONS.index(LABEL_CONFLICT)]
    dropped = {count: int((reason == index).sum()) for index, count in enumerate(DROP_COUNTS)}
    return {
        "rows": int(tally.rows.sum()) // per_row,
        "images": int((reason == KEPT).sum()),
        "duplicate_rows": int(told.sum()),
        "duplicate_images": int(np.count_nonzero(told)),
        **dropped,
    }
