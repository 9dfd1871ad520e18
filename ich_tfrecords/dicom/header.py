"""What makes a file a CT slice: the wanted elements, and the typed problem for every file that is none.

Whoever reads a file, the fast walk or pydicom, hands the elements to `checked`. So both ways accept, refuse
and explain alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from ich_tfrecords.problems import Problem

MAX_SIDE_PX = 4096  # the largest CT matrix in use is 2048; a larger claim is damage, refused before allocation
MAX_POSITION_MM = 1e6
MAX_CODE = 16  # characters of a code string (PS3.5 6.2, CS) and of a decimal string

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
NATIVE = (IMPLICIT_LITTLE, EXPLICIT_LITTLE, DEFLATED, EXPLICIT_BIG)
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
ENHANCED = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")  # CT, and CT converted from older slices

TEXT = {
    0x00080008: "ImageType",
    0x00080016: "SOPClassUID",
    0x00080018: "SOPInstanceUID",
    0x00080060: "Modality",
    0x00100020: "PatientID",
    0x0020000D: "StudyInstanceUID",
    0x0020000E: "SeriesInstanceUID",
    0x00200032: "ImagePositionPatient",
    0x00200037: "ImageOrientationPatient",
    0x00280004: "PhotometricInterpretation",
    0x00280008: "NumberOfFrames",
    0x00281052: "RescaleIntercept",
    0x00281053: "RescaleSlope",
}
PADDING = {0x00280120: "PixelPaddingValue", 0x00280121: "PixelPaddingRangeLimit"}
SHORT = {
    0x00280002: "SamplesPerPixel",
    0x00280010: "Rows",
    0x00280011: "Columns",
    0x00280100: "BitsAllocated",
    0x00280101: "BitsStored",
    0x00280102: "HighBit",
    0x00280103: "PixelRepresentation",
    **PADDING,
}
FACTS = {  # which no slice needs; their bytes are kept as they are, for `facts.of`
    0x00080070: "Manufacturer",
    0x00081090: "ManufacturerModelName",
    0x00180010: "ContrastBolusAgent",
    0x00180050: "SliceThickness",
    0x00180060: "KVP",
    0x00181120: "GantryDetectorTilt",
    0x00181210: "ConvolutionKernel",
    0x00280030: "PixelSpacing",
}
TRANSFER_SYNTAX = 0x00020010
PIXEL_DATA = 0x7FE00010
SECONDARY = frozenset(("DERIVED", "SECONDARY"))  # in the first values of ImageType (PS3.3 C.7.6.1.1.2)
# values of ImageType of pictures that hold no HU of one slice: projections, surfaces, screens, maps of blood flow
NO_SLICE = frozenset(
    ("MIP", "MINIP", "MIN_IP", "MAX_IP", "AVERAGE", "PROJECTION IMAGE", "VRT", "SSD", "3D", "VOLUME RENDER")
    + ("SCREEN SAVE", "SCREENSHOT", "DOSE_INFO", "SUBTRACTION", "PERFUSION", "RGB")
)
ORIGINAL_ALONE = ("original",)  # `DatasetSpec.accept` of most
DERIVED_WAY_OUT = "a spec with accept: [original, derived], such as hospital, takes these"
ASCII_ESCAPE = "\x1b"  # begins a switch of character set (PS3.5 6.1.2.5.3), so the text is not ASCII after all


class SliceProblem(Problem):
    """Why the bytes of a file give no slice."""


class UnreadableSlice(SliceProblem):
    """The bytes are damaged or are not DICOM."""


class UnsupportedSlice(SliceProblem):
    """The file is whole, but it is no axial CT slice with known HU."""


class HoldsFrames(UnsupportedSlice):
    """The file is enhanced CT: its slices are frames, whose headers stand in functional groups (PS3.3 C.7.6.16)."""


class SliceHeader(NamedTuple):
    """What the header of a CT slice says.

    `patient_id` may be empty, as it is in de-identified files (PS3.3 C.7.1.1: type 2); no other id is.
    `position_mm` runs along the slice normal (PS3.3 C.7.6.2.1.1) towards the head. `slope` and
    `intercept` give HU. `padding`: the least and the greatest stored value that stands for no value (PS3.3
    C.7.5.1.1.2), None where there is none. `pixel_offset` is where plain cells begin in the file, -1 when they are
    encoded. `derived`: made from other images, by its ImageType. `facts`: the bytes of `FACTS` by keyword, without
    their padding.
    """

    sop_uid: str
    patient_id: str
    study_uid: str
    series_uid: str
    position_mm: float
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    transfer_syntax: str
    pixel_offset: int
    derived: bool
    facts: dict[str, bytes]


def checked(
    fields: dict[str, Any], present: int | None, declared: int | None, offset: int, accept: Collection[str]
) -> SliceHeader:
    """Header of understood elements, or the typed problem that keeps the file from being a slice.

    `fields`: values by keyword, `TEXT` ones str, `SHORT` ones int, TransferSyntaxUID, and `SliceHeader.facts`; a value
    of `PADDING` that is no number of two bytes is None. `accept`: `DatasetSpec.accept`. `present`,
    `declared`: bytes of PixelData in the file and by its length field (None: undefined length); `present`
    None: there is no PixelData.
    """
    if present is None:
        _require_end(fields)
        raise UnsupportedSlice(
            "no_pixel_data", f"no PixelData element; modality {_shown(fields, 'Modality', 'unknown')}"
        )
    kind = _kind(fields)
    _check_kind(fields, kind, accept)
    sop, patient = _id(fields, "SOPInstanceUID"), fields.get("PatientID", "").strip()
    study, series = _id(fields, "StudyInstanceUID"), _id(fields, "SeriesInstanceUID")
    rows, columns, allocated, stored = matrix(fields)
    slope, intercept = _number(fields, "RescaleSlope"), _number(fields, "RescaleIntercept")
    if slope == 0:
        raise UnsupportedSlice("no_rescale", "RescaleSlope is 0, so stored values give no HU (PS3.3 C.11.1)")
    position_mm = _position_mm(fields)
    syntax = fields["TransferSyntaxUID"]
    if syntax in NATIVE:
        _check_length(rows * columns * allocated // 8, present, declared)
    signed = fields["PixelRepresentation"] == 1
    scale = (allocated, stored, signed, slope, intercept, _padding(fields, signed))
    is_derived = not SECONDARY.isdisjoint(kind[:2])
    facts: dict[str, bytes] = fields["facts"]
    return SliceHeader(
        sop, patient, study, series, position_mm, rows, columns, *scale, syntax, offset, is_derived, facts
    )


def _require_end(fields: dict[str, Any]) -> None:
    """Raise where a file without PixelData is that of a slice, which ends too early: its class always has some."""
    is_ct = fields.get("SOPClassUID") == CT_IMAGE and fields.get("Modality", "").strip() in ("CT", "")
    if is_ct and not {"LOCALIZER", "SECONDARY"}.intersection(_kind(fields)):
        raise UnreadableSlice("truncated", "the file of a CT image ends before its PixelData")


def _kind(fields: dict[str, Any]) -> list[str]:
    """Values of ImageType."""
    return [part.strip() for part in fields.get("ImageType", "").upper().split("\\")]


def _check_kind(fields: dict[str, Any], kind: list[str], accept: Collection[str]) -> None:
    """Only single-frame grey CT that `accept` names passes (PS3.3 A.3, C.8.2.1.1.1); `kind`: its ImageType."""
    samples, photometric = fields.get("SamplesPerPixel", 1), fields.get("PhotometricInterpretation", "")
    if samples != 1 or photometric not in ("MONOCHROME2", "MONOCHROME1"):
        shown = _shown(fields, "PhotometricInterpretation", "no")
        raise UnsupportedSlice("color", f"{samples} samples a pixel, {shown} photometric interpretation")
    if fields.get("SOPClassUID") in ENHANCED:
        raise HoldsFrames("enhanced_ct", "the file holds frames, each a slice; they are read one by one")
    frames = fields.get("NumberOfFrames", "").strip() or "1"
    if numbers(frames) != (1.0,):
        shown = _shown(fields, "NumberOfFrames")
        raise UnsupportedSlice(
            "multi_frame",
            f"NumberOfFrames is '{shown}'; many frames are read of enhanced CT alone, so convert it to single ones",
        )
    if "LOCALIZER" in kind:
        raise UnsupportedSlice("localizer", f"ImageType is {_shown(fields, 'ImageType')}")
    if "SECONDARY" in kind[1:2] or fields.get("SOPClassUID") == SECONDARY_CAPTURE:
        _check_derived(fields, kind, accept)
    if fields.get("Modality", "").strip() != "CT":
        raise UnsupportedSlice("not_ct", f"Modality is '{_shown(fields, 'Modality')}'")


def _check_derived(fields: dict[str, Any], kind: list[str], accept: Collection[str]) -> None:
    """A slice called secondary passes where `accept` names it, in the class of CT slices and not drawn from many."""
    shown = f"ImageType is {_shown(fields, 'ImageType')}"
    if fields.get("SOPClassUID") != CT_IMAGE:
        raise UnsupportedSlice("derived_secondary", f"{shown}, in a class of files that is not CT Image Storage")
    if drawn := NO_SLICE.intersection(kind):
        raise UnsupportedSlice("derived_secondary", f"{shown}; {min(drawn)} is a picture of many slices")
    if "derived" not in accept:
        raise UnsupportedSlice("derived_secondary", f"{shown}; {DERIVED_WAY_OUT}")


def _shown(fields: dict[str, Any], keyword: str, absent: str = "absent") -> str:
    """The value of an element where it is short and of code characters, otherwise only how long it is.

    Details go into rejects.csv, and damage or a careless writer can put the words of any element here.
    """
    value = fields.get(keyword, "")
    if not value:
        return absent if keyword not in fields else "empty"
    most = 64 if keyword == "ImageType" else MAX_CODE
    short = len(value) <= most and all(len(part) <= MAX_CODE for part in value.split("\\"))
    if short and re.fullmatch(r"[A-Z0-9_ .+\-\\]*", value):
        return str(value)
    return f"an invalid value of {len(value):,} characters"


def _id(fields: dict[str, Any], keyword: str) -> str:
    value = fields.get(keyword, "").strip()
    if not value:
        raise missing_id(keyword)
    return value


def missing_id(keyword: str) -> UnsupportedSlice:
    """The problem of a slice without one of its ids."""
    return UnsupportedSlice("missing_id", f"{keyword} is empty; slices are told apart and split by their ids")


def matrix(fields: dict[str, Any]) -> tuple[int, int, int, int]:
    """Rows, Columns, BitsAllocated, BitsStored (PS3.3 C.7.6.3.1, PS3.5 8.1.1)."""
    rows, columns = fields.get("Rows", 0), fields.get("Columns", 0)
    if not (0 < rows <= MAX_SIDE_PX and 0 < columns <= MAX_SIDE_PX):
        raise UnreadableSlice("bad_geometry", f"{rows} rows and {columns} columns; 1 to {MAX_SIDE_PX} are read")
    allocated, stored = fields.get("BitsAllocated", 0), fields.get("BitsStored", 0)
    high = fields.get("HighBit", stored - 1)
    sign = fields.get("PixelRepresentation")
    if allocated not in (8, 16) or not 1 <= stored <= allocated or high != stored - 1 or sign not in (0, 1):
        raise UnsupportedSlice(
            "bad_bits",
            f"BitsAllocated {allocated}, BitsStored {stored}, HighBit {high}, PixelRepresentation {sign}",
        )
    return rows, columns, allocated, stored


def _padding(fields: dict[str, Any], signed: bool) -> tuple[int, int] | None:
    """Range of PixelPaddingValue and PixelPaddingRangeLimit as whole cells, whichever is the lower.

    PS3.3 C.7.5.1.1.2: their sign is PixelRepresentation's, whatever the VR in the file says.
    """
    if "PixelPaddingValue" not in fields:
        return None
    ends = [fields["PixelPaddingValue"], fields.get("PixelPaddingRangeLimit", fields["PixelPaddingValue"])]
    if None in ends:
        raise UnsupportedSlice("bad_padding", "PixelPaddingValue or its range limit is no number of two bytes")
    low, high = sorted(value - (1 << 16) if signed and value >> 15 else value for value in ends)
    return low, high


def _number(fields: dict[str, Any], keyword: str) -> float:
    values = numbers(fields.get(keyword, ""))
    if len(values) != 1:
        raise UnsupportedSlice("no_rescale", f"{keyword} is '{_shown(fields, keyword)}', so stored values give no HU")
    return values[0]


def numbers(text: str) -> tuple[float, ...]:
    """Values of a DS or IS text (PS3.5 6.2); empty when one is no finite number."""
    if "_" in text:  # Python reads 1_0 as ten
        return ()
    try:
        values = tuple(float(part) for part in text.split("\\"))
    except ValueError:
        return ()
    return values if all(map(math.isfinite, values)) else ()


def _position_mm(fields: dict[str, Any]) -> float:
    corner = numbers(fields.get("ImagePositionPatient", ""))
    axes = numbers(fields.get("ImageOrientationPatient", ""))
    if len(corner) != 3 or len(axes) != 6:
        raise UnsupportedSlice("no_position", "ImagePositionPatient or ImageOrientationPatient is absent or unusable")
    return along_normal(corner, axes)


def along_normal(corner: Sequence[float], axes: Sequence[float]) -> float:
    """ImagePositionPatient in mm along the normal of ImageOrientationPatient, to the head. Raises `SliceProblem`."""
    if max(map(abs, corner)) > MAX_POSITION_MM:
        raise UnsupportedSlice("no_position", f"ImagePositionPatient is beyond {MAX_POSITION_MM:,.0f} mm")
    ax, ay, az, bx, by, bz = axes
    normal = (ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx)
    length = math.sqrt(sum(part * part for part in normal))
    if not 0.5 < length < 2:
        raise UnsupportedSlice("no_position", "ImageOrientationPatient is not two unit vectors")
    if abs(normal[2]) < length * math.sqrt(0.5):
        shown = ", ".join(f"{part + 0.0:.2f}" for part in normal)
        raise UnsupportedSlice("not_axial", f"the slice normal ({shown}) is more than 45 degrees off the body axis")
    along = sum(a * b for a, b in zip(corner, normal, strict=True)) / length
    return math.copysign(1.0, normal[2]) * along


def _check_length(expected: int, present: int, declared: int | None) -> None:
    """PixelData must hold the matrix, and one byte more at most (PS3.5 8.1.1 pads to even length)."""
    claimed = present if declared is None else declared
    if claimed not in (expected, expected + 1):
        raise UnreadableSlice("wrong_pixel_length", f"PixelData has {claimed:,} bytes, the matrix needs {expected:,}")
    if present < expected:
        raise UnreadableSlice("truncated", f"PixelData has {max(present, 0):,} of {expected:,} bytes")
