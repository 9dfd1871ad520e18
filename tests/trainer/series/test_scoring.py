"""What both networks say of a split: in the order of its table, whatever the batches; views are averaged."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest
from series_splits import DIM, NONE, feed_of

from trainer.data import series
from trainer.data.series_feed import SeriesFeed
from trainer.models import context
from trainer.series import scoring
from trainer.shell.problems import WorkFailed

LENGTHS = (3, 1, 7, 2, 5)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return context.build(DIM, 6, {"kind": "transformer", "width": 8, "units": 4, "layers": 1})


@pytest.fixture
def feed() -> SeriesFeed:
    return feed_of([[NONE] * length for length in LENGTHS])


def said(model: keras.Model, feed: SeriesFeed, batch_size: int, told: list[Any] | None = None) -> scoring.Said:
    logits = [view.logits(np.arange(len(feed.slices))) for view in feed.views]
    return scoring.say(model, feed, logits, batch_size, lambda *done: told.append(done) if told is not None else None)


def by_hand(model: keras.Model, feed: SeriesFeed) -> tuple[np.ndarray, np.ndarray]:
    """One series at a time, without padding."""
    slices, heads = np.zeros((len(feed.slices), 6)), np.zeros((len(feed.series), 6))
    position_mm = feed.slices.table["position_mm"].to_numpy()
    for view in feed.views:
        for at, rows in enumerate(feed.series):
            inputs = {"vectors": view.rows(rows)[None], "place": series.place(position_mm[rows])[None]}
            one, whole = model({**inputs, "mask": np.ones((1, len(rows)), bool)})
            slices[rows] += one.numpy()[0] / len(feed.views)
            heads[at] += whole.numpy()[0] / len(feed.views)
    return slices, heads


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You are using a softmax over axis 1")  # of a series of one slice, eagerly
@pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
def test_every_slice_and_series_in_the_order_of_the_table(batch_size, model, feed):
    told: list[tuple[int, int]] = []
    found = said(model, feed, batch_size, told)
    slices, heads = by_hand(model, feed)
    np.testing.assert_allclose(found.context_logits, slices, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.heads, heads, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.slice_logits, 0, atol=1e-6)  # those of mirror images are their negatives
    assert told[-1] == (2 * sum(LENGTHS), 2 * sum(LENGTHS))
    assert told == sorted(told)


@pytest.mark.slow
def test_the_head_of_a_study_is_the_greatest_of_its_series(model, feed):
    found = said(model, feed, 16)
    studies = np.zeros(len(feed.slices), np.int64)
    for at, rows in enumerate(feed.series):
        studies[rows] = (2, 0, 1, 0, 2)[at]
    wanted = [found.heads[list(some)].max(0) for some in ((1, 3), (2,), (0, 4))]
    np.testing.assert_array_equal(found.study_heads(studies), wanted)


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "what"), [("logits", "slice ID_"), ("series_values", "series 0000: ")])
def test_logits_that_are_not_finite_are_refused(layer, what, model, feed):
    broken = keras.models.clone_model(model)
    broken.get_layer(layer).bias.assign(np.full(6, np.nan))
    words = f"^{what}.*the context gives logits that are not finite; the model is broken, train again$"
    with pytest.raises(WorkFailed, match=words):
        said(broken, dataclasses.replace(feed, views=feed.views[:1]), 16)
