"""Runs of networks of keras.applications by the command line: trained, resumed, exported, explained; and refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from unittest import mock

import blob_dataset
import keras
import numpy as np
import pytest
import tensorflow as tf
from small_runs import one_line, train
from tiny_networks import TINY

from ich_tfrecords.spec import Window
from trainer import embed, export
from trainer.models import backbones, explain, model_file, networks
from trainer.training import checkpoints

pytestmark = pytest.mark.slow  # trains

SIZE_PX, WINDOWS = 32, 5
SHORT = {
    "weights": "none", "absent_labels": True, "learning_rate": 0.003, "steps_per_epoch": 4, "steps_per_call": 4,
    "validation_split": "", "test_split": "", "sampling": "natural", "batch_size": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def five_windows(tmp_path_factory) -> Path:
    """Slices of 32 px with five windows."""
    small = blob_dataset.small_spec()
    windows = tuple(Window(f"w{level}", level, 80) for level in (30, 40, 50, 60, 70))
    image = dataclasses.replace(small.image, size_px=SIZE_PX, windows=windows)
    made = dataclasses.replace(small, image=image)
    with mock.patch.object(blob_dataset, "small_spec", return_value=made):
        return blob_dataset.make(tmp_path_factory.mktemp("five") / "set", patients=12)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    for name, function in TINY.items():
        monkeypatch.setattr(keras.applications, name, function)


@pytest.mark.long
def test_the_whole_way(five_windows, tmp_path, capsys):
    """Of a network of layers that the thesis's lack, begun with a file of three windows.

    All of them go it whole in benchmarks/bench_backbones.py.
    """
    first = tmp_path / "three.keras"
    networks.build("convnexttiny", (SIZE_PX, SIZE_PX, 3), 6, "none", {}).save(first)
    settings = {**SHORT, "weights": str(first), "stem": "repeat", "architecture__dropout": 0.2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(five_windows, parts, model="convnexttiny", **settings, epochs=1) == 0
    told = (
        f"weights {first}: it is of 3 channels and 6 labels, here 5 and 6; taken: convnexttiny "
        "(first kernels of 3 channels repeated for 5), logits; begins anew: nothing"
    )
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("weights /")] == [told]
    assert train(five_windows, whole, model="convnexttiny", **settings, epochs=2) == 0
    assert train(five_windows, parts, model="convnexttiny", **settings, epochs=2) == 0
    one, other = (checkpoints.load(folder / "checkpoints" / "step-000000008.npz") for folder in (whole, parts))
    assert one.names == other.names
    assert [array.tobytes() for array in one.arrays] == [array.tobytes() for array in other.arrays]
    before, after = (row["loss"] for row in one.state["run"]["rows"])
    assert after < before
    assert "stem: repeat\n" in (whole / "config.yaml").read_text()
    capsys.readouterr()
    assert_others_are_refused(five_windows, whole, {**settings, "stem": "adapter", "epochs": 2}, capsys)
    assert_used(whole, five_windows, tmp_path)


def assert_others_are_refused(data: Path, run: Path, settings: dict[str, object], capsys) -> None:
    """Another stem is no resumption, and takes no weights of this one; neither does another network."""
    assert train(data, run, model="convnexttiny", **settings) == 2
    assert "stem: repeat, now adapter" in one_line(capsys)
    settings = {**settings, "weights": str(run / "export" / "model.keras")}
    assert train(data, run.parent / "other", model="convnexttiny", **settings) == 2
    assert "its stem is repeat, and that of this run adapter; set stem=repeat" in one_line(capsys)
    assert train(data, run.parent / "other", model="efficientnetv2b0", **settings) == 2
    assert "another architecture than efficientnetv2b0_classifier" in one_line(capsys)


def assert_used(run: Path, data: Path, folder: Path) -> None:
    """By all that comes after a run: pictures, vectors, the SavedModel with its card."""
    about = model_file.read_about(run / "export")
    trained = model_file.load_model(run / "export", about)
    assert backbones.backbone(trained).input_shape[-1] == WINDOWS
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE_PX, SIZE_PX, WINDOWS), np.uint8)
    maps = explain.explainer(trained)(images, 0)
    assert maps.shape == (3, SIZE_PX, SIZE_PX)
    assert np.isfinite(maps).all()
    assert embed.main(["--job_dir", str(run), "--data_dir", str(data), "--split", "test"]) == 0
    assert export.main(["--job_dir", str(run), "--output", str(folder / "saved")]) == 0
    assert "stem: repeat" in (folder / "saved" / "MODEL_CARD.md").read_text()
    signatures = tf.saved_model.load(str(folder / "saved")).signatures
    hu = np.random.default_rng(1).integers(-50, 150, (3, 50, 40), np.int16)
    seen = signatures["image"](hu=tf.constant(hu))["image"].numpy()
    assert seen.shape == (3, SIZE_PX, SIZE_PX, WINDOWS)
    said = signatures["hu"](hu=tf.constant(hu))["probabilities"].numpy()
    np.testing.assert_allclose(said, about.probabilities(model_file.scorer(trained)(seen)), atol=2e-5)


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        ("inceptionv3", {}, "model inceptionv3 takes images of at least 75 px, and these have 32; convert again"),
        ("cnn", {"stem": "repeat"}, "stem: repeat belongs to networks of keras.applications, not to cnn"),
        ("resnet50", {"stem": "repeated"}, "stem is 'repeated'; did you mean 'repeat'?"),
        ("resnet50", {}, "weights imagenet: resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5 is"),
        ("mobilenetv2", {}, "weights imagenet: mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5 is"),
    ],
)
def test_wrong_use_is_one_line(tiny_dataset, tmp_path, monkeypatch, capsys, model, settings, words):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))

    def away(*_: object, **__: object) -> None:
        raise Exception("URL fetch failure: no network")

    monkeypatch.setattr(keras.utils, "get_file", away)
    assert train(tiny_dataset, tmp_path / "run", model=model, **settings) == 2
    assert words in one_line(capsys)
    assert not list(tmp_path.rglob("*.npz"))


def test_a_run_of_before_the_stem_goes_on(tiny_dataset, tmp_path, capsys):
    """Its checkpoints know nothing of one."""
    assert train(tiny_dataset, tmp_path, epochs=1) == 0
    for path in (tmp_path / "checkpoints").glob("step-*.npz"):
        found = checkpoints.load(path)
        del found.state["identity"]["settings"]["stem"]
        checkpoints.save(path.parent, path.stem, found.arrays, found.names, found.state)
    capsys.readouterr()
    assert train(tiny_dataset, tmp_path, epochs=2) == 0
    assert "goes on from step 3" in capsys.readouterr().out
