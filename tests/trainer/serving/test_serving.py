"""The graph of an export: the pixels of `ich_tfrecords.pixels` bit for bit, and calibrated probabilities."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings

from ich_tfrecords import pixels, spec
from ich_tfrecords.dataset import records
from ich_tfrecords.dicom import ct_slice
from ich_tfrecords.problems import Problem
from ich_tfrecords.spec import ImageSpec, LabelSpec, Window
from trainer.models.model_file import About
from trainer.results import joint
from trainer.results.calibration import Calibration
from trainer.results.joint import Odds
from trainer.serving import graph

pytestmark = pytest.mark.slow  # traces graphs

RSNA = spec.load("rsna_ich")
# odd widths end on halves; the last ones reach the ends of int16
ODD = (Window("odd", 40, 75), Window("narrow", -3, 1), Window("wide", 0, 65534), Window("low", -32764, 7))
EVERY_INT16 = np.arange(-32768, 32768, dtype=np.int16)


def by_pixels(hu: np.ndarray, image: ImageSpec) -> np.ndarray:
    return np.array([pixels.image_of(one, image) for one in hu], image.dtype).reshape(-1, *image.shape)


def in_graph(image: ImageSpec):
    """`image_of_hu` compiled once for slices of any size."""
    return tf.function(
        lambda hu: graph.image_of_hu(hu, image), input_signature=[tf.TensorSpec((None, None, None), tf.int16)]
    )


RSNA_IN_GRAPH = in_graph(RSNA.image)
ODD_IMAGE = ImageSpec(11, -7, ODD, "none", "windows")
ODD_IN_GRAPH = in_graph(ODD_IMAGE)


def noise(seed: int, *shape: int) -> np.ndarray:
    """HU around the windows, and a tenth of any int16."""
    rng = np.random.default_rng(seed)
    near, far = rng.integers(-400, 500, shape), rng.integers(-32768, 32768, shape)
    return np.where(rng.random(shape) < 0.1, far, near).astype(np.int16)


# --- pixels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [256, 128, 100])
def test_every_int16_value(size):
    """As uniform pixels (256), and as parts of boxes of four (128) and of broken boxes (100)."""
    image = ImageSpec(size, -1000, (*RSNA.image.windows, *ODD), "none", "windows")
    hu = EVERY_INT16.reshape(1, 256, 256)
    found = in_graph(image)(hu).numpy()
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, by_pixels(hu, image))


def test_every_int16_value_fills_a_slice_of_512():
    """The size of RSNA's slices: each value stands four times, next to others."""
    hu = np.random.default_rng(0).permutation(np.tile(EVERY_INT16, 4)).reshape(1, 512, 512)
    np.testing.assert_array_equal(RSNA_IN_GRAPH(hu).numpy(), by_pixels(hu, RSNA.image))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3), st.integers(1, 70), st.integers(1, 70), st.integers(0, 99))
def test_slices_of_any_size(slices, rows, columns, seed):
    """Smaller and larger than the image, square or not; windows of odd width."""
    hu = noise(seed, slices, rows, columns)
    np.testing.assert_array_equal(ODD_IN_GRAPH(hu).numpy(), by_pixels(hu, ODD_IMAGE))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 99))
def test_slices_of_any_size_in_the_windows_of_rsna(rows, columns, seed):
    hu = noise(seed, 1, rows, columns)
    np.testing.assert_array_equal(RSNA_IN_GRAPH(hu).numpy(), by_pixels(hu, RSNA.image))


@st.composite
def images(draw) -> ImageSpec:
    pairs = draw(st.lists(st.tuples(st.integers(-1000, 1000), st.integers(1, 4000)), min_size=1, max_size=4))
    windows = tuple(Window(f"w{number}", *pair) for number, pair in enumerate(pairs))
    size_px, pad_hu = draw(st.integers(8, 24)), draw(st.integers(-32768, 32767))
    return ImageSpec(size_px, pad_hu, windows, draw(st.sampled_from(spec.CROPS)), draw(st.sampled_from(spec.KINDS)))


@settings(max_examples=30, deadline=None)
@given(images(), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_any_spec_eagerly(image, rows, columns, seed):
    hu = noise(seed, 2, rows, columns)
    np.testing.assert_array_equal(graph.image_of_hu(tf.constant(hu), image).numpy(), by_pixels(hu, image))


def test_inside_a_map():
    hu = noise(0, 5, 30, 17)
    data = tf.data.Dataset.from_tensor_slices(hu).batch(2).map(lambda one: graph.image_of_hu(one, ODD_IMAGE))
    np.testing.assert_array_equal(np.concatenate(list(data.as_numpy_iterator())), by_pixels(hu, ODD_IMAGE))


def test_no_slices():
    for shape in ((0, 512, 512), (0, 0, 0)):
        assert RSNA_IN_GRAPH(np.zeros(shape, np.int16)).shape == (0, *RSNA.image.shape)


HU_IMAGE = dataclasses.replace(RSNA.image, kind=spec.HU)
HU_IN_GRAPH = in_graph(HU_IMAGE)


@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 99))
def test_hu_of_slices_of_any_size(rows, columns, seed):
    hu = noise(seed, 1, rows, columns)
    np.testing.assert_array_equal(HU_IN_GRAPH(hu).numpy(), by_pixels(hu, HU_IMAGE))


HEAD_IMAGE = dataclasses.replace(RSNA.image, crop=spec.HEAD)
HEAD_IN_GRAPH = in_graph(HEAD_IMAGE)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(20, 300),
    st.integers(20, 300),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.5)), max_size=3),
    st.integers(0, 99),
)
def test_the_square_around_the_head(rows, columns, heads, seed):
    hu = np.where(np.random.default_rng(seed).random((rows, columns)) < 0.02, noise(seed, rows, columns), -1000)
    at = np.mgrid[:rows, :columns]
    for row, column, size in heads:
        hu[np.hypot(at[0] - row * rows, at[1] - column * columns) <= size * rows] = 40
    hu = hu.astype(np.int16)[None]
    np.testing.assert_array_equal(HEAD_IN_GRAPH(hu).numpy(), by_pixels(hu, HEAD_IMAGE))


@pytest.mark.parametrize("shape", [(1, 0, 5), (2, 5, 0), (1, 0, 0)])
def test_slices_without_rows_or_columns_are_refused(shape):
    with pytest.raises(tf.errors.InvalidArgumentError, match="a slice must have rows and columns"):
        RSNA_IN_GRAPH(np.zeros(shape, np.int16))


@pytest.mark.real
def test_real_slices(real_dicom_dir: Path):
    found = []
    for path in sorted(path for path in real_dicom_dir.rglob("*") if path.is_file()):
        try:
            found.append(ct_slice.read_slice(path.read_bytes()).hu)
        except Problem:
            continue  # what conversion rejects reaches no model either
    assert len(found) >= 28
    for hu in found:
        np.testing.assert_array_equal(RSNA_IN_GRAPH(hu[None]).numpy(), by_pixels(hu[None], RSNA.image))
        np.testing.assert_array_equal(HEAD_IN_GRAPH(hu[None]).numpy(), by_pixels(hu[None], HEAD_IMAGE))
        np.testing.assert_array_equal(HU_IN_GRAPH(hu[None]).numpy(), by_pixels(hu[None], HU_IMAGE))


# --- records -------------------------------------------------------------------------------------------------


SMALL = dataclasses.replace(RSNA, image=ImageSpec(8, -1000, RSNA.image.windows, "none", "windows"))
SMALL_RECORDS = tf.function(
    lambda serialized: graph.image_of_records(serialized, SMALL),
    input_signature=[tf.TensorSpec((None,), tf.string)],
)


def record(image: np.ndarray, whose: spec.DatasetSpec = SMALL) -> bytes:
    values = {"image": image, "labels": [0] * 6, "position_mm": 0.0, "slice_index": 0, "slice_count": 1}
    ids = dict.fromkeys(("sop_uid", "study_uid", "series_uid", "patient_key", "pixel_digest"), b"x")
    return records.encode({**values, **ids}, records.features(whose))


def test_images_of_records():
    images = np.random.default_rng(0).integers(0, 256, (3, *SMALL.image.shape), np.uint8)
    serialized = [record(image) for image in images]
    for found in (SMALL_RECORDS(serialized), graph.image_of_records(tf.constant(serialized), SMALL)):
        np.testing.assert_array_equal(found.numpy(), images)


def test_images_of_records_of_hu():
    of_hu = dataclasses.replace(SMALL, image=dataclasses.replace(SMALL.image, kind=spec.HU))
    images = np.random.default_rng(0).integers(-32768, 32768, (3, 8, 8, 1)).astype(np.int16)
    found = graph.image_of_records(tf.constant([record(image, of_hu) for image in images]), of_hu)
    np.testing.assert_array_equal(found.numpy(), images)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must hold 128 bytes, int16 8x8x1"):
        graph.image_of_records(tf.constant([record(np.zeros(SMALL.image.shape, np.uint8))]), of_hu)


def test_no_records():
    assert SMALL_RECORDS(tf.constant([], tf.string)).shape == (0, *SMALL.image.shape)


def test_only_the_image_of_a_record_is_read():
    """Who asks a server has no labels."""
    image = np.full(SMALL.image.shape, 7, np.uint8)
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[image.tobytes()]))
    example = tf.train.Example(features=tf.train.Features(feature={"image": feature}))
    np.testing.assert_array_equal(SMALL_RECORDS([example.SerializeToString()]).numpy()[0], image)


WHOLE = record(np.zeros(SMALL.image.shape, np.uint8))


@pytest.mark.parametrize("serialized", [WHOLE[:100], b"\xff\xff\xff", b"\x0a\x7f"])
def test_damaged_records_are_refused(serialized):
    """TensorFlow quotes the record in its message, and fails to show that where the bytes are no UTF-8."""
    with pytest.raises((tf.errors.InvalidArgumentError, UnicodeDecodeError)):
        SMALL_RECORDS([WHOLE, serialized])


@pytest.mark.parametrize(
    ("serialized", "words"),
    [
        (b"", "Feature: image .* is required"),
        (record(np.zeros((8, 8, 2), np.uint8)), "must hold 192 bytes, uint8 8x8x3"),
        (record(np.zeros((9, 8, 3), np.uint8)), "must hold 192 bytes, uint8 8x8x3"),
    ],
)
def test_records_of_another_size_are_refused(serialized, words):
    """Left to itself TensorFlow would fill up a short image with zeros."""
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        SMALL_RECORDS([WHOLE, serialized])


# --- probabilities -------------------------------------------------------------------------------------------


NAMES = ("any", "bleed")
FITTED = Calibration(NAMES, np.array([1.5, -2.0]), np.array([0.3, 2.0]), np.array([-1.0, 0.25]), {})
TWO_LABELS = dataclasses.replace(RSNA, labels=LabelSpec("any", NAMES, ("bleed",)))
DRAWN = np.array([0.95, 0.05]), np.array([0.5, 0.5])
JOINT = Odds(NAMES, "any", 0, 0, *DRAWN, np.zeros(2))


def about_of(odds: Odds | None) -> About:
    even = {name: {"even": 0.5} for name in NAMES}
    return About(TWO_LABELS, "f" * 64, {"model": "cnn"}, FITTED, even, even, {}, odds)


def passing() -> keras.Model:
    """Logits that are the two numbers of an image, in tens, above and below zero."""
    image = keras.Input((1, 2, 1), dtype="uint8")
    return keras.Model(image, keras.layers.Rescaling(10, -1280)(keras.layers.Flatten()(image)))


@pytest.mark.parametrize(
    "odds",
    [None, joint.unchanged(NAMES, "any", 0.1), joint.alone(NAMES, "any", [1, -1]), JOINT],
    ids=["of an earlier run", "smoothed", "alone", "joint"],
)  # fmt: skip
def test_probabilities_are_those_of_about(odds):
    images = np.random.default_rng(0).integers(0, 256, (500, 1, 2, 1), np.uint8)
    about = about_of(odds)
    found = tf.function(graph.probabilities_of(passing(), about))(images).numpy()
    logits = images.reshape(-1, 2) * 10.0 - 1280
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, about.probabilities(logits), rtol=1e-6, atol=1e-30)
    assert (found[:, 1] <= found[:, 0]).all()


SIX = RSNA.labels.names
SHARES = st.lists(st.floats(0, 1), min_size=64, max_size=64)


@settings(max_examples=25, deadline=None)
@given(SHARES, st.sampled_from([0, 0.01, 0.2]), st.sampled_from([0, 0.5, 2, 5]), st.integers(0, 10**6))
def test_log_odds_in_the_graph_are_those_of_numpy(shares, smoothing, gamma, seed):
    """To 1e-9, for draws that leave combinations out, and for logits far from any that a model gives."""
    natural, weight = np.array(shares[:32]) + 1e-3, np.array(shares[32:])
    weight[int(seed) % 32] = 1.0
    drawn = natural * weight
    odds = Odds(SIX, "any", smoothing, gamma, natural / natural.sum(), drawn / drawn.sum(), np.zeros(6))
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(20, 6)) * 10.0 ** rng.integers(-1, 4, (20, 1))
    wanted = odds.log_odds(logits)
    assert np.isfinite(wanted).all()
    np.testing.assert_allclose(graph.log_odds(tf.constant(logits), odds), wanted, rtol=1e-9, atol=1e-9)


def test_sure_logits_that_no_drawn_combination_fits():
    """Sweep by sweep the rest wears away, below 1e-308, which TensorFlow takes for 0 and numpy does not."""
    natural, weight = np.full(32, 1e-3), np.zeros(32)
    natural[[7, 9, 13]] = [0.425, 0.692, 1.001]
    weight[[0, 7, 9, 11, 12, 13, 14]] = [0.85, 1e-4, 0.28, 1, 0.28, 0.29, 0.19]
    odds = Odds(SIX, "any", 0, 0, natural / natural.sum(), natural * weight / (natural * weight).sum(), np.zeros(6))
    logits = np.array([[67.0, -52, 68, 105, 46, 12]])
    np.testing.assert_allclose(graph.log_odds(tf.constant(logits), odds), odds.log_odds(logits), rtol=1e-9)


def test_probabilities_of_no_slices_come_from_convolutions_too():
    """oneDNN gives a wrong shape there."""
    image = keras.Input((8, 8, 3), dtype="uint8")
    features = keras.layers.Conv2D(4, 3, activation="relu")(keras.layers.Rescaling(1 / 255)(image))
    model = keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(features)))
    ask = tf.function(
        graph.probabilities_of(model, about_of(JOINT)),
        input_signature=[tf.TensorSpec((None, 8, 8, 3), tf.uint8)],
    )
    assert ask(np.zeros((0, 8, 8, 3), np.uint8)).shape == (0, 2)
    assert ask(np.zeros((1, 8, 8, 3), np.uint8)).shape == (1, 2)
