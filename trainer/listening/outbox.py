"""Results on their way: one study after the other, again and again until the other side has them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ich_tfrecords.plural import counted
from trainer.listening.sending import NotSent, Send
from trainer.listening.studies import Studies, short, tell

FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 600.0
_END_S = 30.0  # of what is under way when this process is asked to end


class Outbox:
    """Sends what `studies` says is unsent. `post` a study, `stop` at the end: what is left waits for the next start."""

    def __init__(self, studies: Studies, send: Send, now: Callable[[], float] = time.monotonic) -> None:
        self._studies, self._send, self._now = studies, send, now
        self._lock, self._woken = threading.Lock(), threading.Condition()
        self._due: dict[str, tuple[float, float]] = {}  # study -> when, and how long to wait after the next failure
        self._told: dict[str, str] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)

    def start(self) -> None:
        """Begin with what an earlier process left."""
        for study in self._studies.unsent():
            self.post(study)
        self._thread.start()

    def post(self, study: str) -> None:
        """Send the results of a study, now."""
        with self._woken:
            self._due[study] = (self._now(), FIRST_WAIT_S)
            self._woken.notify()

    def stop(self) -> None:
        """End after the study that is being sent."""
        self._stopping.set()
        with self._woken:
            self._woken.notify()
        self._thread.join(_END_S)

    def _work(self) -> None:
        while not self._stopping.is_set():
            if study := self._next():
                self.attempt(study)
            else:
                with self._woken:
                    self._woken.wait(0.5)

    def _next(self) -> str:
        with self._woken:
            due = [(when, study) for study, (when, _) in self._due.items() if when <= self._now()]
        return min(due)[1] if due else ""

    def attempt(self, study: str) -> None:
        """Send the results of a study once; a failure puts it off."""
        _, wait_s = self._due[study]
        try:
            files = self._studies.results(study)
            if files:
                self._send(files)
            has_more = bool(files) and not self._studies.sent(study, files)
        except (NotSent, OSError) as error:  # files go where a study is judged again
            self._put_off(study, wait_s, str(error))
            return
        self._told.pop(study, None)
        if files and not has_more:
            tell(f"{short(study)}: {counted(len(files), 'object')} sent")
        with self._woken:
            if self._due.get(study, (0.0, 0.0))[1] == wait_s:
                del self._due[study]

    def _put_off(self, study: str, wait_s: float, why: str) -> None:
        if self._told.get(study) != why:  # once, not at each try
            self._told[study] = why
            tell(f"{short(study)}: not sent, tried again: {why}")
        with self._woken:
            self._due[study] = (self._now() + wait_s, min(2 * wait_s, LONGEST_WAIT_S))
