"""Groups of slices: which there are, and what is told of each."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_predictions import NAMES, made

from trainer.results import subgroups

HALF = {name: {"even": 0.5} for name in NAMES}


@pytest.mark.parametrize(
    ("values", "names", "group"),
    [
        (["b", "a", None, "a", ""], ["a", "b", "unknown"], [1, 0, 2, 0, 2]),
        ([None, None], ["unknown"], [0, 0]),
        ([5.0, 2.5, math.nan, 5.0], ["2.5", "5", "unknown"], [1, 0, 2, 1]),
        ([1, 3, 1], ["1", "3"], [0, 1, 0]),
        (["unknown", "a"], ["a", "unknown"], [1, 0]),
        ([1, "a"], ["1", "a"], [0, 1]),
    ],
)
def test_codes(values, names, group):
    found, codes = subgroups.codes(values)
    assert (found, codes.tolist()) == (names, group)


NUMBERS = st.one_of(st.none(), st.just(math.nan), st.integers(-50, 50), st.floats(-1e6, 1e6))


@given(st.lists(NUMBERS, min_size=1, max_size=200))
def test_many_numbers_are_cut_where_equal_ones_stay_together(values):
    names, group = subgroups.codes(values)
    assert len(group) == len(values)
    assert sorted(set(group.tolist())) == list(range(len(names)))
    known = {}
    for value, at in zip(values, group.tolist()):
        unknown = value is None or math.isnan(value)
        assert (names[at] == "unknown") == unknown
        if not unknown:
            assert known.setdefault(float(value), at) == at
    order = [at for _, at in sorted(known.items())]
    assert order == sorted(order)
    assert len(names) <= subgroups.MOST_VALUES + 1


def test_each_group_is_as_if_it_were_alone():
    found = made(patients=40, seed=3)
    group = np.arange(len(found)) % 2
    every = subgroups.measured(found, ["even", "odd", "none of these"], group, HALF, 100, 0)
    assert [one["group"] for one in every] == ["even", "odd"]
    alone = subgroups.measured(found.take(group == 1), ["odd"], np.zeros((group == 1).sum(), np.int64), HALF, 100, 0)
    assert every[1] == alone[0]
    assert sum(one["slices"] for one in every) == len(found)


def test_the_worst_is_one_of_those_with_an_interval():
    def one(name, value, low):
        return {"group": name, "study_auc": {"value": value, "low": low, "high": 1.0}}

    assert subgroups.worst([one("a", 0.9, 0.8), one("b", 0.7, 0.5), one("c", 0.1, None)]) == "b"
    assert subgroups.worst([one("a", 0.9, 0.8), one("c", 0.1, None)]) == ""
    assert subgroups.worst([]) == ""
