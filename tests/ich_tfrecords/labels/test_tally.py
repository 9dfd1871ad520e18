"""What the rows of a file say together, where labels may miss."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords import spec
from ich_tfrecords.labels import tally

LABELS = spec.LabelSpec(any="any", names=("any", "epidural", "subdural"), rarest_first=("epidural", "subdural"))
CODE = st.integers(-1, 1)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([-1, 1, -1], [1, 1, -1]),
        ([0, -1, -1], [0, 0, 0]),
        ([-1, 0, 0], [0, 0, 0]),
        ([-1, 0, -1], [-1, 0, -1]),
        ([1, -1, -1], [1, -1, -1]),
        ([1, 0, -1], [1, 0, -1]),  # the other one by exclusion: not concluded
        ([-1, -1, -1], [-1, -1, -1]),
        ([0, 1, -1], [0, 1, 0]),  # a contradiction stays one
    ],
)
def test_what_follows_within_a_row(row, expected):
    assert tally.close(np.array([row], np.int8).T, LABELS)[:, 0].tolist() == expected


@given(st.lists(st.tuples(CODE, CODE, CODE), min_size=1, max_size=8))
def test_closing_twice_is_closing_once_and_keeps_what_is_known(rows):
    values = np.array(rows, np.int8).T
    once = tally.close(values.copy(), LABELS)
    assert np.array_equal(tally.close(once.copy(), LABELS), once)
    assert (once[values >= 0] == values[values >= 0]).all()
    unsure = ~tally.contradicts_any(values, LABELS)
    assert not tally.contradicts_any(once, LABELS)[unsure].any()


@given(st.lists(st.tuples(st.integers(0, 2), CODE, CODE, CODE), min_size=1, max_size=10))
def test_rows_of_an_id_against_plain_python(rows):
    ids, codes = np.array([row[0] for row in rows]), np.array([row[1:] for row in rows], np.int8).T
    values, reason = tally.merged(tally.count(3, [ids] * 3, list(codes)), LABELS, may_miss=True)
    for at in range(3):
        said = [{row[1 + label] for row in rows if row[0] == at} - {-1} for label in range(3)]
        merged = [next(iter(found)) if len(found) == 1 else -1 for found in said]
        if any(len(found) > 1 for found in said):
            assert tally.DROP_REASONS[reason[at]] == "label_conflict"
        elif (merged[0] == 0 and 1 in merged[1:]) or merged == [1, 0, 0]:
            assert tally.DROP_REASONS[reason[at]] == "label_any_contradiction"
        else:
            assert reason[at] == tally.KEPT
            assert values[:, at].tolist() == tally.close(np.array([merged], np.int8).T, LABELS)[:, 0].tolist()
