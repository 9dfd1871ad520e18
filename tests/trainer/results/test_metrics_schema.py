"""`docs/metrics.schema.json`: every evaluation fits what is published of metrics.json, and little else does."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import blob_dataset
import jsonschema
import numpy as np
import pytest

from trainer import evaluate
from trainer.results import evaluated, thresholds

SCHEMA = json.loads((Path(__file__).parents[3] / "docs" / "metrics.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def complaints(found: object) -> list[str]:
    return [f"{one.json_path}: {one.message}" for one in VALIDATOR.iter_errors(found)]


def test_it_is_a_schema_of_this_format():
    VALIDATOR.check_schema(SCHEMA)
    assert SCHEMA["properties"]["format"]["const"] == evaluated.FORMAT
    assert SCHEMA["$defs"]["rule"]["enum"] == list(thresholds.RULES)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    return blob_dataset.make(tmp_path_factory.mktemp("others") / "others", patients=60, seed=11)


@pytest.fixture(scope="module")
def plain(blob_run, tmp_path_factory) -> dict:
    return evaluation(blob_run, tmp_path_factory.mktemp("plain"))


def evaluation(run: Path, output: Path, *flags: object) -> dict:
    command_line = ["--job_dir", run, "--output", output, "--resamples", "100", *flags]
    assert evaluate.main([str(word) for word in command_line]) == 0
    return json.loads((output / evaluated.METRICS).read_text())


def test_an_evaluation_fits(plain):
    assert complaints(plain) == []


def test_a_series_model_fits(series_run, tmp_path):
    found = evaluation(series_run, tmp_path)
    assert complaints(found) == []
    assert "studies_by" in found["measures"]


def test_everything_that_a_test_elsewhere_adds_fits(blob_run, elsewhere, tmp_path):
    flags = ("--by", "slice_count", "--prevalence", "0.1", "--recalibrate", "0.3", "--split", "all", "--flip")
    found = evaluation(blob_run, tmp_path / "there", "--data_dir", elsewhere, *flags)
    assert complaints(found) == []
    assert {"recalibrated", "subgroups", "cohort"} <= set(found)
    assert "at_prevalence" in found["measures"]


def test_where_studies_alone_are_known_the_numbers_of_slices_are_null(blob_run, elsewhere, tmp_path):
    second = blob_dataset.second_hospital(tmp_path / "second", elsewhere)
    found = evaluation(blob_run, tmp_path / "there", "--data_dir", second, "--split", "all")
    assert complaints(found) == []
    assert found["measures"]["log_loss"] == {"value": None, "low": None, "high": None}


WRONG = {
    "a count that is null": (("measures", "slices"), None),
    "a note that is null": (("measures", "labels", "any", "note"), None),
    "a threshold that is null": (("measures", "labels", "any", "threshold"), None),
    "a measure without its interval": (("measures", "auc"), 0.9),
    "a measure as text": (("measures", "auc", "value"), "0.9"),
    "a rule that is none": (("measures", "labels", "any", "rule"), "best"),
    "a share above 1": (("measures", "level"), 95),
    "something new": (("measures", "roc"), {}),
    "another format": (("format",), 3),
    "weights that are no digest": (("what", "weights"), "model.keras"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_no_evaluation_says_does_not_fit(plain, name):
    path, value = WRONG[name]
    found = copy.deepcopy(plain)
    part = found
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    assert len(complaints(found)) == 1


def test_each_field_that_is_missing_is_told(plain):
    for key in ("slices", "skill", "labels", "thresholds", "studies_level", "both_ways", "reliability"):
        lacking = copy.deepcopy(plain)
        del lacking["measures"][key]
        assert len(complaints(lacking)) == 1, key


def test_nothing_that_is_not_finite_stands_in_it(plain):
    """JSON has no nan; Python's reader would take one."""
    numbers: list[float] = []
    json.loads(json.dumps(plain), parse_float=lambda text: numbers.append(float(text)), parse_constant=pytest.fail)
    assert np.isfinite(numbers).all()
