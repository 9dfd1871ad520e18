"""Names of evaluations come apart again; what the training had to do with the slices is said in one way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.results import evaluated


@pytest.mark.parametrize(
    ("split", "flip", "other", "name"),
    [
        ("test", False, "", "test"),
        ("test", True, "", "test-flip"),
        ("test", False, "0123456789abcdef", "test-01234567"),
        ("stage-2", True, "0123456789abcdef", "stage-2-flip-01234567"),
    ],
)
def test_names(split, flip, other, name):
    assert evaluated.name_of(split, flip, other) == name


@given(st.text("abz09_-. \n"), st.booleans(), st.sampled_from(["", "0123456789abcdef", "ffffffff"]))
def test_names_come_apart_again(split, flip, other):
    if evaluated.parts_of(split) == (split, False, False):  # else it ends like an evaluation that differs
        assert evaluated.parts_of(evaluated.name_of(split, flip, other)) == (split, flip, bool(other))


@pytest.mark.parametrize(
    ("split", "trained_on", "doubt"),
    [
        ("train", "a", "train_split"),
        ("validation", "a", "validation_split"),
        ("test", "a", ""),
        ("train", "b", "elsewhere"),  # splits of another data set have other slices
        ("test", "b", "elsewhere"),
    ],
)
def test_what_the_training_had_to_do_with_the_slices(split, trained_on, doubt):
    settings = {"train_split": "train", "validation_split": "validation"}
    what = {"dataset": {"fingerprint": "a"}, "trained_on": trained_on, "split": split, "settings": settings}
    assert evaluated.doubt(what) == doubt
    assert doubt in {"", *evaluated.DOUBTS}
    assert evaluated.doubt({**what, "settings": {}}) == ("elsewhere" if trained_on == "b" else "")
