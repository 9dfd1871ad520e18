"""The room of all pages: templates that escape, that lack nothing, and whose markup is all in one place."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2
import pytest
from html_pages import HOSTILE, Page
from markupsafe import escape

from ich_tfrecords.views import html_page

PACKAGES = ("ich_tfrecords.views", "trainer.pages")
ROOT = Path(__file__).parents[3]
TEMPLATES = sorted(path for name in PACKAGES for path in (ROOT / name.replace(".", "/") / "templates").iterdir())
PIECES = {"base.html", "parts.html", "style.css"}  # of which pages are made


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_written_into_a_template_is_escaped(package):
    found = html_page.templates(package)
    assert found.autoescape is True
    assert found.from_string("{{ text }}").render(text=HOSTILE) == str(escape(HOSTILE))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_template_lets_markup_in(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\|\s*safe\b|\bautoescape\b|Markup", text)
    assert not re.search(r"=\s*\{\{", text)  # an attribute without quotes ends at the first blank of its text
    assert not re.search(r"<(script|link|iframe|object|embed|base)\b|\bon\w+=|href=|url\(|@import", text)
    assert [quoted for quoted in re.findall(r'src="([^"]*)"', text) if quoted != "{{ shown.src }}"] == []


def test_every_page_extends_the_one_base():
    pages = [path for path in TEMPLATES if path.name not in PIECES]
    of_results = {f"{name}.html" for name in ("audit", "comparison", "drift", "evaluation", "triage")}
    assert {path.name for path in pages} == {"report.html", *of_results}
    assert all(path.read_text(encoding="utf-8").startswith('{% extends "base.html" %}\n') for path in pages)
    assert [path.name for path in TEMPLATES if re.search("<!doctype|<html|<style", path.read_text(), re.I)] == [
        "base.html"
    ]


@pytest.mark.parametrize(("package", "name"), [("ich_tfrecords.views", "report"), ("trainer.pages", "comparison")])
def test_a_value_that_a_template_lacks_is_an_error(package, name):
    with pytest.raises(jinja2.UndefinedError, match="is undefined"):
        html_page.page(f"{name}.html", package, title="alone")


def table(**given: object) -> Page:
    template = html_page.templates(html_page.OWN).from_string('{% from "parts.html" import table %}{{ table(shown) }}')
    return Page(template.render(shown=html_page.Table(**given)))


def test_a_table_sets_numbers_to_the_right():
    page = table(head=["a", "b", "c"], rows=[["1", "2", "3"]], words=2)
    assert page.rows == [["a", "b", "c"], ["1", "2", "3"]]
    assert [value for name, value in page.attributes if name == "class"] == ["text", "text", "number"] * 2


@pytest.mark.parametrize(
    ("given", "shown"),
    [("x" * 160, "x" * 160), ("x" * 161, "x" * 157 + "..."), ("word " * 40, ("word " * 40)[:157] + "..."), ("", "")],
)
def test_a_long_cell_is_cut(given, shown):
    assert table(head=["a"], rows=[[given]]).rows[1] == [shown]


def test_an_image_holds_its_data():
    shown = html_page.image(b"\x00\xff", "png", "two bytes", 7)
    assert shown == ("data:image/png;base64,AP8=", "two bytes", 7)
