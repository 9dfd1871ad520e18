"""`studies.parquet`: its columns, and what does not fit `slices.parquet`."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from ich_tfrecords import spec
from ich_tfrecords.dataset import studies
from ich_tfrecords.labels.studies import Studies

LABELS = spec.LabelSpec(any="any", names=("any", "subdural"), rarest_first=("subdural",))


def made(values: list[list[int]], readers: list[int] | None = None, votes: list[list[int]] | None = None) -> pa.Table:
    uids = pa.array([f"s{at}" for at in range(len(values))], pa.large_string())
    agreement = [None if found is None else np.array(found, np.int8) for found in (readers, votes)]
    return studies.table(Studies(uids, np.array(values, np.int8), *agreement), LABELS)


def slices(*rows: tuple[str, int, int]) -> pa.Table:
    uids, either, subdural = zip(*rows, strict=True)
    codes = {"any": pa.array(either, pa.int8()), "subdural": pa.array(subdural, pa.int8())}
    return pa.table({"study_uid": pa.array(uids, pa.string()), **codes})


def test_readers_are_null_where_nobody_tells():
    table = made([[1, -1], [0, 0]], [3, -1], [[2, 1], [-1, -1]])
    assert table.to_pylist() == [
        {"study_uid": "s0", "any": 1, "subdural": -1, "readers": 3, "any_votes": 2, "subdural_votes": 1},
        {"study_uid": "s1", "any": 0, "subdural": 0, "readers": None, "any_votes": None, "subdural_votes": None},
    ]
    assert {str(field.type) for field in table.schema} == {"string", "int8"}


def test_a_study_without_a_slice_has_no_row():
    kept = studies.of_slices(made([[1, 1], [0, 0], [-1, -1]]), slices(("s2", -1, -1), ("s0", 1, 1)))
    assert kept["study_uid"].to_pylist() == ["s0", "s2"]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([[1, 1], [0, 0]], []),
        ([[1, 1], [-1, -1]], []),
        ([[-1, 1], [0, 0]], ["studies.parquet: any does not fit the slices in 1 studies (first: s0)"]),
        ([[1, 0], [0, 0]], ["studies.parquet: subdural does not fit the slices in 1 studies (first: s0)"]),
        ([[1, 1], [0, 7]], ["studies.parquet: subdural does not fit the slices in 1 studies (first: s1)"]),
        ([[1, 1]], ["studies.parquet: its studies are not those of the slices, each once and sorted"]),
    ],
)
def test_what_does_not_fit_the_slices(values, told):
    rows = slices(("s0", 1, 1), ("s0", -1, -1), ("s1", 0, 0))
    assert list(studies.problems(made(values), rows, LABELS)) == told


def test_a_study_of_zeros_has_no_slice_that_is_unknown():
    (told,) = studies.problems(made([[0, 0]]), slices(("s0", 0, 0), ("s0", 0, -1)), LABELS)
    assert "subdural does not fit" in told


def test_a_column_that_is_gone():
    (told,) = studies.problems(made([[0, 0]]).drop_columns(["any"]), slices(("s0", 0, 0)), LABELS)
    assert told == "studies.parquet: no column any"


def test_counts():
    found = studies.counts(made([[1, -1], [0, 0], [1, 1]]), slices(("s0", -1, -1), ("s1", 0, 0)), LABELS)
    assert found["any"] == {"positive": 1, "negative": 1, "unknown": 0}
    assert found["subdural"] == {"positive": 0, "negative": 1, "unknown": 1}
