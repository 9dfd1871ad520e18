"""Maps beside hand-worked ones, and the lesion that was planted beside the place where the map puts its mass.

The applications have random weights here, and their logits are fitted to the places of lesions by ridge regression on
the features of the last convolution: quick, exact, and the map, which knows nothing of it, has to find the places.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import pytest
import sklearn.linear_model
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.models import explain, networks
from trainer.shell.problems import WrongUse

pytestmark = pytest.mark.slow  # builds large networks

METHODS = sorted(explain.METHODS)
EDGE = 4  # px on a side of the hand-worked models


def with_discs(images: np.ndarray, centres: np.ndarray, rows: np.ndarray, radius: int) -> np.ndarray:
    """`images` [n, s, s, w] with a bright disc on those of `rows`; a box for each image: top, left, bottom, right."""
    down, right = np.mgrid[: images.shape[1], : images.shape[2]] + 0.5
    for row in rows:
        images[row, (down - centres[row, 0]) ** 2 + (right - centres[row, 1]) ** 2 < radius**2] += 140
    return np.c_[centres - radius, centres + radius]


def shares(maps: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """How much of the mass of each map lies in its box."""
    inside = [part[top:bottom, left:right].sum() for part, (top, left, bottom, right) in zip(maps, boxes)]
    return np.array(inside) / maps.sum((1, 2))


def tops_in(maps: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether the greatest value of each map lies in its box."""
    places = np.array([np.unravel_index(part.argmax(), part.shape) for part in maps])
    return ((places >= boxes[:, :2]) & (places < boxes[:, 2:])).all(axis=1)


def centres_of(maps: np.ndarray) -> np.ndarray:
    """Row and column of the centre of mass of each map, in px from the top left corner."""
    mass, steps = maps.sum((1, 2)), np.arange(maps.shape[1]) + 0.5
    return np.c_[maps.sum(2) @ steps / mass, maps.sum(1) @ steps / mass]


def assert_are_maps(maps: np.ndarray, shape: tuple[int, ...]) -> None:
    assert maps.dtype == np.float32
    assert maps.shape == shape
    assert maps.min() >= 0
    tops = maps.max((1, 2))
    assert np.all((tops == 1) | (tops == 0))


# The cnn: a disc in the left half is a lesion, one in the right half is none, and every slice has that one


def halves(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """32 px slices, int [n, 2] labels (no lesion, lesion), boxes of the lesion (where it would be) and of the decoy."""
    rng, radius = np.random.default_rng(seed), 5
    images = rng.normal(40, 8, (count, 32, 32, 1))
    has_lesion = np.arange(count) % 2
    down = rng.integers(radius, 32 - radius, (2, count))
    across = rng.integers(radius, 16 - radius + 1, (2, count))
    lesion = with_discs(images, np.c_[down[0], across[0]], np.flatnonzero(has_lesion), radius)
    decoy = with_discs(images, np.c_[down[1], 16 + across[1]], np.arange(count), radius)
    return np.clip(images, 0, 255).astype(np.uint8), np.c_[1 - has_lesion, has_lesion], lesion, decoy


@pytest.fixture(scope="module")
def cnn() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = networks.build("cnn", (32, 32, 1), 2, "none", {"filters": [8, 16], "dense": [32]})
    images, labels, _, _ = halves(256, seed=1)
    model.compile(keras.optimizers.Adam(2e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit(images, labels.astype(np.float32), batch_size=32, epochs=8, verbose=0)
    return model


def test_the_cnn_is_heard_in_the_lesion_and_not_in_the_decoy(cnn):
    images, labels, lesion, decoy = halves(64, seed=2)
    positive = labels[:, 1] == 1
    assert np.array_equal(cnn.predict(images, verbose=0)[:, 1] > 0, positive)
    maps = explain.explainer(cnn)(images, 1)[positive]
    assert_are_maps(maps, (32, 32, 32))
    assert shares(maps, lesion[positive]).min() > 0.5
    assert shares(maps, decoy[positive]).max() < 0.05
    assert tops_in(maps, lesion[positive]).all()


def test_grad_cam_of_the_cnn_cannot_tell_the_decoy_which_is_why_it_is_not_the_default(cnn):
    images, labels, lesion, decoy = halves(64, seed=2)
    positive = labels[:, 1] == 1
    maps = explain.explainer(cnn, "gradcam")(images, 1)[positive]
    assert shares(maps, decoy[positive]) == pytest.approx(shares(maps, lesion[positive]), rel=0.1)
    assert explain.DEFAULT == "hirescam"


def test_a_saved_and_a_frozen_model_give_the_same_maps(cnn, tmp_path: Path):
    images = halves(4, seed=3)[0]
    expected = explain.explainer(cnn)(images, 1)
    cnn.save(tmp_path / "model.keras")
    opened = keras.models.load_model(tmp_path / "model.keras")
    opened.trainable = False
    np.testing.assert_allclose(explain.explainer(opened)(images, 1), expected, atol=1e-6)


def test_a_map_does_not_depend_on_the_slices_beside_it(cnn):
    images = halves(5, seed=4)[0]
    explained = explain.explainer(cnn)
    together = explained(images, 0)
    for number in range(5):
        np.testing.assert_allclose(explained(images[number : number + 1], 0)[0], together[number], atol=1e-5)


def test_it_compiles_once_for_all_labels_and_numbers_of_slices(cnn, monkeypatch):
    calls = []
    method = explain.METHODS["hirescam"]
    monkeypatch.setitem(explain.METHODS, "hirescam", lambda *parts: calls.append(1) or method(*parts))
    explained = explain.explainer(cnn)
    for count, label in ((1, 0), (3, 0), (3, 1), (2, np.int64(1))):
        assert explained(halves(count, seed=5)[0], label).shape == (count, 32, 32)
    assert len(calls) == 1


# The applications: the logits are a ridge regression on the places of lesions


def discs(count: int, size: int, windows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Slices with one lesion each and its box."""
    rng, radius = np.random.default_rng(seed), size * 3 // 16
    images = rng.normal(40, 8, (count, size, size, windows))
    centres = rng.integers(radius, size - radius + 1, (count, 2))
    boxes = with_discs(images, centres, np.arange(count), radius)
    return np.clip(images, 0, 255).astype(np.uint8), boxes


def fit_logits(model: keras.Model, images: np.ndarray, boxes: np.ndarray) -> None:
    """Label 0 speaks where lesions are, label 1 where they are not."""
    features = np.asarray(keras.Model(model.input, model.get_layer("mean").input)(images), np.float64)
    edges = np.linspace(0, images.shape[1], features.shape[1] + 1)
    covered = np.diff(np.clip(edges, boxes[:, :2, None], boxes[:, 2:, None])) / edges[1]
    place = (covered[:, 0, :, None] * covered[:, 1, None, :]).ravel()
    scale = features.std()
    ridge = sklearn.linear_model.Ridge(alpha=0.05, fit_intercept=False)
    ridge.fit(features.reshape(len(place), -1) / scale, np.c_[place - 0.25, 0.25 - place])
    model.get_layer("logits").set_weights([ridge.coef_.T / scale, np.zeros(2)])


@pytest.mark.parametrize(("name", "windows"), [("densenet121", 1), ("xception", 3)])
def test_an_application_is_heard_in_the_lesion(name, windows):
    """One window passes the adapter to RGB. A box of 48 px is a seventh of the image; a cell of the map has 32 px."""
    keras.utils.set_random_seed(0)
    model = networks.build(name, (128, 128, windows), 2, "none", {})
    fit_logits(model, *discs(16, 128, windows, seed=1))
    images, boxes = discs(8, 128, windows, seed=2)
    explained = explain.explainer(model)
    maps = explained(images, 0)
    assert_are_maps(maps, (8, 128, 128))
    assert shares(maps, boxes).mean() > 0.55
    assert shares(maps, boxes).min() > 0.45
    assert np.abs(centres_of(maps) - (boxes[:, :2] + boxes[:, 2:]) / 2).max() < 16  # half a cell
    assert shares(explained(images, 1), boxes).max() < 0.1


def tiny_application(include_top: bool, weights: None, input_shape: tuple[int, ...]) -> keras.Model:
    start = keras.Input(input_shape)
    x = keras.layers.Conv2D(4, 8, strides=8, activation="relu", kernel_initializer="ones")(start)
    return keras.Model(start, x)


def test_the_map_of_an_image_that_the_model_resizes_has_the_size_of_the_image(monkeypatch):
    monkeypatch.setattr(keras.applications, "DenseNet121", tiny_application)
    model = networks.build("densenet121", (16, 16, 2), 1, "none", {"dropout": 0.5})
    model.get_layer("logits").set_weights([np.ones((4, 1)), np.zeros(1)])
    image = np.zeros((1, 16, 16, 2), np.uint8)
    image[0, 12:, :4] = 255
    found = explain.explainer(model)(image, 0)
    assert_are_maps(found, (1, 16, 16))
    assert shares(found, np.array([[10, 0, 16, 6]])) > 0.9


# Models whose maps can be worked out by hand


def assembled(
    head: Sequence[keras.layers.Layer], kernel: Sequence[float], strides: int = 1, edge: int = EDGE
) -> keras.Model:
    """uint8 [n, edge, edge, 1] / 255 -> 1x1 convolution with ReLU, one filter for each of `kernel` -> `head`."""
    images = keras.Input((edge, edge, 1), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.Conv2D(len(kernel), 1, strides=strides, activation="relu", use_bias=False, name="conv")(x)
    for layer in head:
        x = layer(x)
    model = keras.Model(images, x)
    model.get_layer("conv").set_weights([np.reshape(kernel, (1, 1, 1, -1))])
    return model


def drawn_images(seed: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, EDGE, EDGE, 1), np.uint8)


def by_hand(activation: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Maps of one logit that is the sum of activation [n, h, w, c] * weights [h, w, c]; plain loops."""
    maps = np.zeros(activation.shape[:3])
    for slice_, row, column in np.ndindex(maps.shape):
        total = sum(a * g for a, g in zip(activation[slice_, row, column], weights[row, column]))
        maps[slice_, row, column] = max(total, 0.0)
    tops = maps.max((1, 2), keepdims=True)
    return np.divide(maps, tops, out=np.zeros_like(maps), where=tops > 0)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(METHODS), st.integers(0, 1))
def test_maps_of_a_dense_head_are_the_worked_ones(seed, method, label):
    model = assembled([keras.layers.Flatten(), keras.layers.Dense(2, name="logits")], [1.0, 0.5, 2.0])
    images, weights = drawn_images(seed), np.random.default_rng(seed).normal(size=(EDGE, EDGE, 3, 2))
    model.get_layer("logits").set_weights([weights.reshape(-1, 2), np.ones(2)])
    weights = weights[..., label]
    if method == "gradcam":
        weights = np.broadcast_to(weights.mean((0, 1)), weights.shape)
    expected = by_hand(images / 255 * [1.0, 0.5, 2.0], weights)
    np.testing.assert_allclose(explain.explainer(model, method)(images, label), expected, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_maps_of_a_mean_are_the_worked_ones(method):
    model = assembled([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2, name="logits")], [1.0, -1.0])
    model.get_layer("logits").set_weights([np.array([[2.0, -2.0], [0.0, 0.0]]), np.zeros(2)])
    images = drawn_images(0)
    explained = explain.explainer(model, method)
    np.testing.assert_allclose(explained(images, 0), by_hand(images / 255, np.ones((EDGE, EDGE, 1))), atol=1e-6)
    assert not explained(images, 1).any()  # nothing speaks for it, and 0 / 0 is nowhere
    assert not explained(np.zeros_like(images), 0).any()


def test_poolings_belong_to_the_head_and_give_the_slope_to_their_maximum():
    head = [keras.layers.MaxPooling2D(2), keras.layers.Flatten(), keras.layers.Dense(1, name="logits")]
    model = assembled(head, [1.0])
    model.get_layer("logits").set_weights([np.array([[1.0], [2.0], [-1.0], [0.0]]), np.zeros(1)])
    image = np.zeros((1, EDGE, EDGE, 1), np.uint8)
    image[0, :, :, 0] = [[200, 10, 10, 10], [10, 10, 10, 50], [10, 90, 10, 10], [10, 10, 80, 10]]
    expected = np.zeros((EDGE, EDGE))
    expected[0, 0], expected[1, 3] = 1, 0.5  # 200 * 1 and 50 * 2; 90 speaks against, 80 is not heard
    np.testing.assert_allclose(explain.explainer(model)(image, 0)[0], expected, atol=1e-6)


def test_a_coarse_map_is_enlarged_linearly_between_the_middles_of_its_cells():
    model = assembled([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1, name="logits")], [1.0], strides=2)
    model.get_layer("logits").set_weights([np.ones((1, 1)), np.zeros(1)])
    image = np.zeros((1, EDGE, EDGE, 1), np.uint8)
    image[0, 0, 2] = 255  # the cell at the top right
    across, down = np.array([0, 0.25, 0.75, 1]), np.array([1, 0.75, 0.25, 0])
    np.testing.assert_allclose(explain.explainer(model)(image, 0)[0], down[:, None] * across, atol=1e-6)


@pytest.mark.parametrize(("edge", "side"), [(31, 1), (32, 3), (64, 5)])
def test_a_fine_map_is_settled_among_neighbours_before_the_negative_goes(edge, side):
    model = assembled([keras.layers.Flatten(), keras.layers.Dense(1, name="logits")], [1.0], edge=edge)
    rng = np.random.default_rng(edge)
    weights, images = rng.normal(size=(edge, edge)), rng.integers(0, 256, (2, edge, edge, 1), np.uint8)
    model.get_layer("logits").set_weights([weights.reshape(-1, 1), np.zeros(1)])
    signed = images[..., 0] / 255 * weights
    for _ in range(2):
        wide = np.pad(signed, ((0, 0), *[(side // 2, side // 2)] * 2), constant_values=np.nan)
        signed = np.nanmean(np.lib.stride_tricks.sliding_window_view(wide, (side, side), (1, 2)), axis=(3, 4))
    expected = np.maximum(signed, 0) / signed.max((1, 2), keepdims=True)
    np.testing.assert_allclose(explain.explainer(model)(images, 0), expected, atol=1e-4)


# Other models


@pytest.mark.parametrize(("size", "windows"), [(8, 1), (9, 3), (33, 4)])
def test_the_map_has_the_size_of_the_image(size, windows):
    model = networks.build("cnn", (size, size, windows), 6, "none", {"filters": [4, 4], "dense": [8]})
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, windows), np.uint8)
    assert_are_maps(explain.explainer(model)(images, 5), (2, size, size))


def test_maps_of_a_model_in_mixed_precision_are_near_those_in_float32():
    images, found = halves(2, seed=6)[0], []
    try:
        for policy in ("float32", "mixed_bfloat16"):
            keras.config.set_dtype_policy(policy)
            keras.utils.set_random_seed(1)
            found.append(explain.explainer(networks.build("cnn", (32, 32, 1), 2, "none", {"filters": [4]}))(images, 0))
    finally:
        keras.config.set_dtype_policy("float32")
    assert_are_maps(found[1], (2, 32, 32))
    assert np.abs(found[1] - found[0]).mean() < 0.02


def test_an_unknown_method_is_refused_with_the_nearest_name(cnn):
    with pytest.raises(WrongUse, match=r"method 'grad-cam' .* did you mean 'gradcam'"):
        explain.explainer(cnn, "grad-cam")


@pytest.mark.parametrize("layers", [[], [keras.layers.Rescaling(1 / 255)]])
def test_a_model_without_a_convolution_is_refused(layers):
    images = keras.Input((8, 8, 1), dtype="uint8")
    x = images
    for layer in layers:
        x = layer(x)
    model = keras.Model(images, keras.layers.Dense(1)(keras.layers.Flatten()(x)), name="flat")
    with pytest.raises(WrongUse, match="model flat has no convolution"):
        explain.explainer(model)
