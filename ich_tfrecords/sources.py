"""Where bytes are: files in folders, files of a glob, members of a zip archive read in place.

`list_inputs` gives one row a candidate slice; `SliceReader` gives the bytes of a row. Nothing here knows
what is inside a slice.
"""

from __future__ import annotations

import array
import dataclasses
import fnmatch
import hashlib
import itertools
import os
import re
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from isal import igzip_lib, isal_zlib

from ich_tfrecords import zip_directory
from ich_tfrecords.zip_directory import STORED, SourceError

__all__ = [
    "LISTING_SCHEMA",
    "MAX_SLICE_BYTES",
    "Listing",
    "SliceReader",
    "SliceRef",
    "SourceError",
    "UnreadableSource",
    "list_inputs",
    "listing_digest",
    "read_member",
    "refs",
]

# A CT slice of 2048x2048 16-bit pixels is 8 MiB, and an RSNA slice half a MiB. The cap is far above both and
# keeps a lying size, or a whole volume in one file, from filling the memory of a worker that reads many.
MAX_SLICE_BYTES = 64 << 20

# The label CSV of RSNA stage 2 is about 120 MB.
_MAX_MEMBER_BYTES = 1 << 30

PLAIN = -1
_UNKNOWN = -1

LISTING_SCHEMA = pa.schema(
    [
        ("container", pa.dictionary(pa.int32(), pa.string())),
        ("name", pa.string()),
        ("offset", pa.int64()),
        ("method", pa.int8()),
        ("stored_bytes", pa.int64()),
        ("size_bytes", pa.int64()),
        ("crc32", pa.int64()),
        ("mtime_ns", pa.int64()),
    ]
)
_ROW_FIELDS = LISTING_SCHEMA.names[1:]
_ROW_SCHEMA = pa.schema([LISTING_SCHEMA.field(name) for name in _ROW_FIELDS])
_ARRAY_CODES = {name: "b" if name == "method" else "q" for name in _ROW_FIELDS[1:]}
_BATCH_ROWS = 32_768
_DIGEST_ROWS = 32_768  # another number gives other digests
_MAX_NAMES_BYTES = 2**31 - 1  # Arrow counts the bytes of a string column in 32 bits

# The last part of the name: a DICOM suffix, a numeric one (the end of a UID), or none at all.
_CANDIDATE = r"(?i)(^|/)([^/]*\.(dcm|dicom|ima|[0-9]+)|[^/.]+)$"
# `.DS_Store`, `._x`, and the folder that macOS adds to archives; `.` and `..` hide nothing.
_HIDDEN = r"(^|/)(\.[^./]|\.\.[^/]|__MACOSX(/|$))"
_NOT_HERE_YET = "only local paths are read so far; copy the data to a disk and give that path"
_MAGIC = re.compile(r"[*?\[]")


class UnreadableSource(Exception):
    """The bytes of one slice cannot be had: `reason` is a word for rejects.csv, `detail` the facts.

    Reasons: unreadable_file, crc_mismatch, inflate_failed, size_mismatch, too_large, bad_local_header,
    and changed (the source no longer is what the listing says).
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class SliceRef(NamedTuple):
    """One row of a listing. Sizes and offset in bytes; `method` is -1 for a plain file, else the zip's."""

    container: str
    name: str
    offset: int
    method: int
    stored_bytes: int
    size_bytes: int
    crc32: int
    mtime_ns: int


@dataclasses.dataclass(frozen=True)
class Listing:
    """The candidate slices of some inputs (`LISTING_SCHEMA`, sorted by container and name).

    `ignored` counts the files left aside because of their suffix. A plain file whose size cannot be had
    (a dangling link) has size_bytes and mtime_ns -1 and fails when it is read.
    """

    table: pa.Table
    ignored: int


def list_inputs(inputs: Sequence[str], include: Sequence[str] = ()) -> Listing:
    """Listing of every input: a folder (with its sub-folders), a glob, one file or a zip archive.

    `include` are fnmatch globs on the name, which is matched with and without a leading slash, so that
    `*/stage_2_train/*` finds that folder at any depth. Files of one input that another one holds too are
    listed once. Raises `SourceError` for an input that is missing, unreadable or without candidates.
    """
    if not inputs:
        raise SourceError("no input given; name a folder, a glob, a DICOM file or a .zip")
    places = sorted({place for text in inputs for place in _places(text)}, key=_walk_order)
    gathered = _Gathered(include)
    for kind in _GATHER:
        for place in places:
            if place.kind == kind:
                _GATHER[kind](gathered, place)
        for link in gathered.take_links():
            _gather_files(gathered, link)
    tables = [_container_table(key, gathered.rows[key]) for key in sorted(gathered.rows)]
    table = pa.concat_tables(tables).unify_dictionaries()
    if not table.num_rows:
        raise SourceError(f"include {' '.join(include)} matches none of the slices in {', '.join(inputs)}")
    return Listing(table, gathered.ignored)


def listing_digest(table: pa.Table) -> str:
    """sha256 (hexadecimal) of names, sizes, crc32s and mtimes, whatever the order of the rows.

    The containers' paths do not enter, so moving a zip archive keeps the digest.
    """
    columns = ["name", "size_bytes", "crc32", "mtime_ns"]
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
    path = _resolved(Path(zip_path))
    found = [row for batch in zip_directory.member_batches(path) for row in _named(batch, name)]
    exact = [row for row in found if row["name"] == name]
    found = exact or found
    if len(found) != 1:
        what = "has no member" if not found else f"has {len(found)} members"
        hint = "; look at the names with unzip -l" if not found else f": {', '.join(row['name'] for row in found)}"
        raise SourceError(f"{path}: {what} called {name!r}{hint}")
    zip_directory.require_readable(pa.RecordBatch.from_pylist(found, zip_directory.MEMBER_SCHEMA), path)
    values = {key: found[0][key] for key in _ROW_FIELDS if key != "mtime_ns"}
    with SliceReader(_MAX_MEMBER_BYTES) as reader:
        try:
            return bytes(reader.read(SliceRef(str(path), **values, mtime_ns=_UNKNOWN)))
        except UnreadableSource as error:
            raise SourceError(f"{path}: member {found[0]['name']!r} is damaged ({error}); fetch it again") from error


class SliceReader:
    """Bytes of slices, one at a time, through one reused buffer and one open archive.

    For one thread. A view that a method returns holds until the next call of a method.
    """

    def __init__(self, max_bytes: int = MAX_SLICE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._view = memoryview(bytearray(1 << 20))
        self._zip_path = ""
        self._zip_fd = -1

    def __enter__(self) -> SliceReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the archive; the reader opens it again when it is needed."""
        fd, self._zip_fd, self._zip_path = self._zip_fd, -1, ""
        if fd >= 0:
            os.close(fd)

    def read(self, row: SliceRef) -> memoryview:
        """The whole slice, its size and (in a zip) its crc32 checked. Raises `UnreadableSource`."""
        self._require_size(row)
        try:
            if row.method == PLAIN:
                return self._read_plain(row, row.size_bytes)
            return self._checked(row, self._read_zipped(row))
        except OSError as error:
            raise _unreadable(row, error) from error

    def read_head(self, row: SliceRef, head_bytes: int) -> memoryview:
        """The first `head_bytes` of the slice, or all of a shorter one, without reading the rest.

        The crc32 covers the whole slice and is not checked. Raises `UnreadableSource`.
        """
        self._require_size(row)
        wanted = min(max(0, head_bytes), row.size_bytes)
        try:
            if row.method == PLAIN:
                return self._read_plain(row, wanted)
            if row.method == STORED:
                return self._stored_prefix(row, wanted)
            return self._inflate_head(row, wanted)
        except OSError as error:
            raise _unreadable(row, error) from error

    def _require_size(self, row: SliceRef) -> None:
        for what, size_bytes in (("size", row.size_bytes), ("stored size", row.stored_bytes)):
            if size_bytes > self._max_bytes:
                raise UnreadableSource(
                    "too_large", f"{row.name}: {what} is {size_bytes:,} bytes; the limit is {self._max_bytes:,}"
                )
        if row.method == STORED and row.stored_bytes != row.size_bytes:
            raise _mismatch(row, row.stored_bytes)

    def _read_plain(self, row: SliceRef, wanted: int) -> memoryview:
        # os.open and preadv into a buffer in use: a fresh half-megabyte buffer a slice costs page faults.
        fd = os.open(f"{row.container}/{row.name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            size_bytes = os.fstat(fd).st_size
            if size_bytes != row.size_bytes:
                raise _changed(row, f"the file has {size_bytes:,} bytes; the listing said {row.size_bytes:,}")
            got = self._fill(fd, 0, wanted)
        finally:
            os.close(fd)
        if got < wanted:
            raise _changed(row, f"the file ended after {got:,} of {wanted:,} bytes")
        return self._view[:wanted]

    def _read_zipped(self, row: SliceRef) -> memoryview:
        data = self._stored_prefix(row, row.stored_bytes)
        if row.method == STORED:
            return data
        inflater = _inflater()
        # One byte more than declared is enough to catch a stream that holds more, and all that a zip bomb gets.
        content = _inflate(inflater, data, row.size_bytes + 1, row)
        if not inflater.eof and len(content) <= row.size_bytes:
            raise _cut_short(row, len(content))
        return memoryview(content)

    def _checked(self, row: SliceRef, content: memoryview) -> memoryview:
        if len(content) != row.size_bytes:
            raise _mismatch(row, len(content))
        crc32 = isal_zlib.crc32(content)
        if crc32 != row.crc32:
            raise UnreadableSource(
                "crc_mismatch", f"{row.name}: crc32 is {crc32:08x}, the archive says {row.crc32:08x}"
            )
        return content

    def _inflate_head(self, row: SliceRef, wanted: int) -> memoryview:
        """First `wanted` bytes of a deflated member, from as little of its stream as that takes."""
        inflater, head, at = _inflater(), b"", 0
        while len(head) < wanted and not inflater.eof:
            if at == row.stored_bytes:
                raise _cut_short(row, len(head))
            # Deflate seldom makes bytes more, so this first step nearly always is the only one.
            end = min(at + wanted + 1024, row.stored_bytes)
            data = self._stored_prefix(row, end)[at:]
            head += _inflate(inflater, data, wanted - len(head), row)
            at = end
        if len(head) < wanted:
            raise _mismatch(row, len(head))
        return memoryview(head)

    def _stored_prefix(self, row: SliceRef, size_bytes: int) -> memoryview:
        """First bytes of a member as they lie in the archive."""
        fd = self._open_zip(row.container)
        # One read for header and bytes: local names and extras mostly are as short as this.
        guess_bytes = zip_directory.LOCAL_HEADER_BYTES + 4 * len(row.name) + 64
        got = self._fill(fd, row.offset, guess_bytes + size_bytes)
        header = zip_directory.parse_local_header(self._view[:got])
        if header is None:
            raise UnreadableSource("bad_local_header", f"{row.name}: no member begins at byte {row.offset:,}")
        if (header.name, header.method) != (row.name, row.method):
            raise _changed(row, f"byte {row.offset:,} holds {header.name!r}, method {header.method}")
        end = header.header_bytes + size_bytes
        if end > got:
            got = self._fill(fd, row.offset, end)
        if end > got:
            raise _changed(row, f"the archive ends inside the slice, after {got:,} bytes")
        return self._view[header.header_bytes : end]

    def _open_zip(self, path: str) -> int:
        if path != self._zip_path:
            self.close()
            self._zip_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._zip_path = path
        return self._zip_fd

    def _fill(self, fd: int, offset: int, size_bytes: int) -> int:
        """Read into the buffer; how many bytes came, fewer only at the end of the file."""
        if size_bytes > len(self._view):
            self._view = memoryview(bytearray(size_bytes))
        got = 0
        while got < size_bytes:
            fresh = os.preadv(fd, [self._view[got:size_bytes]], offset + got)
            if not fresh:
                break
            got += fresh
        return got


def _inflater() -> igzip_lib.IgzipDecompressor:
    return igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_DEFLATE, 15)


def _inflate(inflater: igzip_lib.IgzipDecompressor, data: memoryview, max_bytes: int, row: SliceRef) -> bytes:
    try:
        return inflater.decompress(data, max_bytes)
    except igzip_lib.IsalError as error:  # type: ignore[misc]  # its stub calls this class an instance
        raise UnreadableSource("inflate_failed", f"{row.name}: {error}") from error


def _cut_short(row: SliceRef, got_bytes: int) -> UnreadableSource:
    return UnreadableSource("inflate_failed", f"{row.name}: the deflated stream ends after {got_bytes:,} bytes")


def _mismatch(row: SliceRef, got_bytes: int) -> UnreadableSource:
    more = "more than " if got_bytes > row.size_bytes else ""
    return UnreadableSource(
        "size_mismatch",
        f"{row.name}: holds {more}{min(got_bytes, row.size_bytes):,} bytes; the archive says {row.size_bytes:,}",
    )


def _changed(row: SliceRef, fact: str) -> UnreadableSource:
    return UnreadableSource("changed", f"{row.name}: {fact}; it changed since it was listed")


def _unreadable(row: SliceRef, error: OSError) -> UnreadableSource:
    where = row.container if row.method != PLAIN else f"{row.container}/{row.name}"
    return UnreadableSource("unreadable_file", f"{where}: {error.strerror or error}")


class _Place(NamedTuple):
    """One folder or zip of the inputs, or `names` of files in one folder; slice names are relative to `root`."""

    kind: str
    root: Path
    path: Path
    names: tuple[str, ...] = ()


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
    """What the walk has found so far, and where it has been (folders by device and inode)."""

    include: Sequence[str]
    rows: dict[str, _Rows] = dataclasses.field(default_factory=dict)
    links: list[_Place] = dataclasses.field(default_factory=list)
    walked: set[tuple[int, int]] = dataclasses.field(default_factory=set)
    single: dict[Path, set[str]] = dataclasses.field(default_factory=dict)
    ignored: int = 0

    def add(self, container: Path, batch: pa.RecordBatch) -> None:
        """Keep the rows that `include` lets through."""
        self.rows.setdefault(str(container), _Rows()).add(_included(batch, self.include))

    def take_links(self) -> list[_Place]:
        """Linked files met since the last call: only after all folders is it known which are listed anyway."""
        links, self.links = self.links, []
        return sorted(links)

    def is_new(self, folder: Path, name: str) -> bool:
        """Whether no walk and no earlier call has met this file (of a resolved folder); notes it."""
        names = self.single.setdefault(folder, set())
        if name in names:
            return False
        names.add(name)
        # Looked up last: a walk lists the candidates only, not the rest of what lies in the folder.
        return not _is_candidate(name) or _is_hidden(name) or _identity(folder) not in self.walked


def _places(text: str) -> list[_Place]:
    """Folders, files and archives that one input names."""
    if "://" in text:
        raise SourceError(f"{text}: {_NOT_HERE_YET}")
    try:
        return _local_places(text, Path(text))
    except OSError as error:
        raise SourceError(f"{error.filename or text}: cannot be read ({error.strerror}); check its rights") from error


def _local_places(text: str, path: Path) -> list[_Place]:
    if path.is_dir():
        return [_Place("folder", _resolved(path), _resolved(path))]
    if path.is_file():
        folder = _resolved(path.parent)
        return [_zip_place(path)] if _is_zip(path) else [_Place("files", folder, folder, (path.name,))]
    if path.exists():
        raise SourceError(f"{path}: is neither a file nor a folder; give one of these")
    magic = [bool(_MAGIC.search(part)) for part in path.parts]
    if not any(magic):
        raise SourceError(f"{text}: no such file or folder; check the path")
    root = _resolved(Path(*path.parts[: magic.index(True)]))
    if not root.is_dir():
        raise SourceError(f"{text}: there is no folder {root}; check the path")
    places = list(_glob_places(root, path.parts[magic.index(True) :]))
    if not places:
        raise SourceError(f"{text}: the pattern matches nothing; check it, and quote it in the shell")
    return places


def _glob_places(root: Path, parts: Sequence[str]) -> Iterator[_Place]:
    """Places that match a glob. The files of a folder come as one place, for there may be 752,803 of them."""
    if parts[-1] == "**":
        yield from (_Place("folder", root, folder) for folder in _glob_folders(root, parts[:-1]))
        return
    for folder in _glob_folders(root, parts[:-1]):
        names = []
        for entry in _matching(folder, parts[-1]):
            if _leads_to_folder(entry):
                yield _Place("folder", root, folder / entry.name)
            elif entry.is_file() and _is_zip(folder / entry.name):
                yield _zip_place(folder / entry.name)
            elif entry.is_file():
                names.append(entry.name)
        if names:
            yield _Place("files", root, folder, tuple(sorted(names)))


def _glob_folders(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Folders that match the parts of a glob; `**` goes through folders but follows no links."""
    if not parts:
        yield folder
    elif parts[0] == "**":
        yield from _glob_folders(folder, parts[1:])
        for entry in _matching(folder, "*"):
            if entry.is_dir(follow_symlinks=False):
                yield from _glob_folders(folder / entry.name, parts)
    else:
        for entry in _matching(folder, parts[0]):
            if _leads_to_folder(entry):
                yield from _glob_folders(folder / entry.name, parts[1:])


def _matching(folder: Path, pattern: str) -> Iterator[os.DirEntry]:
    match = re.compile(fnmatch.translate(pattern)).match
    for entry in _scan(folder):
        if match(entry.name) and (pattern.startswith(".") or not _is_hidden(entry.name)):
            yield entry


def _is_zip(path: Path) -> bool:
    if path.suffix and _is_candidate(path.name):
        return False  # a glob may name many slices, and opening each to look takes minutes
    return zip_directory.is_zip(path)


def _zip_place(path: Path) -> _Place:
    return _Place("zip", _resolved(path), _resolved(path))


def _walk_order(place: _Place) -> tuple[str, str]:
    # A folder sorts in front of those inside it, so it names all its files whatever the order of the inputs.
    return (str(_resolved(place.path)), str(place.root))


def _gather_folder(gathered: _Gathered, place: _Place) -> None:
    if _identity(place.path) in gathered.walked:
        return
    before, links, ignored = len(gathered.walked), len(gathered.links), gathered.ignored
    rows = _add_plain(gathered, place.root, _walk_folder(gathered, place))
    if not rows and len(gathered.links) == links:
        folders = len(gathered.walked) - before
        raise SourceError(_nothing(place.path, gathered.ignored - ignored, f" in {folders} folders"))


def _add_plain(gathered: _Gathered, root: Path, files: Iterator[tuple[str, int, int]]) -> int:
    """How many files (name, size_bytes, mtime_ns) there were."""
    rows = 0
    while chunk := list(itertools.islice(files, _BATCH_ROWS)):
        rows += len(chunk)
        gathered.add(root, _plain_batch(chunk, root))
    return rows


def _walk_folder(gathered: _Gathered, place: _Place) -> Iterator[tuple[str, int, int]]:
    """(name, size_bytes, mtime_ns) of the candidates below a folder; every folder is visited once."""
    pending = [place.path]
    while pending:
        folder = pending.pop()
        identity = _identity(folder)
        if identity in gathered.walked:
            continue
        gathered.walked.add(identity)
        prefix = _prefix(folder, place.root)
        inner = []
        for entry in _scan(folder):
            if _is_hidden(entry.name):
                continue
            if _leads_to_folder(entry):
                inner.append(folder / entry.name)
            elif not _is_candidate(entry.name):
                gathered.ignored += 1
            elif entry.is_symlink():
                gathered.links.append(_Place("files", place.root, folder, (entry.name,)))
            elif entry.is_file():
                yield (prefix + entry.name, *_size_and_mtime(entry))
            else:
                gathered.ignored += 1
        pending += sorted(inner, reverse=True)


def _prefix(folder: Path, root: Path) -> str:
    return "" if folder == root else f"{folder.relative_to(root).as_posix()}/"


def _gather_files(gathered: _Gathered, place: _Place) -> None:
    _add_plain(gathered, place.root, _new_files(gathered, place))


def _new_files(gathered: _Gathered, place: _Place) -> Iterator[tuple[str, int, int]]:
    prefix, home = _prefix(place.path, place.root), _resolved(place.path)
    for name in place.names:
        path = place.path / name
        size_bytes, mtime_ns = _size_and_mtime(path)
        real = _resolved(path) if path.is_symlink() else None
        # A dangling link leads to nothing that could be listed already.
        if size_bytes == _UNKNOWN or gathered.is_new(*(real.parent, real.name) if real else (home, name)):
            yield (prefix + name, size_bytes, mtime_ns)


def _gather_zip(gathered: _Gathered, place: _Place) -> None:
    if str(place.path) in gathered.rows:
        return
    slices, ignored = 0, 0
    for members in zip_directory.member_batches(place.path):
        names = members.column("name")
        wanted = pc.match_substring_regex(names, _CANDIDATE)
        other = pc.or_(pc.match_substring_regex(names, _HIDDEN), pc.ends_with(names, "/"))
        ignored += pc.sum(pc.invert(pc.or_(wanted, other))).as_py() or 0
        wanted = pc.and_not(wanted, other)
        if not pc.all(wanted).as_py():
            members = members.filter(wanted)
        zip_directory.require_readable(members, place.path)
        slices += len(members)
        gathered.add(place.path, _zip_batch(members))
    if not slices:
        raise SourceError(_nothing(place.path, ignored, ""))
    gathered.ignored += ignored


# Folders first, so that a file inside one of them is known to be listed.
_GATHER = types.MappingProxyType({"folder": _gather_folder, "files": _gather_files, "zip": _gather_zip})


def _plain_batch(rows: Sequence[tuple[str, int, int]], root: Path) -> pa.RecordBatch:
    try:
        names = zip_directory.text_array([row[0].encode() for row in rows])
    except UnicodeEncodeError as error:
        raise SourceError(f"{root}: the file name {error.object!r} is not UTF-8; rename it") from error
    sizes, mtimes = (zip_directory.number_array(np.array([row[i] for row in rows], np.int64)) for i in (1, 2))
    unknown, plain = _constant(_UNKNOWN, len(rows), np.int64), _constant(PLAIN, len(rows), np.int8)
    return pa.RecordBatch.from_arrays([names, unknown, plain, sizes, sizes, unknown, mtimes], schema=_ROW_SCHEMA)


def _zip_batch(members: pa.RecordBatch) -> pa.RecordBatch:
    columns = {name: members.column(name) for name in _ROW_FIELDS[:-1]}
    columns["method"] = columns["method"].cast(pa.int8())
    columns["mtime_ns"] = _constant(_UNKNOWN, len(members), np.int64)
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
        zip_directory.require_disjoint(table, Path(container))
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


def _nothing(path: Path, ignored: int, where: str) -> str:
    return (
        f"{path}: no slice among {ignored:,} files{where}; slices end with .dcm, .dicom, .ima or a number, "
        "or have no suffix; name other files one by one or with a glob"
    )


def _scan(folder: Path) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise SourceError(f"{folder}: cannot be listed ({error.strerror}); check its rights") from error


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError:
        return (_UNKNOWN, _UNKNOWN)  # of a dangling link's target: no folder that was walked
    return (status.st_dev, status.st_ino)


def _leads_to_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself; it is listed as a file and fails when it is read


def _size_and_mtime(entry: os.DirEntry | Path) -> tuple[int, int]:
    try:
        status = entry.stat()
    except OSError:
        return (_UNKNOWN, _UNKNOWN)  # a dangling link, or gone since: the reader says so of this slice
    return (status.st_size, status.st_mtime_ns)


def _is_candidate(name: str) -> bool:
    return re.search(_CANDIDATE, name) is not None


def _is_hidden(name: str) -> bool:
    return re.search(_HIDDEN, name) is not None
