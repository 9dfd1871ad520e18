"""Labels of studies: what is said of them, and what follows from their series, patients, folders and slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords.labels.levels import Cover
from ich_tfrecords.labels.table import LabelTable
from ich_tfrecords.labels.tally import close
from ich_tfrecords.spec import LabelSpec

Bools = npt.NDArray[np.bool_]
Int8 = npt.NDArray[np.int8]
Int64 = npt.NDArray[np.int64]


class Studies(NamedTuple):
    """`uids`, distinct, ascending; `values` int8 [studies, labels]: 1, 0, or -1 for unknown.

    `readers` int8 [studies], `votes` int8 [studies, labels] as in `readers.Readers`, -1 where nobody tells; None where
    no file has readers.
    """

    uids: pa.Array
    values: Int8
    readers: Int8 | None
    votes: Int8 | None


def of_studies(
    slices: pa.Table,
    tables: Sequence[LabelTable],
    covers: Mapping[int, Cover],
    values: Int8,
    doubtful: Bools,
    labels: LabelSpec,
) -> Studies:
    """Labels of every study of some slices (column `study_uid`).

    `covers`: of the tables above slices, by their number. `values` int8 [n, labels]: of the slices, which count where
    they are not `doubtful`. A study has a label where one of its slices does, or where all slices of something that
    has it lie in that study; it is 0 where all its slices are.
    """
    encoded = slices["study_uid"].dictionary_encode().combine_chunks()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    study = rank[encoded.indices.to_numpy()]
    found = np.full((len(order), values.shape[1]), -1, np.int8)
    zero = (values == 0) & ~doubtful[:, None]
    counting, inside = {}, {}
    for number, cover in covers.items():
        counting[number] = _sure(cover, doubtful, len(tables[number].ids))
        inside[number] = _one_study(cover, study, len(tables[number].ids))
        sure = counting[number][cover.rows]
        for label in range(values.shape[1]):
            zero[cover.slices[sure & (tables[number].values[cover.rows, label] == 0)], label] = True
    sizes = np.bincount(study, minlength=len(order))
    for label in range(values.shape[1]):
        found[np.bincount(study[zero[:, label]], minlength=len(order)) == sizes, label] = 0
        found[study[(values[:, label] == 1) & ~doubtful], label] = 1
        for number, one in inside.items():
            said = (tables[number].values[:, label] == 1) & counting[number] & (one >= 0)
            found[one[said], label] = 1
    close(found.T, labels)
    return Studies(encoded.dictionary.take(pa.array(order)), found, *_agreement(tables, inside, found.shape))


def _sure(cover: Cover, doubtful: Bools, rows: int) -> Bools:
    """bool [rows]: those of which a slice is left that is in no doubt."""
    return np.bincount(cover.rows[~doubtful[cover.slices]], minlength=rows) > 0


def _one_study(cover: Cover, study: Int64, rows: int) -> Int64:
    """int64 [rows], the study that holds all slices of a row; -1 where several do, or none."""
    least, most = np.full(rows, len(study), np.int64), np.full(rows, -1, np.int64)
    np.minimum.at(least, cover.rows, study[cover.slices])
    np.maximum.at(most, cover.rows, study[cover.slices])
    return np.where(least == most, least, -1)


def _agreement(
    tables: Sequence[LabelTable], inside: Mapping[int, Int64], shape: tuple[int, ...]
) -> tuple[Int8 | None, Int8 | None]:
    """Readers and votes of each study; the first file with readers that speaks of it counts."""
    if not any(tables[number].readers for number in inside):
        return None, None
    count, votes = np.full(shape[0], -1, np.int8), np.full(shape, -1, np.int8)
    for number, one in inside.items():
        read = tables[number].readers
        if read is not None:
            rows = np.flatnonzero(one >= 0)
            rows = rows[count[one[rows]] < 0]
            count[one[rows]], votes[one[rows]] = read.count[rows], read.votes[rows]
    return count, votes
