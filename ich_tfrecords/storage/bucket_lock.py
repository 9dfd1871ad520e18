"""One conversion at a time for a folder of a bucket: an object that its holder keeps writing anew.

A bucket knows no lock that goes with its process. So the holder writes the lock again every `BEAT_S`; one that
nobody has written for `STALE_S`, by the bucket's own clock, belonged to a process that is gone and is taken over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import uuid

from ich_tfrecords.storage import buckets
from ich_tfrecords.storage.bucket_path import BucketPath
from ich_tfrecords.storage.file_lock import Held

BEAT_S = 20.0
STALE_S = 120.0


class BucketLock:
    """The lock at `path`, held until `close`. Raises `Held`."""

    def __init__(self, path: BucketPath) -> None:
        self._path = path
        self._mark = f"process {os.getpid()} on {socket.gethostname()}\n{uuid.uuid4().hex}".encode()
        self._generation = self._take()
        self._lost = False
        self._beating = threading.Lock()
        self._stop = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="bucket lock", daemon=True)
        self._beats.start()

    def require(self) -> None:
        """Raises `Held` when another process has taken the lock over, after a long stop of this one."""
        self._beat_once()
        if self._lost:
            raise Held(f"{self._holder()}, which took over while this process stood still")

    def close(self) -> None:
        """Let others have it."""
        self._stop.set()
        self._beats.join()
        try:
            buckets.delete(self._path.bucket, self._path.key, self._generation)
        except (FileNotFoundError, buckets.Moved):
            pass  # gone with the folder, or taken over
        except OSError as error:  # it would hide why the work ended; others wait until the lock is stale
            logging.error("the lock %s was not removed: %s", self._path, error)

    def _take(self) -> int:
        with contextlib.suppress(buckets.Moved):
            return self._put(0)
        try:
            found = buckets.stat(self._path.bucket, self._path.key)
            silent_s = self._clock_s() - found.updated_s
            if silent_s < STALE_S:
                raise Held(
                    f"{self._holder()}, last sign of life {max(0.0, silent_s):.0f} s ago; "
                    f"one that died is forgotten after {STALE_S:.0f} s"
                )
            return self._put(found.generation)
        except (FileNotFoundError, buckets.Moved) as error:  # let go of, or taken, at this moment
            raise Held("a process that has just begun or ended") from error

    def _put(self, generation: int) -> int:
        """Write the lock in place of this generation (0: of none); the new one. Raises `buckets.Moved`."""
        mark = self._mark
        try:
            return buckets.write(self._path.bucket, self._path.key, mark, generation).generation
        except buckets.Moved:
            # The answer to a write may get lost, and its repetition then meets what the first one wrote.
            with contextlib.suppress(FileNotFoundError):
                there = buckets.stat(self._path.bucket, self._path.key).generation
                if buckets.read_range(self._path.bucket, self._path.key, 0, len(mark) + 1, there) == mark:
                    return there
            raise

    def _clock_s(self) -> float:
        """The bucket's time, which may differ from this machine's."""
        path = self._path.parent / f"clock.{uuid.uuid4().hex}"
        told = buckets.write(path.bucket, path.key, b"").updated_s
        path.unlink(missing_ok=True)
        return told

    def _holder(self) -> str:
        try:
            return self._path.read_bytes().decode(errors="replace").partition("\n")[0]
        except FileNotFoundError:
            return "its process is not known"

    def _beat(self) -> None:
        while not self._lost and not self._stop.wait(BEAT_S):
            try:
                self._beat_once()
            except OSError as error:
                logging.error("the lock %s was not written: %s", self._path, error)

    def _beat_once(self) -> None:
        with self._beating:
            if self._lost:
                return
            try:
                self._generation = self._put(self._generation)
            except (buckets.Moved, FileNotFoundError):
                self._lost = True
