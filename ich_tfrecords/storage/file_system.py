"""What some file systems cannot do, and is then done without: bring a folder or a file to the disk, lock a file."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path

# what network shares, FUSE and emulated kernels answer to a call that they do not have
UNABLE = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})
# and to one that they do not have for folders; PostgreSQL passes over the same (fsync_fname_ext)
_UNABLE_OF_FOLDERS = UNABLE | {errno.EACCES, errno.EPERM, errno.EBADF, errno.EISDIR}
_HELD = frozenset({errno.EWOULDBLOCK, errno.EACCES})


def sync(file: int, folder: Path) -> None:
    """Bring the bytes of an open file (its descriptor) to the disk; `folder`: where it lies, for the words."""
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in UNABLE:
            raise
        _tell_once(
            f"that cannot bring files to the disk when asked ({error.strerror}); after a power cut or a crash of its "
            "server run the same command again",
            folder,
        )


def sync_folder(folder: Path) -> None:
    """Make the renames inside a folder last through a power cut, where its file system can do that.

    Without it a rename may be lost, never be half done; the same command makes such a file anew.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _UNABLE_OF_FOLDERS:
            raise


def lock(file: int, folder: Path) -> bool:
    """Lock an open file (its descriptor) for this process; False where another one holds it.

    On a file system without locks nobody is kept out, which is said once. `folder`: what is locked, for the words.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno not in UNABLE:
            raise
        _tell_once(
            f"without locks ({error.strerror}); two processes that write there are not kept apart, so start one at a "
            "time",
            folder,
        )
    return True


told: set[str] = set()  # by this process


def _tell_once(lack: str, folder: Path) -> None:
    """A line on standard error, for the first folder that shows this lack."""
    if lack not in told:
        told.add(lack)
        print(f"{folder} is on a file system {lack}", file=sys.stderr, flush=True)
