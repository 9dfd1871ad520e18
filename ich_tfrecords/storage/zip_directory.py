"""Members of a zip archive, straight from its central directory, in blocks of columns.

`zipfile.ZipFile` keeps one Python object a member; an archive of 874,035 slices then costs seconds and
hundreds of megabytes. Here the directory is read a block at a time and unpacked by numpy. Clause numbers
are those of PKWARE's APPNOTE.TXT 6.3.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from ich_tfrecords.storage import packed, zip_names
from ich_tfrecords.storage.bucket_path import AnyPath

STORED, DEFLATED = 0, 8
LOCAL_HEADER_BYTES = 30

BEGINNINGS = (b"PK\x03\x04", b"PK\x05\x06")  # of an archive with members, and of an empty one

_BLOCK_BYTES = 1 << 20
_ENTRY = np.dtype(
    [
        ("signature", "<u4"),
        ("made_by", "<u2"),
        ("needs", "<u2"),
        ("flags", "<u2"),
        ("method", "<u2"),
        ("time", "<u2"),
        ("date", "<u2"),
        ("crc32", "<u4"),
        ("stored_bytes", "<u4"),
        ("size_bytes", "<u4"),
        ("name_bytes", "<u2"),
        ("extra_bytes", "<u2"),
        ("comment_bytes", "<u2"),
        ("disk", "<u2"),
        ("internal", "<u2"),
        ("external", "<u4"),
        ("offset", "<u4"),
    ]
)
_ENTRY_LENGTHS = struct.Struct("<3H")
_EXTRA = struct.Struct("<2H")
_END = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCAL = struct.Struct("<4s5H3I2H")
_ENTRY_SIGNATURE = 0x02014B50
_ZIP64_EXTRA = 1
_ENCRYPTED = 0x1 | 0x40 | 0x2000  # traditional, strong, and masked headers (4.4.4)
_MAX_COMMENT_BYTES = 0xFFFF

MEMBER_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("offset", pa.int64()),
        ("method", pa.uint16()),
        ("flags", pa.uint16()),
        ("stored_bytes", pa.int64()),
        ("size_bytes", pa.int64()),
        ("crc32", pa.int64()),
    ]
)


class SourceError(ValueError):
    """An input that cannot be used as it is; the message names the value, the place and the next step."""


class _Directory(NamedTuple):
    start: int  # byte in the file
    size_bytes: int
    entries: int
    shift_bytes: int  # data in front of the archive: add this to every recorded offset


class LocalHeader(NamedTuple):
    """What stands in front of a member's bytes (4.3.7)."""

    method: int
    name: str
    header_bytes: int


def is_zip(name: str, head: bytes) -> bool:
    """Whether the name of a file ends with `.zip`, or its first bytes are those of a zip archive."""
    return name.lower().endswith(".zip") or head.startswith(BEGINNINGS)


def member_batches(path: AnyPath) -> Iterator[pa.RecordBatch]:
    """Batches of `MEMBER_SCHEMA` in directory order; offsets are bytes from the beginning of the file.

    Raises `SourceError`: no zip, cut short, split over several files, or a directory that contradicts
    itself or the size of the file.
    """
    try:
        with path.open("rb") as file:
            directory = _find_directory(file, path)
            yield from _walk(file, directory, path)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); check the path and its rights") from error


def require_readable(members: pa.RecordBatch | pa.Table, path: AnyPath) -> None:
    """Refuse encrypted members and compression methods other than stored and deflated (`SourceError`)."""
    flags, method = (numbers(members.column(name)) for name in ("flags", "method"))
    _refuse(members, (flags & _ENCRYPTED) != 0, path, "is encrypted; extract it with its password and give the folder")
    for unknown in sorted(set(np.unique(method).tolist()) - {STORED, DEFLATED}):
        advice = f"has compression method {unknown}; only stored (0) and deflated (8) are read: zip it again"
        _refuse(members, method == unknown, path, advice)


def require_disjoint(members: pa.Table, path: AnyPath) -> None:
    """Refuse members whose bytes overlap (`SourceError`): a damaged archive, or a zip bomb."""
    start = numbers(members.column("offset"))
    end = numbers(members.column("stored_bytes")) + LOCAL_HEADER_BYTES
    end += start
    order = None
    if (start[:-1] > start[1:]).any():  # most archives list their members as they lie
        order = np.argsort(start, kind="stable")
        start, end = start[order], end[order]
    later = np.flatnonzero(end[:-1] > start[1:]) + 1
    if len(later):
        bad = np.zeros(len(start), dtype=bool)
        bad[later if order is None else order[later]] = True
        _refuse(members, bad, path, "overlaps the member before it; the archive is damaged, fetch it again")


def parse_local_header(header: memoryview) -> LocalHeader | None:
    """Local header of a member (4.3.7), or None when these bytes are not one.

    Its name and extra lengths may differ from the central directory's, so the bytes begin where IT says.
    """
    if len(header) < LOCAL_HEADER_BYTES:
        return None
    signature, _, flags, method, *_, name_bytes, extra_bytes = _LOCAL.unpack_from(header)
    raw = bytes(header[LOCAL_HEADER_BYTES : LOCAL_HEADER_BYTES + name_bytes])
    if signature != b"PK\x03\x04" or len(raw) < name_bytes or flags & _ENCRYPTED:
        return None
    header_bytes = LOCAL_HEADER_BYTES + name_bytes + extra_bytes
    name = zip_names.name(raw, bytes(header[LOCAL_HEADER_BYTES + name_bytes : header_bytes]))
    return LocalHeader(method, name, header_bytes)


def _find_directory(file: BinaryIO, path: AnyPath) -> _Directory:
    """Place of the central directory, from the end records (4.3.14 to 4.3.16)."""
    file_bytes = file.seek(0, os.SEEK_END)
    end_at, end = _find_end(file, file_bytes, path)
    _, disk, directory_disk, _, entries, size_bytes, recorded_start, _ = end
    if entries == 0xFFFF or size_bytes == 0xFFFFFFFF or recorded_start == 0xFFFFFFFF:
        found = _find_end64(file, end_at, path)
        if found is not None:
            end_at, (disk, directory_disk, _, entries, size_bytes, recorded_start) = found
    if disk != 0 or directory_disk != 0 or end[3] != end[4]:
        raise SourceError(f"{path}: is one part of a split archive; join it first (zip -s 0 {path.name} --out one.zip)")
    start = end_at - size_bytes
    if start < recorded_start or start < 0:
        raise SourceError(
            f"{path}: the central directory should lie at bytes {recorded_start:,} to "
            f"{recorded_start + size_bytes:,}, but it ends at {end_at:,}; the archive is damaged, fetch it again"
        )
    return _Directory(start, size_bytes, entries, start - recorded_start)


def _find_end(file: BinaryIO, file_bytes: int, path: AnyPath) -> tuple[int, tuple]:
    """Position and fields of the end record: the last one whose comment fits into the file."""
    tail_at = max(0, file_bytes - _END.size - _MAX_COMMENT_BYTES)
    file.seek(tail_at)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    found: list[tuple[bool, int, int, tuple]] = []
    while at >= 0:
        if at + _END.size <= len(tail):
            fields = _END.unpack_from(tail, at)
            # A comment may itself hold the signature; the true record's comment ends with the file.
            found.append((at + _END.size + fields[-1] != len(tail), len(found), tail_at + at, fields))
        at = tail.rfind(b"PK\x05\x06", 0, at)
    if not found:
        _refuse_without_end(file, path)
    _, _, end_at, fields = min(found)
    return end_at, fields


def _refuse_without_end(file: BinaryIO, path: AnyPath) -> None:
    file.seek(0)
    head = file.read(packed.HEAD_BYTES)
    if head.startswith(b"PK\x03\x04"):
        raise SourceError(f"{path}: the zip archive is cut short (no directory at its end); fetch it again")
    if kind := packed.packing("", head):
        raise SourceError(packed.advice(str(path), kind))
    raise SourceError(f"{path}: is not a zip archive; give a folder, a DICOM file or a .zip")


def _find_end64(file: BinaryIO, end_at: int, path: AnyPath) -> tuple[int, tuple] | None:
    """Position and fields of the zip64 end record; None when the archive has none."""
    locator = _END64_LOCATOR.unpack(_read_at(file, end_at - _END64_LOCATOR.size, _END64_LOCATOR.size))
    if locator[0] != b"PK\x06\x07":
        return None
    # Straight in front of the locator first: with data before the archive the recorded place is wrong.
    for at in (end_at - _END64_LOCATOR.size - _END64.size, locator[2]):
        fields = _END64.unpack(_read_at(file, at, _END64.size))
        if fields[0] == b"PK\x06\x06":
            return at, fields[4:]
    raise SourceError(f"{path}: the zip64 end record is missing at byte {locator[2]:,}; fetch the archive again")


def _read_at(file: BinaryIO, at: int, size_bytes: int) -> bytes:
    """Bytes of the file, filled up with zeros where it has none."""
    if at < 0 or at >= 1 << 63:
        return bytes(size_bytes)
    file.seek(at)
    return file.read(size_bytes).ljust(size_bytes, b"\0")


def _walk(file: BinaryIO, directory: _Directory, path: AnyPath) -> Iterator[pa.RecordBatch]:
    file.seek(directory.start)
    left_bytes, carry, entries = directory.size_bytes, b"", 0
    while left_bytes:
        fresh = file.read(min(_BLOCK_BYTES, left_bytes))
        if not fresh:
            raise SourceError(f"{path}: the file became shorter while it was read; wait until it is complete")
        left_bytes -= len(fresh)
        block = carry + fresh
        starts, names, used_bytes = _split_entries(block)
        carry = block[used_bytes:]
        entries += len(starts)
        if starts:
            yield _columns(block, np.array(starts), names, directory, path)
    if carry or entries != directory.entries:
        raise SourceError(
            f"{path}: the directory promises {directory.entries:,} members and holds {entries:,}"
            f"{' and a broken one' if carry else ''}; the archive is damaged, fetch it again"
        )


def _split_entries(block: bytes) -> tuple[list[int], list[bytes], int]:
    """Where the whole entries of a block begin, their raw names, and the bytes they use."""
    starts: list[int] = []
    names: list[bytes] = []
    at, last = 0, len(block) - _ENTRY.itemsize
    lengths = _ENTRY_LENGTHS.unpack_from
    while at <= last:
        name_bytes, extra_bytes, comment_bytes = lengths(block, at + 28)
        name_end = at + 46 + name_bytes
        end = name_end + extra_bytes + comment_bytes
        if end > len(block):
            break
        starts.append(at)
        names.append(block[at + 46 : name_end])
        at = end
    return starts, names, at


def _columns(
    block: bytes, starts: np.ndarray, names: list[bytes], directory: _Directory, path: AnyPath
) -> pa.RecordBatch:
    raw = np.frombuffer(block, np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(raw, _ENTRY.itemsize)
    entries = windows[starts].view(_ENTRY)[:, 0]
    if (entries["signature"] != _ENTRY_SIGNATURE).any():
        raise SourceError(f"{path}: the zip directory is damaged (an entry has no signature); fetch it again")
    sizes = _sizes(block, starts, entries, path)
    _require_inside(sizes, directory, path, names)
    columns = {key: column.astype(np.int64) for key, column in sizes.items()}
    columns["offset"] += directory.shift_bytes
    columns |= {key: entries[key].copy() for key in ("flags", "method")}
    columns["crc32"] = entries["crc32"].astype(np.int64)
    arrays = {key: number_array(column) for key, column in columns.items()}
    arrays["name"] = text_array(_texts(block, starts, names, entries["extra_bytes"]))
    return pa.RecordBatch.from_arrays([arrays[key] for key in MEMBER_SCHEMA.names], schema=MEMBER_SCHEMA)


def number_array(values: np.ndarray) -> pa.Array:
    """Arrow array that shares the memory of `values`."""
    # Not pa.array, which imports pandas: 30 MB and a third of a second. The same goes for to_numpy below.
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def numbers(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The numbers of an Arrow column without nulls; no copy when it is in one piece."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [np.from_dlpack(chunk) for chunk in chunks if len(chunk)]
    if not parts:
        return np.empty(0, np.int64)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def text_array(texts: list[bytes]) -> pa.Array:
    """Arrow strings of UTF-8 bytes, which are not checked."""
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(b"".join(texts)))


def _sizes(block: bytes, starts: np.ndarray, entries: np.ndarray, path: AnyPath) -> dict[str, np.ndarray]:
    """uint64 columns size_bytes, stored_bytes and offset, taken from zip64 extras where saturated (4.5.3)."""
    # In this order they stand in the extra field, each only when the entry's own field is saturated.
    keys = ("size_bytes", "stored_bytes", "offset")
    sizes = {key: entries[key].astype(np.uint64) for key in keys}
    saturated = {key: entries[key] == 0xFFFFFFFF for key in keys}
    rows = np.flatnonzero(saturated["size_bytes"] | saturated["stored_bytes"] | saturated["offset"])
    if not len(rows):
        return sizes
    extra_at = starts + _ENTRY.itemsize + entries["name_bytes"]
    needed = 8 * sum(saturated[key].astype(np.int64) for key in keys)
    at = _zip64_places(block, rows, extra_at, entries["extra_bytes"], needed, path)
    words = np.lib.stride_tricks.sliding_window_view(np.frombuffer(block, np.uint8), 8)
    for key in keys:
        here = rows[saturated[key][rows]]
        sizes[key][here] = words[at[here]].view("<u8")[:, 0]
        at[here] += 8
    return sizes


def _zip64_places(
    block: bytes, rows: np.ndarray, extra_at: np.ndarray, extra_bytes: np.ndarray, needed: np.ndarray, path: AnyPath
) -> np.ndarray:
    """Where the zip64 values of each of `rows` begin in the block; rows without them raise `SourceError`."""
    at = extra_at + 4
    # Padded, because an extra field shorter than its own header may end the block.
    raw = np.frombuffer(block + b"\0\0\0\0", np.uint8)
    header = np.lib.stride_tricks.sliding_window_view(raw, 4)[extra_at[rows]].view("<u2")
    size_bytes = header[:, 1].astype(np.int64)
    first = (header[:, 0] == _ZIP64_EXTRA) & (size_bytes >= needed[rows]) & (size_bytes + 4 <= extra_bytes[rows])
    for row in rows[~first].tolist():
        begin = int(extra_at[row])
        at[row] = _find_zip64(block, begin, begin + int(extra_bytes[row]), int(needed[row]), path)
    return at


def _find_zip64(block: bytes, here: int, end: int, needed: int, path: AnyPath) -> int:
    """Where the values of the zip64 extra begin, in an extra field that holds others in front of it."""
    while here + 4 <= end:
        kind, size_bytes = _EXTRA.unpack_from(block, here)
        if kind == _ZIP64_EXTRA and size_bytes >= needed and here + 4 + size_bytes <= end:
            return here + 4
        here += 4 + size_bytes
    raise SourceError(f"{path}: an entry of the directory lacks its zip64 sizes; fetch the archive again")


def _require_inside(sizes: dict[str, np.ndarray], directory: _Directory, path: AnyPath, names: list[bytes]) -> None:
    room = np.uint64(max(0, directory.start - directory.shift_bytes))
    too_big = sizes["size_bytes"] >= np.uint64(1 << 63)
    outside = (sizes["offset"] > room) | (sizes["stored_bytes"] > room) | too_big
    # Only now is the sum safe from wrapping at 64 bits.
    outside |= sizes["offset"] + sizes["stored_bytes"] + np.uint64(LOCAL_HEADER_BYTES) > room
    if outside.any():
        name = names[int(np.argmax(outside))].decode("utf-8", errors="replace")
        raise SourceError(f"{path}: member {name!r} lies outside the file; the archive is damaged, fetch it again")


def _texts(block: bytes, starts: np.ndarray, names: list[bytes], extra_bytes: np.ndarray) -> list[bytes]:
    """Names as text in UTF-8, from the raw names and the extra fields behind them."""
    if zip_names.are_plain(names, block):
        return names
    ends = (starts + _ENTRY.itemsize).tolist()
    extras = [
        block[at + len(name) : at + len(name) + size] for at, name, size in zip(ends, names, extra_bytes.tolist())
    ]
    return [zip_names.name(name, extra).encode() for name, extra in zip(names, extras)]


def _refuse(members: pa.RecordBatch | pa.Table, bad: np.ndarray, path: AnyPath, advice: str) -> None:
    """Raise `SourceError` about the first bad row, if there is one."""
    if bad.any():
        name = members.column("name")[int(np.argmax(bad))].as_py()
        more = f" (and {int(bad.sum()) - 1:,} more)" if bad.sum() > 1 else ""
        raise SourceError(f"{path}: member {name!r}{more} {advice}")
