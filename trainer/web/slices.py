"""Slices of uploads in HU, decoded when they are asked for; the last ones stay in memory."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ich_tfrecords.pixels import Int16
from ich_tfrecords.problems import Problem
from ich_tfrecords.storage import sources
from ich_tfrecords.storage.csv_text import safe_cell
from ich_tfrecords.storage.slice_reader import slice_name
from ich_tfrecords.volumes.reader import FrameReader
from trainer.prediction import slice_stream
from trainer.web import results
from trainer.web.refusal import Refusal
from trainer.web.results import Row
from trainer.worklist.spool import Entry

MOST_OPEN = 8  # uploads
MOST_BYTES = 64 << 20  # of decoded slices

Key = tuple[int, str]


class Size(NamedTuple):
    """Rows and columns of a slice; None where it cannot be read any more."""

    rows: int | None
    columns: int | None


class Opened:
    """The files of an upload, open for one thread at a time."""

    def __init__(self, inputs: Sequence[str], rows: Sequence[Row], accept: Collection[str]) -> None:
        """`inputs`: `Entry.inputs`; `rows`: of predictions.csv. Raises `SourceError` where the files are gone."""
        self.rows = rows
        self._lock = threading.Lock()
        self._reader = sources.SliceReader()
        self._frames = FrameReader(self._reader, accept)
        self._refs = _refs(inputs, rows)
        self._sizes: list[Size] | None = None
        self._closed = False

    def row(self, n: int) -> Row:
        """Slice `n` of the upload. Raises `Refusal` where there is none."""
        if n >= len(self.rows):
            raise Refusal(404, f"this study has the slices 0 to {len(self.rows) - 1}")
        return self.rows[n]

    def sizes(self) -> list[Size]:
        """Rows and columns of every slice, from the heads of the files."""
        with self._reading():
            if self._sizes is None:
                self._sizes = [self._size(row) for row in self.rows]
            return self._sizes

    def hu(self, n: int) -> Int16:
        """HU [rows, columns] of slice `n`. Raises `Refusal` where it cannot be read any more."""
        with self._reading():
            return self._hu(self.rows[n])

    def close(self) -> None:
        """Close the files; who still holds this reads on, and leaves nothing open."""
        self._closed = True
        with self._reading():
            pass

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            finally:
                if self._closed:
                    self._frames.close()
                    self._reader.close()

    def _size(self, row: Row) -> Size:
        for ref in self._candidates(row):
            try:
                header = self._frames.header(ref)
            except Problem:
                continue
            if header.sop_uid == row.sop_uid:
                return Size(header.rows, header.columns)
        return Size(None, None)

    def _hu(self, row: Row) -> Int16:
        for ref in self._candidates(row):
            try:
                found = self._frames.slice(ref)
            except Problem:
                continue
            if found.header.sop_uid == row.sop_uid:
                return np.array(found.hu, "<i2")  # a copy: the reader goes on
        raise Refusal(404, "this slice cannot be read any more; send the study again")

    def _candidates(self, row: Row) -> list[sources.SliceRef]:
        """Where the slice may lie: an archive can hold several members of one name."""
        file, _, frame = row.stored.rpartition("#")
        whole = self._refs.get((row.input, row.stored), [])
        inside = self._refs.get((row.input, file), []) if frame.isdecimal() else []
        return whole + [ref._replace(frame=int(frame)) for ref in inside]


def _refs(inputs: Sequence[str], rows: Sequence[Row]) -> dict[Key, list[sources.SliceRef]]:
    """The files of `rows`, by the number of the input and the name in predictions.csv."""
    listing = sources.list_inputs(inputs).table
    numbers = slice_stream.input_numbers(listing)
    wanted = {row.stored for row in rows} | {row.stored.rpartition("#")[0] for row in rows}
    found: dict[Key, list[sources.SliceRef]] = defaultdict(list)
    for ref in sources.refs(listing):
        name = str(safe_cell(slice_name(ref)))
        if name in wanted:
            found[numbers[ref.container], name].append(ref)
    return found


class Slices:
    """The uploads that are looked at, at most `MOST_OPEN` of them, and the slices that were decoded last."""

    def __init__(self, accept: Collection[str]) -> None:
        """`accept`: which slices count (`DatasetSpec.accept`)."""
        self._accept = accept
        self._lock = threading.Lock()
        self._opened: OrderedDict[str, Opened] = OrderedDict()
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._kept_bytes = 0

    def opened(self, entry: Entry) -> Opened:
        """The files of an upload whose prediction is done."""
        with self._lock:
            if entry.id in self._opened:
                self._opened.move_to_end(entry.id)
                return self._opened[entry.id]
        made = Opened(entry.inputs(), results.slices(entry.result), self._accept)
        with self._lock:
            made = self._opened.setdefault(entry.id, made)
            while len(self._opened) > MOST_OPEN:
                self._opened.popitem(last=False)[1].close()
        return made

    def octets(self, upload: str, opened: Opened, n: int) -> bytes:
        """HU of slice `n` of an upload, int16 little-endian, row by row. Raises `Refusal`."""
        opened.row(n)
        with self._lock:
            if found := self._kept.get((upload, n)):
                self._kept.move_to_end((upload, n))
                return found
        found = opened.hu(n).tobytes()
        with self._lock:
            self._keep((upload, n), found)
        return found

    def _keep(self, key: tuple[str, int], data: bytes) -> None:
        self._kept_bytes += len(data) - len(self._kept.pop(key, b""))
        self._kept[key] = data
        while self._kept_bytes > MOST_BYTES:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])

    def forget(self, upload: str) -> None:
        """Close an upload that goes, and drop its slices."""
        with self._lock:
            opened = self._opened.pop(upload, None)
            for key in [key for key in self._kept if key[0] == upload]:
                self._kept_bytes -= len(self._kept.pop(key))
        if opened:
            opened.close()
