"""Ranges of objects in buckets, fetched ahead: the answer to one request takes as long as converting many slices."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from ich_tfrecords.storage import buckets
from ich_tfrecords.storage.bucket_path import SCHEME

AHEAD = 16  # requests in flight
AHEAD_BYTES = 64 << 20  # and what they may bring, but for one alone


class Wanted(NamedTuple):
    """A range of the object at `place` (`gs://bucket/key`); `generation` None: of whichever is there."""

    place: str
    generation: int | None
    start: int
    size_bytes: int


class ObjectReader:
    """Gives ranges; those announced by `expect` are under way before they are asked for. For one thread."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._asked: deque[tuple[Wanted, Future[bytes]]] = deque()
        self._coming: Iterator[Wanted] = iter(())
        self._asked_bytes = 0
        self._held_back: Wanted | None = None

    def close(self) -> None:
        """Forget what was announced, and end the threads."""
        self._forget()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def expect(self, wanted: Iterable[Wanted]) -> None:
        """Announce ranges in the order in which they will be fetched; what was announced before is forgotten."""
        self._forget()
        self._coming = iter(wanted)
        self._ask()

    def fetch(self, wanted: Wanted) -> bytes:
        """Bytes of a range, fewer where the object ends. Raises `FileNotFoundError` and other `OSError`."""
        while any(asked == wanted for asked, _ in self._asked):
            asked, future = self._asked.popleft()
            self._asked_bytes -= asked.size_bytes
            self._ask()
            if asked == wanted:
                return future.result()
            future.cancel()
        return _fetch(wanted)

    def _ask(self) -> None:
        """Have as many requests in flight as may be."""
        while len(self._asked) < AHEAD:
            wanted = self._held_back or next(self._coming, None)
            self._held_back = None
            if wanted is None:
                return
            if self._asked and self._asked_bytes + wanted.size_bytes > AHEAD_BYTES:
                self._held_back = wanted
                return
            self._pool = self._pool or ThreadPoolExecutor(AHEAD, "fetch")
            self._asked.append((wanted, self._pool.submit(_fetch, wanted)))
            self._asked_bytes += wanted.size_bytes

    def _forget(self) -> None:
        for _, future in self._asked:
            future.cancel()
        self._asked.clear()
        self._coming, self._held_back, self._asked_bytes = iter(()), None, 0


def _fetch(wanted: Wanted) -> bytes:
    name, _, key = wanted.place[len(SCHEME) :].partition("/")
    return buckets.read_range(name, key, wanted.start, wanted.size_bytes, wanted.generation)
