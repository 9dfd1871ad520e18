"""The words of a progress line: a bar of characters, a time, and how much of it is left."""

from __future__ import annotations

BAR_CHARS = 24


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
