"""Label CSV -> one row an image, and the stratum of each row.

Two layouts are read, told apart by the header: the long one of RSNA 2019 (`ID,Label`, one row an image and
label, `ID_000012eaf_any,1`) and a wide one (a column `sop_uid` or `filename`, then one column a label).

What the file says wrongly is an error (`LabelError`: layout, names, values other than 0 and 1). What it says
twice or against itself is data: agreeing repeats are merged, and images whose labels cannot be trusted are
left out, each with its reason. Both are counted and told by `LabelTable.notes`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords.labels import names as name_forms
from ich_tfrecords.labels.csv_file import CsvFile, LabelError, bools, open_csv, shorten
from ich_tfrecords.plural import counted
from ich_tfrecords.spec import LabelSpec

LABEL_CONFLICT = "label_conflict"
LABEL_INCOMPLETE = "label_incomplete"
LABEL_ANY_CONTRADICTION = "label_any_contradiction"
DROP_REASONS = (LABEL_CONFLICT, LABEL_INCOMPLETE, LABEL_ANY_CONTRADICTION)  # an image gets the first that holds
_DROP_COUNTS = ("conflicting_images", "incomplete_images", "any_contradictions")

_LONG_COLUMNS = ("ID", "Label")
_FILE_NAME = "filename"
_WIDE_ID_COLUMNS = ("sop_uid", _FILE_NAME)
_OTHERS = "(a spec may ask for other labels)"


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """Labels of the images that can be used, and what was merged or left out on the way.

    `ids`: pyarrow string array [n], unique, ascending by their UTF-8 bytes; `pyarrow.compute.index_in` joins
    it, `ids.to_pandas()` makes a Series. `values`: int8 [n, labels] in `LabelSpec.names` order, 1 or 0, never
    unknown. `dropped`: the images whose labels are not all known for sure, id -> one of `DROP_REASONS`,
    ascending by id. `counts`: `rows`, `images` (n), `duplicate_rows` and `duplicate_images` (repeats, merged,
    of images without a conflict), `conflicting_images`, `incomplete_images`, `any_contradictions` (dropped).
    `by_file_name`: the ids are file names as `names.bare` gives them, with the folders the file wrote; else
    they are SOP instance UIDs. All are in Unicode NFC, without white space around them.
    """

    name: str
    ids: pa.Array
    values: np.ndarray
    dropped: dict[str, str]
    counts: dict[str, int]
    ignored_columns: tuple[str, ...]
    by_file_name: bool

    def notes(self) -> list[str]:
        """Lines to show the user: the size of the table, then one line for each thing merged or left out."""
        count = self.counts
        rows = counted(count["rows"], "row gives", "rows give")
        lines = [f"{self.name}: {rows} the labels of {counted(count['images'], 'image')}"]
        if self.ignored_columns:
            lines.append(f"{self.name}: ignored columns {', '.join(map(repr, self.ignored_columns))}")
        if count["duplicate_rows"]:
            lines.append(
                f"{self.name}: merged {counted(count['duplicate_rows'], 'duplicate row')} of "
                f"{counted(count['duplicate_images'], 'image')} (they agree)"
            )
        return lines + [line for reason in DROP_REASONS for line in self._drop_note(reason)]

    def _drop_note(self, reason: str) -> list[str]:
        ids = [image for image, why in self.dropped.items() if why == reason]
        if not ids:
            return []
        return [f"{self.name}: left out {counted(len(ids), 'image')}, first {ids[0]}: {_DROP_TEXT[reason]} ({reason})"]


_DROP_TEXT = {
    LABEL_CONFLICT: "their rows contradict each other",
    LABEL_INCOMPLETE: "not every label has a row",
    LABEL_ANY_CONTRADICTION: "the label for any hemorrhage is not the maximum of the others",
}


def read_labels(source: str | Path | BinaryIO, labels: LabelSpec, name: str | None = None) -> LabelTable:
    """Labels of every image of a long or wide CSV, plain or gzipped, from a path or an open binary file.

    `name` stands for the file in messages. Raises `LabelError`.
    """
    file = open_csv(source, name)
    if not file.header:
        raise LabelError(f"{file.name}: is empty; expected a header such as {','.join(_LONG_COLUMNS)} and rows")
    if set(_LONG_COLUMNS) <= set(file.header):
        return _read_long(file, labels)
    id_column = next((column for column in _WIDE_ID_COLUMNS if column in file.header), None)
    if id_column is not None:
        return _read_wide(file, id_column, labels)
    raise LabelError(
        f"{file.name}: header is {shorten(','.join(file.header))}; expected {','.join(_LONG_COLUMNS)}, or a column "
        f"{' or '.join(_WIDE_ID_COLUMNS)} and one for each label, separated by commas"
    )


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


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"


def _read_long(file: CsvFile, labels: LabelSpec) -> LabelTable:
    keys, (positive,) = file.columns(_LONG_COLUMNS[0], _LONG_COLUMNS[1:])
    label_of_row = _label_of_rows(file, keys, labels.names)
    # rows grouped by label: within a group every key ends in the same suffix
    groups = [np.flatnonzero(label_of_row == index) for index in range(len(labels.names))]
    parts = [file.tidy(_without_suffix(keys.take(rows), name)) for rows, name in zip(groups, labels.names)]
    ids, images = _encode(parts)
    if pc.index(ids, "").as_py() >= 0:
        found = [pc.index(keys, f"_{name}").as_py() for name in labels.names]
        row = min(at for at in found if at >= 0)
        raise file.error_at(row, f"ID {shorten(keys[row].as_py())} has no image id before the label")
    del keys, parts  # the largest arrays of all: six texts an image
    tally = _count(len(ids), images, [positive[rows] for rows in groups])
    return _merge(file, _LONG_COLUMNS, ids, tally, labels)


def _label_of_rows(file: CsvFile, keys: pa.Array, names: Sequence[str]) -> np.ndarray:
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
    if absent:
        raise LabelError(f"{file.name}: no row for label {absent[0]!r} {_OTHERS}; each image needs {', '.join(names)}")
    return found


def _without_suffix(keys: pa.Array, name: str) -> pa.Array:
    """Image ids of keys that all end in `_name`."""
    return pc.binary_slice(keys.cast(pa.large_binary()), 0, -len(name) - 1).cast(pa.large_string())


def _encode(parts: Sequence[pa.Array]) -> tuple[pa.Array, list[np.ndarray]]:
    """Distinct ids in order of appearance, and for each part the position of its ids among them (int32)."""
    # six rows an image give every label the same ids in the same order: a sixth of the hashing, same result
    alike = all(part.equals(parts[0]) for part in parts[1:])
    encoded = pa.chunked_array(parts[:1] if alike else parts).dictionary_encode()
    images = [chunk.indices.to_numpy() for chunk in encoded.chunks]
    return encoded.chunk(0).dictionary, images * len(parts) if alike else images


def _read_wide(file: CsvFile, id_column: str, labels: LabelSpec) -> LabelTable:
    wanted = (id_column, *labels.names)
    for name in labels.names:
        if name not in file.header:
            raise LabelError(f"{file.name}: no column for label {name!r} {_OTHERS}; {_nearest(name, file.header)}")
    names, positive = file.columns(id_column, labels.names)
    ids, (images,) = _encode([name_forms.bare(names) if id_column == _FILE_NAME else names])
    nameless = pc.index(pc.match_substring_regex(ids, r"(^|/)$"), True).as_py()
    if nameless >= 0:
        row = int((images == nameless).argmax())
        raise file.error_at(row, f"{id_column} is {shorten(names[row].as_py())}, which names no image")
    return _merge(file, wanted, ids, _count(len(ids), [images] * len(positive), positive), labels)


@dataclasses.dataclass(frozen=True)
class _Tally:
    """How often each label of each image was said, and said to be 1: both int32 [labels, images]."""

    said: np.ndarray
    positive: np.ndarray


def _count(size: int, images: Sequence[np.ndarray], positive: Sequence[np.ndarray]) -> _Tally:
    """Tally of `size` images; for each label, the image of each row that says it and whether it says 1."""
    said, ones = (np.empty((len(images), size), np.int32) for _ in range(2))
    for label, (image, flag) in enumerate(zip(images, positive)):
        said[label] = np.bincount(image, minlength=size)
        ones[label] = np.bincount(image[flag], minlength=size)
    return _Tally(said, ones)


def _merge(file: CsvFile, wanted: Sequence[str], ids: pa.Array, tally: _Tally, labels: LabelSpec) -> LabelTable:
    """Table of the images that agree with themselves, sorted by id; the others dropped, one reason each."""
    values = (tally.positive > 0).astype(np.int8)
    conflict = ((tally.positive > 0) & (tally.positive < tally.said)).any(axis=0)
    incomplete = (tally.said == 0).any(axis=0)
    # one reason each, the first that holds; len(DROP_REASONS) stands for none
    checks = [conflict, incomplete, _contradicts_any(values, labels)]
    reason = np.select(checks, list(range(len(checks))), len(checks))
    order = pc.sort_indices(ids).to_numpy()
    left = order[reason[order] < len(checks)]
    kept = order[reason[order] == len(checks)]
    return LabelTable(
        name=file.name,
        ids=ids.take(kept).cast(pa.string()),
        values=np.ascontiguousarray(values[:, kept].T),
        dropped=dict(zip(ids.take(left).to_pylist(), [DROP_REASONS[index] for index in reason[left]])),
        counts=_counts(tally, reason, len(kept), wanted),
        ignored_columns=file.ignored(wanted),
        by_file_name=wanted[0] == _FILE_NAME,
    )


def _contradicts_any(values: np.ndarray, labels: LabelSpec) -> np.ndarray:
    """bool [images], where the label `any` is not the maximum of the others (`values` int8 [labels, images])."""
    if len(labels.names) == 1:
        return np.zeros(values.shape[1], bool)
    others = [labels.names.index(name) for name in labels.rarest_first]
    return values[labels.names.index(labels.any)] != values[others].max(axis=0)


def _counts(tally: _Tally, reason: np.ndarray, images: int, wanted: Sequence[str]) -> dict[str, int]:
    labels_per_row = len(wanted) - 1
    repeats = np.maximum(tally.said - 1, 0).sum(axis=0) // labels_per_row
    merged = repeats[reason != DROP_REASONS.index(LABEL_CONFLICT)]
    dropped = {count: int((reason == index).sum()) for index, count in enumerate(_DROP_COUNTS)}
    return {
        "rows": int(tally.said.sum()) // labels_per_row,
        "images": images,
        "duplicate_rows": int(merged.sum()),
        "duplicate_images": int(np.count_nonzero(merged)),
        **dropped,
    }
