"""Studies on their way: one folder each, with the files that came, the state they are in, and what a model gave.

The folder is the queue: what stands in it after a kill is taken up again. No name in it comes from outside.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ich_tfrecords.storage import atomic
from ich_tfrecords.storage.file_lock import FileLock
from trainer.shell import folder_lock
from trainer.shell.problems import WrongUse

RECEIVING, WAITING, WORKING, DONE, FAILED = STATES = ("receiving", "waiting", "working", "done", "failed")
ID = re.compile(r"[0-9a-f]{32}")
STATE, PROGRESS = "state.json", "progress.json"
MOST_TRIES = 3  # to read an entry: one that ends the whole machine is not begun for ever
FORMAT = 1


class State(NamedTuple):
    """One of `STATES`, since when (seconds of Unix time), and what its owner keeps with it; `error`: of `FAILED`."""

    state: str
    since: float
    error: str = ""
    facts: Mapping[str, Any] = MappingProxyType({})


class Progress(NamedTuple):
    """How far the reading is: which stage, and of how many files it has dealt with how many."""

    stage: str
    done: int
    files: int


class Entry:
    """The folder of one study, or of what was sent together. One process writes a part of it at a time.

    `files`: what came; `result`: what the model gave (`PredictFolder`); `dicom`: that as DICOM.
    """

    def __init__(self, path: Path) -> None:
        self.id, self.path = path.name, path
        self.files, self.result, self.dicom = (path / name for name in ("files", "result", "dicom"))
        self._progress = path / PROGRESS

    def state(self) -> State:
        """As it was written last. Raises `FileNotFoundError` where the entry was removed."""
        found = json.loads((self.path / STATE).read_text(encoding="utf-8"))
        return State(found["state"], found["since"], found["error"], found["facts"])

    def turn(self, state: str, error: str = "", **facts: Any) -> None:
        """Write the state, with `facts` beside those that are there. Raises `FileNotFoundError` as `state` does."""
        assert state in STATES, state
        self._write(state, error, {**self.state().facts, **facts})

    def begin(self, **facts: Any) -> None:
        """The first state, receiving."""
        self.files.mkdir(parents=True, exist_ok=True)
        self._write(RECEIVING, "", facts)

    def _write(self, state: str, error: str, facts: Mapping[str, Any]) -> None:
        found = {"format": FORMAT, "state": state, "since": time.time(), "error": error, "facts": facts}
        atomic.write_bytes(self.path / STATE, json.dumps(found).encode())
        atomic.sync_folder(self.path)

    def tries(self) -> int:
        """How often the model has begun it since it ended last. Raises `FileNotFoundError` as `state` does."""
        return int(self.state().facts.get("tries", 0))

    def inputs(self) -> list[str]:
        """What came, for `sources.list_inputs`: each zip archive, and the folder where other files lie there."""
        names = sorted(path.name for path in self.files.iterdir())
        archives = [str(self.files / name) for name in names if name.endswith(".zip")]
        return archives if len(archives) == len(names) and names else [str(self.files), *archives]

    def progress(self) -> Progress | None:
        """How far the reading is; None where it has not begun."""
        try:
            return Progress(*json.loads(self._progress.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def tell(self, progress: Progress | None) -> None:
        """Write the progress for other processes to see, or take it away. It may be lost with the power."""
        if progress is None:
            self._progress.unlink(missing_ok=True)
            return
        beside = self._progress.with_suffix(atomic.TEMPORARY_SUFFIX)
        beside.write_text(json.dumps(progress))
        beside.replace(self._progress)

    def clear_results(self) -> None:
        """Take away what the model gave before, and what a kill left of that."""
        for path in (*self.path.glob(self.result.name), *self.path.glob(f"{self.dicom.name}*")):
            shutil.rmtree(path)

    def remove(self) -> None:
        """Take the entry away. First its state, so that a half removed one is none."""
        (self.path / STATE).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.path)


class Spool:
    """A folder of entries that this process alone uses; `close` lets it go."""

    def __init__(self, root: Path, flag: str) -> None:
        """Takes up what a kill left. Raises `WrongUse` where another process has the folder, or others filled it.

        `flag`: of the command line, which chooses the folder.
        """
        self.root = root
        others = sorted(path.name for path in root.iterdir() if not _is_own(path.name)) if root.is_dir() else []
        if others:
            raise WrongUse(f"{flag} {root} holds {others[0]}, which is none of this command's; choose a new folder")
        self._lock: FileLock = folder_lock.take(root, flag)
        for path in root.iterdir():
            if ID.fullmatch(path.name) and not (path / STATE).exists():  # half removed, or not begun
                shutil.rmtree(path)
        for entry in self.entries():
            if entry.state().state == WORKING:
                self._take_up(entry)

    def _take_up(self, entry: Entry) -> None:
        if entry.tries() < MOST_TRIES:
            entry.turn(WAITING)
        else:
            entry.turn(FAILED, f"begun {entry.tries()} times and never ended: each time the whole program was killed")

    def entry(self, name: str) -> Entry:
        """The entry of that id, whether it is there or not. Raises `ValueError` for what is no id."""
        if not ID.fullmatch(name):
            raise ValueError(f"{name!r} is no id of 32 hexadecimal digits")
        return Entry(self.root / name)

    def entries(self) -> list[Entry]:
        """Every entry, the one whose state is oldest first."""
        found = []
        for path in self.root.iterdir():
            if ID.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):  # removed, or not begun
                    found.append((Entry(path).state().since, path.name))
        return [Entry(self.root / name) for _, name in sorted(found)]

    def waiting(self) -> list[Entry]:
        """Entries that wait for the model, oldest first."""
        return [entry for entry in self.entries() if entry.state().state == WAITING]

    def close(self) -> None:
        self._lock.close()


def _is_own(name: str) -> bool:
    return bool(ID.fullmatch(name)) or name == folder_lock.LOCK
