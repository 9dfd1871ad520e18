"""Codestreams for tests, written step by step: RLE frames, and JPEG Lossless of any precision."""

from __future__ import annotations

import struct

import numpy as np


def rle(stored: np.ndarray) -> bytes:
    """RLE frame with literal runs, no-ops (128) and repeats."""
    planes = [(stored >> shift & 255).astype(np.uint8).tobytes() for shift in range(8 * stored.itemsize - 8, -1, -8)]
    packed = [b"".join(run(plane[at : at + 50]) for at in range(0, len(plane), 50)) for plane in planes]
    offsets = [64, 64 + len(packed[0]), *[0] * 13][:15]
    return struct.pack("<16L", len(planes), *offsets) + b"".join(packed)


def run(part: bytes) -> bytes:
    same = len(part) > 1 and len(set(part)) == 1
    return b"\x80" + (bytes([257 - len(part), part[0]]) if same else bytes([len(part) - 1]) + part)


def predicted(cells: np.ndarray, row: int, column: int, selection: int, first: int) -> int:
    """Prediction of one cell (T.81 table H.1), restarting at row 0."""
    left = int(cells[row, column - 1]) if column else 0
    above = int(cells[row - 1, column]) if row else 0
    corner = int(cells[row - 1, column - 1]) if row and column else 0
    if row == 0:
        return left if column else first
    if column == 0:
        return above
    return [
        left,
        above,
        corner,
        left + above - corner,
        left + ((above - corner) >> 1),
        above + ((left - corner) >> 1),
        (left + above) >> 1,
    ][selection - 1]


def jpeg(cells: np.ndarray, precision: int, selection: int, shift: int = 0, restart_rows: int = 0) -> bytes:
    """JPEG Lossless stream with a flat Huffman table: category k has the 5-bit code k."""
    rows, columns = cells.shape
    head = b"\xff\xd8" + segment(0xFE, b"made for a test")
    head += segment(0xC4, bytes([0, *[0] * 4, 17, *[0] * 11, *range(17)]))
    head += segment(0xC3, struct.pack(">BHHB3B", precision, rows, columns, 1, 1, 0x11, 0))
    if restart_rows:
        head += segment(0xDD, struct.pack(">H", restart_rows * columns))
    head += segment(0xDA, bytes([1, 1, 0, selection, 0, shift]))
    step, parts = restart_rows or rows, []
    for top in range(0, rows, step):
        band = cells[top : top + step] >> shift
        parts.append(entropy(band, selection, 1 << (precision - shift - 1)))
    joined = parts[0]
    for number, part in enumerate(parts[1:]):
        joined += bytes([0xFF, 0xD0 + number % 8]) + part
    return head + joined + b"\xff\xd9"


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def entropy(band: np.ndarray, selection: int, first: int) -> bytes:
    bits = []
    for row in range(band.shape[0]):
        for column in range(band.shape[1]):
            difference = (int(band[row, column]) - predicted(band, row, column, selection, first)) & 0xFFFF
            signed = difference - 65536 if difference > 32768 else difference
            category = abs(signed).bit_length() if signed != 32768 else 16
            bits.append(f"{category:05b}")
            if 0 < category < 16:
                bits.append(f"{signed if signed > 0 else signed + (1 << category) - 1:0{category}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")
