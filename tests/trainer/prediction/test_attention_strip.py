"""The strip of a series: a bar a slice at its place, and the words of the one that is shown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ich_tfrecords.views.montage import ACCENT, BACKGROUND, BRIGHT, MARGIN_PX
from trainer.prediction import attention_strip, pen
from trainer.prediction.attention_strip import STRIP_PX
from trainer.prediction.triage import Attention

pytestmark = pytest.mark.slow  # draws

WIDTH = 900


def attention(weights, at: int = 0, position_mm=None) -> Attention:
    weights = np.asarray(weights, np.float32)
    places = np.arange(len(weights)) * 5.0 if position_mm is None else position_mm
    return Attention(2, np.asarray(places, np.float32), weights / weights.sum(), at)


def drawn(given: Attention, label: str = "subdural", part: float = 0.4, width: int = WIDTH) -> np.ndarray:
    picture = Image.new("RGB", (width, 50), (7, 7, 7))
    canvas = np.asarray(attention_strip.below(picture, given, label, part))
    assert canvas.shape[1] == width
    assert (canvas[:50] == 7).all()
    return canvas[50:]


def strip(canvas: np.ndarray) -> np.ndarray:
    """The rows of the strip, found by its own grey."""
    first = np.flatnonzero((canvas == pen.TRACK).all(-1).sum(1) > 100)[0]
    return canvas[first : first + STRIP_PX]


def heights(canvas: np.ndarray, color) -> list[int]:
    """Of the bars of a color, from left to right."""
    colored = (strip(canvas) == color).all(-1)
    columns = np.flatnonzero(colored[-1])
    starts = columns[np.diff(columns, prepend=-2) > 1]
    return [int(colored[:, column].sum()) for column in starts]


def test_bars_are_as_high_as_their_share_and_the_shown_one_stands_out():
    canvas = drawn(attention([1, 2, 4, 3, 0], at=3))
    bright, accent = heights(canvas, BRIGHT), heights(canvas, ACCENT)
    most = max(bright)
    assert [round(4 * one / most, 1) for one in (*bright[:3], *accent)] == [1, 2, 4, 3]
    assert bright[3] == attention_strip.FLOOR_PX  # a slice without attention is still seen


def test_a_gap_in_the_series_is_a_gap_in_the_strip():
    bars = (strip(drawn(attention([1] * 5, at=4, position_mm=[0, 5, 10, 30, 35])))[-1] == BRIGHT).all(-1)
    begins = np.flatnonzero(np.diff(bars.astype(int)) == 1)
    steps = np.diff(begins)
    assert steps[0] == pytest.approx(steps[1], abs=1)
    assert steps[2] == pytest.approx(4 * steps[0], abs=3)


@settings(max_examples=30)
@given(
    st.lists(st.floats(0, 1, width=32), min_size=2, max_size=60),
    st.data(),
    st.sampled_from([1, 500, 30_000]),
    st.integers(936, 2000),
)
def test_nothing_leaves_the_margins(weights, data, spread, width):
    weights[0] += 0.01
    places = sorted(data.draw(st.lists(st.floats(-spread, spread), min_size=len(weights), max_size=len(weights))))
    places[-1] += 1
    given = attention(weights, data.draw(st.integers(0, len(weights) - 1)), places)
    canvas = drawn(given, "intraparenchymal", width=width)
    edge = np.ones(canvas.shape[:2], bool)
    edge[:, MARGIN_PX:-MARGIN_PX] = False
    edge[:, MARGIN_PX - 9 : MARGIN_PX] = edge[:, -MARGIN_PX : -MARGIN_PX + 9] = False  # the mark of the first and last
    assert (canvas == BACKGROUND).all(-1)[edge].all()


def test_a_series_of_two_thousand_slices_shows_its_own():
    weights = np.ones(2000)
    weights[1500] = 3
    canvas = drawn(attention(weights, at=700))
    assert len(heights(canvas, ACCENT)) == 1
    assert (strip(canvas) == BRIGHT).all(-1).sum(0).max() == STRIP_PX - 7  # a dash goes over it


def test_the_words_tell_which_slice_it_is_and_how_much_the_head_counts(monkeypatch):
    written, write = [], pen.Pen.write
    monkeypatch.setattr(pen.Pen, "write", lambda own, *args: (written.append(args[1]), write(own, *args))[1])
    drawn(attention([1, 2, 1], at=1, position_mm=[-12.5, 0, 30]), part=0.4)
    told = " | ".join(written)
    for words in (
        "where the series head looks for subdural",
        "feet, -12.5 mm",
        "head, 30.0 mm",
        "this slice: 2 of 3, 50% of the attention",
        "In the study's probability of subdural the series head counts 40%, the greatest slice 60%.",
    ):
        assert words in told
    written.clear()
    drawn(attention([1, 1000], at=0))
    assert "this slice: 1 of 2, <1% of the attention" in written
