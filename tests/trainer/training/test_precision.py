"""float32, bfloat16 and float16: each learns, scores in float64, and leaves a float32 model that says the same."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import training_runs as runs

from trainer import task
from trainer.data import dataset, input_pipeline
from trainer.data.input_pipeline import Share
from trainer.models import model_file, networks
from trainer.training import checkpoints, loop, optimizers
from trainer.training.metrics import Scores
from trainer.training.run_dir import RunDir

pytestmark = pytest.mark.slow  # trains

# `deterministic` would stay switched on in the process of the tests
SETTINGS = {
    "epochs": 4, "steps_per_epoch": 10, "batch_size": 16, "eval_batch_size": 64, "steps_per_call": 5,
    "architecture.filters": [8, 8], "architecture.dense": [16], "learning_rate": 0.003, "deterministic": False,
    "strategy": "default",
}  # fmt: skip
START_SCALE = 2.0**15


@pytest.fixture
def own_process_state() -> Iterator[None]:
    """Signal handlers and Keras's policy as they were before."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def trained(data_dir: Path, job_dir: Path, **changes: object) -> Path:
    assert task.main(runs.flags(data_dir, job_dir, {**SETTINGS, **changes})) == 0
    return job_dir


def predictions(model: keras.Model, data_dir: Path) -> tuple[np.ndarray, ...]:
    """Labels, logits float32, weight and row of the test split."""
    slices = dataset.open_dataset(str(data_dir)).split("test")
    run = tf.function(lambda images: model(images, training=False))  # eager operations round between them
    parts = []
    for batch in input_pipeline.evaluation_batches(slices, 64, Share.whole()):
        logits = run(batch["image"])
        assert logits.dtype == "float32"
        parts.append([batch["labels"].numpy(), logits.numpy(), batch["weight"].numpy(), batch["row"].numpy()])
    return tuple(map(np.concatenate, zip(*parts)))


def of_checkpoint(job_dir: Path, precision: str) -> keras.Model:
    """The trained model in the precision it was trained in, from its best checkpoint."""
    keras.config.set_dtype_policy(precision)
    architecture = {key.partition(".")[2]: value for key, value in SETTINGS.items() if key.startswith("architecture")}
    model = networks.build("cnn", (32, 32, 3), 6, "none", architecture)
    (best,) = (job_dir / "checkpoints").glob("best-*.npz")
    for variable, array in zip(model.variables, checkpoints.load(best).arrays, strict=True):
        variable.assign(array)
    return model


def assert_float32(model: keras.Model) -> None:
    computing = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    assert {variable.dtype for variable in model.variables} == {"float32"}
    assert {layer.compute_dtype for layer in computing} == {"float32"}
    assert {layer.dtype_policy.name for layer in computing} == {"float32"}


def scores(job_dir: Path, found: tuple[np.ndarray, ...]) -> dict[str, float]:
    about = model_file.read_about(job_dir / "export")
    collected = Scores()
    collected.add(*found)
    return collected.result(about.odds)


@pytest.mark.usefixtures("own_process_state")
@pytest.mark.parametrize(("precision", "apart"), [("float32", 1e-5), ("mixed_bfloat16", 3e-2), ("mixed_float16", 3e-3)])
def test_it_learns_and_leaves_a_float32_model_that_says_the_same(tiny_dataset, tmp_path, precision, apart):
    job_dir = trained(tiny_dataset, tmp_path / "run", precision=precision)
    rows = RunDir(job_dir).read_history()
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.05
    exported = keras.models.load_model(job_dir / "export/model.keras")
    assert_float32(exported)
    before, after = (predictions(model, tiny_dataset) for model in (of_checkpoint(job_dir, precision), exported))
    np.testing.assert_allclose(before[1], after[1], rtol=0, atol=apart)
    told = json.loads((job_dir / "result.json").read_text())["test"]["log_loss"]
    assert scores(job_dir, before)["log_loss"] == pytest.approx(told, rel=1e-6)
    assert scores(job_dir, after)["log_loss"] == pytest.approx(told, abs=apart)
    values = [row["val_log_loss"] for row in rows]
    assert all(float(np.float32(value)) != value for value in values)  # in float64, from float32 logits


@pytest.mark.usefixtures("own_process_state")
def test_the_loss_scale_of_float16_moves_and_is_restored(tiny_dataset, tmp_path):
    job_dir = tmp_path / "run"
    rough = {"precision": "mixed_float16", "learning_rate": 0.3, "steps_per_call": 1}
    trained(tiny_dataset, job_dir, epochs=1, **rough)
    first = [call["loss_scale"] for call in runs.calls(job_dir)]
    assert max(first) == START_SCALE
    assert first == sorted(first, reverse=True)
    assert first[-1] <= START_SCALE / 4
    saved = runs.newest(job_dir)
    scale = [array for name, array in zip(saved.names, saved.arrays) if "dynamic_scale" in name]
    assert scale == [np.float32(first[-1])]
    trained(tiny_dataset, job_dir, epochs=2, **rough)
    every = [call["loss_scale"] for call in runs.calls(job_dir)]
    assert every[: len(first)] == first
    assert every[len(first)] in (first[-1], first[-1] / 2)  # it could grow after 2,000 good steps only


@pytest.mark.usefixtures("own_process_state")
def test_the_learning_rate_shown_is_the_one_applied_also_after_an_overflow(tiny_dataset, tmp_path, monkeypatch):
    """A step whose gradient overflows counts for the schedule, as it does for resume, and not for Adam's correction."""
    applied: list[tuple[float, int]] = []
    real = loop.Loop._report_call

    def remember(self, sums):
        optimizer = optimizers.inner(self.network.update.optimizer)
        applied.append((float(optimizer.learning_rate.numpy()), int(optimizer.iterations.numpy())))
        real(self, sums)

    monkeypatch.setattr(loop.Loop, "_report_call", remember)
    changes = {"precision": "mixed_float16", "learning_rate": 0.3, "steps_per_call": 1, "ema": 0.9}
    changes |= {"epochs": 1, "schedule": "cosine"}  # which differs from step to step
    job_dir = trained(tiny_dataset, tmp_path / "run", **changes)
    told = runs.calls(job_dir)
    assert min(call["loss_scale"] for call in told) < START_SCALE
    assert applied[-1][1] < len(told) == SETTINGS["steps_per_epoch"]
    expected = [0.3 * 0.5 * (1 + math.cos(math.pi * step / len(told))) for step in range(len(told))]
    np.testing.assert_allclose([rate for rate, _ in applied], expected, rtol=1e-5)
    np.testing.assert_allclose([call["learning_rate"] for call in told], expected, rtol=1e-5)
