"""Compressed and otherwise encoded slices give the HU of the plain slice; damaged codestreams say why not.

The encoders are not the decoders' twins where that can be had: gdcm writes JPEG Lossless and RLE, and an
encoder written here writes the predictors that gdcm never uses.
"""

from __future__ import annotations

import base64
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from codestreams import jpeg, rle, segment
from dicom_files import (
    HTJ2K_LOSSLESS,
    J2K,
    J2K_LOSSLESS,
    JPEG_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    JPEG_LS,
    JPEG_LS_NEAR,
    NEAR,
    RLE,
    Stored,
    codestream,
    compressed_file,
    dicom_file,
    encapsulated,
    head_slice,
    slice_elements,
)

from ich_tfrecords.dicom import codestream as decoders
from ich_tfrecords.dicom import ct_slice, jpeg_lossless

KINDS: dict[str, tuple[Stored, int]] = {
    "signed 16-bit": (head_slice(48, low=-3024, high=3071), 16),
    "signed 12-bit": (head_slice(48, low=-1024, high=2040), 12),
    "unsigned 12-bit": (head_slice(48, low=0, high=4095).astype(np.uint16), 12),
    "unsigned 16-bit": (head_slice(48, low=0, high=30000).astype(np.uint16), 16),
}
LOSSLESS = (RLE, JPEG_LOSSLESS, JPEG_LOSSLESS_SV1, JPEG_LS, J2K_LOSSLESS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize("intercept", [b"-1024", b"0"])
def test_lossless_syntaxes_give_the_hu_of_the_plain_slice(syntax, kind, intercept, tmp_path):
    stored, bits_stored = KINDS[kind]
    plain = ct_slice.read_slice(dicom_file(slice_elements(stored, bits_stored, RescaleIntercept=intercept)))
    data = compressed_file(stored, syntax, bits_stored, tmp_path, RescaleIntercept=intercept)
    found = ct_slice.read_slice(data)
    same = {"transfer_syntax": syntax, "pixel_offset": -1, "facts": found.header.facts}  # gdcm adds a PixelSpacing
    assert found.header == plain.header._replace(**same)
    assert ct_slice.read_header(data) == found.header
    assert found.hu.dtype == np.int16
    assert np.array_equal(found.hu, plain.hu)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("syntax", "tolerance"), [(JPEG_LS_NEAR, NEAR), (J2K, 60)])
def test_lossy_syntaxes_stay_within_their_tolerance(syntax, tolerance, kind, tmp_path):
    stored, bits_stored = KINDS[kind]
    plain = ct_slice.read_slice(dicom_file(slice_elements(stored, bits_stored)))
    found = ct_slice.read_slice(compressed_file(stored, syntax, bits_stored, tmp_path))
    error = np.abs(found.hu.astype(int) - plain.hu)
    assert 0 < error.max() <= tolerance * (8 if stored.max() > 5000 and syntax == J2K else 1)


@pytest.mark.parametrize("syntax", [JPEG_LS, J2K_LOSSLESS])
def test_a_frame_in_several_fragments(syntax, tmp_path):
    stored, bits_stored = KINDS["signed 16-bit"]
    found = ct_slice.read_slice(compressed_file(stored, syntax, bits_stored, tmp_path, fragments=5))
    assert np.array_equal(found.hu, stored - 1024)


@pytest.mark.parametrize("table", [[0], [0, 108], [7, 999_999], [0, 108, 216, 324, 432]])
@pytest.mark.parametrize("syntax", [RLE, JPEG_LS])
def test_an_offset_table_that_takes_each_fragment_for_a_frame(syntax, table, tmp_path):
    stored, bits_stored = KINDS["signed 16-bit"]
    data = compressed_file(stored, syntax, bits_stored, tmp_path)
    stream = stream_of(data)
    fragments = encapsulated(slice_elements(stored), syntax, stream, fragments=-(-len(stream) // 100))
    offsets = struct.pack(f"<{len(table)}L", *table)
    none = b"\xfe\xff\x00\xe0\0\0\0\0"
    told = fragments.replace(none, none[:4] + struct.pack("<L", len(offsets)) + offsets, 1)
    assert np.array_equal(ct_slice.read_slice(told).hu, stored - 1024)


@pytest.mark.parametrize("syntax", [RLE, JPEG_LS, J2K_LOSSLESS])
def test_8_bit_frames(syntax, tmp_path):
    stored = np.arange(1024, dtype=np.uint16).astype(np.uint8).reshape(32, 32)
    if syntax == RLE:
        data = encapsulated(slice_elements(stored, 8), RLE, rle(stored))
    else:
        data = encapsulated(slice_elements(stored, 8), syntax, codestream(stored, syntax, 8))
    assert np.array_equal(ct_slice.read_slice(data).hu, stored.astype(int) - 1024)


def test_8_bit_precision_in_16_bit_cells_keeps_the_sign():
    stored = (np.arange(1024, dtype=np.int16) % 256 - 128).reshape(32, 32)
    data = encapsulated(slice_elements(stored, 16), J2K_LOSSLESS, codestream(stored.astype(np.int8), J2K_LOSSLESS, 8))
    assert np.array_equal(ct_slice.read_slice(data).hu, stored - 1024)


# 8 x 8 values 37 * n - 1000, written by OpenJPH 0.26.3 (no free encoder of HTJ2K is installed with the tests)
HTJ2K_STREAM = base64.b64decode(
    "/0//UQApQAAAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAABjwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQ"
    "kJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAFgAAf+TwAAl3QGHdAAAAMAAEsAAEwBQAYd0AIz6Awd0AMAAE0AA"
    "E4Ak0gECdAAylekAo1QAwAAqIAAVYAiCIKpwgnUATjpx4uTAQgHstgD/2Q=="
)


@pytest.mark.parametrize("syntax", [HTJ2K_LOSSLESS, "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"])
def test_htj2k(syntax):
    stored = np.arange(64, dtype=np.int16).reshape(8, 8) * 37 - 1000
    found = ct_slice.read_slice(encapsulated(slice_elements(stored), syntax, HTJ2K_STREAM))
    assert np.array_equal(found.hu, stored - 1024)


@pytest.mark.real
@pytest.mark.parametrize("syntax", LOSSLESS)
def test_a_real_slice_comes_back_from_every_lossless_syntax(syntax, tmp_path):
    folder = os.environ.get("ICH_REAL_DICOM_DIR")
    if not folder:
        pytest.skip("ICH_REAL_DICOM_DIR names no folder of real CT files")
    real = ct_slice.read_slice(next(iter(sorted(Path(folder).rglob("*.dcm")))).read_bytes())
    data = compressed_file(real.hu, syntax, 16, tmp_path, RescaleIntercept=b"0")
    assert np.array_equal(ct_slice.read_slice(data).hu, real.hu)


def test_a_jp2_wrapping_is_stepped_over():
    stored, bits_stored = KINDS["signed 16-bit"]
    wrapping = b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\0jp2c"
    stream = wrapping + codestream(stored, J2K_LOSSLESS, bits_stored)
    data = encapsulated(slice_elements(stored, bits_stored), J2K_LOSSLESS, stream)
    assert np.array_equal(ct_slice.read_slice(data).hu, stored - 1024)


@pytest.mark.parametrize("module", ["jpeg_ls", "openjpeg.utils"])
def test_a_lacking_decoder_is_named(module, monkeypatch, tmp_path):
    syntax = JPEG_LS if module == "jpeg_ls" else J2K_LOSSLESS
    data = compressed_file(*KINDS["signed 16-bit"][:1], syntax, 16, tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ct_slice.UnsupportedSlice, match=f"unsupported_syntax: .* needs the module {module}"):
        ct_slice.read_slice(data)


# --- damaged codestreams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_a_codestream_that_was_cut_is_truncated(syntax, kept, tmp_path):
    stored, bits_stored = KINDS["signed 16-bit"]
    stream = stream_of(compressed_file(stored, syntax, bits_stored, tmp_path))
    cut = encapsulated(slice_elements(stored), syntax, stream[: int(kept * len(stream)) & ~1])
    with pytest.raises(ct_slice.UnreadableSlice) as error:
        ct_slice.read_slice(cut)
    assert error.value.reason in ({"truncated"} if kept > 0.1 else {"truncated", "decode_failed"})


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_a_compressed_file_that_was_cut_is_truncated(syntax, tmp_path):
    data = compressed_file(*KINDS["signed 16-bit"][:1], syntax, 16, tmp_path)
    for read in (ct_slice.read_slice, ct_slice.read_header):
        with pytest.raises(ct_slice.UnreadableSlice, match=r"^truncated: PixelData begins, but does not end"):
            read(data[: len(data) - 700])


@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS, JPEG_LS, J2K_LOSSLESS])
def test_a_codestream_of_another_size_is_refused_before_decoding(syntax, tmp_path):
    stored, bits_stored = KINDS["signed 16-bit"]
    stream = stream_of(compressed_file(stored, syntax, bits_stored, tmp_path))
    other = slice_elements(stored[:40])
    with pytest.raises(
        ct_slice.UnreadableSlice, match=r"decode_failed: .*the codestream holds 48 x 48 x 1, not 40 x 48"
    ):
        ct_slice.read_slice(encapsulated(other, syntax, stream))


def test_a_jpeg_ls_stream_may_not_overrule_its_size():
    stored, bits_stored = KINDS["signed 16-bit"]
    stream = codestream(stored, JPEG_LS, bits_stored)
    sized = stream[:2] + b"\xff\xf8\x00\x08\x04\x02\xff\xff\xff\xff" + stream[2:]
    with pytest.raises(decoders.BadStream, match="no frame header, or more than one"):
        decoders.jpeg_ls(sized, 48, 48, 16)


def stream_of(data: bytes) -> bytes:
    """The one frame of an encapsulated file."""
    from io import BytesIO

    import pydicom
    from pydicom.encaps import generate_frames

    return next(generate_frames(pydicom.dcmread(BytesIO(data)).PixelData, number_of_frames=1))


@pytest.mark.parametrize("syntax", [*LOSSLESS, JPEG_LS_NEAR, J2K])
def test_decoders_are_quiet(syntax, tmp_path, recwarn, capfd, caplog):
    data = compressed_file(*KINDS["signed 16-bit"][:1], syntax, 16, tmp_path)
    capfd.readouterr()
    caplog.clear()
    rng = np.random.default_rng(0)
    for _ in range(30):
        damaged = bytearray(data)
        for place in rng.integers(len(data) - 2300, len(data) - 10, 5):
            damaged[place] ^= int(rng.integers(1, 256))
        try:
            ct_slice.read_slice(bytes(damaged))
        except ct_slice.SliceProblem:
            continue
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


# --- RLE -----------------------------------------------------------------------------------------------------


def test_rle_repeats_literals_and_no_ops():
    stored = np.where(np.arange(900) < 400, 0x1234, np.arange(900)).astype(np.uint16).reshape(30, 30)
    assert np.array_equal(decoders.rle(rle(stored), 30, 30, 16).values, stored)


@pytest.mark.parametrize("frame", [b"", struct.pack("<16L", 2, 64, 64, *[0] * 13), struct.pack("<16L", 1, *[64] * 15)])
def test_a_damaged_rle_frame(frame):
    with pytest.raises((decoders.BadStream, struct.error)):
        decoders.rle(frame, 4, 4, 16)


# --- JPEG Lossless -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", range(1, 8))
@pytest.mark.parametrize(("precision", "restart_rows"), [(16, 0), (12, 0), (12, 3), (8, 1), (2, 0)])
def test_every_predictor(selection, precision, restart_rows):
    rng = np.random.default_rng(selection)
    cells = rng.integers(0, 1 << precision, (11, 7), dtype=np.uint16)
    cells[5:7] = (1 << precision) - 1
    cells[7] = 0
    stream = jpeg(cells, precision, selection, 0, restart_rows)
    assert np.array_equal(jpeg_lossless.decode(stream, 11, 7, 16).values, cells)


def test_the_difference_of_32768():
    cells = np.array([[0x8000, 0, 0x8000], [0, 0, 0x7FFF]], np.uint16)
    assert np.array_equal(jpeg_lossless.decode(jpeg(cells, 16, 1), 2, 3, 16).values, cells)


def test_a_point_transform_shifts_back():
    cells = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
    assert np.array_equal(jpeg_lossless.decode(jpeg(cells, 12, 1, shift=4), 16, 16, 16).values, cells)


def test_8_bit_cells_come_out_in_one_byte():
    cells = np.arange(64, dtype=np.uint16).reshape(8, 8)
    assert jpeg_lossless.decode(jpeg(cells, 8, 1), 8, 8, 8).values.dtype == np.uint8


CELLS = np.random.default_rng(0).integers(0, 4096, (9, 9), dtype=np.uint16)
GOOD = jpeg(CELLS, 12, 1)
SCAN = GOOD.index(b"\xff\xda")
TABLE = GOOD.index(b"\xff\xc4")


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (b"", "start marker"),
        (b"\xff\xd8", "no scan"),
        (GOOD[:-40] + b"\xff\xd9", "entropy-coded data end"),
        (GOOD[: SCAN + 20] + b"\xff\xd9", "entropy-coded bytes for 81 samples"),
        (GOOD[:-2] + bytes(5) + b"\xff\xd9", "left over"),
        (GOOD[:-2] + b"\xff\xda", "marker FFDA inside the scan"),
        (GOOD[:TABLE] + GOOD[TABLE + 2 + 36 :], "a scan of 12 bits"),
        (GOOD.replace(bytes([0, *[0] * 4, 17]), bytes([0, 1, 1, 1, 2, 12])), "more codes than there are"),
        (GOOD.replace(bytes(range(17)), bytes([*range(16), 17])), "a damaged Huffman table"),
        (GOOD.replace(b"\xff\xc3", b"\xff\xc0"), "marker FFC0 does not belong"),
        (GOOD.replace(b"\xff\xfe\x00", b"\x00\xfe\x00"), "begins no segment"),
        (GOOD[: SCAN + 7] + b"\x00" + GOOD[SCAN + 8 :], "predictor 0"),
        (GOOD[: SCAN + 7] + b"\x08" + GOOD[SCAN + 8 :], "predictor 8"),
        (GOOD[: SCAN + 4] + b"\x02" + GOOD[SCAN + 5 :], "one component"),
        (GOOD[: SCAN + 3] + b"\x28" + GOOD[SCAN + 4 :], "a scan header of 40 bytes"),
        (GOOD[: SCAN + 8], "inside its scan header"),
        (GOOD[: SCAN + 20] + b"\xff\xff\x00" + GOOD[SCAN + 20 :], "without a stuffed zero"),
        (GOOD[:-2] + b"\xff\xd0" + GOOD[-9:], "7 entropy-coded bytes stand behind the last row"),
        (GOOD[:SCAN] + segment(0xDD, b"\x00\x05") + GOOD[SCAN:], "restart interval of 5 samples"),
        (GOOD[:SCAN] + segment(0xDD, b"\x00\x09") + GOOD[SCAN:], "left over"),
    ],
)
def test_a_damaged_jpeg_lossless_stream_says_what_is_wrong(stream, words):
    with pytest.raises(jpeg_lossless.BadStream, match=words):
        jpeg_lossless.decode(stream, 9, 9, 16)


def test_a_restart_marker_behind_the_last_row_is_passed_over():
    stream = GOOD[:-2] + b"\xff\xd0" + GOOD[-2:]
    assert np.array_equal(jpeg_lossless.decode(stream, 9, 9, 16).values, CELLS)


def test_samples_beyond_the_precision_are_noise_unless_they_are_negative():
    for value in (0x100, 0xFF7F):
        with pytest.raises(jpeg_lossless.BadStream, match=f"samples of up to {value:,} in a stream of 8 bits"):
            jpeg_lossless.decode(stream_of_8_bits([0x100, 0, value]), 1, 3, 16)
    assert jpeg_lossless.decode(stream_of_8_bits([0, 0xFF80, 0xFFFF]), 1, 3, 16).values.tolist() == [
        [0, 0xFF80, 0xFFFF]
    ]


def stream_of_8_bits(cells: list[int]) -> bytes:
    """Cells of sixteen bits in a stream that says it has eight, as some encoders write negative values."""
    return jpeg(np.array([cells], np.uint16), 8, 1)


def test_a_pattern_that_is_no_code():
    stream = bytearray(GOOD)
    stream[SCAN + 10] = 0xF8  # 11111 stands for nothing in the flat table
    with pytest.raises(jpeg_lossless.BadStream, match="no Huffman code"):
        jpeg_lossless.decode(bytes(stream), 9, 9, 16)
