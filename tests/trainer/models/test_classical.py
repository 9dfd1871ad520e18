"""Last layers of scikit-learn's making: a forest says what scikit-learn says, to the bit, and a model keeps it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier

from trainer.classical import estimators
from trainer.models import classical, networks

SIZE = (16, 16, 3)


def grown(seed: int, dim: int, slices: int, trees: int, depth: int, labels: int) -> list[RandomForestClassifier]:
    rng = np.random.default_rng(seed)
    vectors = coarse(rng, slices, dim).astype(np.float32)
    truth = rng.random((slices, labels)) < 0.3
    truth[:2] = [[True] * labels, [False] * labels]
    return [
        RandomForestClassifier(trees, max_depth=depth, random_state=seed, n_jobs=1).fit(vectors, truth[:, at])
        for at in range(labels)
    ]


def coarse(rng: np.random.Generator, slices: int, dim: int) -> np.ndarray:
    """float16, many of them equal: so that vectors lie on the very thresholds and beside them."""
    return (rng.integers(-4, 5, (slices, dim)) / 3).astype(np.float16)


def layer_of(forests: list[RandomForestClassifier], dim: int) -> classical.Forest:
    trees = [tree.tree_ for one in forests for tree in one.estimators_]
    return classical.forest(estimators._flat(trees), len(forests), dim)


def walked(tree, vector: np.ndarray) -> float:
    """What a tree says of one vector, node by node."""
    node = 0
    while tree.children_left[node] >= 0:
        above = float(vector[tree.feature[node]]) > tree.threshold[node]
        node = (tree.children_right if above else tree.children_left)[node]
    return float(tree.value[node, 0, 1])


@pytest.mark.slow
@given(
    seed=st.integers(0, 1000), dim=st.integers(1, 6), slices=st.integers(2, 60),
    trees=st.integers(1, 7), depth=st.integers(1, 8), labels=st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=30)
def test_a_forest_says_what_scikit_learn_says(seed, dim, slices, trees, depth, labels):
    forests = grown(seed, dim, slices, trees, depth, labels)
    layer, new = layer_of(forests, dim), coarse(np.random.default_rng([seed]), 40, dim)
    shares = layer.shares(new).numpy().reshape(40, labels, trees)
    logits = layer(new).numpy().astype(np.float64)
    for at, forest in enumerate(forests):
        wanted = forest.predict_proba(new.astype(np.float32))[:, 1]
        np.testing.assert_array_equal(np.cumsum(shares[:, at], 1)[:, -1] / trees, wanted)
        np.testing.assert_allclose(1 / (1 + np.exp(-logits[:, at])) * (trees + 1) - 0.5, wanted * trees, atol=1e-5)
    each = [[walked(tree.tree_, one) for one in new] for forest in forests for tree in forest.estimators_]
    np.testing.assert_array_equal(layer.shares(new).numpy().T, each)


def test_the_order_of_slices_is_that_of_scikit_learn():
    (forest,) = grown(seed=1, dim=5, slices=200, trees=20, depth=8, labels=1)
    new = np.random.default_rng(2).normal(size=(300, 5)).astype(np.float16)
    shown, logits = forest.predict_proba(new.astype(np.float32))[:, 1], layer_of([forest], 5)(new).numpy()[:, 0]
    order = np.argsort(shown, kind="stable")
    assert (np.diff(logits[order]) >= 0).all()
    assert (np.diff(logits[order]) > 0).sum() == (np.diff(shown[order]) > 1e-9).sum()


def test_a_forest_of_one_mind_is_finite():
    sure = RandomForestClassifier(4, random_state=0).fit(np.array([[0.0], [1.0]] * 20), np.array([False, True] * 20))
    logits = layer_of([sure], 1)(np.array([[0], [1]], np.float16)).numpy()[:, 0]
    np.testing.assert_allclose(logits, [-np.log(9), np.log(9)], rtol=1e-6)  # 0.5 and 4.5 of 5


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (0.5, np.float32(0.5)),
        (0.1, np.nextafter(np.float32(0.1), np.float32(-1))),  # float32(0.1) is above 0.1
        (-0.1, np.float32(-0.1)),  # and float32(-0.1) below -0.1
        (1.0 + 2**-30, np.float32(1)),
        (-1.0 - 2**-30, np.nextafter(np.float32(-1), np.float32(-2))),
    ],
)
def test_thresholds_are_rounded_down(value, wanted):
    (found,) = estimators._rounded_down(np.array([value]))
    assert (found, found.dtype) == (wanted, np.float32)
    assert float(found) <= value < float(np.nextafter(found, np.float32(np.inf)))


@pytest.mark.parametrize("kind", ["forest", "linear"])
def test_a_model_with_another_last_layer_is_saved_whole(kind, tmp_path):
    model = networks.build("cnn", SIZE, 2, "none", {"filters": [4], "dense": [8], "dropout": 0.5})
    rng = np.random.default_rng(0)
    last = classical.linear(rng.normal(size=(8, 2)), np.array([1.0, -1.0]))
    if kind == "forest":
        last = layer_of(grown(seed=0, dim=8, slices=80, trees=5, depth=4, labels=2), 8)
    made = classical.with_last(model, last)
    made.save(tmp_path / "model.keras")
    read = keras.models.load_model(tmp_path / "model.keras", {"Forest": classical.Forest}, compile=False)
    images = rng.integers(0, 256, (9, *SIZE), np.uint8)
    vectors = keras.Model(model.input, model.layers[-1].input)(images).numpy().astype(np.float16)
    np.testing.assert_array_equal(read(images).numpy(), made(images).numpy())
    np.testing.assert_allclose(made(images).numpy(), last(vectors).numpy(), atol=1e-6)
    assert (made.output.dtype, made.output.shape) == ("float32", (None, 2))
    assert made.layers[-1].input.dtype == "float16"
    assert classical.has_gradient(read) is (kind == "linear")


def test_no_trees_are_read_without_the_class_that_walks_them(tmp_path):
    """Keras refuses a class that it does not know."""
    model = networks.build("cnn", SIZE, 1, "none", {"filters": [4], "dense": [8]})
    last = layer_of(grown(seed=0, dim=8, slices=30, trees=2, depth=2, labels=1), 8)
    classical.with_last(model, last).save(tmp_path / "model.keras")
    with pytest.raises(TypeError, match="Forest"):
        keras.models.load_model(tmp_path / "model.keras", compile=False)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("child", 10**6, "its trees lead out of the forest"),
        ("root", -1, "its trees lead out of the forest"),
        ("feature", 8, "its trees lead out of the forest"),
        ("share", 1.5, "a leaf of its trees bears a share that is not from 0 to 1"),
        ("share", np.nan, "a leaf of its trees bears a share that is not from 0 to 1"),
    ],
)
def test_trees_that_lead_elsewhere_are_refused(name, value, told):
    model = networks.build("cnn", SIZE, 1, "none", {"filters": [4], "dense": [8]})
    made = classical.with_last(model, layer_of(grown(seed=0, dim=8, slices=30, trees=2, depth=2, labels=1), 8))
    classical.require_whole(model)
    classical.require_whole(made)
    kept = getattr(made.layers[-1], name)
    kept.assign(np.full(kept.shape, value, kept.dtype))
    with pytest.raises(ValueError, match=told):
        classical.require_whole(made)
