"""How far a pass over slices is: a bar on a terminal, a line every ten seconds elsewhere, and a last line."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from ich_tfrecords.views.progress_bar import bar, time_left
from trainer.shell.display import BAR_EVERY_S, CLEAR, LINE_EVERY_S, count


@contextlib.contextmanager
def shown(
    what: str, unit: str, stream: TextIO, now: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int, int], None]]:
    """A function of (done, total) that shows them on `stream`; `unit` says what is counted."""
    live, begin = stream.isatty(), now()
    shown_at, open_line = begin, False

    def tell(done: int, total: int) -> None:
        nonlocal shown_at, open_line
        due = now() - shown_at >= (BAR_EVERY_S if live else LINE_EVERY_S)
        if done < total and not due:
            return
        shown_at, open_line = now(), live and done < total
        text = line(what, unit, done, total, shown_at - begin)
        stream.write((CLEAR if live else "") + text + ("" if open_line else "\n"))
        stream.flush()

    try:
        yield tell
    finally:
        if open_line:
            stream.write("\n")


def line(what: str, unit: str, done: int, total: int, seconds: float) -> str:
    """`split test [####....] 1,200/4,000 slices, 803 slices/s, 0:03 left`; `seconds` since the begin."""
    rate = done / seconds if seconds > 0 else 0.0
    tail = time_left(done, total, rate, seconds)
    return f"{what} {bar(done, total)} {done:,}/{total:,} {unit}, {count(rate)} {unit}/s, {tail}"
