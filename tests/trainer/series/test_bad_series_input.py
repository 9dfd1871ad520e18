"""What a series run refuses: one line each, exit code 2, and nothing lost of what was there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import training_runs as runs
from small_runs import one_line, train

from trainer.models import model_file
from trainer.shell.problems import WrongUse
from trainer.training import hparams

SLICES = "slices.parquet"
TINY = {"architecture__width": 8, "architecture__units": 4, "architecture__layers": 1, "epochs": 1, "batch_size": 8}


@pytest.fixture
def slice_run(series_run: Path, tmp_path: Path) -> Path:
    """A copy of the slice run of `series_run` with its vectors, to damage."""
    return Path(shutil.copytree(series_run.parent / "slice_run", tmp_path / "slices"))


@pytest.fixture
def refused(runs_of_blobs: Path, tmp_path: Path, capsys) -> Callable[..., str]:
    """The one line of a series run that is refused; a run that was there before keeps every byte."""

    def run(*flags: object, data: Path = runs_of_blobs, job_dir: Path = tmp_path / "run", **settings: object) -> str:
        before = runs.contents(job_dir)
        assert train(data, job_dir, *map(str, flags), model="series", **{**TINY, **settings}) == 2
        assert runs.contents(job_dir) == before
        return one_line(capsys)

    return run


def changed_manifest(data: Path, folder: Path, change: Callable[[dict], None]) -> Path:
    copied = Path(shutil.copytree(data, folder))
    values = json.loads((copied / "manifest.json").read_text())
    change(values)
    (copied / "manifest.json").write_text(json.dumps(values))
    return copied


def changed_positions(data: Path, folder: Path, change: Callable[[np.ndarray, np.ndarray], None]) -> Path:
    """A copy whose slices lie elsewhere: `change(position_mm, series)` in place; nan is none."""
    copied = Path(shutil.copytree(data, folder))
    table = pq.read_table(copied / SLICES)
    position_mm = table["position_mm"].to_numpy().copy()
    change(position_mm, table["series_uid"].to_numpy())
    at = table.column_names.index("position_mm")
    values = pa.array(position_mm, table.schema.field(at).type, mask=np.isnan(position_mm))
    pq.write_table(table.set_column(at, table.schema.field(at).with_nullable(True), values), copied / SLICES)
    digest = hashlib.sha256((copied / SLICES).read_bytes()).hexdigest()
    return changed_manifest(
        copied, folder.with_name(f"{folder.name}-told"), lambda it: it["files"].update({SLICES: digest})
    )


# the slice run


def test_no_slice_run(refused, tmp_path):
    assert refused(job_dir=tmp_path / "run").startswith(
        "train: model series sees the vectors of a trained slice model; name its run with --slice_run RUN"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nowhere", "nowhere does not exist; give the folder of a run"),
        (".", ". holds no model.keras with its about.json; give the folder of a run"),
    ],
)
def test_a_slice_run_that_is_none(place, words, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused("--slice_run", place)


def test_a_series_run_is_no_slice_run(refused, series_run):
    line = refused("--slice_run", series_run)
    assert line == f"train: --slice_run {series_run} is a series model itself; name the run of a model of slices"


def test_another_data_set_and_other_windows(refused, slice_run, runs_of_blobs, tmp_path):
    """A window is part of the fingerprint, and so is every slice."""

    def other(values: dict) -> None:
        values["fingerprint"] = "0" * 64

    def windows(values: dict) -> None:
        values["spec"]["image"]["windows"][0]["level_hu"] = 41
        values["fingerprint"] = "1" * 64

    for number, change in enumerate((other, windows)):
        data = changed_manifest(runs_of_blobs, tmp_path / f"data_{number}", change)
        line = refused("--slice_run", slice_run, data=data)
        assert f"--slice_run {slice_run} was trained on another data set (" in line
        assert line.endswith(
            f" than {data} ({str(number) * 16}), so it may have seen what is held out here; train one on this"
        )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--folds", 3, "--fold", 1), "fold 0 and not 1"),
        (("--set", "train_split=validation", "--set", "validation_split=train"), "train_split 'train' and not 'vali"),
        (("--set", "train_split=test", "--set", "test_split="), "train_split 'train' and not 'test'"),
    ],
)
def test_a_slice_run_of_another_fold_or_other_splits(flags, words, refused, slice_run):
    line = refused("--slice_run", slice_run, *flags)
    assert words in line
    assert line.endswith(
        ", so it was trained on slices that this run holds out; name the slice run of the same fold and splits"
    )


def test_a_slice_run_of_an_earlier_calibration(refused, slice_run):
    about = slice_run / "export" / "about.json"
    values = json.loads(about.read_text())
    about.write_text(json.dumps({**values, "odds": None, "format": 1}))
    assert f"fit it anew with python -m trainer.evaluate --job_dir {slice_run} --recalibrate" in refused(
        "--slice_run", slice_run
    )


# its vectors


def half(slice_run: Path) -> None:
    index = slice_run / "vectors" / "train" / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "parts": {}}))


def cut(slice_run: Path) -> None:
    part = slice_run / "vectors" / "train" / "part-00000.npy"
    part.write_bytes(part.read_bytes()[:-100])


def weights(slice_run: Path) -> None:
    folder = slice_run / "export"
    about = model_file.read_about(folder)
    model = model_file.load_model(folder, about)
    model.layers[-1].bias.assign(model.layers[-1].bias + 1.0)
    model_file.write(folder, model, about)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (half, "holds 0 of 1 part of the vectors"),
        (cut, "part-00000.npy does not have the bytes that were written"),
        (weights, "are of other weights"),
    ],
)
def test_several_workers_are_told_the_command(harm, words, refused, slice_run, runs_of_blobs, monkeypatch):
    """The others would wait for as long as it takes."""
    harm(slice_run)
    before = runs.contents(slice_run)
    monkeypatch.setenv("TF_CONFIG", runs.two_workers()[0]["TF_CONFIG"])
    line = refused("--slice_run", slice_run)
    split = "test" if harm is weights else "train"
    command = f"python -m trainer.embed --job_dir {slice_run} --data_dir {runs_of_blobs} --split {split}"
    assert words in line
    assert line.endswith(f"; make them with: {command}")
    assert runs.contents(slice_run) == before


def test_a_run_does_not_go_on_with_the_vectors_of_other_weights(refused, slice_run, series_run, tmp_path):
    """They are made anew for it, and another run may take them."""
    run = Path(shutil.copytree(series_run, tmp_path / "run"))
    weights(slice_run)
    settings = model_file.read_about(run / "export").settings
    same = {f"architecture__{key}": value for key, value in settings["architecture"].items()}
    same |= {key: settings[key] for key in ("epochs", "batch_size", "learning_rate", "steps_per_epoch", "accumulate")}
    line = refused("--slice_run", slice_run, job_dir=run, **same)
    old, new = (model_file.digest(place / "export")[:16] for place in (series_run.parent / "slice_run", slice_run))
    assert f"{run} holds another run (slice model: {old}, now {new}); give the same settings to go on" in line
    index = json.loads((slice_run / "vectors" / "train" / "index.json").read_text())
    assert index["weights"].startswith(new)
    assert len(index["parts"]) == 1


# the data set


def test_a_data_set_without_positions(refused, slice_run, runs_of_blobs, tmp_path):
    def lose(position_mm: np.ndarray, _: np.ndarray) -> None:
        position_mm[::7] = np.nan

    data = changed_positions(runs_of_blobs, tmp_path / "data", lose)
    line = refused("--slice_run", slice_run, data=data)
    assert " has no position_mm (" in line
    assert line.endswith("is not known; convert again, or take a model of single slices")


def test_a_series_without_an_order(refused, slice_run, runs_of_blobs, tmp_path):
    def flatten(position_mm: np.ndarray, uids: np.ndarray) -> None:
        position_mm[uids == uids[0]] = 3.0

    data = changed_positions(runs_of_blobs, tmp_path / "data", flatten)
    line = refused("--slice_run", slice_run, data=data)
    assert " has 20 slices at one position (1 of " in line
    assert line.endswith("so they have no order; convert without it, or take a model of single slices")


# settings


@pytest.mark.parametrize(
    ("model", "sets", "words"),
    [
        ("cnn", {"slice_run": "runs/cnn"}, "slice_run belongs to --model series, not to cnn; leave it out"),
        ("cnn", {"series.noise": 0.1}, "series belongs to --model series, not to cnn; leave it out"),
        ("xception", {"end_to_end": True}, "end_to_end belongs to --model series, not to xception; leave it out"),
        ("series", {"rotate_deg": 5}, "rotate_deg is 5, and a series model sees vectors, not pixels; leave it at 0"),
        ("series", {"shift": 0.1}, "shift is 0.1, and a series model sees vectors, not pixels; leave it at 0"),
        ("series", {"erase": 0.1}, "erase is 0.1, and a series model sees vectors, not pixels; leave it at 0"),
        ("series", {"augment_on": "device"}, "augment_on is device, and whole series are changed where they are read"),
        ("series", {"freeze_epochs": 1}, "freeze_epochs is 1, and a series model sees vectors, not pixels"),
        ("series", {"weights": "imagenet"}, "weights is imagenet; a series model begins with none, or a series run"),
        ("series", {"series": 3}, "series is 3; it must be a mapping"),
        ("series", {"jit_compile": True}, "jit_compile has no deterministic gradient"),
    ],
)
def test_settings_of_the_other_kind(model, sets, words):
    with pytest.raises(WrongUse) as told:
        hparams.resolve(model, None, sets)
    assert str(told.value).startswith(words)


def test_settings_that_only_the_run_can_judge(refused, slice_run):
    """The architecture of a cnn, and more series at once than there are."""
    for settings, words in (
        ({"architecture__filters": [8]}, "architecture of series: unknown key 'filters'; did you mean 'layers'?"),
        ({"architecture__units": 1.5}, "architecture of series: units is 1.5; give a whole number >= 1"),
        ({"series__noise": -1}, "series.noise is -1; use 0 to 10"),
        ({"series__noize": 1}, "series: unknown setting 'noize'; did you mean 'noise'?"),
        ({"batch_size": 512}, "batch_size is 512, but split train has 47 series to train on; lower it"),
        ({"steps_per_epoch": 99}, "natural sampling shows all series once an epoch, which makes 5 steps of 8"),
    ):
        assert words in refused("--slice_run", slice_run, **settings)
