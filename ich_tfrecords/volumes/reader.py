"""Slices of listed files, whether a file is one slice or holds many.

`SliceRef.frame` 0 stands for a file. One that turns out to hold many slices is a `HoldsFrames`; `frames` gives a
reference to each, and these are read like any other. The last such file stays open, so that it is unpacked once.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Collection, Iterator

from ich_tfrecords.dicom import ct_slice
from ich_tfrecords.dicom.ct_slice import CtSlice, SliceHeader
from ich_tfrecords.dicom.header import ENHANCED, ORIGINAL_ALONE, HoldsFrames
from ich_tfrecords.storage import buckets, spooled
from ich_tfrecords.storage.sources import MAX_SLICE_BYTES, SliceReader, SliceRef, UnreadableSource
from ich_tfrecords.volumes.enhanced import EnhancedCt
from ich_tfrecords.volumes.nifti import Nifti
from ich_tfrecords.volumes.volume import Volume

_NIFTI = (".nii", ".nii.gz")
_MANY = HoldsFrames("holds_frames", "the file holds many slices, which are read one by one")


class FrameReader:
    """Headers and pixels of slices, one at a time, through a `SliceReader` that stays the caller's. For one thread."""

    def __init__(self, reader: SliceReader, accept: Collection[str] = ORIGINAL_ALONE) -> None:
        """`accept`: which slices count (`DatasetSpec.accept`)."""
        self.files = reader
        self._accept = accept
        self._open: tuple[SliceRef, Volume] | None = None

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file of many slices that was read last."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def header(self, ref: SliceRef) -> SliceHeader:
        """The header of a slice, from its first bytes where these say all. Raises `Problem`, `HoldsFrames`."""
        if ref.frame:
            return self.volume(ref).header(ref.frame)
        _check_single(ref)
        head = self.files.read_head(ref, ct_slice.HEAD_BYTES)
        found = ct_slice.fast_header(head, ref.size_bytes, self._accept)
        return found or ct_slice.read_header(self.files.read(ref), self._accept)

    def slice(self, ref: SliceRef) -> CtSlice:
        """Header and HU of a slice, until the reader reads again. Raises `Problem`, `HoldsFrames`."""
        if ref.frame:
            with _typed(ref):
                return self.volume(ref).slice(ref.frame)
        _check_single(ref)
        return ct_slice.read_slice(self.files.read(ref), self._accept)

    def frames(self, ref: SliceRef) -> list[SliceRef]:
        """A reference to each slice of a file that holds many. Raises `Problem`."""
        return [ref._replace(frame=frame) for frame in range(1, self.volume(ref).frames + 1)]

    def volume(self, ref: SliceRef) -> Volume:
        """The file of a slice, open until another one is asked for. Raises `Problem`."""
        file = ref._replace(frame=0)
        if self._open is None or self._open[0] != file:
            self.close()
            with _typed(ref):
                opened = spooled.opened(file)
                self._open = file, Nifti(opened) if is_nifti(ref.name) else EnhancedCt(opened, self._accept)
        return self._open[1]


@contextlib.contextmanager
def _typed(ref: SliceRef) -> Iterator[None]:
    """Turns a fault of the disk that a file lies on into a problem of the file; a full one ends the work."""
    try:
        yield
    except buckets.NoAnswer:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UnreadableSource("unreadable_file", f"{ref.name}: {error.strerror or type(error).__name__}") from error


def is_nifti(name: str) -> bool:
    """Whether a file is a NIfTI volume, by its name."""
    return name.lower().endswith(_NIFTI)


def _check_single(ref: SliceRef) -> None:
    """Raise `HoldsFrames` for a file that is known to hold many slices before it is read."""
    if is_nifti(ref.name):
        raise _MANY
    if ref.size_bytes > MAX_SLICE_BYTES:
        with SliceReader(spooled.MAX_FILE_BYTES) as reader:
            head = bytes(reader.read_head(ref, ct_slice.HEAD_BYTES))
        if any(uid.encode() in head for uid in ENHANCED):
            raise _MANY
