"""Steps a call: fixed or about a second's worth, never past the epoch's end."""

from __future__ import annotations

import itertools

import pytest

from trainer.training.pace import MOST_STEPS, Pace


def test_a_fixed_number_is_kept():
    pace = Pace(7)
    pace.took(7, 100.0, 50.0)
    assert pace.steps(100) == 7
    assert pace.steps(3) == 3


def test_the_first_call_is_one_step_and_says_nothing_about_speed():
    pace = Pace(0)
    assert pace.steps(100) == 1
    pace.took(1, 30.0, 0.0)
    assert pace.seconds_a_step == 0.0
    assert pace.steps(100) == 1


@pytest.mark.parametrize(("seconds_a_step", "expected"), [(0.1, 10), (2.0, 1), (1e-6, MOST_STEPS)])
def test_it_grows_to_a_second_by_fours(seconds_a_step, expected):
    pace = Pace(0)
    seen = []
    for _ in range(8):
        count = pace.steps(1000)
        seen.append(count)
        pace.took(count, count * seconds_a_step, seconds_a_step)
    assert seen[-1] == expected
    assert all(after <= 4 * before for before, after in itertools.pairwise(seen))


def test_workers_follow_the_mean_not_their_own_clock():
    fast, slow = Pace(0), Pace(0)
    for pace, own in ((fast, 0.01), (slow, 0.4)):
        pace.took(1, own, 0.2)
    assert fast.steps(100) == slow.steps(100)
