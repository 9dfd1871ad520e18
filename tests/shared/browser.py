"""A page in headless Chromium: what it says on the console, what it asks for, which images fail, how it looks.

Spoken to over two pipes (the Chrome DevTools Protocol, one JSON text a message, ended by a zero byte), so that no
port is opened. Nothing that the page asks for is let out.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
TIMEOUT_S = 120
WIDTH_PX, HEIGHT_PX = 1280, 900
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-domain-reliability",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe", "--hide-scrollbars",
    f"--window-size={WIDTH_PX},{HEIGHT_PX}",
)  # fmt: skip
AT_3_AND_4 = """
import fcntl, os, sys
above = [fcntl.fcntl(int(one), fcntl.F_DUPFD, 10) for one in sys.argv[1:3]]
for number, descriptor in zip((3, 4), above):
    os.dup2(descriptor, number)
os.execv(sys.argv[3], sys.argv[3:])
"""
COMPLAINTS = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
FACTS = """JSON.stringify({
  text: document.body.innerText,
  images: document.images.length,
  broken: [...document.images].filter(one => !one.complete || !one.naturalWidth).length,
  scripts: document.scripts.length,
  width: document.documentElement.scrollWidth,
  seen: document.documentElement.clientWidth,
})"""


@dataclasses.dataclass(frozen=True)
class Report:
    """`console`: errors and warnings; `requests`: addresses other than the page itself and data inside it.

    `too_wide`: whether the page runs out of its window to the right. `measured`: what an expression gave.
    """

    console: list[str]
    requests: list[str]
    images: int
    broken_images: int
    scripts: int
    too_wide: bool
    text: str
    measured: str


def render(page: Path, picture: Path, width_px: int = WIDTH_PX, measure: str = "''") -> Report:
    """Open a file in Chromium and put a picture of the whole page at `picture`; skips where there is no Chromium.

    `measure`: an expression that gives a text.
    """
    with _browser(program(), picture.parent / "chromium") as talk:
        return _report(talk, page.resolve().as_uri(), picture, width_px, measure)


def program() -> str:
    """Where Chromium is on this machine; skips where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium on PATH ({', '.join(NAMES)}); .ci/run installs one")
    return found


class Heading(NamedTuple):
    """A heading of a printed page, and the room from its upper edge to the foot of that page, in CSS px."""

    text: str
    room_px: float


PAGE_PX, MARGIN_PX = (816, 1056), 38.4  # Letter with the margins of Chromium
A_POINT_PX = 96 / 72
_OUTLINE = re.compile(
    rb"/Title \(((?:[^()\\]|\\.)*)\)(?:(?!endobj).)*?/Dest \[\d+ 0 R /XYZ [\d.]+ ([\d.]+) 0\]", re.DOTALL
)


def printed(page: Path, profile: Path, measure: str) -> tuple[list[Heading], str]:
    """Headings of a file that Chromium prints, in its order, and what `measure` gave of the layout of its print."""
    with _browser(program(), profile) as talk:
        _open(talk, page.resolve().as_uri(), int(PAGE_PX[0] - 2 * MARGIN_PX))
        pdf = base64.b64decode(talk("Page.printToPDF", generateTaggedPDF=True, generateDocumentOutline=True)["data"])
        talk("Emulation.setEmulatedMedia", media="print")
        measured = talk("Runtime.evaluate", expression=measure)["result"]["value"]
    found = [(title.decode("latin-1"), float(y)) for title, y in _OUTLINE.findall(pdf)]
    return [Heading(title, y * A_POINT_PX - MARGIN_PX) for title, y in found], measured


def _report(talk: Talk, address: str, picture: Path, width_px: int, measure: str) -> Report:
    _open(talk, address, width_px)
    facts = json.loads(talk("Runtime.evaluate", expression=FACTS)["result"]["value"])
    measured = talk("Runtime.evaluate", expression=measure)["result"]["value"]
    shot = talk("Page.captureScreenshot", captureBeyondViewport=True, clip=_whole(talk, width_px))
    picture.write_bytes(base64.b64decode(shot["data"]))
    asked = [event["request"]["url"] for event in talk.events("Network.requestWillBeSent")]
    return Report(
        console=[str(event) for name in COMPLAINTS for event in talk.events(name)],
        requests=[one for one in asked if one != address and not one.startswith("data:")],
        images=facts["images"],
        broken_images=facts["broken"],
        scripts=facts["scripts"],
        too_wide=facts["width"] > facts["seen"],
        text=facts["text"],
        measured=measured,
    )


def _open(talk: Talk, address: str, width_px: int) -> None:
    target = talk("Target.createTarget", url="about:blank")["targetId"]
    talk.session = talk("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
        talk(f"{domain}.enable")
    talk("Emulation.setDeviceMetricsOverride", width=width_px, height=HEIGHT_PX, deviceScaleFactor=1, mobile=False)
    talk("Page.navigate", url=address)
    talk.until("Page.loadEventFired")


def _whole(talk: Talk, width_px: int) -> dict[str, float]:
    size = talk("Page.getLayoutMetrics")["cssContentSize"]
    return {"x": 0, "y": 0, "width": width_px, "height": size["height"], "scale": 1}


class Talk:
    """Calls a method of the browser and waits for its answer; keeps the events that come between."""

    def __init__(self, write: Callable[[bytes], Any], read: Iterator[Mapping[str, Any]]) -> None:
        self._write, self._read = write, read
        self._sent = 0
        self._events: list[Mapping[str, Any]] = []
        self.session = ""

    def __call__(self, method: str, **given: Any) -> Any:
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": given}
        self._write(json.dumps({**message, **({"sessionId": self.session} if self.session else {})}).encode() + b"\0")
        for answer in self._read:
            if answer.get("id") == self._sent:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._events.append(answer)
        raise AssertionError(f"Chromium ended before it answered {method}")

    def until(self, event: str) -> None:
        while not self.events(event):
            self._events.append(next(self._read))

    def events(self, name: str) -> list[Any]:
        return [one["params"] for one in self._events if one.get("method") == name]


@contextlib.contextmanager
def _browser(program: str, profile: Path) -> Iterator[Talk]:
    """Chromium reads its commands from descriptor 3 and answers on descriptor 4."""
    command_out, command_in = os.pipe()
    answer_out, answer_in = os.pipe()
    begin = [sys.executable, "-c", AT_3_AND_4, str(command_out), str(answer_in)]
    process = subprocess.Popen(
        ["timeout", "-k", "5", str(TIMEOUT_S), *begin, program, *FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(command_out, answer_in), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(command_out)
    os.close(answer_in)
    try:
        yield Talk(lambda data: os.write(command_in, data), _messages(answer_out))
    finally:
        os.close(command_in)
        process.terminate()
        process.wait()
        os.close(answer_out)
        shutil.rmtree(profile, ignore_errors=True)


def _messages(descriptor: int) -> Iterator[Mapping[str, Any]]:
    kept = b""
    while data := os.read(descriptor, 1 << 16):
        *whole, kept = (kept + data).split(b"\0")
        yield from map(json.loads, whole)
