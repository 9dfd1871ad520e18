"""Which label row belongs to which slice, and why a slice has none.

A row is given once: what two slices would fit is nobody's.
"""

from __future__ import annotations

import bisect
import itertools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords.labels import names
from ich_tfrecords.labels.levels import names_of
from ich_tfrecords.labels.table import DROP_TEXT, LabelTable
from ich_tfrecords.labels.tally import LABEL_INCOMPLETE
from ich_tfrecords.plural import counted

NO_LABEL, AMBIGUOUS = "no_label", "ambiguous_label"


class Joined(NamedTuple):
    """`known` [n]: which slices have labels; `values` int8 [known, labels]. `reasons`, `details`: of each other slice.

    `unused`: how many label rows no slice used. `notes`: lines about labels that were found by a lenient form.
    """

    known: npt.NDArray[np.bool_]
    values: npt.NDArray[np.int8]
    reasons: list[str]
    details: list[str]
    unused: int
    notes: tuple[str, ...]


def join(slices: pa.Table, labels: LabelTable) -> Joined:
    """Labels of slices with different SOP UIDs (columns `sop_uid` and `name`, the path below the input)."""
    found = match(slices, labels)
    known = found.known
    reasons, details = refused(slices, ~known, found, labels)
    unused = len(labels.ids) - int(known.sum())  # no two of the known have one row
    return Joined(known, labels.values[found.row[known]], reasons, details, unused, found.notes)


class Match(NamedTuple):
    """Of each slice its `row` in `levels.names_of` the table, -1 where none, how many slices have that row (`fits`)
    and whether its labels are `known`; `notes` as in `Joined`."""

    row: npt.NDArray[np.int64]
    fits: npt.NDArray[np.int64]
    known: npt.NDArray[np.bool_]
    notes: tuple[str, ...]


def match(slices: pa.Table, labels: LabelTable) -> Match:
    """Which row each slice has (slices as in `join`)."""
    row, lenient = _label_rows(slices, labels)
    fits = _slices_of_row(row)
    known = (row >= 0) & (row < len(labels.ids)) & (fits == 1)
    return Match(row, fits, known, _lenient_note(slices, row, lenient & known, labels))


def stems(files: pa.ChunkedArray) -> pa.ChunkedArray:
    """File names without folders and without the suffix of an image file (`names.bare`)."""
    return names.without_folders(names.bare(files))


def known_ids(ids: pa.ChunkedArray, labels: LabelTable) -> npt.NDArray[np.bool_]:
    """True for each id (a SOP UID, or one of `stems`) that the label file speaks of, trusted or not.

    Folders in the label file are not looked at, so a stem found here may still lack a label; one not found does.
    """
    named = names_of(labels)
    named = names.without_folders(named) if labels.by_file_name else named
    known = pc.is_in(ids, value_set=named).to_numpy()
    if known.all():
        return known
    lacking = np.flatnonzero(~known)
    known = known.copy()  # Arrow's memory is read only
    known[lacking] = pc.is_in(names.lenient(ids.take(lacking)), value_set=names.lenient(named)).to_numpy()
    return known


def no_row(own: Sequence[str], ids: Sequence[str]) -> str:
    """The words for a slice called one of `own` that none of `ids` (ascending) fits: the two that begin most alike."""
    pairs = [(wanted, text) for wanted in own for text in _around(wanted, ids)]
    if not pairs:
        return f"the label file has no row for {own[0]!r}"
    wanted, nearest = max(pairs, key=lambda pair: _alike(*pair))
    return f"the label file has no row for {wanted!r}; its nearest id is {nearest!r}"


def _alike(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return sum(itertools.takewhile(bool, map(operator.eq, one, other)))


def _around(wanted: str, ids: Sequence[str]) -> Sequence[str]:
    """The ids in front of the place of `wanted` and behind it."""
    at = bisect.bisect_left(ids, wanted)
    return ids[max(at - 1, 0) : at + 1]


def _ids_of(slices: pa.Table, labels: LabelTable) -> list[pa.ChunkedArray]:
    """What may stand for each slice in the label file, the surest first: its SOP UID, and where ids are file names
    then its path below the input, then its name alone, which fits no id that has a folder."""
    uids = slices["sop_uid"]
    if not labels.by_file_name:
        return [uids]
    # an id with a folder is a path; a UID that looks like one says nothing about it
    uids = pc.if_else(pc.match_substring(uids, "/"), pa.scalar(None, pa.string()), uids)
    paths = names.bare(slices["name"])
    return [uids, paths, names.without_folders(paths)]


def _label_rows(usable: pa.Table, labels: LabelTable) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Position in `names_of` of the id of each slice, -1 where none; which were found by their `lenient` form alone.

    Such a form counts where no other id has it, and takes no row that an id found as it stands.
    """
    ids = names_of(labels)
    row = _first_found([names.found(texts, ids) for texts in _ids_of(usable, labels)])
    lenient, lacking = np.zeros(len(row), bool), np.flatnonzero(row < 0)
    if not len(lacking):
        return row, lenient
    forms, only = names.lenient_forms(ids)
    only[np.isin(only, row)] = -1
    own = _ids_of(usable.take(pa.array(lacking)), labels)
    places = [names.found(names.lenient(texts), forms) for texts in own]
    row[lacking] = _first_found([np.append(only, -1)[place] for place in places])
    lenient[lacking] = row[lacking] >= 0
    return row, lenient


def _first_found(columns: list[npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    """Of each row the first position that is not -1."""
    first = columns[0].astype(np.int64)
    for column in columns[1:]:
        first = np.where(first < 0, column, first)
    return first


def _lenient_note(
    usable: pa.Table, row: npt.NDArray[np.int64], lenient: npt.NDArray[np.bool_], labels: LabelTable
) -> tuple[str, ...]:
    if not lenient.any():
        return ()
    first = int(lenient.argmax())
    name, image = usable["name"][first].as_py(), labels.ids[int(row[first])].as_py()
    differs = "by an id that differs in letter case, white space or suffix"
    slices = counted(int(lenient.sum()), "slice has its labels", "slices have their labels")
    return (f"{labels.name}: {slices} {differs} (first: {name} by {image!r})",)


def _slices_of_row(row: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each slice, how many slices have the same label row; whatever it is where the row is -1."""
    return np.bincount(row + 1, minlength=1)[row + 1]


def refused(
    slices: pa.Table, which: npt.NDArray[np.bool_], found: Match, labels: LabelTable
) -> tuple[list[str], list[str]]:
    """Reasons and details of those slices, none of which has known labels."""
    lacking, row, fits = slices.filter(pa.array(which)), found.row[which], found.fits[which]
    reasons, details = [], []
    trusted = labels.ids.to_pylist() if (row < 0).any() else []
    ids = names_of(labels).take(pa.array(row, mask=row < 0)).to_pylist()
    texts = _ids_of(lacking, labels)
    own = zip(*(column.to_pylist() for column in texts[1:] or texts), strict=True)
    for image, several, called in zip(ids, fits.tolist(), own, strict=True):
        if image is None:
            reasons.append(NO_LABEL)
            details.append(no_row(called, trusted))
        elif several > 1:
            reasons.append(AMBIGUOUS)
            details.append(f"{several:,} files fit the label of {image}; write file names with their folders there")
        else:
            reasons.append(labels.dropped[image])
            details.append(drop_detail(labels.dropped[image]))
    return reasons, details


def drop_detail(reason: str) -> str:
    """What to tell of a slice whose label row is dropped."""
    return DROP_TEXT[reason] if reason == LABEL_INCOMPLETE else reason
