"""The whole, until it is ended: a port, studies that become quiet, the model that reads them, results that leave."""

from __future__ import annotations

import csv
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from ich_tfrecords.plural import counted
from ich_tfrecords.views.montage import shortened
from trainer.listening import sending
from trainer.listening.inbox import Inbox
from trainer.listening.outbox import Outbox
from trainer.listening.peers import Caller, Entity, Web
from trainer.listening.screen import short, tell, warn
from trainer.listening.server import Server
from trainer.listening.studies import Studies
from trainer.prediction.folder import PredictFolder
from trainer.shell import command
from trainer.shell.problems import WorkFailed, WrongUse
from trainer.worklist.reading import How
from trainer.worklist.spool import FAILED, Entry, Spool
from trainer.worklist.worker import Worker

TURN_S = 0.2
TIDY_EVERY_S = 60.0
DAY_S = 86_400.0
INCOMING, STUDIES = "incoming", "studies"  # in the folder of --spool


class Settings(NamedTuple):
    """What the command line says; `model`: `model_file.find`'s; `any_label`: the column that ranks studies."""

    model: Path
    any_label: str
    title: str
    host: str
    port: int
    spool: Path
    idle_s: float
    keep_days: float
    callers: Sequence[Caller]
    send_to: Entity | Web | None


def run(settings: Settings, listening: Callable[[int], None]) -> None:
    """Listen until SIGTERM or SIGINT; `listening` hears the port once all is ready. Raises `TrainerError`."""
    with ExitStack() as stack, _until_signal() as asked_to_end:
        spool = Spool(settings.spool / STUDIES, "--spool")
        stack.callback(spool.close)
        studies = Studies(spool, settings.idle_s, sends=settings.send_to is not None)
        inbox = Inbox(settings.spool / INCOMING, studies)
        server = Server(settings.title, settings.callers, inbox, studies)
        port = server.bind(settings.host, settings.port)
        stack.callback(server.close)
        worker = Worker(spool, settings.model, How(series="best"), dicom=True)
        worker.start()
        stack.callback(worker.stop)
        outbox = _outbox(settings, studies)
        if outbox:
            outbox.start()
            stack.callback(outbox.stop)
        server.begin()
        listening(port)
        _turns(settings, studies, inbox, worker, outbox, asked_to_end)
        tell("ending: open associations first")
        server.close()


def make_place(folder: Path) -> None:
    """Make the folder of --spool where it is not there. Raises `WrongUse` where it is not this command's."""
    command.require_local("--spool", folder)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds patients
        others = sorted({path.name for path in folder.iterdir()} - {INCOMING, STUDIES})
    except OSError as error:
        raise WrongUse(f"--spool {folder} cannot be made: {error.strerror}; choose another") from error
    if others:
        raise WrongUse(
            f"--spool {folder} holds {shortened(others[0])}, which is none of this command's; choose another"
        )


def _outbox(settings: Settings, studies: Studies) -> Outbox | None:
    return Outbox(studies, sending.by(settings.send_to, settings.title)) if settings.send_to else None


def _turns(
    settings: Settings, studies: Studies, inbox: Inbox, worker: Worker, outbox: Outbox | None, end: threading.Event
) -> None:
    """What goes on beside the port, again and again until `end`. Raises `WorkFailed` where no more can."""
    tidy_at = 0.0
    while not end.wait(TURN_S):
        for entry in studies.hand_over():
            objects = counted(len(list(entry.files.iterdir())), "object")
            tell(f"{short(entry.id)}: {objects}, and quiet; waits for the model")
            worker.wake()
        for entry in studies.judged():
            if outbox:
                outbox.post(entry.id)
            _tell_result(entry, settings.any_label)
        if time.monotonic() >= tidy_at:
            tidy_at = time.monotonic() + TIDY_EVERY_S
            inbox.tidy()
            _forget(studies, settings.keep_days)
        if worker.fault:
            raise WorkFailed(f"the model is gone: {worker.fault}; what waits is taken up at the next start")
        if outbox and not outbox.works:
            raise WorkFailed("sending has come to an end that nobody foresaw, see above; start again")


def _forget(studies: Studies, keep_days: float) -> None:
    if removed := studies.forget(keep_days * DAY_S):
        tell(f"{counted(removed, 'study', 'studies')} removed after {keep_days:g} days")


def _tell_result(entry: Entry, any_label: str) -> None:
    state = entry.state()
    if state.state == FAILED:
        warn(f"{short(entry.id)}: no result: {state.error}")
        return
    with PredictFolder(entry.result).triage.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            part = f" ({row['partial']})" if row["partial"] else ""
            tell(f"{short(entry.id)}: {any_label} {row[any_label]}, {row['slices']} slices{part}, {entry.result}")


@contextmanager
def _until_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM sets. SIGINT is left to raise KeyboardInterrupt, as in every command."""
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
