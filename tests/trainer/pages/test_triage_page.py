"""The page of a prediction: whole, self-contained, escaped, bounded; strips above their curves; in a browser."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import browser
import numpy as np
import pytest
from html_pages import HOSTILE, Page, assert_every_text_stays_text

from ich_tfrecords import NOT_A_DEVICE, spec
from ich_tfrecords.storage.slice_reader import SliceRef
from trainer.models.model_file import About
from trainer.pages import triage_page
from trainer.prediction import thumbnails
from trainer.prediction.picture_files import Pictured
from trainer.prediction.slice_stream import FoundSlice, Reject
from trainer.prediction.thumbnails import Thumbnails
from trainer.prediction.triage import Outcome, Triage
from trainer.results import calibration

SPEC = spec.load("rsna_ich")
NAMES = SPEC.labels.names
ANY = NAMES.index(SPEC.labels.any)
UID = "1.2.826.0.1.3680043.8.498.3921"
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def about() -> About:
    fitted = calibration.unfitted(NAMES, np.zeros(len(NAMES)), "made for a test")
    fitted = calibration.Calibration(NAMES, fitted.shift, fitted.slope, fitted.intercept, {"epidural": "no positive"})
    even = {name: {"even": 0.5} for name in NAMES}
    return About(SPEC, "f" * 64, {"model": "cnn"}, fitted, even, even, {"parameters": 1, "epoch": 1, "step": 1})


@contextmanager
def predicted(studies: int, slices: int = 9, uid: str = UID, rejects: list[Reject] | None = None) -> Iterator[Any]:
    """What predict has found: in study k, the slice k modulo `slices` drives."""
    rng = np.random.default_rng(5)
    found = Triage(SPEC.labels, 8)
    with tempfile.TemporaryFile() as file:
        kept = Thumbnails(file, len(NAMES), SPEC.image.size_px)
        for study in range(studies):
            values = rng.random((slices, len(NAMES))) * 0.5 * (studies - study) / studies
            values[study % slices, ANY] = 0.99 - 0.5 * study / studies
            ids = [f"{uid}.{study}.{number}" for number in range(slices)]
            ref = SliceRef("/in", "a.dcm", -1, -1, 1, 1, -1, 1)
            own = [
                FoundSlice(ref, 1, sop, f"{uid}.{study}", f"{uid}.{study}.s", 5.0 * number - 20)
                for number, sop in enumerate(ids)
            ]
            images = rng.integers(0, 256, (slices, *SPEC.image.shape), np.uint8)
            outcome = Outcome(own, values, [], slices, thumbnails=thumbnails.of_images(images, SPEC.image))
            found.take(outcome)
            kept.take(outcome)
        found.reject(rejects or [])
        yield found, kept


def pictured(found: Triage, count: int) -> list[Pictured]:
    jpeg = thumbnails.jpeg_bytes(thumbnails.strip(np.zeros((1, 64, 64), np.uint8), 0))
    panels = [(head, jpeg) for head in ("brain 40/80", "subdural 80/200", "bone 40/380", "composite RGB", "speaks")]
    return [Pictured(None, study.driver.found.sop_uid, panels) for study in found.studies()[:count]]  # type: ignore


def made(about: About, studies: int, explained: int = 8, **given: Any) -> str:
    with predicted(studies, **given) as (found, kept):
        return triage_page.page(found, about, "d" * 64, kept, pictured(found, explained))


LOST = [
    Reject(1, "DOE/1.dcm", f"{UID}.0", "truncated", "PixelData has 10 of 20 bytes"),
    Reject(1, "DOE/2.dcm", f"{UID}.zz", "no_rescale", "no RescaleSlope"),
    Reject(1, "DOE/LICENSE", "", "not_dicom", "no DICOM"),
    Reject(1, "DOE/3.dcm", f"{UID}.0", "other_series", "a better one was read"),
    Reject(2, "DOE/4.dcm", "", "truncated", "nothing inside"),
    Reject(1, "DOE/5.dcm", "", "not_dicom", "overwritten"),
]


def test_ten_studies_have_all_there_is(about):
    page = Page(made(about, 10, rejects=LOST))
    assert [int(words) for words in re.findall(r"(?<= )\d+(?= 1\.2\.826)", page.words)][:10] == list(range(1, 11))
    images = [value for name, value in page.attributes if name == "src"]
    assert len(images) == 8 * 5 + 10
    assert all(value.startswith("data:image/jpeg;base64,") for value in images)
    assert page.tags.count("svg") == 10
    assert page.tags.count("polyline") == 20
    assert "PARTIAL: judged by 9 of 10 slices (missing: 1 truncated)" in page.words
    assert "probabilities of epidural are not calibrated, but for the shift: no positive" in page.words
    assert page.words.count(NOT_A_DEVICE) == 2
    assert "Studies without any prediction" in page.headings
    assert page.rows_of("truncated") == [
        ["missing", "2"],
        ["DOE/1.dcm", "1", "PixelData has 10 of 20 bytes"],
        ["DOE/4.dcm", "2", "nothing inside"],
    ]
    assert page.rows_of("no_rescale") == [["missing", "1"], ["DOE/2.dcm", "1", "no RescaleSlope"]]
    assert page.rows_of("not_dicom") == [
        ["never an axial CT slice", "1"],
        ["missing", "1"],
        ["DOE/5.dcm", "1", "overwritten"],
    ]
    assert page.rows_of("other_series") == [["another series was read, or it is a copy", "1"]]
    assert "Further studies" not in page.headings


def test_numbers_of_a_card(about):
    with predicted(1) as (found, kept):
        (study,) = found.studies()
        card = triage_page._card(1, study, found, about, kept, {})
    assert [label.name for label in card.labels] == list(NAMES)
    assert card.labels[ANY].study == "0.990"
    assert [label.calibrated for label in card.labels] == [name != "epidural" for name in NAMES]
    assert (card.slices, card.partial, card.curve.feet, card.curve.head) == (
        "9 slices",
        None,
        "feet, -20.0 mm",
        "head, 20.0 mm",
    )
    first, *_ = card.curve.lines.values()
    corners = [tuple(map(float, corner.split(","))) for corner in first.split()]
    assert [x for x, _ in corners] == [round(1000 * (at + 0.5) / 9, 1) for at in range(9)]
    assert corners[0] == (card.curve.driver, 1.0)


def test_a_curve_of_very_many_slices_keeps_its_peak():
    values = np.zeros(8000, np.float32)
    values[4321] = 0.75
    corners = triage_page._corners(values).split()
    assert len(corners) <= triage_page.MOST_POINTS
    assert [corner.split(",")[1] for corner in corners].count("25.0") == 1


def test_a_slice_alone_has_a_level_line():
    assert triage_page._corners(np.array([0.25], np.float32)) == "0,75.0 1000,75.0"


@pytest.mark.slow
def test_five_hundred_studies_are_rows_and_the_page_stays_small(about):
    text = made(about, 500, explained=50, slices=30)
    page = Page(text)
    assert page.tags.count("svg") == triage_page.PICTURED
    assert [row[0] for row in page.rows if row[0].isdigit()] == [str(rank) for rank in range(51, 501)]
    assert len(text) < 6_000_000  # of noise, which no codec makes small


def test_beyond_its_bound_the_page_says_how_many_more(about, monkeypatch):
    monkeypatch.setattr(triage_page, "LISTED", 60)
    lost = [Reject(1, f"{n}.dcm", f"9.{n}", "truncated", "") for n in range(300)]
    page = Page(made(about, 70, rejects=lost))
    assert [row[0] for row in page.rows if row[0].isdigit()] == [str(rank) for rank in range(51, 61)]
    assert "And 10 more, which are less urgent. triage.csv holds all." in page.words
    assert "And 240 more; triage.csv holds all." in page.words
    assert len(page.rows_of("truncated")) == 1 + 200


def test_nothing_found(about):
    page = Page(made(about, 0, rejects=LOST[2:3]))
    assert "Triage of 0 studies" in page.words
    assert page.headings == ["Files without a prediction"]
    assert "Every file gave a prediction." in Page(made(about, 1)).words


@pytest.mark.slow
def test_every_text_stays_text(about, monkeypatch):
    assert_every_text_stays_text(monkeypatch, lambda: made(about, 55, rejects=LOST))


def test_hostile_ids_stay_text(about):
    text = made(about, 2, uid=SCRIPT, rejects=[Reject(1, HOSTILE, "", "truncated", HOSTILE)])
    assert "<script" not in text
    assert SCRIPT in Page(text).words


def test_the_same_results_give_the_same_bytes(about):
    assert made(about, 3) == made(about, 3)


MEASURED = """JSON.stringify((() => {
  const boxes = [...document.querySelectorAll('h2, .note, .labels > div, figure, .along, .ends small, td, th')]
    .map(one => [one, one.getBoundingClientRect()]);
  const over = [];
  for (const [one, a] of boxes) for (const [other, b] of boxes)
    if (one !== other && !one.contains(other) && !other.contains(one) &&
        Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
        Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1) over.push([one.innerText, other.innerText]);
  const strips = [...document.querySelectorAll('.along')].map(one => {
    const [img, svg] = [one.querySelector('img'), one.querySelector('svg')].map(x => x.getBoundingClientRect());
    return Math.abs(img.left - svg.left) + Math.abs(img.right - svg.right); });
  const cut = [...document.querySelectorAll('.labels > div')].filter(one => one.scrollWidth > one.clientWidth);
  return {over: over.slice(0, 3), strips: Math.max(...strips), cut: cut.length};
})())"""


@pytest.mark.slow
@pytest.mark.parametrize("width_px", [1280, 390])
def test_it_looks_right(about, tmp_path, width_px):
    """Nothing lies over anything else, each curve is as wide as its strip, and nothing is asked for."""
    (tmp_path / "page.html").write_text(made(about, 60, uid=f"{UID}.{'7' * 20}", rejects=LOST))
    report = browser.render(tmp_path / "page.html", tmp_path / "page.png", width_px, MEASURED)
    assert (report.console, report.requests, report.broken_images, report.scripts) == ([], [], 0, 0)
    assert report.images == 8 * 5 + 50
    assert not report.too_wide
    found = json.loads(report.measured)
    assert found["over"] == []
    assert found["cut"] == 0
    assert found["strips"] < 1
