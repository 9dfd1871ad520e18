"""The three pages of numbers as Chromium shows and prints them: on a screen, on a phone, on paper."""

from __future__ import annotations

import json
from pathlib import Path

import browser
import evaluated_runs
import pytest

from ich_tfrecords import inspect
from trainer import compare, evaluate

pytestmark = pytest.mark.slow  # starts a browser

PAGES = ("dataset", "evaluation", "comparison")
LONG = ("densenet121_balanced_augmented", "xception_natural")
PHONE_PX = 390
SMALLEST_PX = 9  # of letters that can be read

# words of cells that stand on two lines; the least height of letters drawn in a figure, by how it is scaled
LOOKS = """JSON.stringify((() => {
  const range = document.createRange(), broken = [];
  for (const cell of document.querySelectorAll("td, th")) {
    const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) for (const word of texts.currentNode.data.matchAll(/\\S+/g)) {
      range.setStart(texts.currentNode, word.index);
      range.setEnd(texts.currentNode, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map(one => Math.round(one.top))).size > 1) broken.push(word[0]);
    }
  }
  const letters = [...document.querySelectorAll("svg text")].map(one => one.getBoundingClientRect().height);
  const scales = [...document.querySelectorAll(".plot img")].map(one => one.width / one.getAttribute("width"));
  const boxes = [...document.querySelectorAll("header, section")].map(one => one.getBoundingClientRect());
  const overlaps = boxes.filter((one, at) => at && one.top < boxes[at - 1].bottom - 1).length;
  return {broken, overlaps, scale: Math.min(1, ...scales), letters: Math.min(99, ...letters.filter(one => one))};
})())"""

# of each heading whose figure follows before the next heading: px from its upper edge to the lower one of the figure
NEEDS = """JSON.stringify([...document.querySelectorAll("h1, h2, h3")].map((one, at, all) => {
  const next = all[at + 1], plots = [...document.querySelectorAll(".plot")];
  const follows = (early, late) => early.compareDocumentPosition(late) & Node.DOCUMENT_POSITION_FOLLOWING;
  const own = plots.find(plot => follows(one, plot) && (!next || follows(plot, next)));
  const top = one.getBoundingClientRect().top;
  return [one.textContent, own ? own.getBoundingClientRect().bottom - top : 0];
}))"""


@pytest.fixture(scope="module")
def pages(blob_run, blobs, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    assert inspect.main(["report", str(blobs), "--output", str(folder / "report")]) == 0
    output = ["--output", str(folder / "evaluation"), "--resamples", "100"]
    assert evaluate.main(["--job_dir", str(blob_run), *output]) == 0
    runs = [
        str(evaluated_runs.write(folder / name, evaluated_runs.run(name, evaluated_runs.predictions(2.0 - seed, seed))))
        for seed, name in enumerate(LONG)
    ]
    assert compare.main([*runs, "--output", str(folder / "comparison.html")]) == 0
    return {
        "dataset": folder / "report" / "index.html",
        "evaluation": folder / "evaluation" / "report.html",
        "comparison": folder / "comparison.html",
    }


@pytest.mark.parametrize("width_px", [PHONE_PX, browser.WIDTH_PX])
@pytest.mark.parametrize("name", PAGES)
def test_words_stay_whole_and_letters_can_be_read(name, width_px, pages, tmp_path):
    report = browser.render(pages[name], tmp_path / "shown.png", width_px, LOOKS)
    looks = json.loads(report.measured)
    assert not report.too_wide
    assert looks["broken"] == []
    assert looks["overlaps"] == 0
    assert looks["letters"] >= SMALLEST_PX
    assert looks["scale"] > 0.9  # plots are drawn with letters of 10 px and more
    assert (report.console, report.requests, report.broken_images) == ([], [], 0)


@pytest.mark.parametrize("name", PAGES)
def test_on_paper_a_heading_stands_above_its_figure(name, pages, tmp_path):
    headings, measured = browser.printed(pages[name], tmp_path / "chromium", NEEDS)
    needs = json.loads(measured)
    assert [text for text, _ in needs if text.strip()] != []
    room = {heading.text: heading.room_px for heading in headings}
    drawn = {text: need for text, need in needs if need}
    assert drawn
    assert {text for text in drawn if room[text] < 0.95 * drawn[text]} == set()
    assert {text for text in room if room[text] < 40} == set()  # heading, head of a table, a line
