"""A series run killed while it embeds and while it trains ends with the same bits; and devices and processes agree."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path

import keras
import numpy as np
import pytest
import training_runs as runs

from trainer.training.run_dir import RunDir

pytestmark = pytest.mark.slow  # trains

EPOCHS = 3
NO_GPU = {"CUDA_VISIBLE_DEVICES": "-1"}
# everything that draws or has a state
SETTINGS = {
    "architecture.width": 16, "architecture.units": 8, "architecture.layers": 1, "architecture.dropout": 0.2,
    "series.noise": 0.1, "series.vector_dropout": 0.1, "series.slice_dropout": 0.2, "flip": True,
    "sampling": "balanced", "epochs": EPOCHS, "batch_size": 8, "eval_batch_size": 16, "warmup_epochs": 0.5, "ema": 0.9,
    "checkpoint_minutes": 0, "steps_per_call": 1,
}  # fmt: skip


def line(data_dir: Path, job_dir: Path, slice_run: Path, settings: dict[str, object]) -> list[str]:
    flags = runs.flags(data_dir, job_dir, settings)
    return ["--model", "series", "--slice_run", str(slice_run), *flags[2:]]


def bare(series_run: Path, folder: Path) -> Path:
    """The slice run of `series_run` without vectors."""
    return Path(shutil.copytree(series_run.parent / "slice_run", folder, ignore=shutil.ignore_patterns("vectors")))


def assert_same_outcome(job_dir: Path, whole: Path) -> None:
    one, other = runs.newest(job_dir), runs.newest(whole)
    assert (one.path.name, one.names) == (other.path.name, other.names)
    assert [name for name, a, b in zip(one.names, one.arrays, other.arrays) if a.tobytes() != b.tobytes()] == []
    assert one.state["run"] == other.state["run"]
    for name in ("history.csv", "result.json"):
        assert (job_dir / name).read_bytes() == (whole / name).read_bytes(), name
    found, wanted = (json.loads((place / "export" / "about.json").read_text()) for place in (job_dir, whole))
    assert found == wanted
    models = [keras.models.load_model(place / "export/model.keras").get_weights() for place in (job_dir, whole)]
    assert all(np.array_equal(a, b) for a, b in zip(*models, strict=True))
    assert not list(job_dir.rglob("*.tmp"))


@pytest.mark.long
def test_killed_while_it_embeds_and_while_it_trains_it_ends_with_the_same_bits(series_run, runs_of_blobs, tmp_path):
    job_dir, slice_run = tmp_path / "run", bare(series_run, tmp_path / "slices")
    command, lock = line(runs_of_blobs, job_dir, slice_run, SETTINGS), slice_run / "vectors" / "lock"
    run = runs.Run(command, tmp_path / "log", **NO_GPU)
    run.until(lambda: lock.exists() and bool(lock.read_text()))
    embedding = int(lock.read_text().split()[1])
    assert embedding != run.process.pid  # this one must not meet the devices before its strategy
    run.send(signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(embedding, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert not list((job_dir / "checkpoints").iterdir())

    run = runs.Run(command, tmp_path / "log", **NO_GPU)
    run.until(lambda: runs.last_step(job_dir) >= 8)
    run.send(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL

    whole = line(runs_of_blobs, tmp_path / "whole", slice_run, SETTINGS)
    run = runs.several([command, whole], tmp_path / "log", **NO_GPU)
    assert run.codes == [0, 0], run.err
    assert run.out.count("goes on from step") == 1
    assert_same_outcome(job_dir, tmp_path / "whole")
    made = runs.contents(slice_run / "vectors")
    for name, data in runs.contents(series_run.parent / "slice_run" / "vectors").items():
        assert made[name] == data, name
    assert {name for name in made if name.endswith("flip/index.json")} == {
        f"{name}-flip/index.json" for name in ("test", "train", "validation")
    }


# devices


STEPS = 5
PLAIN = {
    "architecture.width": 16, "architecture.units": 8, "architecture.layers": 1,
    "series.slice_dropout": 0.2, "optimizer": "sgd", "weight_decay": 0, "learning_rate": 0.05, "warmup_epochs": 0,
    "epochs": 1, "steps_per_epoch": STEPS, "batch_size": 8, "eval_batch_size": 6, "steps_per_call": 1,
    "checkpoint_minutes": 0,
}  # fmt: skip


def assert_same_losses(job_dir: Path, other: Path) -> None:
    assert len(runs.losses(job_dir)) == STEPS
    np.testing.assert_allclose(runs.losses(job_dir), runs.losses(other), rtol=0, atol=1e-5)
    found, wanted = (RunDir(place).read_history()[-1] for place in (job_dir, other))
    assert found == pytest.approx(wanted, rel=0, abs=1e-5, nan_ok=True)
    found, wanted = (json.loads((place / "result.json").read_text())["test"] for place in (job_dir, other))
    assert found == pytest.approx(wanted, rel=0, abs=1e-5, nan_ok=True)


@pytest.fixture(scope="module")
def both(series_run, runs_of_blobs, tmp_path_factory) -> dict[str, Path]:
    """Folders of a run on two devices and on one, by name."""
    folder, slice_run = tmp_path_factory.mktemp("both"), series_run.parent / "slice_run"
    devices = {"two": {"strategy": "mirrored", "replicas": 2}, "one": {"strategy": "default"}}
    lines = [line(runs_of_blobs, folder / name, slice_run, {**PLAIN, **more}) for name, more in devices.items()]
    run = runs.several(lines, folder / "log", **NO_GPU)
    assert run.codes == [0, 0], run.err
    return {name: folder / name for name in devices}


@pytest.mark.long
def test_two_devices_train_as_one(both):
    assert_same_losses(both["two"], both["one"])


@pytest.mark.long
def test_two_processes_train_as_one(both, series_run, runs_of_blobs, tmp_path):
    job_dir = tmp_path / "run"
    command = line(runs_of_blobs, job_dir, series_run.parent / "slice_run", PLAIN)
    workers = [
        runs.Run(command, tmp_path / f"worker_{index}", **NO_GPU, **environ)
        for index, environ in enumerate(runs.two_workers())
    ]
    assert [worker.wait() for worker in workers] == [0, 0], [worker.err for worker in workers]
    assert_same_losses(job_dir, both["one"])
