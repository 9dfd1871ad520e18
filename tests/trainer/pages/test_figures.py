"""Figures: well-formed SVG, the same bytes whatever matplotlib is set to, every letter a path, nothing too small."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import matplotlib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.pages import figures

HOSTILE = "--><script>alert(1)</script> $x^2$ {} \\alpha \n \x00 \U0001fae0 漢字"


@figures.svg
def one(words: str):
    canvas = figures.figure(200)
    axes = figures.axes_at(canvas, (60, 20, 400, 100))
    axes.plot([0, 1], [0, 1], **figures.look(0))
    axes.set(xlabel=figures.plain(words))
    return canvas


def texts(svg: bytes) -> list[str]:
    """What the figure says: matplotlib writes each text as a comment beside its paths."""
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", svg.decode(), re.DOTALL)]


def test_the_same_figure_has_the_same_bytes_whatever_matplotlib_is_set_to():
    first = one("epoch")
    with matplotlib.rc_context({"font.size": 40, "svg.fonttype": "none", "lines.linewidth": 9, "axes.grid": False}):
        assert one("epoch") == first
        assert matplotlib.rcParams["font.size"] == 40  # as it was
    assert b"date" not in first


def test_letters_are_paths_and_data_is_never_mathematics_or_markup(recwarn):
    svg = one(HOSTILE)
    tags = {element.tag.partition("}")[2] for element in ElementTree.fromstring(svg).iter()}
    assert not tags & {"text", "script", "image", "a"}
    assert any("$x^2$" in text for text in texts(svg))
    assert not recwarn.list  # of glyphs that are missing


def test_the_width_is_that_of_the_page():
    width = ElementTree.fromstring(one("epoch")).get("width")
    assert float(width.removesuffix("pt")) / figures.PX == figures.WIDTH_PX


def test_what_the_font_lacks_becomes_a_question_mark():
    assert figures.plain("a\nb\x00漢\U0001fae0é") == "a?b???é"


@given(st.text("iwW m", max_size=60), st.integers(40, 200))
@settings(max_examples=30, deadline=None)
def test_a_text_is_cut_to_its_width(text, width_px):
    shown = figures.plain(text, width_px)
    assert shown == text or (shown.endswith("...") and text.startswith(shown[:-3]))
    assert len(shown) <= width_px  # no letter is narrower than 3 px, and three dots are 12
    assert figures.plain(text, 10_000) == text


def test_thirty_six_lines_differ_and_a_color_never_stands_alone():
    looks = [(drawn["color"], str(drawn["linestyle"])) for drawn in map(figures.look, range(36))]
    assert len(set(looks)) == 36
    assert len({line for _, line in looks[:6]}) == len({figures.look(number)["marker"] for number in range(6)}) == 6


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "low", "high", "words"),
    [
        (0.9123, 0.88, 0.9409, "0.912 (0.880 to 0.941)"),
        (1, 1, 1, "1.000 (1.000 to 1.000)"),
        (0.5, None, 0.6, "0.500"),
        (0.5, NAN, NAN, "0.500"),
        (None, 0.1, 0.2, figures.DASH),
        (NAN, None, None, figures.DASH),
        (INF, None, None, figures.DASH),
    ],
)
def test_with_interval(value, low, high, words):
    assert figures.with_interval(value, low, high) == words


def test_fewer_decimals():
    assert figures.with_interval(87.6, 80.2, 93, decimals=0) == "88 (80 to 93)"
