from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords.dataset import shards
from ich_tfrecords.spec import ShardSpec

SPEC = ShardSpec(seed=1, target_bytes=1000, min_shards=2)


def assign(split, stratum, spec=SPEC, slice_bytes=100):
    order = np.random.default_rng(0).permutation(len(split)).astype(np.uint64)
    return shards.assign_shards(np.array(split, np.int8), np.array(stratum, np.int8), order, slice_bytes, spec), order


def test_shard_name_is_what_tfds_expects():
    assert shards.shard_name("rsna_ich", "train", 3, 276) == "rsna_ich-train.tfrecord-00003-of-00276"


@pytest.mark.parametrize(
    ("slices", "expected"),
    [
        (0, 1),
        (1, 1),
        (2, 1),  # two shards of one
        (10, 5),  # min_shards decides
        (1000, 10),  # target_bytes decides
    ],
)
def test_slices_per_shard(slices, expected):
    assert shards.slices_per_shard(slices, 100, SPEC) == expected


def test_slices_per_shard_of_huge_slices():
    assert shards.slices_per_shard(100, 5000, SPEC) == 1


GROUPS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=80)


@given(GROUPS)
def test_the_laws_of_the_plan(groups):
    split, stratum = (np.array(column) for column in zip(*groups, strict=True))
    plan, order = assign(split, stratum)
    seats = set(zip(split.tolist(), plan["shard"], plan["row"], strict=True))
    assert len(seats) == len(groups), "two slices on one seat"
    for number in np.unique(split):
        mine = plan[split == number]
        count = mine["shard_count"].iloc[0]
        assert sorted(mine["shard"].unique()) == list(range(count))
        full = shards.slices_per_shard(len(mine), 100, SPEC)
        for _, shard in mine.groupby("shard"):
            assert len(set(stratum[shard.index])) == 1, "a shard holds one stratum"
            assert sorted(shard["row"]) == list(range(len(shard)))
            assert len(shard) <= full
            assert order[shard.sort_values("row").index].tolist() == sorted(order[shard.index])


@given(GROUPS, st.randoms())
def test_the_plan_does_not_depend_on_the_order_of_the_slices(groups, random):
    split, stratum = (np.array(column) for column in zip(*groups, strict=True))
    plan, order = assign(split, stratum)
    shuffled = list(range(len(groups)))
    random.shuffle(shuffled)
    again = shards.assign_shards(
        split[shuffled].astype(np.int8), stratum[shuffled].astype(np.int8), order[shuffled], 100, SPEC
    )
    assert (plan.iloc[shuffled].to_numpy() == again.to_numpy()).all()


def test_strata_are_mixed_over_the_shard_numbers():
    plan, _ = assign([0] * 400, [0] * 200 + [1] * 200)
    strata = [int(i >= 200) for i in plan.drop_duplicates("shard").sort_values("shard").index]
    assert strata != sorted(strata)


def test_slice_order_by_hand():
    series = np.array([7, 7, 3, 7, 3])
    position = np.array([10.0, -5.0, 0.0, 10.0, -1.0])
    index, count = shards.slice_order(series, position, np.array([4, 0, 1, 2, 3]))
    assert index.tolist() == [2, 0, 1, 1, 0]  # the tie at 10 mm goes to the lower rank
    assert count.tolist() == [3, 3, 2, 3, 2]


def test_slice_order_of_nothing():
    none = np.zeros(0, np.int64)
    index, count = shards.slice_order(none, none.astype(float), none)
    assert len(index) == len(count) == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 3)), min_size=1, max_size=40))
def test_slice_order_against_sorting(slices):
    series, position = (np.array(column) for column in zip(*slices, strict=True))
    index, count = shards.slice_order(series, position.astype(float), np.arange(len(slices)))
    for number in set(series.tolist()):
        members = [i for i in range(len(slices)) if series[i] == number]
        ranked = sorted(members, key=lambda i: (position[i], i))
        assert [int(index[i]) for i in ranked] == list(range(len(members)))
        assert {int(count[i]) for i in members} == {len(members)}
