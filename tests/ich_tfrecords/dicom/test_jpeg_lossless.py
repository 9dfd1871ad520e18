"""JPEG Lossless, compiled and in numpy, beside flow charts of the standard and gdcm: whole streams and damaged ones.

By hand, longer: `PYTHONPATH=.:tests/shared python tests/ich_tfrecords/dicom/test_jpeg_lossless.py COUNT SEED` damages
COUNT streams and shows every picture to gdcm too.
"""

from __future__ import annotations

import json
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import plain_jpeg
import pytest
from codestreams import jpeg
from dicom_files import JPEG_LOSSLESS_SV1, compressed_file, encapsulated, head_slice, slice_elements
from gdcm_process import STALL_S, Gdcm
from hypothesis import given, settings

from ich_tfrecords.dicom import jpeg_compiled, jpeg_lossless, jpeg_numpy
from ich_tfrecords.dicom.jpeg_compiled import Forms

NUMPY = Forms(jpeg_numpy.read, jpeg_numpy.undo)
COMPILED = jpeg_compiled.forms()
assert isinstance(COMPILED, Forms), COMPILED
ROWS, COLUMNS = 20, 17


def lengths(draw_from: list[int]) -> bytes:
    """How many codes there are of 1 to 16 bits: as many of the lengths as a prefix code has room for."""
    counts, room = [0] * 16, 1 << 16
    for length in draw_from:
        if (1 << 16 - length) <= room:
            counts[length - 1] += 1
            room -= 1 << 16 - length
    return bytes(counts)


tables = st.lists(st.integers(1, 16), min_size=1, max_size=17).map(lengths)


def table_of(counts: bytes, seed: int) -> jpeg_numpy.Huffman:
    symbols = bytes(random.Random(seed).choices(range(17), k=sum(counts)))
    return jpeg_lossless._huffman(counts, symbols)


@pytest.mark.slow
@given(st.binary(min_size=1, max_size=90), st.integers(1, 200), tables, st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_both_forms_find_the_same_in_any_bits(data, count, counts, seed):
    table = table_of(counts, seed)
    one, other = NUMPY.read(data, table, count), COMPILED.read(data, table, count)
    assert one[1:] == other[1:]
    if one.samples == count and 0 <= one.bits <= 8 * len(data):
        assert np.array_equal(one.differences, other.differences)


@pytest.mark.slow
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 7), st.integers(1, 1 << 15), st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_both_forms_undo_every_predictor(rows, columns, selection, first, seed):
    differences = np.random.default_rng(seed).integers(0, 1 << 16, (rows, columns), dtype=np.uint16)
    before = differences.copy()
    found = COMPILED.undo(differences, selection, first)
    assert found.dtype == np.uint16
    assert np.array_equal(found, NUMPY.undo(differences, selection, first))
    assert np.array_equal(differences, before)


def stream(selection: int, precision: int = 12, shift: int = 0, restart_rows: int = 0, seed: int = 0) -> bytes:
    """A stream of `ROWS` x `COLUMNS` that comes near to a slice: smooth, with noise."""
    cells = head_slice(32, seed, 0, (1 << precision) - 1).astype(np.uint16)[:ROWS, :COLUMNS]
    return jpeg(cells >> shift << shift, precision, selection, shift, restart_rows)


def whole_streams() -> list[bytes]:
    """Every predictor, few and many bits, a point transform, restarts, and a stream of gdcm with tables of its own."""
    ours = [stream(selection, precision) for selection in range(1, 8) for precision in (8, 12, 16)]
    ours += [stream(1, 12, shift=3), stream(1, 16, restart_rows=3), stream(7, 12, restart_rows=1)]
    with tempfile.TemporaryDirectory() as work:
        stored = np.ascontiguousarray(head_slice(32, 1, -900, 1100)[:ROWS, :COLUMNS])
        file = compressed_file(stored, JPEG_LOSSLESS_SV1, 16, Path(work))
    packed = file[file.rindex(b"\xfe\xff\x00\xe0") + 8 :]
    return [*ours, packed[: packed.rindex(b"\xff\xd9") + 2]]


def outcome(forms: Forms, data: bytes) -> np.ndarray | str:
    """The cells, or the words of the refusal."""
    before, jpeg_lossless._forms = jpeg_lossless._forms, lambda: forms
    try:
        return jpeg_lossless.decode(data, ROWS, COLUMNS, 16).values
    except jpeg_lossless.BadStream as error:
        return f"{type(error).__name__}: {error}"
    finally:
        jpeg_lossless._forms = before


@pytest.mark.parametrize("data", whole_streams())
def test_the_flow_charts_give_the_same(data):
    expected = plain_jpeg.decoded(data)
    assert np.array_equal(outcome(COMPILED, data), expected)
    assert np.array_equal(outcome(NUMPY, data), expected)


# --- damage ----------------------------------------------------------------------------------------------------------


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The stream with one to four damages anywhere behind its first marker."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(2, len(out))
        kind = rng.choice(("flip", "flip", "byte", "number", "cut", "tail", "insert", "repeat", "marker"))
        if kind == "flip":
            out[at] ^= 1 << rng.randrange(8)
        elif kind == "byte":
            out[at] = rng.choice((0, 0xFF, 0x7F, rng.randrange(256)))
        elif kind == "number":
            out[at : at + 2] = struct.pack(">H", rng.choice((0, 1, 2, 0x7FFF, 0x8000, 0xFFFF)))
        elif kind == "cut":
            del out[at : at + rng.choice((1, 2, 9))]
        elif kind == "tail":
            del out[at:]
        elif kind == "insert":
            out[at:at] = rng.randbytes(rng.choice((1, 2, 8, 64)))
        elif kind == "repeat":
            out[at:at] = out[at : at + rng.choice((2, 8, 40))]
        else:
            out[at:at] = bytes((0xFF, rng.choice((0, 0xC3, 0xC4, 0xD0, 0xD7, 0xD9, 0xDA, 0xDD, 0xFF))))
        if len(out) < 4:
            break
    return bytes(out)


def file_of(data: bytes) -> bytes:
    """A DICOM file around a stream."""
    return encapsulated(slice_elements(np.zeros((ROWS, COLUMNS), np.uint16)), JPEG_LOSSLESS_SV1, data)


def check(data: bytes, gdcm: Gdcm | None = None) -> list[str]:
    """What becomes of a stream, and what gdcm says to a picture; both forms and the flow charts must give the same."""
    begin = time.perf_counter()
    found = outcome(COMPILED, data)
    assert time.perf_counter() - begin < STALL_S
    plain = outcome(NUMPY, data)
    if isinstance(found, str):
        assert found == plain
        return [found.partition(":")[0]]
    assert np.array_equal(found, plain)
    assert np.array_equal(found, plain_jpeg.decoded(data))
    if gdcm is None:
        return ["picture"]
    other = gdcm.decoded(file_of(data))
    if isinstance(other, str):
        return ["picture", f"gdcm {other}"]
    cells = found.astype("u1" if len(other) == found.size else "<u2")  # a sign beyond eight bits does not fit
    return ["picture", "gdcm the same" if other == cells.tobytes() else "gdcm differs"]


def outcomes(count: int, seed: int, gdcm: Gdcm | None = None) -> Counter[str]:
    """What becomes of `count` damaged streams."""
    rng, whole, found = random.Random(seed), whole_streams(), Counter[str]()
    for number in range(count):
        data = damaged(whole[number % len(whole)], rng)
        try:
            found.update(check(data, gdcm))
        except BaseException:
            print(f"stream {number} of seed {seed}: {data.hex()}", file=sys.stderr)
            raise
    return found


@pytest.mark.slow
def test_damaged_streams_are_refused_alike_or_are_what_the_standard_says():
    found = outcomes(1500, 1)
    assert found.keys() == {"picture", "BadStream", "CutShort"}
    assert found["picture"] < 0.5 * found.total()


if __name__ == "__main__":
    with Gdcm() as beside:
        print(json.dumps(outcomes(int(sys.argv[1]), int(sys.argv[2]), beside), indent=1))
