"""Chromium with real keys, wheel, drags and files (Playwright drives the system's own), and what a page must not do."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from browser import program
from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
HIGH_PX = 900
# pairs of shown controls and texts that lie over one another, none of them inside the other
OVERLAPS = """() => {
  const shown = [...document.querySelectorAll(
    "a, button, input, select, progress, canvas, svg, h1, h2, h3, th, td, label, dt, dd, p, li > span, small")]
    .filter((one) => one.checkVisibility() && one.getClientRects().length)
    .map((one) => ({ one, box: one.getBoundingClientRect() }))
    .filter(({ box }) => box.width > 0 && box.height > 0);
  const name = ({ one }) => `${one.tagName} ${one.id} ${one.textContent.trim().slice(0, 30)}`;
  const found = [];
  shown.forEach((first, n) => shown.slice(n + 1).forEach((other) => {
    if (first.one.contains(other.one) || other.one.contains(first.one)) return;
    const wide = Math.min(first.box.right, other.box.right) - Math.max(first.box.left, other.box.left);
    const high = Math.min(first.box.bottom, other.box.bottom) - Math.max(first.box.top, other.box.top);
    if (wide > 1 && high > 1) found.push(`${name(first)} / ${name(other)}`);
  }));
  return found;
}"""
TOO_WIDE = "() => document.documentElement.scrollWidth > document.documentElement.clientWidth"


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The browser of this machine; skips where there is none."""
    place = program()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=place, args=FLAGS)
        yield browser
        browser.close()


@dataclasses.dataclass
class Watch:
    """What a page said and asked for: `console` errors and warnings, and addresses `outside` of its server."""

    console: list[str] = dataclasses.field(default_factory=list)
    outside: list[str] = dataclasses.field(default_factory=list)


def opened(browser: Browser, address: str, path: str, width_px: int, **context: Any) -> tuple[Page, Watch]:
    """A page of the server at `address` in a window of its own; dialogs are answered with yes."""
    page = browser.new_context(viewport={"width": width_px, "height": HIGH_PX}, **context).new_page()
    page.set_default_timeout(15_000)
    watch = Watch()
    page.on("console", lambda one: one.type in ("error", "warning") and watch.console.append(one.text))
    page.on("pageerror", lambda one: watch.console.append(str(one)))
    page.on("request", lambda one: _outside(one.url, address) and watch.outside.append(one.url))
    page.on("dialog", lambda one: one.accept())
    page.goto(address + path)
    return page, watch


def _outside(url: str, address: str) -> bool:
    return not url.startswith((f"{address}/", "data:", "blob:"))
