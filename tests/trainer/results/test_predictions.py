"""The table of predictions: whole, typed, refused when damaged."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_predictions import predictions_of

from trainer.results import predictions
from trainer.shell.problems import WorkFailed, WrongUse

LABELS = [[1, 1], [0, 0], [-1, 0], [1, -1]]
PROBABILITIES = [[0.75, 0.5], [0.25, 0.125], [0.5, 0.0625], [0.9375, 0.75]]


@pytest.fixture
def made():
    return predictions_of(LABELS, PROBABILITIES, [7, 3, 7, 12], ["b", "a", "b", "c"])


def test_a_file_comes_back_with_every_bit(made, tmp_path):
    made.write(tmp_path / "p.parquet")
    read = predictions.read(tmp_path / "p.parquet")
    assert (read.names, read.any, len(read)) == (made.names, "any", 4)
    assert read.ids.equals(made.ids)
    for name, dtype in (("labels", np.int8), ("logits", np.float32), ("probabilities", np.float64)):
        assert getattr(read, name).dtype == dtype
        np.testing.assert_array_equal(getattr(read, name), getattr(made, name))


def test_the_columns_are_those_that_others_read(made, tmp_path):
    made.write(tmp_path / "p.parquet")
    assert pq.read_schema(tmp_path / "p.parquet").names == [
        "sop_uid", "study_uid", "series_uid", "patient_key", "slice_index", "position_mm",
        "label_any", "label_epidural", "logit_any", "logit_epidural", "probability_any", "probability_epidural",
    ]  # fmt: skip


def test_people_and_studies_are_numbered_in_the_order_of_their_keys(made):
    assert made.patients.tolist() == [1, 0, 1, 2]
    assert made.studies.tolist() == [1, 0, 1, 2]
    assert made.any_index == 0


def test_ids_that_share_a_study_are_one_person():
    made = predictions_of(LABELS, PROBABILITIES, [7, 3, 9, 12], ["b", "a", "b", "c"])
    assert made.patients.tolist() == [1, 0, 1, 2]
    assert made.take(np.array([2, 3])).patients.tolist() == [0, 1]


@pytest.mark.parametrize("rows", [np.array([3, 1]), np.array([False, True, False, True])])
def test_some_rows(made, rows):
    some = made.take(rows)
    expected = np.flatnonzero(rows) if rows.dtype == bool else rows
    assert some.ids["sop_uid"].to_pylist() == [f"ID_{row}" for row in expected]
    np.testing.assert_array_equal(some.probabilities, np.array(PROBABILITIES)[expected])


@pytest.mark.parametrize(("part", "value"), [("logits", np.nan), ("logits", np.inf), ("probabilities", np.nan)])
def test_a_value_that_is_no_number_names_the_slice(made, part, value):
    broken = getattr(made, part).copy()
    broken[2, 1] = value
    with pytest.raises(WorkFailed, match="slice ID_2: epidural has logit"):
        dataclasses.replace(made, **{part: broken})


def test_what_is_no_table_of_predictions_is_refused(made, tmp_path):
    path = tmp_path / "p.parquet"
    with pytest.raises(WrongUse, match=r"there is no .*p\.parquet; make it with python -m trainer\.evaluate"):
        predictions.read(path)
    made.write(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[:-20], b"PAR1" + bytes(200)):
        path.write_bytes(damaged)
        with pytest.raises(WrongUse, match="is damaged or no table of predictions"):
            predictions.read(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(WrongUse, match="is damaged or no table of predictions"):
        predictions.read(path)
