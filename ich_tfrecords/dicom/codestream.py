"""Samples of one compressed grey frame: RLE, JPEG Lossless, JPEG-LS, JPEG 2000 and HTJ2K.

Codestreams of damaged files crash, stall or inflate most C decoders. So each stream must say the size that
the DICOM header says, and must be there to its end, before a C decoder sees it. The end is found by the structure of
the stream: its marker may lack, and other bytes may follow. JPEG Lossless and RLE are decoded by our own code.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from ich_tfrecords.dicom import jpeg_lossless
from ich_tfrecords.dicom.cells import Samples
from ich_tfrecords.dicom.header import RLE
from ich_tfrecords.dicom.jpeg_lossless import BadStream, CutShort

__all__ = ["DECODERS", "JPEG_LOSSLESS", "BadStream", "CutShort"]

Decoder = Callable[[bytes, int, int, int], Samples]

_END = b"\xff\xd9"  # EOI of JPEG and JPEG-LS, EOC of JPEG 2000
_BEGIN_2000 = b"\xff\x4f\xff\x51"  # SOC and SIZ
_SIZ = struct.Struct(">HH8LHBBB")
_SOT = struct.Struct(">HHHLBB")
_TILE_PART = 0xFF90
_LOST_END = (b"", b"\0", b"\xff", b"\xff\0")  # what stands in place of a lost end marker: a half, and even length
_LSE_SIZE = 4  # kind of LSE segment (T.87 C.2.4.1.4) that overrules the size in the frame header
_LS_MARKER = re.compile(rb"\xff([\x80-\xff])")  # behind FF the coded bits go on with a zero bit (T.87 A.1)
_MOST_ZEROS = 4  # bytes that some writers put between the coded bits and the end marker


def rle(data: bytes, rows: int, columns: int, bits_allocated: int) -> Samples:
    """Samples of an RLE frame (PS3.5 G): one PackBits segment for each byte, highest first."""
    count, *offsets = struct.unpack_from("<16L", data)
    if count != bits_allocated // 8:
        raise BadStream(f"the RLE frame has {count} segments for cells of {bits_allocated} bits")
    ends = [*offsets[1:count], len(data)]
    planes = [_unpacked(data[begin:end], rows * columns) for begin, end in zip(offsets, ends)]
    cells = np.zeros(rows * columns, f"u{count}")
    for plane in planes:
        cells = (cells << np.uint8(8 * (count > 1))) | np.frombuffer(plane, np.uint8)
    return Samples(cells.astype(f"u{count}", copy=False).reshape(rows, columns), bits_allocated, False)


def _unpacked(segment: bytes, size_bytes: int) -> bytes:
    out, at = bytearray(), 0
    while len(out) < size_bytes:
        if at + 1 >= len(segment):
            raise CutShort(f"an RLE segment ends after {len(out):,} of {size_bytes:,} bytes")
        count = segment[at]
        if count < 128:
            out += segment[at + 1 : at + 2 + count]
            at += 2 + count
        else:
            out += segment[at + 1 : at + 2] * ((257 - count) % 129)  # 128 stands for nothing
            at += 2 if count > 128 else 1
    return bytes(out[:size_bytes])


def jpeg_ls(data: bytes, rows: int, columns: int, bits_allocated: int) -> Samples:
    """Samples of a JPEG-LS codestream (ITU-T T.87), lossless or near-lossless."""
    segments = list(jpeg_lossless.segments(data))
    frames = [body for marker, body in segments if marker == 0xF7]
    if len(frames) != 1 or any(marker == 0xF8 and body[:1] == bytes([_LSE_SIZE]) for marker, body in segments):
        raise BadStream("the JPEG-LS stream has no frame header, or more than one")
    precision = jpeg_lossless.frame_precision(frames[0], rows, columns)
    if precision > bits_allocated:
        raise BadStream(f"the codestream has {precision} bits a sample, the cells {bits_allocated}")
    marker, scan = segments[-1]
    if marker != 0xDA or len(scan) < 6:
        raise CutShort("the JPEG-LS stream has no scan")
    coded, is_ended = _coded_ls(scan)
    pixels = _decoded_ls(data[: len(data) - len(scan)], coded, is_ended)
    return _samples(pixels, precision, False, rows, columns)._replace(near=scan[3])  # NEAR of T.87 C.2.3


def _coded_ls(scan: bytes) -> tuple[bytes, bool]:
    """Header and coded bits of a scan with what follows it, and whether a marker ends them (no restart does)."""
    for found in _LS_MARKER.finditer(scan):
        if found[1][0] & 0xF8 != 0xD0:
            return scan[: found.start()], True
    # what fills up to even length, which could also stand where a lost byte stood, and half an end marker
    return scan.removesuffix(b"\0").removesuffix(b"\xff"), False


def _decoded_ls(head: bytes, coded: bytes, is_ended: bool) -> bytes:
    """Samples as bytes. CharLS says whether they end with the coded bits, so zeros behind those are tried away."""
    import jpeg_ls as charls  # type: ignore[import-untyped]

    zeros = len(coded) - len(coded.rstrip(b"\0"))
    for spare in range(min(zeros, _MOST_ZEROS) + 1):
        try:
            # without an end marker CharLS reads on for ever
            pixels, _ = charls.decode_pixel_data(head + coded[: len(coded) - spare] + _END)
            return bytes(pixels)
        except RuntimeError as error:
            refused = error
    if not is_ended:
        raise CutShort(f"the JPEG-LS stream ends after {len(coded):,} coded bytes, without every sample") from refused
    raise BadStream("the coded bits of the JPEG-LS stream do not fit its samples") from refused


def jpeg_2000(data: bytes, rows: int, columns: int, bits_allocated: int) -> Samples:
    """Samples of a JPEG 2000 or HTJ2K codestream (ITU-T T.800, T.814), also within a JP2 file."""
    import openjpeg.utils

    data = _codestream_2000(data)
    _, _, right, bottom, left, top, tile_width, tile_height, _, _, parts, depth, *steps = _SIZ.unpack_from(data, 4)
    if (bottom - top, right - left, parts, steps) != (rows, columns, 1, [1, 1]):
        raise BadStream(f"the codestream holds {bottom - top} x {right - left} x {parts}, not {rows} x {columns} x 1")
    precision, signed = (depth & 0x7F) + 1, depth > 0x7F
    if precision > bits_allocated or 0 in (tile_width, tile_height):
        raise BadStream(f"the codestream has {precision} bits in tiles of {tile_height} x {tile_width}")
    pixels = openjpeg.utils.decode_pixel_data(_ended_2000(data), version=2)
    return _samples(bytes(pixels), precision, signed, rows, columns)


def _codestream_2000(data: bytes) -> bytes:
    """The codestream and what follows it, out of the boxes of a JP2 file (T.800 I.4) where there are any."""
    at = 0
    while data[at : at + 4] != _BEGIN_2000:
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        head = 8 if size != 1 else 16  # 1: the size follows in eight bytes; 0: the box runs to the end
        size = int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else size
        if not kind.isascii() or len(kind) < 4 or (kind != b"jp2c" and size < head):
            raise BadStream("no JPEG 2000 codestream")
        at += head if kind == b"jp2c" else size
    return data[at:]


def _ended_2000(data: bytes) -> bytes:
    """The codestream up to its end marker, which is added where every tile part is there and only it lacks.

    No tile part ends with FF, and a zero there may fill up what was lost, so with these nothing can be told.
    """
    end, is_whole, is_told = _tile_parts_2000(data)
    if is_whole and is_told and data[end:] in _LOST_END and data[end - 1] not in b"\0\xff":
        return data[:end] + _END
    if not is_whole or data[end : end + 2] != _END:
        raise CutShort(f"the codestream of {len(data):,} bytes has no end marker behind all of its tile parts")
    return data[: end + 2]


def _tile_parts_2000(data: bytes) -> tuple[int, bool, bool]:
    """Where the tile parts end by their own lengths (T.800 A.4.2), whether none lacks, and whether each was told of."""
    _, _, right, bottom, _, _, width, height, tiles_left, tiles_top = _SIZ.unpack_from(data, 4)[:10]
    tiles = -(-(right - tiles_left) // width) * -(-(bottom - tiles_top) // height)
    walked = list(_walk_2000(data))
    found = Counter(tile for _, tile, _ in walked)
    told = {tile: parts for _, tile, parts in walked if parts}
    end = walked[-1][0] if walked else 0
    is_whole = len(found) == tiles and end <= len(data) and all(found[tile] >= told[tile] for tile in told)
    return end, is_whole, found.keys() == told.keys()


def _walk_2000(data: bytes) -> Iterator[tuple[int, int, int]]:
    """End of each tile part, its tile, and how many parts that tile has (0: not told here)."""
    at = 2
    while at + _SOT.size <= len(data):
        marker, size, tile, part_bytes, _, parts = _SOT.unpack_from(data, at)
        if marker == _TILE_PART:
            if not part_bytes:  # up to the end marker
                part_bytes = len(data.rstrip(b"\0")) - len(_END) - at
            if part_bytes < 14:
                return
            at += part_bytes
            yield at, tile, parts
        elif 0xFF4F < marker <= 0xFF8F:  # a segment of the main header
            at += 2 + size
        else:
            return


def _samples(data: bytes, precision: int, signed: bool, rows: int, columns: int) -> Samples:
    """Samples out of little-endian bytes, one for each up to 8 bits of precision."""
    values = np.frombuffer(data, f"<{'i' if signed else 'u'}{1 if precision <= 8 else 2}")
    if values.size != rows * columns:
        raise BadStream(f"decoded to {values.size:,} samples, the matrix has {rows * columns:,}")
    return Samples(values.reshape(rows, columns), precision, signed)


JPEG_LOSSLESS = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_JPEG_2000 = ("90", "91", "201", "202", "203")
DECODERS: dict[str, Decoder] = {
    RLE: rle,
    **dict.fromkeys(JPEG_LOSSLESS, jpeg_lossless.decode),
    "1.2.840.10008.1.2.4.80": jpeg_ls,
    "1.2.840.10008.1.2.4.81": jpeg_ls,
    **{f"1.2.840.10008.1.2.4.{number}": jpeg_2000 for number in _JPEG_2000},
}
