"""Columns that say which slices are alike."""

from __future__ import annotations

import pyarrow as pa
import pytest

from trainer.data import subgroup_columns
from trainer.shell.problems import WrongUse

TABLE = pa.table(
    {
        "sop_uid": ["1", "2", "3"],
        "study_uid": ["a", "a", "b"],
        "manufacturer": pa.array(["ge", None, "siemens"]),
        "kernel": pa.array([None] * 3, pa.string()),
        "thickness_mm": pa.array([2.5, 5, 0.625], pa.float32()),
    }
)
FACTS = ("manufacturer", "kernel", "thickness_mm", "tilt_deg")


@pytest.fixture
def file(tmp_path):
    def write(text: str):
        path = tmp_path / "a:b.csv"
        path.write_text(text)
        return path

    return write


def test_a_fact():
    assert subgroup_columns.values(TABLE, "manufacturer", FACTS) == ["ge", None, "siemens"]
    assert subgroup_columns.values(TABLE, "thickness_mm", FACTS) == [2.5, 5.0, 0.625]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("study_uid,age\na,60s\nb,\n", ["60s", "60s", None]),
        ("study_uid,age\na,60\nb, 7.5\nz,old\n", [60.0, 60.0, 7.5]),
        ("age,sop_uid\n1,1\nx,2\n", ["1", "x", None]),
        ('\ufeffstudy_uid,age\n"a","6,0"\n', ["6,0", "6,0", None]),
        ("study_uid,age\na,1\na,1\n", [1.0, 1.0, None]),
    ],
)
def test_a_file(file, text, wanted):
    assert subgroup_columns.values(TABLE, f"{file(text)}:age", FACTS) == wanted


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("kernel", "no slice of these tells it"),
        ("tilt_deg", "is no fact of this data set"),
        ("manufacturers", "did you mean 'manufacturer'"),
        ("nowhere.csv:age", "cannot be read as text"),
    ],
)
def test_what_is_no_fact(asked, words):
    with pytest.raises(WrongUse, match=words):
        subgroup_columns.values(TABLE, asked, FACTS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("study_uid,sex\na,f\n", "the file has no column 'age'"),
        ("name,age\na,1\n", "no column that tells its rows"),
        ("study_uid,age\na,1\na,2\n", "has '1' and '2'; leave one"),
        ("study_uid,age\nq,1\n", "no study_uid of the file is among those evaluated, 'a' for one"),
        ("study_uid,age\n", "holds no header with rows below"),
        ("study_uid,age\na,1,2\n", "row 2 has 3 columns, the header 2"),
    ],
)
def test_a_file_that_does_not_fit(file, text, words):
    with pytest.raises(WrongUse, match=words):
        subgroup_columns.values(TABLE, f"{file(text)}:age", FACTS)
