"""`python -m trainer.export` of a series model: one folder with both networks, and what it says of DICOM files."""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path

import made_series
import numpy as np
import pytest
import tensorflow as tf

from ich_tfrecords.dicom import ct_slice
from trainer import evaluate, export
from trainer.data.dataset import open_dataset
from trainer.models import model_file
from trainer.series import judging, scoring
from trainer.serving import series_graph

pytestmark = pytest.mark.slow  # saves and loads graphs

PARTS = {"saved_model.pb", "variables", "assets", "fingerprint.pb", "model.keras", "about.json", "MODEL_CARD.md"}


@pytest.fixture(scope="module")
def made() -> made_series.Made:
    return made_series.made(made_series.GRU)


@pytest.fixture
def run(made, tmp_path) -> Path:
    """The folder of a run that ended with `made`."""
    folder = tmp_path / "run"
    model_file.write(folder / "slices", made.slice_model, made.slice_about)
    model_file.write(folder / "export", made.context, made.about, folder / "slices")
    (folder / "config.yaml").write_text("")
    return folder


def main(*flags: object) -> int:
    return export.main([str(flag) for flag in flags])


def one_line(capsys) -> str:
    text = capsys.readouterr().err
    assert text.startswith("export: "), text
    assert text.count("\n") == 1, text
    return text


def test_a_series_run_becomes_a_folder_that_others_can_use(run, made, capsys):
    assert main("--job_dir", run) == 0
    folder = run / "saved_model"
    assert {path.name for path in folder.iterdir()} == PARTS | {"slice"}
    for part in (".", "slice"):
        there, here = run / "export" / part, folder / part
        assert (here / "model.keras").read_bytes() == (there / "model.keras").read_bytes()
        assert model_file.read_about(here).spec == made.about.spec
    assert model_file.find(str(folder)) == folder  # laid out like the run's own
    model_file.load_slice_model(folder, model_file.read_about(folder))
    told, _, lines = capsys.readouterr().out.partition("use it with\n")
    for words in ("slice/ (the slice model)", "series, serving_default", "study_probabilities float32 [6]", "no hu"):
        assert words in told
    hu, position_mm = made_series.head(7)
    names = {"hu": hu, "position_mm": position_mm}
    *before, last = lines.splitlines()
    exec(textwrap.dedent("\n".join(before)), names)
    found = eval(last.strip(), names)
    np.testing.assert_allclose(found["probabilities"], made.says(hu, position_mm)[0], atol=1e-4, rtol=0)


def test_nobody_learns_where_things_lay(run):
    """Data set, slice run, and the file of the first weights, whose name stays."""
    assert main("--job_dir", run) == 0
    for path in (path for path in (run / "saved_model").rglob("*") if path.is_file()):
        for place in (made_series.HOME, str(run)):
            assert place.encode() not in path.read_bytes(), path
    about, of_slices = (model_file.read_about(run / "saved_model" / part) for part in (".", "slice"))
    assert (about.settings["slice_run"], about.settings["weights"]) == ("", "none")
    assert of_slices.settings["weights"] == "first.weights.h5"


def test_a_saved_model_that_answers_otherwise_is_not_kept(run, monkeypatch, capsys):
    right = scoring.scorer

    def off(model):
        return lambda inputs: [one + np.float32(1e-3) for one in right(model)(inputs)]

    monkeypatch.setattr(scoring, "scorer", off)
    assert main("--job_dir", run) == 1
    assert "the SavedModel is off by" in one_line(capsys)
    assert not (run / "saved_model").exists()


def test_a_graph_that_takes_the_slices_as_they_come_is_not_kept(run, monkeypatch, capsys):
    monkeypatch.setattr(series_graph.tf, "argsort", lambda values, stable: tf.range(tf.shape(values)[0]))
    assert main("--job_dir", run) == 1
    assert "the SavedModel is off by" in one_line(capsys)


def test_without_its_slice_model_it_is_refused(run, capsys):
    shutil.rmtree(run / "export" / "slice")
    assert main("--job_dir", run) == 2
    assert "slice/about.json (No such file or directory)" in one_line(capsys)
    assert not (run / "saved_model").exists()


def test_the_slice_model_of_another_is_refused(run, made, capsys):
    values = json.loads((run / "export" / "slice" / "about.json").read_text())
    (run / "export" / "slice" / "about.json").write_text(json.dumps({**values, "fingerprint": "e" * 64}))
    assert main("--job_dir", run) == 2
    assert "is not the slice model that" in one_line(capsys)
    assert not (run / "saved_model").exists()


def test_dicom_files_get_what_the_evaluation_says_of_their_records(series_run, runs_of_blobs, tmp_path):
    """From stored bytes on both ways: shards -> vectors -> `judging`, DICOM files -> `series`."""
    run = Path(shutil.copytree(series_run, tmp_path / "run"))
    assert evaluate.main(["--job_dir", str(run), "--resamples", "100"]) == 0
    assert main("--job_dir", run, "--output", tmp_path / "out") == 0
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert "| label | judged by | ROC AUC | gain |" in card
    assert "| any | series head |" in card
    data = open_dataset(str(runs_of_blobs))
    about = model_file.read_about(run / "export")
    judged = judging.judge_of(run / "export", about, data, False)(data.split("test"), 16, lambda done, total: None)
    loaded = tf.saved_model.load(str(tmp_path / "out")).signatures["series"]
    ids = judged.slices.ids.to_pandas()
    studies = judged.ways[judging.BLEND][0]
    assert len(studies) >= 20
    for study, (_, rows) in enumerate(ids.groupby("study_uid", sort=True)):
        hu, position_mm = files_of(runs_of_blobs, rows["sop_uid"])
        found = loaded(hu=tf.constant(hu), position_mm=tf.constant(position_mm, tf.float32))
        wanted = judged.slices.probabilities[rows.index]
        np.testing.assert_allclose(found["probabilities"], wanted, atol=1e-4, rtol=0)
        np.testing.assert_allclose(found["study_probabilities"], studies[study], atol=1e-4, rtol=0)


def files_of(dataset: Path, uids: object) -> tuple[np.ndarray, np.ndarray]:
    source = dataset.parent / f"{dataset.name}-dicom"
    found = [ct_slice.read_slice((source / f"{uid}.dcm").read_bytes()) for uid in uids]
    return np.array([one.hu for one in found]), np.array([one.header.position_mm for one in found])
