"""`python -m trainer.evaluate` on another hospital: studies alone, groups, predictive values, a calibration anew."""

from __future__ import annotations

import json
import math
from pathlib import Path

import blob_dataset
import browser
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer import evaluate
from trainer.results import predictions

NAMES = blob_dataset.small_spec().labels.names


def run(*flags: object) -> int:
    return evaluate.main([*map(str, flags), "--resamples", "100"])


def one_line(capsys) -> str:
    text = capsys.readouterr().err
    assert text.startswith("evaluate: "), text
    assert text.count("\n") == 1, text
    return text[:-1]


def half(rng: np.random.Generator, slices: int) -> tuple[np.ndarray, np.ndarray]:
    """Half of the patients bleed."""
    shown, true = blob_dataset.one_by_one(rng, slices)
    bleeds = rng.random() < 0.5
    return shown & bleeds, true & bleeds


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> Path:
    """Another hospital whose slices have labels."""
    return blob_dataset.make(tmp_path_factory.mktemp("others") / "others", patients=60, seed=11, draw=half)


@pytest.fixture(scope="module")
def studies_alone(others, tmp_path_factory) -> Path:
    return blob_dataset.second_hospital(tmp_path_factory.mktemp("second") / "second", others)


@pytest.fixture(scope="module")
def ages(others, tmp_path_factory) -> Path:
    uids = sorted(set(pq.read_table(others / "slices.parquet")["study_uid"].to_pylist()))
    file = tmp_path_factory.mktemp("ages") / "ages.csv"
    rows = [f"{uid},{('<b>young</b>', 'old', '')[at % 3]},{at % 40}" for at, uid in enumerate(uids)]
    file.write_text("\n".join(["study_uid,age,kvp", *rows, "another,old,7"]) + "\n")
    return file


def test_a_test_where_studies_alone_are_known(blob_run, studies_alone, ages, tmp_path, capsys):
    flags = ("--by", f"{ages}:age", "--by", "slice_count", "--prevalence", "0.1")
    assert run("--job_dir", blob_run, "--data_dir", studies_alone, "--split", "all", "--output", tmp_path, *flags) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    measured, table = found["measures"], pq.read_table(studies_alone / "studies.parquet")
    any_label = measured["studies_level"]["any"]
    assert (any_label["known"], any_label["positives"]) == (60, sum(table["any"].to_pylist()))
    assert any_label["auc"]["low"] > 0.6
    assert measured["log_loss"]["value"] is None
    assert measured["labels"]["any"]["note"] == "no slice with a known label"
    groups = found["subgroups"][f"{ages}:age"]
    assert [one["group"] for one in groups["groups"]] == ["<b>young</b>", "old", "unknown"]
    assert [one["studies"] for one in groups["groups"]] == [20, 20, 20]
    assert groups["worst"] in ("<b>young</b>", "old", "unknown")
    assert [one["group"] for one in found["subgroups"]["slice_count"]["groups"]] == ["20"]
    assert found["subgroups"]["slice_count"]["worst"] == ""
    there = measured["at_prevalence"]
    sensitivity, specificity = (any_label[key]["value"] for key in ("sensitivity", "specificity"))
    flag = 0.1 * sensitivity / (0.1 * sensitivity + 0.9 * (1 - specificity))
    assert there["studies"]["greatest slice"]["precision"]["value"] == pytest.approx(flag)
    assert found["readers"]["any"]["studies"] == 60
    assert found["readers"]["any"]["one_mind"] == 48
    assert found["cohort"]["here"]["study_prevalence"]["any"] == pytest.approx(any_label["positives"] / 60)
    assert found["cohort"]["training"]["prevalence"]["any"] > 0
    told = capsys.readouterr().out
    assert "worst in " in told
    assert "where 0.1 of studies have a hemorrhage, by greatest slice: a flag is right in " in told
    page = (tmp_path / "report.html").read_text()
    assert "<b>young</b>" not in page
    assert "&lt;b&gt;young&lt;/b&gt;" in page
    kept = predictions.read(tmp_path / "predictions.parquet")
    assert kept.study_labels is not None
    assert sorted(set(kept.labels.ravel().tolist())) == [-1]


def test_the_page_is_clean_in_a_browser(blob_run, studies_alone, ages, tmp_path):
    flags = ("--by", f"{ages}:age", "--prevalence", "0.1", "--recalibrate", "0.4")
    assert run("--job_dir", blob_run, "--data_dir", studies_alone, "--split", "all", "--output", tmp_path, *flags) == 0
    report = browser.render(tmp_path / "report.html", tmp_path / "page.png")
    assert (report.console, report.requests, report.broken_images, report.scripts) == ([], [], 0, 0)
    assert not report.too_wide


def test_a_calibration_anew_is_tested_on_other_patients(blob_run, others, tmp_path):
    flags = ("--data_dir", others, "--split", "all", "--recalibrate", "0.5", "--output", tmp_path)
    before = (blob_run / "export" / "about.json").read_bytes()
    assert run("--job_dir", blob_run, *flags) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    anew = found["recalibrated"]
    assert anew["level"] == "slices"
    assert anew["fitted_on"] + anew["tested_on"] == 60
    assert found["measures"]["patients"] == anew["tested_on"]
    as_it_is = found["measures"]["labels"]["any"]["log_loss"]["value"]
    assert anew["labels"]["any"]["log_loss_before"]["value"] == pytest.approx(as_it_is)
    assert (blob_run / "export" / "about.json").read_bytes() == before
    kept = predictions.read(tmp_path / "predictions.parquet")
    assert len(kept) == found["measures"]["slices"]


def test_too_few_patients_for_a_calibration(blob_run, others, tmp_path, capsys):
    second = blob_dataset.second_hospital(tmp_path / "one", others, kept=4)
    table = pq.read_table(second / "studies.parquet")
    for at, name in enumerate(table.column_names):
        if name in NAMES:
            table = table.set_column(at, name, pa.array([0] * len(table), pa.int8()))
    blob_dataset.add_studies(second, table)
    given = ("--data_dir", second, "--split", "all", "--output", tmp_path / "out")
    assert run("--job_dir", blob_run, *given, "--recalibrate", "0.5") == 2
    line = one_line(capsys)
    assert "no label can be calibrated on " in line
    assert line.endswith("take a greater share")


def test_one_patient_and_one_class(blob_run, others, tmp_path):
    second = blob_dataset.second_hospital(tmp_path / "one", others, kept=1)
    flags = ("--data_dir", second, "--split", "all", "--output", tmp_path / "out", "--prevalence", "0.2")
    assert run("--job_dir", blob_run, *flags) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["measures"]["studies_level"]["any"]
    assert found["known"] == 1
    assert found["auc"]["value"] is None
    assert found["note"]


def test_nothing_known(blob_run, others, tmp_path, capsys):
    second = blob_dataset.second_hospital(tmp_path / "one", others, kept=3)
    table = pq.read_table(second / "studies.parquet").select(["study_uid"])
    unknown = {name: pa.array([-1] * len(table), pa.int8()) for name in NAMES}
    blob_dataset.add_studies(second, pa.table({"study_uid": table["study_uid"], **unknown}))
    assert run("--job_dir", blob_run, "--data_dir", second, "--split", "all") == 2
    assert "no slice or study of split all" in one_line(capsys)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--by", "kernels"), "--by kernels is no fact of this data set; "),
        (("--by", "missing.csv:age"), "--by missing.csv: cannot be read as text"),
        (("--prevalence", "1"), "'1' is no number from 1e-06 on and below 1"),
        (("--recalibrate", "2"), "'2' is no number from 1e-06 on and below 1"),
        (("--recalibrate", "0.000001"), "takes none of the patients"),
    ],
)
def test_wrong_use(blob_run, studies_alone, flags, words, tmp_path, capsys):
    given = ("--data_dir", studies_alone, "--split", "all", "--output", tmp_path, *flags)
    assert run("--job_dir", blob_run, *given) == 2
    assert words in one_line(capsys)


def test_all_of_what_was_trained_on(blob_run, capsys):
    assert run("--job_dir", blob_run, "--split", "all") == 2
    assert "holds the slices that the model was trained on" in one_line(capsys)


def test_all_splits_as_one(others):
    from trainer.data.dataset import open_dataset

    data = open_dataset(str(others))
    assert len(data.every()) == sum(len(part) for part in data.named([]))
    assert np.isfinite(data.every().labels).all()
    assert math.isclose(len(data.every()), data.manifest.slices)
