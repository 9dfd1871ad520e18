"""From the index and the labels to the plan: what is left out and why, and the split, stratum and shard of the rest.

Pure work on tables; nothing here reads or writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords import problems
from ich_tfrecords.conversion import group_notes, series_table
from ich_tfrecords.dataset import records, rejects, repeats, series_choice, shards, splits, studies
from ich_tfrecords.dataset.records import IDS
from ich_tfrecords.labels import follow, join
from ich_tfrecords.labels.fixes import Fixes
from ich_tfrecords.labels.join import Joined
from ich_tfrecords.labels.table import LabelTable, stratum_indices
from ich_tfrecords.spec import DatasetSpec
from ich_tfrecords.storage.sources import LISTING_SCHEMA

HEADER_SCHEMA = pa.schema(
    [
        ("sop_uid", pa.string()),
        ("patient_key", pa.string()),
        ("study_uid", pa.string()),
        ("series_uid", pa.string()),
        ("position_mm", pa.float64()),
        ("rows", pa.int32()),
        ("columns", pa.int32()),
    ]
)
FACTS_SCHEMA = pa.schema(  # of the scan, for who wants to see how the model does on some of them
    [
        *((name, pa.dictionary(pa.int32(), pa.string())) for name in ("manufacturer", "model", "kernel")),
        *((name, pa.float32()) for name in ("kvp", "thickness_mm", "spacing_mm", "tilt_deg")),
    ]
)
CHOICE_SCHEMA = pa.schema([("contrast", pa.bool_()), ("derived", pa.bool_())])
FRAME_SCHEMA = pa.schema([("frame", pa.int32())])  # `SliceRef.frame`
PROBLEM_SCHEMA = pa.schema([("reason", pa.string()), ("detail", pa.string())])
INDEX_SCHEMA = pa.unify_schemas(
    [LISTING_SCHEMA, FRAME_SCHEMA, HEADER_SCHEMA, FACTS_SCHEMA, CHOICE_SCHEMA, PROBLEM_SCHEMA]
)
PLACE = [*LISTING_SCHEMA.names, *FRAME_SCHEMA.names]
PLANNED = [*PLACE, *IDS, "position_mm", *FACTS_SCHEMA.names]
SIZE = ["rows", "columns"]


class PlanError(ValueError):
    """Nothing is left to convert, or the labels belong to other slices."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The slices to convert, sorted by split, shard and row; the rejects; what the subset and labels left over.

    `slices`: columns of `PLACE`, ids, `position_mm`, facts (`FACTS_SCHEMA`), `slice_index slice_count`,
    `labels` (list of int8), `split stratum` (indices into `splits.split_names` and `LabelSpec.strata`),
    `shard shard_count row`.
    `rejects`: `rejects.SCHEMA`. `not_drawn`: slices outside the subset. `labels_unused`: label rows of no slice.
    `repeats`: files with the header of a slice to convert, whose HU are to be compared: the columns of that slice, but
    for those of `PLACE`, in the same order. `groups`: `splits.Groups.several`. `notes`: what people should know.
    `studies`: `studies.table` of every study of the input, where labels of more than slices were given.
    `indexed`: how many rows the index has: slices, and files that give none.
    """

    slices: pa.Table
    rejects: pa.Table
    not_drawn: int
    labels_unused: int
    repeats: pa.Table
    groups: list[list[str]]
    notes: list[str]
    studies: pa.Table | None
    indexed: int


@dataclasses.dataclass(frozen=True)
class PlannedShard:
    """One shard-to-be: its file name, split and stratum by name, and its rows of `Plan.slices` and `Plan.repeats`.

    The files of a shard are numbered: the slices by their `row`, from 0, the repeats after them.
    """

    name: str
    split: str
    stratum: str
    slices: pa.Table
    repeats: pa.Table


def build_plan(
    index: pa.Table,
    labels: Sequence[LabelTable],
    spec: DatasetSpec,
    may_miss: bool = False,
    series: str = series_choice.TOLD,
    fixes: Fixes | None = None,
) -> Plan:
    """Plan of an index (`INDEX_SCHEMA`). The order of its rows does not matter.

    Without `labels` the slices carry unknown ones (-1), and where labels `may_miss`, so do slices that no table speaks
    of. `series`: which ones are read, a mode of `series_choice`. `fixes`: of what `labels` say. Raises `PlanError`,
    `SubsetError`, `LabelError`.
    """
    (readable, unreadable), indexed = _readable(index), index.num_rows
    del index  # the largest table; whoever gave it away keeps no name for it either
    groups = splits.groups(readable)
    several = groups.several()
    notes = group_notes.ties(readable, several)
    usable, copies, conflicts = _parted(readable.append_column("group", pa.array(groups.of_row)))
    del readable
    usable = _with_order(usable)
    joined, of_studies = _joined(usable, labels, spec, may_miss, fixes)
    chosen = series_table.choose(usable, joined.known, series)
    notes += chosen.notes
    usable, values, unlabelled = _labelled(usable, joined, chosen.left)
    lost = pa.concat_tables([unreadable, conflicts, chosen.rejects, unlabelled])
    if usable.num_rows == 0:
        raise PlanError("; ".join((f"no slice can be converted: {top_reasons(lost)}", *chosen.notes)))
    hashed = splits.hash64(f"order:{spec.shards.seed}", _texts(usable["sop_uid"]))
    group = usable["group"].to_numpy()
    split = splits.split_of(groups.keys.to_pylist(), spec.split)[group]
    notes += group_notes.one_for_most(usable["study_uid"], group, split, splits.split_names(spec.split))
    try:
        drawn = splits.draw_subset(split, hashed, spec.split)
    except splits.SubsetError as error:
        raise splits.SubsetError("; ".join((str(error), *notes))) from error
    usable = _filtered(usable.drop_columns("group"), drawn)
    planned = _placed(usable, values[drawn], hashed[drawn], split[drawn], spec)
    seated, unseated = _seated(copies, planned)
    lost = pa.concat_tables([lost, unseated])
    notes += joined.notes
    return Plan(planned, lost, int((~drawn).sum()), joined.unused, seated, several, notes, of_studies, indexed)


def _placed(
    usable: pa.Table,
    values: npt.NDArray[np.int8],
    hashed: npt.NDArray[np.uint64],
    split: npt.NDArray[np.int8],
    spec: DatasetSpec,
) -> pa.Table:
    """`Plan.slices`: the drawn slices with their labels `values`, each in its place."""
    stratum = stratum_indices(values, spec.labels)
    seats = shards.assign_shards(split, stratum, hashed, records.slice_bytes(spec), spec.shards)
    order = np.lexsort((seats["row"], seats["shard"], split))
    columns = {"split": split, "stratum": stratum, **{name: seats[name].to_numpy() for name in seats}}
    planned = usable.append_column("labels", _label_lists(values))
    for name, column in columns.items():
        planned = planned.append_column(name, pa.array(column))
    return planned.take(pa.array(order))


def planned_shards(plan: Plan, spec: DatasetSpec) -> Iterator[PlannedShard]:
    """Each shard of a plan, in order of split and number."""
    seats, copies = _seats(plan.slices), _seats(plan.repeats)
    begins = np.flatnonzero(np.r_[True, seats[1:] != seats[:-1]])
    for begin, end in zip(begins, np.r_[begins[1:], len(seats)], strict=True):
        rows = plan.slices.slice(begin, end - begin)
        first_copy, last_copy = (int(np.searchsorted(copies, seats[begin], side)) for side in ("left", "right"))
        repeated = plan.repeats.slice(first_copy, last_copy - first_copy)
        first = {name: rows[name][0].as_py() for name in ("split", "stratum", "shard", "shard_count")}
        split_name = splits.split_names(spec.split)[first["split"]]
        name = shards.shard_name(spec.name, split_name, first["shard"], first["shard_count"])
        yield PlannedShard(name, split_name, spec.labels.strata[first["stratum"]], rows, repeated)


def _seats(slices: pa.Table) -> npt.NDArray[np.int64]:
    """A number for the shard of each slice, ascending as the slices of a plan do."""
    return slices["split"].to_numpy().astype(np.int64) << 32 | slices["shard"].to_numpy()


def foreseen(plan: Plan) -> pa.Table:
    """Rejects (`rejects.SCHEMA`) that show before any pixels do; repeats, which give no record, pass for copies."""
    uids = plan.repeats["sop_uid"].to_pylist()
    unread = rejects.of_files(plan.repeats, repeats.COPY, [*map(repeats.unread_detail, uids)])
    return pa.concat_tables([plan.rejects, unread])


def by_nature(lost: pa.Table) -> npt.NDArray[np.bool_]:
    """True for each reject that never was an axial CT slice (`problems.is_by_nature`)."""
    pairs = zip(lost["reason"].to_pylist(), lost["name"].to_pylist(), strict=True)
    return np.array([problems.is_by_nature(*pair) for pair in pairs], bool)


def top_reasons(lost: pa.Table, most: int = 4) -> str:
    """The commonest reasons of a reject table, as `1,204 localizer (first: a/b.dcm), 3 truncated (...)`.

    A slice without a label comes with its detail, which names an id of each side, one that is derived with its way out,
    and so does the commonest reason where it is a loss: a run that commits nothing writes no rejects.csv, which says
    how to go on.
    """
    counts: dict[str, list[Any]] = {}
    for reason, name, detail in zip(*(lost[key].to_pylist() for key in ("reason", "name", "detail")), strict=True):
        counts.setdefault(reason, [0, name, detail])[0] += 1
    ranked = sorted(counts.items(), key=lambda item: -item[1][0])[:most]
    explained = {join.NO_LABEL, *(reason for reason, _ in ranked[:1])} - problems.BY_NATURE | {"derived_secondary"}
    return ", ".join(
        f"{count:,} {reason} (first: {f'{name}; {detail}' if detail and reason in explained else name})"
        for reason, (count, name, detail) in ranked
    )


def _readable(index: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Files with a usable header, sorted by SOP UID and name, and the rejects among the rest."""
    good = pc.equal(index["reason"], "").to_numpy()
    bad = index.select([*rejects.SCHEMA.names, "frame"]).filter(pa.array(~good))
    keys = _filtered(index.select(["sop_uid", "name"]), good)
    order = pc.sort_indices(keys, [("sop_uid", "ascending"), ("name", "ascending")])
    readable = index.select([*PLANNED, *CHOICE_SCHEMA.names, *SIZE])
    return readable.take(pa.array(np.flatnonzero(good)[order])), rejects.named(bad)


def _parted(readable: pa.Table) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The first file of each SOP UID, the others, and the rejects where files of one UID are several slices."""
    again = repeats.repeated(readable["sop_uid"])
    readable, headers = readable.drop_columns(SIZE), readable
    if not again.any():
        return readable, readable.slice(0, 0), rejects.NONE
    conflicting, details = repeats.conflicts(headers, again)
    none = rejects.of_files(readable.filter(pa.array(conflicting)), repeats.CONFLICT, details)
    return _filtered(readable, ~again & ~conflicting), _filtered(readable, again & ~conflicting), none


def _seated(copies: pa.Table, planned: pa.Table) -> tuple[pa.Table, pa.Table]:
    """`Plan.repeats`, and the rejects among the files whose first one is not planned, for want of a label or a draw."""
    if copies.num_rows == 0:
        return planned.slice(0, 0), rejects.NONE
    found = pc.index_in(copies["sop_uid"], value_set=planned["sop_uid"].combine_chunks())
    lost = copies.filter(pc.is_null(found))
    details = [*map(repeats.not_compared_detail, lost["sop_uid"].to_pylist())]
    at = pc.fill_null(found, -1).to_numpy()
    order = np.argsort(at, kind="stable")[lost.num_rows :]
    seated = planned.take(pa.array(at[order]))
    files = copies.select(PLACE).take(pa.array(order))
    for number, name in enumerate(PLACE):
        seated = seated.set_column(seated.schema.get_field_index(name), name, files[number])
    return seated, rejects.of_files(lost, repeats.COPY, details)


def _filtered(table: pa.Table, kept: npt.NDArray[np.bool_]) -> pa.Table:
    """Rows that are kept, without a copy where all are."""
    return table if kept.all() else table.filter(pa.array(kept))


def _texts(column: pa.ChunkedArray) -> Iterator[str]:
    """Values of a text column, a block at a time: Python's strings are larger than Arrow's."""
    for begin in range(0, len(column), 8192):
        yield from column.slice(begin, 8192).to_pylist()


def _with_order(usable: pa.Table) -> pa.Table:
    """`usable`, sorted by SOP UID, with `slice_index` and `slice_count` within each series."""
    series = pc.binary_join_element_wise(usable["study_uid"], usable["series_uid"], "/")
    codes = pa.chunked_array(series).combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    rank = np.arange(usable.num_rows)
    index, count = shards.slice_order(codes, usable["position_mm"].to_numpy(), rank)
    return usable.append_column("slice_index", pa.array(index)).append_column("slice_count", pa.array(count))


def _joined(
    usable: pa.Table, labels: Sequence[LabelTable], spec: DatasetSpec, may_miss: bool, fixes: Fixes | None
) -> tuple[Joined, pa.Table | None]:
    """The labels of slices, all unknown where there is no table, and `Plan.studies`."""
    if not labels:
        values = np.full((usable.num_rows, len(spec.labels.names)), -1, np.int8)
        return Joined(np.ones(len(values), bool), values, [], [], 0, ()), None
    joined, of_studies = follow.follow(usable, labels, spec.labels, may_miss, fixes)
    return joined, studies.table(of_studies, spec.labels) if of_studies else None


def _labelled(
    usable: pa.Table, joined: Joined, left: npt.NDArray[np.bool_]
) -> tuple[pa.Table, npt.NDArray[np.int8], pa.Table]:
    """Slices with labels, the labels [n, labels], and the rejects of the others, but for the slices `left` out."""
    known = joined.known
    wanted = ~left[~known]
    whys = [[text for text, is_wanted in zip(texts, wanted) if is_wanted] for texts in (joined.reasons, joined.details)]
    unknown = rejects.of_files(usable.filter(pa.array(~known & ~left)), *whys)
    kept = _filtered(usable, known & ~left).drop_columns(CHOICE_SCHEMA.names)
    return kept, joined.values[~left[known]] if left.any() else joined.values, unknown


def _label_lists(values: npt.NDArray[np.int8]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
