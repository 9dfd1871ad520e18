"""One run end to end: what it leaves behind, and that all of it tells the same story."""

from __future__ import annotations

import dataclasses
import io
import math
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf
from PIL import Image
from small_runs import log_of, one_line, result_of, steps_saved, train
from tensorboard.backend.event_processing import event_accumulator

from trainer.data import dataset, input_pipeline
from trainer.data.input_pipeline import Share
from trainer.models import model_file
from trainer.results import joint
from trainer.shell.problems import TrainingFailed
from trainer.training import checkpoints, session
from trainer.training.run_dir import RunDir

pytestmark = pytest.mark.slow  # trains

EPOCHS, STEPS, BATCH = 2, 3, 16
LABELS = ("any", "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")


@pytest.fixture(scope="module")
def run(tiny_dataset: Path, tmp_path_factory) -> Path:
    """A finished run, balanced, so that the odds are shifted; read only."""
    folder = tmp_path_factory.mktemp("session") / "run"
    assert train(tiny_dataset, folder) == 0
    return folder


@pytest.fixture(scope="module")
def events(run: Path) -> event_accumulator.EventAccumulator:
    found = event_accumulator.EventAccumulator(str(run / "tensorboard"), {"tensors": 0, "images": 0})
    return found.Reload()


def series(events, tag: str) -> list[tuple[int, float]]:
    return [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in events.Tensors(tag)]


def test_the_files_of_a_run(run):
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints", "config.yaml", "export", "history.csv", "inputs.png", "lock", "metrics.jsonl",
        "result.json", "tensorboard",
    ]  # fmt: skip
    assert steps_saved(run) == ["best-000000006.npz", "step-000000003.npz", "step-000000006.npz"]
    assert sorted(path.name for path in (run / "export").iterdir()) == ["about.json", "model.keras", "scope.npz"]


def test_history_log_and_tensorboard_agree(run, events):
    rows, entries = RunDir(run).read_history(), log_of(run)
    calls, epochs = ([entry for entry in entries if ("loss_scale" in entry) == want] for want in (True, False))
    assert [entry["step"] for entry in calls] == list(range(1, EPOCHS * STEPS + 1))
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 3), (2, 6)]
    assert all(entry.pop("seconds") > 0 for entry in (*calls, *epochs))
    for row, entry in zip(rows, epochs, strict=True):
        assert {key: None if math.isnan(value) else value for key, value in row.items()} == entry
        losses = [call["loss"] for call in calls if call["epoch"] == row["epoch"]]
        assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-6)  # all labels known: batches weigh the same
        assert row["loss"] == row["log_loss"]
    assert series(events, "step/loss") == [(call["step"], pytest.approx(call["loss"], rel=1e-6)) for call in calls]
    for key in set(rows[0]) - {"epoch", "step"}:
        expected = [(row["step"], pytest.approx(row[key], rel=1e-6, nan_ok=True)) for row in rows]
        assert series(events, key) == expected, key
    names = ["log_loss", "log_loss_as_sampled", "auc", "accuracy"]
    names += [f"{metric}_{label}" for metric in ("auc", "accuracy") for label in LABELS]
    assert set(rows[0]) == {
        "epoch",
        "step",
        "learning_rate",
        "loss",
        "log_loss",
        "accuracy",
        *(f"val_{n}" for n in names),
    }


def test_the_page_of_inputs(run, events):
    page = np.asarray(Image.open(run / "inputs.png"))
    [event] = events.Tensors("inputs")
    logged = np.asarray(Image.open(io.BytesIO(tf.make_ndarray(event.tensor_proto)[2])))
    assert event.step == 0
    np.testing.assert_array_equal(page, logged)
    assert page.std() > 0


def predictions(run: Path, data: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and logits of a split in table order, by the exported model alone."""
    slices = dataset.open_dataset(str(data)).split(split)
    model = keras.models.load_model(run / "export" / "model.keras")
    batches = input_pipeline.evaluation_batches(slices, len(slices), Share.whole())
    images = next(iter(batches))["image"].numpy()
    return slices.labels, model.predict(images, verbose=0).astype(np.float64)


def test_the_result_is_scikit_learns_on_the_exported_model(run, tiny_dataset):
    found = result_of(run)["test"]
    labels, logits = predictions(run, tiny_dataset, "test")
    assert len(labels) == 60
    odds = model_file.read_about(run / "export").odds
    natural = joint.coherent(odds.log_odds(logits), 0)
    assert (np.abs(natural - logits) > 0.1).any()  # else the test would be about nothing
    for those, key in ((logits, "log_loss_as_sampled"), (natural, "log_loss")):
        probability = 1 / (1 + np.exp(-those))
        each = [sklearn.metrics.log_loss(labels[:, i], probability[:, i], labels=[0, 1]) for i in range(6)]
        assert found[key] == pytest.approx(np.average(each, weights=[2, 1, 1, 1, 1, 1]), rel=1e-5)
    for i, name in enumerate(LABELS):
        assert found[f"auc_{name}"] == pytest.approx(
            sklearn.metrics.roc_auc_score(labels[:, i], natural[:, i]), abs=1e-3
        )
        right = sklearn.metrics.accuracy_score(labels[:, i], natural[:, i] >= 0)
        assert found[f"accuracy_{name}"] == pytest.approx(right)
    assert found["auc"] == pytest.approx(np.mean([found[f"auc_{name}"] for name in LABELS]))


def test_the_odds_are_those_of_the_counts(run, tiny_dataset):
    """Balanced: each of six strata has a sixth of the batch, so 1/6 are without hemorrhage, instead of 68 of 138."""
    about = model_file.read_about(run / "export")
    assert about.calibration.names == about.odds.names == LABELS
    np.testing.assert_array_equal(about.calibration.shift, 0)
    assert about.odds.natural[0] == pytest.approx(68 / 138)
    assert about.odds.drawn[0] == pytest.approx(1 / 6, abs=0.03)
    assert about.fingerprint == result_of(run)["fingerprint"]


def test_a_finished_run_is_scored_again_and_goes_on_with_more_epochs(tiny_dataset, run, tmp_path, capsys):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "result.json").unlink()
    assert train(tiny_dataset, copy) == 0
    assert result_of(copy) == result_of(run)
    assert "epoch 2/2:" not in capsys.readouterr().out
    assert train(tiny_dataset, copy, epochs=3) == 0
    assert [row["epoch"] for row in RunDir(copy).read_history()] == [1, 2, 3]
    assert "epochs: 3\n" in (copy / "config.yaml").read_text()


def test_the_same_command_gives_the_same_bytes(tiny_dataset, run, tmp_path):
    assert train(tiny_dataset, tmp_path / "again") == 0
    for name in ("history.csv", "result.json", "config.yaml", "inputs.png", "checkpoints/step-000000006.npz"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes(), name


def test_what_a_user_reads(tiny_dataset, tmp_path, capsys):
    assert train(tiny_dataset, tmp_path / "run") == 0
    out = capsys.readouterr().out
    after = out[out.index("data set") :].splitlines()
    starts = ["data set", "run ", "devices: default, 1 of 1 replicas here, float32", "cnn: 2,370 parameters; 3 steps"]
    starts += [
        "epoch 1/2: loss ",
        "epoch 2/2: loss ",
        "best epoch ",
        "held-out result, split test, 60 slices",
        "model ",
    ]
    told = [line for line in after if any(line.startswith(start) for start in starts)]
    assert [next(start for start in starts if line.startswith(start)) for line in told] == starts
    assert "\x1b" not in out  # no terminal


def test_unlabelled_slices_are_not_trained_on_and_that_is_said(tiny_dataset, tmp_path, capsys, monkeypatch):
    real = dataset.Dataset.split

    def split(self, name, stream=False):
        """Ten slices of the stratum `none` are without labels."""
        found = real(self, name, stream)
        unknown = np.flatnonzero(found.stratum == found.spec.labels.strata.index("none"))[:10]
        stratum, labels = found.stratum.copy(), found.labels.copy()
        stratum[unknown], labels[unknown] = found.spec.labels.strata.index("unlabelled"), -1
        return dataclasses.replace(found, stratum=stratum, labels=labels)

    monkeypatch.setattr(dataset.Dataset, "split", split)
    assert train(tiny_dataset, tmp_path, sampling="natural", steps_per_epoch=0, epochs=1) == 0
    assert "10 slices of split train have no label and are not trained on" in capsys.readouterr().out
    assert RunDir(tmp_path).read_history()[0]["step"] == 8  # 128 slices in batches of 16


# TensorFlow's errors


def raised(tiny_dataset, tmp_path, monkeypatch, error: Exception) -> int:
    monkeypatch.setattr(session.Loop, "fit", lambda self: (_ for _ in ()).throw(error))
    return train(tiny_dataset, tmp_path)


GRAPH = """Graph execution error:

Detected at node cnn/conv_1/convolution defined at (most recent call last):
<stack traces unavailable>
Out of memory while trying to allocate 17179869184 bytes.
\t [[{{node cnn/conv_1/convolution}}]]"""


def test_no_memory_is_one_line(tiny_dataset, tmp_path, monkeypatch, capsys):
    error = tf.errors.ResourceExhaustedError(None, None, GRAPH)
    assert raised(tiny_dataset, tmp_path, monkeypatch, error) == 1
    line = one_line(capsys)
    assert "no memory left (Out of memory while trying to allocate 17179869184 bytes.)" in line
    assert line.endswith("lower batch_size or raise accumulate")


def test_an_error_that_is_ours_keeps_its_traceback(tiny_dataset, tmp_path, monkeypatch):
    with pytest.raises(tf.errors.InternalError):
        raised(tiny_dataset, tmp_path, monkeypatch, tf.errors.InternalError(None, None, "a bug"))


def test_the_failure_under_way_is_told_and_not_that_of_closing_the_logs(tiny_dataset, tmp_path, monkeypatch, capsys):
    def close(self):
        raise TrainingFailed("cannot write TensorBoard logs")

    monkeypatch.setattr(session.Scalars, "close", close)
    assert raised(tiny_dataset, tmp_path, monkeypatch, TrainingFailed("the real one")) == 1
    assert one_line(capsys) == "train: the real one"
    monkeypatch.undo()
    monkeypatch.setattr(session.Scalars, "close", close)
    assert train(tiny_dataset, tmp_path) == 1
    assert one_line(capsys) == "train: cannot write TensorBoard logs"


def test_ctrl_c_twice_is_one_line(tiny_dataset, tmp_path, monkeypatch, capsys):
    assert raised(tiny_dataset, tmp_path, monkeypatch, KeyboardInterrupt()) == 130
    assert one_line(capsys) == "train: interrupted; what was saved stays, the same command goes on"


@pytest.mark.long
def test_slices_changed_in_the_compiled_step_train_the_same_model(tiny_dataset, tmp_path):
    """But for a grey level in some pixels; and a run that was begun on a host goes on on a device."""
    recipe = {"flip": True, "rotate_deg": 15, "shift": 0.1, "scale": 0.1, "crop": 0.1, "contrast": 0.2}
    recipe |= {"brightness": 0.1, "erase": 0.3, "accumulate": 2}
    host, device, both = (tmp_path / name for name in ("host", "device", "both"))
    assert train(tiny_dataset, host, **recipe, augment_on="host") == 0
    assert train(tiny_dataset, device, **recipe, augment_on="device") == 0
    assert train(tiny_dataset, both, **recipe, augment_on="host", epochs=1) == 0
    assert train(tiny_dataset, both, **recipe, augment_on="device") == 0
    wanted = RunDir(host).read_history()
    for folder in (device, both):
        found = RunDir(folder).read_history()
        for name in ("loss", "val_log_loss"):
            assert [row[name] for row in found] == pytest.approx([row[name] for row in wanted], rel=1e-3)
        assert (folder / "inputs.png").read_bytes() == (host / "inputs.png").read_bytes()


def test_a_cosine_run_with_augmentation_warm_up_and_all_the_rest(tiny_dataset, tmp_path):
    """Every setting off its default at once."""
    settings = {
        "sampling": "explicit", "proportions": {"none": 2, "subdural": 1, "epidural": 1}, "flip": True,
        "rotate_deg": 15, "shift": 0.1, "scale": 0.1, "crop": 0.1, "contrast": 0.1, "brightness": 0.1, "erase": 0.2,
        "augment_on": "device", "optimizer": "adamw", "schedule": "cosine", "warmup_epochs": 0.5,
        "weight_decay": 0.01, "clip_norm": 1, "accumulate": 2, "ema": 0.9, "any_weight": 3, "label_smoothing": 0.1,
        "focal_gamma": 2, "monitor": "auc_any", "patience": 5, "eval_batch_size": 7, "keep": 1,
        "precision": "mixed_bfloat16", "architecture.dropout": 0.5,
    }  # fmt: skip
    assert train(tiny_dataset, tmp_path, **settings) == 0
    rates = [entry["learning_rate"] for entry in log_of(tmp_path) if "loss_scale" in entry]
    assert rates[0] < rates[1] > rates[-1]
    exported = keras.models.load_model(tmp_path / "export" / "model.keras")
    assert {variable.dtype for variable in exported.trainable_variables} == {"float32"}
    assert {layer.compute_dtype for layer in exported.layers} == {"float32"}
    best = result_of(tmp_path)["best"]
    assert best["value"] == RunDir(tmp_path).read_history()[int(best["epoch"]) - 1]["val_auc_any"]
    assert checkpoints.load(tmp_path / "checkpoints" / "step-000000006.npz").state["run"]["step"] == 6
