"""A port that is killed at any moment: what a sender was told of success is there, whole, and nothing else counts."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from dicom_files import dicom_file, head_slice, slice_elements
from dicom_peer import associate, split, store

from trainer.listening import server
from trainer.listening.inbox import Inbox, study_id
from trainer.listening.studies import Studies
from trainer.worklist.spool import Spool

pytestmark = pytest.mark.slow  # starts processes

ROOT = Path(server.__file__).parents[2]
PORT_ALONE = """
import sys, time
from pathlib import Path
from trainer.listening import inbox
from trainer.listening.server import Server
from trainer.listening.studies import Studies
from trainer.worklist.spool import Spool
inbox.MIN_FREE_BYTES = 1
root = Path(sys.argv[1])
studies = Studies(Spool(root / "studies", "--spool"), 1e9, sends=False)
server = Server("ICH", (), inbox.Inbox(root / "incoming", studies), studies)
print(server.bind("127.0.0.1", 0), flush=True)
server.begin()
time.sleep(600)
"""
STUDIES = 3


def a_slice(number: int) -> bytes:
    uids = {"SOPInstanceUID": f"1.3.{number}", "StudyInstanceUID": f"1.2.{number % STUDIES}"}
    encoded = {name: uid.encode() for name, uid in uids.items()}
    return dicom_file(slice_elements(head_slice(256, number), **encoded))


def killed_while_it_takes(root: Path, numbers: itertools.count, after_s: float) -> dict[str, bytes]:
    """SOP UID -> data set of the objects whose sender was told of success, until the kill."""
    command = [sys.executable, "-c", PORT_ALONE, str(root)]
    taken: dict[str, bytes] = {}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        association = associate(int(process.stdout.readline()))
        association.dimse_timeout = 2
        threading.Timer(after_s, os.kill, (process.pid, signal.SIGKILL)).start()
        for number in numbers:
            try:
                answer = store(association, file := a_slice(number))
            except (ValueError, RuntimeError):  # the association is gone
                break
            if answer.get("Status") != 0:
                break
            taken[f"1.3.{number}"] = split(file)[1]
    return taken


def test_what_was_told_is_there(tmp_path):
    numbers, rng, told, kills = itertools.count(), random.Random(4), {}, 0
    while kills < 4 or len(told) <= 20:  # a busy machine takes few in a second
        told |= killed_while_it_takes(tmp_path, numbers, rng.uniform(0.05, 0.8))
        kills += 1
        assert kills <= 40, f"{len(told)} objects were taken in {kills} starts"
    spool = Spool(tmp_path / "studies", "--spool")
    inbox = Inbox(tmp_path / "incoming", Studies(spool, 1.0, sends=False))
    assert list(inbox.incoming.iterdir()) == []
    there = [split(path.read_bytes())[1] for entry in spool.entries() for path in entry.files.iterdir()]
    assert set(told.values()) <= set(there)
    whole = {split(a_slice(number))[1] for number in range(next(numbers))}
    assert set(there) <= whole  # one more a kill at most: it was there, and its sender not told yet
    assert len(there) <= len(told) + kills
    assert {entry.id for entry in spool.entries()} <= {study_id(f"1.2.{number}") for number in range(STUDIES)}
    spool.close()
