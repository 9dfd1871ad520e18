import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords.storage.csv_text import csv_text, safe_cell


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-ID", "'-ID"),
        ("@SUM", "'@SUM"),
        ("\tx", "'\tx"),
        ("\rx", "'\rx"),
        ("ID_1=2", "ID_1=2"),
        ("", ""),
        (-0.5, -0.5),  # a number is no formula
        (3, 3),
    ],
)
def test_formulas_become_text(value, cell):
    assert safe_cell(value) == cell


def test_a_table_by_hand():
    assert csv_text(["id", "p"], [["a,b", 0.25], ["=x", -1]]) == 'id,p\n"a,b",0.25\n\'=x,-1\n'


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"])), min_size=2, max_size=2)))
def test_every_text_comes_back(rows):
    read = list(csv.reader(io.StringIO(csv_text(["one", "two"], rows))))
    assert [[cell.removeprefix("'") for cell in row] for row in read[1:]] == [
        [cell.removeprefix("'") for cell in row] for row in rows
    ]
