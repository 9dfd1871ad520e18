"""A long listing of a bucket in little time: several ranges of names at once, a page of 1,000 each.

Pages of one range come one after the other, each asked for once the one before is there. So whenever a page is not
the last of its range, what is left of the range is split for the requests that may be made besides.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from ich_tfrecords.storage import buckets

PAGES_AT_ONCE = 16
_LETTERS = range(0x20, 0x7F)  # ASCII that can be seen: what most names are made of
_ALL = 0x110000
_SURROGATES = range(0xD800, 0xE000)  # stand for no character


class _Range(NamedTuple):
    """Names from `start`, which was met when `is_met`, to before `end` ("": to the last)."""

    start: str
    end: str
    is_met: bool = False


def listed(bucket: str, prefix: str) -> Iterator[buckets.Stored]:
    """Every object whose name begins with `prefix`, once, in no order. Raises `OSError` as `buckets.listed` does."""
    with ThreadPoolExecutor(PAGES_AT_ONCE, "list") as pool:
        running: dict[Future[tuple[list[buckets.Stored], bool]], _Range] = {}

        def ask(part: _Range) -> None:
            running[pool.submit(buckets.page, bucket, prefix, part.start, part.end)] = part

        ask(_Range("", ""))
        try:
            while running:
                for page in wait(running, return_when=FIRST_COMPLETED).done:
                    part, (rows, more) = running.pop(page), page.result()
                    if more:
                        for rest in _split(part, rows, PAGES_AT_ONCE - len(running), prefix):
                            ask(rest)
                    yield from rows[1:] if part.is_met and rows and rows[0].key == part.start else rows
        finally:
            pool.shutdown(cancel_futures=True)


def _split(part: _Range, rows: list[buckets.Stored], most: int, prefix: str) -> list[_Range]:
    """What is left of a range behind these rows, in at most so many ranges."""
    last = rows[-1].key
    if part.end:
        cuts = _even(_by_letters(last, part.end, rows) or _in_half(last, part.end), most - 1)
    else:
        cuts = _edges(rows[0].key, last, prefix)[: max(0, most - 1)]
    ends = [*cuts, part.end]
    return [_Range(last, ends[0], True), *(_Range(*pair) for pair in itertools.pairwise(ends))]


def _by_letters(last: str, end: str, rows: list[buckets.Stored]) -> list[str]:
    """Names behind `last` and before `end` that change it in one letter, to one that names here have; ascending."""
    common = _common(last, end)
    letters = sorted({letter for row in rows for letter in row.key[common:]})
    for i in range(common, len(last)):
        cuts = [last[:i] + letter for letter in letters if letter > last[i]]
        cuts = [cut for cut in cuts if cut < end]
        if cuts:
            return cuts
    return []


def _in_half(last: str, end: str) -> list[str]:
    middle = between(last, end)
    return [middle] if middle else []


def _even(cuts: list[str], most: int) -> list[str]:
    """At most so many of them, evenly spread."""
    count = max(0, min(most, len(cuts)))
    return [cuts[i * len(cuts) // count] for i in range(count)]


def _edges(first: str, last: str, prefix: str) -> list[str]:
    """Names behind `last`, ascending: where it changes in the letter at which `first` does, then in each before.

    Where a listing ends is not known at first. One of these parts holds nearly all that is left, and its letters.
    """
    differs = _common(first, last)
    edges = (_next_letter(last[: i + 1]) for i in range(differs, len(prefix) - 1, -1))
    return [edge for edge in edges if edge]


def _next_letter(text: str) -> str:
    """The first text behind all that begin with this one, as far as its last letter can be raised; else nothing."""
    code = _character(ord(text[-1]) + 1) if text else _ALL
    return text[:-1] + chr(code) if code < _ALL else ""


def between(start: str, end: str) -> str:
    """A text behind `start` and before `end`, about in the middle of the names that letters make; else nothing."""
    common = _common(start, end)
    for i in range(common, len(start) + 1):
        low = ord(start[i]) if i < len(start) else _LETTERS.start - 1
        high = ord(end[i]) if i == common else _LETTERS.stop if low < _LETTERS.stop - 2 else _ALL
        middle = _character((low + high) // 2)
        if low < middle < high:
            return start[:i] + chr(middle)
    return ""


def _common(one: str, other: str) -> int:
    """How many letters two texts begin with alike."""
    return next((i for i, pair in enumerate(zip(one, other)) if pair[0] != pair[1]), min(len(one), len(other)))


def _character(code: int) -> int:
    """The code, or the next that is a character."""
    return _SURROGATES.stop if code in _SURROGATES else code
