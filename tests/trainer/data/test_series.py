"""The plan of slices into series: against a plain loop, whatever the order; ties, gaps, and positions that lack."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data import series
from trainer.data.dataset import open_dataset
from trainer.shell.problems import WrongUse

NAMES = (*series.KEY, "position_mm", "sop_uid")
IDS = st.sampled_from(["", "1", "10", "2", "é", "a\x00b"])
SLICES = st.lists(st.tuples(IDS, IDS, IDS, st.sampled_from([-0.0, 0.0, -7.5, 1e-9, 3.0, 1e4])), max_size=40)


def table(rows: list[tuple]) -> pa.Table:
    columns = zip(*rows) if rows else [()] * len(NAMES)
    types = dict.fromkeys(NAMES, pa.string()) | {"position_mm": pa.float64()}
    return pa.table({name: pa.array(list(values), types[name]) for name, values in zip(NAMES, columns)})


def plain(rows: list[tuple]) -> list[list[int]]:
    """Row numbers of each series, by a dict and sorted lists."""
    found = defaultdict(list)
    for number, row in enumerate(rows):
        found[row[:3]].append((row[3], row[4], number))
    return [[number for *_, number in sorted(found[key])] for key in sorted(found)]


@given(SLICES, st.randoms(use_true_random=False))
def test_as_a_plain_loop_has_it(slices, random):
    uids = [f"ID_{number:03d}" for number in range(len(slices))]
    random.shuffle(uids)
    rows = [(*row, uid) for row, uid in zip(slices, uids)]
    found = series.plan(table(rows))
    assert [one.tolist() for one in found] == plain(rows)
    assert found.lengths.tolist() == [len(one) for one in plain(rows)]
    assert len(found) == len(plain(rows))
    assert (found.rows.dtype, found.offsets.dtype) == (np.int64, np.int64)


@given(SLICES, st.randoms(use_true_random=False))
def test_the_order_of_the_table_does_not_matter(slices, random):
    rows = [(*row, f"ID_{number:03d}") for number, row in enumerate(slices)]
    shuffled = random.sample(rows, len(rows))
    one, other = series.plan(table(rows)), series.plan(table(shuffled))
    assert [rows[row] for row in one.rows] == [shuffled[row] for row in other.rows]
    assert one.offsets.tolist() == other.offsets.tolist()


def test_one_series_uid_in_two_studies_is_two_series():
    rows = [("p", "a", "s", 2.0, "1"), ("p", "b", "s", 1.0, "2"), ("p", "a", "s", 1.0, "3")]
    assert [one.tolist() for one in series.plan(table(rows))] == [[2, 0], [1]]


def test_slices_at_one_place_come_by_their_uids():
    rows = [("p", "a", "s", 0.0, uid) for uid in ("c", "a", "b")] + [("p", "a", "s", -5.0, "d")]
    assert series.plan(table(rows))[0].tolist() == [3, 1, 2, 0]


def test_as_the_conversion_ordered_them(tiny_dataset):
    slices = open_dataset(str(tiny_dataset)).split("train")
    found = series.plan(slices.table)
    index, count = slices.table["slice_index"].to_numpy(), slices.table["slice_count"].to_numpy()
    assert sorted(found.rows.tolist()) == list(range(len(slices)))
    for one in found:
        assert index[one].tolist() == list(range(count[one[0]]))


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_slices_without_a_position_are_refused(value):
    rows = [("p", "a", "s", 0.0, "first"), ("p", "a", "s", value, "second"), ("p", "b", "s", value, "third")]
    with pytest.raises(WrongUse, match=r"^slice second has no position_mm \(2 of 3 slices lack it\), so its place"):
        series.plan(table(rows))


@given(st.lists(st.floats(-2000, 2000), min_size=1, max_size=20))
def test_places_are_those_of_float32_positions(positions):
    """A served model is handed no others."""
    position_mm = np.sort(np.array(positions))
    served = position_mm.astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(series.place(position_mm), series.place(served))


@pytest.mark.parametrize(
    ("position_mm", "wanted"),
    [
        ([7.0], [[0, 0, 0.5]]),
        ([3.0, 3.0], [[0, 0, 0.5], [0, 0, 0.5]]),
        ([-5.0, 0.0, 15.0], [[0, 5, 0], [5, 15, 0.25], [15, 0, 1]]),
        ([0.0, 4.0, 4.0], [[0, 4, 0], [4, 0, 1], [0, 0, 1]]),  # two at one place
    ],
)
def test_places(position_mm, wanted):
    found = series.place(np.array(position_mm))
    assert found.dtype == np.float32
    assert found.tolist() == wanted


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
def test_places_are_distances_and_heights(position_mm):
    position_mm = np.sort(position_mm)
    below, above, height = series.place(position_mm).T
    np.testing.assert_array_equal(below[1:], above[:-1])
    assert below[0] == above[-1] == 0
    assert (below >= 0).all()
    assert ((height >= 0) & (height <= 1)).all()
    np.testing.assert_allclose(above.sum(), position_mm[-1] - position_mm[0], rtol=1e-4, atol=1e-6)


def test_series_without_an_order_are_refused():
    flat = [("p", "a", "flat", 2.0, uid) for uid in "abc"]
    told = (
        r"^series flat has 3 slices at one position \(1 of 3 series are so\), so they have no order; convert without "
        "it, or take a model of single slices$"
    )
    rows = table([("p", "a", "z", 2.0, "d"), *flat, ("p", "b", "s", 0.0, "e"), ("p", "b", "s", 5.0, "f")])
    with pytest.raises(WrongUse, match=told):
        series.require_order(series.plan(rows), rows)


@pytest.mark.parametrize("position_mm", [[], [2.0], [2.0, 2.0, 7.0], [0.0, 1e-9]])
def test_series_with_an_order(position_mm):
    rows = table([("p", "a", "s", at, str(number)) for number, at in enumerate(position_mm)])
    series.require_order(series.plan(rows), rows)
