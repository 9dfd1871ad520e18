"""Label file -> one row an id: an image, or a series, study, patient or folder; and the stratum of each row.

Three layouts are read, told apart by the header: the long one of RSNA 2019 (`ID,Label`, one row an image and
label, `ID_000012eaf_any,1`), a wide one (a column of `ID_COLUMNS`, then one column a label), and `reads.csv` of
CQ500 (`labels.readers`).

What the file says wrongly is an error (`LabelError`: layout, names, values other than 0 and 1). What it says
twice or against itself is data: agreeing repeats are merged, and ids whose labels cannot be trusted are
left out, each with its reason. Both are counted and told by `LabelTable.notes`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords.labels import names as name_forms
from ich_tfrecords.labels import readers, tally
from ich_tfrecords.labels.csv_file import MAY_MISS, CsvFile, LabelError, bools, open_csv, shorten
from ich_tfrecords.labels.readers import Readers
from ich_tfrecords.labels.tally import DROP_REASONS, LABEL_ANY_CONTRADICTION, LABEL_CONFLICT, LABEL_INCOMPLETE
from ich_tfrecords.plural import counted
from ich_tfrecords.spec import LabelSpec

_LONG_COLUMNS = ("ID", "Label")
_FILE_NAME = "filename"
SLICE_COLUMNS = ("sop_uid", _FILE_NAME)
PATIENT, FOLDER, READS = "patient_id", "folder", readers.NAME
ID_COLUMNS = (*SLICE_COLUMNS, "series_uid", "study_uid", FOLDER, PATIENT)  # a file's ids are its first of these
_OTHERS = "(a spec may ask for other labels)"
_IDS = {**dict.fromkeys(SLICE_COLUMNS, "image"), PATIENT: "patient", FOLDER: "folder", READS: "study"}
_IDS |= {"series_uid": "series", "study_uid": "study"}
_TYPO = 0.8  # a column so much like a label that lacks is meant for it


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """Labels of the ids that can be used, and what was merged or left out on the way.

    `ids`: pyarrow string array [n], unique, ascending by their UTF-8 bytes; `pyarrow.compute.index_in` joins
    it, `ids.to_pandas()` makes a Series. `values`: int8 [n, labels] in `LabelSpec.names` order, 1 or 0; -1, unknown,
    only where a label may miss or readers do not agree. `dropped`: the ids whose labels are not known for sure, id ->
    one of `DROP_REASONS`, ascending by id. `counts`: `rows`, `images` (n), `duplicate_rows` and `duplicate_images`
    (repeats, merged, of ids without a conflict), `conflicting_images`, `incomplete_images`, `any_contradictions`
    (dropped). `id_column`: what the ids are, one of `ID_COLUMNS` or `READS`. A `filename` is as `names.bare` gives it,
    with the folders the file wrote, a `folder` as `names.folder` does, and a `patient_id` is its patient key. All are
    in Unicode NFC, without white space around them. `unsaid`: labels without a column. `readers`: of `READS`.
    """

    name: str
    ids: pa.Array
    values: np.ndarray
    dropped: dict[str, str]
    counts: dict[str, int]
    ignored_columns: tuple[str, ...]
    id_column: str
    unsaid: tuple[str, ...] = ()
    readers: Readers | None = None

    @property
    def by_file_name(self) -> bool:
        """Whether the ids are names of files, in place of SOP instance UIDs."""
        return self.id_column == _FILE_NAME

    @property
    def of_slices(self) -> bool:
        """Whether an id names one slice; else it names all slices of something."""
        return self.id_column in SLICE_COLUMNS

    def notes(self) -> list[str]:
        """Lines to show the user: the size of the table, then one line for each thing merged or left out."""
        count = self.counts
        rows = counted(count["rows"], "row gives", "rows give")
        lines = [f"{self.name}: {rows} the labels of {self._counted(count['images'])}"]
        if self.ignored_columns:
            lines.append(f"{self.name}: ignored columns {', '.join(map(repr, self.ignored_columns))}")
        if self.unsaid:
            lines.append(f"{self.name}: no column for {', '.join(self.unsaid)}; unknown where nothing else tells")
        if count["duplicate_rows"]:
            lines.append(
                f"{self.name}: merged {counted(count['duplicate_rows'], 'duplicate row')} of "
                f"{self._counted(count['duplicate_images'])} (they agree)"
            )
        lines += [line for reason in DROP_REASONS for line in self._drop_note(reason)]
        return lines + ([f"{self.name}: {line}" for line in self.readers.notes] if self.readers else [])

    def _counted(self, number: int) -> str:
        what = _IDS[self.id_column]
        return counted(number, what, {"study": "studies", "series": "series"}.get(what, f"{what}s"))

    def _drop_note(self, reason: str) -> list[str]:
        ids = [image for image, why in self.dropped.items() if why == reason]
        if not ids:
            return []
        return [f"{self.name}: left out {self._counted(len(ids))}, first {ids[0]}: {DROP_TEXT[reason]} ({reason})"]


DROP_TEXT = {
    LABEL_CONFLICT: "their rows contradict each other",
    LABEL_INCOMPLETE: f"not every label has a row; {MAY_MISS} makes the others unknown",
    LABEL_ANY_CONTRADICTION: "the label for any hemorrhage is not the maximum of the others",
}


def read_labels(
    source: str | Path | BinaryIO,
    labels: LabelSpec,
    name: str | None = None,
    patient_key: Callable[[str], str] | None = None,
    may_miss: bool = False,
) -> LabelTable:
    """Labels of every id of a label file, plain or gzipped, from a path or an open binary file.

    `name` stands for the file in messages. `patient_key`: of a patient id; without it only files with a row a slice are
    read. `may_miss`: what a file leaves open is unknown. Raises `LabelError`.
    """
    file = open_csv(source, name)
    if not file.header:
        raise LabelError(f"{file.name}: is empty; expected a header such as {','.join(_LONG_COLUMNS)} and rows")
    if set(_LONG_COLUMNS) <= set(file.header):
        return _read_long(file, labels, may_miss)
    if patient_key and readers.are_in(file.header):
        return _read_readers(file, labels, may_miss)
    known = ID_COLUMNS if patient_key else SLICE_COLUMNS
    id_column = next((column for column in known if column in file.header), None)
    if id_column is None:
        ids = f"{', '.join(known[:-1])} or {known[-1]}"
        raise LabelError(
            f"{file.name}: {_header(file, labels)}; expected {','.join(_LONG_COLUMNS)}, "
            f"or a column {ids} and one for each label, separated by commas, semicolons or tabs"
        )
    return _read_wide(file, id_column, labels, patient_key, may_miss)


def stratum_indices(values: np.ndarray, labels: LabelSpec) -> np.ndarray:
    """int8 [n], the index into `LabelSpec.strata` of each row of `values` (int8 [n, labels]; -1 is unknown).

    The first label of `rarest_first` that is 1 decides, whatever else is unknown. Without one, a row is
    'none' when its `any` is 0 or every other label is 0, and 'unlabelled' when what is unknown could still
    be a hemorrhage. Raises `LabelError` for a wrong shape.
    """
    values = np.asarray(values)
    if values.ndim != 2 or values.shape[1] != len(labels.names):
        raise LabelError(f"values have shape {values.shape}; expected [n, {len(labels.names)}] {labels.names}")
    others = values[:, [labels.names.index(name) for name in labels.rarest_first]]
    without = (values[:, labels.names.index(labels.any)] == 0) | (others == 0).all(axis=1)
    none = without & (values >= 0).any(axis=1)
    # argmax finds the first true column; the last one catches the rows that nothing else took
    columns = [*(others == 1).T, none, np.ones(len(values), bool)]
    return np.column_stack(columns).argmax(axis=1).astype(np.int8)


def _header(file: CsvFile, labels: LabelSpec) -> str:
    """What to say of the first line; where it may be the row of a patient, it is not shown."""
    known = {word.lower() for word in (*_LONG_COLUMNS, *ID_COLUMNS, *labels.names)}
    if known.isdisjoint(word.strip().lower() for word in file.header):
        return "its first line is no header"
    return f"header is {shorten(file.delimiter.join(file.header))}"


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"


def _read_long(file: CsvFile, labels: LabelSpec, may_miss: bool) -> LabelTable:
    keys, (code,) = file.columns(_LONG_COLUMNS[0], _LONG_COLUMNS[1:], may_miss)
    label_of_row = _label_of_rows(file, keys, labels.names, may_miss)
    # rows grouped by label: within a group every key ends in the same suffix
    groups = [np.flatnonzero(label_of_row == index) for index in range(len(labels.names))]
    parts = [file.tidy(_without_suffix(keys.take(rows), name)) for rows, name in zip(groups, labels.names)]
    ids, images = _encode(parts)
    if pc.index(ids, "").as_py() >= 0:
        found = [pc.index(keys, f"_{name}").as_py() for name in labels.names]
        row = min(at for at in found if at >= 0)
        raise file.error_at(row, f"ID {shorten(keys[row].as_py())} has no image id before the label")
    del keys, parts  # the largest arrays of all: six texts an image
    told = tally.count(len(ids), images, [code[rows] for rows in groups])
    return _merge(file, _LONG_COLUMNS, SLICE_COLUMNS[0], ids, told, labels, may_miss)


def _label_of_rows(file: CsvFile, keys: pa.Array, names: Sequence[str], may_miss: bool) -> np.ndarray:
    """int8 [rows], the index in `names` of the label that each key ends with; unknown ones raise.

    The image id may hold underscores itself. Among labels that fit, the longest one is meant.
    """
    found = np.full(len(keys), -1, np.int8)
    for name in sorted(names, key=len, reverse=True):
        hits = bools(pc.ends_with(keys, f"_{name}"))
        found[hits & (found < 0)] = names.index(name)
    if (found < 0).any():
        row = int((found < 0).argmax())
        key = keys[row].as_py()
        label = key.rpartition("_")[2]
        raise file.error_at(row, f"ID {shorten(key)} ends in no label, {shorten(label)}; {_nearest(label, names)}")
    absent = [name for index, name in enumerate(names) if not (found == index).any()]
    if absent and not may_miss:
        raise LabelError(f"{file.name}: no row for label {absent[0]!r} {_OTHERS}; each image needs {', '.join(names)}")
    return found


def _without_suffix(keys: pa.Array, name: str) -> pa.Array:
    """Image ids of keys that all end in `_name`."""
    return pc.binary_slice(keys.cast(pa.large_binary()), 0, -len(name) - 1).cast(pa.large_string())


def _encode(parts: Sequence[pa.Array]) -> tuple[pa.Array, list[np.ndarray]]:
    """Distinct ids in order of appearance, and for each part the position of its ids among them (int32)."""
    # six rows an image give every label the same ids in the same order: a sixth of the hashing, same result
    filled = [part for part in parts if len(part)]  # where labels may miss, nobody may say one of them
    alike = all(part.equals(filled[0]) for part in filled[1:])
    encoded = pa.chunked_array(filled[:1] if alike else filled).dictionary_encode()
    images = [chunk.indices.to_numpy() for chunk in encoded.chunks]
    found = iter(images * len(filled) if alike else images)
    return encoded.chunk(0).dictionary, [next(found) if len(part) else np.zeros(0, np.int32) for part in parts]


def _read_wide(
    file: CsvFile, id_column: str, labels: LabelSpec, patient_key: Callable[[str], str] | None, may_miss: bool
) -> LabelTable:
    there = [name for name in labels.names if name in file.header]
    _check_columns(file, labels.names, there, may_miss)
    texts, told = file.columns(id_column, there, may_miss)
    ids, (rows,) = _encode([_FORMS.get(id_column, lambda texts: texts)(texts)])
    nameless = pc.index(pc.match_substring_regex(ids, "^$" if id_column == PATIENT else "(^|/)$"), True).as_py()
    if nameless >= 0:
        row = int((rows == nameless).argmax())
        shown = shorten(texts[row].as_py())
        raise file.error_at(row, f"{id_column} is {shown}, which names no {_IDS[id_column]}")
    if id_column == PATIENT and patient_key:
        ids = pa.array(map(patient_key, ids.to_pylist()), pa.large_string())
    blank = np.full(len(rows), -1, np.int8)
    codes = [told[there.index(name)] if name in there else blank for name in labels.names]
    wanted = (id_column, *labels.names)
    return _merge(file, wanted, id_column, ids, tally.count(len(ids), [rows] * len(codes), codes), labels, may_miss)


_FORMS = {_FILE_NAME: name_forms.bare, FOLDER: name_forms.folder}


def _check_columns(file: CsvFile, names: Sequence[str], there: Sequence[str], may_miss: bool) -> None:
    """Raise `LabelError` for a label without a column; where it may miss, if none has one or one is misspelt."""
    for name in names:
        if name in there:
            continue
        meant = difflib.get_close_matches(name, set(file.header) - set(names), n=1, cutoff=_TYPO)
        if not may_miss or not there or meant:
            hint = f"; {MAY_MISS} makes it unknown" if there and not meant and not may_miss else ""
            lacks = f"{file.name}: no column for label {name!r} {_OTHERS}"
            raise LabelError(f"{lacks}; {_nearest(name, file.header)}{hint}")


def _read_readers(file: CsvFile, labels: LabelSpec, may_miss: bool) -> LabelTable:
    numbers, codes, read = readers.read(file, labels, may_miss)
    ids, (rows,) = _encode([numbers])
    told = tally.count(len(ids), [rows] * len(labels.names), list(codes.T))
    table = _merge(file, (READS, *labels.names), READS, ids, told, labels, may_miss=True)
    order = np.zeros(len(ids), np.int64)
    order[rows] = np.arange(len(rows))
    kept = order[name_forms.found(table.ids.cast(pa.large_string()), ids)]
    return dataclasses.replace(table, ignored_columns=(), readers=read.taken(kept))


def _merge(
    file: CsvFile,
    wanted: Sequence[str],
    id_column: str,
    ids: pa.Array,
    told: tally.Tally,
    labels: LabelSpec,
    may_miss: bool,
) -> LabelTable:
    """Table of the ids that agree with themselves, sorted; the others dropped, one reason each."""
    values, reason = tally.merged(told, labels, may_miss)
    order = pc.sort_indices(ids).to_numpy()
    left = order[reason[order] < tally.KEPT]
    kept = order[reason[order] == tally.KEPT]
    return LabelTable(
        name=file.name,
        ids=ids.take(kept).cast(pa.string()),
        values=np.ascontiguousarray(values[:, kept].T),
        dropped=dict(zip(ids.take(left).to_pylist(), [DROP_REASONS[index] for index in reason[left]])),
        counts=tally.counts(told, reason, len(wanted) - 1),
        ignored_columns=file.ignored(wanted),
        id_column=id_column,
        unsaid=tuple(name for name in labels.names if len(wanted) > 2 and name not in file.header),
    )
