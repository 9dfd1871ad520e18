"""First weights from files of other heads and stems: what is taken, what begins anew, what is refused.

`small` puts a network of two convolutions in the place of Keras's ResNet50, `other` another one in that of VGG16.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest

from trainer.models import networks
from trainer.models.backbones import backbone, repeated
from trainer.shell.problems import WrongUse

SIDE = 32


def small_application(include_top: bool, weights: None, input_shape: tuple[int, ...]) -> keras.Model:
    start = keras.Input(input_shape)
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="first")(start)
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(5, 1)(x))
    x = keras.layers.Dropout(0.1)(x)
    return keras.Model(start, keras.layers.Activation("relu")(x))


def other_application(include_top: bool, weights: None, input_shape: tuple[int, ...]) -> keras.Model:
    start = keras.Input(input_shape)
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="first")(start)
    return keras.Model(start, keras.layers.Conv2D(6, 1, name="second")(x))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(keras.applications, "ResNet50", small_application)
    monkeypatch.setattr(keras.applications, "VGG16", other_application)


def build(windows: int, labels: int, stem: str, weights: str = "none", name: str = "resnet50", **architecture):
    """A model, and what was told of its weights."""
    told: list[str] = []
    return networks.build(name, (SIDE, SIDE, windows), labels, weights, architecture, stem, told.append), told


@pytest.fixture(params=["keras", "weights.h5"])
def file(request, tmp_path):
    """A function that trains a model, as it were, and saves it: file(windows, labels, stem) -> path, model."""

    def make(windows: int, labels: int, stem: str, name: str = "resnet50", **architecture):
        model, _ = build(windows, labels, stem, name=name, **architecture)
        rng = np.random.default_rng(0)
        model.set_weights([rng.normal(size=values.shape) for values in model.get_weights()])
        path = tmp_path / f"m.{request.param}"
        model.save(path) if request.param == "keras" else model.save_weights(path)
        return str(path), model

    return make


def inner(model: keras.Model) -> list[np.ndarray]:
    return backbone(model).get_weights()


# windows, labels and stem of the file, those of the run, what is taken, what begins anew, and what is left aside
TAKEN = [
    ((3, 6, "adapter"), (3, 4, "adapter"), "resnet50", "logits", ""),
    ((3, 6, "adapter"), (5, 6, "adapter"), "resnet50, logits", "windows_to_rgb", ""),
    ((5, 6, "adapter"), (3, 6, "adapter"), "resnet50, logits", "nothing", "windows_to_rgb"),
    ((5, 2, "adapter"), (1, 3, "adapter"), "resnet50", "windows_to_rgb, logits", ""),
    ((5, 2, "adapter"), (5, 3, "adapter"), "windows_to_rgb, resnet50", "logits", ""),
    (
        (3, 6, "adapter"),
        (9, 6, "repeat"),
        "resnet50 (first kernels of 3 channels repeated for 9), logits",
        "nothing",
        "",
    ),
    ((9, 6, "repeat"), (5, 1, "repeat"), "resnet50 (first kernels of 9 channels repeated for 5)", "logits", ""),
    (
        (5, 6, "repeat"),
        (3, 6, "repeat"),
        "resnet50 (first kernels of 5 channels repeated for 3), logits",
        "nothing",
        "",
    ),
    ((5, 6, "repeat"), (5, 2, "repeat"), "resnet50", "logits", ""),
]


@pytest.mark.slow
@pytest.mark.parametrize(("theirs", "ours", "taken", "anew", "left"), TAKEN, ids=str)
def test_what_is_taken_of_another_head_or_stem(file, theirs, ours, taken, anew, left):
    path, source = file(*theirs, dropout=0.2)
    model, [line] = build(*ours, path)
    assert line == (
        f"weights {path}: it is of {theirs[0]} channels and {theirs[1]} labels, here {ours[0]} and {ours[1]}; taken: "
        f"{taken}; begins anew: {anew}{f'; left aside: {left}' if left else ''}"
    )
    first, *rest = inner(model)
    their_first, *their_rest = inner(source)
    np.testing.assert_array_equal(first, repeated(their_first, first.shape[2]) if "repeated" in taken else their_first)
    for one, other in zip(rest, their_rest, strict=True):
        np.testing.assert_array_equal(one, other)
    for name in {"windows_to_rgb", "logits"} & set(taken.split(", ")):
        np.testing.assert_array_equal(model.get_layer(name).get_weights()[0], source.get_layer(name).get_weights()[0])
    if "windows_to_rgb" in anew:
        np.testing.assert_array_equal(model.get_layer("windows_to_rgb").kernel, networks.rgb_kernel(ours[0]))


@pytest.mark.slow
def test_a_file_of_the_same_ends_is_taken_whole(file):
    path, source = file(5, 6, "repeat")
    model, told = build(5, 6, "repeat", path)
    assert told == [f"weights {path}: all of resnet50_classifier"]
    for one, other in zip(model.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_other_labels_of_the_cnn(file):
    path, source = file(3, 6, "adapter", name="cnn", filters=[2], dense=[4])
    model, [line] = build(3, 2, "adapter", path, name="cnn", filters=[2], dense=[4])
    assert line.endswith("it is of 3 channels and 6 labels, here 3 and 2; taken: conv_1, dense_1; begins anew: logits")
    np.testing.assert_array_equal(model.get_layer("dense_1").kernel, source.get_layer("dense_1").kernel)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("theirs", "ours", "words"),
    [
        ((5, 6, "repeat"), (5, 6, "adapter"), "its stem is repeat, and that of this run adapter; set stem=repeat"),
        ((9, 6, "adapter"), (5, 2, "repeat"), "its stem is adapter, and that of this run repeat; set stem=adapter"),
        ((5, 6, "repeat"), (3, 6, "adapter"), "its stem is repeat"),
    ],
)
def test_another_stem_is_one_line(file, theirs, ours, words):
    path, _ = file(*theirs)
    with pytest.raises(WrongUse) as error:
        build(*ours, path)
    assert words in str(error.value)
    assert path in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("windows", [3, 5])
@pytest.mark.parametrize("labels", [6, 2])
@pytest.mark.parametrize("names", [("resnet50", "vgg16"), ("vgg16", "resnet50"), ("cnn", "vgg16"), ("vgg16", "cnn")])
def test_another_backbone_is_one_line(file, names, labels, windows):
    path, _ = file(3, 6, "adapter", name=names[0])
    with pytest.raises(WrongUse) as error:
        build(windows, labels, "adapter", path, name=names[1])
    assert f"another architecture than {names[1]}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("windows", "stem", "words"),
    [
        (3, "adapter", "all of resnet50; begins anew: logits"),
        (5, "adapter", "all of resnet50; begins anew: windows_to_rgb, logits"),
        (6, "repeat", "all of resnet50 (first kernels of 3 channels repeated for 6); begins anew: logits"),
    ],
)
def test_an_application_as_keras_publishes_it(tmp_path, windows, stem, words):
    published = small_application(False, None, (SIDE, SIDE, 3))
    published.save(tmp_path / "notop.h5")
    model, [line] = build(windows, 6, stem, str(tmp_path / "notop.h5"))
    assert line == f"weights {tmp_path}/notop.h5: {words}"
    first, *rest = published.get_weights()
    np.testing.assert_array_equal(inner(model)[0], repeated(first, 6) if windows == 6 else first)
    for one, other in zip(inner(model)[1:], rest, strict=True):
        np.testing.assert_array_equal(one, other)
