"""The state of the loop: sums that grouping does not change, the best epoch, patience, and every bit through JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.training.state import State, is_better, means
from trainer.training.steps import SUMS

NAN = math.nan
ROWS = st.lists(st.lists(st.floats(0, 1e6, width=32), min_size=len(SUMS), max_size=len(SUMS)), min_size=1, max_size=20)


@given(ROWS, st.lists(st.integers(1, 5), min_size=20, max_size=20))
def test_how_steps_fall_into_calls_changes_no_bit(rows, sizes):
    sums = np.array(rows, np.float64)
    one, other = State(), State()
    one.add(sums)
    for size in sizes:
        if len(sums):
            other.add(sums[:size])
            sums = sums[size:]
    assert one.sums.tobytes() == other.sums.tobytes()
    assert (one.step, one.step_in_epoch) == (other.step, other.step_in_epoch) == (len(rows), len(rows))


def test_an_epoch_ends_and_the_next_begins_at_nothing():
    state = State()
    state.add(np.ones((3, len(SUMS))))
    assert state.close_epoch({"epoch": 1, "val_log_loss": 0.5}, "log_loss")
    assert (state.step, state.step_in_epoch, state.epoch, state.waited) == (3, 0, 1, 0)
    assert state.sums.tolist() == [0.0] * len(SUMS)
    assert state.best == {"value": 0.5, "epoch": 1, "step": 3}


@pytest.mark.parametrize(
    ("monitor", "values", "best_epoch", "waited"),
    [
        ("log_loss", [0.5, 0.4, 0.4, 0.6], 2, 2),  # as good is not better
        ("auc", [0.5, 0.4, 0.6], 3, 0),
        ("accuracy_any", [0.9], 1, 0),
        ("auc", [NAN, NAN], None, 0),  # without a value nothing is waited for
        ("auc", [NAN, 0.1, NAN, 0.1], 2, 1),
        ("log_loss", [None, None], None, 0),  # no validation split
    ],
)
def test_the_best_epoch_and_how_long_ago_it_was(monitor, values, best_epoch, waited):
    state = State()
    for value in values:
        state.add(np.zeros((2, len(SUMS))))
        state.close_epoch({} if value is None else {f"val_{monitor}": value}, monitor)
    assert (state.best.get("epoch"), state.waited) == (best_epoch, waited)
    assert state.best.get("step") == (best_epoch and 2 * best_epoch)


def test_is_better():
    assert is_better(0.3, None, "auc")
    assert not is_better(None, None, "auc")
    assert not is_better(NAN, 0.3, "auc")
    assert is_better(0.4, 0.3, "auc")
    assert not is_better(0.4, 0.3, "log_loss")
    assert not is_better(0.3, 0.3, "log_loss")


@given(ROWS, st.lists(st.dictionaries(st.text(max_size=5), st.floats(), max_size=3), max_size=3))
def test_json_keeps_every_bit(rows, history):
    state = State(rows=history, best={"value": 0.1 + 0.2, "epoch": 2, "step": 7}, waited=1, epoch=3)
    state.add(np.array(rows) / 3)
    back = State.from_dict(json.loads(json.dumps(state.to_dict())))
    assert back.sums.tobytes() == state.sums.tobytes()
    assert repr(back.to_dict()) == repr(state.to_dict())  # nan is not equal to itself


def test_a_state_given_on_is_no_longer_shared():
    state = State()
    kept = state.to_dict()
    state.add(np.ones((1, len(SUMS))))
    state.close_epoch({"val_auc": 1.0}, "auc")
    assert kept == State().to_dict()


def test_means_are_ratios_of_sums_and_nan_where_nothing_is_known():
    assert means(np.array([6.0, 3.0, 1.0, 4.0, 9.0, 10.0])) == {"loss": 2.0, "log_loss": 0.25, "accuracy": 0.9}
    assert all(math.isnan(value) for value in means(np.zeros(len(SUMS))).values())
