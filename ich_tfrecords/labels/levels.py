"""Which slices a row above the level of slices speaks of: all of a series, a study, a patient, or below a folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords.labels import names, readers
from ich_tfrecords.labels.table import FOLDER, PATIENT, READS, LabelTable

Int64 = npt.NDArray[np.int64]

ID_OF = {
    "sop_uid": "sop_uid",
    "series_uid": "series_uid",
    "study_uid": "study_uid",
    PATIENT: "patient_key",
}  # of a slice
# what the slices of one id must have in common, or nobody knows whose labels these are
_ONE: dict[str, dict[str, str]] = {
    "series_uid": {"study_uid": "in {:,} studies", "patient_key": "under {:,} patients"},
    "study_uid": {"patient_key": "under {:,} patients"},
    PATIENT: {},
    FOLDER: {"container": "in {:,} inputs"},
    READS: {"container": "in {:,} inputs"},
}
_ELSE = {FOLDER: "write its path below the input", READS: "convert one of them alone"}


class Cover(NamedTuple):
    """Pairs of `slices` and `rows`, int64 [m], numbers of slices and of `names_of` the table.

    `refused`: row -> why nobody knows which slices it means; its pairs are there all the same.
    """

    slices: Int64
    rows: Int64
    refused: dict[int, str]


def names_of(table: LabelTable) -> pa.Array:
    """Every id of a label file: the trusted ones in their order, then the dropped ones in theirs."""
    return pa.concat_arrays([table.ids.cast(pa.string()), pa.array(list(table.dropped), pa.string())])


def cover(slices: pa.Table, table: LabelTable) -> Cover:
    """The slices of each row of a table above the level of slices.

    `slices` has `series_uid`, `study_uid`, `patient_key`, `container` and `name`, the path below the input.
    """
    ids = names_of(table)
    if table.id_column in ID_OF:
        row = names.found(slices[ID_OF[table.id_column]], ids).astype(np.int64)
        found = Cover(np.flatnonzero(row >= 0), row[row >= 0], {})
    else:
        number = {text: row for row, text in enumerate(ids.to_pylist())}
        found = _below(slices["name"], _FOUND[table.id_column], number)
    refused = {at: f"{ids[at].as_py()} {why}" for at, why in found.refused.items()}
    for column, several in _ONE[table.id_column].items():
        for at, count in _torn(slices[column], found).items():
            refused[at] = f"{ids[at].as_py()} stands {several.format(count)}"
    what_next = _ELSE.get(table.id_column, "label its slices by sop_uid")
    told = {at: f"{what(table)} {why}; {what_next}" for at, why in refused.items()}
    return found._replace(refused=told)


def in_files_of_many(slices: pa.Table) -> npt.NDArray[np.bool_]:
    """bool [n]: slices of enhanced CT or of a NIfTI volume, by their `frame`, which may lack where none is."""
    if "frame" not in slices.column_names:
        return np.zeros(slices.num_rows, bool)
    inside: npt.NDArray[np.bool_] = slices["frame"].to_numpy() > 0
    return inside


def of_files(slices: pa.Table, table: LabelTable, row: Int64) -> Cover:
    """As `cover`, of a table of file names and files of many slices; `row` int64 [n] of each slice, -1 for none."""
    ids, found = names_of(table), Cover(np.flatnonzero(row >= 0), row[row >= 0], {})
    files = pc.binary_join_element_wise(slices["container"].cast(pa.string()), slices["name"], "/")
    told = {
        at: f"{what(table)} {ids[at].as_py()} names {count:,} files; write their paths below the input"
        for at, count in _torn(files, found).items()
    }
    return found._replace(refused=told)


def what(table: LabelTable) -> str:
    """What to call an id of a table, which is a key where the file has ids of patients."""
    return {PATIENT: "patient key", READS: "CQ500 study"}.get(table.id_column, table.id_column)


def _torn(column: pa.ChunkedArray, pairs: Cover) -> dict[int, int]:
    """Rows whose slices have several values of a column, and how many."""
    rows = pairs.rows
    codes = column.cast(pa.string()).dictionary_encode().combine_chunks().indices.to_numpy()[pairs.slices]
    least = np.full(rows.max(initial=-1) + 1, len(column), np.int64)
    np.minimum.at(least, rows, codes)
    torn = np.zeros(len(least), bool)
    torn[rows[codes != least[rows]]] = True
    distinct = np.unique(np.stack([rows, codes])[:, torn[rows]], axis=1)
    several, count = np.unique(distinct[0], return_counts=True)
    return dict(zip(several.tolist(), count.tolist(), strict=True))


def _below(
    paths: pa.ChunkedArray, found: Callable[[str, Mapping[str, int]], dict[int, str]], number: Mapping[str, int]
) -> Cover:
    """The slices below the folder of each row; rows that name several are refused.

    `found`: of the path of a folder the rows that speak of what is in it, each with the folder that it means; `number`:
    the row of each id.
    """
    folders = pc.replace_substring_regex(pc.replace_substring(names.composed(paths), "\\", "/"), "/?[^/]*$", "")
    encoded = folders.dictionary_encode().combine_chunks()
    hits = [found(folder, number) for folder in encoded.dictionary.to_pylist()]
    places: dict[int, set[str]] = {}
    for hit in hits:
        for row, place in hit.items():
            places.setdefault(row, set()).add(place)
    ids = {row: text for text, row in number.items()}
    meant = {row: ids[row] for row, there in places.items() if ids[row] in there}  # the whole path, as it is written
    kept = [[row for row, place in hit.items() if meant.get(row, place) == place] for hit in hits]
    at, of = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    code = encoded.indices.to_numpy()
    for depth in range(max(map(len, kept), default=0)):
        row = np.array([rows[depth] if depth < len(rows) else -1 for rows in kept], np.int64)[code]
        at.append(np.flatnonzero(row >= 0))
        of.append(row[at[-1]])
    several = {row: sorted(there) for row, there in places.items() if row not in meant and len(there) > 1}
    refused = {
        row: f"names {len(there):,} folders, such as {there[0]} and {there[1]}" for row, there in several.items()
    }
    return Cover(np.concatenate(at), np.concatenate(of), refused)


def _of_path(folder: str, number: Mapping[str, int]) -> dict[int, str]:
    """Rows that name a folder by its path below the input, or by its own name alone."""
    parts, rows = folder.split("/"), dict[int, str]()
    for depth, part in enumerate(parts, 1):
        place = "/".join(parts[:depth])
        if part in number:
            rows.setdefault(number[part], place)
        if place in number:
            rows[number[place]] = place
    return rows


def _of_study(folder: str, number: Mapping[str, int]) -> dict[int, str]:
    """The row of CQ500's study whose number stands in the path of a folder."""
    found = re.search(readers.NUMBER, folder)
    if not found or found["number"] not in number:
        return {}
    end = folder.find("/", found.end("number"))
    return {number[found["number"]]: folder if end < 0 else folder[:end]}


_FOUND = {FOLDER: _of_path, READS: _of_study}
