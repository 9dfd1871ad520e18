"""Pages taken apart, and pages made of hostile texts alone."""

from __future__ import annotations

import html.parser
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from markupsafe import Markup

from ich_tfrecords.views import html_page

HOSTILE = "<script>alert(1)</script>'\"><img src=x onerror=x>&lt;{{ 77777 * 77777 }}{% raw %}</style>"
VOID = {"meta", "img", "br", "link", "input"}
KEYS_SHOWN = {"facts", "skill", "folds"}  # values whose keys stand on the page


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page; every tag must be closed by its own end tag.

    `words` is all text with single blanks; `texts` what stands between two tags; `rows` the cells of tables.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []
        self.words = " ".join("".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self._open[-1:] == ["h2"]:
            self.headings.append(data)
        if self._open[-1:] in (["td"], ["th"]):
            self.rows[-1][-1] += " ".join(data.split())

    def rows_of(self, first: str) -> list[list[str]]:
        return [row[1:] for row in self.rows if row[0] == first]


def assert_every_text_stays_text(monkeypatch: pytest.MonkeyPatch, make: Callable[[], str]) -> None:
    """What `make` hands to its template, each text of it replaced by a hostile one, gives the same tags as before."""
    plain, real, templates = Page(make()), html_page.page, []

    def page(template: str, package: str = html_page.OWN, **values: Any) -> str:
        templates.append(template)
        return real(template, package, **{name: _hostile(value, name in KEYS_SHOWN) for name, value in values.items()})

    monkeypatch.setattr(html_page, "page", page)
    hostile = Page(make())
    assert len(templates) == 1
    assert hostile.tags == plain.tags
    assert [name for name, _ in hostile.attributes] == [name for name, _ in plain.attributes]
    assert sum(text.count(HOSTILE) for text in hostile.texts) > 100
    assert str(77777 * 77777) not in hostile.words


def _hostile(value: Any, keys: bool = False) -> Any:
    """The value with `HOSTILE` in place of each of its texts; the markup of charts stays."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, dict):
        numbers = itertools.count()
        return {f"{HOSTILE}{next(numbers)}" if keys else key: _hostile(one) for key, one in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_hostile, value))
    if isinstance(value, (list, tuple)):
        return list(map(_hostile, value))
    return value
