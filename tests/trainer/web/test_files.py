"""Templates and static files of the pages: nothing inline, no markup made of texts, nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from html_pages import HOSTILE, Page

from ich_tfrecords.views import html_page

WEB = Path(html_page.__file__).parents[2] / "trainer" / "web"
TEMPLATES = sorted((WEB / "templates").iterdir())
SCRIPTS = sorted((WEB / "static").glob("*.js"))
STYLES = sorted((WEB / "static").glob("*.css"))
GIVEN = {
    "list": {"most_bytes": 5, "model": HOSTILE, "digest": HOSTILE, "notes": [HOSTILE]},
    "study": {"notes": [HOSTILE]},
    "login": {"problem": HOSTILE},
}


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def named(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", TEMPLATES, ids=named)
def test_no_template_holds_anything_inline_or_lets_markup_in(path):
    assert not re.search(r"\|\s*safe\b|\bautoescape\b|Markup", text(path))
    assert not re.search(r"=\s*\{\{", text(path))  # an attribute without quotes ends at the first blank of its text
    assert not re.search(r"<style|<iframe|<object|<embed|<base\b|\s(style|on\w+)=|javascript:|https?:", text(path))
    assert re.findall(r"<script\b[^>]*>(.*?)</script>", text(path), re.S) in ([], [""])
    places = re.findall(r'(?:src|href|action)="([^"]*)"', text(path))
    assert [place for place in places if not re.match(r"/(?!/)|data:,$", place)] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=named)
def test_no_script_makes_markup_or_code_of_texts(path):
    assert not re.search(
        r"(inner|outer)HTML|insertAdjacentHTML|document\.write|\beval\b|Function\(|DOMParser", text(path)
    )
    assert [
        place for place in re.findall(r"https?://[^\"']*", text(path)) if place != "http://www.w3.org/2000/svg"
    ] == []


@pytest.mark.parametrize("path", [*SCRIPTS, *STYLES, *TEMPLATES], ids=named)
def test_files_can_be_read_in_one_sitting(path):
    lines = text(path).splitlines()
    assert max(map(len, lines)) <= 120
    assert len(lines) <= 300


@pytest.mark.parametrize("path", SCRIPTS, ids=named)
def test_every_script_is_used_and_imports_what_is_there(path):
    imported = re.findall(r'from "\./(\w+)\.js"', text(path))
    assert {f"{name}.js" for name in imported} <= set(map(named, SCRIPTS))
    others = [text(one) for one in (*SCRIPTS, *TEMPLATES) if one != path]
    assert any(path.name in one for one in others)


@pytest.mark.parametrize("path", STYLES, ids=named)
def test_no_style_asks_for_anything(path):
    assert not re.search(r"url\(|@import|@font-face", text(path))
    classes = set(re.findall(r"\.([a-z][a-z0-9-]*)", re.sub(r"/\*.*?\*/", "", text(path), flags=re.S)))
    everything = " ".join(map(text, (*TEMPLATES, *SCRIPTS)))
    assert [
        name for name in classes if not re.search(rf"\b{name.rstrip('12')}\b|{name.rstrip('12')}\$", everything)
    ] == []


@pytest.mark.parametrize("name", GIVEN)
def test_hostile_values_stay_text(name):
    plain = {key: [""] if isinstance(value, list) else value and "x" for key, value in GIVEN[name].items()}
    harmless = Page(html_page.page(f"{name}.html", "trainer.web", title="x", **plain))
    hostile = Page(html_page.page(f"{name}.html", "trainer.web", title=HOSTILE, **GIVEN[name]))
    assert hostile.tags == harmless.tags
    assert [one for one, _ in hostile.attributes] == [one for one, _ in harmless.attributes]
    assert sum(one.count(HOSTILE) for one in hostile.texts) >= 3
