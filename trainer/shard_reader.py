"""Records of local shards by number: any slice in any order, each checked by its crc32c.

A shard is read at offsets that the slice table knows, so a shuffled epoch costs no shuffle buffer.
"""

from __future__ import annotations

import os
import resource
import threading
import weakref
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from trainer.problems import TrainingFailed

if TYPE_CHECKING:
    from trainer.dataset import Slices

FRAME_BYTES = 16  # length and its crc32c before the payload, the crc32c of the payload after it
SPARE_FILES = 256  # open files left to TensorFlow, logs and checkpoints


class ShardReader:
    """Reads payloads of a split's slices; several threads may read at once.

    `problem`: the first failure met, or None. TensorFlow turns an exception inside a `tf.data` map into an
    error of its own; the typed one waits here.
    """

    def __init__(self, slices: Slices) -> None:
        self.problem: TrainingFailed | None = None
        self._slices = slices
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()
        self._keep = _files_to_keep(len(slices.paths))
        weakref.finalize(self, _close, self._files)

    def read(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Payloads of the slices at `rows` [b] of the split, an object array of bytes [b].

        Raises `TrainingFailed` for a record that cannot be read or fails its checks.
        """
        slices = self._slices
        places = zip(
            slices.shard[rows].tolist(), slices.offset[rows].tolist(), slices.length[rows].tolist(), strict=True
        )
        payloads = np.empty(len(rows), object)
        for position, (shard, offset, length) in enumerate(places):
            try:
                framed = self._pread(shard, length + FRAME_BYTES, offset)
            except OSError as error:
                raise self._failed(int(rows[position]), f"cannot be read: {error}") from error
            payload = framed[12:-4]
            if damage := damage_of(framed, payload, length):
                raise self._failed(int(rows[position]), damage)
            payloads[position] = payload
        return payloads

    def _pread(self, shard: int, size: int, offset: int) -> bytes:
        file = self._files.get(shard)
        if file is not None:
            return os.pread(file, size, offset)
        with self._lock:
            if shard not in self._files and len(self._files) < self._keep:
                self._files[shard] = os.open(self._slices.paths[shard], os.O_RDONLY)
        if shard in self._files:
            return os.pread(self._files[shard], size, offset)
        with open(self._slices.paths[shard], "rb", buffering=0) as once:
            return os.pread(once.fileno(), size, offset)

    def _failed(self, row: int, what: str) -> TrainingFailed:
        problem = record_problem(self._slices, row, what)
        with self._lock:
            self.problem = self.problem or problem
        return problem


def damage_of(framed: bytes, payload: bytes, length: int) -> str:
    """What is wrong with a framed record whose payload should have `length` bytes; empty when it is whole."""
    if len(framed) < length + FRAME_BYTES:
        return f"the shard ends after {len(framed):,} of {length + FRAME_BYTES:,} bytes"
    if _masked_crc(framed[:8]) != int.from_bytes(framed[8:12], "little"):
        return "the length field fails its crc32c"
    if (told := int.from_bytes(framed[:8], "little")) != length:
        return f"it has {told:,} bytes, the slice table says {length:,}"
    if _masked_crc(payload) != int.from_bytes(framed[-4:], "little"):
        return "the payload fails its crc32c"
    return ""


def record_problem(slices: Slices, row: int, what: str) -> TrainingFailed:
    """The problem with the record of a row: shard, record number, byte offset, and how to see all the damage."""
    name = slices.names[slices.shard[row]]
    where = f"{slices.place}: shard {name}, record {slices.record[row]} at byte {slices.offset[row]:,}"
    return TrainingFailed(f"{where}: {what}; {advice(slices.place)}")


def advice(place: str) -> str:
    """What to do about a damaged data set."""
    verify = f"python -m ich_tfrecords.inspect verify {place}"
    if place.startswith("gs://"):
        verify = "python -m ich_tfrecords.inspect verify DIR on a copy of it"
    return f"restore it or convert again; see what is damaged with: {verify}"


def _masked_crc(data: bytes) -> int:
    """crc32c rotated by 15 bits plus a constant (tensorflow/core/lib/hash/crc32c.h)."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _files_to_keep(shards: int) -> int:
    """How many shards may stay open: all, after raising the soft limit of open files if need be, or what it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return shards
    wanted = shards + SPARE_FILES
    if soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
        soft = max(soft, allowed)
    return min(shards, max(soft - SPARE_FILES, 0))


def _close(files: dict[int, int]) -> None:
    for file in files.values():
        os.close(file)
