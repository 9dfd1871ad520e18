"""The process that holds the model: right results, one after the other, and what its end leaves."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time

import numpy as np
import pytest

from trainer import predict
from trainer.shell.problems import WorkFailed, WrongUse
from trainer.worklist import spool
from trainer.worklist import worker as worker_module
from trainer.worklist.reading import How
from trainer.worklist.spool import Entry, Spool
from trainer.worklist.worker import Worker

pytestmark = pytest.mark.slow  # starts processes that load a model

ONE, TWO, THREE = ("1" * 32, "2" * 32, "3" * 32)
LIMIT_S = 180


def put(where: Spool, name: str, *files) -> Entry:
    entry = where.entry(name)
    entry.begin()
    for number, file in enumerate(files):
        shutil.copy(file, entry.files / f"{number:05d}{file.suffix}")
    entry.turn(spool.WAITING)
    return entry


def until(true) -> None:
    end = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def where(tmp_path):
    found = Spool(tmp_path / "spool", "--data")
    yield found
    found.close()


@pytest.fixture
def working(where, export):
    """A worker of `where`, and the entries that have ended."""
    ended: list[str] = []
    worker = Worker(where, export, How(pictures=2), dicom=True, ended=lambda entry: ended.append(entry.id))
    worker.start()
    yield worker, ended
    worker.stop()


def test_no_process_begins_once_it_was_told_to_end(where, tmp_path, monkeypatch):
    """Its thread may be on the way to another process at that moment, and nobody would end that one."""
    worker = Worker(where, tmp_path, How(), dicom=False)
    worker._stopping.set()
    monkeypatch.setattr(worker_module.multiprocessing, "get_context", lambda way: pytest.fail("it begins"))
    worker._begin_again()
    assert worker.fault == ""


def test_entries_are_read_as_predict_reads_them_and_a_bad_one_ends_nothing(
    where, working, export, synthetic_set, tmp_path
):
    worker, ended = working
    files = sorted((synthetic_set.output / "stage_2_test").glob("*.dcm"))
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(b"\0" * 128 + b"DICM" + os.urandom(500))
    entries = [put(where, ONE, *files[:3]), put(where, TWO, bad), put(where, THREE, *files[3:6])]
    worker.wake()
    until(lambda: len(ended) == 3)
    assert ended == [ONE, TWO, THREE]
    states = [entry.state() for entry in entries]
    assert [one.state for one in states] == [spool.DONE, spool.FAILED, spool.DONE]
    assert states[1].error.startswith("no file gave a prediction")
    assert entries[0].progress() is None
    out = tmp_path / "out"
    given = ["--input", str(entries[2].files), "--output", str(out), "--pictures", "2"]
    assert predict.main(["--model", str(export), *given]) == 0
    for name in ("predictions.csv", "triage.csv", "rejects.csv", "triage.html"):
        assert (entries[2].result / name).read_bytes() == (out / name).read_bytes(), name
    assert len(list(entries[2].dicom.glob("*/report.dcm"))) >= 1
    with pytest.raises(WrongUse, match="no slice gone"):
        worker.map(entries[2], 1, "gone")
    found = worker.map(entries[2], 1, "00000.dcm")
    assert found.strength.dtype == np.uint8
    assert found.strength.shape == (64, 64) or found.strength.ndim == 2


def test_a_process_that_dies_takes_only_its_entry(where, working, synthetic_set):
    worker, ended = working
    files = sorted((synthetic_set.output / "stage_2_test").glob("*.dcm"))
    entry = put(where, ONE, *files)
    for number in (signal.SIGINT, signal.SIGTERM):  # as Ctrl-C and systemd send them to the whole group
        os.kill(worker._process.pid, number)
    os.kill(worker._process.pid, signal.SIGSTOP)  # so that it cannot end before it is killed
    worker.wake()
    until(lambda: entry.state().state == spool.WORKING)
    os.kill(worker._process.pid, signal.SIGKILL)
    until(lambda: ended == [ONE])
    assert entry.state().state == spool.FAILED
    assert "ended while it read this (SIGKILL)" in entry.state().error
    again = put(where, TWO, files[0])
    worker.wake()
    until(lambda: ended == [ONE, TWO])
    assert again.state().state == spool.DONE


def test_a_spool_that_cannot_be_written_is_a_fault(where, tmp_path, monkeypatch):
    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    worker = Worker(where, tmp_path, How(), dicom=False)
    monkeypatch.setattr(where, "waiting", fail)
    worker._work()
    assert worker.fault == "the spool cannot be written: No space left on device"


def test_stopping_leaves_what_was_not_read_to_wait(where, export, synthetic_set):
    files = sorted((synthetic_set.output / "stage_2_test").glob("*.dcm"))
    worker = Worker(where, export, How(), dicom=False)
    worker.start()
    os.kill(worker._process.pid, signal.SIGSTOP)
    entry = put(where, ONE, *files)
    worker.wake()
    until(lambda: entry.state().state == spool.WORKING)
    os.kill(worker._process.pid, signal.SIGCONT)
    worker.stop()
    assert entry.state().state in (spool.WAITING, spool.DONE)
    assert not worker._process.is_alive()
    with pytest.raises(WorkFailed, match="ask again"):
        worker.map(entry, 1, "0.dcm")


def test_a_model_that_cannot_be_loaded_is_told(where, export, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(export, broken)
    (broken / "model.keras").write_bytes(b"no model")
    with pytest.raises(WorkFailed, match=r"model\.keras"):
        Worker(where, broken, How(), dicom=False).start()
