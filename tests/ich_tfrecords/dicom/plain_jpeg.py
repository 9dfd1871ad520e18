"""JPEG Lossless by the flow charts of ITU-T T.81, bit by bit: what both of our forms are held against."""

from __future__ import annotations

import re
import struct

import numpy as np
from codestreams import predicted

MOST_SPARE_BITS = 16
RESTARTS = range(0xD0, 0xD8)
CODED = re.compile(rb"(?:[^\xff]|\xff\x00)*")


def decoded(stream: bytes) -> np.ndarray:
    """Cells uint16 [rows, columns] of a stream of one component.

    Raises for whatever a chart has no way on from, and where bits are left over or another marker ends the scan.
    """
    at, interval, found = 2, 0, {}
    while 0xDA not in found:
        while stream[at + 1] == 0xFF:  # a fill byte
            at += 1
        length = int.from_bytes(stream[at + 2 : at + 4], "big")
        found[stream[at + 1]], at = stream[at + 4 : at + 2 + length], at + 2 + length
        if 0xC4 in found:
            codes = huffman_codes(found.pop(0xC4))
    precision, rows, columns = struct.unpack(">BHH", found[0xC3][:5])
    interval = int.from_bytes(found.get(0xDD, b""), "big") or rows * columns
    selection, first = found[0xDA][3], 1 << (precision - (found[0xDA][5] & 15) - 1)
    bits, cells, top = Bits(stream[at:]), np.zeros((rows, columns), np.uint16), 0
    for number in range(rows * columns):
        row, column = divmod(number, columns)
        if number and number % interval == 0:
            assert bits.marker() in RESTARTS
            top = row
        guess = predicted(cells[top:], row - top, column, selection, first)
        cells[row, column] = (guess + bits.difference(codes)) & 0xFFFF
    while (marker := bits.marker()) in RESTARTS:
        assert not bits.count
    assert marker in (0xD9, None)
    return cells << (found[0xDA][5] & 15)


def huffman_codes(body: bytes) -> dict[tuple[int, int], int]:
    """Category by length and value of its code (T.81 C.1, C.2), of the last table in a segment."""
    while body:
        codes, code, at = {}, 0, 17
        for length, count in enumerate(body[1:17], 1):
            for _ in range(count):
                codes[length, code] = body[at]
                at, code = at + 1, code + 1
            code <<= 1
        body = body[at:]
    return codes


class Bits:
    """The entropy-coded bits of a scan, one at a time (T.81 F.18)."""

    def __init__(self, coded: bytes) -> None:
        self.coded, self.at = coded, 0
        self._begin()

    def _begin(self) -> None:
        whole = CODED.match(self.coded, self.at)[0]
        self.at += len(whole)
        data = whole.replace(b"\xff\x00", b"\xff")
        self.count = 8 * len(data)
        self.bits = iter("".join(f"{byte:08b}" for byte in data))

    def next(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = value << 1 | int(next(self.bits))
        return value

    def difference(self, codes: dict[tuple[int, int], int]) -> int:
        """One difference (T.81 H.1.2.2, F.12: EXTEND)."""
        length, code = 1, self.next(1)
        while (length, code) not in codes:
            if length == 16:
                raise ValueError("no code")
            length, code = length + 1, code << 1 | self.next(1)
        category = codes[length, code]
        if category == 16:
            return 1 << 15
        value = self.next(category)
        return value if value >= 1 << category >> 1 else value - (1 << category) + 1

    def marker(self) -> int | None:
        """The marker behind the interval that is read, None at the end of the stream."""
        rest = self.coded[self.at :].lstrip(b"\xff")
        assert len(list(self.bits)) <= MOST_SPARE_BITS + (0 if rest else 8)  # a zero may stand for half a lost marker
        self.at = len(self.coded) - len(rest) + 1
        self._begin()
        return rest[0] if rest else None
