"""Every HTML page: Jinja2 templates around one base and one stylesheet, without scripts and without a request.

A template is handed plain values: numbers, texts, a `Table`, an `Image`. Every text is escaped; the only markup that
comes from Python is that of `charts`.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jinja2

from ich_tfrecords import NOT_A_DEVICE

OWN = "ich_tfrecords.views"  # the package whose templates the others extend


class Table(NamedTuple):
    """Plain texts in rows; the first `words` columns are text, the rest numbers set to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1


class Image(NamedTuple):
    """An image inside the page; `src` holds its data, `alt` says what it shows."""

    src: str
    alt: str
    width_px: int


def image(data: bytes, kind: str, alt: str, width_px: int) -> Image:
    """The image of a file's bytes; `kind` is `png`, `jpeg` or `svg+xml`."""
    return Image(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", alt, width_px)


def page(template: str, package: str = OWN, **values: object) -> str:
    """HTML text of the page that a template of `package` makes of `values`. Raises where it lacks one of them."""
    return templates(package).get_template(template).render(values)


@functools.cache
def templates(package: str) -> jinja2.Environment:
    """The templates of a package, and those of this one."""
    places = [jinja2.PackageLoader(name) for name in dict.fromkeys((package, OWN))]
    found = jinja2.Environment(
        loader=jinja2.ChoiceLoader(places), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    found.globals["not_a_device"] = NOT_A_DEVICE
    found.filters["thousands"] = "{:,}".format
    return found
