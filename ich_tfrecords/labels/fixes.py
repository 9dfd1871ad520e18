"""Corrections of the labels of single slices: a CSV of `sop_uid,label,value`, such as `trainer.audit` proposes.

A correction counts as if the label file had said so. `any` follows from the kinds, and the kinds from an `any` of 0.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords.labels.csv_file import FALSE_CELLS, TRUE_CELLS, CsvFile, LabelError, open_csv, shorten
from ich_tfrecords.plural import counted
from ich_tfrecords.spec import LabelSpec

Int8 = npt.NDArray[np.int8]

HEAD = ("sop_uid", "label", "value")
_VALUES = {**dict.fromkeys(TRUE_CELLS, 1), **dict.fromkeys(FALSE_CELLS, 0)}


@dataclasses.dataclass(frozen=True)
class Fix:
    """A row of the file: its `line`, the slice, the label by its number, and the value, 0 or 1."""

    line: int
    sop_uid: str
    label: int
    value: int


@dataclasses.dataclass(frozen=True)
class Fixes:
    """The rows of a file of corrections, each label of a slice once. `name` stands for the file in messages."""

    name: str
    sha256: str
    rows: tuple[Fix, ...]

    def facts(self) -> dict[str, str | int]:
        """What names them in the manifest of a data set."""
        return {"rows": len(self.rows), "sha256": self.sha256}

    def error(self, row: Fix, message: str) -> LabelError:
        """Error about a row, with its line in the file."""
        return LabelError(f"{self.name}, line {row.line:,}: {message}")


def read_fixes(data: bytes, name: str, labels: LabelSpec) -> Fixes:
    """The corrections of a CSV, plain or gzipped, with the columns of `HEAD`; others are ignored.

    Raises `LabelError` that names the line of a label that is not known, of a value that is not 0 or 1, and of a row
    that contradicts an earlier one.
    """
    file = open_csv(io.BytesIO(data), name)
    lacking = [column for column in HEAD if file.header.count(column) != 1]
    if lacking:
        raise LabelError(f"{name}: needs one column {lacking[0]!r}; a file of corrections begins with {','.join(HEAD)}")
    found: dict[tuple[str, int], Fix] = {}
    for fix in _rows(file, labels.names):
        first = found.setdefault((fix.sop_uid, fix.label), fix)
        if first.value != fix.value:
            said = f"{labels.names[fix.label]} of {shorten(fix.sop_uid)}"
            raise LabelError(
                f"{name}, line {fix.line:,}: {said} is {fix.value} here and {first.value} in line {first.line:,}"
            )
    if not found:
        raise LabelError(f"{name}: holds no correction; leave --label_fixes out")
    return Fixes(name, hashlib.sha256(data).hexdigest(), tuple(found.values()))


def _rows(file: CsvFile, names: Sequence[str]) -> Iterator[Fix]:
    for line, fields in file.rows():
        where = f"{file.name}, line {line:,}"
        if len(fields) != len(file.header):
            raise LabelError(f"{where}: has {len(fields)} columns, the header has {len(file.header)}")
        uid, label, value = (dict(zip(file.header, fields, strict=True))[column].strip() for column in HEAD)
        if "\ufffd" in uid:
            raise LabelError(f"{where}: a byte of {shorten(uid)} is not UTF-8; save it as UTF-8 CSV")
        if label not in names:
            raise LabelError(f"{where}: label is {shorten(label)}; known are {', '.join(names)}")
        if value not in _VALUES:
            raise LabelError(f"{where}: value is {shorten(value)}; it must be 0 or 1")
        yield Fix(line, uid, names.index(label), _VALUES[value])


def corrected(
    fixes: Fixes, uids: pa.ChunkedArray, known: npt.NDArray[np.bool_], values: Int8, labels: LabelSpec
) -> tuple[Int8, str]:
    """`values` with the corrections and what follows from them, and a line that says how many there were.

    `uids`: SOP UIDs of n slices. `known` bool [n]: which of them have labels; `values` int8 [n, L] of all. Raises
    `LabelError` that names the row of a slice that is not there, has no labels, or is told what contradicts itself.
    """
    rows = _slices_of(fixes, uids, known)
    result, of_slice = values.copy(), defaultdict[int, dict[int, Fix]](dict)
    for row, fix in zip(rows, fixes.rows, strict=True):
        first = of_slice[row].setdefault(fix.label, fix)
        if first.value != fix.value:
            said = f"{labels.names[fix.label]} of {shorten(fix.sop_uid)} is {fix.value} here"
            raise fixes.error(fix, f"{said} and {first.value} in line {first.line:,}, for the same slice")
        result[row, fix.label] = fix.value
    for row, own in of_slice.items():
        _follow(fixes, result[row], own, labels)
    every = [(row, fix) for row, own in of_slice.items() for fix in own.values()]
    told = sum(int(values[row, fix.label] != fix.value) for row, fix in every)
    changed = int((result != values).sum())
    slices = counted(int((result != values).any(axis=1).sum()), "slice")
    follows = f", {changed - told:,} more follow" if changed > told else ""
    alike = f", {len(every) - told:,} were so before" if told < len(every) else ""
    return result, f"{fixes.name}: corrected {counted(told, 'label')}{follows}, of {slices}{alike}"


def _slices_of(fixes: Fixes, uids: pa.ChunkedArray, known: npt.NDArray[np.bool_]) -> list[int]:
    """The slice of each correction. A quote before an id, there for spreadsheets, is no part of it."""
    wanted = [fix.sop_uid for fix in fixes.rows]
    plain = [uid.removeprefix("'") for uid in wanted]
    column = pa.array(uids.to_pylist(), pa.string())
    exact, bare = (pc.index_in(pa.array(ids, pa.string()), value_set=column).to_pylist() for ids in (wanted, plain))
    found = [first if first is not None else second for first, second in zip(exact, bare, strict=True)]
    for row, fix in zip(found, fixes.rows, strict=True):
        if row is None:
            raise fixes.error(
                fix, f"no slice of the input has the sop_uid {shorten(fix.sop_uid)}; is it another input's?"
            )
        if not known[row]:
            raise fixes.error(
                fix,
                f"slice {shorten(fix.sop_uid)} has no labels that could be corrected, or they contradict each other",
            )
    return [row for row in found if row is not None]


def _follow(fixes: Fixes, values: Int8, own: Mapping[int, Fix], labels: LabelSpec) -> None:
    """Put into `values` int8 [L] of a slice what follows from its corrections `own`. Raises `LabelError`."""
    if len(labels.names) == 1:
        return
    either, kinds = labels.names.index(labels.any), [labels.names.index(name) for name in labels.rarest_first]
    said = own.get(either)
    if said and said.value == 0:
        for kind in kinds:
            if kind in own and own[kind].value == 1:
                raise _contradiction(fixes, own[kind], labels, f"{labels.any} 0 in line {said.line:,}")
            values[kind] = 0
    if (values[kinds] == 1).any():
        values[either] = 1
    elif (values[kinds] == 0).all():
        if said and said.value == 1:
            raise _contradiction(fixes, said, labels, "no kind of it; correct the kind as well")
        values[either] = 0


def _contradiction(fixes: Fixes, fix: Fix, labels: LabelSpec, other: str) -> LabelError:
    said = f"{labels.names[fix.label]} of {shorten(fix.sop_uid)} would be {fix.value}"
    return fixes.error(fix, f"{said}, and {other}")
