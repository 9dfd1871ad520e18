"""Agreement of readers, beside the formula pair by pair."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.results import agreement


def by_pairs(votes: list[int], readers: list[int]) -> float:
    """Fleiss' kappa: the share of pairs of readers who agree, beyond what two random answers do."""
    alike = []
    for yes, every in zip(votes, readers):
        answers = [True] * yes + [False] * (every - yes)
        pairs = list(itertools.combinations(answers, 2))
        alike.append(sum(one == other for one, other in pairs) / len(pairs))
    share = sum(votes) / sum(readers)
    chance = share**2 + (1 - share) ** 2
    return (np.mean(alike) - chance) / (1 - chance)


@pytest.mark.parametrize(
    ("votes", "wanted"),
    [([3, 0], 1.0), ([1, 1, 2, 2], -1 / 3), ([3, 3], float("nan")), ([], float("nan"))],
)
def test_kappa(votes, wanted):
    found = agreement.kappa(np.array(votes, np.int64), np.full(len(votes), 3, np.int64))
    assert found == pytest.approx(wanted, nan_ok=True)


STUDIES = st.lists(st.integers(2, 5).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), min_size=1)


@given(STUDIES)
def test_kappa_as_pairs_have_it(studies):
    votes, readers = (list(part) for part in zip(*studies))
    if sum(votes) in (0, sum(readers)):
        return
    found = agreement.kappa(np.array(votes, np.int64), np.array(readers, np.int64))
    assert found == pytest.approx(by_pairs(votes, readers))


def test_studies_that_one_reader_saw_do_not_count():
    found = agreement.told(np.array([1, 3, 0, 2, 0]), np.array([1, 3, 3, 3, 0]))
    assert (found["studies"], found["one_mind"]) == (3, 2)


def test_of_studies_that_are_asked_for():
    votes = {"any_votes": pa.array([3, None, 1], pa.int8())}
    table = pa.table(
        {"study_uid": ["a", "b", "c"], "any": [1, -1, 0], "readers": pa.array([3, None, 3], pa.int8()), **votes}
    )
    found = agreement.of_studies(table, pa.chunked_array([["a", "a", "b"], ["c"]]), ("any", "epidural"))
    assert set(found) == {"any"}
    assert (found["any"]["studies"], found["any"]["one_mind"]) == (2, 1)
    assert agreement.of_studies(table.select(["study_uid", "any"]), table["study_uid"], ("any",)) == {}
    assert agreement.of_studies(None, table["study_uid"], ("any",)) == {}
