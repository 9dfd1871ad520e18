"""Unsigned cells of one compressed grey frame: RLE, JPEG Lossless, JPEG-LS, JPEG 2000 and HTJ2K.

Codestreams of damaged files crash, stall or inflate most C decoders. So each stream must say the size that
the DICOM header says, and must reach its end marker, before a C decoder sees it. JPEG Lossless and RLE are
decoded in numpy.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ich_tfrecords import jpeg_lossless
from ich_tfrecords.jpeg_lossless import BadStream, CutShort

__all__ = ["DECODERS", "BadStream", "CutShort"]

Cells = npt.NDArray[np.unsignedinteger]
Decoder = Callable[[bytes, int, int, int], Cells]

_END = b"\xff\xd9"  # EOI of JPEG and JPEG-LS, EOC of JPEG 2000
_SIZ = struct.Struct(">HH8LHBBB")
_LSE_SIZE = 4  # kind of LSE segment (T.87 C.2.4.1.4) that overrules the size in the frame header


def rle(data: bytes, rows: int, columns: int, bits_allocated: int) -> Cells:
    """Cells [rows, columns] of an RLE frame (PS3.5 G): one PackBits segment for each byte, highest first."""
    count, *offsets = struct.unpack_from("<16L", data)
    if count != bits_allocated // 8:
        raise BadStream(f"the RLE frame has {count} segments for cells of {bits_allocated} bits")
    ends = [*offsets[1:count], len(data)]
    planes = [_unpacked(data[begin:end], rows * columns) for begin, end in zip(offsets, ends)]
    cells = np.zeros(rows * columns, f"u{count}")
    for plane in planes:
        cells = (cells << np.uint8(8 * (count > 1))) | np.frombuffer(plane, np.uint8)
    return cells.astype(f"u{count}", copy=False).reshape(rows, columns)


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


def jpeg_ls(data: bytes, rows: int, columns: int, bits_allocated: int) -> Cells:
    """Cells [rows, columns] of a JPEG-LS codestream (ITU-T T.87), lossless or near-lossless."""
    import jpeg_ls as charls  # type: ignore[import-untyped]

    data = _ended(data)
    segments = list(jpeg_lossless.segments(data))
    frames = [body for marker, body in segments if marker == 0xF7]
    if len(frames) != 1 or any(marker == 0xF8 and body[:1] == bytes([_LSE_SIZE]) for marker, body in segments):
        raise BadStream("the JPEG-LS stream has no frame header, or more than one")
    precision = jpeg_lossless.frame_precision(frames[0], rows, columns)
    pixels, _ = charls.decode_pixel_data(data)
    return _cells(bytes(pixels), precision, False, rows, columns, bits_allocated)


def jpeg_2000(data: bytes, rows: int, columns: int, bits_allocated: int) -> Cells:
    """Cells [rows, columns] of a JPEG 2000 or HTJ2K codestream (ITU-T T.800, T.814), also within a JP2 file."""
    import openjpeg.utils

    data = _ended(data[max(data.find(b"\xff\x4f\xff\x51"), 0) :])
    if data[:4] != b"\xff\x4f\xff\x51":
        raise BadStream("no JPEG 2000 codestream")
    _, _, right, bottom, left, top, tile_width, tile_height, _, _, parts, depth, *steps = _SIZ.unpack_from(data, 4)
    if (bottom - top, right - left, parts, steps) != (rows, columns, 1, [1, 1]):
        raise BadStream(f"the codestream holds {bottom - top} x {right - left} x {parts}, not {rows} x {columns} x 1")
    precision, signed = (depth & 0x7F) + 1, depth > 0x7F
    if precision > bits_allocated or 0 in (tile_width, tile_height):
        raise BadStream(f"the codestream has {precision} bits in tiles of {tile_height} x {tile_width}")
    pixels = openjpeg.utils.decode_pixel_data(data, version=2)
    return _cells(bytes(pixels), precision, signed, rows, columns, bits_allocated)


def _ended(data: bytes) -> bytes:
    """The stream up to its end marker; without one it was cut, and CharLS would read on for ever."""
    data = data.rstrip(b"\0")
    if not data.endswith(_END):
        raise CutShort(f"the codestream of {len(data):,} bytes has no end marker")
    return data


def _cells(data: bytes, precision: int, signed: bool, rows: int, columns: int, bits_allocated: int) -> Cells:
    """Cells of decoded little-endian samples, which come in one byte up to 8 bits of precision."""
    samples = np.frombuffer(data, f"<{'i' if signed else 'u'}{1 if precision <= 8 else 2}")
    if samples.size != rows * columns:
        raise BadStream(f"decoded to {samples.size:,} samples, the matrix has {rows * columns:,}")
    width = bits_allocated // 8
    return samples.astype(f"{'i' if signed else 'u'}{width}", copy=False).view(f"u{width}").reshape(rows, columns)


_JPEG_2000 = ("90", "91", "201", "202", "203")
DECODERS: dict[str, Decoder] = {
    "1.2.840.10008.1.2.5": rle,
    "1.2.840.10008.1.2.4.57": jpeg_lossless.decode,
    "1.2.840.10008.1.2.4.70": jpeg_lossless.decode,
    "1.2.840.10008.1.2.4.80": jpeg_ls,
    "1.2.840.10008.1.2.4.81": jpeg_ls,
    **{f"1.2.840.10008.1.2.4.{number}": jpeg_2000 for number in _JPEG_2000},
}
