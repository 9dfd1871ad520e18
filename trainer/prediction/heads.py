"""Which files are slices of which series, from the head of each: a first look, before any pixels are decoded.

Memory: 12 bytes a file, and the UIDs of each series once; beside a listing of several inputs a copy of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ich_tfrecords.dicom import ct_slice
from ich_tfrecords.problems import Problem
from ich_tfrecords.spec import ImageSpec
from ich_tfrecords.storage import sources
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
        self._numbers: dict[tuple[str, str], int] = {}  # of each series, by study and series UID
        self._studies: dict[str, int] = {}  # number of each study

    def __len__(self) -> int:
        """How many files are known to be of a series."""
        return int(np.count_nonzero(self._series != NO_SERIES))

    def read(self) -> Generator[Outcome, None, None]:
        """Look at every file, in order; gives the rejects among them, part by part."""
        refs, begin = sources.refs(self._listing), 0
        with sources.SliceReader() as reader:
            while part := list(islice(refs, PART_FILES)):
                reader.expect(part, ct_slice.HEAD_BYTES)
                lost = [one for row, ref in enumerate(part, begin) for one in self._look(row, ref, reader)]
                yield triage.without_slices(lost, len(part))
                begin += len(part)

    def settle(self, image: ImageSpec, batch_size: int) -> Iterator[list[Reject]]:
        """Decode files that share a SOP UID, and keep the first good one of each; gives the rejects of the others.

        Without this it would count which series comes first, and not which file does.
        """
        rows = self._repeated()
        table = self._listing.take(pa.array(rows))
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
            yield from sources.refs(self._listing.take(pa.array(rows[begin : begin + PART_FILES])))

    def _look(self, row: int, ref: sources.SliceRef, reader: sources.SliceReader) -> list[Reject]:
        """Note what the head of a file says, or give its reject."""
        try:
            header = _header(ref, reader)
        except Problem as problem:
            return [slice_stream.unread(ref, self.inputs[ref.container], problem)]
        self._studies.setdefault(header.study_uid, len(self._studies))
        self._series[row] = self._numbers.setdefault((header.study_uid, header.series_uid), len(self._numbers))
        self._uids[row] = slice_stream.uid_hash(header.sop_uid)
        return []

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


def _header(ref: sources.SliceRef, reader: sources.SliceReader) -> ct_slice.SliceHeader:
    """The header as decoding finds it. Raises `Problem`, as decoding does."""
    try:
        found = ct_slice.fast_header(reader.read_head(ref, ct_slice.HEAD_BYTES), ref.size_bytes)
    except Problem:
        found = None  # the whole file says what is wrong with it
    return found or ct_slice.read_header(reader.read(ref))
