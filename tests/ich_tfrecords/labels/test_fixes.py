"""Corrections of labels: what a file may say, and what follows for the slice."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest

from ich_tfrecords import spec
from ich_tfrecords.labels import fixes, follow
from ich_tfrecords.labels.csv_file import LabelError
from ich_tfrecords.labels.table import read_labels

THREE = spec.LabelSpec(any="any", names=("any", "epidural", "subdural"), rarest_first=("epidural", "subdural"))
ONE = spec.LabelSpec(any="any", names=("any",), rarest_first=())
UIDS = pa.chunked_array([["a", "b", "-c", "d"]])
GIVEN = np.array([[0, 0, 0], [1, 0, 1], [1, 1, 1], [1, -1, -1]], np.int8)
EVERY = np.ones(4, bool)


def read(*rows: str, labels: spec.LabelSpec = THREE, head: str = "sop_uid,label,value") -> fixes.Fixes:
    return fixes.read_fixes("\n".join([head, *rows, ""]).encode(), "f.csv", labels)


def after(*rows: str) -> list[list[int]]:
    return fixes.corrected(read(*rows), UIDS, EVERY, GIVEN, THREE)[0].tolist()


@pytest.mark.parametrize(
    ("rows", "slice_row", "expected"),
    [
        (("a,subdural,1",), 0, [1, 0, 1]),  # any follows from a kind
        (("b,subdural,0",), 1, [0, 0, 0]),  # and from none
        (("-c,subdural,0",), 2, [1, 1, 0]),  # another kind is left
        (("'-c,subdural,0.0",), 2, [1, 1, 0]),  # as a spreadsheet may write it
        (("b,any,0",), 1, [0, 0, 0]),  # no kind without any
        (("b,any,1",), 1, [1, 0, 1]),
        (("b,subdural,0", "b,epidural,1"), 1, [1, 1, 0]),
        (("d,subdural,0",), 3, [1, -1, 0]),  # the other kind is not known, so any stays
        (("d,subdural,1",), 3, [1, -1, 1]),
        (("d,any,0",), 3, [0, 0, 0]),
        (("a,any,1", "a,epidural,1", "a,epidural,1"), 0, [1, 1, 0]),  # said twice alike
    ],
)
def test_what_follows_for_a_slice(rows, slice_row, expected):
    found = after(*rows)
    assert found[slice_row] == expected
    rest = [at for at in range(4) if at != slice_row]
    assert [found[at] for at in rest] == GIVEN[rest].tolist()


def test_the_line_counts_what_was_said_what_follows_and_what_was_so_before():
    _, note = fixes.corrected(read("a,subdural,1", "b,subdural,1"), UIDS, EVERY, GIVEN, THREE)
    assert note == "f.csv: corrected 1 label, 1 more follow, of 1 slice, 1 were so before"


def test_a_row_that_stands_twice_counts_once():
    _, note = fixes.corrected(read("a,subdural,1", "'a,subdural,1"), UIDS, EVERY, GIVEN, THREE)
    assert note == "f.csv: corrected 1 label, 1 more follow, of 1 slice"


def test_one_label_alone_has_nothing_that_follows():
    values = np.array([[0], [1], [-1], [1]], np.int8)
    found, _ = fixes.corrected(read("a,any,1", "b,any,0", labels=ONE), UIDS, EVERY, values, ONE)
    assert found.tolist() == [[1], [0], [-1], [1]]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (("a,subdural,2",), "f.csv, line 2: value is '2'; it must be 0 or 1"),
        (("a,subdural,-1",), "f.csv, line 2: value is '-1'; it must be 0 or 1"),
        (("a,subdural,1", "a,Subdural,1"), "f.csv, line 3: label is 'Subdural'; known are any, epidural, subdural"),
        (("a,subdural",), "f.csv, line 2: has 2 columns, the header has 3"),
        (("a,any,1", "a,any,0"), "f.csv, line 3: any of 'a' is 0 here and 1 in line 2"),
        (
            ("a,subdural,0", "'a,subdural,1"),
            'f.csv, line 3: subdural of "\'a" is 1 here and 0 in line 2, for the same slice',
        ),
        (("\ufffd,any,1",), "f.csv, line 2: a byte of '\ufffd' is not UTF-8; save it as UTF-8 CSV"),
        ((), "f.csv: holds no correction"),
        (("x,any,1",), "f.csv, line 2: no slice of the input has the sop_uid 'x'"),
        (("b,any,0", "b,epidural,1"), "f.csv, line 3: epidural of 'b' would be 1, and any 0 in line 2"),
        (("a,any,1",), "f.csv, line 2: any of 'a' would be 1, and no kind of it"),
        (("d,any,0",), "f.csv, line 2: slice 'd' has no labels"),
    ],
)
def test_what_cannot_be_is_refused_with_its_line(rows, words):
    with pytest.raises(LabelError) as error:
        fixes.corrected(read(*rows), UIDS, np.array([True, True, True, False]), GIVEN, THREE)
    assert str(error.value).startswith(words)


def test_a_file_of_another_kind_is_refused():
    with pytest.raises(LabelError, match="needs one column 'sop_uid'"):
        read("a,1", head="ID,Label")


def test_other_columns_and_semicolons_do_no_harm():
    found = read("why;a;1;epidural", head="reason;sop_uid;value;label")
    assert found.rows == (fixes.Fix(2, "a", 1, 1),)
    assert found.facts()["rows"] == 1


@pytest.mark.parametrize("column", ["sop_uid", "study_uid"])
def test_corrections_stand_above_the_label_files(column):
    """Of slices, and beside what a file says of their studies, whose label follows from the slices."""
    names = ("sop_uid", "study_uid", "series_uid", "patient_key", "name", "container")
    rows = [
        ("a", "T", "S", "P", "a.dcm", "in"),
        ("b", "T", "S", "P", "b.dcm", "in"),
        ("c", "U", "V", "P", "c.dcm", "in"),
    ]
    slices = pa.table({name: pa.array(values) for name, values in zip(names, zip(*rows), strict=True)})
    text = "sop_uid,any,epidural,subdural\na,1,0,1\nb,0,0,0\nc,0,0,0\n"
    tables = [read_labels(io.BytesIO(text.encode()), THREE, "l.csv", str)]
    if column == "study_uid":
        more = b"study_uid,any,epidural,subdural\nT,1,0,1\n"
        tables.append(read_labels(io.BytesIO(more), THREE, "s.csv", str))
    wrong = read("a,subdural,0", "b,subdural,1", "c,epidural,1")
    joined, studies = follow.follow(slices, tables, THREE, may_miss=False, fixes=wrong)
    assert joined.values.tolist() == [[0, 0, 0], [1, 0, 1], [1, 1, 0]]
    assert joined.notes[-1] == "f.csv: corrected 3 labels, 3 more follow, of 3 slices"
    if studies:
        assert studies.values.tolist() == [[1, 0, 1], [1, 1, 0]]


def test_a_correction_against_a_study_label_is_a_contradiction():
    names = ("sop_uid", "study_uid", "series_uid", "patient_key", "name", "container")
    slices = pa.table({name: pa.array([value]) for name, value in zip(names, ("a", "T", "S", "P", "a.dcm", "in"))})
    table = read_labels(io.BytesIO(b"study_uid,any,epidural,subdural\nT,0,0,0\n"), THREE, "s.csv", str)
    joined, _ = follow.follow(slices, [table], THREE, may_miss=False, fixes=read("a,subdural,1"))
    assert joined.reasons == ["label_conflict"]
    more = read_labels(io.BytesIO(b"sop_uid,any,epidural,subdural\na,0,0,0\n"), THREE, "l.csv", str)
    joined, _ = follow.follow(slices, [more, table], THREE, may_miss=False, fixes=read("a,subdural,1"))
    assert joined.details == ["any is 0 for study_uid T in s.csv, and 1 for a.dcm in f.csv"]


def test_labels_that_contradict_each_other_are_not_corrected():
    names = ("sop_uid", "study_uid", "series_uid", "patient_key", "name", "container")
    slices = pa.table({name: pa.array([value]) for name, value in zip(names, ("a", "T", "S", "P", "a.dcm", "in"))})
    tables = [
        read_labels(io.BytesIO(f"sop_uid,any,epidural,subdural\na,{values}\n".encode()), THREE, name, str)
        for name, values in (("l.csv", "1,0,1"), ("m.csv", "0,0,0"))
    ]
    with pytest.raises(LabelError, match="slice 'a' has no labels that could be corrected, or they contradict"):
        follow.follow(slices, tables, THREE, may_miss=False, fixes=read("a,subdural,0"))
