"""Which slices a row above the level of slices speaks of."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords.labels import levels
from ich_tfrecords.labels.table import LabelTable

NFC, NFD = "M\u00fcller", "Mu\u0308ller"


def table(column: str, *ids: str) -> LabelTable:
    values = np.zeros((len(ids), 6), np.int8)
    return LabelTable("l.csv", pa.array(sorted(ids), pa.string()), values, {}, {}, (), column)


def slices(*names: str, **columns: list[str]) -> pa.Table:
    other = {"series_uid": ["e"], "study_uid": ["s"], "patient_key": ["p"], "container": ["in"]}
    filled = {name: columns.get(name, value * len(names)) for name, value in other.items()}
    return pa.table({"name": pa.array(names, pa.string()), **filled})


def covered(found: levels.Cover, of: LabelTable) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for at, row in zip(found.slices.tolist(), found.rows.tolist(), strict=True):
        rows.setdefault(of.ids[row].as_py(), []).append(at)
    return {text: sorted(there) for text, there in rows.items()}


@pytest.mark.parametrize(
    ("ids", "names", "expected"),
    [
        (["a"], ["a/1.dcm", "a/b/2.dcm", "ab/3.dcm", "4.dcm"], {"a": [0, 1]}),
        (["a/b"], ["a/b/1.dcm", "a/b/c/2.dcm", "x/a/b/3.dcm", "a/bc/4.dcm"], {"a/b": [0, 1]}),
        (["b"], ["x/a/b/c/1.dcm", "b.dcm"], {"b": [0]}),
        (["a", "a/b"], ["a/b/1.dcm", "a/2.dcm"], {"a": [0, 1], "a/b": [0]}),
        (["b"], ["b/1.dcm", "a/b/2.dcm"], {"b": [0]}),  # the whole path goes before a name inside another one
        (["b"], ["a/b/c/b/1.dcm", "a/b/2.dcm"], {"b": [0, 1]}),  # the outer one holds the inner one
        (["b"], ["a\\b\\1.dcm"], {"b": [0]}),
        ([NFC], [f"a/{NFD}/1.dcm"], {NFC: [0]}),
        (["1.dcm"], ["a/1.dcm"], {}),
    ],
)
def test_folders(ids, names, expected):
    of = table("folder", *ids)
    found = levels.cover(slices(*names), of)
    assert covered(found, of) == expected
    assert found.refused == {}


@pytest.mark.parametrize(
    ("names", "containers", "why"),
    [
        (["x/b/1.dcm", "y/b/2.dcm"], ["in", "in"], "folder b names 2 folders, such as x/b and y/b"),
        (["b/1.dcm", "b/2.dcm"], ["in", "other"], "folder b stands in 2 inputs"),
    ],
)
def test_a_folder_that_may_be_several(names, containers, why):
    found = levels.cover(slices(*names, container=containers), table("folder", "b"))
    assert found.refused == {0: f"{why}; write its path below the input"}


def test_a_number_of_cq500_that_two_folders_bear():
    found = levels.cover(slices("a/CQ500CT7 CQ500CT7/x/1.dcm", "CQ500CT007/1.dcm", "CQ500CT71/1"), table("name", "7"))
    assert found.slices.tolist() == [0, 1]
    assert found.refused[0].endswith("such as CQ500CT007 and a/CQ500CT7 CQ500CT7; convert one of them alone")


@pytest.mark.parametrize(
    ("column", "columns", "why"),
    [
        ("study_uid", {"patient_key": ["p", "q"]}, "study_uid s stands under 2 patients"),
        ("series_uid", {"study_uid": ["s", "t"]}, "series_uid e stands in 2 studies"),
        ("series_uid", {"patient_key": ["p", "q"]}, "series_uid e stands under 2 patients"),
    ],
)
def test_a_uid_of_several(column, columns, why):
    of = table(column, {"study_uid": "s", "series_uid": "e"}[column], "other")
    (told,) = levels.cover(slices("1", "2", **columns), of).refused.values()
    assert told == f"{why}; label its slices by sop_uid"


def test_a_patient_of_several_studies_is_one():
    of = table("patient_id", "p")
    found = levels.cover(slices("1", "2", study_uid=["s", "t"], container=["in", "other"]), of)
    assert covered(found, of) == {"p": [0, 1]}
    assert found.refused == {}


parts = st.lists(st.sampled_from("ab"), min_size=1, max_size=3)


@given(st.lists(parts, min_size=1, max_size=6), st.lists(parts, min_size=1, max_size=4, unique_by="/".join))
def test_folders_against_plain_python(folders, ids):
    of = table("folder", *map("/".join, ids))
    found = levels.cover(slices(*(f"{'/'.join(folder)}/{at}.dcm" for at, folder in enumerate(folders))), of)
    prefixes = {at: ["/".join(f[:n]) for n in range(1, len(f) + 1)] for at, f in enumerate(folders)}
    for row, text in enumerate(of.ids.to_pylist()):
        exact = [at for at, places in prefixes.items() if text in places]
        inside = {at: next((p for p in places if p.split("/")[-1] == text), "") for at, places in prefixes.items()}
        loose = {at: place for at, place in inside.items() if place}
        expected = exact or sorted(loose)
        assert sorted(found.slices[found.rows == row].tolist()) == expected
        assert (row in found.refused) == (not exact and len(set(loose.values())) > 1)
