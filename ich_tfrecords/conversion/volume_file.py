"""HU of the slices of one volume, in the work directory: written once while it is indexed, read by range.

Shards scatter the slices of a volume, so each would unpack it again. A file is a row of frames: rows and columns in
two bytes each, then HU as int16, all little endian. It is called after the bytes that it was made of.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

import google_crc32c
import numpy as np

from ich_tfrecords import pixels
from ich_tfrecords.conversion.job import WorkDir
from ich_tfrecords.dicom.header import SliceHeader
from ich_tfrecords.problems import Problem
from ich_tfrecords.storage import atomic
from ich_tfrecords.storage.folder_walk import UNKNOWN
from ich_tfrecords.storage.slice_reader import RANGE
from ich_tfrecords.storage.sources import SliceRef
from ich_tfrecords.volumes.reader import FrameReader

_SIZE = struct.Struct("<HH")


def write(work: WorkDir, ref: SliceRef, frames: FrameReader) -> list[tuple[SliceRef, SliceHeader | Problem]]:
    """Unpack a volume into `work`; each slice with the place of its HU, or with what keeps it from being one.

    Raises `Problem` where the file gives no slice.
    """
    refs = frames.frames(ref)
    version = int.from_bytes(frames.volume(ref).digest()[:8], "little") >> 1
    with atomic.replacing(work.volume(version), work.temporary) as file:
        return [_written(file, one, version, frames) for one in refs]


def _written(
    file: BinaryIO, ref: SliceRef, version: int, frames: FrameReader
) -> tuple[SliceRef, SliceHeader | Problem]:
    try:
        ct = frames.slice(ref)
    except Problem as problem:
        return ref, problem
    offset, size_bytes, crc32 = _append(file, ct.hu)
    return SliceRef(
        ref.container, ref.name, offset, RANGE, size_bytes, size_bytes, crc32, version, ref.frame
    ), ct.header


def _append(file: BinaryIO, hu: pixels.Int16) -> tuple[int, int, int]:
    """Write a slice; returns where it lies, its bytes and their crc32c."""
    offset, data = file.tell(), b"".join((_SIZE.pack(*hu.shape), hu.astype("<i2", copy=False).tobytes()))
    file.write(data)
    return offset, len(data), google_crc32c.value(data)


def hu_of(data: memoryview) -> pixels.Int16:
    """HU [rows, columns] of a slice, in the memory of `data`."""
    return np.frombuffer(data, "<i2", offset=_SIZE.size).reshape(_SIZE.unpack_from(data))


def place(work: WorkDir, ref: SliceRef) -> SliceRef:
    """Where the HU of a planned slice lie; a file that is one slice lies where it ever did."""
    if not ref.frame:
        return ref
    path = work.volume(ref.version)
    return ref._replace(container=str(path.parent), name=path.name, version=UNKNOWN)
