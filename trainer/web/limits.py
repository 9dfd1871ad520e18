"""What one server takes on: caps on bytes, files, places and time."""

from __future__ import annotations

from typing import NamedTuple

MIB = 1 << 20
MOST_FILES = 20_000  # of an upload, those in archives too
MOST_WAITING = 100  # uploads that wait for the model
MOST_RECEIVING = 16  # uploads at once
MOST_KEPT = 1000  # uploads, whatever their state
MOST_MAPS = 8  # asked for at once; the model makes one after the other
MOST_CONNECTIONS = 128
THREADS = 24  # that read and write files
MOST_NAME = 512  # letters of a name that are kept
UNPACKED = 8  # what the files of archives may hold, in times of what an upload may
LEAST_FREE_BYTES = 1 << 30  # of the disk, that no upload takes
MOST_REJECTS = 200  # told of an upload; rejects.csv holds all

HEAD_S = 20.0  # for the head of a request, and for an answer to be taken
LINGER_S = 5.0  # for the rest of a body that was refused
PATIENCE_S, LEAST_BYTES_S = 30.0, 8192.0  # a body may take the first, and a second more for so many bytes
RETRY_S = 10


class Limits(NamedTuple):
    """What the command line sets: bytes of an upload, and for how long it is kept."""

    most_upload_bytes: int = 2048 * MIB
    keep_s: float = 24 * 3600.0
