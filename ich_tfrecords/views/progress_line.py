"""How far long work is: a bar on a terminal, a line every ten seconds elsewhere, and a last line."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TextIO

BAR_CHARS = 24
LINE_EVERY_S = 10.0
BAR_EVERY_S = 0.1
CLEAR = "\r\x1b[K"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds as `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def bar(done: int, total: int) -> str:
    """`[######..................]`; full when there is nothing to do."""
    filled = BAR_CHARS * min(done, total) // total if total else BAR_CHARS
    return f"[{'#' * filled}{'.' * (BAR_CHARS - filled)}]"


def time_left(done: int, total: int, rate: float, seconds: float) -> str:
    """`0:03 left` at `rate` a second, `0:12 in all` at the end after `seconds`, and words where no rate is known."""
    if done >= total:
        return f"{clock(seconds)} in all"
    return f"{clock((total - done) / rate)} left" if rate > 0 else "time left not known yet"


def count(rate: float) -> str:
    """A rate to read: `1,234`, and `3.4` below ten."""
    return f"{rate:,.0f}" if rate >= 9.95 else f"{rate:.1f}"


def line(what: str, unit: str, done: int, total: int, done_now: int, seconds: float) -> str:
    """`convert [#####...] 1,200/4,000 slices, 803 slices/s, 0:03 left`; the rate is of `done_now` in `seconds`."""
    rate = done_now / seconds if seconds > 0 else 0.0
    tail = time_left(done, total, rate, seconds)
    return f"{what} {bar(done, total)} {done:,}/{total:,} {unit}, {count(rate)} {unit}/s, {tail}"


@contextlib.contextmanager
def shown(
    what: str,
    unit: str,
    stream: TextIO,
    now: Callable[[], float] = time.monotonic,
    words: Callable[[str, str, int, int, int, float], str] = line,
    first: int = 0,
) -> Iterator[Callable[[int, int], None]]:
    """A function of (done, total) that shows them on `stream` in `words`; `unit` says what is counted, from `first`."""
    live, begin = stream.isatty(), now()
    shown_at, open_line = begin, False

    def tell(done: int, total: int) -> None:
        nonlocal shown_at, open_line
        due = now() - shown_at >= (BAR_EVERY_S if live else LINE_EVERY_S)
        if done < total and not due:
            return
        shown_at, open_line = now(), live and done < total
        text = words(what, unit, done, total, done - first, shown_at - begin)
        stream.write((CLEAR if live else "") + text + ("" if open_line else "\n"))
        stream.flush()

    try:
        yield tell
    finally:
        if open_line:
            stream.write("\n")
