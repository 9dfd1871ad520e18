"""The table of networks: each is built, with weights of known names; scaling and files are Keras's; first kernels."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.models import backbones, explain, networks
from trainer.models.applications import APPLICATIONS, CAFFE
from trainer.shell.problems import WrongUse
from trainer.training import hparams

DOCS = Path(__file__).parents[3] / "docs" / "models.md"
OF_ITS_KIND = ("vgg16", "mobilenetv3small", "efficientnetv2b0")  # quick ones; bench_backbones.py has them all
COUNTED = re.compile(r"(conv2d|batch_normalization|layer_normalization|variable)(_\d+)?(/|$)")


def images(size: int, windows: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, size, size, windows), np.uint8)


def told(name: str) -> dict[str, str]:
    """The row of a network in docs/models.md, by the names of the columns."""
    head, *rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in DOCS.read_text(encoding="utf-8").splitlines()
        if line.startswith(("| `--model`", "| `"))
    ]
    return next(dict(zip(head, row)) for row in rows if row[0] == name)


# the table


def test_names_are_those_of_keras_and_every_one_is_a_model():
    assert all(name == row.function.lower() for name, row in APPLICATIONS.items())
    assert {"cnn", *APPLICATIONS, hparams.SERIES} == set(hparams.MODELS)
    assert set(networks.BUILDERS) == {"cnn", *APPLICATIONS}


@pytest.mark.parametrize("name", APPLICATIONS)
def test_the_weights_file_is_one_that_keras_knows(name):
    """Address and digest as they stand in its source; `of_keras` and bench_backbones.py see it ask for them."""
    row = APPLICATIONS[name]
    function = getattr(keras.applications, row.function)
    source = inspect.getsource(sys.modules[function.__module__])
    if function.__module__.endswith("resnet_v2"):
        source += inspect.getsource(sys.modules["keras.src.applications.resnet"])
    assert row.digest in source
    assert row.digest or "file_hash" not in source
    assert f"{row.weights.split('/')[0]}/" in source
    assert row.weights_url.startswith("https://storage.googleapis.com/tensorflow/keras-applications/")


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_each_network_is_built_and_told(name, monkeypatch):
    """With 3, 1 and 9 windows around one application, built and laid out once, for that is what takes its time."""
    part = backbones.make(name, (128, 128, 3))
    known = keras.KerasTensor(part.output_shape, part.output.dtype)
    monkeypatch.setattr(part, "compute_output_spec", lambda *_, **__: known)
    monkeypatch.setattr(backbones, "make", lambda *_: part)
    for windows in (3, 1, 9):
        model = networks.build(name, (128, 128, windows), 6, "none", {"dropout": 0.1})
        assert (model.input_shape, model.output_shape) == ((None, 128, 128, windows), (None, 6))
        assert backbones.backbone(model) is part
    paths = [weight.path for weight in part.weights]
    assert len(set(paths)) == len(paths)
    assert not any(map(COUNTED.match, (part for path in paths for part in path.split("/"))))
    assert backbones.first_kernel(part).shape[2] == 3
    normed = any(isinstance(layer, keras.layers.BatchNormalization) for layer in part.layers)
    facts = {"parameters": f"{part.count_params():,}", "batch norm": "yes" if normed else "no"}
    facts["smallest px"] = str(APPLICATIONS[name].smallest_px)
    assert {
        key: told(name)[key].partition(",")[0] if key == "smallest px" else told(name)[key] for key in facts
    } == facts


# beside Keras's own


@pytest.fixture(scope="module", params=OF_ITS_KIND)
def of_keras(request):
    """A network as Keras makes it for its ImageNet weights, ours with the same weights, and what Keras asked for."""
    name = request.param
    keras.utils.set_random_seed(0)
    function = getattr(keras.applications, APPLICATIONS[name].function)
    with (
        mock.patch("keras.src.utils.file_utils.get_file", return_value="") as get_file,
        mock.patch("keras.Model.load_weights"),
    ):
        own = function(include_top=False, weights="imagenet", input_shape=(64, 64, 3))
    ours = networks.build(name, (64, 64, 3), 6, "none", {})
    backbones.backbone(ours).set_weights(own.get_weights())
    return name, own, ours, get_file.call_args


@pytest.mark.slow
def test_scaling_and_file_are_those_of_keras(of_keras):
    name, own, ours, asked = of_keras
    row = APPLICATIONS[name]
    assert (asked.args[1], asked.kwargs["file_hash"]) == (row.weights_url, row.digest)
    preprocess = sys.modules[getattr(keras.applications, row.function).__module__].preprocess_input
    batch = images(64, 3)
    colours = -1 if row.scaling is CAFFE else 1  # a window has no colour: the first goes to the first channel
    wanted = own(preprocess(batch.astype(np.float32)[..., ::colours]), training=False).numpy()
    found = keras.Model(ours.input, ours.get_layer("mean").input)(batch, training=False).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.slow
def test_repeated_kernels_answer_equal_windows_as_before(of_keras, tmp_path):
    """From the file that a model of three windows has left."""
    name, _, three, _ = of_keras
    three.save_weights(tmp_path / "three.weights.h5")
    lines: list[str] = []
    nine = networks.build(name, (64, 64, 9), 6, str(tmp_path / "three.weights.h5"), {}, "repeat", lines.append)
    batch = images(64, 1)
    wanted = three(np.repeat(batch, 3, -1), training=False).numpy()
    found = nine(np.repeat(batch, 9, -1), training=False).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=2e-4 * np.abs(wanted).max())
    other = nine(np.concatenate([np.repeat(batch, 8, -1), 255 - batch], -1), training=False).numpy()
    assert np.abs(other - wanted).max() > 10 * np.abs(found - wanted).max()  # the ninth window is seen
    assert len(lines) == 1
    assert f"taken: {name} (first kernels of 3 channels repeated for 9), logits; begins anew: nothing" in lines[0]


@pytest.mark.slow
def test_a_network_that_ends_in_a_pooling_is_explained_before_it():
    """VGG: 8 x 8 places at 128 px, not 4 x 4."""
    model = networks.build("vgg16", (128, 128, 3), 2, "none", {})
    features, head = explain._split(model)
    assert features.output.shape == (None, 8, 8, 512)
    assert [layer.name for layer in head] == ["block5_pool", "mean", "logits"]
    x = features(images(128, 3))
    for layer in head:
        x = layer(x)
    np.testing.assert_allclose(x.numpy(), model(images(128, 3)).numpy(), rtol=1e-4, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv3small"])
def test_logits_stay_float32_under_a_mixed_policy(name):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = networks.build(name, (32, 32, 5), 6, "none", {}, "repeat")
    finally:
        keras.config.set_dtype_policy("float32")
    assert backbones.backbone(model).output.dtype == "bfloat16"
    logits = model(images(32, 5)).numpy()
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


# first kernels


@given(st.integers(3, 14), st.integers(3, 14), st.integers(0, 9))
def test_each_colour_weighs_what_it_weighed(before, after, seed):
    kernel = np.random.default_rng(seed).normal(size=(2, 2, before, 3)).astype(np.float32)
    found = backbones.repeated(kernel, after)
    assert (found.shape, found.dtype) == ((2, 2, after, 3), np.float32)
    for colour in range(3):
        mine = [channel for channel in range(after) if channel % 3 == colour]
        whole = sum(kernel[:, :, channel] for channel in range(before) if channel % 3 == colour)
        for channel in mine:
            np.testing.assert_allclose(found[:, :, channel], whole / len(mine), rtol=1e-5, atol=1e-6)


def test_groups_of_three_are_scaled_by_three_over_n():
    kernel = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    np.testing.assert_allclose(backbones.repeated(kernel, 9), np.tile(kernel, (1, 1, 3, 1)) * 3 / 9, rtol=1e-6)
    np.testing.assert_array_equal(backbones.repeated(kernel, 3), kernel)


# wrong use


@pytest.mark.parametrize(
    ("name", "shape", "stem", "words"),
    [
        (
            "resnet50",
            (31, 31, 3),
            "adapter",
            "model resnet50 takes images of at least 32 px, and these have 31; convert",
        ),
        ("inceptionv3", (74, 74, 3), "adapter", "model inceptionv3 takes images of at least 75 px, and these have 74"),
        ("vgg16", (64, 64, 1), "repeat", "stem repeat needs at least 3 channels, and there are 1; set stem=adapter"),
        ("densenet121", (64, 64, 2), "repeat", "stem repeat needs at least 3 channels, and there are 2"),
        ("resnet5", (64, 64, 3), "adapter", "did you mean 'resnet50'?"),
    ],
)
def test_what_a_network_does_not_take_is_one_line(name, shape, stem, words):
    with pytest.raises(WrongUse) as error:
        networks.check(name, shape, 6, {}, stem)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", APPLICATIONS)
def test_the_smallest_size_is_taken_and_two_enlarge_what_is_smaller(name):
    """Keras refuses what is smaller too."""
    smallest = APPLICATIONS[name].smallest_px
    networks.check(name, (smallest, smallest, 3), 6, {}, "adapter")
    if name in ("densenet121", "xception"):  # as their runs of before were
        networks.check(name, (16, 16, 3), 6, {}, "adapter")
        return
    with pytest.raises(WrongUse, match=f"at least {smallest} px"):
        networks.check(name, (smallest - 1, smallest - 1, 3), 6, {}, "adapter")
