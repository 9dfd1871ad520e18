from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords.dataset import splits
from ich_tfrecords.spec import SplitSpec

THIRDS = SplitSpec(salt="s", weights={"train": 70, "validation": 15, "test": 15}, subset={})
KEYS = st.lists(st.text(max_size=8), unique=True, max_size=50)


def with_subset(**subset: int) -> SplitSpec:
    return SplitSpec(salt="s", weights=THIRDS.weights, subset=subset)


def test_patient_key_is_a_keyed_hash():
    assert splits.patient_key("ID_1", b"k" * 32) == hashlib.blake2b(b"ID_1", digest_size=16, key=b"k" * 32).hexdigest()
    assert splits.patient_key("ID_1", b"k" * 32) != splits.patient_key("ID_1", b"j" * 32)
    assert "ID_1" not in splits.patient_key("ID_1", b"k" * 32)


def test_split_names_are_alphabetical():
    assert splits.split_names(THIRDS) == ("test", "train", "validation")


@given(KEYS, KEYS)
def test_a_patient_keeps_its_split_whatever_data_come(old, new):
    before = dict(zip(old, splits.split_of(old, THIRDS), strict=True))
    together = list(dict.fromkeys([*new, *old]))
    after = dict(zip(together, splits.split_of(together, THIRDS), strict=True))
    assert all(after[key] == split for key, split in before.items())


@given(st.text(max_size=8), st.lists(st.integers(1, 1000), min_size=1, max_size=4))
def test_split_of_equals_the_exact_fraction(key, weights):
    """Oracle: the hash as a fraction of 2**32, against the cumulated weights, in Python's whole numbers."""
    spec = SplitSpec(salt="x", weights={f"s{i}": weight for i, weight in enumerate(weights)}, subset={})
    draw = (int(splits.hash64("split:x", [key])[0]) >> 32) * sum(weights) // 2**32
    expected = next(i for i in range(len(weights)) if draw < sum(weights[: i + 1]))
    assert splits.split_of([key], spec)[0] == expected


def test_the_weights_are_met():
    found = np.bincount(splits.split_of([f"p{i}" for i in range(20_000)], THIRDS)) / 20_000
    assert found == pytest.approx([0.15, 0.70, 0.15], abs=0.01)


def test_the_salt_changes_the_split():
    keys = [f"p{i}" for i in range(200)]
    other = SplitSpec(salt="t", weights=THIRDS.weights, subset={})
    assert (splits.split_of(keys, THIRDS) != splits.split_of(keys, other)).any()


def test_frozen_hashes():
    """Every converted data set relies on these: splits, subsets and shard order follow from them."""
    assert splits.hash64("order:2019", ["ID_000012eaf", "ID_000039fa0"]).tolist() == [
        int.from_bytes(
            hashlib.blake2b(word, digest_size=8, key=hashlib.blake2b(b"order:2019", digest_size=32).digest()).digest(),
            "little",
        )
        for word in (b"ID_000012eaf", b"ID_000039fa0")
    ]
    assert splits.split_of(["a", "b", "c", "d", "e", "f"], THIRDS).tolist() == FROZEN_SPLITS


FROZEN_SPLITS = [1, 1, 2, 1, 1, 1]


def test_draw_subset_takes_the_first_in_order_and_nests():
    split = np.array([1, 1, 0, 1, 1, 2], np.int8)
    order = np.array([50, 10, 5, 40, 20, 1], np.uint64)
    small, large = (splits.draw_subset(split, order, with_subset(train=n)) for n in (2, 3))
    assert small.tolist() == [False, True, True, False, True, True]
    assert large.tolist() == [False, True, True, True, True, True]


def test_draw_subset_refuses_more_than_there_are():
    split, order = np.array([1, 1], np.int8), np.array([1, 2], np.uint64)
    with pytest.raises(splits.SubsetError, match="asks for 3 train slices; that split holds 2"):
        splits.draw_subset(split, order, with_subset(train=3))


FOLDS = [4, 2, 3, 1, 0, 3, 3, 4]  # runs of a cross-validation that was begun go on with the same patients


def test_the_folds_of_some_patients_stay():
    assert splits.fold_of([f"patient {number}" for number in range(8)], "s", 5).tolist() == FOLDS


@given(KEYS, st.integers(2, 20))
def test_every_patient_has_one_fold_whoever_else_is_there(keys, folds):
    found = splits.fold_of(keys, "s", folds)
    assert all(0 <= fold < folds for fold in found)
    assert [splits.fold_of([key], "s", folds)[0] for key in keys] == found.tolist()


def test_folds_are_about_equal_and_independent_of_the_split():
    keys = [str(number) for number in range(20_000)]
    found, split = splits.fold_of(keys, "s", 5), splits.split_of(keys, THIRDS)
    assert np.abs(np.bincount(found) / 4000 - 1).max() < 0.05
    assert np.abs(np.bincount(found[split == 1]) / (split == 1).mean() / 4000 - 1).max() < 0.06


# groups


def table(*rows: tuple[str, str, str]) -> pa.Table:
    columns = zip(*rows) if rows else [()] * 3
    names = ("patient_key", "study_uid", "series_uid")
    return pa.table({name: pa.chunked_array([list(column)], pa.string()) for name, column in zip(names, columns)})


def groups_of(rows, known=()) -> list[str]:
    found = splits.groups(table(*rows), known)
    return [found.keys[first].as_py() for first in found.of_row.tolist()]


@pytest.mark.parametrize(
    ("rows", "first"),
    [
        ([], []),
        ([("a", "1", "x")], ["a"]),
        ([("b", "1", "x"), ("a", "2", "y")], ["b", "a"]),
        ([("b", "1", "x"), ("a", "1", "y")], ["a", "a"]),
        ([("b", "1", "x"), ("a", "2", "x")], ["a", "a"]),  # a series, though the studies differ
        ([("b", "x", "1"), ("a", "2", "x")], ["b", "a"]),  # a study is no series
        ([("c", "1", "x"), ("b", "1", "y"), ("b", "2", "z"), ("a", "2", "w")], ["a"] * 4),  # a chain
    ],
)
def test_patients_that_share_a_study_or_series_are_one_group(rows, first):
    assert groups_of(rows) == first


ROWS = st.lists(st.tuples(*[st.sampled_from([f"{n}" for n in range(9)])] * 3), max_size=14)


def spread(rows, known) -> list[str]:
    """Oracle: the smallest key spreads over ties until nothing changes."""
    names = {key: key for group in known for key in group} | {row[0]: row[0] for row in rows}
    sets = [{row[0] for row in rows if row[at] == row2[at]} for row2 in rows for at in (1, 2)] + [set(g) for g in known]
    for _ in names:
        for tied in sets:
            least = min(names[key] for key in tied)
            names |= dict.fromkeys(tied, least)
    return [names[row[0]] for row in rows]


@given(ROWS)
def test_groups_against_spreading(rows):
    assert groups_of(rows) == spread(rows, [])
    found = splits.groups(table(*rows))
    several = [sorted({row[0] for row, key in zip(rows, spread(rows, [])) if key == first}) for first in "012345678"]
    assert found.several() == [group for group in several if len(group) > 1]


@given(ROWS, ROWS)
def test_groups_do_not_depend_on_the_order_and_known_ones_hold(rows, others):
    found = dict(zip(rows, groups_of(rows)))
    assert dict(zip(rows[::-1], groups_of(rows[::-1]))) == found
    known = splits.groups(table(*rows, *others)).several()
    assert groups_of(rows, known) == groups_of([*rows, *others])[: len(rows)]


def test_a_long_chain_and_a_wide_tie():
    chain = [(f"{n:05}", f"s{(n + add) // 2}", f"e{n}") for n in range(5000) for add in (0, 1)]
    assert set(groups_of(chain[::-1])) == {"00000"}
    assert set(groups_of([(f"{n:05}", "s", f"e{n}") for n in range(5000)])) == {"00000"}


@given(st.sets(st.text(min_size=1, max_size=3), min_size=2, max_size=6), st.text(min_size=1, max_size=3))
def test_a_group_moves_only_where_a_smaller_key_joins(keys, new):
    """What an addition may do to a split: nothing in k of k + 1 cases, since keys are hashes."""
    before, after = (groups_of([(key, "s", "e") for key in sorted(some)])[0] for some in (keys, keys | {new}))
    assert after == (before if new >= before else new)
