"""`reads.csv` of CQ500: majorities against plain counting, and the forms of a study's name."""

from __future__ import annotations

import io

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords import spec
from ich_tfrecords.labels import readers
from ich_tfrecords.labels.table import LabelTable, read_labels

LABELS = spec.load("rsna_ich").labels
WORDS = [readers.FINDINGS[name] for name in LABELS.names]


def read(rows: list[list[list[str]]]) -> LabelTable:
    """Of each study what each of three readers says of each label, in the order of `LABELS`."""
    header = ["name", "Category", *(f"{reader}:{word}" for reader in readers.READERS for word in WORDS)]
    lines = [f"CQ500-CT-{at},B1,{','.join(cell for reader in row for cell in reader)}" for at, row in enumerate(rows)]
    text = "\n".join([",".join(header), *lines])
    return read_labels(io.BytesIO(text.encode()), LABELS, "reads.csv", str, may_miss=True)


def of(column: list[str]) -> int:
    return 1 if column.count("1") >= 2 else 0 if column.count("0") >= 2 else -1


cells = st.lists(st.lists(st.sampled_from(["0", "1", ""]), min_size=6, max_size=6), min_size=3, max_size=3)


@given(st.lists(cells, min_size=1, max_size=4))
def test_majorities_against_counting(rows):
    table = read(rows)
    found = dict(zip(table.ids.to_pylist(), range(len(table.ids)), strict=True))
    for at, row in enumerate(rows):
        columns = [list(column) for column in zip(*row, strict=True)]
        either, *kinds = map(of, columns)
        if either == 1 and 1 not in kinds:
            kinds = [-1] * len(kinds)
        if either == 0 and 1 in kinds:
            assert table.dropped[str(at)] == "label_any_contradiction"
            continue
        place = found[str(at)]
        if 1 in kinds:
            either = 1
        if either == -1 and set(kinds) == {0}:
            either = 0
        if either == 0:
            kinds = [0] * len(kinds)
        assert table.values[place].tolist() == [either, *kinds]
        assert table.readers.count[place] == sum(cell != "" for cell in columns[0])
        assert table.readers.votes[place].tolist() == [column.count("1") for column in columns]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("CQ500-CT-12", "12"),
        ("CQ500CT12 CQ500CT12", "12"),
        ("qct01/cq500ct007/Unknown Study", "7"),
        ("CQ500-CT-0", "0"),
        ("CQ500-CT-", None),
        ("XCQ500CT1", None),
        ("CT-1", None),
    ],
)
def test_numbers_of_studies(text, number):
    assert readers.numbers_in(pa.array([text])).to_pylist() == [number]
