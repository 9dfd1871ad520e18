"""Results on their way: one study after the other, again and again until the other side has them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from ich_tfrecords.plural import counted
from trainer.listening.screen import short, tell, warn
from trainer.listening.sending import NotSent, Send
from trainer.listening.studies import Studies

FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 600.0
_END_S = 30.0  # of what is under way when this process is asked to end


class Turn(NamedTuple):
    """When a study is to be sent, and how long to wait if that fails."""

    at: float
    wait_s: float


class Outbox:
    """Sends what `studies` says is unsent. `post` a study, `stop` at the end: what is left waits for the next start."""

    def __init__(self, studies: Studies, send: Send, now: Callable[[], float] = time.monotonic) -> None:
        self._studies, self._send, self._now = studies, send, now
        self._woken = threading.Condition()
        self._due: dict[str, Turn] = {}
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
            self._due[study] = Turn(self._now(), FIRST_WAIT_S)
            self._woken.notify()

    @property
    def works(self) -> bool:
        """Whether it has not come to an end that nobody foresaw."""
        return self._thread.is_alive()

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
            due = [(turn.at, study) for study, turn in self._due.items() if turn.at <= self._now()]
        return min(due)[1] if due else ""

    def attempt(self, study: str) -> None:
        """Send the results of a study once; a failure puts it off."""
        turn = self._due[study]
        try:
            parcel = self._studies.parcel(study)
            if parcel:
                self._send(parcel.files)
                self._studies.sent(parcel)
                tell(f"{short(study)}: {counted(len(parcel.files), 'object')} sent")
        except (NotSent, OSError) as error:  # the files of a study that is judged again go
            self._tell_once(study, str(error))
            self._replace(study, turn, Turn(self._now() + turn.wait_s, min(2 * turn.wait_s, LONGEST_WAIT_S)))
        else:
            self._told.pop(study, None)
            self._replace(study, turn, None)

    def _tell_once(self, study: str, why: str) -> None:
        if self._told.get(study) != why:
            self._told[study] = why
            warn(f"{short(study)}: not sent, tried again later: {why}")

    def _replace(self, study: str, turn: Turn, by: Turn | None) -> None:
        """Put another turn in the place of one, or none; a study that was posted meanwhile keeps its new one."""
        with self._woken:
            if self._due[study] is turn:
                del self._due[study]
                if by:
                    self._due[study] = by
