"""The plan of slices into series: which rows of a table are one series, and in which order they lie in the head."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords.dataset import splits
from trainer.shell.problems import WrongUse

Int64 = npt.NDArray[np.int64]

KEY = ("patient_key", "study_uid", "series_uid")


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """k series of n slices, sorted by patient, study and series; the slices of each from feet to head.

    `rows` int64 [n]: numbers of rows of the table that was planned, series after series. `offsets` int64 [k + 1]:
    series i has `rows[offsets[i]:offsets[i + 1]]`.
    """

    rows: Int64
    offsets: Int64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> Int64:
        return self.rows[self.offsets[number] : self.offsets[number + 1]]

    def __iter__(self) -> Iterator[Int64]:
        return (self[number] for number in range(len(self)))

    @property
    def lengths(self) -> Int64:
        """int64 [k], slices of each series."""
        return np.diff(self.offsets)


def plan(table: pa.Table) -> Series:
    """`Series` of the slices of a table with the columns `KEY`, position_mm and sop_uid, such as `Slices.table`.

    Slices at one position come in the order of their SOP UIDs, so that the plan follows from the slices alone, in
    whatever order they are handed in. Raises `WrongUse` for a slice without a position.
    """
    _require_positions(table)
    series = numbers(table)
    columns = {"series": series, "position_mm": table["position_mm"], "sop_uid": table["sop_uid"]}
    ordered = pa.table(columns).combine_chunks()
    rows = pc.sort_indices(ordered, [(name, "ascending") for name in columns]).to_numpy().astype(np.int64)
    of_row = series[rows]
    begins = np.flatnonzero(np.r_[True, of_row[1:] != of_row[:-1]]) if len(rows) else np.zeros(0, np.int64)
    return Series(rows, np.r_[begins, len(rows)].astype(np.int64))


def place(position_mm: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """float32 [n, 3] of slices of a series in order: mm to the slice below and above, and the height, 0 to 1.

    `position_mm`: float64 [n], ascending, of which float32 counts: a served model is handed no more. 0 mm where there
    is no slice; half the height where all are at one.
    """
    position_mm = position_mm.astype(np.float32).astype(np.float64)
    gaps = np.diff(position_mm, prepend=position_mm[:1], append=position_mm[-1:])
    whole = position_mm[-1] - position_mm[0]
    height = (position_mm - position_mm[0]) / whole if whole > 0 else np.full(len(position_mm), 0.5)
    return np.stack([gaps[:-1], gaps[1:], height], axis=1).astype(np.float32)


def require_order(found: Series, table: pa.Table) -> None:
    """Raises `WrongUse` for a series of several slices that all lie at one position: they have no order.

    `table`: the one that was planned.
    """
    position_mm = table["position_mm"].to_numpy()[found.rows]
    first, last = position_mm[found.offsets[:-1]], position_mm[found.offsets[1:] - 1]
    flat = np.flatnonzero((found.lengths > 1) & (first == last))
    if len(flat):
        uid = table["series_uid"][int(found[int(flat[0])][0])].as_py()
        raise WrongUse(
            f"series {uid} has {found.lengths[flat[0]]} slices at one position ({len(flat):,} of {len(found):,} series "
            "are so), so they have no order; convert without it, or take a model of single slices"
        )


def _require_positions(table: pa.Table) -> None:
    known = pc.fill_null(pc.is_finite(table["position_mm"]), False)
    lost = len(table) - pc.sum(known, min_count=0).as_py()
    if lost:
        first = table["sop_uid"].filter(pc.invert(known))[0].as_py()
        raise WrongUse(
            f"slice {first} has no position_mm ({lost:,} of {len(table):,} slices lack it), so its place among its "
            "neighbours is not known; convert again, or take a model of single slices"
        )


def numbers(table: pa.Table, key: Sequence[str] = KEY) -> Int64:
    """int64 [n], a number for the series of each row, in the order of the sorted keys; `key`: columns that name it."""
    found = np.zeros(len(table), np.int64)
    for name in key:
        values, codes = splits.sorted_codes(table[name])
        found = np.unique(found * len(values) + codes, return_inverse=True)[1].astype(np.int64)
    return found
