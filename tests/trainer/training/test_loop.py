"""The loop: losses that are no numbers, early stops, the best epoch, frozen parts, averaged weights, epoch sizes."""

from __future__ import annotations

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_runs import log_of, one_line, result_of, steps_saved, train

from trainer.data import dataset, input_pipeline
from trainer.data.augment import Augmentation
from trainer.data.input_pipeline import EpochPlan, Share
from trainer.models import model_file
from trainer.results import joint
from trainer.training import assembly, checkpoints, ending, loop, losses, metrics
from trainer.training.run_dir import RunDir

pytestmark = pytest.mark.slow  # trains


def weights(job_dir: Path, name: str) -> dict[str, np.ndarray]:
    found = checkpoints.load(job_dir / "checkpoints" / f"{name}.npz")
    return dict(zip(found.names, found.arrays))


def history(job_dir: Path) -> list[dict[str, float]]:
    return RunDir(job_dir).read_history()


# a loss that is no number


@tf.custom_gradient
def infinite_gradient(value):
    return value, lambda upstream: upstream * float("inf")


def poisoned(monkeypatch, at: int, poison) -> None:
    """The loss of the `at`-th step goes through `poison`."""
    real, calls = losses.loss_sums, tf.Variable(0)

    def loss_sums(*args):
        count = calls.assign_add(1)
        total, weight = real(*args)
        return tf.cond(tf.equal(count, at), lambda: poison(total), lambda: tf.identity(total)), weight

    monkeypatch.setattr(losses, "loss_sums", loss_sums)


def ids_of(data: Path, epoch: int, step: int) -> list[str]:
    """Slices of a batch of the runs here, from the plan alone."""
    slices = dataset.open_dataset(str(data)).split("train")
    shares = dict.fromkeys(slices.spec.labels.strata[:6], 1 / 6)
    plan = EpochPlan("balanced", shares, 0, epoch, 48, 16, 1, Augmentation(False, 0, 0))
    return input_pipeline.slices_of_step(slices, plan, Share.whole(), step)


@pytest.mark.parametrize("steps_per_call", [1, 3])
def test_a_loss_that_is_no_number_stops_and_names_the_batch(
    steps_per_call, tiny_dataset, tmp_path, capsys, monkeypatch
):
    poisoned(monkeypatch, 5, lambda total: total * float("nan"))
    settings = {"epochs": 3, "decay_per_epoch": 0.5, "steps_per_call": steps_per_call}
    assert train(tiny_dataset, tmp_path, **settings) == 1
    line = one_line(capsys)
    assert "the loss is nan at step 5 (epoch 2, learning rate 0.0005)" in line
    assert f"the last good checkpoint stays in {tmp_path}/checkpoints" in line
    assert line.endswith("slices of that batch: " + ", ".join(ids_of(tiny_dataset, 1, 1)))
    assert steps_saved(tmp_path) == ["best-000000003.npz", "step-000000003.npz"]
    assert len(history(tmp_path)) == 1
    monkeypatch.undo()
    assert train(tiny_dataset, tmp_path, **settings) == 0  # the same command goes on, and this time all is well
    assert "goes on from step 3" in capsys.readouterr().out


def test_weights_that_are_no_numbers_are_never_saved(tiny_dataset, tmp_path, capsys, monkeypatch):
    """The loss of step 4 is a number, but not what that step makes of the weights; keep is 1."""
    poisoned(monkeypatch, 4, infinite_gradient)
    settings = {"checkpoint_minutes": 0, "keep": 1, "optimizer": "sgd"}
    assert train(tiny_dataset, tmp_path, **settings) == 1
    line = one_line(capsys)
    assert re.search(r"kernel is not finite after step 4 \(epoch 2, learning rate 0.001\)", line)
    assert line.endswith("slices of that batch: " + ", ".join(ids_of(tiny_dataset, 1, 0)))
    assert steps_saved(tmp_path) == ["best-000000003.npz", "step-000000003.npz"]
    for name in ("best-000000003", "step-000000003"):
        assert all(np.isfinite(value).all() for value in weights(tmp_path, name).values())


def test_a_learning_rate_far_too_high_is_one_line(tiny_dataset, tmp_path, capsys):
    """Whether the run gets through or not: nothing but numbers in what it leaves."""
    code = train(tiny_dataset, tmp_path, optimizer="sgd", learning_rate=1000, architecture__dense=[], epochs=5)
    if code:
        assert code == 1
        assert "learning rate 1000" in one_line(capsys)
    for path in (tmp_path / "checkpoints").iterdir():
        assert all(np.isfinite(value).all() for value in weights(tmp_path, path.stem).values())


# the best epoch


def scored(monkeypatch, values: list[dict[str, float]]) -> None:
    """Validations give these values; the test split is scored as it is."""
    waiting, real = list(values), loop.Loop.result

    def result(self, scores):
        found = real(self, scores)
        return {**found, **(waiting.pop(0) if waiting else {})}

    monkeypatch.setattr(loop.Loop, "result", result)


def test_patience_and_the_best_epoch(tiny_dataset, tmp_path, monkeypatch, capsys):
    scored(monkeypatch, [{"log_loss": value} for value in (0.5, 0.4, 0.6, float("nan"), 0.5)])
    kept = {}
    real = loop.Loop._end_epoch

    def remember(self):
        kept[self.state.epoch + 1] = checkpoints.values(self.network.model.variables)
        real(self)

    monkeypatch.setattr(loop.Loop, "_end_epoch", remember)
    assert train(tiny_dataset, tmp_path, epochs=9, patience=2) == 0
    assert [row["epoch"] for row in history(tmp_path)] == [1, 2, 3, 4, 5]
    assert result_of(tmp_path)["best"] == {"value": 0.4, "epoch": 2, "step": 6}
    out = capsys.readouterr().out
    assert "best epoch 2: val_log_loss 0.4000" in out
    assert "val_log_loss has no value in epoch 4, which counts neither as the best nor for patience" in out
    assert "stops early: val_log_loss was not better for 2 epochs (patience)" in out
    exported = keras.models.load_model(tmp_path / "export" / "model.keras")
    for value, best, last in zip(exported.variables, kept[2], kept[5]):
        np.testing.assert_array_equal(value.numpy(), best)
        assert not np.array_equal(best, last)
    assert steps_saved(tmp_path)[0] == "best-000000006.npz"


def test_another_monitor_is_better_when_higher(tiny_dataset, tmp_path, monkeypatch):
    scored(monkeypatch, [{"auc": auc, "log_loss": loss} for auc, loss in ((0.5, 0.5), (0.7, 0.6), (0.6, 0.4))])
    assert train(tiny_dataset, tmp_path, epochs=8, monitor="auc", patience=1) == 0
    assert result_of(tmp_path)["best"] == {"value": 0.7, "epoch": 2, "step": 6}
    assert len(history(tmp_path)) == 3


def test_without_validation_the_newest_weights_are_exported(tiny_dataset, tmp_path, capsys):
    assert train(tiny_dataset, tmp_path, validation_split="", test_split="") == 0
    assert set(history(tmp_path)[0]) == {"epoch", "step", "learning_rate", "loss", "log_loss", "accuracy"}
    newest = weights(tmp_path, "step-000000006")
    exported = keras.models.load_model(tmp_path / "export" / "model.keras")
    for variable in exported.variables:
        np.testing.assert_array_equal(variable.numpy(), newest[variable.path])
    assert result_of(tmp_path).keys() == {"best", "epochs", "steps", "fingerprint"}
    assert "held-out" not in capsys.readouterr().out
    assert steps_saved(tmp_path) == ["best-000000006.npz", "step-000000003.npz", "step-000000006.npz"]


# frozen parts and averaged weights


def small_application(include_top: bool, weights: None, input_shape: tuple[int, ...]) -> keras.Model:
    start = keras.Input(input_shape)
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="first")(start)
    x = keras.layers.BatchNormalization(name="norm")(x)
    return keras.Model(start, keras.layers.Activation("relu")(x))


@pytest.mark.parametrize("strategy", ["default", "mirrored"])
def test_a_frozen_epoch_leaves_the_backbone_as_it_is(strategy, tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(keras.applications, "DenseNet121", small_application)
    start = {}
    real = loop.Loop.fit

    def remember(self):
        start.update({variable.path: variable.value.numpy() for variable in self.network.model.variables})
        return real(self)

    monkeypatch.setattr(loop.Loop, "fit", remember)
    settings = {"weights": "none", "freeze_epochs": 1, "strategy": strategy}
    assert train(tiny_dataset, tmp_path, model="densenet121", **settings) == 0
    frozen, moved = (weights(tmp_path, f"step-{step:09d}") for step in (3, 6))
    inner = [name for name in start if name.startswith(("first/", "norm/"))]
    assert len(inner) == 6
    for name in start:
        assert np.array_equal(frozen[name], start[name]) == (name in inner), name
        assert not np.array_equal(moved[name], frozen[name]), name


def test_averaged_weights_are_evaluated_and_exported_and_training_goes_on_with_the_trained(
    tiny_dataset, tmp_path, monkeypatch
):
    seen = []
    real = loop.Loop.evaluate

    def remember(self, slices):
        seen.append(checkpoints.values(self.network.model.trainable_variables))
        return real(self, slices)

    monkeypatch.setattr(loop.Loop, "evaluate", remember)
    assert train(tiny_dataset, tmp_path / "averaged", ema=0.9) == 0
    assert train(tiny_dataset, tmp_path / "plain") == 0
    averaged, plain = (
        [weights(tmp_path / name, f"step-{step:09d}") for step in (3, 6)] for name in ("averaged", "plain")
    )
    names = [name for name in plain[0] if name.startswith(("conv", "dense", "logits"))]
    assert len(names) == 8
    for with_average, without in zip(averaged, plain):  # the average is looked at, not trained on
        for name in names:
            np.testing.assert_array_equal(with_average[name], without[name])
    for index, epoch in enumerate(averaged):
        for name, evaluated in zip(names, seen[index]):
            assert not np.array_equal(evaluated, epoch[name]), name
    losses_seen = [row["loss"] for row in history(tmp_path / "averaged")]
    assert losses_seen == [row["loss"] for row in history(tmp_path / "plain")]
    exported = keras.models.load_model(tmp_path / "averaged" / "export" / "model.keras")
    for variable, evaluated in zip(exported.trainable_variables, seen[2]):  # the third is of the test split
        np.testing.assert_array_equal(variable.numpy(), evaluated)


def test_batch_norm_is_averaged_resumed_to_the_bit_and_exported_as_it_was_scored(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(keras.applications, "DenseNet121", small_application)
    settings = {"weights": "none", "ema": 0.99, "freeze_epochs": 1, "learning_rate": 0.05, "architecture__dropout": 0.3}
    settings |= {"accumulate": 2, "epochs": 3, "steps_per_call": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(tiny_dataset, whole, model="densenet121", **settings) == 0
    stopped = {**settings, "epochs": 2, "steps_per_call": 1}
    assert train(tiny_dataset, parts, model="densenet121", **stopped) == 0
    assert train(tiny_dataset, parts, model="densenet121", **settings) == 0
    for name in ("step-000000009", steps_saved(whole)[0].removesuffix(".npz")):
        assert {key: value.tobytes() for key, value in weights(parts, name).items()} == {
            key: value.tobytes() for key, value in weights(whole, name).items()
        }
    assert result_of(parts) == result_of(whole)
    trained, best = (weights(whole, name) for name in ("step-000000009", steps_saved(whole)[0].removesuffix(".npz")))
    moving = [name for name in best if "moving" in name]
    assert len(moving) == 2
    exported = {variable.path: variable.numpy() for variable in model_of(whole).variables}
    for name in moving:
        assert not np.array_equal(best[name], trained[name])
        np.testing.assert_array_equal(exported[name], best[name])
    assert log_loss_of(whole, tiny_dataset, "test") == pytest.approx(result_of(whole)["test"]["log_loss"], rel=1e-5)
    value = result_of(whole)["best"]["value"]
    assert log_loss_of(whole, tiny_dataset, "validation") == pytest.approx(value, rel=1e-5)


def model_of(job_dir: Path) -> keras.Model:
    return keras.models.load_model(job_dir / "export" / "model.keras")


def log_loss_of(job_dir: Path, data: Path, split: str) -> float:
    """Of the exported model, computed beside the loop, with the sampling undone and no kind above `any`."""
    slices, about = dataset.open_dataset(str(data)).split(split), model_file.read_about(job_dir / "export")
    images = next(iter(input_pipeline.evaluation_batches(slices, len(slices), Share.whole())))["image"]
    natural = joint.coherent(about.log_odds(model_of(job_dir)(images, training=False).numpy()), 0)
    return metrics.log_loss(slices.labels, natural, np.array([2, 1, 1, 1, 1, 1]))


# how long an epoch is


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"steps_per_epoch": 0, "sampling": "natural"}, 9),  # 138 = 8 x 16 + 10
        ({"steps_per_epoch": 0, "sampling": "natural", "batch_size": 23}, 6),
        ({"steps_per_epoch": 0}, 9),  # whole batches only
        ({"steps_per_epoch": 12}, 12),  # longer than the split
        ({"steps_per_epoch": 4, "sampling": "natural"}, 4),
        ({"steps_per_epoch": 1}, 1),
    ],
)
def test_steps_of_an_epoch(settings, steps, tiny_dataset, tmp_path):
    assert (
        train(tiny_dataset, tmp_path, epochs=1, test_split="", validation_split="", steps_per_call=5, **settings) == 0
    )
    assert history(tmp_path)[0]["step"] == steps
    assert [entry["step"] for entry in log_of(tmp_path)] == [*range(5, steps, 5), steps, steps]


def test_a_natural_epoch_shows_every_slice_once(tiny_dataset, tmp_path, monkeypatch, capsys):
    """The short last batch counts by its slices: the epoch's loss is the mean over all, at a rate of nearly nothing.

    Training counts logits as they are, so validation must leave a kind above `any` where it is.
    """
    monkeypatch.setattr(metrics, "coherent", lambda log_odds, any_index: log_odds)
    settings = {"epochs": 1, "steps_per_epoch": 0, "sampling": "natural", "learning_rate": 1e-30}
    monkeypatch.setattr(assembly, "_drawn", lambda data, settings, name: data.split("train"))  # validation too
    monkeypatch.setattr(assembly, "_without_twins", lambda train, held: train)
    assert train(tiny_dataset, tmp_path, **settings) == 0
    [row] = history(tmp_path)
    assert row["log_loss"] == pytest.approx(row["val_log_loss"], abs=1e-6)
    assert row["accuracy"] == pytest.approx(row["val_accuracy"], abs=1e-9)
    assert "left out" not in capsys.readouterr().out


def test_what_does_not_fit_the_devices_is_left_out_and_said(tiny_dataset, tmp_path, capsys):
    """138 slices in batches of 16 in parts of 4: of the last 10, two do not fill a part."""
    settings = {"epochs": 1, "steps_per_epoch": 0, "sampling": "natural", "accumulate": 4}
    assert train(tiny_dataset, tmp_path, **settings) == 0
    assert "2 slices are left out of each epoch" in capsys.readouterr().out


# real models


@pytest.mark.long
@pytest.mark.parametrize("model", ["densenet121", "xception"])
def test_the_real_models_learn(model, tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(ending, "finish", lambda *_: None)  # to build the model once more takes seconds
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # and so does this
    settings = {"weights": "none", "batch_size": 8, "steps_per_epoch": 6, "sampling": "natural", "epochs": 1}
    settings |= {"validation_split": "", "test_split": "", "learning_rate": 0.001, "patience": 0}
    try:
        assert train(tiny_dataset, tmp_path, model=model, **settings) == 0
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})
    losses_seen = [entry["loss"] for entry in log_of(tmp_path)[:-1]]
    assert len(losses_seen) == 6
    assert np.mean(losses_seen[3:]) < np.mean(losses_seen[:3])


def test_xla(tiny_dataset, tmp_path):
    """The same losses as without, nearly."""
    from tensorflow.python.util import _pywrap_determinism

    _pywrap_determinism.enable(False)  # what other runs in this process have asked for
    short = {"epochs": 1, "deterministic": False, "ema": 0.9}
    assert train(tiny_dataset, tmp_path / "xla", jit_compile=True, **short) == 0
    assert train(tiny_dataset, tmp_path / "plain", **short) == 0
    [with_xla], [without] = history(tmp_path / "xla"), history(tmp_path / "plain")
    for name in ("loss", "val_log_loss"):
        assert with_xla[name] == pytest.approx(without[name], rel=1e-4), name
