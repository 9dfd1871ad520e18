"""Files that went wrong for real users, as public reports tell of them: each with its HU, or with its reason.

The reports are named by repository and number. What is right stands in docs/decisions/0025.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from codestreams import jpeg
from dicom_files import (
    EXPLICIT,
    IMPLICIT,
    J2K_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    JPEG_LS,
    JPEG_LS_NEAR,
    UNDEFINED,
    codestream,
    dataset,
    dicom_file,
    element,
    encapsulated,
    head_slice,
    meta,
    short,
    slice_elements,
)

from ich_tfrecords.dicom import ct_slice

HU = head_slice(64, low=-1000, high=1800)
ZERO = {"RescaleIntercept": b"0"}


def unsigned(values: np.ndarray, bits: int = 16) -> np.ndarray:
    return (values.astype(np.int32) & ((1 << bits) - 1)).astype(np.uint16)


def packed(cells: np.ndarray, bits: int, signed: bool = False) -> bytes:
    """JPEG 2000 codestream of these cells."""
    from openjpeg import utils as openjpeg

    form = {"photometric_interpretation": 2, "use_mct": False}
    return bytes(openjpeg.encode_buffer(cells.tobytes(), *cells.shape[::-1], 1, bits, signed, **form))


def compressed(syntax: str, stream: bytes, stored: np.ndarray = HU) -> bytes:
    return encapsulated(slice_elements(stored, **ZERO), syntax, stream)


def loco(cells: np.ndarray, bits: int) -> bytes:
    import jpeg_ls

    return bytes(jpeg_ls.encode_buffer(cells.tobytes(), *cells.shape, 1, bits, 0)).rstrip(b"\0")


def padded(value: int, syntax: str = EXPLICIT) -> bytes:
    cells = unsigned(HU.astype(np.int32) + 1024)
    cells[:20] = value
    elements = slice_elements(cells, RescaleIntercept=b"-1024") | {0x00280120: ("US", short(value))}
    return dicom_file(elements, syntax)


def with_metal() -> np.ndarray:
    metal = np.clip(HU, -1024, 1800)
    metal[32, 30:40] = 3000
    return metal


IN_AIR = np.vstack([np.full((20, 64), -1000), HU[20:]])
WHOLE_2000, WHOLE_LOSSLESS = packed(HU, 16, True), jpeg(unsigned(HU), 16, 1)
WHOLE_LS = loco(unsigned(HU + 1024), 12)

# name -> file and HU; the first three wrote other pictures without a word
READ: dict[str, tuple[Callable[[], bytes], np.ndarray]] = {
    "a 14-bit unsigned JPEG 2000 stream, signed 16 (pydicom#1149)": (
        lambda: compressed(J2K_LOSSLESS, packed(unsigned(HU, 14), 14)), HU,
    ),
    "a 12-bit JPEG-LS stream, signed 16 (pydicom#2009)": (
        lambda: compressed(JPEG_LS, loco(unsigned(HU, 12), 12)), HU,
    ),
    "padding of 63536 in unsigned cells (vtk-dicom#173)": (lambda: padded(63536), IN_AIR),
    "the same, implicit": (lambda: padded(63536, IMPLICIT), IN_AIR),
    "padding of 65535 (dwv#135)": (lambda: padded(65535), IN_AIR),
    "BitsStored from the maximum (duke-dbt-data#1)": (
        lambda: dicom_file(slice_elements(np.minimum(HU, 480), 10, **ZERO)), np.minimum(HU, 480),
    ),
    "10 bits declared for 16 (dicom-numpy#15)": (lambda: dicom_file(slice_elements(HU, 10, **ZERO)), HU),
    "12 bits declared, metal above": (lambda: dicom_file(slice_elements(with_metal(), 12, **ZERO)), with_metal()),
    "JPEG 2000 without its end marker (openjpeg#789)": (lambda: compressed(J2K_LOSSLESS, WHOLE_2000[:-2]), HU),
    "JPEG 2000 with bytes after its end": (lambda: compressed(J2K_LOSSLESS, WHOLE_2000 + b"\xff\xff"), HU),
    "JPEG 2000 with a second end marker": (lambda: compressed(J2K_LOSSLESS, WHOLE_2000 + b"\0\xff\xd9"), HU),
    "JPEG Lossless without its end marker (fo-dicom.Codecs#37)": (
        lambda: compressed(JPEG_LOSSLESS_SV1, WHOLE_LOSSLESS[:-2]), HU,
    ),
    "JPEG Lossless with half its end marker": (lambda: compressed(JPEG_LOSSLESS_SV1, WHOLE_LOSSLESS[:-1]), HU),
    "JPEG Lossless with bytes after its end": (
        lambda: compressed(JPEG_LOSSLESS_SV1, WHOLE_LOSSLESS + b"\xff\xd8\xff\xe0"), HU,
    ),
    "JPEG-LS without its end marker": (lambda: compressed(JPEG_LS, loco(unsigned(HU), 16)[:-2]), HU),
    "JPEG-LS with half its end marker": (lambda: compressed(JPEG_LS, loco(unsigned(HU), 16)[:-1]), HU),
    "JPEG-LS with bytes after its end": (lambda: compressed(JPEG_LS, loco(unsigned(HU), 16) + b"\xff\xd8"), HU),
    "JPEG-LS with a zero before its end (charls#437)": (
        lambda: compressed(JPEG_LS, WHOLE_LS[:-2] + b"\0" + WHOLE_LS[-2:], unsigned(HU + 1024)), HU + 1024,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_slice_of_which_every_value_is_there(name):
    build, hu = READ[name]
    assert np.array_equal(ct_slice.read_slice(build()).hu, hu)


def enhanced(frames: int) -> bytes:
    """Enhanced CT: rescale and position stand in functional groups (PS3.3 C.7.6.16)."""
    changes = dict.fromkeys(("RescaleSlope", "RescaleIntercept", "ImagePositionPatient", "ImageOrientationPatient"))
    pixels = HU.tobytes() * frames
    kind = {"SOPClassUID": b"1.2.840.10008.5.1.4.1.1.2.1", "NumberOfFrames": b"%d" % frames, "PixelData": pixels}
    groups = item(element(0x00289145, "SQ", item(element(0x00281053, "DS", b"1"))))
    return dicom_file(slice_elements(HU, **changes, **kind) | {0x52009229: ("SQ", groups)})


def item(content: bytes) -> bytes:
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content


def directory_with_icon() -> bytes:
    """A DICOMDIR whose record holds a picture (PS3.10 8.6, PS3.3 F.7)."""
    icon = element(0x00280010, "US", short(64)) + element(0x7FE00010, "OB", bytes(4096))
    record = element(0x00041430, "CS", b"IMAGE") + element(0x00880200, "SQ", item(icon))
    return meta(EXPLICIT) + element(0x00041130, "CS", b"DISC") + element(0x00041220, "SQ", item(record))


REFUSED: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "12 bits in a 16-bit JPEG Lossless stream, signed (pydicom#693)": (
        lambda: compressed(JPEG_LOSSLESS_SV1, jpeg(unsigned(HU, 12), 16, 1)),
        "ambiguous_sign",
        "are smooth as two's complement of 12 bits, but the header says signed values of 16 bits",
    ),
    "a 12-bit JPEG Lossless stream, signed 16 (pydicom#2012)": (
        lambda: compressed(JPEG_LOSSLESS_SV1, jpeg(unsigned(HU, 12), 12, 1)),
        "ambiguous_sign",
        "the header says signed values of 16 bits, the JPEG Lossless stream has 12 bits and uses the topmost one",
    ),
    "the same, not compressed": (
        lambda: dicom_file(slice_elements(unsigned(HU, 12).view(np.int16), **ZERO)),
        "ambiguous_sign",
        "stored values run from 0 to 4,095",
    ),
    "-2000 in unsigned cells, not declared": (
        lambda: dicom_file(slice_elements(np.vstack([np.full((9, 64), 63536), unsigned(HU[9:] + 1024)]).astype("u2"))),
        "ambiguous_sign",
        "to 63,536 and are smooth as two's complement of 16 bits, but the header says unsigned",
    ),
    "enhanced CT of one frame (fo-dicom#917)": (lambda: enhanced(1), "enhanced_ct", "each a slice"),
    "enhanced CT of three frames (dicom2nifti#140)": (lambda: enhanced(3), "enhanced_ct", "read one by one"),
    "a DICOMDIR with an icon (vtk-dicom#41)": (directory_with_icon, "no_pixel_data", "no PixelData element"),
    "padding of four bytes": (
        lambda: dicom_file(slice_elements(HU) | {0x00280120: ("UL", bytes(4))}),
        "bad_padding",
        "PixelPaddingValue or its range limit is no number of two bytes",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_told_has_its_reason(name):
    build, reason, words = REFUSED[name]
    with pytest.raises(ct_slice.UnsupportedSlice) as refused:
        ct_slice.read_slice(build())
    assert refused.value.reason == reason
    assert words in refused.value.detail


@pytest.mark.parametrize(("greatest", "is_refused"), [(2047, True), (2045, True), (2041, False)])
def test_near_lossless_values_where_the_sign_turns(greatest, is_refused):
    """2,047 and an error of 3 is -2,046 in twelve bits (dcm4che#656)."""
    stored = np.minimum(HU, 1500).astype(np.int16)
    stored[30:34, 30:34] = greatest
    import jpeg_ls

    raw = unsigned(stored, 12)
    stream = bytes(jpeg_ls.encode_buffer(raw.tobytes(), *raw.shape, 1, 12, 3))
    elements = slice_elements(stored, 12, **ZERO)
    data = encapsulated(elements, JPEG_LS_NEAR, stream)
    if is_refused:
        with pytest.raises(ct_slice.UnsupportedSlice, match="ambiguous_sign: signed values within 3 of 2,048"):
            ct_slice.read_slice(data)
    else:
        assert np.abs(ct_slice.read_slice(data).hu.astype(int) - stored).max() <= 3


# --- padding in the header -----------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize(
    ("signed", "elements", "padding"),
    [
        (True, {}, None),
        (True, {0x00280120: ("SS", struct.pack("<h", -2000))}, (-2000, -2000)),
        (True, {0x00280120: ("US", short(63536))}, (-2000, -2000)),  # the sign is PixelRepresentation's
        (False, {0x00280120: ("SS", struct.pack("<h", -2000))}, (63536, 63536)),
        (False, {0x00280120: ("US", short(9)), 0x00280121: ("US", short(3))}, (3, 9)),
        (True, {0x00280120: ("SS", short(5)), 0x00280121: ("SS", struct.pack("<h", -5))}, (-5, 5)),
        (True, {0x00280121: ("US", short(3))}, None),  # a limit of nothing
        (True, {0x00280120: ("US", b"")}, None),
    ],
)
def test_padding_is_read_by_both_ways(signed, elements, padding, syntax):
    stored = HU if signed else unsigned(HU + 1024)
    data = dicom_file(slice_elements(stored) | elements, syntax)
    assert ct_slice.read_header(data).padding == ct_slice.pydicom_header(data).padding == padding
    is_fast = ct_slice.fast_header(data, len(data)) is not None
    assert is_fast == (elements.get(0x00280120, ("", b"12"))[1] != b"")


@pytest.mark.parametrize("syntax", [JPEG_LS, J2K_LOSSLESS, JPEG_LOSSLESS_SV1])
def test_padding_of_compressed_slices_is_air_too(syntax):
    cells = unsigned(HU + 1024)
    cells[:20] = 63536
    stream = jpeg(cells, 16, 1) if syntax == JPEG_LOSSLESS_SV1 else codestream(cells, syntax, 16)
    elements = slice_elements(cells, RescaleIntercept=b"-1024") | {0x00280120: ("US", short(63536))}
    assert np.array_equal(ct_slice.read_slice(encapsulated(elements, syntax, stream)).hu, IN_AIR)


# --- whole or cut, by structure ------------------------------------------------------------------------------


def tiled(**options) -> bytes:
    """A JPEG 2000 codestream of four tiles: four streams of one quarter each, put together (T.800 B.3)."""
    quarters = [HU[y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)]
    streams = [packed(np.ascontiguousarray(quarter), 16, True) for quarter in quarters]
    begin = streams[0].index(b"\xff\x90")
    head = bytearray(streams[0][:begin])
    struct.pack_into(">LL", head, 8, 64, 64)
    parts = []
    for number, stream in enumerate(streams):
        part = bytearray(stream[stream.index(b"\xff\x90") : -2])
        struct.pack_into(">H", part, 4, number)
        struct.pack_into(">L", part, 6, options.get("length", len(part)))
        part[11] = options.get("parts", 1)
        parts.append(bytes(part))
    return bytes(head) + b"".join(parts[: options.get("kept", 4)]) + b"\xff\xd9"


def test_tiles_are_read_with_and_without_the_end_marker():
    assert np.array_equal(ct_slice.read_slice(compressed(J2K_LOSSLESS, tiled())).hu, HU)
    assert np.array_equal(ct_slice.read_slice(compressed(J2K_LOSSLESS, tiled()[:-2])).hu, HU)
    assert np.array_equal(ct_slice.read_slice(compressed(J2K_LOSSLESS, tiled(parts=0))).hu, HU)


@pytest.mark.parametrize(
    "stream",
    [
        tiled(kept=3)[:-2],  # a tile lacks
        tiled(parts=2)[:-2],  # every tile announces a second part
        tiled(parts=0)[:-2],  # the number of parts is told nowhere
        tiled(kept=4, length=0)[:-2],  # a part that runs to the end marker, which lacks
        tiled(kept=3),
        tiled(parts=2),
        tiled()[:-3],
        tiled()[:-3] + b"\xff\xd9",
        tiled()[:-2] + bytes(3),
        WHOLE_2000[:-3],
        WHOLE_2000[:-40] + bytes(40),  # blocks that a crash left unwritten
        WHOLE_2000[:-40] + b"\xff" * 40,
        WHOLE_2000[:-40] + b"\xff\xd9",
        WHOLE_2000[:-300] + WHOLE_2000[-200:],  # a fragment lacks
        WHOLE_2000[: len(WHOLE_2000) // 2],
    ],
)
def test_every_tile_part_must_be_there_and_its_end(stream):
    with pytest.raises(ct_slice.UnreadableSlice, match="truncated"):
        ct_slice.read_slice(compressed(J2K_LOSSLESS, stream))


@pytest.mark.parametrize("syntax", [JPEG_LS, JPEG_LOSSLESS_SV1])
def test_without_the_end_marker_every_coded_bit_must_be_there(syntax):
    stream = (loco(unsigned(HU), 16) if syntax == JPEG_LS else WHOLE_LOSSLESS)[:-2]
    for cut in range(2, 200):  # one byte may hold spare bits alone
        with pytest.raises(ct_slice.UnreadableSlice, match="truncated"):
            ct_slice.read_slice(compressed(syntax, stream[:-cut]))


@pytest.mark.parametrize("zeros", range(6))
def test_zeros_in_front_of_the_end_of_jpeg_ls(zeros):
    """Flat rows end in coded bits of zeros themselves, which are not to be taken away."""
    cells = unsigned(HU + 1024)
    cells[40:] = 0
    stream = loco(cells, 12)
    data = compressed(JPEG_LS, stream[:-2] + bytes(zeros) + stream[-2:], cells)
    if zeros <= 4:
        assert np.array_equal(ct_slice.read_slice(data).hu, cells)
    else:
        with pytest.raises(ct_slice.UnreadableSlice, match="decode_failed"):
            ct_slice.read_slice(data)


def test_boxes_around_a_codestream_are_stepped_over():
    signature, form = b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x14ftypjp2 \0\0\0\0jp2 "
    comment = b"\0\0\0\x10xml \xff\x4f\xff\x51\xff\x4f\xff\x51"  # looks like the begin of a codestream
    for box in (b"\0\0\0\0jp2c", b"\0\0\0\1jp2c" + struct.pack(">Q", 16 + len(WHOLE_2000))):
        stream = signature + form + comment + box + WHOLE_2000
        assert np.array_equal(ct_slice.read_slice(compressed(J2K_LOSSLESS, stream)).hu, HU)
    with pytest.raises(ct_slice.UnreadableSlice, match="no JPEG 2000 codestream"):
        ct_slice.read_slice(compressed(J2K_LOSSLESS, signature + form + comment))


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_a_file_cut_inside_a_sequence_is_truncated(syntax):
    """It was said to have no PixelData, as a report has none."""
    before = dataset({tag: value for tag, value in slice_elements(HU).items() if tag < 0x00280002}, syntax)
    sequence = element(0x00209222, "SQ", b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + bytes(20), syntax, length=UNDEFINED)
    with pytest.raises(ct_slice.UnreadableSlice, match="truncated: the file ends inside an element"):
        ct_slice.read_slice(meta(syntax) + before + sequence)


def test_a_text_that_names_the_deflated_syntax_is_only_a_text():
    elements = slice_elements(HU, **ZERO) | {0x00204000: ("LT", b"was 1.2.840.10008.1.2.1.99")}
    elements[0x00091001] = ("UN", b"\xff" * 7)  # an odd length: the thorough way
    data = dicom_file(elements)
    assert np.array_equal(ct_slice.pydicom_slice(data).hu, HU)


def test_a_report_that_names_pixel_data_is_no_cut_slice():
    report = slice_elements(HU, PixelData=None, Modality=b"SR") | {0x00091002: ("OB", b"\xe0\x7f\x10\x00" * 4)}
    with pytest.raises(ct_slice.UnsupportedSlice, match="no_pixel_data: no PixelData element; modality SR"):
        ct_slice.read_slice(dicom_file(report))


# --- by real slices ------------------------------------------------------------------------------------------


@pytest.mark.real
def test_rules_of_doubt_refuse_no_real_slice(real_dicom_dir):
    """Real slices at every width that holds them, unsigned, and signed with zeros above."""
    seen = 0
    for path in sorted(real_dicom_dir.rglob("*.dcm"))[::5]:
        hu = np.clip(ct_slice.read_slice(path.read_bytes()).hu, -1024, 3071)
        for bits in (12, 13, 16):
            plain = dicom_file(slice_elements(unsigned(hu.astype(np.int32) + 1024), bits, RescaleIntercept=b"-1024"))
            assert np.array_equal(ct_slice.read_slice(plain).hu, hu)
            shown = np.minimum(hu, (1 << bits - 1) - 1)
            zeros_above = slice_elements(unsigned(shown, bits).view(np.int16), bits, **ZERO)
            assert np.array_equal(ct_slice.read_slice(dicom_file(zeros_above)).hu, shown)
            seen += 1
    assert seen
