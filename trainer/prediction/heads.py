"""Which files are slices of which series, from the head of each: a first look, before any pixels are decoded.

Memory: 12 bytes a file, 24 a slice of a file that holds many, and the UIDs of each series once; beside a listing of
several inputs a copy of it.
"""

from __future__ import annotations

import array
import contextlib
from collections.abc import Generator, Iterator, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ich_tfrecords.dicom import ct_slice
from ich_tfrecords.dicom.header import HoldsFrames
from ich_tfrecords.problems import Problem
from ich_tfrecords.spec import ImageSpec
from ich_tfrecords.storage import sources
from ich_tfrecords.volumes.reader import FrameReader
from trainer.prediction import slice_stream, triage
from trainer.prediction.slice_stream import Reject
from trainer.prediction.triage import Outcome

PART_FILES = 4096  # whose rows are in memory at a time
NO_SERIES = -1

Int64 = npt.NDArray[np.int64]


class Heads:
    """The heads of the files of a listing (`sources.LISTING_SCHEMA`): `read` them, `settle` repeats, then `refs`.

    `inputs`: `slice_stream.input_numbers` of the listing.
    """

    def __init__(self, listing: pa.Table) -> None:
        self._listing = listing if listing["name"].num_chunks <= 1 else listing.combine_chunks()  # `take` is quick then
        self.inputs = slice_stream.input_numbers(listing)
        self._series = np.full(len(listing), NO_SERIES, np.int32)  # number of the series of each file
        self._uids = np.zeros(len(listing), np.uint64)  # hash of its SOP UID
        # of slices in files of many, behind the files of the listing: row of the file there, number in it
        self._file, self._frame = np.zeros(0, np.int64), np.zeros(0, np.int32)
        self._numbers: dict[tuple[str, str], int] = {}  # of each series, by study and series UID
        self._studies: dict[str, int] = {}  # number of each study

    def __len__(self) -> int:
        """How many slices are known to be of a series."""
        return int(np.count_nonzero(self._series != NO_SERIES))

    def read(self) -> Generator[Outcome, None, None]:
        """Look at every file, in order; gives the rejects among them, part by part."""
        refs, begin = sources.refs(self._listing), 0
        inside = tuple(array.array(code) for code in "qiiQ")  # file, frame, series, UID of slices in files of many
        with sources.SliceReader() as reader, FrameReader(reader) as frames:
            while part := list(islice(refs, PART_FILES)):
                reader.expect(part, ct_slice.HEAD_BYTES)
                lost = [one for row, ref in enumerate(part, begin) for one in self._look(row, ref, frames, inside)]
                yield triage.without_slices(lost, len(part))
                begin += len(part)
        self._file, self._frame, series, uids = (np.array(values) for values in inside)
        self._series, self._uids = np.append(self._series, series), np.append(self._uids, uids)

    def settle(self, image: ImageSpec, batch_size: int) -> Iterator[list[Reject]]:
        """Decode files that share a SOP UID, and keep the first good one of each; gives the rejects of the others.

        Without this it would count which series comes first, and not which file does.
        """
        rows = self._repeated()
        table = self._taken(rows)
        parts = (rows[begin : begin + batch_size] for begin in range(0, len(rows), batch_size))
        refs = sources.refs(table)
        with contextlib.closing(slice_stream.batches(table, image, batch_size, self.inputs)) as batches:
            for part, batch in zip(parts, batches, strict=True):
                kept = {found.ref for found in batch.slices}
                self._series[[row for row, ref in zip(part, islice(refs, len(part))) if ref not in kept]] = NO_SERIES
                yield batch.rejects

    def refs(self) -> Iterator[sources.SliceRef]:
        """The files that are slices, study after study and series after series as they were first met."""
        rows = self._order()
        for begin in range(0, len(rows), PART_FILES):
            yield from sources.refs(self._taken(rows[begin : begin + PART_FILES]))

    def _taken(self, rows: Int64) -> pa.Table:
        """Rows of the listing for these slices, with their `frame` where one lies in a file of many."""
        files, frame = rows.copy(), np.zeros(len(rows), np.int32)
        inside = np.flatnonzero(rows >= len(self._listing))
        if not len(inside):
            return self._listing.take(pa.array(rows))
        numbers = rows[inside] - len(self._listing)
        files[inside], frame[inside] = self._file[numbers], self._frame[numbers]
        return self._listing.take(pa.array(files)).append_column("frame", pa.array(frame))

    def _look(
        self, row: int, ref: sources.SliceRef, frames: FrameReader, inside: Sequence[array.array[int]]
    ) -> list[Reject]:
        """Note what the head of a file says, or the heads of the slices `inside` it; gives the rejects."""
        try:
            self._series[row], self._uids[row] = self._numbered(_header(ref, frames))
            return []
        except HoldsFrames:
            pass
        except Problem as problem:
            return [self._unread(ref, problem)]
        lost: list[Reject] = []
        try:
            for one in frames.frames(ref):
                try:
                    found = (row, one.frame, *self._numbered(frames.header(one)))
                except Problem as problem:
                    lost.append(self._unread(one, problem))
                    continue
                for values, value in zip(inside, found, strict=True):
                    values.append(value)
        except Problem as problem:
            lost.append(self._unread(ref, problem))
        return lost

    def _numbered(self, header: ct_slice.SliceHeader) -> tuple[int, int]:
        """The number of a slice's series, and the hash of its SOP UID."""
        self._studies.setdefault(header.study_uid, len(self._studies))
        series = self._numbers.setdefault((header.study_uid, header.series_uid), len(self._numbers))
        return series, slice_stream.uid_hash(header.sop_uid)

    def _unread(self, ref: sources.SliceRef, problem: Problem) -> Reject:
        return slice_stream.unread(ref, self.inputs[ref.container], problem)

    def _repeated(self) -> Int64:
        """Rows of files that share a SOP UID with another, in order."""
        rows = np.flatnonzero(self._series != NO_SERIES)
        _, which, files = np.unique(self._uids[rows], return_inverse=True, return_counts=True)
        return rows[files[which] > 1]

    def _order(self) -> Int64:
        """Rows of the files of series, by study and series; in each in order of the listing."""
        study_of = np.array([self._studies[study] for study, _ in self._numbers], np.int64)
        rows = np.flatnonzero(self._series != NO_SERIES)
        series = self._series[rows]
        return rows[np.lexsort((series, study_of[series]))]


def _header(ref: sources.SliceRef, frames: FrameReader) -> ct_slice.SliceHeader:
    """The header as decoding finds it. Raises `Problem`, as decoding does."""
    try:
        return frames.header(ref)
    except HoldsFrames:
        raise
    except Problem:  # the whole file says what is wrong with it
        return ct_slice.read_header(frames.files.read(ref))
