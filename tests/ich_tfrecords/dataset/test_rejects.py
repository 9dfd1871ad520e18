"""The rows of rejects.csv."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords.dataset import rejects


def files(*rows: tuple[str, str]) -> pa.Table:
    names, uids = zip(*rows, strict=True) if rows else ((), ())
    return pa.table({"name": pa.array(names, pa.string()), "sop_uid": pa.array(uids, pa.string())})


def test_one_reason_for_all_or_one_each():
    some = files(("b.dcm", "2"), ("a.dcm", "1"))
    same = rejects.of_files(some, "truncated", ["x", "y"])
    assert same.schema == rejects.SCHEMA
    assert same.to_pylist()[0] == {"name": "b.dcm", "sop_uid": "2", "reason": "truncated", "detail": "x"}
    assert rejects.of_files(some, ["r", "s"], ["x", "y"])["reason"].to_pylist() == ["r", "s"]
    assert rejects.of_files(files(), "truncated", []).equals(rejects.NONE)


texts = st.text(st.characters(codec="utf-8"), max_size=3)


@pytest.mark.slow
@given(st.lists(st.lists(st.tuples(texts, texts, texts, texts), max_size=5), min_size=1, max_size=4))
def test_joined_against_sorting_rows(tables):
    """By code points, and rows of one name and UID in the order in which they came."""
    made = [
        rejects.of_files(files(*(row[:2] for row in rows)), [row[2] for row in rows], [row[3] for row in rows])
        for rows in tables
    ]
    found = [tuple(row.values()) for row in rejects.joined(made).to_pylist()]
    assert found == sorted((row for rows in tables for row in rows), key=lambda row: row[:2])


@pytest.mark.parametrize(
    ("text", "cell"),
    [("=1+1", "'=1+1"), ("+1", "'+1"), ("-1", "'-1"), ("@x", "'@x"), ("\tx", "'\tx"), ("a=1", "a=1"), ("", "")],
)
def test_formula_cells(text, cell):
    lines = rejects.as_csv(rejects.of_files(files((text, "u")), "r", ['says "x", twice'])).split("\n")
    assert lines == ["name,sop_uid,reason,detail", f'{cell},u,r,"says ""x"", twice"', ""]


def test_the_csv_of_none_is_its_head():
    assert rejects.as_csv(rejects.NONE) == "name,sop_uid,reason,detail\n"
