"""The page of what has moved: its sentences, its numbers, hostile words, and how it looks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import browser
import numpy as np
import pyarrow as pa
import pytest
from html_pages import Page, assert_every_text_stays_text
from portrait_tables import LABELS, WINDOWS, named, portraits

from ich_tfrecords.spec import Window
from trainer.pages import drift_page
from trainer.trust import drift
from trainer.trust.drift import TRAINING, VALIDATION, Drift
from trainer.trust.portraits import Known

HOSTILE = "<script>alert(1)</script>$x^2$ {{ 7 * 7 }}"
BRAIN = Window("brain", 40, 80)
SHOWN = (BRAIN, Window("subdural", 80, 200), Window("bone", 600, 2800))
MADE = {"model": "cnn"}


def compared(now: pa.Table, draws: int = 399) -> Drift:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drift, "DRAWS", draws)
        references = {
            name: Known(portraits(60, seed), np.arange(60)) for seed, name in enumerate((TRAINING, VALIDATION))
        }
        return drift.compare(references, now, WINDOWS, LABELS, {})


def named_portraits(count: int = 40, **changes) -> pa.Table:
    return named(portraits(count, 3, **changes))


@pytest.fixture(scope="module")
def moved() -> Drift:
    return compared(named_portraits(kvp=100, kernels=(HOSTILE, "H31s"), shift=2.0))


@pytest.fixture(scope="module")
def text(moved) -> str:
    """The page of it."""
    return drift_page.page(moved, SHOWN, MADE, 0)


@pytest.fixture(scope="module")
def still() -> Drift:
    return compared(named_portraits())


def test_the_verdict_names_the_three_that_moved_most(moved):
    first = " and ".join(drift_page.title(one) for one in moved.things[1:3])
    assert first.count("grey (") == 2
    assert drift_page.verdict(moved) == (
        f"5 of 14 things have moved beyond chance, most of all: tube voltage (kV), {first} "
        "(at a false-alarm rate of 5% for all together)."
    )


def test_the_verdict_where_nothing_moved(still):
    assert drift_page.verdict(still) == (
        "Nothing has moved that chance does not explain: 14 things compared, at a false-alarm rate of 5% for all "
        "together."
    )


def test_each_thing_says_how_it_moved(moved):
    told = {one.key: drift_page.says(one, SHOWN) for one in moved.things}
    assert told["kvp"] == "mean 120 in training, 100 now"
    assert "bear a word that training never had" in told["kernel"]
    assert told["brain"].startswith("2.")  # 2 of 32 bins of 80 HU are 5; two fifths of the pixels are no air
    assert "HU brighter over all pixels" in told["brain"]
    assert "spreads of a series from that of validation" in told["vector"]
    assert told["any"].startswith("on average 0.")


def test_the_lines_end_with_the_verdict(still):
    lines = list(drift_page.lines(still, SHOWN))
    assert [line.endswith("(chance explains it)") for line in lines[:3]] == [True] * 3
    assert lines[3] == "gantry tilt (degrees) not compared: no series of training tells it"
    assert lines[4].startswith("With 40 patients a thing has to lie about 0.")
    assert lines[5] == drift_page.verdict(still)


def test_that_some_were_drawn_is_told(moved, monkeypatch):
    monkeypatch.setattr(drift, "MOST", 50)
    assert "Of the 60 patients of training 50 drawn by the seed count." in drift_page.notes(moved)


def test_values_are_plain_json(moved):
    values = json.loads(json.dumps(drift_page.values(moved, SHOWN, MADE, 0), allow_nan=False))
    first = values["things"][0]
    assert (first["name"], first["moved"], first["effect"]) == ("kvp", True, 1)
    assert set(first) >= {"separation", "by_chance", "p", "p_corrected", "against", "says", "edges", "shares"}
    assert math.isclose(sum(first["shares"][0]), 1)


def test_the_page_holds_every_thing_in_its_order(moved, text):
    page = Page(text)
    titles = [drift_page.title(one) for one in moved.things]
    assert [row[0] for row in page.rows if len(row) == 7][1:] == titles
    assert page.rows_of("gantry tilt (degrees)") == [["no series of training tells it"]]
    assert page.headings[:3] == ["What moved most", "How to read it", "Everything compared"]


def test_words_of_headers_stay_text(text):
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


@pytest.mark.slow
def test_whatever_comes_in_as_text_stays_text(monkeypatch, moved):
    assert_every_text_stays_text(monkeypatch, lambda: drift_page.page(moved, SHOWN, MADE, 0))


def test_no_study_is_named(text):
    assert "study-" not in text


@pytest.mark.slow  # starts a browser
@pytest.mark.parametrize("width_px", [390, browser.WIDTH_PX])
def test_a_browser_shows_it_whole(text, tmp_path, width_px):
    place = Path(tmp_path / "drift.html")
    place.write_text(text, encoding="utf-8")
    seen = browser.render(place, tmp_path / "drift.png", width_px)
    assert (seen.console, seen.requests, seen.broken_images, seen.scripts) == ([], [], 0, 0)
    assert not seen.too_wide
    assert seen.images >= 4
