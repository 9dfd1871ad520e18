"""Damaged files of every syntax give a slice or a typed problem: no other exception, crash, stall or hoard.

Among them padded slices, streams of less precision than declared, and functional groups. What is not compressed, or
by RLE, must be what pydicom reads too, for its own code is safe on damaged files.
The work runs in a process of its own under a memory limit, because a decoder that fails takes its process
along. By hand, longer: `python tests/ich_tfrecords/dicom/test_dicom_fuzz.py COUNT SEED FILE`; FILE keeps the last
damaged file.
"""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import plain_reading
import pytest
from dicom_files import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    J2K,
    J2K_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    JPEG_LS,
    JPEG_LS_NEAR,
    RLE,
    UNDEFINED,
    codestream,
    compressed_file,
    deflate,
    dicom_file,
    element,
    encapsulated,
    head_slice,
    meta,
    short,
    slice_elements,
)

from ich_tfrecords.dicom import ct_slice

MOST_BYTES = 1 << 29  # what the decoders may add to the memory of the process
NATIVE = (EXPLICIT, IMPLICIT, DEFLATED, BIG)
COMPRESSED = (RLE, JPEG_LOSSLESS_SV1, JPEG_LS, JPEG_LS_NEAR, J2K_LOSSLESS, J2K)
NUMBERS = (0, 1, 2, 127, 128, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, UNDEFINED)


def whole_files(work: Path) -> dict[str, tuple[bytes, int]]:
    """For each syntax, and each special kind, a file and where its coded part begins."""
    files = special_files()
    for syntax in (*NATIVE, *COMPRESSED):
        stored = head_slice(40, low=0, high=4000).astype(np.uint16)
        if syntax in NATIVE:
            data = dicom_file(slice_elements(stored, 12), syntax)
        else:
            data = compressed_file(stored, syntax, 12, work)
        files[syntax] = (data, coded_part(data, syntax))
    return files


def special_files() -> dict[str, tuple[bytes, int]]:
    hu = head_slice(40, low=-1000, high=1800)
    padded = (hu + 1024).astype(np.uint16)
    padded[:6] = 63536
    limits = {0x00280120: ("US", short(63536)), 0x00280121: ("US", short(63537))}
    elements = slice_elements(padded) | limits
    narrow = slice_elements(hu, RescaleIntercept=b"0")
    bits = (hu.astype(np.int32) & 0x3FFF).astype(np.uint16)
    item = element(0xFFFEE000, "", b"", IMPLICIT)
    group = {0x52009229: ("SQ", item), 0x52009230: ("SQ", item * 2)}
    streams = {kind: codestream(bits, kind, 14) for kind in (JPEG_LS, J2K_LOSSLESS)}
    made = {
        "padded": dicom_file(elements),
        "padded implicit": dicom_file(elements, IMPLICIT),
        "too few bits": dicom_file(slice_elements(hu, 11, RescaleIntercept=b"0")),
        "functional groups": dicom_file(slice_elements(hu) | group),
        "padded JPEG-LS": encapsulated(elements, JPEG_LS, codestream(padded, JPEG_LS, 16)),
        **{f"narrow {kind}": encapsulated(narrow, kind, stream) for kind, stream in streams.items()},
    }
    is_coded = {name: name.startswith("narrow") or "JPEG" in name for name in made}
    return {name: (data, coded_part(data, JPEG_LS if is_coded[name] else EXPLICIT)) for name, data in made.items()}


def coded_part(data: bytes, syntax: str) -> int:
    if syntax in COMPRESSED:
        return data.rindex(b"\xfe\xff\x00\xe0") + 8
    return len(meta(syntax)) if syntax == DEFLATED else len(data)


def mutated(data: bytes, coded: int, rng: random.Random) -> bytes:
    """The file with one to five damages: mostly in the headers of the file and of the codestream."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        spans = ((132, min(700, len(out))), (min(coded, len(out) - 1), min(coded + 90, len(out))), (0, len(out)))
        place = rng.randrange(*rng.choices([span for span in spans if span[0] < span[1]] or [(0, 1)])[0])
        rng.choice(DAMAGES)(out, min(place, len(out) - 1), rng)
        if len(out) < 200:
            return bytes(out)
    return bytes(out)


def flip(out: bytearray, place: int, rng: random.Random) -> None:
    out[place] ^= 1 << rng.randrange(8)


def set_byte(out: bytearray, place: int, rng: random.Random) -> None:
    out[place] = rng.choice((0, 0xFF, 0x7F, 0x80, rng.randrange(256)))


def lie(out: bytearray, place: int, rng: random.Random) -> None:
    """A telling number over two or four bytes: lengths, counts and sizes are such fields."""
    number, kind = rng.choice(NUMBERS), rng.choice(("<H", "<L", ">H", ">L"))
    value = struct.pack(kind, number & (0xFFFF if kind[1] == "H" else 0xFFFFFFFF))
    out[place : place + len(value)] = value


def cut(out: bytearray, place: int, rng: random.Random) -> None:
    del out[place : place + rng.choice((1, 2, 8, len(out)))]


def insert(out: bytearray, place: int, rng: random.Random) -> None:
    out[place:place] = rng.randbytes(rng.choice((1, 2, 8, 64)))


def repeat(out: bytearray, place: int, rng: random.Random) -> None:
    out[place:place] = out[place : place + rng.choice((2, 8, 20, 100))]


def splice(out: bytearray, place: int, rng: random.Random) -> None:
    tag = rng.choice((0x00080018, 0x00280010, 0x00080005, 0x00091001, 0x00081140, 0xFFFEE00D, 0x7FE00010, 0x00020010))
    vr = rng.choice(("UI", "US", "SQ", "UN", "OW", "ZZ", "LO", "DS"))
    length = rng.choice((None, *NUMBERS))
    found = out.find(rng.choice((b"\x08\x00", b"\x20\x00", b"\x28\x00", b"\xe0\x7f")), place)
    at = found if found >= 0 else place
    out[at:at] = element(tag, vr, rng.randbytes(rng.choice((0, 2, 10))), rng.choice((EXPLICIT, IMPLICIT)), length)


DAMAGES = (flip, flip, set_byte, set_byte, lie, lie, cut, insert, repeat, splice)


def outcome(read, *arguments):
    """What a reader gives: the value, or the typed problem. Every other exception comes out."""
    try:
        return read(*arguments)
    except ct_slice.SliceProblem as problem:
        return "out of memory" if "MemoryError" in problem.detail else problem.reason


def check(data: bytes) -> str:
    """Name of the outcome, after checking that the readers agree where they must."""
    whole = outcome(ct_slice.read_slice, data)
    header, fast = outcome(ct_slice.read_header, data), outcome(ct_slice.fast_header, data, len(data))
    for prefix in (200, 500, ct_slice.HEAD_BYTES):
        found = outcome(ct_slice.fast_header, data[:prefix], len(data))
        assert found is None or found == fast
    assert isinstance(ct_slice.study_uid(data), str)
    if isinstance(whole, str):
        return whole
    assert whole.header == header
    assert whole.hu.shape == (header.rows, header.columns)
    slow = outcome(ct_slice.pydicom_header, data)
    assert isinstance(slow, str) or slow == header._replace(pixel_offset=-1)
    if header.transfer_syntax in (*NATIVE, RLE):
        check_reading(whole, data)
    return "slice"


def check_reading(ours: ct_slice.CtSlice, data: bytes) -> None:
    """Asserts that pydicom reads these HU too, where it reads any."""
    try:
        wrong = plain_reading.differs(ours, data)
    except Exception:  # pydicom refuses some that are whole but odd, with any exception
        return
    assert not wrong.any(), f"{wrong.sum()} cells differ, {ours.header}"


def main(count: int, seed: int, last: Path) -> Counter[str]:
    """Outcomes by name of `count` damaged files a syntax; the file at hand lies in `last`, should all end."""
    import resource

    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as work:
        files = whole_files(Path(work))
    assert {check(data) for data, _ in files.values()} == {"slice"}
    before = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (before + MOST_BYTES, before + MOST_BYTES))
    outcomes: Counter[str] = Counter()
    for syntax, (data, coded) in files.items():
        rng = random.Random(f"{seed}/{syntax}")
        for number in range(count):
            damaged = mutated(data, coded, rng)
            last.write_bytes(damaged)
            try:
                outcomes[check(damaged)] += 1
            except BaseException:
                print(f"syntax {syntax}, number {number}, seed {seed}", file=sys.stderr)
                raise
    return outcomes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit of a process is set the Linux way")
def test_damaged_files_give_a_slice_or_a_typed_problem(tmp_path):
    command = [sys.executable, "-X", "faulthandler", __file__, "400", "1", str(tmp_path / "last.dcm")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert (done.returncode, done.stderr[-3000:]) == (0, "")
    outcomes = Counter(json.loads(done.stdout))
    assert outcomes.total() == 400 * (len(NATIVE + COMPRESSED) + len(special_files()))
    assert outcomes.keys() >= {"slice", "truncated", "decode_failed", "bad_bits", "no_position", "bad_geometry"}
    assert "out of memory" not in outcomes


@pytest.mark.slow
def test_damage_inside_a_deflated_data_set():
    plain, rng = dicom_file(slice_elements(head_slice()))[len(meta(EXPLICIT)) :], random.Random(2)
    damaged = [meta(DEFLATED) + deflate(mutated(bytes(132) + plain, 1 << 20, rng)[132:]) for _ in range(300)]
    outcomes = Counter(check(data) for data in damaged)
    assert len(outcomes) > 3, "the damage reached one corner only"


def test_noise_for_a_codestream():
    rng = random.Random(3)
    for syntax in COMPRESSED:
        for size in (0, 1, 2, 64, 300):
            starts = (b"", b"\xff\xd8\xff", b"\xff\x4f\xff\x51")
            data = encapsulated(slice_elements(head_slice()), syntax, rng.choice(starts) + rng.randbytes(size))
            assert check(data) in ("decode_failed", "truncated")


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))))
