"""From the bytes of a DICOM file to a CT slice in HU.

Plain little-endian slices take a walk over the element headers (`fast_header`). Whatever that walk does
not fully understand goes to pydicom (`dicom_slow`). Both ways end in `slice_header.checked`.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ich_tfrecords import pixels
from ich_tfrecords.dicom import by_pydicom, cells
from ich_tfrecords.dicom.header import (
    ASCII_ESCAPE,
    ENHANCED,
    EXPLICIT_LITTLE,
    FACTS,
    IMPLICIT_LITTLE,
    NATIVE,
    ORIGINAL_ALONE,
    PIXEL_DATA,
    RLE,
    SHORT,
    TEXT,
    TRANSFER_SYNTAX,
    SliceHeader,
    SliceProblem,
    UnreadableSlice,
    UnsupportedSlice,
    checked,
    missing_id,
)

__all__ = [
    "HEAD_BYTES",
    "CtSlice",
    "SliceHeader",
    "SliceProblem",
    "UnreadableSlice",
    "UnsupportedSlice",
    "elements_of",
    "fast_header",
    "missing_id",
    "pydicom_header",
    "pydicom_slice",
    "read_header",
    "read_slice",
    "study_uid",
]

HEAD_BYTES = 8192  # holds the header of an RSNA slice (1 kB) and of most clinical ones

Buffer = bytes | bytearray | memoryview
pydicom_header = by_pydicom.read_header
study_uid = by_pydicom.study_uid
elements_of = by_pydicom.elements_of


class CtSlice(NamedTuple):
    """Header and HU, int16 [rows, columns]. `hu` may be a view of the bytes that were read."""

    header: SliceHeader
    hu: npt.NDArray[np.int16]


_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT_VRS = frozenset(
    (b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL")
    + (b"SS", b"ST", b"TM", b"UI", b"UL", b"US")
)
_UNDEFINED = 0xFFFFFFFF
_META_GROUP, _META_END = 0x00020000, 0x0002FFFF
_EXPLICIT = struct.Struct("<HH2sH")
_IMPLICIT = struct.Struct("<HHL")
_LENGTH = struct.Struct("<L")


def fast_header(data: Buffer, size_bytes: int, accept: Collection[str] = ORIGINAL_ALONE) -> SliceHeader | None:
    """Header of a plain little-endian slice, or None when pydicom must look.

    `data`: the file, or its first kilobytes; `size_bytes`: length of the whole file; `accept`: `DatasetSpec.accept`.
    None stands for
    everything that the walk does not fully understand, a too short `data` among it. Raises
    `UnreadableSlice` and `UnsupportedSlice` where the header is understood and says so.
    """
    try:
        walked = _walk(data)
    except (struct.error, UnicodeDecodeError, IndexError):
        return None
    if walked is None:
        return None
    fields, offset, length = walked
    if fields.get("SOPClassUID") in ENHANCED:
        return None
    return checked(fields, min(length, size_bytes - offset), length, offset, accept)


def read_header(data: Buffer, accept: Collection[str] = ORIGINAL_ALONE) -> SliceHeader:
    """Header of a whole file, whatever its transfer syntax, where `accept` takes it.

    Raises `UnreadableSlice`, `UnsupportedSlice`. That of a file of many slices is a `HoldsFrames`.
    """
    return fast_header(data, len(data), accept) or pydicom_header(data, accept)


def read_slice(data: Buffer, accept: Collection[str] = ORIGINAL_ALONE) -> CtSlice:
    """Header and HU of a whole file that `accept` (`DatasetSpec.accept`) takes.

    Raises `UnreadableSlice`, `UnsupportedSlice`.
    """
    header = fast_header(data, len(data), accept)
    if header is None:
        return pydicom_slice(data, accept)
    kind, size = f"<u{header.bits_allocated // 8}", header.rows * header.columns
    return CtSlice(header, hu_of(header, np.frombuffer(data, kind, size, header.pixel_offset)))


def pydicom_slice(data: Buffer, accept: Collection[str] = ORIGINAL_ALONE) -> CtSlice:
    """`read_slice` by way of pydicom alone."""
    header, plain = by_pydicom.read_cells(data, accept)
    return CtSlice(header, hu_of(header, plain))


def hu_of(header: SliceHeader, plain: cells.Cells) -> pixels.Int16:
    """HU [rows, columns] of unsigned cells [rows * columns]: the one way for every file."""
    plain = plain.reshape(header.rows, header.columns)
    padding = cells.padding(plain, header)
    overlays = header.transfer_syntax in (*NATIVE, RLE)
    stored = cells.stored_values(plain, header.bits_stored, header.signed, padding, overlays)
    cells.check_sign(stored, header, padding)
    hu = pixels.to_hu(stored, header.bits_stored, header.signed, header.slope, header.intercept)
    return hu if padding is None else cells.with_air(hu, plain, padding, header)


def _walk(data: Buffer) -> tuple[dict[str, Any], int, int] | None:
    """Wanted elements, offset and declared length of PixelData; None where the layout is unusual."""
    meta = _meta(data)
    if meta is None:
        return None
    syntax, begin = meta
    facts: dict[str, bytes] = {}
    fields: dict[str, Any] = {"TransferSyntaxUID": syntax, "facts": facts}
    for tag, offset, length in _elements(data, begin, len(data), syntax == EXPLICIT_LITTLE, _META_END):
        if tag == PIXEL_DATA:
            return None if length == _UNDEFINED else (fields, offset, length)
        if tag in TEXT:
            fields[TEXT[tag]] = _ascii(data, offset, length)
        elif tag in SHORT:
            if length != 2:  # also an empty one, which stands for none
                return None
            fields[SHORT[tag]] = data[offset] | data[offset + 1] << 8
        elif tag in FACTS:
            facts[FACTS[tag]] = bytes(data[offset : offset + length]).rstrip(b" \0")
    return None


def _meta(data: Buffer) -> tuple[str, int] | None:
    """Transfer syntax and end of a plain file meta group (PS3.10 7.1), None for any other."""
    if bytes(data[128:140]) != b"DICM\x02\x00\x00\x00UL\x04\x00":
        return None
    (meta_bytes,) = _LENGTH.unpack_from(data, 140)
    end = last = 144 + meta_bytes
    syntax = ""
    for tag, offset, length in _elements(data, 144, end, True, _META_GROUP):
        if tag == TRANSFER_SYNTAX:
            syntax = _ascii(data, offset, length)
        last = offset + length if tag < _META_END else -1
    return (syntax, end) if syntax in (IMPLICIT_LITTLE, EXPLICIT_LITTLE) and last == end else None


def _elements(data: Buffer, position: int, end: int, explicit: bool, last_tag: int) -> Iterator[tuple[int, int, int]]:
    """Tag, value offset and value length of each element up to `end`, or to the first unusual one.

    PS3.5 7.1: tags ascend and lengths are even. Sequences are skipped whole by their defined length; an
    undefined length ends the walk, except on PixelData, which ends it anyway.
    """
    while position < end:
        if explicit:
            group, element, vr, length = _EXPLICIT.unpack_from(data, position)
            position += 8
            if vr in _LONG_VRS:
                (length,) = _LENGTH.unpack_from(data, position)
                position += 4
            elif vr not in _SHORT_VRS:
                return
        else:
            group, element, length = _IMPLICIT.unpack_from(data, position)
            position += 8
        tag = group << 16 | element
        if tag <= last_tag or (length & 1 and tag != PIXEL_DATA):
            return
        yield tag, position, length
        position += length
        last_tag = tag


def _ascii(data: Buffer, offset: int, length: int) -> str:
    if offset + length > len(data):
        raise struct.error(f"a value of {length:,} bytes runs past the end")
    text = str(data[offset : offset + length], "ascii")
    if ASCII_ESCAPE in text:
        raise struct.error("a value in another character set")
    return text.rstrip(" \0")
