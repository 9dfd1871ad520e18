"""Rows of a listing as columns: from files, objects and zip members to the table of one container."""

from __future__ import annotations

import array
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords.storage import zip_directory
from ich_tfrecords.storage.bucket_path import any_path
from ich_tfrecords.storage.buckets import Stored
from ich_tfrecords.storage.folder_walk import UNKNOWN
from ich_tfrecords.storage.slice_reader import OBJECT, PLAIN, escaped
from ich_tfrecords.storage.zip_directory import SourceError

LISTING_SCHEMA = pa.schema(
    [
        ("container", pa.dictionary(pa.int32(), pa.string())),
        ("name", pa.string()),
        ("offset", pa.int64()),
        ("method", pa.int8()),
        ("stored_bytes", pa.int64()),
        ("size_bytes", pa.int64()),
        ("crc32", pa.int64()),
        ("version", pa.int64()),
    ]
)
ROW_FIELDS = LISTING_SCHEMA.names[1:]
_ROW_SCHEMA = pa.schema([LISTING_SCHEMA.field(name) for name in ROW_FIELDS])
_ARRAY_CODES = {name: "b" if name == "method" else "q" for name in ROW_FIELDS[1:]}
BATCH_ROWS = 32_768
_MAX_NAMES_BYTES = 2**31 - 1  # Arrow counts the bytes of a string column in 32 bits


class Rows:
    """Rows of one container in one growing buffer a column.

    Hundreds of small Arrow buffers would leave the memory in pieces: freed, and yet not given back.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._names = bytearray()
        self._name_ends = array.array("i", [0])
        self._numbers = {name: array.array(_ARRAY_CODES[name]) for name in ROW_FIELDS[1:]}

    def add(self, batch: pa.RecordBatch) -> None:
        """Append a batch of `_ROW_SCHEMA`."""
        names = batch.column("name")
        if len(self._names) + names.nbytes > _MAX_NAMES_BYTES:
            raise SourceError("the names of one input exceed 2 GB; split it into several folders or archives")
        if not len(names):
            return
        _, ends, data = names.buffers()
        ends = np.frombuffer(ends, np.int32)[names.offset : names.offset + len(names) + 1]
        self._name_ends.frombytes((ends[1:] - ends[0] + len(self._names)).tobytes())
        self._names += memoryview(data)[ends[0] : ends[-1]]
        for name, values in self._numbers.items():
            values.frombytes(zip_directory.numbers(batch.column(name)).tobytes())

    def take_columns(self) -> list[pa.Array]:
        """The columns, without a copy; leaves none here, so that their memory is freed with them."""
        rows = len(self._name_ends) - 1
        names = [None, pa.py_buffer(self._name_ends), pa.py_buffer(self._names)]
        buffers = [names, *([None, pa.py_buffer(values)] for values in self._numbers.values())]
        self._clear()
        return [pa.Array.from_buffers(field.type, rows, parts) for field, parts in zip(_ROW_SCHEMA, buffers)]


def plain_batch(rows: Sequence[tuple[str, int, int]]) -> pa.RecordBatch:
    """Rows of files (name, size_bytes, version); a name that is not UTF-8 is `escaped`."""
    try:
        names = [row[0].encode() for row in rows]
    except UnicodeEncodeError:
        names = [escaped(row[0]).encode() for row in rows]
    sizes, mtimes = (zip_directory.number_array(np.array([row[i] for row in rows], np.int64)) for i in (1, 2))
    unknown, plain = _constant(UNKNOWN, len(rows), np.int64), _constant(PLAIN, len(rows), np.int8)
    columns = [zip_directory.text_array(names), unknown, plain, sizes, sizes, unknown, mtimes]
    return pa.RecordBatch.from_arrays(columns, schema=_ROW_SCHEMA)


def object_batch(objects: Sequence[tuple[str, Stored]]) -> pa.RecordBatch:
    """Rows of objects and their names."""
    names = zip_directory.text_array([name.encode() for name, _ in objects])
    numbers = np.array([(stored.size_bytes, stored.crc32c, stored.generation) for _, stored in objects], np.int64)
    sizes, crc32cs, versions = (zip_directory.number_array(numbers[:, i]) for i in range(3))
    unknown, method = _constant(UNKNOWN, len(objects), np.int64), _constant(OBJECT, len(objects), np.int8)
    columns = [names, unknown, method, sizes, sizes, crc32cs, versions]
    return pa.RecordBatch.from_arrays(columns, schema=_ROW_SCHEMA)


def zip_batch(members: pa.RecordBatch) -> pa.RecordBatch:
    """Rows of zip members (`zip_directory.MEMBER_SCHEMA`)."""
    columns = {name: members.column(name) for name in ROW_FIELDS[:-1]}
    columns["method"] = columns["method"].cast(pa.int8())
    columns["version"] = _constant(UNKNOWN, len(members), np.int64)
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=_ROW_SCHEMA)


def _constant(value: int, rows: int, kind: type[np.integer]) -> pa.Array:
    return zip_directory.number_array(np.full(rows, value, kind))


def container_table(container: str, rows: Rows) -> pa.Table:
    """Rows of one container, sorted by name; members of one name stay in the order of the archive."""
    columns = rows.take_columns()
    if not is_sorted(columns[0]):
        order = pc.sort_indices(columns[0])
        # One column after the other, each freed on the way: two whole tables would double the peak.
        for index in range(len(columns)):
            columns[index] = columns[index].take(order)
    paths = pa.DictionaryArray.from_arrays(_constant(0, len(columns[0]), np.int32), _container_array(container))
    table = pa.table([paths, *columns], schema=LISTING_SCHEMA)
    if (zip_directory.numbers(table.column("offset")) >= 0).any():
        zip_directory.require_disjoint(table, any_path(container))
    return table


def _container_array(container: str) -> pa.Array:
    try:
        return zip_directory.text_array([container.encode()])
    except UnicodeEncodeError as error:
        raise SourceError(f"{container!a}: this path is not UTF-8; rename it, or give a link to it") from error


def is_sorted(names: pa.Array | pa.ChunkedArray) -> bool:
    """Whether each name is greater than the one before it."""
    return pc.all(pc.less(names[:-1], names[1:])).as_py() is not False
