"""One conversion at a time for a folder of this machine: a locked file."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path


class Held(Exception):
    """Another process holds the lock; the message says which."""


class FileLock:
    """The lock at `path`, held until `close`; it goes with its process, however that ends.

    Raises `Held`, and `OSError` where no file can be written.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._descriptor).st_ino == path.stat().st_ino:
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return
        except (BlockingIOError, FileNotFoundError):
            pass  # held by another process, or removed by one that has just finished
        holder = os.pread(self._descriptor, 200, 0).decode(errors="replace") or "its process is not known"
        self.close()
        raise Held(holder)

    def require(self) -> None:
        """Nothing: nobody can take it over."""

    def close(self) -> None:
        """Let others have it."""
        os.close(self._descriptor)
