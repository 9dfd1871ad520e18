"""One process at a time in a folder: a lock that goes with its holder, however it ends."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import TextIO

from ich_tfrecords.storage import file_system
from trainer.shell.problems import WrongUse


def take(file: TextIO, folder: Path, flag: str) -> None:
    """Lock an open file and write this process into it.

    `folder` and `flag`: what is locked, and what chooses another. Raises `WrongUse` naming the holder.
    """
    if not file_system.lock(file.fileno(), folder):
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise WrongUse(f"{folder} is in use by {holder}; wait for it, or choose another {flag}")
    file.truncate(0)
    with contextlib.suppress(OSError):  # a full disk; the lock holds all the same
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
