"""Fixtures of the web application.

known      what is known of a model, without one and without TensorFlow
server     an application in this process, its client, and a model that reads when it is woken

Its pages in Chromium:

chromium   the browser, one for all tests of a file
work       a made-up worklist
address    where its pages are served
open_page  opens one of them; at the end of the test none may have complained or asked for anything elsewhere
head       HU of a made-up head, 24 slices
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keyboard
import pytest
import served_pages
import web_server
from playwright.sync_api import Browser, Page
from web_server import Served

from trainer.models.model_file import About
from trainer.results import calibration


@pytest.fixture(scope="session")
def known(rsna_spec) -> About:
    names = rsna_spec.labels.names
    fitted = calibration.unfitted(names, [0.0] * len(names), "no validation split")
    even = {name: {"even": 0.5} for name in names}
    return About(rsna_spec, "f" * 64, {"model": "cnn"}, fitted, even, even, {"parameters": 1, "epoch": 1, "step": 1})


@pytest.fixture
def server(tmp_path, known) -> Iterator[Served]:
    with web_server.served(tmp_path / "spool", known) as made:
        yield made


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Not for the session: while Playwright is there an event loop runs, and others could begin none."""
    with keyboard.chromium() as browser:
        yield browser


@pytest.fixture
def work() -> served_pages.Worklist:
    return served_pages.Worklist()


@pytest.fixture
def address(work: served_pages.Worklist) -> Iterator[str]:
    with served_pages.serving(work) as address:
        yield address


@pytest.fixture
def open_page(chromium: Browser, address: str) -> Iterator[Callable[..., Page]]:
    """`open_page(path, width_px=1280, complaints=())`: what the console may hold besides nothing."""
    opened: list[tuple[Page, keyboard.Watch, tuple[str, ...]]] = []

    def open_page(path: str, width_px: int = 1280, complaints: tuple[str, ...] = (), **context: Any) -> Page:
        page, watch = keyboard.opened(chromium, address, path, width_px, **context)
        opened.append((page, watch, complaints))
        return page

    yield open_page
    for page, watch, complaints in opened:
        page.context.close()
        assert [line for line in watch.console if not any(part in line for part in complaints)] == []
        assert watch.outside == []


@pytest.fixture(scope="session")
def head() -> served_pages.Int16:
    return served_pages.head_volume(24)
