"""Runs of the series model on discs that only the neighbours tell from decoys: what is learnt, in any precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import training_runs as runs
from small_runs import log_of, result_of, train

from trainer.data import series
from trainer.data.dataset import open_dataset
from trainer.models import model_file
from trainer.training import hparams
from trainer.training.checkpoints import load
from trainer.training.run_dir import RunDir

pytestmark = pytest.mark.slow  # trains

SMALL = {"architecture__width": 16, "architecture__units": 8, "architecture__layers": 1, "steps_per_call": 0}
SHORT = {**SMALL, "epochs": 2, "steps_per_epoch": 0, "batch_size": 8, "learning_rate": 0.005, "warmup_epochs": 0}


@pytest.fixture
def slice_run(series_run: Path) -> Path:
    """The slice run of `series_run`; vectors may be added."""
    return series_run.parent / "slice_run"


def short(data: Path, job_dir: Path, slice_run: Path, *more: str, **changes: object) -> Path:
    assert train(data, job_dir, "--slice_run", str(slice_run), *more, model="series", **{**SHORT, **changes}) == 0
    return job_dir


def test_the_context_learns_what_a_slice_cannot_show(series_run):
    """Against the slice model in honest log odds: its part is 0 where the context does not help."""
    about = model_file.read_about(series_run / "export")
    assert about.blend.slices.part.max() >= 0.5
    result = json.loads((series_run / "result.json").read_text())
    assert result["test"]["log_loss"] < 0.29  # 0.286 of the slice model once it is calibrated, 0.367 of the prevalence
    assert model_file.read_about(series_run / "export" / model_file.SLICE).settings["model"] == "cnn"


def test_what_an_ended_run_holds(series_run, slice_run, runs_of_blobs):
    """The folder of a run as that of a slice model, its vectors beside the slice run, and both models in the export."""
    names = {path.name for path in series_run.iterdir()}
    assert names >= {"checkpoints", "config.yaml", "export", "history.csv", "metrics.jsonl", "result.json"}
    assert not list(series_run.rglob("*.tmp"))
    rows = RunDir(series_run).read_history()
    assert rows[-1]["val_log_loss"] < rows[0]["val_log_loss"]
    assert [row["epoch"] for row in rows] == list(range(1, 41))
    about = model_file.read_about(series_run / "export")
    model = model_file.load_model(series_run / "export", about)
    slice_about = model_file.read_about(slice_run / "export")
    slice_model = model_file.load_model(slice_run / "export", slice_about)
    assert about.facts["vector_dim"] == model_file.vector_dim(slice_model)
    assert about.facts["parameters"] == model.count_params() + slice_model.count_params()
    assert about.facts["slice_model"] == "cnn"
    for name in (model_file.MODEL, model_file.ABOUT):
        copied = series_run / "export" / model_file.SLICE / name
        assert copied.read_bytes() == (slice_run / "export" / name).read_bytes()
    assert all(entry["images_per_s"] > 0 for entry in log_of(series_run) if "images_per_s" in entry)


def test_ended_once_more_it_gives_the_same(series_run, runs_of_blobs, slice_run, tmp_path, capsys):
    copied = Path(shutil.copytree(series_run, tmp_path / "run"))
    (copied / "result.json").unlink()
    settings = model_file.read_about(copied / "export").settings
    same = {f"architecture__{key}": value for key, value in settings["architecture"].items()}
    same |= {key: settings[key] for key in ("epochs", "batch_size", "learning_rate", "steps_per_call", "accumulate")}
    short(runs_of_blobs, copied, slice_run, **{**same, "warmup_epochs": settings["warmup_epochs"]})
    assert "all 40 epochs are done; the best is scored again" in capsys.readouterr().out
    assert result_of(copied) == result_of(series_run)
    for name in (model_file.ABOUT, model_file.MODEL):
        assert (copied / "export" / name).read_bytes() == (series_run / "export" / name).read_bytes()


@pytest.mark.parametrize(("kind", "precision"), [("gru", "mixed_float16"), ("transformer", "mixed_bfloat16")])
def test_mixed_precision_trains_and_exports_float32(kind, precision, runs_of_blobs, slice_run, tmp_path):
    run = short(runs_of_blobs, tmp_path / "run", slice_run, precision=precision, architecture__kind=kind, epochs=3)
    rows = RunDir(run).read_history()
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]
    model = keras.models.load_model(run / "export/model.keras")
    assert {variable.dtype for variable in model.variables if "seed" not in variable.path} == {"float32"}
    computing = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    assert {layer.compute_dtype for layer in computing} == {"float32"}


@pytest.mark.long
def test_balanced_drawing_keeps_the_odds_of_nature(runs_of_blobs, slice_run, tmp_path):
    """Series by their rarest label; the loss weighs them back, so that the context needs no correction."""
    run = short(runs_of_blobs, tmp_path / "run", slice_run, "--sampling", "balanced", epochs=10, architecture__units=16)
    about = model_file.read_about(run / "export")
    assert about.settings["sampling"] == "balanced"
    assert len(about.blend.odds.drawn) == 0
    assert not about.blend.odds.shift.any()
    assert result_of(run)["test"]["log_loss"] < 0.3


@pytest.mark.long
def test_a_fold_needs_the_slice_run_of_the_same_fold(runs_of_blobs, tmp_path, capsys):
    tiny = {"architecture__filters": [4], "architecture__dense": [8], "epochs": 1, "steps_per_epoch": 2}
    folds = ["--folds", "3", "--fold"]
    assert train(runs_of_blobs, tmp_path / "slices", *folds, "1", **tiny) == 0
    run = short(runs_of_blobs, tmp_path / "run", tmp_path / "slices", *folds, "1", epochs=1)
    about = model_file.read_about(run / "export")
    assert (about.settings["fold"], about.settings["folds"]) == (1, 3)
    data = open_dataset(str(runs_of_blobs))
    train_part, held = data.fold(("train", "validation"), 1, 3)
    assert not {*train_part.table["patient_key"].to_pylist()} & {*held.table["patient_key"].to_pylist()}
    assert set(result_of(run)) >= {"best", "test"}
    capsys.readouterr()
    flags = ["--slice_run", str(tmp_path / "slices"), *folds, "0"]
    assert train(runs_of_blobs, tmp_path / "other", *flags, model="series", **SHORT) == 2
    told = capsys.readouterr().err
    assert told.startswith(
        f"train: --slice_run {tmp_path / 'slices'} has fold 1 and not 0, so it was trained on slices"
    )
    assert told.count("\n") == 1
    assert not (tmp_path / "other" / "config.yaml").exists()


def test_parts_of_a_batch_train_as_the_whole(runs_of_blobs, slice_run, tmp_path):
    plain = {"optimizer": "sgd", "weight_decay": 0, "learning_rate": 0.05, "epochs": 1, "clip_norm": 0}
    plain["architecture__kind"] = "transformer"
    plain |= {"series__noise": 0, "series__vector_dropout": 0, "series__slice_dropout": 0.2, "steps_per_call": 1}
    one, two = (
        short(runs_of_blobs, tmp_path / str(parts), slice_run, "--set", f"accumulate={parts}", **plain)
        for parts in (1, 2)
    )
    np.testing.assert_allclose(runs.losses(one)[:5], runs.losses(two)[:5], rtol=0, atol=1e-5)


@pytest.mark.long
def test_without_a_validation_split_the_context_speaks_alone(runs_of_blobs, tmp_path):
    tiny = {"architecture__filters": [4], "architecture__dense": [8], "epochs": 1, "steps_per_epoch": 2}
    without = ["--set", "validation_split="]
    assert train(runs_of_blobs, tmp_path / "slices", *without, **tiny) == 0
    run = short(runs_of_blobs, tmp_path / "run", tmp_path / "slices", *without, epochs=1)
    about = model_file.read_about(run / "export")
    assert about.blend.slices.part.tolist() == about.blend.studies.part.tolist() == [1.0] * 6
    assert set(about.blend.slices.plain.refused.values()) == {"the run had no validation split"}


def test_the_split_of_a_run_is_planned_whole(series_run, runs_of_blobs):
    """47 patients of 20 slices: 6 steps of 8 series, the last of 7."""
    slices = open_dataset(str(runs_of_blobs)).split("train")
    assert len(series.plan(slices.table)) == 47
    assert load(max((series_run / "checkpoints").glob("step-*.npz"))).state["run"]["step"] == 40 * 6
    assert hparams.of_run(model_file.read_about(series_run / "export").settings).batch_size == 8
