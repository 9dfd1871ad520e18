"""The words of a progress line: a bar of characters, and a time."""

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
