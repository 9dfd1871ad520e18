"""Cells of a JPEG Lossless frame (ITU-T T.81, process 14), the usual compression of CT.

Written here because the free C decoder (gdcm) ends the whole process on some damaged streams, stalls on
others, and returns noise for a stream that was cut. Here each of these is an exception. The coded bits are read by
`jpeg_compiled` where numba is there, else by `jpeg_numpy`; what a stream must hold is said here, once for both.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ich_tfrecords.dicom import jpeg_compiled, jpeg_numpy
from ich_tfrecords.dicom.cells import Samples
from ich_tfrecords.dicom.jpeg_compiled import Forms
from ich_tfrecords.dicom.jpeg_numpy import NO_CODE, Huffman, UInt16

_SOF3, _DHT, _SOS, _DRI, _DNL, _EOI = 0xC3, 0xC4, 0xDA, 0xDD, 0xDC, 0xD9
_SKIPPED = frozenset((*range(0xE0, 0xF0), 0xFE))  # APPn, COM
_MOST_SPARE_BITS = 16  # padding takes 7 at most; some writers add a byte
_RESTARTS = bytes(range(0xD0, 0xD8))
_NUMPY = Forms(jpeg_numpy.read, jpeg_numpy.undo)


class BadStream(ValueError):
    """A codestream that contradicts itself, the DICOM header, or what is supported."""


class CutShort(BadStream):
    """A codestream that ends before its frame does."""


def decode(data: bytes, rows: int, columns: int, bits_allocated: int) -> Samples:
    """Samples [rows, columns] of a codestream, which says nothing of a sign.

    The end marker may lack, for the bits themselves tell whether every sample came. Raises `BadStream`, `CutShort`
    for a damaged one.
    """
    tables: dict[int, Huffman] = {}
    precision = restart_rows = 0
    for marker, body in segments(data):
        if marker == _SOF3:
            precision = frame_precision(body, rows, columns)
        elif marker == _DHT:
            tables |= _huffman_tables(body)
        elif marker == _DRI:
            restart_rows = _restart_rows(body, rows, columns)
        elif marker == _SOS:
            values = _scan(body, tables, precision, restart_rows or rows, (rows, columns), bits_allocated)
            return Samples(values, precision, None)
        elif marker not in _SKIPPED:
            raise BadStream(f"marker FF{marker:02X} does not belong in a JPEG Lossless stream")
    raise CutShort("the JPEG stream has no scan")


def segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and body of each segment up to the first scan, whose body runs to the end of the stream."""
    if data[:2] != b"\xff\xd8":
        raise BadStream("the stream does not begin with a JPEG start marker")
    at = 2
    while at + 4 <= len(data):
        start, marker, length = struct.unpack_from(">BBH", data, at)
        if start != 0xFF or length < 2:
            raise BadStream(f"byte {at:,} of the JPEG stream begins no segment")
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == _SOS and (length, data[at + 4 : at + 5]) != (8, b"\x01"):
            raise BadStream(f"a scan header of {length} bytes; that of one component has 8, and says so")
        yield marker, data[at + 4 :] if marker == _SOS else data[at + 4 : at + 2 + length]
        if marker == _SOS:
            return
        at += 2 + length


def frame_precision(body: bytes, rows: int, columns: int) -> int:
    """Bits a sample by a frame header (T.81 B.2.2); refuses another size, or more than one component."""
    if len(body) != 9:
        raise BadStream(f"a JPEG frame header of {len(body)} bytes; one grey component takes 9")
    precision, height, width, components = struct.unpack_from(">BHHB", body)
    if (height, width, components) != (rows, columns, 1):
        raise BadStream(f"the codestream holds {height} x {width} x {components}, not {rows} x {columns} x 1")
    if not 2 <= precision <= 16:
        raise BadStream(f"the codestream has {precision} bits a sample")
    return int(precision)


def _huffman_tables(body: bytes) -> dict[int, Huffman]:
    """Tables of a DHT segment by their number (T.81 B.2.4.2, C.2)."""
    tables, at = {}, 0
    while at < len(body):
        counts, place = body[at + 1 : at + 17], body[at]
        symbols = body[at + 17 : at + 17 + sum(counts)]
        if len(counts) < 16 or len(symbols) < sum(counts) or any(symbol > 16 for symbol in symbols):
            raise BadStream("a damaged Huffman table")
        tables[place] = _huffman(counts, symbols)
        at += 17 + sum(counts)
    return tables


def _huffman(counts: bytes, symbols: bytes) -> Huffman:
    lengths = np.repeat(np.arange(1, 17, dtype=np.uint8), list(counts))
    spans = 1 << (16 - lengths.astype(np.int64))
    if spans.sum() > 1 << 16:
        raise BadStream("a Huffman table with more codes than there are")
    length, category = np.zeros(1 << 16, np.uint8), np.zeros(1 << 16, np.uint8)
    length[: spans.sum()] = np.repeat(lengths, spans)
    category[: spans.sum()] = np.repeat(np.frombuffer(symbols, np.uint8), spans)
    return Huffman(length, category)


def _restart_rows(body: bytes, rows: int, columns: int) -> int:
    """Rows between two restart markers, 0 for none (T.81 H.1.1: a whole number of rows)."""
    interval = int.from_bytes(body, "big")
    if len(body) != 2 or interval % columns:
        raise BadStream(f"a restart interval of {interval} samples in rows of {columns}")
    return min(interval // columns, rows)


def _scan(
    body: bytes,
    tables: dict[int, Huffman],
    precision: int,
    restart_rows: int,
    shape: tuple[int, int],
    bits_allocated: int,
) -> npt.NDArray[np.unsignedinteger]:
    """Cells of the one scan: `body` is its header (T.81 B.2.3), without the length, and all that follows."""
    if len(body) < 6:
        raise CutShort("the JPEG stream ends inside its scan header")
    table, selection, shift = tables.get(body[2] >> 4), body[3], body[5] & 15
    if table is None or not 1 <= selection <= 7 or not shift < precision <= bits_allocated:
        raise BadStream(f"a scan of {precision} bits, predictor {selection}, point transform {shift}")
    bands, rows, forms, parts = [], shape[0], _forms(), _intervals(body[6:])
    tops = range(0, rows, restart_rows)
    if behind := sum(map(len, parts[len(tops) :])):
        raise BadStream(f"{behind:,} entropy-coded bytes stand behind the last row")
    for top, part in zip(tops, parts, strict=False):
        size = (min(restart_rows, rows - top), shape[1])
        differences = _differences(forms, part, table, size[0] * size[1]).reshape(size)
        bands.append(forms.undo(differences, selection, 1 << (precision - shift - 1)))
    cells = np.concatenate(bands) if bands else np.empty((0, shape[1]), np.uint16)
    if cells.shape != shape:
        raise CutShort(f"the JPEG stream holds {len(cells)} of {rows} rows")
    cells <<= np.uint16(shift)
    _check_range(cells, precision)
    return cells.astype(f"u{bits_allocated // 8}", copy=False)


def _check_range(cells: UInt16, precision: int) -> None:
    """Refuse samples that need more bits than the stream has; a negative one may have its sign in all sixteen."""
    if cells.max() < 1 << precision:
        return
    beyond = cells[(cells >= 1 << precision) & (cells < (1 << 16) - (1 << precision - 1))]
    if beyond.size:
        raise BadStream(f"samples of up to {beyond.max():,} in a stream of {precision} bits")


def _forms() -> Forms:
    """The fastest form that there is."""
    found = jpeg_compiled.forms()
    return _NUMPY if isinstance(found, str) else found


def _intervals(data: bytes) -> list[bytes]:
    """Entropy-coded bytes between restart markers, up to the end marker or all there are, stuffed zeros removed."""
    coded, parts, begin = np.frombuffer(data, np.uint8), [], 0
    for at in np.flatnonzero((coded[:-1] == 0xFF) & (coded[1:] != 0) & (coded[1:] != 0xFF)).tolist():
        parts.append(_unstuffed(data[begin:at].rstrip(b"\xff")))  # fill bytes (T.81 B.1.1.2)
        marker, begin = data[at + 1], at + 2
        if marker not in _RESTARTS:
            if marker != _EOI:
                raise BadStream(f"marker FF{marker:02X} inside the scan")
            return parts
    # half an end marker, or the byte that fills up to even length: a zero could also stand where a lost one stood
    spare = data.endswith((b"\xff", b"\x00")) and not data.endswith(b"\xff\x00")
    return [*parts, _unstuffed(data[begin : len(data) - spare])]


def _unstuffed(coded: bytes) -> bytes:
    if b"\xff\xff" in coded:  # of which decoders make one byte, two, or the end
        raise BadStream("a byte FF among the entropy-coded ones without a stuffed zero")
    return coded.replace(b"\xff\x00", b"\xff")


def _differences(forms: Forms, data: bytes, table: Huffman, count: int) -> UInt16:
    """The first `count` differences, modulo 2**16, of an entropy-coded interval that holds no more than these."""
    if 8 * len(data) < count:
        raise CutShort(f"{len(data):,} entropy-coded bytes for {count:,} samples")
    coded = forms.read(data, table, count)
    if coded.bits == NO_CODE:
        raise BadStream("a bit pattern that is no Huffman code")
    if coded.samples < count:
        raise CutShort(f"the entropy-coded data end after {coded.samples:,} of {count:,} samples")
    spare_bits = 8 * len(data) - coded.bits
    if spare_bits < 0:
        raise CutShort("the entropy-coded data end inside the last difference")
    if spare_bits > _MOST_SPARE_BITS:
        raise BadStream(f"{spare_bits:,} entropy-coded bits are left over")
    return coded.differences
