"""The thorough way from the bytes of a DICOM file to header and cells: by pydicom, whatever the encoding.

pydicom parses; the values are taken raw, as the fast walk takes them, and PixelData goes to `codestream`.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ich_tfrecords.dicom import cells, codestream
from ich_tfrecords.dicom.header import (
    ASCII_ESCAPE,
    DEFLATED,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    FACTS,
    IMPLICIT_LITTLE,
    NATIVE,
    ORIGINAL_ALONE,
    PADDING,
    PIXEL_DATA,
    SHORT,
    TEXT,
    SliceHeader,
    SliceProblem,
    UnreadableSlice,
    UnsupportedSlice,
    checked,
)

MAX_INFLATED_BYTES = 1 << 27
STUDY_UID = 0x0020000D
# the element TransferSyntaxUID (PS3.10 7.1) with this value, explicit or implicit
_NAMES_DEFLATED = re.compile(rb"\x02\x00\x10\x00(?:UI..|.{4})(" + re.escape(DEFLATED.encode()) + b")", re.DOTALL)
_QUIET = threading.Lock()

Buffer = bytes | bytearray | memoryview


def read_header(data: Buffer, accept: Collection[str] = ORIGINAL_ALONE) -> SliceHeader:
    """Header of a whole file, `pixel_offset` -1. Raises `UnreadableSlice`, `UnsupportedSlice`."""
    with typed_problems():
        return _header(*_up_to_pixel_data(data), len(data), accept)


def read_cells(
    data: Buffer, accept: Collection[str] = ORIGINAL_ALONE
) -> tuple[SliceHeader, npt.NDArray[np.unsignedinteger]]:
    """Header and unsigned cells [rows * columns] of a whole file. Raises `UnreadableSlice`, `UnsupportedSlice`."""
    with typed_problems():
        dataset, last = _up_to_pixel_data(data)
        header = _header(dataset, last, len(data), accept)
        value = bytes(_raw(dataset, PIXEL_DATA).value or b"")
        return header, native(header, value) if header.transfer_syntax in NATIVE else _encapsulated(header, value)


def study_uid(data: Buffer) -> str:
    """StudyInstanceUID of a file that gives no slice, or of its first kilobytes; "" where it cannot be had.

    Damage may put any words in its place, so only a value that could be an id comes out: at most 64 characters
    (PS3.5 6.2, UI) out of letters, digits and `_.-`, for RSNA's ids are no UIDs.
    """
    try:
        with typed_problems():
            dataset = _parsed(data, lambda tag, vr, length: tag > STUDY_UID)
            raw = _raw(dataset, STUDY_UID)
            is_whole = raw is not None and raw.length == len(raw.value or b"")
            value = text_of(dataset, STUDY_UID).strip() if is_whole else ""
    except SliceProblem:
        return ""
    return value if re.fullmatch(r"[0-9A-Za-z_.\-]{1,64}", value) else ""


def elements_of(data: Buffer, last: int) -> Any:
    """The pydicom Dataset of a file, or of its first bytes, with the elements up to the tag `last`, texts decoded.

    Raises `UnreadableSlice`.
    """
    with typed_problems():
        dataset = _parsed(data, lambda tag, vr, length: tag > last)
        with quiet():
            dataset.decode()  # every element, now: what is damaged is known here
        return dataset


@contextlib.contextmanager
def typed_problems() -> Iterator[None]:
    """Turns whatever a parser raises into a typed problem.

    The values of damaged files reach many corners of pydicom, so every exception counts as damage here;
    none is dropped. A parser's words may quote ids, so its exception's type alone stands in the detail.
    """
    try:
        yield
    except SliceProblem:
        raise
    except OSError as error:
        if error.errno is not None:
            raise  # of a disk, not of the bytes
        # pydicom's own: no tag of an item where one must be
        raise UnreadableSlice("truncated", f"the file ends inside an element: {error}") from error
    except (EOFError, struct.error) as error:
        raise UnreadableSlice("truncated", f"the file ends inside an element: {error}") from error
    except codestream.BadStream as error:
        raise UnreadableSlice("decode_failed", f"BadStream: {error}") from error
    except Exception as error:
        kind = type(error)
        name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
        raise UnreadableSlice("decode_failed", f"{name} while parsing") from error


def _up_to_pixel_data(data: Buffer) -> tuple[Any, int]:
    """The elements of a file up to PixelData, whatever damage follows it, and the tag of the last that began."""
    last = 0

    def is_after(tag: int, vr: str | None, length: int) -> bool:
        nonlocal last
        if last == PIXEL_DATA:
            return True
        last = int(tag)
        return False

    return _parsed(data, is_after), last


def _parsed(data: Buffer, is_after: Callable[[int, str | None, int], bool]) -> Any:
    """The pydicom Dataset of a file, without a word on the screen: RSNA's ids alone warn once a file.

    It has the elements in front of the first for which `is_after` holds; pydicom asks for those of the top level only.
    """
    from pydicom.filereader import read_partial

    _check_signature(data)
    whole = bytes(data)
    deflated = _NAMES_DEFLATED.search(whole) is not None
    with quiet():
        dataset = read_partial(io.BytesIO(_inflated(whole) if deflated else whole), is_after, force=True)
    if deflated:
        dataset.file_meta.TransferSyntaxUID = DEFLATED
    return dataset


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps warnings and log lines of the libraries back; both switches are the process's, hence the lock."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "openjpeg.decode")]
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = [logger.disabled for logger in loggers]
        try:
            for logger in loggers:
                logger.disabled = True
            yield
        finally:
            for logger, disabled in zip(loggers, before, strict=True):
                logger.disabled = disabled


def _check_signature(data: Buffer) -> None:
    """Refuse what cannot be DICOM (PS3.10 7.1)."""
    if len(data) == 0:
        raise UnreadableSlice("empty_file", "the file has no bytes")
    if bytes(data[128:132]) != b"DICM" and bytes(data[:2]) not in (b"\x02\x00", b"\x08\x00"):
        raise UnreadableSlice("not_dicom", "no DICM at byte 128, and the file does not begin with group 2 or 8")


def _inflated(whole: bytes) -> bytes:
    """The file with its deflated data set (PS3.5 A.5) inflated, at most to the cap, as explicit little endian.

    Done here because pydicom inflates without a cap. The stream begins after the meta group, whose length
    stands at byte 140; a file that names the deflated syntax elsewhere is refused.
    """
    begin = 144 + int.from_bytes(whole[140:144], "little")
    meta, named = whole[:begin], [found.span(1) for found in _NAMES_DEFLATED.finditer(whole)]
    if meta[128:140] != b"DICM\x02\x00\x00\x00UL\x04\x00" or len(named) != 1 or named[0][1] > begin:
        raise UnreadableSlice("decode_failed", "the file names the deflated transfer syntax out of its place")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(whole[begin:], MAX_INFLATED_BYTES + 1)
    if len(inflated) > MAX_INFLATED_BYTES:
        raise UnreadableSlice("too_large", f"the deflated data set is larger than {MAX_INFLATED_BYTES:,} bytes")
    if not inflater.eof:
        raise UnreadableSlice("truncated", f"the deflated data set ends early, after {len(inflated):,} bytes")
    place = slice(*named[0])
    return meta[: place.start] + EXPLICIT_LITTLE.encode().ljust(len(DEFLATED), b"\0") + meta[place.stop :] + inflated


def fields_of(dataset: Any) -> dict[str, Any]:
    """The elements of a data set that `checked` takes, by keyword."""
    fields: dict[str, Any] = texts_of(dataset)
    for tag, keyword in SHORT.items():
        raw = _raw(dataset, tag)
        value = b"" if raw is None else raw.value or b""
        if len(value) == 2:
            fields[keyword] = int.from_bytes(value, "little" if raw.is_little_endian else "big")
        elif value and tag in PADDING:
            fields[keyword] = None
    fields["facts"] = facts_of(dataset)
    return fields


def texts_of(dataset: Any) -> dict[str, str]:
    """Those of `TEXT`, by keyword."""
    return {keyword: text_of(dataset, tag) for tag, keyword in TEXT.items() if tag in dataset}


def facts_of(dataset: Any) -> dict[str, bytes]:
    """The bytes of those of `FACTS`, by keyword, without their padding."""
    told = {keyword: _raw(dataset, tag) for tag, keyword in FACTS.items()}
    return {keyword: bytes(raw.value or b"").rstrip(b" \0") for keyword, raw in told.items() if raw}


def _header(dataset: Any, last: int, size_bytes: int, accept: Collection[str]) -> SliceHeader:
    fields = fields_of(dataset) | {"TransferSyntaxUID": syntax_of(dataset)}
    pixel_data = _raw(dataset, PIXEL_DATA)
    if pixel_data is None:
        _check_whole(dataset, last, size_bytes)
        return checked(fields, None, None, -1, accept)
    declared = None if pixel_data.length == 0xFFFFFFFF else pixel_data.length
    return checked(fields, len(pixel_data.value or b""), declared, -1, accept)


def _raw(dataset: Any, tag: int) -> Any:
    """pydicom's RawDataElement (length, value in bytes) of a tag; None where it is absent or a sequence."""
    item = dataset.get_item(tag)
    return item if item is not None and hasattr(item, "is_little_endian") else None


def text_of(dataset: Any, tag: int) -> str:
    """Text of an element as the fast walk reads it; pydicom decodes what is not ASCII."""
    raw = _raw(dataset, tag)
    if raw is not None and raw.value is not None:
        value = bytes(raw.value)
        if value.isascii() and ASCII_ESCAPE.encode() not in value:
            return value.decode("ascii").rstrip(" \0")
    with quiet():
        value = dataset[tag].value
    many = isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue"
    return "\\".join(map(str, value)) if many else str("" if value is None else value).rstrip(" \0")


def syntax_of(dataset: Any) -> str:
    """Transfer syntax by the meta group, or as pydicom guessed it where that is silent."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax:
        return str(syntax)
    implicit, little = dataset.original_encoding
    return IMPLICIT_LITTLE if implicit else EXPLICIT_LITTLE if little else EXPLICIT_BIG


def _check_whole(dataset: Any, last: int, size_bytes: int) -> None:
    """Tell a file that was cut from one that never had PixelData, by the tag of its `last` element."""
    if last == PIXEL_DATA:
        raise UnreadableSlice("truncated", f"PixelData begins, but does not end within the {size_bytes:,} bytes")
    raw = _raw(dataset, last)
    is_short = raw is not None and raw.length != 0xFFFFFFFF and len(raw.value or b"") < raw.length
    if last and (is_short or last not in dataset):
        place = f"({last >> 16:04X},{last & 0xFFFF:04X})"
        raise UnreadableSlice("truncated", f"the file ends inside element {place}, before PixelData")


def native(header: SliceHeader, value: bytes) -> npt.NDArray[np.unsignedinteger]:
    """Unsigned cells [rows * columns] of a value that is not encoded."""
    order = ">" if header.transfer_syntax == EXPLICIT_BIG else "<"
    kind = np.dtype(f"{order}u{header.bits_allocated // 8}")
    return np.frombuffer(value, kind, header.rows * header.columns).astype(kind.newbyteorder("="), copy=False)


def _encapsulated(header: SliceHeader, value: bytes) -> npt.NDArray[np.unsignedinteger]:
    """Cells of encapsulated PixelData (PS3.5 A.4): one frame of all the fragments, whatever the offset table says."""
    from pydicom.encaps import generate_fragments

    return encoded(header, lambda: b"".join(itertools.islice(generate_fragments(value), 1, None)))


def encoded(header: SliceHeader, frame: Callable[[], bytes]) -> npt.NDArray[np.unsignedinteger]:
    """Cells [rows * columns] of an encoded frame. Raises `UnreadableSlice`, `UnsupportedSlice`, and as decoders do."""
    decode = codestream.DECODERS.get(header.transfer_syntax)
    if decode is None:
        known = re.fullmatch(r"1\.2\.[0-9.]{1,60}", header.transfer_syntax)
        shown = header.transfer_syntax if known else f"of {len(header.transfer_syntax):,} characters, no DICOM UID"
        raise UnsupportedSlice("unsupported_syntax", f"no decoder for transfer syntax {shown}")
    try:
        with quiet():
            samples = decode(frame(), header.rows, header.columns, header.bits_allocated)
    except ImportError as error:
        raise UnsupportedSlice(
            "unsupported_syntax", f"transfer syntax {header.transfer_syntax} needs the module {error.name}"
        ) from error
    except codestream.CutShort as error:
        raise UnreadableSlice("truncated", str(error)) from error
    return cells.from_stream(samples, header.bits_allocated, header.bits_stored, header.signed)
