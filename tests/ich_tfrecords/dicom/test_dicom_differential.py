"""Readable files whose header, cells and stream contradict each other: our HU are pydicom's, or there are none.

What is refused is right as long as the reason is typed; what comes out must be a reading that pydicom gives too. By
hand, longer: `python tests/ich_tfrecords/dicom/test_dicom_differential.py COUNT SEED`.
"""

from __future__ import annotations

import random
import struct
import sys
from collections import Counter

import numpy as np
import plain_reading
import pytest
from codestreams import jpeg, rle
from dicom_files import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    J2K_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    JPEG_LS,
    RLE,
    Elements,
    codestream,
    dicom_file,
    element,
    encapsulated,
    head_slice,
    short,
    slice_elements,
)

from ich_tfrecords.dicom import ct_slice

NATIVE = (EXPLICIT, IMPLICIT, DEFLATED, BIG)
PLUGIN = {JPEG_LOSSLESS_SV1: "gdcm", JPEG_LS: "pyjpegls", J2K_LOSSLESS: "gdcm", RLE: "pydicom"}
BITS = (8, 10, 11, 12, 13, 14, 16)
PADDING = (0, 40, 1024, 3071, 4095, 5000, 0x7FFF, 0x8000, 63536, 65535)
ENHANCED = b"1.2.840.10008.5.1.4.1.1.2.1"


def cells_of(rng: random.Random, bits_stored: int, signed: bool) -> np.ndarray:
    """Cells uint16 of a head: they fit the declared bits, or not, with an overlay, zeros above the sign, or padding."""
    top = rng.choice((400, 900, 1800, 3000, 9000))
    hu = head_slice(32, rng.randrange(9), -1000, top).astype(np.int64)
    stored = hu if rng.random() < 0.5 else hu + rng.choice((1000, 1024))
    if rng.random() < 0.6:
        low, high = (-(1 << bits_stored - 1), (1 << bits_stored - 1) - 1) if signed else (0, (1 << bits_stored) - 1)
        stored = np.clip(stored, low, high)
    if rng.random() < 0.2:
        stored &= (1 << rng.choice(BITS)) - 1
    cells = (stored & 0xFFFF).astype(np.uint16)
    if rng.random() < 0.2:
        cells[4:9, 3:20] |= np.uint16(1 << rng.randrange(8, 16))
    if rng.random() < 0.3:
        cells[: rng.randrange(1, 9)] = rng.choice(PADDING)
    return cells


def header_of(rng: random.Random, cells: np.ndarray, bits_stored: int, signed: bool) -> Elements:
    changes = {
        "RescaleIntercept": rng.choice((b"0", b"-1024", b"-1024", b"-1000", b"-99", b"-8192", b"0.5", b"1e4")),
        "RescaleSlope": rng.choice((b"1", b"1", b"1", b"1", b"2", b"0.5", b"-1")),
        "PixelRepresentation": short(int(signed)),
    }
    elements = slice_elements(cells, bits_stored, **changes)
    if rng.random() < 0.5:
        elements[0x00280120] = (rng.choice(("US", "SS")), short(rng.choice(PADDING)))
        if rng.random() < 0.3:
            elements[0x00280121] = ("US", short(rng.choice(PADDING)))
    if rng.random() < 0.05:
        elements[0x00280102] = ("US", short(rng.choice(BITS)))
    return elements


def stream_of(rng: random.Random, cells: np.ndarray, syntax: str) -> bytes:
    if syntax == RLE:
        return rle(cells)
    bits = rng.choice((12, 14, 16))
    cut = cells & np.uint16((1 << bits) - 1)
    if syntax == JPEG_LOSSLESS_SV1:
        return jpeg(cut, bits, 1)
    if syntax == J2K_LOSSLESS and rng.random() < 0.5:
        top = 1 << bits - 1
        return codestream(((cut.astype(np.int32) ^ top) - top).astype(np.int16), syntax, bits)
    return codestream(cut, syntax, bits)


def made(rng: random.Random) -> tuple[bytes, str]:
    """A file and the plugin that decodes it."""
    bits_stored, signed = rng.choice(BITS), rng.random() < 0.5
    cells = cells_of(rng, bits_stored, signed)
    elements = header_of(rng, cells, bits_stored, signed)
    if rng.random() < 0.5:
        return dicom_file(elements, rng.choice(NATIVE)), ""
    syntax = rng.choice(list(PLUGIN))
    return encapsulated(elements, syntax, stream_of(rng, cells, syntax)), PLUGIN[syntax]


def outcome(data: bytes, plugin: str) -> str:
    """`slice` where ours is a reading of pydicom's; a reason where it is refused. Anything else is an error."""
    try:
        ours = ct_slice.read_slice(data)
    except ct_slice.SliceProblem as problem:
        return problem.reason
    wrong = plain_reading.differs(ours, data, plugin)
    assert not wrong.any(), f"{wrong.sum()} cells differ, {ours.header}"
    return "slice"


def main(count: int, seed: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for number in range(count):
        data, plugin = made(random.Random(f"{seed}/{number}"))
        try:
            outcomes[outcome(data, plugin)] += 1
        except BaseException:
            print(f"number {number}, seed {seed}", file=sys.stderr)
            raise
    return outcomes


@pytest.mark.slow
def test_ours_is_a_reading_of_pydicom_or_refused():
    outcomes = main(1500, 1)
    assert outcomes.keys() == {"slice", "bits_contradict", "ambiguous_sign", "bad_bits", "bad_padding"}
    assert outcomes["slice"] > 800


def groups(rng: random.Random, depth: int = 0) -> bytes:
    """Functional groups with anything in them (PS3.3 C.7.6.16), nested, some of undefined length."""
    tags = ((0x00281053, "DS", b"1"), (0x00200032, "DS", b"0\\0\\5"), (0x00280010, "US", short(9)))
    content = b"".join(element(*rng.choice(tags)) for _ in range(rng.randrange(3)))
    if depth < 3 and rng.random() < 0.7:
        content += element(0x00289145, "SQ", groups(rng, depth + 1))
    size = rng.choice((len(content), 0xFFFFFFFF))
    end = b"\xfe\xff\x0d\xe0\0\0\0\0" if size == 0xFFFFFFFF else b""
    return struct.pack("<HHL", 0xFFFE, 0xE000, size) + content + end


@pytest.mark.slow
def test_functional_groups_of_any_kind_are_refused_by_name():
    for number in range(300):
        rng = random.Random(number)
        frames = rng.choice((0, 1, 1, 2, 30))
        changes = {"SOPClassUID": ENHANCED, "NumberOfFrames": b"%d" % frames if frames else None}
        for name in ("RescaleSlope", "ImagePositionPatient"):
            changes |= {name: None} if rng.random() < 0.7 else {}
        shared = {tag: ("SQ", groups(rng)) for tag in (0x52009229, 0x52009230) if rng.random() < 0.8}
        data = dicom_file(slice_elements(head_slice(8), **changes) | shared, rng.choice((EXPLICIT, DEFLATED)))
        for read in (ct_slice.read_slice, ct_slice.pydicom_slice):
            with pytest.raises(ct_slice.UnsupportedSlice) as refused:
                read(data)
            assert refused.value.reason == "enhanced_ct", number


if __name__ == "__main__":
    print(main(int(sys.argv[1]), int(sys.argv[2])))
