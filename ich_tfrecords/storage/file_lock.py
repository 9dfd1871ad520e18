"""One process at a time in a folder of this machine: a locked file, which names its holder."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from ich_tfrecords.storage import file_system


class Held(Exception):
    """Another process holds the lock; the message says which, where that is known."""


class FileLock:
    """The lock at `path`, held until `close`; it goes with its process, however that ends.

    Raises `Held`, and `OSError` where no file can be written.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        held = not file_system.lock(self._descriptor, path.parent)
        holder = os.pread(self._descriptor, 200, 0).decode(errors="replace").strip()
        if held or not self._is_there():
            os.close(self._descriptor)
            raise Held(holder)

    def _is_there(self) -> bool:
        """Write this process into the locked file; False where one that has just finished took it away."""
        me = f"process {os.getpid()} on {socket.gethostname()}".encode()
        with contextlib.suppress(OSError):  # a full disk; the lock holds all the same
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, me, 0)
        try:
            # some shares give the same file another inode number each time, so its bytes count as well
            return os.fstat(self._descriptor).st_ino == self._path.stat().st_ino or self._path.read_bytes() == me
        except FileNotFoundError:
            return False

    def require(self) -> None:
        """Nothing: nobody can take it over."""

    def close(self) -> None:
        """Let others have it. Its folder goes where it is empty: a share may keep that as long as the file is open."""
        os.close(self._descriptor)
        with contextlib.suppress(OSError):
            self._path.parent.rmdir()
