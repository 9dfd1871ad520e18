"""The settings below `series:`: the packaged ones, and one line for what is no setting or no value."""

from __future__ import annotations

import math

import pytest

from trainer.data.series_feed import Blur
from trainer.series import settings
from trainer.shell.problems import WrongUse
from trainer.training import hparams

PACKAGED = hparams.defaults("series")["series"]


def test_the_packaged_settings():
    found = settings.read(PACKAGED)
    assert found.blur == Blur(PACKAGED["noise"], PACKAGED["vector_dropout"], PACKAGED["slice_dropout"])
    assert (found.head_weight, found.mil_weight) == (PACKAGED["head_weight"], PACKAGED["mil_weight"])


@pytest.mark.parametrize("value", [0, 1, 1.0, None, "true", [True]])
def test_recompute_is_yes_or_no(value):
    for good in (True, False):
        assert settings.read({**PACKAGED, "recompute": good}).recompute is good
    with pytest.raises(WrongUse) as told:
        settings.read({**PACKAGED, "recompute": value})
    assert str(told.value) == f"series.recompute is {value!r}; use true or false"


@pytest.mark.parametrize("name", sorted(PACKAGED.keys() - {"recompute"}))
def test_ends_of_the_ranges(name):
    most = settings._MOST[name]
    for value in (0, 0.0, most):
        settings.read({**PACKAGED, name: value})
    for value in (-1e-9, most + 1e-6, math.nan, math.inf, -math.inf, True, False, None, "0.1", [0.1], {}):
        with pytest.raises(WrongUse) as told:
            settings.read({**PACKAGED, name: value})
        assert str(told.value) == f"series.{name} is {value!r}; use 0 to {most:g}"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({**PACKAGED, "noize": 0.1}, "series: unknown setting 'noize'; did you mean 'noise'?"),
        ({**PACKAGED, 3: 0.1}, "series: unknown setting 3; known are head_weight, mil_weight, noise, "),
        ({"noise": 0.1}, "series: missing setting head_weight, mil_weight, vector_dropout, slice_dropout"),
        ({}, "series: missing setting head_weight, "),
    ],
)
def test_unknown_and_missing(values, words):
    with pytest.raises(WrongUse) as told:
        settings.read(values)
    assert str(told.value).startswith(words)
