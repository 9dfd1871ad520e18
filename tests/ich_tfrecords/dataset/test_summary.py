"""Numbers about a data set, against plain counting."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import odd_dataset
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords.dataset import manifest, rejects, summary
from ich_tfrecords.dataset.summary import Share
from ich_tfrecords.views import montage

NAMES = ("any", "a", "b")
SLICES = st.lists(
    st.tuples(
        st.sampled_from("pq"),  # patient
        st.sampled_from(["train", "test"]),
        st.sampled_from(["00", "01", "02"]),  # digest
        st.tuples(*[st.sampled_from([-1, 0, 1])] * 3),
    ),
    max_size=14,
)


def table(slices) -> pa.Table:
    columns = {
        "sop_uid": pa.array([f"ID_{number}" for number in range(len(slices))], pa.string()),
        "patient_key": pa.array([patient for patient, *_ in slices], pa.string()),
        "split": pa.array([split for _, split, *_ in slices], pa.string()),
        "pixel_digest": pa.array([digest for *_, digest, _ in slices], pa.string()),
    }
    for place, name in enumerate(NAMES):
        columns[name] = pa.array([values[place] for *_, values in slices], pa.int8())
    return pa.table(columns)


@given(SLICES)
def test_duplicates_agree_with_counting(slices):
    groups = defaultdict(list)
    for one in slices:
        groups[one[2]].append(one)
    groups = [group for group in groups.values() if len(group) > 1]
    found = summary.find_duplicates(table(slices), NAMES, most=2)
    several = [sum(len({one[part] for one in group}) > 1 for group in groups) for part in (0, 1, 3)]
    assert (found.groups, found.slices) == (len(groups), sum(map(len, groups)))
    assert [found.across_patients, found.across_splits, found.conflicting] == several
    assert len(found.examples) == min(2, len(groups))
    if several[1]:
        assert len({row["split"] for row in found.examples[0]}) > 1


@given(SLICES)
def test_cooccurrence_agrees_with_counting(slices):
    found = summary.cooccurrence(table(slices), NAMES)
    values = [one[3] for one in slices]
    expected = [[sum(one[i] == one[j] == 1 for one in values) for j in range(3)] for i in range(3)]
    assert np.array_equal(found, expected)


def test_series_of_different_studies_keep_apart():
    rows = pa.table({"study_uid": list("aaabb"), "series_uid": list("11211"), "sop_uid": list("vwxyz")})
    assert summary.series_sizes(rows) == [1, 2, 2]


@pytest.mark.parametrize(
    ("part", "text"),
    [(0, "0%"), (1, "100%"), (0.0041, "0.41%"), (0.199, "19.9%"), (1e-6, "<0.01%"), (0.99999, "99.9%"), (0.1, "10.0%")],
)
def test_percent(part, text):
    assert summary.percent(part) == text


def test_shares():
    assert Share(76, 382).text == "76 of 382 (19.9%)"
    assert (Share(0, 0).text, Share(0, 0).percent, Share(0, 0).part) == ("none known", "-", 0.0)
    assert summary.prevalence({"positive": 1, "negative": 3, "unknown": 9}) == Share(1, 4)


def test_totals_are_those_of_the_manifest(dataset):
    done = manifest.read(dataset)
    found = summary.totals(done)
    assert (found["slices"], found["shards"]) == (done.slices, len(done.shards))
    assert found["bytes"] == sum((dataset / shard["name"]).stat().st_size for shard in done.shards)
    counts = summary.total_counts(done, "any")
    assert sum(counts.values()) == done.slices
    assert counts["positive"] == sum(shard["labels"]["any"] for shard in done.shards)


def test_reject_examples_stop_at_most(tmp_path):
    path = tmp_path / "rejects.csv"
    rows = [{"name": f"{i}.dcm", "sop_uid": "", "reason": "ab"[i % 2], "detail": 'x,"\n'} for i in range(9)]
    path.write_text(rejects.as_csv(pa.Table.from_pylist(rows, rejects.SCHEMA)), encoding="utf-8")
    found = summary.reject_examples(path, 3)
    assert {reason: [row["name"] for row in some] for reason, some in found.items()} == {
        "a": ["0.dcm", "2.dcm", "4.dcm"],
        "b": ["1.dcm", "3.dcm", "5.dcm"],
    }


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"name,other\n1,2\n"])
def test_a_reject_list_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "rejects.csv"
    if content:
        path.write_bytes(content)
    with pytest.raises(manifest.DatasetError, match=r"rejects\.csv"):
        summary.reject_examples(path, 3)


def test_flat_and_plain():
    assert summary.flat({"input": {"files": 3}, "labels": None}) == {"input files": 3, "labels": None}
    assert [summary.plain(value) for value in (1234, None, "x")] == ["1,234", "none", "x"]
    assert [summary.megabytes(size) for size in (0, 24_600_000, 36_900_000_000)] == ["0.0 MB", "24.6 MB", "36.9 GB"]


def test_the_twin_is_found(tmp_path):
    folder = odd_dataset.make(tmp_path / "data")
    rows = montage.slice_rows(folder, manifest.read(folder).spec)
    found = summary.find_duplicates(rows, manifest.read(folder).spec.labels.names, most=3)
    assert (found.groups, found.across_patients, found.conflicting) == (1, 1, 1)
    assert {row["sop_uid"] for row in found.examples[0]} == {"ID_plain", odd_dataset.TWIN}
