"""The command line: what it writes and prints, its exit codes, and each refusal with its next step."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from portrait_tables import AXES, named, portraits

from trainer import monitor
from trainer.models import model_file
from trainer.trust import drift, measure, scope_file
from trainer.trust.portraits import Known
from trainer.trust.scope import Scope

LABELS = 6


@pytest.fixture(autouse=True)
def _fewer_draws(monkeypatch):
    monkeypatch.setattr(drift, "DRAWS", 399)


@pytest.fixture
def run(export, tmp_path) -> Path:
    """A run that kept portraits of made series."""
    folder = Path(shutil.copytree(export, tmp_path / "run" / "export"))
    (folder.parent / "config.yaml").write_text("model: cnn\n")
    still = measure.Measure(*(np.zeros(shape, np.float32) for shape in (AXES, (AXES, AXES), 2)))
    known = [Known(portraits(many, seed, labels=LABELS), np.arange(many)) for many, seed in ((60, 1), (40, 2))]
    scope_file.write(folder, Scope(model_file.digest(folder), still, still, *known))
    return folder.parent


@pytest.fixture
def predicted(run, tmp_path):
    """predicted(table, **facts) -> a folder as predict writes it."""

    def write(table: pa.Table, **facts: object) -> Path:
        place = tmp_path / "predicted"
        place.mkdir()
        own = {"model": {"sha256": model_file.digest(run / "export")}, "flags": {"flip": False}}
        (place / "run.json").write_text(
            json.dumps({"command": "predict", "format": 1, "finished": True, **own, **facts})
        )
        pq.write_table(table, place / "series.parquet")
        return place

    return write


@pytest.fixture
def call(capsys, run):
    """call(*flags) -> exit code, lines of stdout, lines of stderr."""

    def called(*flags: object) -> tuple[int, list[str], list[str]]:
        code = monitor.main(["--job_dir", str(run), *map(str, flags)])
        shown = capsys.readouterr()
        return code, shown.out.splitlines(), shown.err.splitlines()

    return called


def now(count: int = 40, **changes) -> pa.Table:
    return named(portraits(count, 3, labels=LABELS, **changes))


@pytest.mark.slow
def test_it_writes_a_page_and_values_and_prints_what_moved(call, run, predicted):
    place = predicted(now(kvp=100))
    code, out, err = call("--predicted", place)
    assert (code, err) == (0, [])
    assert out[0].startswith("tube voltage (kV): mean 120 in training, 100 now")
    verdict = (
        "1 of 17 things has moved beyond chance: tube voltage (kV) (at a false-alarm rate of 5% for all together)."
    )
    assert out[-4:-1] == [verdict, str(run / "drift" / "drift.html"), str(run / "drift" / "drift.json")]
    values = json.loads((run / "drift" / "drift.json").read_text())
    assert (values["verdict"], values["moved"], values["patients"]) == (verdict, 1, 40)
    assert [one["name"] for one in values["things"] if one["moved"]] == ["kvp"]
    assert values["not_compared"] == {"tilt_deg": "no series of training tells it"}
    assert f"<strong>{verdict}</strong>" in (run / "drift" / "drift.html").read_text()
    for file in (run / "drift").iterdir():
        text = file.read_text()
        assert not re.search(r"(study|series)-\d", text)
        assert str(place) not in text


@pytest.mark.slow
def test_the_same_command_gives_the_same_bytes_and_can_fail_on_drift(call, predicted, tmp_path):
    place, files = predicted(now(kvp=100)), []
    for name in ("a", "b"):
        assert call("--predicted", place, "--output", tmp_path / name, "--fail_on_drift")[0] == 3
        files.append([(tmp_path / name / kind).read_bytes() for kind in ("drift.html", "drift.json")])
    assert files[0] == files[1]


@pytest.mark.slow
def test_probabilities_of_mirror_images_are_not_compared(call, predicted):
    code, out, _ = call("--predicted", predicted(now(prevalence=0.9), flags={"flip": True}), "--fail_on_drift")
    assert code == 0  # nothing else has moved
    assert "probabilities not compared: predicted with --flip, and those of validation were not" in out
    assert out[-4].startswith("Nothing has moved")


# refusals


def refused(found: tuple[int, list[str], list[str]]) -> str:
    code, out, err = found
    assert (code, out, len(err)) == (2, [], 1)
    return err[0]


def test_too_few_patients(call, run, predicted):
    line = refused(call("--predicted", predicted(named(portraits(38, 3, labels=LABELS), series_a_study=2))))
    assert line == "monitor: 19 patients with a prediction; to say what moved, 20 are needed"
    assert not (run / "drift").exists()


def test_a_run_of_before(call, run, predicted):
    place = predicted(now())
    (run / "export" / "scope.npz").unlink()
    line = refused(call("--predicted", place))
    assert "kept no series to compare with (scope.npz); the same train command" in line


def test_predictions_of_another_model(call, predicted):
    place = predicted(now(), model={"sha256": "0" * 64})
    assert "is of another model than --job_dir" in refused(call("--predicted", place))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"command": "predict", "finished": false}', "is not finished; the same predict command makes it anew"),
        ('{"command": "convert", "finished": true}', "is not finished"),
        ("[]", "is no folder that predict wrote"),
        ("{", "is no folder that predict wrote"),
    ],
)
def test_a_folder_that_predict_did_not_end(call, predicted, text, words):
    place = predicted(now())
    (place / "run.json").write_text(text)
    assert words in refused(call("--predicted", place))


def test_a_folder_that_is_not_there(call, tmp_path):
    assert "is no folder that predict wrote" in refused(call("--predicted", tmp_path / "nowhere"))


def test_portraits_that_are_missing_damaged_or_of_another_version(call, predicted):
    place = predicted(now())
    table = pq.read_table(place / "series.parquet")
    pq.write_table(table.drop_columns(["grey"]), place / "series.parquet")
    assert "has no column grey; predict again" in refused(call("--predicted", place))
    (place / "series.parquet").write_bytes(b"PAR1")
    assert "series.parquet is damaged" in refused(call("--predicted", place))
    (place / "series.parquet").unlink()
    assert "series.parquet is missing" in refused(call("--predicted", place))


def _spoiled(table: pa.Table, column: str, value: object) -> pa.Table:
    """With another value in the first row of a column."""
    kept = table[column].to_pylist()
    kind = table[column].type if not isinstance(value, str) else pa.string()
    values = [value, *(kept[1:] if not isinstance(value, str) else map(str, kept[1:]))]
    return table.set_column(table.column_names.index(column), column, pa.array(values, kind))


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("kvp", "a hundred", "has string in column kvp, not float"),
        ("grey", [0.5], "has lists of different lengths in column grey"),
        ("vector", None, "lacks values in column vector"),
        ("probabilities", [None] * LABELS, "lacks values in column probabilities"),
        ("vector", [float("nan")] * AXES, "lacks values in column vector"),
        ("study_uid", 5, "column study_uid"),
        ("distance", float("inf"), "lacks values in column distance"),
        ("slices", None, "lacks values in column slices"),
    ],
)
def test_portraits_that_somebody_edited(call, predicted, column, value, words):
    table = now()
    changed = (
        table.set_column(0, column, pa.array([value] * len(table)))
        if column == "study_uid"
        else _spoiled(table, column, value)
    )
    assert words in refused(call("--predicted", predicted(changed)))


def test_portraits_of_fewer_labels(call, predicted):
    table = named(portraits(40, 3, labels=LABELS - 1))
    assert "holds 5 numbers in column probabilities, and the run 6" in refused(call("--predicted", predicted(table)))


@pytest.mark.slow
def test_many_series_of_a_training_patient_count_once(call, run, predicted):
    """Ten copies of 19 patients are no 190 patients."""
    found = scope_file.read(run / "export", model_file.digest(run / "export"))
    some = found.training.portraits.slice(0, 19)
    few = Known(pa.concat_tables([some] * 10), np.tile(np.arange(19), 10))
    scope_file.write(run / "export", dataclasses.replace(found, training=few))
    code, out, _ = call("--predicted", predicted(now()))
    assert code == 0
    assert "the run kept series of 19 training patients; 20 are needed" in " ".join(out)


def test_an_output_that_is_a_file(call, predicted, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file, not a folder" in refused(call("--predicted", predicted(now()), "--output", tmp_path / "file"))


@pytest.mark.parametrize("flags", [[], ["--predicted", "a", "--input", "b"], ["--predicted", ""], ["--seed", "x"]])
def test_wrong_flags(call, flags):
    refused(call(*flags))


def test_an_input_that_is_not_there(call, tmp_path):
    assert str(tmp_path / "nowhere") in refused(call("--input", tmp_path / "nowhere"))
