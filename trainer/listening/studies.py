"""Which studies wait for their rest, which for the model, and which are to be sent: all of it stands in the spool."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ich_tfrecords.storage import sources
from trainer.prediction.folder import RUN
from trainer.worklist.spool import DONE, FAILED, RECEIVING, WAITING, Entry, Spool, State

PATIENCE = 10  # times idle_s: for the rest of what an association that broke off has brought
ENDED = (DONE, FAILED)


class Brought(NamedTuple):
    """What an association brought: since when it is open, and the ids of studies."""

    began: float
    ids: set[str]


class Parcel(NamedTuple):
    """Results of a study as DICOM files, and since when they are there."""

    study: str
    since: float
    files: list[Path]


class Studies:
    """The studies of a spool, each of which keeps what was there when the model was `asked`, and what is `unsent`.

    `sends`: whether results are to be sent; `now`: seconds that never go back.
    """

    def __init__(self, spool: Spool, idle_s: float, sends: bool, now: Callable[[], float] = time.monotonic) -> None:
        """Takes up what an earlier process left: each study that is not whole waits `idle_s` for its rest again."""
        self._spool, self._idle_s, self._sends, self._now = spool, idle_s, sends, now
        self._lock = threading.Lock()
        self._quiet_at: dict[str, float] = {}
        self._broken: dict[str, float] = {}  # since when
        self._asked: set[str] = set()
        for entry in spool.entries():
            state = entry.state()
            if not any(entry.files.iterdir()):  # begun for an object that could not be written
                entry.remove()
            elif state.state == RECEIVING or (state.state in ENDED and _has_grown(entry, state)):
                self._await(entry, state)
            elif state.state not in ENDED:
                self._asked.add(entry.id)

    def begin(self) -> Brought:
        """An association begins."""
        return Brought(self._now(), set())

    def place(self, study: str) -> Path:
        """The folder of a study's objects, which is made where it is not there."""
        with self._lock:
            entry = self._spool.entry(study)
            if _state(entry) is None:
                entry.begin()
            return entry.files

    def arrived(self, study: str) -> None:
        """An object stands in its place. A study that was judged already will be again, where that object is new."""
        with self._lock:
            entry = self._spool.entry(study)
            state = entry.state()
            if state.state == RECEIVING or (state.state in ENDED and _has_grown(entry, state)):
                self._await(entry, state)

    def ended(self, brought: Brought, whole: bool) -> None:
        """An association is over. What came by one that broke off has a rest: it is waited for longer.

        One that began after that and ends whole has brought it.
        """
        with self._lock:
            for study in brought.ids & self._quiet_at.keys():
                if not whole:
                    self._broken[study] = self._now()
                elif self._broken.get(study, brought.began) < brought.began:
                    del self._broken[study]
                self._wait(study)

    def hand_over(self) -> list[Entry]:
        """The studies that have been quiet for long enough, which wait for the model from now on."""
        found = []
        with self._lock:
            for study in [study for study, at in self._quiet_at.items() if at <= self._now()]:
                entry = self._spool.entry(study)
                if _state(entry) is not None:  # somebody may have taken the folder away
                    entry.turn(WAITING, asked=_content(entry), unsent=self._sends)
                    self._asked.add(study)
                    found.append(entry)
                del self._quiet_at[study]
                self._broken.pop(study, None)
        return found

    def judged(self) -> list[Entry]:
        """Studies that the model is through with, but for those that have grown meanwhile, which come again."""
        found = []
        with self._lock:
            for study in sorted(self._asked):
                entry = self._spool.entry(study)
                state = _state(entry)
                if state is None:
                    self._asked.remove(study)
                elif state.state in ENDED and _has_grown(entry, state):
                    self._await(entry, state)
                elif state.state in ENDED:
                    self._asked.remove(study)
                    found.append(entry)
        return found

    def unsent(self) -> list[str]:
        """Ids of studies whose results are yet to be sent."""
        return [entry.id for entry in self._spool.entries() if _is_unsent(entry.state())]

    def parcel(self, study: str) -> Parcel | None:
        """The results of a study that are yet to be sent; None where there are none, as while it is judged again."""
        with self._lock:
            entry = self._spool.entry(study)
            state = _state(entry)
            if state is None or not _is_unsent(state):
                return None
            return Parcel(study, state.since, sorted(entry.dicom.glob("*/*.dcm")))

    def sent(self, parcel: Parcel) -> None:
        """Note that these results are where they should be; those that stand in their place by now are not."""
        with self._lock:
            entry = self._spool.entry(parcel.study)
            state = _state(entry)
            if state is not None and _is_unsent(state) and state.since == parcel.since:
                entry.turn(DONE, unsent=False)

    def forget(self, keep_s: float) -> int:
        """Remove studies that nothing happened to for `keep_s`, but none that is yet to be sent; how many."""
        removed = 0
        with self._lock:
            for entry in self._spool.entries():
                state = entry.state()
                is_over = state.state in ENDED and not (self._sends and _is_unsent(state))
                if is_over and entry.id not in self._asked and time.time() - state.since > keep_s:
                    entry.remove()
                    removed += 1
        return removed

    def _await(self, entry: Entry, state: State) -> None:
        if state.state != RECEIVING:
            entry.turn(RECEIVING)
        self._asked.discard(entry.id)
        self._wait(entry.id)

    def _wait(self, study: str) -> None:
        times = PATIENCE if study in self._broken else 1
        self._quiet_at[study] = self._now() + times * self._idle_s


def _state(entry: Entry) -> State | None:
    try:
        return entry.state()
    except FileNotFoundError:
        return None


def _is_unsent(state: State) -> bool:
    return state.state == DONE and bool(state.facts.get("unsent"))


def _content(entry: Entry) -> str:
    """What stands for the objects of a study, their sizes and times."""
    return sources.listing_digest(sources.list_inputs(entry.inputs()).table)


def _has_grown(entry: Entry, state: State) -> bool:
    """Whether a study that the model is through with holds more than it was asked for, and more than it read."""
    return _content(entry) not in (state.facts.get("asked"), _read(entry))


def _read(entry: Entry) -> str:
    """The content that the results are of; "" where there are none."""
    try:
        return str(json.loads((entry.result / RUN).read_text(encoding="utf-8"))["input"]["sha256"])
    except (OSError, ValueError, KeyError):
        return ""
