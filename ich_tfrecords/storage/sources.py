"""Where bytes are: files in folders or buckets, files of a glob, members of a zip archive read in place.

`list_inputs` gives one row a candidate slice; `SliceReader` gives the bytes of a row. Nothing here knows
what is inside a slice.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import itertools
import re
import sys
import types
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords.labels import names
from ich_tfrecords.plural import counted
from ich_tfrecords.storage import bucket_walk, folder_walk, listing_rows, packed, zip_directory
from ich_tfrecords.storage.bucket_path import AnyPath, BucketPath, any_path, is_bucket
from ich_tfrecords.storage.bucket_walk import Objects
from ich_tfrecords.storage.buckets import Stored
from ich_tfrecords.storage.folder_walk import UNKNOWN, Place, Walk
from ich_tfrecords.storage.listing_rows import BATCH_ROWS, LISTING_SCHEMA, ROW_FIELDS, Rows
from ich_tfrecords.storage.slice_reader import MAX_SLICE_BYTES, SliceReader, SliceRef, UnreadableSource
from ich_tfrecords.storage.zip_directory import SourceError

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

_DIGEST_ROWS = 32_768  # another number gives other digests


@dataclasses.dataclass(frozen=True)
class Listing:
    """The candidate slices of some inputs (`LISTING_SCHEMA`, sorted by container and name).

    `version` tells one content of a name from another: a file's time in nanoseconds, an object's generation.
    `crc32` is that of a zip's member, or the crc32c of an object; -1 where there is none. `ignored` counts the
    files left aside because of their suffix, by that suffix (`packed.suffix`). A plain file whose size cannot be had
    (a dangling link) has size_bytes and version -1 and fails when it is read.
    """

    table: pa.Table
    ignored: Counter[str]


def list_inputs(inputs: Sequence[str], include: Sequence[str] = ()) -> Listing:
    """Listing of every input: a folder (with its sub-folders), a glob, one file or a zip archive, here or on gs://.

    `include` are fnmatch globs on the name, which is matched with and without a leading slash, so that
    `*/stage_2_train/*` finds that folder at any depth. Files of one input that another one holds too are
    listed once. Raises `SourceError` for an input that is missing, unreadable, packed or without candidates, and for
    one of which `include` leaves nothing.
    """
    if not inputs:
        raise SourceError("no input given; name a folder, a glob, a DICOM file or a .zip")
    local = [text for text in inputs if not is_bucket(text)]
    places = sorted({place for text in local for place in folder_walk.places(text)}, key=folder_walk.walk_order)
    gathered = _Gathered(include, Walk(frozenset(place.path for place in places if place.kind == "zip")))
    for kind in _GATHER:
        for place in places:
            if place.kind == kind:
                _GATHER[kind](gathered, place)
        for link in gathered.walk.take_links():
            _gather_files(gathered, link)
    _gather_buckets(gathered, [text for text in inputs if is_bucket(text)])
    tables = {key: listing_rows.container_table(key, gathered.rows[key]) for key in sorted(gathered.rows)}
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
    if len(table) and not listing_rows.is_sorted(table.column("name")):
        table = table.take(pc.sort_indices(table, [(name, "ascending") for name in columns]))
    digest = hashlib.sha256()
    for start in range(0, len(table), _DIGEST_ROWS):
        part = table.slice(start, _DIGEST_ROWS)
        texts = [name.encode() for name in part.column("name").to_pylist()]
        digest.update(np.array([len(text) for text in texts], "<i8").tobytes())
        digest.update(b"".join(texts))
        for column in columns[1:]:
            digest.update(zip_directory.numbers(part.column(column)).astype("<i8").tobytes())
    return digest.hexdigest()


def archives(table: pa.Table) -> list[str]:
    """Paths of the zip archives among the containers of a listing."""
    zipped = table.filter(pc.greater_equal(table["offset"], 0))["container"]
    return sorted({path for chunk in zipped.chunks for path in pc.unique(chunk).dictionary_decode().to_pylist()})


def refs(table: pa.Table) -> Iterator[SliceRef]:
    """Rows of a listing one after the other, a few thousand in memory at a time; those of slices with their `frame`."""
    fields = [*ROW_FIELDS, *(name for name in ("frame",) if name in table.column_names)]
    for batch in table.to_batches(max_chunksize=4096):
        container = batch.column("container")
        paths = container.dictionary.to_pylist()
        columns = [batch.column(name).to_pylist() for name in fields]
        for index, *values in zip(container.indices.to_pylist(), *columns):
            yield SliceRef(paths[index], *values)


def read_member(zip_path: str | Path, name: str) -> bytes:
    """Bytes of the member of that exact name, or of the only one whose path ends with `/name` (in Unicode NFC).

    Raises `SourceError` when there is none, when several match, and when its bytes are damaged.
    """
    path = any_path(str(zip_path))
    if isinstance(path, Path):
        path = folder_walk.resolved(path)
    found = [row for batch in zip_directory.member_batches(path) for row in _named(batch, name)]
    exact = [row for row in found if folder_walk.composed(row["name"]) == folder_walk.composed(name)]
    found = exact or found
    if len(found) != 1:
        what = "has no member" if not found else f"has {len(found)} members"
        hint = "; look at the names with unzip -l" if not found else f": {', '.join(row['name'] for row in found)}"
        raise SourceError(f"{path}: {what} called {name!r}{hint}")
    zip_directory.require_readable(pa.RecordBatch.from_pylist(found, zip_directory.MEMBER_SCHEMA), path)
    values = {key: found[0][key] for key in ROW_FIELDS if key != "version"}
    with SliceReader(_MAX_MEMBER_BYTES) as reader:
        try:
            return bytes(reader.read(SliceRef(str(path), **values, version=UNKNOWN)))
        except UnreadableSource as error:
            raise SourceError(f"{path}: member {found[0]['name']!r} is damaged ({error}); fetch it again") from error


@dataclasses.dataclass
class _Gathered:
    """The rows found so far, by container, and the walk that finds the plain files."""

    include: Sequence[str]
    walk: Walk
    rows: dict[str, Rows] = dataclasses.field(default_factory=dict)
    ignored_members: Counter[str] = dataclasses.field(default_factory=Counter)
    left_zips: set[BucketPath] = dataclasses.field(default_factory=set)  # in buckets; a glob may name them too

    def add(self, container: AnyPath, batch: pa.RecordBatch) -> None:
        """Keep the rows that `include` lets through."""
        self.rows.setdefault(str(container), Rows()).add(_included(batch, self.include))


def _gather_folder(gathered: _Gathered, place: Place) -> None:
    walk = gathered.walk
    if walk.knows(place.path):
        return
    before, links, ignored = len(walk.walked), len(walk.links), walk.ignored.copy()
    rows = _add_plain(gathered, place.root, walk.walk_folder(place))
    if not rows and len(walk.links) == links:
        folders = len(walk.walked) - before
        raise SourceError(_nothing(place.path, walk.ignored - ignored, f" in {counted(folders, 'folder')}"))


def _add_plain(gathered: _Gathered, root: Path, files: Iterator[tuple[str, int, int]]) -> int:
    """How many files (name, size_bytes, version) there were."""
    rows = 0
    while chunk := list(itertools.islice(files, BATCH_ROWS)):
        rows += len(chunk)
        _check_encoding(root, [name for name, *_ in chunk])
        gathered.add(root, listing_rows.plain_batch(chunk))
    return rows


def _check_encoding(root: Path, names: Sequence[str]) -> None:
    """Refuse names that Python does not read as UTF-8, as they are written: they would get others in the listing."""
    encoding = sys.getfilesystemencoding()
    foreign = "" if encoding == "utf-8" else next((name for name in names if not name.isascii()), "")
    if foreign:
        raise SourceError(
            f"{root}: Python reads the file name {foreign!r} as {encoding}, by PYTHONUTF8 or the locale; "
            "set PYTHONUTF8=1"
        )


def _gather_files(gathered: _Gathered, place: Place) -> None:
    _add_plain(gathered, place.root, gathered.walk.new_files(place))


def _gather_packed(gathered: _Gathered, place: Place) -> None:
    gathered.walk.ignored[folder_walk.packing(place.path)] += 1


def _gather_zip(gathered: _Gathered, place: Place) -> None:
    _gather_members(gathered, place.path)


def _gather_members(gathered: _Gathered, path: AnyPath) -> None:
    if str(path) in gathered.rows:
        return
    slices, ignored = 0, Counter[str]()
    for members in zip_directory.member_batches(path):
        called = members.column("name")
        wanted = pc.match_substring_regex(called, folder_walk.CANDIDATE)
        other = pc.or_(pc.match_substring_regex(called, folder_walk.HIDDEN), pc.ends_with(called, "/"))
        ignored.update(map(packed.suffix, called.filter(pc.invert(pc.or_(wanted, other))).to_pylist()))
        wanted = pc.and_not(wanted, other)
        if not pc.all(wanted).as_py():
            members = members.filter(wanted)
        zip_directory.require_readable(members, path)
        slices += len(members)
        gathered.add(path, listing_rows.zip_batch(members))
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
    gathered.ignored_members += _by_suffix(gathered.left_zips - zips)


def _gather_objects(gathered: _Gathered, place: Objects, met: set[tuple[str, str]] | None) -> set[BucketPath]:
    """Archives among the objects of a place; those that are slices and that no other place has met become rows."""
    archives, left = set[BucketPath](), set[BucketPath]()
    rows, others = 0, Counter[str]()
    chunk: list[tuple[str, Stored]] = []
    for name, stored, named in _listed(place):
        if bucket_walk.is_archive(name):
            path = BucketPath(place.root.bucket, stored.key)
            (archives if named else left).add(path)
        elif not bucket_walk.is_slice(name, named):
            others[packed.suffix(name)] += 1
        else:
            rows += 1
            if met is None or (place.root.bucket, stored.key) not in met:
                chunk.append((name, stored))
            if met is not None:
                met.add((place.root.bucket, stored.key))
            if len(chunk) == BATCH_ROWS:
                gathered.add(place.root, listing_rows.object_batch(chunk))
                chunk = []
    if chunk:
        gathered.add(place.root, listing_rows.object_batch(chunk))
    if not rows and not archives:
        raise SourceError(_nothing(place.root, others + _by_suffix(left), ""))
    gathered.ignored_members += others
    gathered.left_zips |= left
    return archives


def _by_suffix(paths: set[BucketPath]) -> Counter[str]:
    return Counter(packed.suffix(path.name) for path in paths)


def _listed(place: Objects) -> Iterator[tuple[str, Stored, bool]]:
    try:
        yield from place.names()
    except OSError as error:
        raise SourceError(f"{place.root}: cannot be listed ({error.strerror}); check its rights") from error


# Folders first, so that a file inside one of them is known to be listed.
_GATHER = types.MappingProxyType(
    {"folder": _gather_folder, "files": _gather_files, "zip": _gather_zip, "packed": _gather_packed}
)


def _included(batch: pa.RecordBatch, include: Sequence[str]) -> pa.RecordBatch:
    if not include:
        return batch
    match = re.compile("|".join(fnmatch.translate(folder_walk.composed(pattern)) for pattern in include)).match
    called = names.composed(batch.column("name")).to_pylist()
    kept = np.array([bool(match(name) or match(f"/{name}")) for name in called], np.uint8)
    return batch.filter(zip_directory.number_array(kept).cast(pa.bool_()))


def _named(members: pa.RecordBatch, name: str) -> list[dict]:
    called, name = names.composed(members.column("name")), folder_walk.composed(name)
    return members.filter(pc.or_(pc.equal(called, name), pc.ends_with(called, f"/{name}"))).to_pylist()


def _nothing(path: AnyPath, ignored: Counter[str], where: str) -> str:
    kinds = f" ({packed.counted(ignored)})" if ignored else ""
    step = packed.unread(ignored, beside=False) or (
        "slices end with .dcm, .dicom, .ima or a number, or have no suffix, and volumes with .nii or .nii.gz; name "
        "other files one by one or with a glob"
    )
    return f"{path}: no slice among {counted(ignored.total(), 'file')}{where}{kinds}; {step}"
