"""The context network: order, padding and company change nothing, positions do; any length, precision, and reading."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

import keras
import numpy as np
import pytest
import tensorflow as tf
from series_splits import DIM, Rows, feed_of
from series_splits import NONE as NO_LABEL

from trainer.data import series
from trainer.data.input_pipeline import Share
from trainer.data.series_feed import INPUTS
from trainer.models import context, model_file
from trainer.series import scoring
from trainer.shell.problems import WrongUse
from trainer.training import losses

LABELS = 6
SMALL = {"gru": {"width": 16, "units": 8, "layers": 2}, "transformer": {"width": 16, "units": 12, "layers": 2}}
KINDS = pytest.mark.parametrize("kind", sorted(SMALL))


@pytest.fixture
def own_policy() -> Iterator[None]:
    before = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(before)


def built(kind: str, **more: object) -> keras.Model:
    keras.utils.set_random_seed(3)
    return context.build(DIM, LABELS, {"kind": kind, **SMALL[kind], **more})


@functools.cache
def scored(kind: str) -> Callable[[dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray]]:
    """What the network of a kind says of `INPUTS`; compiled once."""
    return scoring.scorer(built(kind))


def made(lengths: list[int], seed: int = 0, dim: int = DIM) -> list[tuple[np.ndarray, np.ndarray]]:
    """Vectors float16 [n, dim] and positions in mm [n], from feet to head, of series of these lengths."""
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(n, dim)).astype(np.float16), np.cumsum(1 + 9 * rng.random(n))) for n in lengths]


def batch_of(some: list[tuple[np.ndarray, np.ndarray]], length: int = 0, empty: int = 0) -> dict[str, np.ndarray]:
    """`INPUTS` of series, padded to `length` or the longest, and `empty` more of no slices."""
    count, longest = len(some) + empty, max(length, *(len(vectors) for vectors, _ in some))
    found = {
        "vectors": np.zeros((count, longest, some[0][0].shape[1]), np.float16),
        "place": np.zeros((count, longest, 3), np.float32),
        "mask": np.zeros((count, longest), bool),
    }
    for at, (vectors, position_mm) in enumerate(some):
        filled = (at, slice(len(vectors)))
        found["vectors"][filled], found["place"][filled] = vectors, series.place(position_mm)
        found["mask"][filled] = True
    return found


def said(score: Callable, some: list[tuple[np.ndarray, np.ndarray]], **changes: int) -> list[tuple]:
    """Logits of the slices [n, L] and of the series [L], of each series."""
    slices, whole = score(batch_of(some, **changes))
    return [(slices[at, : len(vectors)], whole[at]) for at, (vectors, _) in enumerate(some)]


def assert_same(found: list[tuple], wanted: list[tuple], rtol: float = 0) -> None:
    for one, other in zip(found, wanted, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)


@pytest.mark.slow
@KINDS
def test_padding_and_company_change_nothing(kind):
    model, some = scored(kind), made([5, 1, 12])
    alone = [said(model, [one])[0] for one in some]
    assert_same(said(model, some), alone)
    assert_same(said(model, some, length=40), alone)
    assert_same(said(model, some[::-1]), alone[::-1])
    assert_same(said(model, some, empty=2), alone)


def test_padding_and_company_change_nothing_of_a_trained_run(series_run):
    """To 1e-6, of a logit above 1 relative to it: float32 holds no more."""
    model = model_file.load_model(series_run / "export", model_file.read_about(series_run / "export"))
    dim = model.input["vectors"].shape[-1]
    score, some = scoring.scorer(model), made([20, 1, 33, 7, 12, 60], dim=dim)
    alone = [said(score, [one])[0] for one in some]
    assert max(np.abs(part).max() for one in alone for part in one) > 2
    assert_same(said(score, some), alone, rtol=1e-6)
    assert_same(said(score, some, length=300), alone, rtol=1e-6)
    assert_same(said(score, some[::-1], empty=250)[::-1], alone, rtol=1e-6)


@pytest.mark.slow
@KINDS
def test_what_lies_behind_the_mask_changes_nothing(kind):
    score, batch = scored(kind), batch_of(made([5, 12]))
    before = score(batch)
    behind = ~batch["mask"]
    batch["vectors"][behind], batch["place"][behind] = 100.0, 55.0
    after = score(batch)
    np.testing.assert_allclose(before[0][batch["mask"]], after[0][batch["mask"]], rtol=0, atol=1e-6)
    np.testing.assert_allclose(before[1], after[1], rtol=0, atol=1e-6)


@pytest.mark.slow
@KINDS
def test_the_order_slices_are_handed_in_changes_nothing(kind):
    """As a feed plans them: the same slices under other row numbers."""
    every, found = np.random.default_rng(0).normal(size=(27, DIM)).astype(np.float16), []
    for seed in (0, 1):
        feed = feed_of([[NO_LABEL] * 9] * 3, seed=seed)
        own = Rows(every[feed.slices.table["slice_index"].to_numpy()], np.zeros((27, LABELS)))
        feed = dataclasses.replace(feed, views=[own])
        (batch,) = feed.evaluation_batches(3, Share.whole()).as_numpy_iterator()
        slices, whole = scored(kind)({name: batch[name] for name in INPUTS})
        uids = feed.slices.table["sop_uid"].take(batch["row"].ravel()).to_pylist()
        found.append((dict(zip(uids, slices.reshape(-1, LABELS))), whole))
    (one, one_whole), (other, other_whole) = found
    assert list(one) == list(other)
    np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=0, atol=1e-6)
    np.testing.assert_allclose(one_whole, other_whole, rtol=0, atol=1e-6)


@KINDS
def test_positions_are_used(kind):
    model, ((vectors, position_mm),) = scored(kind), made([8])
    first = said(model, [(vectors, position_mm)])[0]
    order = np.random.default_rng(0).permutation(8)
    swapped = said(model, [(vectors[order], position_mm)])[0]  # the slices that lay elsewhere
    assert np.abs(swapped[0] - first[0][order]).max() > 1e-3
    assert np.abs(swapped[1] - first[1]).max() > 1e-3
    stretched = said(model, [(vectors, position_mm * np.linspace(1, 2, 8))])[0]
    assert np.abs(stretched[0] - first[0]).max() > 1e-3


@KINDS
def test_neighbours_are_seen_on_both_sides(kind):
    model, ((vectors, position_mm),) = scored(kind), made([9])
    first = said(model, [(vectors, position_mm)])[0][0]
    changed = vectors.copy()
    changed[4] = -changed[4]
    moved = np.abs(said(model, [(changed, position_mm)])[0][0] - first).max(-1)
    assert (moved > 1e-5).all()


@pytest.mark.slow
@KINDS
def test_one_slice_and_two_thousand(kind):
    model, some = scored(kind), made([1, 2000])
    (short, long) = said(model, some)
    assert short[0].shape == (1, LABELS)
    assert long[0].shape == (2000, LABELS)
    assert all(np.isfinite(part).all() for one in (short, long) for part in one)
    assert_same([short], said(model, some[:1]))
    changed = (some[1][0].copy(), some[1][1])
    changed[0][-1] = -changed[0][-1]  # nothing is cut off
    assert np.abs(said(model, [changed])[0][0][-1] - long[0][-1]).max() > 1e-3


@pytest.mark.slow
@KINDS
def test_attention_is_a_mean_over_the_slices(kind):
    model, some = built(kind), made([5, 12])
    batch = batch_of(some)
    weights = keras.Model(model.inputs, model.get_layer(context.ATTENTION).output)(batch).numpy()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    assert not weights[0, 5:].any()
    assert (weights[batch["mask"]] > 0).all()


@pytest.mark.slow
def test_no_series_is_all_behind_the_mask_for_the_recurrent_layers(monkeypatch):
    """cuDNN stops at a sequence of no steps, and batches for evaluation are filled up with such."""
    model, seen = built("gru"), []
    call = keras.layers.GRU.call

    def spy(layer, sequences, initial_state=None, mask=None, training=False):
        seen.append(np.asarray(mask))
        return call(layer, sequences, initial_state, mask, training)

    monkeypatch.setattr(keras.layers.GRU, "call", spy)
    model(batch_of(made([3, 1]), empty=2))
    assert len(seen) == 4  # two layers, both ways
    for mask in seen:
        assert mask.any(axis=1).all()
        assert mask.sum(axis=1).tolist() == [3, 1, 1, 1]


@pytest.mark.slow
@KINDS
def test_vectors_are_scaled_in_float32(kind):
    """Rounded to float16, a vector would tip over to its neighbour in batches of another size."""
    model = built(kind)
    found = keras.Model(model.inputs, model.get_layer("normal").output)(batch_of(made([50]))).numpy()
    assert found.dtype == np.float32
    assert (found != found.astype(np.float16)).mean() > 0.9


# on disk


@pytest.mark.slow
@KINDS
def test_a_saved_network_opens_with_keras_alone(kind, tmp_path):
    model, some = built(kind, dropout=0.2), made([5, 12])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert_same(*(said(scoring.scorer(one), some) for one in (again, model)))
    assert {one.name for one in again.inputs} == set(INPUTS)


# precision


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@KINDS
def test_a_step_in_mixed_precision(kind, policy, own_policy):
    keras.config.set_dtype_policy(policy)
    model, batch = built(kind, dropout=0.1), batch_of(made([5, 12]), empty=1)
    labels = np.zeros((3, 12, LABELS), np.int64)
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}

    @tf.function
    def value_and_gradients() -> tuple:
        with tf.GradientTape() as tape:
            slices, whole = model(batch, training=True)
            assert slices.dtype == whole.dtype == "float32"
            each = losses.each(labels, slices, 0.0, 0.0)
            value = tf.reduce_mean(tf.boolean_mask(each, batch["mask"])) + tf.reduce_mean(whole[:2] ** 2)
        return value, tape.gradient(value, model.trainable_variables)

    optimizer, values = keras.optimizers.Adam(0.01), []
    for _ in range(6):
        value, gradients = value_and_gradients()
        values.append(float(value))
        assert all(np.isfinite(gradient).all() for gradient in gradients)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
    assert np.isfinite(values).all()
    assert values[-1] < values[0]
    assert {layer.compute_dtype for layer in model.layers} >= {policy.removeprefix("mixed_"), "float32"}


# refused


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ({"kind": "lstm"}, "kind is 'lstm'; known are gru, transformer"),
        ({"kind": "gruu"}, "kind is 'gruu'; did you mean 'gru'?"),
        ({"kind": None}, "kind is None; known are gru, transformer"),
        ({"kind": ["gru"]}, r"kind is \['gru'\]; "),
        ({"kind": "gru", "unit": 8}, "unknown key 'unit'; did you mean 'units'?"),
        ({"kind": "transformer", "heads": 8}, "unknown key 'heads'; known are kind, width, units, layers, dropout"),
        ({"filters": [8]}, "unknown key 'filters'; "),
        ({"normal": 3}, "unknown key 'normal'; "),
        ({"units": 0}, "units is 0; give a whole number >= 1"),
        ({"units": 1.5}, "units is 1.5; give a whole number >= 1"),
        ({"units": True}, "units is True; give a whole number >= 1"),
        ({"units": "8"}, "units is '8'; give a whole number >= 1"),
        ({"units": float("nan")}, "units is nan; give a whole number >= 1"),
        ({"units": float("inf")}, "units is inf; give a whole number >= 1"),
        ({"layers": None}, "layers is None; give a whole number >= 1"),
        ({"width": -3}, "width is -3; give a whole number >= 1"),
        ({"dropout": 1}, "dropout is 1; give a number >= 0 and < 1"),
        ({"dropout": -0.1}, "dropout is -0.1; give a number >= 0 and < 1"),
        ({"dropout": float("nan")}, "dropout is nan; give a number >= 0 and < 1"),
        ({"dropout": False}, "dropout is False; give a number >= 0 and < 1"),
    ],
)
def test_wrong_architectures(architecture, words):
    with pytest.raises(WrongUse, match=f"^architecture of series: {words.replace('?', '[?]')}"):
        context.build(DIM, LABELS, architecture)


@KINDS
def test_a_whole_number_may_be_written_with_a_point(kind):
    """As `--set architecture.units=1e1` gives it."""
    model = context.build(DIM, LABELS, {"kind": kind, "width": 8.0, "units": 10.0, "layers": 1.0})
    assert model.output_shape == [(None, None, LABELS), (None, LABELS)]


def test_the_default_is_a_recurrent_network():
    names = {layer.name for layer in context.build(DIM, LABELS, {"width": 8, "units": 4, "layers": 1}).layers}
    assert "both_ways_1" in names
