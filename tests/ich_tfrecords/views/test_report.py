"""The HTML page: whole, self-contained, escaped, the same each time."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path

import browser
import odd_dataset
import pytest
from html_pages import Page, assert_every_text_stays_text
from PIL import Image

from ich_tfrecords import inspect
from ich_tfrecords.dataset import manifest
from ich_tfrecords.views import report


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    return odd_dataset.make(tmp_path_factory.mktemp("odd") / "data")


def text_of(folder: Path) -> str:
    return report.page(folder, manifest.read(folder), "ich_tfrecords 0")


class TestPage:
    def test_it_is_one_file_without_scripts_or_requests(self, dataset, tmp_path):
        assert inspect.main(["report", str(dataset), "--output", str(tmp_path / "page")]) == 0
        assert [path.name for path in (tmp_path / "page").iterdir()] == ["index.html"]
        text = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
        page = Page(text)
        assert "script" not in page.tags
        assert not {"link", "iframe", "object", "a"} & set(page.tags)
        assert not [name for name, _ in page.attributes if name.startswith("on")]
        assert all(value.startswith("data:image/png;base64,") for name, value in page.attributes if name == "src")
        assert "http" not in re.sub(r"http-equiv", "", text)
        assert "url(" not in text.replace("url(#ramp", "")

    def test_the_same_data_set_gives_the_same_page(self, odd):
        assert text_of(odd) == text_of(odd)

    def test_hostile_ids_stay_text(self, odd):
        text = text_of(odd)
        page = Page(text)
        assert "<script" not in text
        assert page.tags.count("img") == len([value for name, value in page.attributes if name == "src"])
        titles = {value for name, value in page.attributes if name == "title"}
        assert {odd_dataset.SCRIPT, odd_dataset.FORMULA, odd_dataset.CLIMBER, '"><img src=x>'} <= titles
        assert "b" in page.tags
        assert "&lt;b&gt;bad.dcm" in text

    def test_whatever_comes_in_as_text_stays_text(self, odd, monkeypatch):
        assert_every_text_stays_text(monkeypatch, lambda: text_of(odd))

    def test_it_says_what_the_data_set_holds(self, odd):
        done, words = manifest.read(odd), " ".join(Page(text_of(odd)).texts)
        for fact in (
            done.fingerprint,
            "not_dicom",
            "empty_file",
            "prevalence of epidural",
            "spare",
            "level 40, width 80",
        ):
            assert fact in words
        assert '"seed": 2019' in words
        assert "groups across patients 1" in " ".join(words.split())

    def test_pictures_are_pngs_with_all_panels(self, odd):
        sources = [value for name, value in Page(text_of(odd)).attributes if name == "src"]
        assert len(sources) == 7
        with Image.open(io.BytesIO(base64.b64decode(sources[0].partition(",")[2]))) as picture:
            assert picture.size == (4 * report.PANEL_PX + 9, report.PANEL_PX)

    def test_an_unlabelled_set(self, tmp_path):
        words = " ".join(Page(text_of(odd_dataset.make(tmp_path / "data", labelled=False))).texts)
        assert "No slice is positive." in words
        assert "any 7" in words
        assert "unlabelled" in words

    def test_one_window_has_no_composite(self, tmp_path):
        words = " ".join(Page(text_of(odd_dataset.make(tmp_path / "data", windows=1))).texts)
        assert "composite" not in words
        assert "1 window." in words

    def test_a_missing_reject_list_is_an_error(self, odd, tmp_path, capsys):
        copy = Path(shutil.copytree(odd, tmp_path / "copy"))
        (copy / "rejects.csv").unlink()
        assert inspect.main(["report", str(copy), "--output", str(tmp_path / "page")]) == 2
        assert "rejects.csv" in capsys.readouterr().err
        assert not (tmp_path / "page").exists()


@pytest.mark.slow
def test_a_browser_shows_it_whole(odd, tmp_path):
    (tmp_path / "page.html").write_text(text_of(odd), encoding="utf-8")
    seen = browser.render(tmp_path / "page.html", tmp_path / "page.png")
    assert (seen.console, seen.requests, seen.broken_images, seen.scripts) == ([], [], 0, 0)
    assert seen.images > 6
    assert not seen.too_wide
    assert "<b>bad.dcm" in seen.text  # a file name, as text
