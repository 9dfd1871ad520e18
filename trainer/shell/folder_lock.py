"""One process at a time in a folder: the library's lock, in the words of these commands."""

from __future__ import annotations

from pathlib import Path

from ich_tfrecords.storage.file_lock import FileLock, Held
from trainer.shell.problems import WrongUse

LOCK = "lock"


def take(folder: Path, flag: str) -> FileLock:
    """The lock of `folder`, which is made where it is missing; `flag`: what chooses another.

    Raises `WrongUse` naming the holder, and `OSError` where nothing can be written.
    """
    try:
        return FileLock(folder / LOCK)
    except Held as error:
        holder = str(error) or "another process"
        raise WrongUse(f"{folder} is in use by {holder}; wait for it, or choose another {flag}") from error
