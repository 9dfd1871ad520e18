"""What goes wrong between a client and `bucket_server`, and when."""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from bucket_requests import Request

STATUSES = {"403": "Forbidden", "404": "Not here", "429": "Slow down", "500": "Internal error", "503": "Back-end error"}
SPOILS_ANSWER = {"reset", "lost_answer", "reset_body", "short", "corrupt"}
HOW = {*STATUSES, *SPOILS_ANSWER, "slow"}


@dataclass
class Fault:
    """Befalls the requests that match: lets `after` pass, then strikes `times` times (None: for ever)."""

    match: Callable[[str], object]
    how: str
    times: int | None = None
    after: int = 0
    seconds: float = 0.0

    def strikes(self, request: Request) -> bool:
        if self.times == 0 or (self.how == "corrupt" and request.kind != "media"):
            return False
        if not self.match(f"{request.method} {request.target} {request.name}"):
            return False
        if self.after:
            self.after -= 1
            return False
        self.times = None if self.times is None else self.times - 1
        return True


class Faults:
    """Faults in the order they were added, and by chance; `injected` counts those that struck, by kind."""

    def __init__(self) -> None:
        self.rules: list[Fault] = []
        self.injected: Counter[str] = Counter()
        self._chance, self._random = 0.0, random.Random(0)
        self._changing = threading.Lock()

    def add(
        self, match: str | Callable[[str], object], how: str, times: int | None, after: int, seconds: float
    ) -> Fault:
        if how not in HOW:
            raise ValueError(f"how={how!r}: one of {', '.join(sorted(HOW))}")
        fault = Fault(match if callable(match) else re.compile(match).search, how, times, after, seconds)
        with self._changing:
            self.rules.append(fault)
        return fault

    def by_chance(self, rate: float, seed: int) -> None:
        with self._changing:
            self._chance, self._random = rate, random.Random(seed)

    def clear(self) -> None:
        with self._changing:
            self.rules, self._chance, self.injected = [], 0.0, Counter()

    def strike(self, request: Request) -> Fault | None:
        """The fault that befalls this request, counted."""
        with self._changing:
            fault = next((rule for rule in self.rules if rule.strikes(request)), None) or self._lot(request)
            if fault:
                self.injected[fault.how] += 1
            return fault

    def _lot(self, request: Request) -> Fault | None:
        if self._random.random() >= self._chance:
            return None
        return Fault(bool, self._random.choice(["503", "reset", *(["short"] if request.kind == "media" else [])]))


def flipped(body: bytes) -> bytes:
    """The body with one bit in its middle changed."""
    middle = len(body) // 2
    return body[:middle] + bytes(byte ^ 1 for byte in body[middle : middle + 1]) + body[middle + 1 :]
