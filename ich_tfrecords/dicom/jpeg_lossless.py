"""Cells of a JPEG Lossless frame (ITU-T T.81, process 14), the usual compression of CT, in numpy alone.

Written here because the free C decoder (gdcm) ends the whole process on some damaged streams, stalls on
others, and returns noise for a stream that was cut. Here each of these is an exception. The Huffman steps
are looked up for every bit position at once, so that the one sequential loop only adds.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ich_tfrecords.dicom.cells import Samples

_SOF3, _DHT, _SOS, _DRI, _DNL, _EOI = 0xC3, 0xC4, 0xDA, 0xDD, 0xDC, 0xD9
_SKIPPED = frozenset((*range(0xE0, 0xF0), 0xFE))  # APPn, COM
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_MOST_SPARE_BITS = 16  # padding takes 7 at most; some writers add a byte
_RESTARTS = bytes(range(0xD0, 0xD8))

UInt16 = npt.NDArray[np.uint16]


class BadStream(ValueError):
    """A codestream that contradicts itself, the DICOM header, or what is supported."""


class CutShort(BadStream):
    """A codestream that ends before its frame does."""


class _Huffman(NamedTuple):
    """By the next 16 bits: length of the code (0: no such code) and the category it stands for."""

    length: npt.NDArray[np.uint8]
    category: npt.NDArray[np.uint8]


def decode(data: bytes, rows: int, columns: int, bits_allocated: int) -> Samples:
    """Samples [rows, columns] of a codestream, which says nothing of a sign.

    The end marker may lack, for the bits themselves tell whether every sample came. Raises `BadStream`, `CutShort`
    for a damaged one.
    """
    tables: dict[int, _Huffman] = {}
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


def _huffman_tables(body: bytes) -> dict[int, _Huffman]:
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


def _huffman(counts: bytes, symbols: bytes) -> _Huffman:
    lengths = np.repeat(np.arange(1, 17, dtype=np.uint8), list(counts))
    spans = 1 << (16 - lengths.astype(np.int64))
    if spans.sum() > 1 << 16:
        raise BadStream("a Huffman table with more codes than there are")
    length, category = np.zeros(1 << 16, np.uint8), np.zeros(1 << 16, np.uint8)
    length[: spans.sum()] = np.repeat(lengths, spans)
    category[: spans.sum()] = np.repeat(np.frombuffer(symbols, np.uint8), spans)
    return _Huffman(length, category)


def _restart_rows(body: bytes, rows: int, columns: int) -> int:
    """Rows between two restart markers, 0 for none (T.81 H.1.1: a whole number of rows)."""
    interval = int.from_bytes(body, "big")
    if len(body) != 2 or interval % columns:
        raise BadStream(f"a restart interval of {interval} samples in rows of {columns}")
    return min(interval // columns, rows)


def _scan(
    body: bytes,
    tables: dict[int, _Huffman],
    precision: int,
    restart_rows: int,
    shape: tuple[int, int],
    bits_allocated: int,
) -> npt.NDArray[np.unsignedinteger]:
    """Cells of the one scan: `body` is its header (T.81 B.2.3), without the length, and all that follows."""
    if len(body) < 6 or body[0] != 1:
        raise BadStream("the scan does not hold one component")
    table, selection, shift = tables.get(body[2] >> 4), body[3], body[5] & 15
    if table is None or not 1 <= selection <= 7 or not shift < precision <= bits_allocated:
        raise BadStream(f"a scan of {precision} bits, predictor {selection}, point transform {shift}")
    bands, rows = [], shape[0]
    for top, part in zip(range(0, rows, restart_rows), _intervals(body[6:]), strict=False):
        size = (min(restart_rows, rows - top), shape[1])
        differences = _differences(part, table, size[0] * size[1]).reshape(size)
        bands.append(_undo(differences, selection, 1 << (precision - shift - 1)))
    cells = np.concatenate(bands) if bands else np.empty((0, shape[1]), np.uint16)
    if cells.shape != shape:
        raise CutShort(f"the JPEG stream holds {len(cells)} of {rows} rows")
    return (cells << np.uint16(shift)).astype(f"u{bits_allocated // 8}", copy=False)


def _intervals(data: bytes) -> list[bytes]:
    """Entropy-coded bytes between restart markers, up to the end marker or all there are, stuffed zeros removed."""
    parts, begin = [], 0
    for found in _MARKER.finditer(data):
        parts.append(data[begin : found.start()].replace(b"\xff\x00", b"\xff"))
        begin = found.end()
        if found[1] not in _RESTARTS:
            if found[1][0] != _EOI:
                raise BadStream(f"marker FF{found[1].hex().upper()} inside the scan")
            return parts
    # half an end marker, or the byte that fills up to even length: a zero could also stand where a lost one stood
    spare = data.endswith((b"\xff", b"\x00")) and not data.endswith(b"\xff\x00")
    return [*parts, data[begin : len(data) - spare].replace(b"\xff\x00", b"\xff")]


def _differences(data: bytes, table: _Huffman, count: int) -> UInt16:
    """The first `count` differences, modulo 2**16, of one entropy-coded interval (T.81 H.1.2.2)."""
    if 8 * len(data) < count:
        raise CutShort(f"{len(data):,} entropy-coded bytes for {count:,} samples")
    packed = np.frombuffer(data + bytes(8), np.uint8).astype(np.uint32)
    words = packed[:-3] << 24 | packed[1:-2] << 16 | packed[2:-1] << 8 | packed[3:]
    next_16 = np.empty((len(data), 8), np.uint16)
    for bit in range(8):
        next_16[:, bit] = words[: len(data)] >> np.uint32(16 - bit)
    extra_bits = np.where(table.category == 16, 0, table.category)
    starts = _starts((table.length + extra_bits)[next_16].tobytes(), count)
    window = next_16.reshape(-1)[starts]
    length, category = table.length[window].astype(np.int64), table.category[window].astype(np.int64)
    if not length.all():
        raise BadStream("a bit pattern that is no Huffman code")
    at = starts + length
    spare_bits = 8 * len(data) - at[-1] - category[-1] % 16
    if spare_bits < 0:
        raise CutShort("the entropy-coded data end inside the last difference")
    if spare_bits > _MOST_SPARE_BITS:
        raise BadStream(f"{spare_bits:,} entropy-coded bits are left over")
    wide = words[at >> 3].astype(np.int64) << (at & 7) & 0xFFFFFFFF
    value = wide >> (32 - category)
    negative = value < (1 << category >> 1)
    difference = np.where(negative, value - (1 << category) + 1, value)
    return np.where(category == 16, 1 << 15, difference).astype(np.uint16)


def _starts(steps: bytes, count: int) -> npt.NDArray[np.int64]:
    """Bit positions at which `count` codes begin; `steps` has the bits to the next one for each position."""
    starts, at = [0] * count, 0
    try:
        for place in range(count):
            starts[place] = at
            at += steps[at]
    except IndexError:
        raise CutShort(f"the entropy-coded data end after {place:,} of {count:,} samples") from None
    return np.array(starts, np.int64)


def _undo(differences: UInt16, selection: int, first: int) -> UInt16:
    """Cells of differences [rows, columns] under one of the seven predictors (T.81 table H.1), modulo 2**16.

    The first row is predicted from the left, the first column from above. Sums wrap as the standard's do.
    """
    cells = differences.copy()
    cells[:1, :1] += np.uint16(first)
    if selection == 1:
        cells[:, 0] = np.cumsum(cells[:, 0], dtype=np.uint16)
        return np.cumsum(cells, axis=1, dtype=np.uint16)
    cells[0] = np.cumsum(cells[0], dtype=np.uint16)
    for row in range(1, len(cells)):
        above = cells[row - 1].astype(np.int64)
        cells[row] = _undo_row(cells[row].astype(np.int64), above, selection)
    return cells


def _undo_row(row: npt.NDArray[np.int64], above: npt.NDArray[np.int64], selection: int) -> npt.NDArray[np.uint16]:
    row[0] += above[0]
    if selection in (6, 7):
        return _undo_row_in_turn(row.tolist(), above.tolist(), selection)
    if selection in (2, 3):
        row[1:] += above[1:] if selection == 2 else above[:-1]
        return row.astype(np.uint16)
    slope = np.diff(above)
    row[1:] += slope if selection == 4 else slope >> 1
    return np.cumsum(row).astype(np.uint16)


def _undo_row_in_turn(row: list[int], above: list[int], selection: int) -> npt.NDArray[np.uint16]:
    """Predictors 6 and 7 halve a sum with the left neighbour, so they go cell by cell."""
    left = row[0] = row[0] & 0xFFFF
    for column in range(1, len(row)):
        if selection == 6:
            guess = above[column] + ((left - above[column - 1]) >> 1)
        else:
            guess = (left + above[column]) >> 1
        left = row[column] = (row[column] + guess) & 0xFFFF
    return np.array(row, np.uint16)
