"""Where bytes are: files in folders or buckets, files of a glob, members of a zip archive read in place.

`list_inputs` gives one row a candidate slice; `SliceReader` gives the bytes of a row. Nothing here knows
what is inside a slice.
"""

from __future__ import annotations

import array
import dataclasses
import fnmatch
import hashlib
import itertools
import re
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords import bucket_walk, folder_walk, zip_directory
from ich_tfrecords.bucket_path import AnyPath, BucketPath, any_path, is_bucket
from ich_tfrecords.bucket_walk import Objects
from ich_tfrecords.buckets import Stored
from ich_tfrecords.folder_walk import UNKNOWN, Place, Walk
from ich_tfrecords.slice_reader import MAX_SLICE_BYTES, OBJECT, PLAIN, SliceReader, SliceRef, UnreadableSource
from ich_tfrecords.zip_directory import SourceError

__all__ = [
    "LISTING_SCHEMA",
    "MAX_SLICE_BYTES",
    "Listing",
    "SliceReader",
    "SliceRef",
    "SourceError",
    "UnreadableSource",
    "archives",
    "list_inputs",
    "listing_digest",
    "read_member",
    "refs",
]

# The label CSV of RSNA stage 2 is about 120 MB.
_MAX_MEMBER_BYTES = 1 << 30

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
_ROW_FIELDS = LISTING_SCHEMA.names[1:]
_ROW_SCHEMA = pa.schema([LISTING_SCHEMA.field(name) for name in _ROW_FIELDS])
_ARRAY_CODES = {name: "b" if name == "method" else "q" for name in _ROW_FIELDS[1:]}
_BATCH_ROWS = 32_768
_DIGEST_ROWS = 32_768  # another number gives other digests
_MAX_NAMES_BYTES = 2**31 - 1  # Arrow counts the bytes of a string column in 32 bits


@dataclasses.dataclass(frozen=True)
class Listing:
    """The candidate slices of some inputs (`LISTING_SCHEMA`, sorted by container and name).

    `version` tells one content of a name from another: a file's time in nanoseconds, an object's generation.
    `crc32` is that of a zip's member, or the crc32c of an object; -1 where there is none. `ignored` counts the
    files left aside because of their suffix. A plain file whose size cannot be had (a dangling link) has
    size_bytes and version -1 and fails when it is read.
    """

    table: pa.Table
    ignored: int


def list_inputs(inputs: Sequence[str], include: Sequence[str] = ()) -> Listing:
    """Listing of every input: a folder (with its sub-folders), a glob, one file or a zip archive, here or on gs://.

    `include` are fnmatch globs on the name, which is matched with and without a leading slash, so that
    `*/stage_2_train/*` finds that folder at any depth. Files of one input that another one holds too are
    listed once. Raises `SourceError` for an input that is missing, unreadable or without candidates, and for one
    of which `include` leaves nothing.
    """
    if not inputs:
        raise SourceError("no input given; name a folder, a glob, a DICOM file or a .zip")
    local = [text for text in inputs if not is_bucket(text)]
    places = sorted({place for text in local for place in folder_walk.places(text)}, key=folder_walk.walk_order)
    gathered = _Gathered(include)
    for kind in _GATHER:
        for place in places:
            if place.kind == kind:
                _GATHER[kind](gathered, place)
        for link in gathered.walk.take_links():
            _gather_files(gathered, link)
    _gather_buckets(gathered, [text for text in inputs if is_bucket(text)])
    tables = {key: _container_table(key, gathered.rows[key]) for key in sorted(gathered.rows)}
    for container, table in tables.items():
        if not table.num_rows:
            raise SourceError(f"include {' '.join(include)} matches none of the slices in {container}")
    table = pa.concat_tables(tables.values()).unify_dictionaries()
    return Listing(table, gathered.walk.ignored + gathered.ignored_members)


def listing_digest(table: pa.Table) -> str:
    """sha256 (hexadecimal) of names, sizes, crc32s and mtimes, whatever the order of the rows.

    The containers' paths do not enter, so moving a zip archive keeps the digest.
    """
    columns = ["name", "size_bytes", "crc32", "version"]
    table = table.select(columns)
    if len(table) and not _is_sorted(table.column("name")):
        table = table.take(pc.sort_indices(table, [(name, "ascending") for name in columns]))
    digest = hashlib.sha256()
    for start in range(0, len(table), _DIGEST_ROWS):
        part = table.slice(start, _DIGEST_ROWS)
        names = [name.encode() for name in part.column("name").to_pylist()]
        digest.update(np.array([len(name) for name in names], "<i8").tobytes())
        digest.update(b"".join(names))
        for column in columns[1:]:
            digest.update(zip_directory.numbers(part.column(column)).astype("<i8").tobytes())
    return digest.hexdigest()


def archives(table: pa.Table) -> list[str]:
    """Paths of the zip archives among the containers of a listing."""
    zipped = table.filter(pc.greater_equal(table["offset"], 0))["container"]
    return sorted({path for chunk in zipped.chunks for path in pc.unique(chunk).dictionary_decode().to_pylist()})


def refs(table: pa.Table) -> Iterator[SliceRef]:
    """Rows of a listing one after the other, a few thousand in memory at a time."""
    for batch in table.to_batches(max_chunksize=4096):
        container = batch.column("container")
        paths = container.dictionary.to_pylist()
        columns = [batch.column(name).to_pylist() for name in _ROW_FIELDS]
        for index, *values in zip(container.indices.to_pylist(), *columns):
            yield SliceRef(paths[index], *values)


def read_member(zip_path: str | Path, name: str) -> bytes:
    """Bytes of the member of that exact name, or of the only one whose path ends with `/name`.

    Raises `SourceError` when there is none, when several match, and when its bytes are damaged.
    """
    path = any_path(str(zip_path))
    if isinstance(path, Path):
        path = folder_walk.resolved(path)
    found = [row for batch in zip_directory.member_batches(path) for row in _named(batch, name)]
    exact = [row for row in found if row["name"] == name]
    found = exact or found
    if len(found) != 1:
        what = "has no member" if not found else f"has {len(found)} members"
        hint = "; look at the names with unzip -l" if not found else f": {', '.join(row['name'] for row in found)}"
        raise SourceError(f"{path}: {what} called {name!r}{hint}")
    zip_directory.require_readable(pa.RecordBatch.from_pylist(found, zip_directory.MEMBER_SCHEMA), path)
    values = {key: found[0][key] for key in _ROW_FIELDS if key != "version"}
    with SliceReader(_MAX_MEMBER_BYTES) as reader:
        try:
            return bytes(reader.read(SliceRef(str(path), **values, version=UNKNOWN)))
        except UnreadableSource as error:
            raise SourceError(f"{path}: member {found[0]['name']!r} is damaged ({error}); fetch it again") from error


class _Rows:
    """Rows of one container in one growing buffer a column.

    Hundreds of small Arrow buffers would leave the memory in pieces: freed, and yet not given back.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._names = bytearray()
        self._name_ends = array.array("i", [0])
        self._numbers = {name: array.array(_ARRAY_CODES[name]) for name in _ROW_FIELDS[1:]}

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


@dataclasses.dataclass
class _Gathered:
    """The rows found so far, by container, and the walk that finds the plain files."""

    include: Sequence[str]
    rows: dict[str, _Rows] = dataclasses.field(default_factory=dict)
    walk: Walk = dataclasses.field(default_factory=Walk)
    ignored_members: int = 0

    def add(self, container: AnyPath, batch: pa.RecordBatch) -> None:
        """Keep the rows that `include` lets through."""
        self.rows.setdefault(str(container), _Rows()).add(_included(batch, self.include))


def _gather_folder(gathered: _Gathered, place: Place) -> None:
    walk = gathered.walk
    if walk.knows(place.path):
        return
    before, links, ignored = len(walk.walked), len(walk.links), walk.ignored
    rows = _add_plain(gathered, place.root, walk.walk_folder(place))
    if not rows and len(walk.links) == links:
        folders = len(walk.walked) - before
        raise SourceError(_nothing(place.path, walk.ignored - ignored, f" in {folders} folders"))


def _add_plain(gathered: _Gathered, root: Path, files: Iterator[tuple[str, int, int]]) -> int:
    """How many files (name, size_bytes, version) there were."""
    rows = 0
    while chunk := list(itertools.islice(files, _BATCH_ROWS)):
        rows += len(chunk)
        gathered.add(root, _plain_batch(chunk, root))
    return rows


def _gather_files(gathered: _Gathered, place: Place) -> None:
    _add_plain(gathered, place.root, gathered.walk.new_files(place))


def _gather_zip(gathered: _Gathered, place: Place) -> None:
    _gather_members(gathered, place.path)


def _gather_members(gathered: _Gathered, path: AnyPath) -> None:
    if str(path) in gathered.rows:
        return
    slices, ignored = 0, 0
    for members in zip_directory.member_batches(path):
        names = members.column("name")
        wanted = pc.match_substring_regex(names, folder_walk.CANDIDATE)
        other = pc.or_(pc.match_substring_regex(names, folder_walk.HIDDEN), pc.ends_with(names, "/"))
        ignored += pc.sum(pc.invert(pc.or_(wanted, other))).as_py() or 0
        wanted = pc.and_not(wanted, other)
        if not pc.all(wanted).as_py():
            members = members.filter(wanted)
        zip_directory.require_readable(members, path)
        slices += len(members)
        gathered.add(path, _zip_batch(members))
    if not slices:
        raise SourceError(_nothing(path, ignored, ""))
    gathered.ignored_members += ignored


def _gather_buckets(gathered: _Gathered, inputs: Sequence[str]) -> None:
    places = [bucket_walk.places(text) for text in inputs]
    folders = sorted({place for place in places if isinstance(place, Objects)})
    zips = {place for place in places if isinstance(place, BucketPath)}
    met: set[tuple[str, str]] | None = set() if len(folders) > 1 else None
    for place in folders:
        zips |= _gather_objects(gathered, place, met)
    for path in sorted(zips):
        _gather_members(gathered, path)


def _gather_objects(gathered: _Gathered, place: Objects, met: set[tuple[str, str]] | None) -> set[BucketPath]:
    """Archives among the objects of a place; those that are slices and that no other place has met become rows."""
    archives, rows, others = set(), 0, 0
    chunk: list[tuple[str, Stored]] = []
    for name, stored, named in _listed(place):
        if named and bucket_walk.is_archive(name):
            archives.add(BucketPath(place.root.bucket, stored.key))
        elif not bucket_walk.is_slice(name, named):
            others += 1
        else:
            rows += 1
            if met is None or (place.root.bucket, stored.key) not in met:
                chunk.append((name, stored))
            if met is not None:
                met.add((place.root.bucket, stored.key))
            if len(chunk) == _BATCH_ROWS:
                gathered.add(place.root, _object_batch(chunk))
                chunk = []
    if chunk:
        gathered.add(place.root, _object_batch(chunk))
    if not rows and not archives:
        raise SourceError(_nothing(place.root, others, ""))
    gathered.ignored_members += others
    return archives


def _listed(place: Objects) -> Iterator[tuple[str, Stored, bool]]:
    try:
        yield from place.names()
    except OSError as error:
        raise SourceError(f"{place.root}: cannot be listed ({error.strerror}); check its rights") from error


# Folders first, so that a file inside one of them is known to be listed.
_GATHER = types.MappingProxyType({"folder": _gather_folder, "files": _gather_files, "zip": _gather_zip})


def _plain_batch(rows: Sequence[tuple[str, int, int]], root: Path) -> pa.RecordBatch:
    names = zip_directory.text_array(_utf8([row[0] for row in rows], root))
    sizes, mtimes = (zip_directory.number_array(np.array([row[i] for row in rows], np.int64)) for i in (1, 2))
    unknown, plain = _constant(UNKNOWN, len(rows), np.int64), _constant(PLAIN, len(rows), np.int8)
    return pa.RecordBatch.from_arrays([names, unknown, plain, sizes, sizes, unknown, mtimes], schema=_ROW_SCHEMA)


def _utf8(names: Sequence[str], root: Path) -> list[bytes]:
    """`names` of files as UTF-8. Raises `SourceError` for one that is not, or that Python does not read as such."""
    encoding = sys.getfilesystemencoding()
    foreign = "" if encoding == "utf-8" else next((name for name in names if not name.isascii()), "")
    if foreign:
        raise SourceError(
            f"{root}: Python reads the file name {foreign!r} as {encoding}, by PYTHONUTF8 or the locale; "
            "set PYTHONUTF8=1"
        )
    try:
        return [name.encode() for name in names]
    except UnicodeEncodeError as error:
        raise SourceError(f"{root}: the file name {error.object!r} is not UTF-8; rename it") from error


def _object_batch(objects: Sequence[tuple[str, Stored]]) -> pa.RecordBatch:
    names = zip_directory.text_array([name.encode() for name, _ in objects])
    numbers = np.array([(stored.size_bytes, stored.crc32c, stored.generation) for _, stored in objects], np.int64)
    sizes, crc32cs, versions = (zip_directory.number_array(numbers[:, i]) for i in range(3))
    unknown, method = _constant(UNKNOWN, len(objects), np.int64), _constant(OBJECT, len(objects), np.int8)
    columns = [names, unknown, method, sizes, sizes, crc32cs, versions]
    return pa.RecordBatch.from_arrays(columns, schema=_ROW_SCHEMA)


def _zip_batch(members: pa.RecordBatch) -> pa.RecordBatch:
    columns = {name: members.column(name) for name in _ROW_FIELDS[:-1]}
    columns["method"] = columns["method"].cast(pa.int8())
    columns["version"] = _constant(UNKNOWN, len(members), np.int64)
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=_ROW_SCHEMA)


def _constant(value: int, rows: int, kind: type[np.integer]) -> pa.Array:
    return zip_directory.number_array(np.full(rows, value, kind))


def _container_table(container: str, rows: _Rows) -> pa.Table:
    """Rows of one container, sorted by name; members of one name stay in the order of the archive."""
    columns = rows.take_columns()
    if not _is_sorted(columns[0]):
        order = pc.sort_indices(columns[0])
        # One column after the other, each freed on the way: two whole tables would double the peak.
        for index in range(len(columns)):
            columns[index] = columns[index].take(order)
    paths = pa.DictionaryArray.from_arrays(
        _constant(0, len(columns[0]), np.int32), zip_directory.text_array([container.encode()])
    )
    table = pa.table([paths, *columns], schema=LISTING_SCHEMA)
    if (zip_directory.numbers(table.column("offset")) >= 0).any():
        zip_directory.require_disjoint(table, any_path(container))
    return table


def _included(batch: pa.RecordBatch, include: Sequence[str]) -> pa.RecordBatch:
    if not include:
        return batch
    match = re.compile("|".join(fnmatch.translate(pattern) for pattern in include)).match
    names = batch.column("name").to_pylist()
    kept = np.array([bool(match(name) or match(f"/{name}")) for name in names], np.uint8)
    return batch.filter(zip_directory.number_array(kept).cast(pa.bool_()))


def _is_sorted(names: pa.Array | pa.ChunkedArray) -> bool:
    return pc.all(pc.less(names[:-1], names[1:])).as_py() is not False


def _named(members: pa.RecordBatch, name: str) -> list[dict]:
    names = members.column("name")
    return members.filter(pc.or_(pc.equal(names, name), pc.ends_with(names, f"/{name}"))).to_pylist()


def _nothing(path: AnyPath, ignored: int, where: str) -> str:
    return (
        f"{path}: no slice among {ignored:,} files{where}; slices end with .dcm, .dicom, .ima or a number, "
        "or have no suffix; name other files one by one or with a glob"
    )
