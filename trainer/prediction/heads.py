"""Which files are slices of which series, from the head of each: a first look, before any pixels are decoded.

Memory: 12 bytes a file, 24 a slice of a file that holds many, and for each series its UIDs once and 4 bytes a slice;
beside a listing of several inputs a copy of it.
"""

from __future__ import annotations

import array
import contextlib
from collections.abc import Collection, Generator, Iterator, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ich_tfrecords.dataset import series_choice, series_rules
from ich_tfrecords.dicom import ct_slice, facts
from ich_tfrecords.dicom.header import HoldsFrames
from ich_tfrecords.problems import Problem
from ich_tfrecords.spec import DatasetSpec
from ich_tfrecords.storage import sources
from ich_tfrecords.storage.slice_reader import slice_name
from ich_tfrecords.volumes.reader import FrameReader
from trainer.prediction import slice_stream, triage
from trainer.prediction.slice_stream import Reject
from trainer.prediction.triage import Outcome

PART_FILES = 4096  # whose rows are in memory at a time
NO_SERIES, LEFT_OUT = -1, -2  # in the place of a number

Int64 = npt.NDArray[np.int64]


class Heads:
    """The heads of the files of a listing (`sources.LISTING_SCHEMA`): `read` them, `choose` series, `settle` repeats.

    Then `refs`, or `kept` in the order of the listing. `accept`: which slices count (`DatasetSpec.accept`). `inputs`:
    `slice_stream.input_numbers` of the listing.
    """

    def __init__(self, listing: pa.Table, accept: Collection[str]) -> None:
        self._accept = accept
        self._listing = listing if listing["name"].num_chunks <= 1 else listing.combine_chunks()  # `take` is quick then
        self.inputs = slice_stream.input_numbers(listing)
        self._series = np.full(len(listing), NO_SERIES, np.int32)  # number of the series of each file
        self._uids = np.zeros(len(listing), np.uint64)  # hash of its SOP UID
        # of slices in files of many, behind the files of the listing: row of the file there, number in it
        self._file, self._frame = np.zeros(0, np.int64), np.zeros(0, np.int32)
        self._numbers: dict[tuple[str, str], int] = {}  # of each series, by study and series UID
        self._studies: dict[str, int] = {}  # number of each study
        self._told: list[_Told] = []  # of each series

    def __len__(self) -> int:
        """How many slices are known to be of a series."""
        return int(np.count_nonzero(self._series >= 0))

    def read(self) -> Generator[Outcome, None, None]:
        """Look at every file, in order; gives the rejects among them, part by part."""
        refs, begin = sources.refs(self._listing), 0
        inside = tuple(array.array(code) for code in "qiiQ")  # file, frame, series, UID of slices in files of many
        with sources.SliceReader() as reader, FrameReader(reader, self._accept) as frames:
            while part := list(islice(refs, PART_FILES)):
                reader.expect(part, ct_slice.HEAD_BYTES)
                lost = [one for row, ref in enumerate(part, begin) for one in self._look(row, ref, frames, inside)]
                yield triage.without_slices(lost, len(part))
                begin += len(part)
        self._file, self._frame, series, uids = (np.array(values) for values in inside)
        self._series, self._uids = np.append(self._series, series), np.append(self._uids, uids)

    def choose(self, mode: str) -> Outcome:
        """Take the files of series that are not to be read out, by a mode of `series_choice`; gives their rejects."""
        series = [told.facts(uids) for uids, told in zip(self._numbers, self._told, strict=True)]
        out = series_choice.left_out(series, series_rules.packaged(), mode)
        notes = series_choice.notes(out, {one[:2]: one.slices for one in series})
        why = {self._numbers[uids]: (uids[0], found.reason, found.detail) for uids, found in out.items()}
        rows = np.flatnonzero(np.isin(self._series, [*why]))
        of_slices = zip(sources.refs(self._taken(rows)), self._series[rows].tolist(), strict=True)
        rejects = [Reject(self.inputs[ref.container], slice_name(ref), *why[number]) for ref, number in of_slices]
        self._series[rows] = LEFT_OUT
        return triage.without_slices(rejects, 0)._replace(notes=notes)

    def kept(self) -> pa.Table:
        """The listing, in its order, without the slices of series left out."""
        wanted, files = self._series != LEFT_OUT, len(self._listing)
        if wanted.all():
            return self._listing
        parted = np.unique(self._file[~wanted[files:]])  # files of many slices, of which some are left out
        wanted[parted] = False
        of_parted = files + np.flatnonzero(wanted[files:] & np.isin(self._file, parted))
        whole = np.flatnonzero(wanted[:files])
        order = np.argsort(np.append(whole, self._file[of_parted - files]), kind="stable")
        return self._taken(np.append(whole, of_parted)[order])

    def settle(self, spec: DatasetSpec, batch_size: int) -> Iterator[list[Reject]]:
        """Decode files that share a SOP UID, and keep the first good one of each; gives the rejects of the others.

        Without this it would count which series comes first, and not which file does.
        """
        rows = self._repeated()
        table = self._taken(rows)
        parts = (rows[begin : begin + batch_size] for begin in range(0, len(rows), batch_size))
        refs = sources.refs(table)
        found = slice_stream.batches(table, spec, batch_size, self.inputs)
        with contextlib.closing(found) as batches:
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
            self._series[row], self._uids[row] = self._numbered(_header(ref, frames, self._accept))
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
                    found = (row, one.frame, NO_SERIES, 0)
                for values, value in zip(inside, found, strict=True):
                    values.append(value)
        except Problem as problem:
            lost.append(self._unread(ref, problem))
        return lost

    def _numbered(self, header: ct_slice.SliceHeader) -> tuple[int, int]:
        """The number of a slice's series, and the hash of its SOP UID."""
        self._studies.setdefault(header.study_uid, len(self._studies))
        series = self._numbers.setdefault((header.study_uid, header.series_uid), len(self._numbers))
        if series == len(self._told):
            self._told.append(_Told())
        self._told[series].take(header)
        return series, slice_stream.uid_hash(header.sop_uid)

    def _unread(self, ref: sources.SliceRef, problem: Problem) -> Reject:
        return slice_stream.unread(ref, self.inputs[ref.container], problem)

    def _repeated(self) -> Int64:
        """Rows of files that share a SOP UID with another, in order."""
        rows = np.flatnonzero(self._series >= 0)
        _, which, files = np.unique(self._uids[rows], return_inverse=True, return_counts=True)
        return rows[files[which] > 1]

    def _order(self) -> Int64:
        """Rows of the files of series, by study and series; in each in order of the listing."""
        study_of = np.array([self._studies[study] for study, _ in self._numbers], np.int64)
        rows = np.flatnonzero(self._series >= 0)
        series = self._series[rows]
        return rows[np.lexsort((series, study_of[series]))]


class _Told:
    """What the heads of a series tell."""

    def __init__(self) -> None:
        self._slices = 0
        self._contrast = self._derived = False
        self._kernels: set[str] = set()
        self._thickness_mm = array.array("f")

    def take(self, header: ct_slice.SliceHeader) -> None:
        """One more slice."""
        told = facts.of(header.facts)
        self._slices += 1
        self._contrast |= told.contrast
        self._derived |= header.derived
        self._kernels.add(told.kernel or "")
        if told.thickness_mm is not None:
            self._thickness_mm.append(told.thickness_mm)

    def facts(self, uids: tuple[str, str]) -> series_choice.SeriesFacts:
        """Of the series of these UIDs."""
        whole = (self._slices, self._contrast, self._derived)
        return series_choice.series_facts(uids, *whole, self._kernels, self._thickness_mm)


def _header(ref: sources.SliceRef, frames: FrameReader, accept: Collection[str]) -> ct_slice.SliceHeader:
    """The header as decoding finds it. Raises `Problem`, as decoding does."""
    try:
        return frames.header(ref)
    except HoldsFrames:
        raise
    except Problem:  # the whole file says what is wrong with it
        return ct_slice.read_header(frames.files.read(ref), accept)
