"""The pages of serve without its server: their templates and files, and a made-up worklist that answers as agreed.

Nothing here predicts. `Worklist` holds entries as the server tells them; a test changes them as it likes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import http.server
import itertools
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ich_tfrecords import NOT_A_DEVICE, spec
from ich_tfrecords.synthetic.bleeds import draw_bleed
from ich_tfrecords.synthetic.phantom import Phantom, draw_head
from ich_tfrecords.synthetic.textures import draw_textures
from ich_tfrecords.views import html_page

PACKAGE = "trainer.web"
STATIC = Path(__file__).parents[2] / "trainer/web/static"
KINDS = {".js": "text/javascript", ".css": "text/css"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
RSNA = spec.load("rsna_ich")
NOTES = ["epidural is not calibrated: no positive slice"]
LABELS = RSNA.labels.names
Int16 = npt.NDArray[np.int16]


def head_volume(slices: int) -> Int16:
    """HU [slices, 512, 512] from feet to head of a made-up head with a clot under its skull."""
    rng = np.random.default_rng(5)
    phantom = Phantom(draw_head(rng), draw_textures(rng))
    heights = np.linspace(5, 84, slices)
    bleeds = (draw_bleed("subdural", heights, rng),)
    drawn = [phantom.render(float(height), bleeds, rng)[0] for height in heights]
    return np.rint(np.stack(drawn)).astype(np.int16)


@dataclasses.dataclass
class Worklist:
    """`entries` as GET of one gives them; `hu` and `maps`: n -> pixels of each entry; `asked`: method and path.

    `slow` holds slices and answers to uploads back until it is set; `broken`: method and path -> (status, body) that is
    answered instead. `most_bytes`: what the list page is told of uploads.
    """

    entries: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    hu: dict[str, Int16] = dataclasses.field(default_factory=dict)
    maps: dict[str, npt.NDArray[np.uint8]] = dataclasses.field(default_factory=dict)
    asked: list[str] = dataclasses.field(default_factory=list)
    received: list[bytes] = dataclasses.field(default_factory=list)
    broken: dict[str, tuple[int, bytes]] = dataclasses.field(default_factory=dict)
    slow: threading.Event = dataclasses.field(default_factory=threading.Event)
    most_bytes: int = 50_000_000
    numbers: Iterator[int] = dataclasses.field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.slow.set()

    def add(self, **facts: Any) -> dict[str, Any]:
        """An entry that was just received, changed by `facts`."""
        id, now = f"{next(self.numbers):032x}", datetime.datetime(2026, 3, 1, 9, 30, tzinfo=datetime.timezone.utc)
        entry = {
            "id": id,
            "url": f"/studies/{id}",
            "name": "scan.zip",
            "state": "waiting",
            "error": None,
            "progress": None,
            "received": now.isoformat(),
            "expires": (now + datetime.timedelta(days=1)).isoformat(),
            "labels": list(LABELS),
            "not_a_device": NOT_A_DEVICE,
            "windows": [{"name": one.name, "level": one.level_hu, "width": one.width_hu} for one in RSNA.image.windows],
            "studies": [],
            "rejects": [],
            "series": [],
        }
        return self.entries.setdefault(id, {**entry, "rejected": len(facts.get("rejects", ())), **facts})

    def done(self, hu: Int16, series: int = 1, **facts: Any) -> dict[str, Any]:
        """A finished entry: `hu` [n, rows, columns] parted evenly into `series`, each of a study of its own."""
        parts = np.array_split(np.arange(len(hu)), series)
        tops = [probabilities_at(0.9 - 0.3 * number) for number in range(series)]
        studies = [
            {
                "study_uid": f"1.2.840.{number}",
                "rank": number + 1,
                "probability": tops[number][0],
                "probabilities": tops[number],
                "partial": bool(number),
                "slices": len(part),
            }
            for number, part in enumerate(parts)
        ]
        told = [
            {
                "study_uid": f"1.2.840.{number}",
                "series_uid": f"1.2.840.{number}.1",
                "slices": [
                    {
                        "n": int(n),
                        "file": f"ct/IM{n:04d}.dcm",
                        "z_mm": 5.0 * at,
                        "rows": hu.shape[1],
                        "columns": hu.shape[2],
                        "probabilities": probabilities_at(
                            tops[number][0] * float(np.sin(np.pi * (at + 1) / (len(part) + 1)))
                        ),
                    }
                    for at, n in enumerate(part)
                ],
            }
            for number, part in enumerate(parts)
        ]
        entry = self.add(**{"state": "done", "studies": studies, "series": told, **facts})
        self.hu[entry["id"]] = hu
        self.maps[entry["id"]] = np.stack([spot(*hu.shape[1:], n / len(hu)) for n in range(len(hu))])
        return entry


def probabilities_at(most: float) -> list[float]:
    """Of the six labels: `any` and the last one highest."""
    return [round(most * part, 4) for part in (1, 0.02, 0.3, 0.1, 0.4, 0.95)]


def spot(rows: int, columns: int, part: float) -> npt.NDArray[np.uint8]:
    """A round map [rows, columns] left of the middle."""
    down, across = np.ogrid[:rows, :columns]
    far = np.hypot(down / rows - 0.3 - 0.3 * part, across / columns - 0.25)
    return np.rint(255 * np.clip(1 - far / 0.2, 0, 1)).astype(np.uint8)


def page(template: str, **values: Any) -> str:
    return html_page.page(template, PACKAGE, **values)


@contextlib.contextmanager
def serving(work: Worklist) -> Iterator[str]:
    """The address of the pages, on loopback."""

    class Handler(Answers):
        worklist = work

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        work.slow.set()
        server.shutdown()
        server.server_close()
        thread.join()


class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    worklist: Worklist

    def log_message(self, *_: Any) -> None:
        """Says nothing: a test reads `asked`."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        work, path = self.worklist, self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        work.asked.append(f"{method} {path}")
        if (asked := f"{method} {path}") in work.broken:
            status, broken = work.broken[asked]
            return self._send(status, broken, "application/json")
        if method != "GET" and self.headers.get("X-ICH") != "1":
            return self._send(403, b'{"error": "no X-ICH header"}', "application/json")
        if method == "POST":
            work.slow.wait(20)
            work.received.append(body)
            entry = work.add(name="sent")
            return self._json(201, {"id": entry["id"], "url": entry["url"]})
        for pattern, answer in ROUTES:
            if found := re.fullmatch(pattern, path):
                return answer(self, *found.groups())
        return self._json(404, {"error": "nothing is here"})

    def _list(self) -> None:
        rows = [
            {key: value for key, value in entry.items() if key != "series"} for entry in self.worklist.entries.values()
        ]
        self._json(200, {"studies": rows})

    def _entry(self, id: str) -> None:
        if id not in self.worklist.entries:
            self._json(404, {"error": "this upload expired or was deleted"})
        elif self.command == "DELETE":
            del self.worklist.entries[id]
            self._send(204, b"", "text/plain")
        else:
            self._json(200, self.worklist.entries[id])

    def _pixels(self, id: str, n: str, map: str | None) -> None:
        self.worklist.slow.wait(20)
        if id not in self.worklist.entries:
            return self._json(404, {"error": "this upload expired or was deleted"})
        kept, headers = (self.worklist.maps, {"X-ICH-Label": "subdural"}) if map else (self.worklist.hu, {})
        return self._send(200, kept[id][int(n)].tobytes(), "application/octet-stream", **headers)

    def _page(self, *_: str) -> None:
        if self.path == "/":
            values = {
                "title": "Studies",
                "most_bytes": self.worklist.most_bytes,
                "model": "cnn",
                "digest": "0123456789abcdef",
                "notes": NOTES,
            }
            return self._send(200, page("list.html", **values).encode(), "text/html; charset=utf-8")
        if self.path == "/login":
            return self._send(200, page("login.html", title="Enter", problem=None).encode(), "text/html; charset=utf-8")
        return self._send(200, page("study.html", title="Study", notes=NOTES).encode(), "text/html; charset=utf-8")

    def _static(self, name: str) -> None:
        path = STATIC / name
        self._send(200, path.read_bytes(), KINDS[path.suffix])

    def _json(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        for header, value in headers.items():
            self.send_header(header, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the page broke a slice off
            self.wfile.write(body)


ROUTES = (
    (r"/|/login|/studies/[0-9a-f]{32}", Answers._page),
    (r"/static/([a-z_]+\.(?:js|css))", Answers._static),
    (r"/api/studies", Answers._list),
    (r"/api/studies/([0-9a-f]{32})", Answers._entry),
    (r"/api/studies/([0-9a-f]{32})/slices/(\d+)(/map)?", Answers._pixels),
)
