"""Labels of several files and levels -> those of each slice and study, as far as they follow; contradictions are told.

A 0 of a series, study, patient or folder is the label 0 of every slice in it. A 1 says that one of them bears it and
not which, so that it never is the label of a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ich_tfrecords.labels import join, levels
from ich_tfrecords.labels.csv_file import LabelError
from ich_tfrecords.labels.fixes import Fixes, corrected
from ich_tfrecords.labels.join import AMBIGUOUS, NO_LABEL, Joined
from ich_tfrecords.labels.levels import Cover
from ich_tfrecords.labels.studies import Studies, of_studies
from ich_tfrecords.labels.table import PATIENT, LabelTable
from ich_tfrecords.labels.tally import LABEL_ANY_CONTRADICTION, LABEL_CONFLICT, close, contradicts_any
from ich_tfrecords.plural import counted
from ich_tfrecords.spec import LabelSpec

Bools = npt.NDArray[np.bool_]
Int8 = npt.NDArray[np.int8]
Int16 = npt.NDArray[np.int16]
Int64 = npt.NDArray[np.int64]

_OTHERS = "what the others say"


class Labelled(NamedTuple):
    """`joined`: as of one file; `studies`: where a file speaks of more than slices."""

    joined: Joined
    studies: Studies | None


def follow(
    slices: pa.Table, tables: Sequence[LabelTable], labels: LabelSpec, may_miss: bool, fixes: Fixes | None = None
) -> Labelled:
    """Labels of slices with different SOP UIDs (the columns of `levels.cover`, and `sop_uid`) by all tables together.

    A slice of which no table speaks is `no_label`; where labels `may_miss`, its labels are unknown. `fixes` stand above
    what tables say of slices. Raises `LabelError` for a table that speaks of no slice, and for a fix that cannot be.
    """
    if len(tables) == 1 and tables[0].of_slices and not (may_miss or levels.in_files_of_many(slices).any()):
        joined = join.join(slices, tables[0])
        return Labelled(_fixed(slices, joined, labels, fixes) if fixes else joined, None)
    return _Together(slices, tables, labels).result(may_miss, fixes)


def _fixed(slices: pa.Table, joined: Joined, labels: LabelSpec, fixes: Fixes) -> Joined:
    values = np.full((slices.num_rows, len(labels.names)), -1, np.int8)
    values[joined.known] = joined.values
    values, note = corrected(fixes, slices["sop_uid"], joined.known, values, labels)
    return joined._replace(values=values[joined.known], notes=(*joined.notes, note))


class _Together:
    """The state of `follow`: what is said of each slice, and which slices are in doubt and why."""

    def __init__(self, slices: pa.Table, tables: Sequence[LabelTable], labels: LabelSpec) -> None:
        self.slices, self.tables, self.labels = slices, tables, labels
        self.sources = [table.name for table in tables]  # and behind them the corrections
        shape = slices.num_rows, len(labels.names)
        self.own = np.full(shape, -1, np.int8)
        self.own_from = np.full(shape, -1, np.int16)  # the table that says it, -1 where it follows from others
        self.zero_from = np.full(shape, -1, np.int16)  # the first table above slices that says 0, -1 where none does
        self.spoken = np.zeros(shape[0], bool)
        self.doubt = np.full(shape[0], -1, np.int64)  # index into `doubts`
        self.doubts: list[tuple[str, str]] = []
        self.covers: dict[int, Cover] = {}
        self.inside = levels.in_files_of_many(slices)
        self.unused, self.notes = 0, list[str]()

    def result(self, may_miss: bool, fixes: Fixes | None) -> Labelled:
        for number, table in enumerate(self.tables):
            (self._of_slices if table.of_slices else self._above)(number, table)
        close(self.own.T, self.labels)
        if fixes:
            self._fix(fixes, (self.spoken | may_miss) & (self.doubt < 0))
        self._doubt_any(self.own)
        self._zeros_beside_ones()
        values = np.where((self.own < 0) & (self.zero_from >= 0), np.int8(0), self.own)
        close(values.T, self.labels)
        self._doubt_any(values)
        self._ones_nowhere(values)
        studies = of_studies(self.slices, self.tables, self.covers, values, self.doubt >= 0, self.labels)
        self._tell(may_miss)
        known = (self.doubt < 0) & (self.spoken | may_miss)
        reasons, details = self._refusals(~known)
        joined = Joined(known, values[known], reasons, details, self.unused, tuple(self.notes))
        return Labelled(joined, studies if self.covers else None)

    def _fix(self, fixes: Fixes, known: Bools) -> None:
        """Put the corrections in the place of what tables say of slices."""
        before = self.own
        self.own, note = corrected(fixes, self.slices["sop_uid"], known, before, self.labels)
        self.own_from[self.own != before] = len(self.tables)
        self.sources.append(fixes.name)
        self.notes.append(note)

    def _of_slices(self, number: int, table: LabelTable) -> None:
        """Take what a table says of slices, each by its own row; that of a file of many slices speaks of them all."""
        found = join.match(self.slices, table)
        self._require_any(table, found.row >= 0)
        self.spoken |= found.row >= 0
        if table.by_file_name and (self.inside & (found.row >= 0)).any():
            self._take(number, table, levels.of_files(self.slices, table, np.where(self.inside, found.row, -1)))
            self.unused -= len(np.unique(self.covers[number].rows))
            found = found._replace(row=np.where(self.inside, -1, found.row), known=found.known & ~self.inside)
        self.unused += len(table.ids) - int(found.known.sum())
        self.notes += found.notes
        doubtful = (found.row >= 0) & ~found.known
        refusals = zip(*join.refused(self.slices, doubtful, found, table), strict=True)
        for place, (reason, detail) in zip(np.flatnonzero(doubtful), refusals, strict=True):
            self._doubt(np.array([place]), reason, detail)
        at = np.flatnonzero(found.known)
        values = table.values[found.row[at]]
        clash = (self.own[at] >= 0) & (values >= 0) & (self.own[at] != values)
        for row, label in _first_of_each(clash):
            said = f"{self.labels.names[label]} is {values[row, label]} in {table.name}"
            other = self._source(int(self.own_from[at[row], label]))
            self._doubt(at[[row]], LABEL_CONFLICT, f"{said} and {self.own[at[row], label]} in {other}")
        fresh = (self.own[at] < 0) & (values >= 0)
        self.own[at] = np.where(fresh, values, self.own[at])
        self.own_from[at] = np.where(fresh, np.int16(number), self.own_from[at])

    def _above(self, number: int, table: LabelTable) -> None:
        """Take what a table says of series, studies, patients or folders."""
        cover = levels.cover(self.slices, table)
        self._require_any(table, cover.slices)
        self._take(number, table, cover)
        self.unused += len(table.ids) - len(np.unique(self.covers[number].rows))

    def _take(self, number: int, table: LabelTable, cover: Cover) -> None:
        """Take what a table says of several slices at once."""
        self.spoken[cover.slices] = True
        reasons = {row: (AMBIGUOUS, detail) for row, detail in cover.refused.items()}
        for row, (name, reason) in enumerate(table.dropped.items(), len(table.ids)):
            reasons.setdefault(row, (reason, f"{levels.what(table)} {name}: {join.drop_detail(reason)}"))
        self._doubt_rows(cover, reasons)
        good = ~np.isin(cover.rows, list(reasons))
        cover = Cover(cover.slices[good], cover.rows[good], {})
        for label in range(len(self.labels.names)):
            at = cover.slices[table.values[cover.rows, label] == 0]
            self.zero_from[at, label] = np.where(self.zero_from[at, label] < 0, number, self.zero_from[at, label])
        self.covers[number] = cover

    def _zeros_beside_ones(self) -> None:
        """Doubt all slices of a row that says 0 where one of them has the label."""
        for number, cover in self.covers.items():
            table, reasons = self.tables[number], dict[int, tuple[str, str]]()
            for label, name in enumerate(self.labels.names):
                hit = (table.values[cover.rows, label] == 0) & (self.own[cover.slices, label] == 1)
                rows, first = np.unique(cover.rows[hit], return_index=True)
                for row, at in zip(rows.tolist(), cover.slices[hit][first].tolist(), strict=True):
                    one = f"1 for {self.slices['name'][at].as_py()} in {self._source(int(self.own_from[at, label]))}"
                    detail = f"{name} is 0 for {self._row(number, row)}, and {one}"
                    reasons.setdefault(row, (LABEL_CONFLICT, detail))
            self._doubt_rows(cover, reasons)

    def _ones_nowhere(self, values: Int8) -> None:
        """Doubt all slices of a row that says 1 where all of them are 0, and all of which that 0 is said."""
        contested = np.zeros(values.shape, bool)
        for number, cover in self.covers.items():
            reasons = dict[int, tuple[str, str]]()
            for label, name in enumerate(self.labels.names):
                impossible = _impossible(cover, self.tables[number].values[:, label], values[:, label])
                for row, at, many in impossible:
                    zero = self._source(int(max(self.own_from[at, label], self.zero_from[at, label])))
                    slices = "its slice" if many == 1 else f"each of its {many:,} slices"
                    detail = f"{name} is 1 for {self._row(number, row)}, and 0 for {slices} (by {zero})"
                    reasons.setdefault(row, (LABEL_CONFLICT, detail))
                contested[cover.slices[np.isin(cover.rows, [row for row, *_ in impossible])], label] = True
            self._doubt_rows(cover, reasons)
        while self._spread(contested):
            pass

    def _spread(self, contested: Bools) -> bool:
        """Doubt what else stands under a 0 that a contested slice stands under; whether there was any."""
        before = int(contested.sum())
        for number, cover in self.covers.items():
            for label in np.flatnonzero(contested.any(axis=0)).tolist():
                zero = self.tables[number].values[cover.rows, label] == 0
                hit = zero & contested[cover.slices, label]
                rows, first = np.unique(cover.rows[hit], return_index=True)
                because = self.doubt[cover.slices[hit][first]]
                self._doubt_rows(cover, {r: self.doubts[w] for r, w in zip(rows.tolist(), because, strict=True)})
                contested[cover.slices[np.isin(cover.rows, rows) & zero], label] = True
        return int(contested.sum()) > before

    def _doubt_any(self, values: Int8) -> None:
        wrong = np.flatnonzero(contradicts_any(values.T, self.labels))
        detail = f"the label files together say of {self.labels.any} what the others contradict"
        self._doubt(wrong, LABEL_ANY_CONTRADICTION, detail)

    def _doubt(self, at: Int64, reason: str, detail: str) -> None:
        """Doubt some slices; the first reason of each counts."""
        self.doubt[at] = np.where(self.doubt[at] < 0, len(self.doubts), self.doubt[at])
        self.doubts.append((reason, detail))

    def _doubt_rows(self, cover: Cover, reasons: dict[int, tuple[str, str]]) -> None:
        """Doubt all slices of some rows."""
        if not reasons:
            return
        index = np.full(cover.rows.max(initial=-1) + 1, -1, np.int64)
        for row, why in reasons.items():
            if row < len(index):
                index[row] = len(self.doubts)
                self.doubts.append(why)
        of_pair = index[cover.rows]
        at = cover.slices[of_pair >= 0]
        self.doubt[at] = np.where(self.doubt[at] < 0, of_pair[of_pair >= 0], self.doubt[at])

    def _row(self, number: int, row: int) -> str:
        table = self.tables[number]
        return f"{levels.what(table)} {table.ids[row].as_py()} in {table.name}"

    def _source(self, number: int) -> str:
        return self.sources[number] if number >= 0 else _OTHERS

    def _require_any(self, table: LabelTable, found: Bools | Int64) -> None:
        """Raise `LabelError` where a table has nothing to do with the slices."""
        if found.any() if found.dtype == bool else len(found):
            return
        raise LabelError(f"{table.name}: no {table.id_column} fits a slice; {_two_ids(table, self.slices)}")

    def _tell(self, may_miss: bool) -> None:
        told = {LABEL_CONFLICT, LABEL_ANY_CONTRADICTION}
        wrong = np.array([reason in told for reason, _ in self.doubts] + [False], bool)[self.doubt]
        if wrong.any():
            first = int(wrong.argmax())
            slices = counted(int(wrong.sum()), "slice is left out, as its labels contradict", "slices are left out, as")
            slices += "" if wrong.sum() == 1 else " their labels contradict"
            example = f"{self.slices['name'][first].as_py()}; {self.doubts[self.doubt[first]][1]}"
            self.notes.append(f"{slices} each other (first: {example})")
        silent = int(np.count_nonzero(~self.spoken))
        if silent and may_miss:
            slices = counted(silent, "slice has no row, so its labels are", "slices have no row, so their labels are")
            self.notes.append(f"{slices} unknown (-1)")

    def _refusals(self, left: Bools) -> tuple[list[str], list[str]]:
        """Reason and detail of each slice that is left out."""
        lacking = left & (self.doubt < 0)
        silent = iter(self._silent(lacking) if lacking.any() else [])
        doubts = self.doubt[left].tolist()
        pairs = [self.doubts[doubt] if doubt >= 0 else (NO_LABEL, next(silent)) for doubt in doubts]
        return [reason for reason, _ in pairs], [detail for _, detail in pairs]

    def _silent(self, lacking: Bools) -> list[str]:
        """What to tell of the slices that no file speaks of."""
        if len(self.tables) > 1:
            return [f"none of the {len(self.tables)} label files has a row for it"] * int(lacking.sum())
        table = self.tables[0]
        if table.by_file_name:
            ids = table.ids.to_pylist()
            own = join.stems(self.slices["name"].filter(pa.array(lacking))).to_pylist()
            told = {text: join.no_row([text], ids) for text in set(own)}
            return [told[text] for text in own]
        column = levels.ID_OF.get(table.id_column)
        if table.id_column == PATIENT or column is None:
            whose = "patient" if table.id_column == PATIENT else "folder"
            return [f"the label file has no row for its {whose}"] * int(lacking.sum())
        ids, own = table.ids.to_pylist(), self.slices[column].filter(pa.array(lacking)).to_pylist()
        told = {text: join.no_row([text], ids) for text in set(own)}
        return [told[text] for text in own]


def _first_of_each(clash: Bools) -> list[tuple[int, int]]:
    """Of each row with a true value, its number and the first column that is true."""
    rows = np.flatnonzero(clash.any(axis=1))
    return list(zip(rows.tolist(), clash[rows].argmax(axis=1).tolist(), strict=True))


def _impossible(cover: Cover, said: Int8, values: Int8) -> list[tuple[int, int, int]]:
    """Rows that say 1 though all of their slices are 0: the row, one of its slices, how many there are."""
    size = len(said)
    slices = np.bincount(cover.rows, minlength=size)
    possible = np.bincount(cover.rows[values[cover.slices] != 0], minlength=size)
    wrong = (said == 1) & (slices > 0) & (possible == 0)
    rows, first = np.unique(cover.rows[wrong[cover.rows]], return_index=True)
    one = cover.slices[wrong[cover.rows]][first]
    return list(zip(rows.tolist(), one.tolist(), slices[rows].tolist(), strict=True))


def _two_ids(table: LabelTable, slices: pa.Table) -> str:
    """An id of each side, of patients only where they stand: their ids go nowhere."""
    name = slices["name"][0].as_py()
    ids = levels.names_of(table)
    if table.id_column == PATIENT:
        return (
            f"none of its {len(ids):,} ids is the PatientID of {name} or of another slice (a spreadsheet drops zeros)"
        )
    column = levels.ID_OF.get(table.id_column)
    own = f"{slices[column][0].as_py()!r}" if column else "that path"
    shown: Callable[[str], str] = (lambda text: f"CQ500-CT-{text}") if table.readers else repr
    return f"its first is {shown(ids[0].as_py())}, and {name} has {own}" if len(ids) else "it has no rows that count"
