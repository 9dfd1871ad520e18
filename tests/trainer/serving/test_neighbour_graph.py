"""The graph of a slice model that sees neighbours: what Keras and numpy say, in any order and for any number."""

from __future__ import annotations

import keras
import made_series
import numpy as np
import pytest
import tensorflow as tf
from made_series import LABELS, SMALL, head

from ich_tfrecords import pixels
from trainer.data import neighbours
from trainer.models import model_file, networks
from trainer.models.model_file import About
from trainer.serving import neighbour_graph, pieces

pytestmark = pytest.mark.slow  # traces graphs

CONTEXT = 2
OFF = {"atol": 1e-6, "rtol": 0}


class InGraph:
    """`answers_of` compiled once for series of any length and slices of any size, beside the plain way."""

    def __init__(self) -> None:
        keras.utils.set_random_seed(1)
        made = made_series.about_of("cnn", SMALL, made_series.odds_of(LABELS), None)
        values = {name: getattr(made, name) for name in made.__dataclass_fields__}
        self.about = About(**{**values, "settings": {**made.settings, "context_slices": CONTEXT}})
        small = {"filters": [4, 8], "dense": [8]}
        self.model = networks.build("cnn", self.about.input_shape, len(LABELS), "none", small)
        self.ask = tf.function(
            neighbour_graph.answers_of(self.model, self.about),
            input_signature=[tf.TensorSpec((None, None, None), tf.int16), tf.TensorSpec((None,), tf.float32)],
        )

    def __call__(self, hu: np.ndarray, position_mm: np.ndarray) -> np.ndarray:
        return self.ask(hu, position_mm).numpy()

    def says(self, hu: np.ndarray, position_mm: np.ndarray) -> np.ndarray:
        """Slice by slice, by a loop."""
        order = np.argsort(position_mm, kind="stable")
        images = [pixels.image_of(hu[at], self.about.spec.image) for at in order]
        found = np.empty((len(hu), len(LABELS)))
        for place, at in enumerate(order):
            steps = range(place - CONTEXT, place + CONTEXT + 1)
            near = [images[min(max(step, 0), len(images) - 1)] for step in steps]
            logits = model_file.scorer(self.model)(np.concatenate(near, axis=-1)[None])
            found[at] = self.about.probabilities(logits)[0]
        return found


@pytest.fixture(scope="module")
def in_graph() -> InGraph:
    return InGraph()


@pytest.mark.parametrize("slices", [1, 2, 3, 31, 32, 33, 65])
def test_as_a_loop_has_it(in_graph, slices):
    """Pieces of 32, whose borders the neighbours cross."""
    hu, position_mm = head(slices, slices)
    found = in_graph(hu, position_mm)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, in_graph.says(hu, position_mm), **OFF)


def test_order_does_not_matter_and_places_do(in_graph):
    hu, position_mm = head(40)
    found, turned = in_graph(hu, position_mm), np.random.default_rng(3).permutation(40)
    np.testing.assert_allclose(in_graph(hu[turned], position_mm[turned]), found[turned], **OFF)
    np.testing.assert_allclose(in_graph(hu, 3 * position_mm), found, **OFF)  # by order, not by distance
    assert np.abs(in_graph(hu, position_mm[turned]) - found).max() > 1e-3


@pytest.mark.parametrize(
    ("slices", "position_mm", "words"),
    [
        (0, [], pieces.NO_SLICES),
        (2, [1.0], pieces.NO_PAIRS),
        (2, [1.0, np.nan], pieces.NOT_FINITE),
        (3, [5.0, 5.0, 5.0], pieces.NO_ORDER),
    ],
)
def test_what_is_no_series_is_refused(in_graph, slices, position_mm, words):
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        in_graph(head(slices)[0], np.array(position_mm, np.float32))


def test_stacks_are_those_of_training():
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), np.uint8)
    rows = np.arange(9)
    near = np.clip(rows[:, None] + np.arange(-CONTEXT, CONTEXT + 1), 0, 8)
    found = pieces.beside(tf.constant(images), tf.constant(rows, tf.int32), CONTEXT).numpy()
    np.testing.assert_array_equal(found, neighbours.stacked(images[near]))
