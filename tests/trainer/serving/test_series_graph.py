"""The graph of an exported series model: what Keras and numpy say, in any order and for any number of slices."""

from __future__ import annotations

import importlib
from pathlib import Path

import made_series
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from made_series import GRU, TRANSFORMER, head

from ich_tfrecords.dicom import ct_slice
from ich_tfrecords.problems import Problem
from trainer.data import series
from trainer.models import context
from trainer.serving import pieces, series_graph

pytestmark = pytest.mark.slow  # traces graphs

OFF = {"atol": 1e-6, "rtol": 0}


class InGraph:
    """`answers_of` compiled once for series of any length and slices of any size, beside the plain way."""

    def __init__(self, architecture: dict) -> None:
        self.made = made_series.made(architecture)
        self.ask = tf.function(
            series_graph.answers_of(self.made.slice_model, self.made.context, self.made.about),
            input_signature=[tf.TensorSpec((None, None, None), tf.int16), tf.TensorSpec((None,), tf.float32)],
        )

    def __call__(self, hu: np.ndarray, position_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slices, study = self.ask(hu, position_mm)
        return slices.numpy(), study.numpy()

    def check(self, hu: np.ndarray, position_mm: np.ndarray) -> None:
        found, wanted = self(hu, position_mm), self.made.says(hu, position_mm)
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == np.float32
            np.testing.assert_allclose(one, other, **OFF)


@pytest.fixture(scope="module", params=[GRU, TRANSFORMER], ids=["gru", "transformer"])
def in_graph(request) -> InGraph:
    return InGraph(request.param)


@pytest.mark.parametrize("slices", [1, 2, 31, 32, 33, 64, 65])
def test_as_keras_and_numpy_have_it(in_graph, slices):
    """Pieces of 32: below, at and above one and two of them."""
    in_graph.check(*head(slices, slices))


def test_the_slices_of_a_series_are_far_apart_in_what_is_said(in_graph):
    """The other tests would pass with constants."""
    slices, study = in_graph(*head(40))
    assert (slices.std(axis=0) > 1e-3).all()
    assert (slices[:, 1:] <= slices[:, :1]).all()
    assert (study[1:] <= study[0]).all()


def test_order_does_not_matter(in_graph):
    hu, position_mm = head(40)
    slices, study = in_graph(hu, position_mm)
    turned = np.random.default_rng(3).permutation(40)
    again, same = in_graph(hu[turned], position_mm[turned])
    np.testing.assert_allclose(again, slices[turned], **OFF)
    np.testing.assert_allclose(same, study, **OFF)


def test_position_counts(in_graph):
    hu, position_mm = head(40)
    slices, study = in_graph(hu, position_mm)
    others, other = in_graph(hu, np.random.default_rng(3).permutation(position_mm))
    stretched, _ = in_graph(hu, position_mm * 3)
    assert np.abs(others - slices).max() > 1e-3
    assert np.abs(other - study).max() > 1e-4
    assert np.abs(stretched - slices).max() > 1e-4


def test_a_slice_sees_its_neighbours(in_graph):
    hu, position_mm = head(40)
    at = int(np.argsort(position_mm)[20])
    alone = in_graph(hu[[at]], position_mm[[at]])[0][0]
    assert np.abs(alone - in_graph(hu, position_mm)[0][at]).max() > 1e-3


def test_ties_keep_the_order_they_came_in(in_graph):
    hu, position_mm = head(12)
    position_mm[[2, 7, 9]] = position_mm[4]
    position_mm[1], position_mm[10] = -0.0, 0.0
    in_graph.check(hu, position_mm)


def test_three_hundred_slices(in_graph):
    in_graph.check(*head(300, 1, (9, 12)))


def test_two_thousand_slices():
    made = InGraph(GRU)
    made.check(*head(2000, 2, (6, 8)))


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=30))
def test_place_is_that_of_training(positions):
    """Training has the positions in float64, who serves in float32."""
    position_mm = np.sort(np.array(positions, np.float64))
    found = series_graph.place(tf.cast(tf.constant(position_mm.astype(np.float32)), tf.float64)).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, series.place(position_mm), rtol=0, atol=1e-30)  # TensorFlow has no subnormals


# --- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slices", "position_mm", "words"),
    [
        (0, [], pieces.NO_SLICES),
        (2, [1.0], pieces.NO_PAIRS),
        (1, [1.0, 2.0], pieces.NO_PAIRS),
        (2, [1.0, np.nan], pieces.NOT_FINITE),
        (1, [np.nan], pieces.NOT_FINITE),
        (2, [-np.inf, 0.0], pieces.NOT_FINITE),
        (3, [5.0, 5.0, 5.0], pieces.NO_ORDER),
    ],
)
def test_what_is_no_series_is_refused(in_graph, slices, position_mm, words):
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        in_graph(head(slices)[0], np.array(position_mm, np.float32))


def test_slices_without_rows_are_refused(in_graph):
    with pytest.raises(tf.errors.InvalidArgumentError, match="a slice must have rows and columns"):
        in_graph(np.zeros((2, 0, 4), np.int16), np.arange(2, dtype=np.float32))


# --- where it runs -------------------------------------------------------------------------------------------


def test_an_export_made_beside_a_gpu_runs_without_one(monkeypatch):
    """Keras takes cuDNN's ops where it sees a GPU; a machine that serves may have none."""
    rnn = importlib.import_module("keras.src.backend.tensorflow.rnn")
    monkeypatch.setattr(rnn, "_is_gpu_available", lambda: True)
    of_training = {
        "vectors": tf.zeros((1, 3, 8), tf.float16),
        "place": tf.zeros((1, 3, 3)),
        "mask": tf.ones((1, 3)) > 0,
    }
    network = context.build(8, 6, GRU)
    assert "CudnnRNNV3" in ops(lambda: network(of_training, training=False))
    made = made_series.made(GRU)
    answers = series_graph.answers_of(made.slice_model, made.context, made.about)
    assert not [kind for kind in ops(lambda: answers(*map(tf.constant, head(3)))) if "Cudnn" in kind]


def ops(asked) -> set[str]:
    """Kinds of all ops in the graph of a function without inputs."""
    made = tf.function(asked).get_concrete_function().graph.as_graph_def()
    return {node.op for part in (made, *made.library.function) for node in getattr(part, "node_def", None) or part.node}


# --- real slices ---------------------------------------------------------------------------------------------


@pytest.mark.real
def test_real_slices(in_graph, real_dicom_dir: Path):
    """Those that share their size, as one series each, at the positions of their files."""
    by_size: dict[tuple[int, ...], list[tuple[np.ndarray, float]]] = {}
    for path in sorted(path for path in real_dicom_dir.rglob("*") if path.is_file()):
        try:
            found = ct_slice.read_slice(path.read_bytes())
        except Problem:
            continue  # what conversion rejects reaches no model either
        by_size.setdefault(found.hu.shape, []).append((found.hu, found.header.position_mm))
    assert sum(map(len, by_size.values())) >= 28
    for slices in by_size.values():
        hu, position_mm = (np.array(one) for one in zip(*slices))
        in_graph.check(hu, position_mm.astype(np.float32))
