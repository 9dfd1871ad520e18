"""DICOM to CT slice: the fast walk against pydicom, and every typed reason with its words."""

from __future__ import annotations

import logging
import math
import os
import struct
import tracemalloc
import warnings
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from dicom_files import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    PIXEL_DATA,
    RLE,
    UNDEFINED,
    dataset,
    deflate,
    dicom_file,
    element,
    encapsulated,
    head_slice,
    meta,
    short,
    slice_elements,
)
from hypothesis import given

from ich_tfrecords import pixels
from ich_tfrecords.dicom import by_pydicom, ct_slice

STORED = head_slice()
EXPECTED_HU = STORED - 1024
CREATOR = {0x00091001: ("UN", b"\xff" * 7), 0x00290010: ("LO", b"MAKER"), 0x00291010: ("OB", bytes(600))}
ITEM = element(0x00080018, "UI", b"inner") + element(0x00280010, "US", short(9))


def one_item(syntax: str = EXPLICIT) -> bytes:
    inner = ITEM if syntax == EXPLICIT else b"".join(element(t, "UI", v, syntax) for t, v in [(0x00080018, b"inner")])
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(inner)) + inner


def alike(data: bytes) -> ct_slice.CtSlice:
    """The slice, after checking that both ways and every prefix agree on it."""
    fast, slow = ct_slice.read_slice(data), ct_slice.pydicom_slice(data)
    assert fast.header._replace(pixel_offset=-1) == slow.header
    assert fast.hu.dtype == slow.hu.dtype == np.int16
    assert np.array_equal(fast.hu, slow.hu)
    assert ct_slice.read_header(data) == fast.header
    assert ct_slice.pydicom_header(data) == slow.header
    return fast


def problem(data: bytes) -> ct_slice.SliceProblem:
    """The problem of a file, after checking that both ways give it in the same words."""
    with pytest.raises(ct_slice.SliceProblem) as fast:
        ct_slice.read_slice(data)
    with pytest.raises(ct_slice.SliceProblem) as slow:
        ct_slice.pydicom_slice(data)
    assert (type(fast.value), str(fast.value)) == (type(slow.value), str(slow.value))
    return fast.value


# --- real files ----------------------------------------------------------------------------------------------


@pytest.fixture
def real_dir() -> Path:
    name = os.environ.get("ICH_REAL_DICOM_DIR")
    if not name:
        pytest.skip("ICH_REAL_DICOM_DIR names no folder of real CT files")
    return Path(name)


@pytest.mark.real
def test_both_ways_agree_on_every_real_file(real_dir):
    seen = 0
    for path in sorted(path for path in real_dir.rglob("*") if path.is_file()):
        data = path.read_bytes()
        try:
            ct_slice.read_slice(data)
        except ct_slice.SliceProblem:
            problem(data)
        else:
            header = alike(data).header
            assert ct_slice.fast_header(data[: header.pixel_offset], len(data)) == header
            seen += 1
    assert seen


@pytest.mark.real
def test_real_odd_files_have_their_reasons(real_dir):
    if not (real_dir / "odd").is_dir():
        pytest.skip("no folder odd/ below ICH_REAL_DICOM_DIR")
    reasons = {}
    for path in sorted((real_dir / "odd").iterdir()):
        try:
            ct_slice.read_slice(path.read_bytes())
            reasons[path.name] = "slice"
        except ct_slice.SliceProblem as error:
            reasons[path.name] = error.reason
    assert reasons == {
        "DICOMDIR": "no_pixel_data",
        "philips_axial_12bit_unsigned": "slice",
        "philips_localizer_256x512": "localizer",
        "philips_rgb_results_512x650": "color",
        "philips_survey_secondary_256x512": "derived_secondary",
    }


@pytest.mark.real
def test_real_head_rises_slice_by_slice(real_dir):
    """The study has gantry tilt, spacings of 4 and 7 mm and 1 mm where they meet; file order is slice order."""
    if not (real_dir / "ge_head").is_dir():
        pytest.skip("no folder ge_head/ below ICH_REAL_DICOM_DIR")
    headers = [ct_slice.read_header(path.read_bytes()) for path in sorted((real_dir / "ge_head").iterdir())]
    steps_mm = np.diff([header.position_mm for header in headers]).round(1).tolist()
    assert steps_mm == [4.0] * 13 + [1.1] + [7.0] * 13


# --- built files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_a_plain_slice_takes_the_fast_way(syntax):
    data = dicom_file(slice_elements(STORED), syntax)
    header = ct_slice.fast_header(data, len(data))
    assert header == ct_slice.SliceHeader(
        "ID_0000001aa",
        "ID_patient",
        "ID_study",
        "ID_series",
        37.5,
        32,
        32,
        16,
        16,
        True,
        1.0,
        -1024.0,
        None,
        syntax,
        len(data) - 2048,
        False,
        {},
    )
    assert np.array_equal(alike(data).hu, EXPECTED_HU)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, DEFLATED, BIG])
@pytest.mark.parametrize(("low", "high", "bits_stored", "kind"), [(-2000, 3000, 16, "i2"), (0, 4095, 12, "u2")])
def test_native_syntaxes_give_the_same_hu(syntax, low, high, bits_stored, kind):
    stored = head_slice(low=low, high=high).astype(kind)
    found = alike(dicom_file(slice_elements(stored, bits_stored), syntax))
    assert np.array_equal(found.hu, stored.astype(np.int32) - 1024)
    assert found.header.transfer_syntax == syntax


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_8_bit_cells_of_an_odd_matrix_are_padded(syntax):
    stored = np.arange(15, dtype=np.uint8).reshape(3, 5)
    elements = slice_elements(stored, 8)
    elements[PIXEL_DATA] = ("OB", stored.tobytes())
    assert np.array_equal(alike(dicom_file(elements, syntax)).hu, stored.astype(int) - 1024)


def test_a_wrapped_12_bit_slice_is_repaired():
    hu = head_slice(low=-1000, high=2000)
    stored = (hu.astype(int) % 4096).astype(np.uint16)
    data = dicom_file(slice_elements(stored, 12, RescaleIntercept=b"0"))
    assert np.array_equal(alike(data).hu, hu)


def test_a_signed_12_bit_slice_with_intercept_0_is_left_alone():
    stored = head_slice(low=-1024, high=2047)
    data = dicom_file(slice_elements(stored, 12, RescaleIntercept=b"0"))
    assert np.array_equal(alike(data).hu, stored)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_read_and_none_is_written(kind):
    whole = dicom_file(slice_elements(STORED))
    data = kind(whole)
    assert np.array_equal(alike(data).hu, EXPECTED_HU)
    pixels.to_hu(np.frombuffer(data, np.uint16, 512), 12, False, 1.0, 0.0)
    assert bytes(data) == whole


def test_a_slice_without_preamble_or_meta_group_goes_to_pydicom():
    data = dataset(slice_elements(STORED))
    assert ct_slice.fast_header(data, len(data)) is None
    assert np.array_equal(alike(data).hu, EXPECTED_HU)
    assert alike(data).header.transfer_syntax == EXPLICIT
    assert alike(dataset(slice_elements(STORED), IMPLICIT)).header.transfer_syntax == IMPLICIT


# --- the fast walk -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_a_prefix_gives_the_same_header_or_none(syntax):
    data = dicom_file(slice_elements(STORED), syntax)
    header = ct_slice.fast_header(data, len(data))
    for cut in range(len(data) - 2048 + 1):
        found = ct_slice.fast_header(data[:cut], len(data))
        assert found == header if cut == len(data) - 2048 else found is None


def test_private_elements_and_sequences_of_defined_length_are_skipped():
    for syntax in (EXPLICIT, IMPLICIT):
        elements = slice_elements(STORED) | CREATOR | {0x00081140: ("SQ", one_item(syntax))}
        data = dicom_file(elements, syntax)
        assert ct_slice.fast_header(data, len(data)) is not None
        assert alike(data).header.sop_uid == "ID_0000001aa"


def undefined_sequence(syntax: str) -> bytes:
    ends = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    return element(0x00081140, "SQ", one_item(syntax) + ends, syntax, length=UNDEFINED)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_a_sequence_of_undefined_length_goes_to_pydicom(syntax):
    before = {tag: value for tag, value in slice_elements(STORED).items() if tag < 0x00081140}
    after = {tag: value for tag, value in slice_elements(STORED).items() if tag > 0x00081140}
    data = meta(syntax) + dataset(before, syntax) + undefined_sequence(syntax) + dataset(after, syntax)
    assert ct_slice.fast_header(data, len(data)) is None
    assert np.array_equal(alike(data).hu, EXPECTED_HU)
    assert alike(data).header.sop_uid == "ID_0000001aa"


def swapped(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) == 1
    assert len(old) == len(new)
    return data.replace(old, new)


PLAIN = dicom_file(slice_elements(STORED))
UNUSUAL = {
    "out-of-order tags": meta(EXPLICIT) + element(0x00100020, "LO", b"ID_patient") + dataset(slice_elements(STORED)),
    "a tag twice": PLAIN[:-2060] + element(0x00281053, "DS", b"1 ") + PLAIN[-2060:],
    "an unknown VR": swapped(PLAIN, b"\x08\x00\x08\x00CS", b"\x08\x00\x08\x00ZZ"),
    "an odd length": meta(EXPLICIT) + dataset({0x00080005: ("CS", b"")}) + b"\x08\x00\x06\x00CS\x01\x00A"
    + dataset(slice_elements(STORED)),
    "a non-ASCII id": dicom_file(slice_elements(STORED, PatientID="Jürgen".encode("latin-1"))),
    "an escape to another character set": dicom_file(slice_elements(STORED, PatientID=b"A\x1b$B0!")),
    "a short value of 4 bytes": dicom_file(slice_elements(STORED, SamplesPerPixel=bytes(4))),
    "a meta group that is longer than it says": swapped(PLAIN, b"UL\x04\x00\x2a", b"UL\x04\x00\x28"),
    "a meta group that is shorter than it says": swapped(PLAIN, b"UL\x04\x00\x2a", b"UL\x04\x00\x32"),
    "a compressed syntax": dicom_file(slice_elements(STORED), RLE),
    "no DICM": bytes(200) + PLAIN[200:],
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSUAL)
def test_the_fast_walk_leaves_unusual_layouts_to_pydicom(name):
    assert ct_slice.fast_header(UNUSUAL[name], len(UNUSUAL[name])) is None


def test_pydicom_decodes_ids_that_are_not_ascii():
    elements = slice_elements(STORED, PatientID="Jürgen".encode("latin-1"))
    elements[0x00080005] = ("CS", b"ISO_IR 100")
    assert alike(dicom_file(elements)).header.patient_id == "Jürgen"
    elements[0x00100020], elements[0x00080005] = ("LO", b"A\x1b$B0!"), ("CS", b"\\ISO 2022 IR 87")
    assert alike(dicom_file(elements)).header.patient_id == "A亜"


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, DEFLATED, BIG])
@pytest.mark.parametrize("patient", [None, b"", b"  "])
def test_a_slice_without_a_patient_id_is_read(patient, syntax):
    """PS3.3 C.7.1.1: type 2, so it may be empty, and de-identified files have it empty."""
    found = alike(dicom_file(slice_elements(STORED, PatientID=patient), syntax))
    assert found.header.patient_id == ""
    assert np.array_equal(found.hu, EXPECTED_HU)


def test_wrong_meta_length_is_no_reason_to_lose_a_slice():
    for name in ("a meta group that is longer than it says", "a meta group that is shorter than it says"):
        assert np.array_equal(alike(UNUSUAL[name]).hu, EXPECTED_HU)


# --- typed reasons -------------------------------------------------------------------------------------------

UNREADABLE = {
    "empty_file": (b"", "the file has no bytes"),
    "not_dicom": (b"This file is not DICOM.\n" * 20, "no DICM at byte 128, and the file does not begin with group"),
    "truncated": (PLAIN[:-1000], "PixelData has 1,048 of 2,048 bytes"),
    "wrong_pixel_length": (
        dicom_file(slice_elements(STORED, PixelData=bytes(1000))),
        "PixelData has 1,000 bytes, the matrix needs 2,048",
    ),
    "bad_geometry": (
        dicom_file(slice_elements(STORED, Rows=short(65535))),
        "65535 rows and 32 columns; 1 to 4096 are read",
    ),
    "decode_failed": (
        encapsulated(slice_elements(STORED), RLE, struct.pack("<16L", 3, *range(64, 79))),
        "BadStream: the RLE frame has 3 segments for cells of 16 bits",
    ),
}
WAY_OUT = "a spec with accept: [original, derived], such as hospital, takes these"
REFUSED: dict[str, tuple[dict[str, bytes | None], str]] = {
    "no_pixel_data": ({"PixelData": None, "Modality": b"SR"}, "no PixelData element; modality SR"),
    "color": (
        {"SamplesPerPixel": short(3), "PhotometricInterpretation": b"RGB"},
        "3 samples a pixel, RGB photometric interpretation",
    ),
    "multi_frame": (
        {"NumberOfFrames": b"30"},
        "NumberOfFrames is '30'; many frames are read of enhanced CT alone, so convert it to single ones",
    ),
    "localizer": ({"ImageType": b"ORIGINAL\\PRIMARY\\LOCALIZER"}, "ImageType is ORIGINAL\\PRIMARY\\LOCALIZER"),
    "derived_secondary": (
        {"ImageType": b"DERIVED\\SECONDARY\\MPR"},
        f"ImageType is DERIVED\\SECONDARY\\MPR; {WAY_OUT}",
    ),
    "not_ct": ({"Modality": b"MR"}, "Modality is 'MR'"),
    "missing_id": (
        {"StudyInstanceUID": b"  "},
        "StudyInstanceUID is empty; slices are told apart and split by their ids",
    ),
    "bad_bits": (
        {"BitsStored": short(12), "HighBit": short(15)},
        "BitsAllocated 16, BitsStored 12, HighBit 15, PixelRepresentation 1",
    ),
    "no_rescale": ({"RescaleSlope": None}, "RescaleSlope is 'absent', so stored values give no HU"),
    "no_position": (
        {"ImagePositionPatient": b"1\\2"},
        "ImagePositionPatient or ImageOrientationPatient is absent or unusable",
    ),
    "not_axial": (
        {"ImageOrientationPatient": b"1\\0\\0\\0\\0\\-1"},
        "the slice normal (0.00, 1.00, 0.00) is more than 45 degrees off the body axis",
    ),
}


@pytest.mark.parametrize("reason", UNREADABLE)
def test_damage_has_its_reason(reason):
    data, words = UNREADABLE[reason]
    found = problem(data)
    assert isinstance(found, ct_slice.UnreadableSlice)
    assert found.reason == reason
    assert words in found.detail
    assert str(found) == f"{reason}: {found.detail}"


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, DEFLATED, BIG])
@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_no_ct_slice_has_its_reason(reason, syntax):
    changes, words = REFUSED[reason]
    found = problem(dicom_file(slice_elements(STORED, **changes), syntax))
    assert isinstance(found, ct_slice.UnsupportedSlice)
    assert (found.reason, found.detail) == (reason, words)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"Modality": b"CT\x10\x00\x20\x00LO"}, "Modality is 'an invalid value of 8 characters'"),
        ({"Modality": b"Doe^Jane"}, "Modality is 'an invalid value of 8 characters'"),
        ({"Modality": b"A" * 16}, f"Modality is '{'A' * 16}'"),
        ({"Modality": b"A" * 17}, "Modality is 'an invalid value of 17 characters'"),
        ({"Modality": b""}, "Modality is 'empty'"),
        ({"Modality": b"Doe^Jane", "PixelData": None}, "modality an invalid value of 8 characters"),
        ({"ImageType": b"ORIGINAL\\LOCALIZER\\Doe^Jane"}, "ImageType is an invalid value of 27 characters"),
        ({"ImageType": b"LOCALIZER\\" + b"A" * 17}, "ImageType is an invalid value of 27 characters"),
        ({"ImageType": b"LOCALIZER" + b"\\AAAAAAAA" * 7}, "ImageType is an invalid value of 72 characters"),
        ({"ImageType": b"X\\SECONDARY\\Doe^Jane"}, "ImageType is an invalid value of 20 characters"),
        ({"RescaleSlope": b"Doe^Jane"}, "RescaleSlope is 'an invalid value of 8 characters', so"),
        ({"NumberOfFrames": b"zwei"}, "NumberOfFrames is 'an invalid value of 4 characters'; many frames"),
        ({"PhotometricInterpretation": b"Doe^Jane"}, "1 samples a pixel, an invalid value of 8 characters photo"),
        ({"ImagePositionPatient": b"1\\2\\12345678"}, "ImagePositionPatient is beyond 1,000,000 mm"),
        ({"ImageOrientationPatient": b"1\\0\\0\\0\\9876\\0"}, "ImageOrientationPatient is not two unit vectors"),
    ],
)
def test_details_quote_no_foreign_text(changes, words, syntax):
    found = problem(dicom_file(slice_elements(STORED, **changes), syntax))
    assert found.detail.split("no PixelData element; ")[-1].startswith(words)


def test_a_parser_is_not_quoted(monkeypatch):
    def fail(*_):
        raise ValueError("Invalid value for 'Doe^Jane'")

    monkeypatch.setattr(by_pydicom, "_header", fail)
    with pytest.raises(ct_slice.UnreadableSlice) as caught:
        by_pydicom.read_header(dicom_file(slice_elements(STORED)))
    assert str(caught.value) == "decode_failed: ValueError while parsing"


def test_a_syntax_that_is_no_uid_is_not_quoted():
    found = problem(encapsulated(slice_elements(STORED), "DOE JANE", b"\xff\xd8\xff\xd9"))
    assert "DOE" not in str(found)


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("color", {"PhotometricInterpretation": b"PALETTE COLOR"}),
        ("color", {"PhotometricInterpretation": None}),
        ("multi_frame", {"NumberOfFrames": b"zwei"}),
        ("derived_secondary", {"SOPClassUID": b"1.2.840.10008.5.1.4.1.1.7"}),
        ("derived_secondary", {"ImageType": b"DERIVED\\SECONDARY "}),
        ("not_ct", {"Modality": None}),
        ("missing_id", {"SOPInstanceUID": None}),
        ("missing_id", {"StudyInstanceUID": b""}),
        ("missing_id", {"SeriesInstanceUID": b"\0\0"}),
        ("bad_geometry", {"Rows": None}),
        ("bad_geometry", {"Columns": short(0)}),
        ("bad_geometry", {"Columns": short(4097)}),
        ("bad_bits", {"BitsAllocated": short(32)}),
        ("bad_bits", {"BitsAllocated": None}),
        ("bad_bits", {"BitsStored": short(0), "HighBit": None}),
        ("bad_bits", {"BitsStored": short(17), "HighBit": None}),
        ("bad_bits", {"PixelRepresentation": short(2)}),
        ("bad_bits", {"PixelRepresentation": None}),
        ("no_rescale", {"RescaleSlope": b"0"}),
        ("no_rescale", {"RescaleSlope": b"1\\1"}),
        ("no_rescale", {"RescaleSlope": b"nan"}),
        ("no_rescale", {"RescaleSlope": b"1_0"}),
        ("no_rescale", {"RescaleIntercept": b""}),
        ("no_rescale", {"RescaleIntercept": b"inf"}),
        ("no_position", {"ImagePositionPatient": None}),
        ("no_position", {"ImagePositionPatient": b"1\\2\\x"}),
        ("no_position", {"ImagePositionPatient": b"0\\0\\1e300"}),
        ("no_position", {"ImageOrientationPatient": None}),
        ("no_position", {"ImageOrientationPatient": b"0\\0\\0\\0\\0\\0"}),
        ("no_position", {"ImageOrientationPatient": b"1e200\\0\\0\\0\\1e200\\0"}),
        ("not_axial", {"ImageOrientationPatient": b"0\\1\\0\\0\\0\\-1"}),
    ],
)
def test_other_ways_to_the_same_reasons(reason, changes):
    assert problem(dicom_file(slice_elements(STORED, **changes))).reason == reason


@pytest.mark.parametrize(
    "changes",
    [
        {"NumberOfFrames": b"01"},
        {"NumberOfFrames": None},
        {"SamplesPerPixel": None},
        {"ImageType": None},
        {"HighBit": None},
        {"PhotometricInterpretation": b"MONOCHROME1"},
        {"ImageType": b"DERIVED\\PRIMARY\\AXIAL"},
    ],
)
def test_what_rsna_or_a_scanner_leaves_out_is_no_reason(changes):
    assert np.array_equal(alike(dicom_file(slice_elements(STORED, **changes))).hu, EXPECTED_HU)


def test_a_slice_that_ends_before_its_pixels_is_lost_and_no_other_kind_of_file():
    of_ct = slice_elements(STORED, PixelData=None)
    assert str(problem(dicom_file(of_ct))) == "truncated: the file of a CT image ends before its PixelData"
    localizer = slice_elements(STORED, ImageType=b"ORIGINAL\\PRIMARY\\LOCALIZER", PixelData=None)
    assert problem(dicom_file(localizer)).reason == "no_pixel_data"
    raw = slice_elements(STORED, SOPClassUID=b"1.2.840.10008.5.1.4.1.1.66", PixelData=None)
    assert problem(dicom_file(raw)).reason == "no_pixel_data"


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_every_cut_of_a_file_is_a_typed_problem(syntax):
    data = dicom_file(slice_elements(STORED), syntax)
    reasons = set()
    for cut in [*range(0, len(data) - 2048, 3), *range(len(data) - 2048, len(data), 97)]:
        found = problem(data[:cut])
        assert isinstance(found, ct_slice.UnreadableSlice) or found.reason == "no_pixel_data", cut
        reasons.add(found.reason)
    assert reasons <= {"empty_file", "not_dicom", "truncated", "no_pixel_data", "decode_failed"}


@pytest.mark.parametrize("extra", [-2, 2, 4, 100000])
def test_a_lying_pixel_length_is_told_from_a_cut(extra):
    head = PLAIN[: -2048 - 4]
    data = head + struct.pack("<L", 2048 + extra) + STORED.tobytes()
    assert problem(data).reason == "wrong_pixel_length"


def test_a_giant_matrix_with_little_data_allocates_nothing():
    for rows, columns in ((65535, 65535), (4096, 4096)):
        for syntax in (EXPLICIT, BIG, RLE):
            elements = slice_elements(STORED, Rows=short(rows), Columns=short(columns))
            data = encapsulated(elements, RLE, bytes(100)) if syntax == RLE else dicom_file(elements, syntax)
            tracemalloc.start()
            with pytest.raises(ct_slice.UnreadableSlice):
                ct_slice.read_slice(data)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 5_000_000


@pytest.mark.slow
def test_a_deflated_bomb_stops_at_the_cap():
    data = meta(DEFLATED) + deflate(dataset({0x00090010: ("OB", bytes(by_pydicom.MAX_INFLATED_BYTES))}))
    assert len(data) < 1_000_000
    found = problem(data)
    assert (found.reason, found.detail) == ("too_large", "the deflated data set is larger than 134,217,728 bytes")


def test_a_deflated_file_that_was_cut():
    data = dicom_file(slice_elements(STORED), DEFLATED)
    assert problem(data[:-700]).reason == "truncated"


@pytest.mark.parametrize(
    "data",
    [
        dicom_file(slice_elements(STORED), DEFLATED)[132:],  # no preamble: where the stream begins is not known
        swapped(dicom_file(slice_elements(STORED), DEFLATED), b"UL\x04\x00\x2c", b"UL\x04\x00\x00"),
        dicom_file(slice_elements(STORED), DEFLATED)[:190] + b"\xff" * 1000,
    ],
    ids=["no preamble", "meta length", "noise"],
)
def test_a_damaged_deflated_file_is_not_inflated_blindly(data):
    assert problem(data).reason == "decode_failed"


def test_an_unknown_syntax_is_named():
    found = problem(encapsulated(slice_elements(STORED), "1.2.840.10008.1.2.4.50", b"\xff\xd8\xff\xd9"))
    assert isinstance(found, ct_slice.UnsupportedSlice)
    assert str(found) == "unsupported_syntax: no decoder for transfer syntax 1.2.840.10008.1.2.4.50"


def test_sequences_nested_past_all_reason_are_a_typed_problem():
    nested = b""
    for _ in range(3000):
        item = struct.pack("<HHL", 0xFFFE, 0xE000, UNDEFINED) + nested + struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
        nested = element(0x00081140, "SQ", item + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0), length=UNDEFINED)
    with pytest.raises(ct_slice.UnreadableSlice, match=r"^decode_failed: RecursionError"):
        ct_slice.read_slice(meta(EXPLICIT) + nested + dataset(slice_elements(STORED)))


# --- position ------------------------------------------------------------------------------------------------


def position_mm(corner: tuple[float, ...], axes: tuple[float, ...]) -> float:
    texts = ("\\".join(f"{value:.9f}" for value in values).encode() for values in (corner, axes))
    position, orientation = texts
    data = dicom_file(slice_elements(STORED, ImagePositionPatient=position, ImageOrientationPatient=orientation))
    return alike(data).header.position_mm


def test_position_rises_towards_the_head_whichever_way_the_axes_turn():
    assert position_mm((-125, -120, 37.5), (1, 0, 0, 0, 1, 0)) == 37.5
    assert position_mm((125, -120, 37.5), (-1, 0, 0, 0, 1, 0)) == 37.5  # normal points to the feet
    assert position_mm((125, 120, -37.5), (-1, 0, 0, 0, -1, 0)) == -37.5


@given(
    tilt=st.floats(-0.7, 0.7),
    step=st.floats(0.5, 12),
    y=st.floats(-200, 200),
    z=st.floats(-900, 900),
    flip=st.booleans(),
)
def test_steps_along_a_tilted_normal_are_the_spacing(tilt, step, y, z, flip):
    cos, sin, sign = math.cos(tilt), math.sin(tilt), -1 if flip else 1
    axes = (sign, 0, 0, 0, cos, -sin)
    below = position_mm((-125, y, z), axes)
    above = position_mm((-125, y + step * sin, z + step * cos), axes)
    assert above - below == pytest.approx(step, abs=1e-5)


# --- quiet ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*UNUSUAL, "whole", "cut"])
def test_nothing_reaches_the_screen_or_the_log(name, recwarn, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    data = {"whole": dicom_file(slice_elements(STORED), BIG), "cut": PLAIN[:300], **UNUSUAL}[name]
    for read in (ct_slice.read_slice, ct_slice.read_header, ct_slice.pydicom_slice):
        try:
            read(data)
        except ct_slice.SliceProblem:
            continue
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_settings_of_pydicom_and_warnings_are_as_before_even_after_an_error():
    import pydicom.config

    logger = logging.getLogger("pydicom")
    before = (pydicom.config.settings.reading_validation_mode, list(warnings.filters), logger.disabled)
    with pytest.raises(ct_slice.SliceProblem):
        ct_slice.pydicom_slice(PLAIN[:300])
    ct_slice.pydicom_slice(PLAIN)
    assert (pydicom.config.settings.reading_validation_mode, list(warnings.filters), logger.disabled) == before


# --- the study of a file that gives no slice -----------------------------------------------------------------


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, DEFLATED, BIG])
@pytest.mark.parametrize("reason", [reason for reason in REFUSED if reason != "missing_id"])
def test_the_study_of_a_refused_file(reason, syntax):
    assert ct_slice.study_uid(dicom_file(slice_elements(STORED, **REFUSED[reason][0]), syntax)) == "ID_study"


@pytest.mark.slow
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_the_study_of_a_cut_file_is_whole_or_unknown(syntax):
    data = dicom_file(slice_elements(STORED, StudyInstanceUID=b"1.2.840.113619.2.55"), syntax)
    end = data.index(b"1.2.840.113619.2.55") + 20  # padded to even length
    assert {ct_slice.study_uid(data[:cut]) for cut in range(end)} == {""}
    assert {ct_slice.study_uid(data[:cut]) for cut in range(end + 8, len(data))} == {"1.2.840.113619.2.55"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"This file is not DICOM.\n" * 20,
        dicom_file(slice_elements(STORED, StudyInstanceUID=None)),
        dicom_file(slice_elements(STORED, StudyInstanceUID=b"Doe^Jane")),
        dicom_file(slice_elements(STORED, StudyInstanceUID=b"1" * 65)),
        dicom_file(slice_elements(STORED, StudyInstanceUID=b"1.2\\1.3")),
        dicom_file(slice_elements(STORED), DEFLATED)[:-200],
    ],
)
def test_no_study_where_none_can_be_had(data):
    assert ct_slice.study_uid(data) == ""


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, DEFLATED, BIG])
def test_elements_up_to_a_tag_come_decoded(syntax):
    elements = {**slice_elements(head_slice()), 0x00080005: ("CS", b"ISO_IR 100"), 0x00100010: ("PN", b"M\xfcller")}
    found = ct_slice.elements_of(dicom_file(dict(sorted(elements.items())), syntax), 0x0020000D)
    assert (found.PatientName, found.PatientID, found.StudyInstanceUID) == ("Müller", "ID_patient", "ID_study")
    assert "SeriesInstanceUID" not in found
    assert "PixelData" not in found


def test_elements_of_what_is_no_dicom_are_a_problem():
    with pytest.raises(ct_slice.UnreadableSlice, match="not_dicom"):
        ct_slice.elements_of(b"nonsense" * 100, 0x0020000D)
