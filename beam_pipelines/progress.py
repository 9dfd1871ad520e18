"""How far a running conversion is: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from ich_tfrecords.views.progress_line import CLEAR, LINE_EVERY_S, line

BAR_EVERY_S = 0.5
JOIN_S = 5.0  # a look into a bucket may take longer; nobody waits for it


class Progress:
    """Watches `done()` (slices so far) from a thread while a pipeline runs, and shows rate and time left.

    With `is_far` each look costs requests, so there are few.
    """

    def __init__(self, title: str, total: int, done: Callable[[], int], stream: TextIO, is_far: bool = False) -> None:
        self._title, self.total, self._done, self._stream = title, total, done, stream
        self._live = stream.isatty()
        self._every_s = BAR_EVERY_S if self._live and not is_far else LINE_EVERY_S
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Progress:
        self._begin = time.monotonic()
        self._first = 0
        with contextlib.suppress(OSError):  # as in `_watch`
            self._first = self._done()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(JOIN_S)
        if kind is None:
            self._show(self.total, "\n")
        elif self._live:
            self._stream.write("\n")

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            with contextlib.suppress(OSError):  # a look into a bucket may fail; the work itself goes on
                self._show(min(self._done(), self.total), "" if self._live else "\n")

    def _show(self, done: int, end: str) -> None:
        seconds = time.monotonic() - self._begin
        text = line(self._title, "slices", done, self.total, done - self._first, seconds)
        self._stream.write((CLEAR if self._live else "") + text + end)
        self._stream.flush()
