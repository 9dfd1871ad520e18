"""What follows from labels of several levels, against an oracle that tries every way the slices could be."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords import spec
from ich_tfrecords.labels import follow
from ich_tfrecords.labels.table import LabelTable, read_labels

TWO = spec.LabelSpec(any="any", names=("any", "subdural"), rarest_first=("subdural",))
ONE = spec.LabelSpec(any="any", names=("any",), rarest_first=())
# slice -> series, study, patient
PLACES = {"a": "S1 T1 P1", "b": "S1 T1 P1", "c": "S2 T1 P1", "d": "S3 T2 P1", "e": "S4 T3 P2"}
COLUMNS = ("sop_uid", "series_uid", "study_uid", "patient_id")
IDS = {
    "sop_uid": tuple(PLACES),
    "series_uid": ("S1", "S2", "S3", "S4"),
    "study_uid": ("T1", "T2", "T3"),
    "patient_id": ("P1", "P2"),
}


def slices() -> pa.Table:
    rows = [(uid, *place.split(), f"{uid}.dcm", "in") for uid, place in PLACES.items()]
    names = ("sop_uid", "series_uid", "study_uid", "patient_key", "name", "container")
    return pa.table({name: pa.array(column) for name, column in zip(names, zip(*rows), strict=True)})


def table(column: str, labels: spec.LabelSpec, **rows: str) -> LabelTable:
    """A file whose rows are an id and its cells, as `1,-1`."""
    lines = [",".join([column, *labels.names]), *(f"{name},{cells}" for name, cells in rows.items())]
    return read_labels(io.BytesIO("\n".join(lines).encode()), labels, f"{column}.csv", str, may_miss=True)


def inside(column: str, name: str) -> list[int]:
    """Numbers of the slices below an id."""
    at = COLUMNS.index(column)
    return [number for number, (uid, place) in enumerate(PLACES.items()) if [uid, *place.split()][at] == name]


def worlds(statements: list[tuple[str, str, int]]) -> list[tuple[int, ...]]:
    """Every way in which five slices have one label, or not, that no statement (column, id, value) forbids."""
    return [
        world
        for world in itertools.product((0, 1), repeat=len(PLACES))
        if all(max(world[at] for at in inside(column, name)) == value for column, name, value in statements)
    ]


statement = st.sampled_from(COLUMNS).flatmap(
    lambda column: st.tuples(st.just(column), st.sampled_from(IDS[column]), st.integers(0, 1))
)


@given(st.lists(statement, min_size=1, max_size=6, unique_by=lambda said: said[:2]))
def test_one_label_against_every_world(said):
    """No slice and no study gets a label that another world contradicts, and all zeros that hold everywhere are found.

    A 1 of a slice is found where a row of its own says it; what only follows by exclusion stays unknown.
    """
    tables = [
        table(column, ONE, **{name: str(value) for kind, name, value in said if kind == column})
        for column in COLUMNS
        if any(kind == column for kind, _, _ in said)
    ]
    joined, studies = follow.follow(slices(), tables, ONE, may_miss=True)
    possible = worlds(said)
    if not possible:
        assert set(joined.reasons) == {"label_conflict"}
        return
    assert joined.known.all()
    own = {name: value for column, name, value in said if column == "sop_uid"}
    for at, uid in enumerate(PLACES):
        truths, found = {world[at] for world in possible}, int(joined.values[at, 0])
        assert found == (0 if truths == {0} else own.get(uid, -1))
    if not any(column != "sop_uid" for column, _, _ in said):
        assert studies is None
        return
    for uid, found in zip(studies.uids.to_pylist(), studies.values[:, 0].tolist(), strict=True):
        truths = {max(world[at] for at in inside("study_uid", uid)) for world in possible}
        assert found == -1 or truths == {found}
        assert truths != {0} or found == 0


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from(["1,1", "0,0", "1,0", "1,-1", "0,-1", "-1,0"]))))
def test_rows_of_slices_alone_are_taken_as_they_stand(rows):
    rows = dict(rows) or {"a": "0,0"}
    joined, studies = follow.follow(slices(), [table("sop_uid", TWO, **rows)], TWO, may_miss=True)
    assert studies is None
    # `any` is the maximum of one kind: 1,0 contradicts itself, and all else follows
    meant = {"1,1": [1, 1], "0,0": [0, 0], "1,-1": [1, -1], "0,-1": [0, 0], "-1,0": [0, 0]}
    kept = [uid for uid in PLACES if rows.get(uid) != "1,0"]
    assert joined.known.tolist() == [uid in kept for uid in PLACES]
    assert joined.values.tolist() == [meant.get(rows.get(uid, ""), [-1, -1]) for uid in kept]


def test_a_contradiction_goes_no_further_than_what_is_said_together():
    """The patient's 0 falls with its study; the other patient stands."""
    tables = [table("patient_id", TWO, P1="0,0", P2="1,1"), table("study_uid", TWO, T1="1,1")]
    joined, studies = follow.follow(slices(), tables, TWO, may_miss=True)
    assert joined.known.tolist() == [False] * 4 + [True]
    assert joined.reasons == ["label_conflict"] * 4
    assert dict(zip(studies.uids.to_pylist(), studies.values.tolist())) == {
        "T1": [-1, -1],
        "T2": [-1, -1],
        "T3": [1, 1],
    }


def test_any_by_one_file_and_kinds_by_another():
    tables = [table("sop_uid", TWO, a="1,-1", b="-1,0"), table("series_uid", TWO, S1="-1,-1")]
    joined, _ = follow.follow(slices(), tables, TWO, may_miss=True)
    assert joined.values[:2].tolist() == [[1, -1], [0, 0]]
    with_kinds = [tables[0], table("study_uid", TWO, T1="-1,0")]
    joined, _ = follow.follow(slices(), with_kinds, TWO, may_miss=True)
    assert joined.reasons == ["label_conflict"] * 3


def test_rows_of_nobody_are_counted():
    tables = [table("study_uid", TWO, T1="0,0", T9="0,0"), table("sop_uid", TWO, a="0,0", x="0,0", y="0,0")]
    joined, _ = follow.follow(slices(), tables, TWO, may_miss=True)
    assert joined.unused == 3


@pytest.mark.parametrize("may_miss", [False, True])
def test_a_slice_of_which_nobody_speaks(may_miss):
    joined, _ = follow.follow(slices(), [table("study_uid", TWO, T1="0,0", T3="1,1")], TWO, may_miss)
    assert joined.known.tolist() == [True, True, True, may_miss, True]
    if not may_miss:
        assert joined.details == ["the label file has no row for 'T2'; its nearest id is 'T1'"]


@pytest.mark.slow
def test_a_hundred_thousand_slices_in_no_order():
    count = 100_000
    at = np.random.default_rng(3).permutation(count)
    texts = {name: np.char.add(name[:2], (at // size).astype(str)) for name, size in SIZES.items()}
    rows = pa.table(
        {name: pa.array(column) for name, column in texts.items()} | {"container": pa.array(["in"] * count)}
    )
    said = {f"st{number}": f"{number % 2},{number % 2}" for number in range(10_000)}
    joined, studies = follow.follow(rows, [table("study_uid", TWO, **said)], TWO, may_miss=False)
    assert (joined.values[at // 10 % 2 == 1] == -1).all()
    assert (joined.values[at // 10 % 2 == 0] == 0).all()
    assert (studies.values[:, 0] == np.array([int(uid[2:]) % 2 for uid in studies.uids.to_pylist()])).all()


SIZES = {"sop_uid": 1, "name": 1, "series_uid": 5, "study_uid": 10, "patient_key": 20}
