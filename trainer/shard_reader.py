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

from ich_tfrecords import records
from ich_tfrecords.spec import DatasetSpec
from trainer.problems import TrainingFailed

if TYPE_CHECKING:
    from trainer.dataset import Slices

FRAME_BYTES = 16  # length and its crc32c before the payload, the crc32c of the payload after it
SPARE_FILES = 256  # open files left to TensorFlow, logs and checkpoints


class ShardReader:
    """Reads images and labels of a split's slices; several threads may read at once.

    `problem`: the first failure met, or None. TensorFlow turns an exception inside a `tf.data` map into an
    error of its own; the typed one waits here.
    """

    def __init__(self, slices: Slices) -> None:
        self.problem: TrainingFailed | None = None
        self._slices = slices
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()
        self._keep = _files_to_keep(len(slices.paths))
        self._largest = int(slices.length.max(initial=0)) + FRAME_BYTES
        self._of_thread = threading.local()
        self._table = records.features(slices.spec)
        self._front, self._pixels_at = _layout(slices.spec)
        weakref.finalize(self, _close, self._files)

    def read(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Images uint8 [b, size, size, windows] and labels int64 [b, L] of the slices at `rows` [b] of the split.

        Raises `TrainingFailed` for a record that cannot be read, fails its checks or is no slice.
        """
        slices = self._slices
        places = zip(
            slices.shard[rows].tolist(), slices.offset[rows].tolist(), slices.length[rows].tolist(), strict=True
        )
        images = np.empty((len(rows), *slices.spec.image.shape), np.uint8)
        buffer = self._buffer()
        for position, (shard, offset, length) in enumerate(places):
            framed = buffer[: length + FRAME_BYTES]
            try:
                got = self._read_into(framed, shard, offset)
                if damage := damage_of(framed[:got], length):
                    raise ValueError(damage)
                self._copy_pixels(framed[12:-4], images[position])
            except (OSError, ValueError) as error:
                raise self._failed(int(rows[position]), error) from error
        # the table's labels are those of the records, and its sha256 stands in the manifest
        return images, slices.labels[rows].astype(np.int64)

    def _buffer(self) -> npt.NDArray[np.uint8]:
        """Room for one framed record, of the calling thread."""
        if not hasattr(self._of_thread, "buffer"):
            self._of_thread.buffer = np.empty(self._largest, np.uint8)
        return self._of_thread.buffer

    def _copy_pixels(self, payload: npt.NDArray[np.uint8], image: npt.NDArray[np.uint8]) -> None:
        """Copy the pixels straight out of a record that begins as `records.encode` has it; parse any other."""
        pixels_at = self._pixels_at
        if payload[pixels_at - len(self._front) : pixels_at].tobytes() == self._front:
            image.reshape(-1)[:] = payload[pixels_at : pixels_at + image.size]
        else:
            image[:] = records.parse(payload.tobytes(), self._table)["image"]

    def _read_into(self, framed: npt.NDArray[np.uint8], shard: int, offset: int) -> int:
        """Fill `framed` from a shard; returns how many bytes there were."""
        file = self._files.get(shard)
        if file is None:
            with self._lock:
                if shard not in self._files and len(self._files) < self._keep:
                    self._files[shard] = os.open(self._slices.paths[shard], os.O_RDONLY)
            file = self._files.get(shard)
        if file is not None:
            return os.preadv(file, [framed.data], offset)
        with open(self._slices.paths[shard], "rb", buffering=0) as once:
            return os.preadv(once.fileno(), [framed.data], offset)

    def _failed(self, row: int, error: Exception) -> TrainingFailed:
        what = f"cannot be read: {error}" if isinstance(error, OSError) else str(error)
        problem = record_problem(self._slices, row, what)
        with self._lock:
            self.problem = self.problem or problem
        return problem


def _layout(spec: DatasetSpec) -> tuple[bytes, int]:
    """The bytes that stand before the pixels of a record whatever it holds, and where the pixels begin.

    Parsing would copy an image three times more. The layout is read off two records that differ in their pixels;
    the tag and length of the whole message, which the texts change, are left out.
    """
    table = records.features(spec)
    text = dict.fromkeys((feature.name for feature in table if feature.dtype == "string"), b"0123456789")
    numbers = {feature.name: np.zeros(feature.shape, int).tolist() for feature in table if feature.dtype != "string"}
    dark, bright = (
        np.frombuffer(records.encode({**text, **numbers, "image": image}, table), np.uint8)
        for image in (np.full(spec.image.shape, level, np.uint8) for level in (0, 255))
    )
    pixels_at = int(np.flatnonzero(dark != bright)[0])
    whole = 1 + int(np.flatnonzero(dark[1:] < 128)[0]) + 1  # a tag, then a length whose last byte is below 128
    return dark[whole:pixels_at].tobytes(), pixels_at


def damage_of(framed: Any, length: int) -> str:
    """What is wrong with a framed record (bytes or uint8 [n]), its payload of `length` bytes; empty if it is whole."""
    if len(framed) < length + FRAME_BYTES:
        return f"the shard ends after {len(framed):,} of {length + FRAME_BYTES:,} bytes"
    head, end = bytes(framed[:12]), bytes(framed[-4:])
    if _masked_crc(head[:8]) != int.from_bytes(head[8:], "little"):
        return "the length field fails its crc32c"
    if (told := int.from_bytes(head[:8], "little")) != length:
        return f"it has {told:,} bytes, the slice table says {length:,}"
    if _masked_crc(framed[12:-4]) != int.from_bytes(end, "little"):
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


def _masked_crc(data: Any) -> int:
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
