"""What is known of every upload, as the API says it: one list, most urgent first, and one upload with its series."""

from __future__ import annotations

import contextlib
import datetime
import re
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from ich_tfrecords import NOT_A_DEVICE
from trainer.models.model_file import About
from trainer.shell.problems import WrongUse
from trainer.trust.scope import NO
from trainer.web import results, uploads
from trainer.web.limits import MOST_REJECTS, Limits
from trainer.web.refusal import Refusal
from trainer.web.slices import Opened, Slices
from trainer.worklist import spool
from trainer.worklist.spool import Entry, Spool, State

_ENDED = (spool.DONE, spool.FAILED)

_STORED = re.compile(r"files/(\d{6})\.(?:zip|dcm|nii\.gz|nii)")  # what `uploads.Files` writes

Json = dict[str, Any]


class Found(NamedTuple):
    """What does not change any more of an upload whose prediction is done; `urgency`: its greatest probability."""

    labels: list[str]
    studies: list[Json]
    rejects: list[Json]
    rejected: int
    urgency: float


class Shelf:
    """The uploads of a spool. Its methods read files, and may be called by several threads."""

    def __init__(self, spooled: Spool, about: About, limits: Limits) -> None:
        self._spool, self._limits = spooled, limits
        self._labels = about.spec.labels
        self._windows = [
            {"name": one.name, "level": one.level_hu, "width": one.width_hu} for one in about.shown.image.windows
        ]
        self.slices = Slices(about.spec.accept)
        self._lock = threading.Lock()
        self._found: dict[str, Found] = {}

    def entry(self, upload: str) -> tuple[Entry, State]:
        """An upload and its state. Raises `Refusal` where there is none of that id."""
        try:
            entry = self._spool.entry(upload)
            return entry, entry.state()
        except (ValueError, FileNotFoundError):
            raise Refusal(404, "there is no such study; it may have expired") from None

    def everything(self) -> list[Json]:
        """Every upload: most urgent first, then those under way, then those that failed."""
        said = []
        for entry, state in self._spool.states():
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                said.append((self._place(entry, state), self._said(entry, state)))
        return [one for _, one in sorted(said, key=lambda pair: pair[0])]

    def one(self, upload: str) -> Json:
        """One upload, with its series once it is done. Raises `Refusal`."""
        entry, state = self.entry(upload)
        said = self._said(entry, state)
        return {**said, "series": self._series(entry, said["studies"]) if state.state == spool.DONE else []}

    def opened(self, upload: str) -> Opened:
        """The files of an upload. Raises `Refusal` where its prediction is not done."""
        entry, state = self.entry(upload)
        if state.state != spool.DONE:
            raise Refusal(404, f"this study is {state.state}; its slices are shown once it is done")
        return self.slices.opened(entry)

    def counts(self) -> tuple[int, int]:
        """How many uploads wait for the model or are on their way to it, and how many there are."""
        states = [state.state for _, state in self._spool.states()]
        return sum(state not in _ENDED for state in states), len(states)

    def remove(self, upload: str) -> None:
        """Take an upload away. Raises `Refusal` where the model is at it."""
        entry, state = self.entry(upload)
        if state.state in (spool.RECEIVING, spool.WORKING):
            raise Refusal(409, f"this study is {state.state}; delete it once it is done")
        self._forget(entry)

    def expire(self) -> None:
        """Take away what was kept long enough."""
        for entry, state in self._spool.states():
            if state.state in _ENDED and state.since + self._limits.keep_s <= time.time():
                self._forget(entry)

    def take_up(self) -> None:
        """Take away uploads that a kill cut short: nobody was told that they came.

        Raises `WrongUse` where the spool is another command's.
        """
        for entry, state in self._spool.states():
            if not {"name", "received"} <= state.facts.keys():
                raise WrongUse(f"--data {self._spool.root} holds studies of another command; choose a new folder")
            if state.state == spool.RECEIVING:
                entry.remove()

    def told(self, entry: Entry, text: str) -> str:
        """What a problem says, with the names that files came with and without the folders of this machine."""
        with contextlib.suppress(FileNotFoundError):
            names = uploads.read_names(entry.path)
            text = _STORED.sub(lambda found: names[int(found[1])], text.replace(f"{entry.files}/", "files/"))
        return text.replace(f"{entry.path}/", "")

    def _forget(self, entry: Entry) -> None:
        entry.remove()
        self.slices.forget(entry.id)
        with self._lock:
            self._found.pop(entry.id, None)

    def _place(self, entry: Entry, state: State) -> tuple[int, float]:
        if state.state == spool.DONE:
            return 0, -self._of_done(entry).urgency
        return (2 if state.state == spool.FAILED else 1), state.facts["received"]

    def _said(self, entry: Entry, state: State) -> Json:
        done = state.state == spool.DONE
        found = self._of_done(entry) if done else Found(list(self._labels.names), [], [], 0, 0.0)
        progress = entry.progress() if state.state == spool.WORKING else None
        ends = state.since if state.state in _ENDED else time.time()
        return {
            "id": entry.id,
            "url": f"/studies/{entry.id}",
            "name": state.facts["name"],
            "state": state.state,
            "error": self.told(entry, state.error) if state.error else None,
            "progress": progress and progress._asdict(),
            "received": _iso(state.facts["received"]),
            "expires": _iso(ends + self._limits.keep_s),
            "labels": found.labels,
            "not_a_device": NOT_A_DEVICE,
            "windows": self._windows,
            "studies": found.studies,
            "rejects": found.rejects,
            "rejected": found.rejected,
        }

    def _of_done(self, entry: Entry) -> Found:
        with self._lock:
            if found := self._found.get(entry.id):
                return found
        made = self._read(entry)
        with self._lock:
            return self._found.setdefault(entry.id, made)

    def _read(self, entry: Entry) -> Found:
        found, labels = results.studies(entry.result), results.labels(entry.result)
        at = labels.index(self._labels.any) if self._labels.any in labels else 0
        studies: list[Json] = [
            {
                "study_uid": one.study_uid,
                "rank": one.rank,
                "probability": one.probabilities[at],
                "probabilities": one.probabilities,
                "partial": one.partial,
                "in_scope": one.in_scope,
                "scope_reason": one.scope_reason,
                "slices": one.slices,
            }
            for one in found
        ]
        rejects = results.rejects(entry.result)
        told = [
            {"file": name, "reason": one.reason}
            for one, name in zip(rejects[:MOST_REJECTS], self._called(entry, rejects[:MOST_REJECTS]), strict=True)
        ]
        urgency = max((one.probabilities[at] for one in found if one.in_scope != NO), default=0.0)
        return Found(labels, studies, told, len(rejects), urgency)

    def _called(self, entry: Entry, rows: Sequence[results.Row | results.Reject]) -> list[str]:
        inputs, names = entry.inputs(), uploads.read_names(entry.path)
        return [results.called(inputs, names, row.input, row.stored) for row in rows]

    def _series(self, entry: Entry, studies: Sequence[Json]) -> list[Json]:
        """Series in the order of their studies, slices from feet to head."""
        opened = self.slices.opened(entry)
        series: dict[tuple[str, str], list[Json]] = {}
        names = self._called(entry, opened.rows)
        for n, (row, size, name) in enumerate(zip(opened.rows, opened.sizes(), names, strict=True)):
            said = {"n": n, "file": name, "z_mm": row.z_mm, **size._asdict(), "probabilities": row.probabilities}
            series.setdefault((row.study_uid, row.series_uid), []).append(said)
        ranks = {one["study_uid"]: one["rank"] for one in studies}
        return [
            {"study_uid": study, "series_uid": uid, "slices": sorted(found, key=_height)}
            for (study, uid), found in sorted(series.items(), key=lambda item: ranks[item[0][0]])
        ]


def _height(said: Json) -> tuple[bool, float, int]:
    """Sorts slices by their place along z; one without a place comes last, in the order of the files."""
    return said["z_mm"] is None, said["z_mm"] or 0.0, said["n"]


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat(timespec="seconds")
