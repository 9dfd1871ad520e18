"""The process that holds the model and reads what waits in a spool, one entry after the other.

It is a process of its own so that a file that brings a decoder down takes nothing with it but its own entry.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ich_tfrecords import environment
from ich_tfrecords.problems import Problem
from ich_tfrecords.storage import sources
from trainer.models import model_file
from trainer.prediction.dicom_folder import DicomFolder
from trainer.prediction.folder import PredictFolder
from trainer.prediction.map_on_slice import MapOnSlice
from trainer.shell import quiet
from trainer.shell.problems import TrainerError, WorkFailed, WrongUse
from trainer.worklist.reading import How, Reader, Tell
from trainer.worklist.spool import DONE, FAILED, WAITING, WORKING, Entry, Progress, Spool

TELL_EVERY_S = 0.25
LOOK_EVERY_S = 5.0  # into the spool, were a call of `wake` missed

READY, GOOD, BAD = "ready", "good", "bad"


class Job(NamedTuple):
    """What the process is asked to read; `dicom`: whether results as DICOM are wanted."""

    path: str
    dicom: bool


class Look(NamedTuple):
    """A slice whose map is asked for, as predictions.csv of an entry names it."""

    path: str
    place: int
    file: str


class Worker:
    """Takes entries that wait, oldest first. `start` it, `wake` it when one waits, `stop` it.

    `fault`: why no model can be had any more; "" as long as one can.
    """

    def __init__(
        self, spool: Spool, model: Path, how: How, dicom: bool, ended: Callable[[Entry], None] = lambda entry: None
    ) -> None:
        """`model`: `model_file.find`'s. `ended` is called, in a thread, when an entry is done or has failed."""
        self._spool, self._dicom, self._ended = spool, dicom, ended
        self._given = (str(model), how)
        self._woken, self._stopping = threading.Event(), threading.Event()
        self._asking, self._beginning = threading.Lock(), threading.Lock()
        self._thread = threading.Thread(target=self._work, name="worklist", daemon=True)
        self.fault = ""

    def start(self) -> None:
        """Load the model and begin. Raises `TrainerError` where the model cannot be loaded."""
        self._begin_process()
        self._thread.start()

    def wake(self) -> None:
        """Look for entries that wait, now."""
        self._woken.set()

    def stop(self) -> None:
        """End the process. The entry that it reads waits again."""
        self._stopping.set()
        self._woken.set()
        self._end_process()
        self._thread.join()

    def map(self, entry: Entry, place: int, file: str) -> MapOnSlice:
        """The map of a slice of an entry that is done; it does not wait for the entry that is read meanwhile.

        `place`, `file`: as predictions.csv names it. Raises `WrongUse` where there is none, `WorkFailed` where the
        process ended.
        """
        try:
            with self._asking:
                self._asks.send(Look(str(entry.path), place, file))
                word, found = self._asks.recv()
        except (EOFError, OSError) as error:
            raise WorkFailed("the process of the model has ended; ask again") from error
        if word == BAD:
            raise WrongUse(found)
        return MapOnSlice(*found)

    def _begin_process(self) -> None:
        """Begin a process and wait until it has the model; nothing once the worker was told to end."""
        with self._beginning:  # or it would begin after `stop` has ended the one before
            if self._stopping.is_set():
                return
            spawn = multiprocessing.get_context("spawn")
            self._jobs, jobs = spawn.Pipe()
            self._asks, asks = spawn.Pipe()
            self._process = spawn.Process(target=_serve, args=(*self._given, jobs, asks), name="model", daemon=True)
            self._process.start()
            jobs.close()
            asks.close()
        try:
            word, text = self._jobs.recv()
        except EOFError:
            self._process.join()
            word, text = BAD, f"the process of the model ended while it began ({self._how_it_ended()})"
        if word != READY:
            raise WorkFailed(text)

    def _end_process(self) -> None:
        with self._beginning:
            self._process.kill()  # what it was writing is made anew
        self._process.join()

    def _work(self) -> None:
        try:
            self._take_all()
        except OSError as error:
            self.fault = f"the spool cannot be written: {error.strerror}"

    def _take_all(self) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            for entry in self._spool.waiting():
                if self._stopping.is_set() or self.fault:
                    return
                with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                    self._take(entry)
            self._woken.wait(LOOK_EVERY_S)

    def _take(self, entry: Entry) -> None:
        entry.turn(WORKING, tries=entry.tries() + 1)
        try:
            self._jobs.send(Job(str(entry.path), self._dicom))
            word, text = self._jobs.recv()
        except (EOFError, OSError):
            if self._stopping.is_set():
                entry.turn(WAITING)
                return
            self._process.join()
            word, text = BAD, f"the process of the model ended while it read this ({self._how_it_ended()})"
            self._begin_again()
        entry.tell(None)
        if word == GOOD:
            entry.turn(DONE, tries=0)
        else:
            entry.turn(FAILED, text, tries=0)
        self._ended(entry)

    def _begin_again(self) -> None:
        try:
            self._begin_process()
        except TrainerError as error:
            if not self._stopping.is_set():
                self.fault = str(error)

    def _how_it_ended(self) -> str:
        code = self._process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _serve(model: str, how: How, jobs: Connection, asks: Connection) -> None:
    """The process: load the model, say that it is ready, then answer until nobody asks any more."""
    for number in (signal.SIGINT, signal.SIGTERM):  # may reach the whole group: the other process ends this one
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    environment.settle()
    try:
        quiet.import_tensorflow()
        folder = Path(model)
        reader = Reader(folder, model_file.read_about(folder), how)
    except TrainerError as error:
        jobs.send((BAD, str(error)))
        return
    threading.Thread(target=_answer, args=(asks, lambda look: _map(reader, look)), daemon=True).start()
    jobs.send((READY, ""))
    _answer(jobs, lambda job: _read(reader, job))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _answer(asked: Connection, answer: Callable[[Any], Any]) -> None:
    while True:
        try:
            given = asked.recv()
        except EOFError:
            return
        try:
            asked.send((GOOD, answer(given)))
        except (TrainerError, Problem, sources.SourceError, OSError) as error:
            asked.send((BAD, str(error)))
        except Exception as error:  # a fault of ours must not leave whoever asked without an answer
            traceback.print_exception(error)
            asked.send((BAD, f"a fault of this program ({type(error).__name__}); its own output says where"))


def _read(reader: Reader, job: Job) -> None:
    entry = Entry(Path(job.path))
    entry.clear_results()
    output = PredictFolder(entry.result)
    results = DicomFolder(entry.dicom, entry.result) if job.dicom else None
    listing = sources.list_inputs(entry.inputs())
    reader.read(listing, output, results, lambda stage: _telling(entry, stage)).require_something(output)


@contextlib.contextmanager
def _telling(entry: Entry, stage: str) -> Iterator[Tell]:
    told = 0.0

    def tell(done: int, files: int) -> None:
        nonlocal told
        if time.monotonic() - told >= TELL_EVERY_S:
            told = time.monotonic()
            entry.tell(Progress(stage, done, files))

    yield tell


def _map(reader: Reader, look: Look) -> tuple[np.ndarray, str]:
    entry = Entry(Path(look.path))
    table = sources.list_inputs(entry.inputs()).table
    found = reader.map(table, PredictFolder(entry.result).predictions, look.place, look.file)
    return found.strength, found.label
