"""Which slices of a conversion are of series to be read: facts of series out of the index, and what was chosen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords.dataset import rejects, series_choice, series_rules
from ich_tfrecords.dataset.series_choice import SeriesFacts

Bools = npt.NDArray[np.bool_]
UIDS = ["study_uid", "series_uid"]


class Chosen(NamedTuple):
    """`left` [n]: which slices are of series left out; their `rejects.SCHEMA`; lines for people."""

    left: Bools
    rejects: pa.Table
    notes: list[str]


def choose(usable: pa.Table, labelled: Bools, mode: str) -> Chosen:
    """What `series_choice.left_out` means for slices: ids, `slice_index`, facts and `CHOICE_SCHEMA`'s columns.

    `labelled` [n]: which of them have labels.
    """
    left = np.zeros(usable.num_rows, bool)
    rows = np.flatnonzero(_in_question(usable, mode))
    if not len(rows):
        return Chosen(left, rejects.NONE, [])
    some = usable.take(pa.array(rows))
    series = list(_series(some, labelled[rows]))
    out = series_choice.left_out(series, series_rules.packaged(), mode)
    of_rows = [out.get(uids) for uids in zip(*(some[name].to_pylist() for name in UIDS), strict=True)]
    left[rows] = [why is not None for why in of_rows]
    why_not = [why for why in of_rows if why is not None]
    lost = usable.filter(pa.array(left))
    table = rejects.of_files(lost, [why.reason for why in why_not], [why.detail for why in why_not])
    return Chosen(left, table, series_choice.notes(out, {one[:2]: one.slices for one in series}))


def _in_question(usable: pa.Table, mode: str) -> Bools:
    """Slices of the studies to look at: those of several series, or all of them where one may be too poor."""
    if mode == series_choice.ALL:
        return np.zeros(usable.num_rows, bool)
    if mode == series_choice.BEST:
        return np.ones(usable.num_rows, bool)
    studies = usable["study_uid"].filter(pc.equal(usable["slice_index"], 0)).value_counts()
    several = studies.filter(pc.greater(studies.field("counts"), 1)).field("values")
    return np.asarray(pc.is_in(usable["study_uid"], value_set=several))


def _series(slices: pa.Table, labelled: Bools) -> Iterator[SeriesFacts]:
    """Facts of each series of some slices."""
    table = slices.select([*UIDS, "contrast", "derived", "kernel", "thickness_mm"])
    table = table.set_column(4, "kernel", table["kernel"].cast(pa.string()))
    table = table.append_column("labelled", pa.array(labelled))
    every = [("contrast", "any"), ("derived", "any"), ("kernel", "distinct"), ("thickness_mm", "list")]
    grouped = table.group_by(UIDS).aggregate([("labelled", "count"), *every, ("labelled", "any")])
    names = [*UIDS, "labelled_count", *("_".join(pair) for pair in every), "labelled_any"]
    for study, series, count, contrast, derived, *facts in zip(
        *(grouped[name].to_pylist() for name in names), strict=True
    ):
        yield series_choice.series_facts((study, series), count, bool(contrast), bool(derived), *facts)
