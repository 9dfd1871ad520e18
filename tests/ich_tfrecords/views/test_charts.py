"""SVG charts: well-formed, escaped, within their frame, right in their lengths."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords.dataset.summary import Share
from ich_tfrecords.spec import Window
from ich_tfrecords.views import charts


def rects(svg: str) -> list[dict[str, str]]:
    return [element.attrib for element in ET.fromstring(svg).iter("rect")]


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter("text")]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=8))
def test_bar_lengths_are_in_proportion_and_inside(counts):
    members = {f"split {number}": Share(count, 1000) for number, count in enumerate(counts)}
    found = rects(charts.bars([("label", members)], "title"))
    lengths = [float(rect["width"]) for rect in found]
    assert len(lengths) == len(counts)
    assert all(float(rect["x"]) + float(rect["width"]) <= charts.WIDTH for rect in found)
    ratios = [length / count for length, count in zip(lengths, counts) if count]
    assert all((length == 0) == (count == 0) for length, count in zip(lengths, counts))
    # lengths are written with one decimal
    assert not ratios or max(ratios) - min(ratios) < 0.1 / min(filter(None, counts)) + 1e-9


def test_bars_say_counts_and_share():
    assert "76 of 382 (19.9%)" in texts(charts.bars([("any", {"train": Share(76, 382)})], "title"))
    assert "none known" in texts(charts.bars([("any", {"train": Share(0, 0), "test": Share(1, 2)})], "title"))


def test_texts_are_escaped():
    svg = charts.bars([("<b>", {"</text><script>": Share(1, 2)})], 'a "title" <x>')
    assert "<script" not in svg
    assert {"<b>", "</text><script>"} <= set(texts(svg))
    assert ET.fromstring(svg).attrib["aria-label"] == 'a "title" <x>'


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=60), st.integers(1, 40))
def test_bins_hold_every_value_once(values, most):
    first, width, counts = charts.bins(values, most)
    expected = [
        sum(first + i * width <= value < first + (i + 1) * width for value in values) for i in range(len(counts))
    ]
    assert counts == expected
    assert sum(counts) == len(values)
    assert len(counts) <= most
    assert first <= min(values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([7], (7, 1, [1])), ([14, 15, 15, 18], (14, 1, [1, 2, 0, 0, 1])), ([0, 79, 80], (0, 5, [1] + [0] * 14 + [1, 1]))],
)
def test_bin_edges(values, expected):
    assert charts.bins(values, 40) == expected


def test_histogram_is_well_formed():
    svg = charts.histogram([14, 15, 15, 18], "slices", "title")
    assert len(rects(svg)) == 5
    assert {"14", "18", "slices"} <= set(texts(svg))
    assert charts.histogram([], "slices", "title") == ""
    ET.fromstring(charts.histogram(list(range(0, 4000, 7)), "slices", "title"))


def test_ramps_place_each_window_over_hu(rsna_spec):
    svg = charts.window_ramps(rsna_spec.image.windows, "title")
    stops = [float(element.attrib["offset"]) for element in ET.fromstring(svg).iter("stop")]
    pairs = list(zip(stops[::2], stops[1::2]))
    widths = [window.width_hu for window in rsna_spec.image.windows]
    for (begin, end), width in zip(pairs, widths):
        assert 0 < begin < end < 1
        assert (end - begin) * widths[0] == pytest.approx((pairs[0][1] - pairs[0][0]) * width, rel=1e-2)
    assert "level 40, width 80: 0 to 80 HU" in texts(svg)


@pytest.mark.parametrize("window", [Window("one", 0, 1), Window("wide", -100, 65000), Window("odd", 3, 7)])
def test_ramps_of_any_window(window):
    assert len(rects(charts.window_ramps([window], "title"))) == 1


@given(st.floats(1e-6, 1e9), st.integers(1, 20))
def test_nice_steps_are_few_and_fit(span, most):
    step = charts.nice_step(span, most)
    assert span / step <= most * (1 + 1e-6)
    assert f"{step:e}"[0] in "125"
