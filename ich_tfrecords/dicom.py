"""From the bytes of a DICOM file to a CT slice in HU; the only file that knows tag names.

Plain little-endian slices take a walk over the element headers (`fast_header`). Whatever that walk does
not fully understand goes to pydicom. Both ways end in `_checked`, so they accept, refuse and explain alike.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ich_tfrecords import pixels

MAX_SIDE_PX = 4096  # the largest CT matrix in use is 2048; a larger claim is damage, refused before allocation
MAX_INFLATED_BYTES = 1 << 27
HEAD_BYTES = 8192  # holds the header of an RSNA slice (1 kB) and of most clinical ones

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
NATIVE = (IMPLICIT_LITTLE, EXPLICIT_LITTLE, DEFLATED, EXPLICIT_BIG)
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

Buffer = bytes | bytearray | memoryview


class SliceProblem(Exception):
    """Why a file gives no slice: `reason`, a fixed word for counting, and `detail` for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class UnreadableSlice(SliceProblem):
    """The bytes are damaged or are not DICOM."""


class UnsupportedSlice(SliceProblem):
    """The file is whole, but it is no axial CT slice with known HU."""


class SliceHeader(NamedTuple):
    """What the header of a CT slice says.

    `position_mm` runs along the slice normal (PS3.3 C.7.6.2.1.1) towards the head. `slope` and
    `intercept` give HU. `pixel_offset` is where plain cells begin in the file, -1 when they are encoded.
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
    transfer_syntax: str
    pixel_offset: int


class CtSlice(NamedTuple):
    """Header and HU, int16 [rows, columns]. `hu` may be a view of the bytes that were read."""

    header: SliceHeader
    hu: npt.NDArray[np.int16]


_TEXT = {
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
_SHORT = {
    0x00280002: "SamplesPerPixel",
    0x00280010: "Rows",
    0x00280011: "Columns",
    0x00280100: "BitsAllocated",
    0x00280101: "BitsStored",
    0x00280102: "HighBit",
    0x00280103: "PixelRepresentation",
}
_TRANSFER_SYNTAX = 0x00020010
_PIXEL_DATA = 0x7FE00010
_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT_VRS = frozenset(
    (b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL")
    + (b"SS", b"ST", b"TM", b"UI", b"UL", b"US")
)
_UNDEFINED = 0xFFFFFFFF
_EXPLICIT = struct.Struct("<HH2sH")
_IMPLICIT = struct.Struct("<HHL")
_LENGTH = struct.Struct("<L")


def fast_header(data: Buffer, size_bytes: int) -> SliceHeader | None:
    """Header of a plain little-endian slice, or None when pydicom must look.

    `data`: the file, or its first kilobytes; `size_bytes`: length of the whole file. None stands for
    everything that the walk does not fully understand, a too short `data` among it. Raises
    `UnreadableSlice` and `UnsupportedSlice` where the header is understood and says so.
    """
    try:
        walked = _walk(data)
    except (struct.error, UnicodeDecodeError, IndexError):
        return None
    if walked is None:
        return None
    fields, offset, length = walked
    if length == _UNDEFINED:
        return None
    return _checked(fields, min(length, size_bytes - offset), length, offset)


def read_header(data: Buffer) -> SliceHeader:
    """Header of a whole file, whatever its transfer syntax. Raises `UnreadableSlice`, `UnsupportedSlice`."""
    return fast_header(data, len(data)) or pydicom_header(data)


def read_slice(data: Buffer) -> CtSlice:
    """Header and HU of a whole file. Raises `UnreadableSlice`, `UnsupportedSlice`."""
    header = fast_header(data, len(data))
    if header is None:
        return pydicom_slice(data)
    return CtSlice(header, _hu(header, _plain_cells(header, data, header.pixel_offset, "<")))


def pydicom_header(data: Buffer) -> SliceHeader:
    """`read_header` by way of pydicom alone."""
    with _pydicom(data) as dataset:
        return _dataset_header(dataset)


def pydicom_slice(data: Buffer) -> CtSlice:
    """`read_slice` by way of pydicom alone."""
    with _pydicom(data) as dataset:
        header = _dataset_header(dataset)
        return CtSlice(header, _hu(header, _dataset_cells(header, dataset)))


def _walk(data: Buffer) -> tuple[dict[str, Any], int, int] | None:
    """Wanted elements, offset and declared length of PixelData; None where the layout is unusual."""
    if bytes(data[128:132]) != b"DICM":
        return None
    fields: dict[str, Any] = {}
    (meta_bytes,) = _LENGTH.unpack_from(data, 140)  # (0002,0000) stands first (PS3.10 7.1)
    begin = 144 + meta_bytes
    for tag, offset, length in _elements(data, 132, begin, True):
        if tag == _TRANSFER_SYNTAX:
            fields["TransferSyntaxUID"] = _ascii(data, offset, length)
    if fields.get("TransferSyntaxUID") not in (IMPLICIT_LITTLE, EXPLICIT_LITTLE):
        return None
    explicit = fields["TransferSyntaxUID"] == EXPLICIT_LITTLE
    for tag, offset, length in _elements(data, begin, len(data), explicit):
        if tag == _PIXEL_DATA:
            return fields, offset, length
        if tag in _TEXT:
            fields[_TEXT[tag]] = _ascii(data, offset, length)
        elif tag in _SHORT:
            if length != 2:
                return None
            fields[_SHORT[tag]] = data[offset] | data[offset + 1] << 8
    return None


def _elements(data: Buffer, position: int, end: int, explicit: bool) -> Iterator[tuple[int, int, int]]:
    """Tag, value offset and value length of each element up to `end`, or to the first unusual one.

    PS3.5 7.1: tags ascend and lengths are even. Sequences are skipped whole by their defined length; an
    undefined length ends the walk, except on PixelData, which ends it anyway.
    """
    last_tag = 0
    while position < end:
        if explicit:
            group, element, vr, length = _EXPLICIT.unpack_from(data, position)
            position += 8
            if vr in _LONG_VRS:
                (length,) = _LENGTH.unpack_from(data, position)
                position += 4
            elif vr not in _SHORT_VRS:
                return
        else:
            group, element, length = _IMPLICIT.unpack_from(data, position)
            position += 8
        tag = group << 16 | element
        unusual = tag <= last_tag or length & 1
        if unusual and tag != _PIXEL_DATA:
            return
        yield tag, position, length
        position += length
        last_tag = tag


def _ascii(data: Buffer, offset: int, length: int) -> str:
    if offset + length > len(data):
        raise struct.error(f"a value of {length:,} bytes runs past the end")
    return str(data[offset : offset + length], "ascii").rstrip(" \0")


@contextlib.contextmanager
def _pydicom(data: Buffer) -> Iterator[Any]:
    """The pydicom Dataset of a file, quietly; whatever pydicom or a codec raises becomes a typed problem.

    The values of damaged files reach many corners of pydicom and of the codecs, so every exception
    counts as damage here; none is dropped, its words stand in the problem's detail.
    """
    import pydicom
    import pydicom.config

    _check_signature(data)
    settings = pydicom.config.settings
    mode = settings.reading_validation_mode
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            settings.reading_validation_mode = pydicom.config.IGNORE
            yield pydicom.dcmread(io.BytesIO(data), force=True)
    except SliceProblem:
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:200]
        raise UnreadableSlice("decode_failed", f"{type(error).__name__}: {words}") from error
    finally:
        settings.reading_validation_mode = mode


def _check_signature(data: Buffer) -> None:
    """Refuse what cannot be DICOM (PS3.10 7.1), and deflated data sets beyond the cap."""
    if len(data) == 0:
        raise UnreadableSlice("empty_file", "the file has no bytes")
    if bytes(data[128:132]) == b"DICM":
        meta = bytes(data[132:1024])
        if DEFLATED.encode() in meta:
            _check_inflated_size(data)
    elif bytes(data[:2]) not in (b"\x02\x00", b"\x08\x00"):
        raise UnreadableSlice("not_dicom", "no DICM at byte 128, and the file does not begin with group 2 or 8")


def _check_inflated_size(data: Buffer) -> None:
    (meta_length,) = _LENGTH.unpack_from(data, 140)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflater.decompress(bytes(data[144 + meta_length :]), MAX_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise UnreadableSlice("too_large", f"the deflated data set is larger than {MAX_INFLATED_BYTES:,} bytes")


def _dataset_header(dataset: Any) -> SliceHeader:
    fields: dict[str, Any] = {keyword: _text(dataset, tag) for tag, keyword in _TEXT.items() if tag in dataset}
    fields |= {keyword: dataset[tag].value for tag, keyword in _SHORT.items() if tag in dataset}
    fields["TransferSyntaxUID"] = str(getattr(dataset.file_meta, "TransferSyntaxUID", IMPLICIT_LITTLE))
    if _PIXEL_DATA not in dataset:
        return _checked(fields, None, 0, -1)
    return _checked(fields, len(dataset.PixelData or b""), None, -1)


def _text(dataset: Any, tag: int) -> str:
    value = dataset[tag].value
    if value is None:
        return ""
    many = isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue"
    return "\\".join(map(str, value)) if many else str(value).rstrip(" \0")


def _checked(fields: dict[str, Any], present: int | None, declared: int | None, offset: int) -> SliceHeader:
    """Header of understood elements, or the typed problem that keeps the file from being a slice.

    `present`, `declared`: bytes of PixelData in the file and by its length field (None: not known or
    encoded); `present` None: there is no PixelData.
    """
    if present is None:
        raise UnsupportedSlice("no_pixel_data", f"no PixelData element; modality {fields.get('Modality', 'unknown')}")
    _check_kind(fields)
    sop_uid, patient_id = _id(fields, "SOPInstanceUID"), _id(fields, "PatientID")
    study_uid, series_uid = _id(fields, "StudyInstanceUID"), _id(fields, "SeriesInstanceUID")
    rows, columns, allocated, stored = _matrix(fields)
    slope, intercept = _number(fields, "RescaleSlope"), _number(fields, "RescaleIntercept")
    if slope == 0:
        raise UnsupportedSlice("no_rescale", "RescaleSlope is 0, so stored values give no HU (PS3.3 C.11.1)")
    position_mm = _position_mm(fields)
    syntax = fields["TransferSyntaxUID"]
    if syntax in NATIVE:
        _check_length(rows * columns * allocated // 8, present, declared)
    return SliceHeader(
        sop_uid=sop_uid,
        patient_id=patient_id,
        study_uid=study_uid,
        series_uid=series_uid,
        position_mm=position_mm,
        rows=rows,
        columns=columns,
        bits_allocated=allocated,
        bits_stored=stored,
        signed=fields["PixelRepresentation"] == 1,
        slope=slope,
        intercept=intercept,
        transfer_syntax=syntax,
        pixel_offset=offset,
    )


def _check_kind(fields: dict[str, Any]) -> None:
    """Only single-frame grey original CT passes (PS3.3 A.3, C.8.2.1.1.1)."""
    samples, photometric = fields.get("SamplesPerPixel", 1), fields.get("PhotometricInterpretation", "")
    if samples != 1 or photometric not in ("MONOCHROME2", "MONOCHROME1"):
        raise UnsupportedSlice("color", f"{samples} samples a pixel, {photometric or 'no'} photometric interpretation")
    frames = fields.get("NumberOfFrames", "") or "1"
    if frames.strip() != "1":
        raise UnsupportedSlice("multi_frame", f"NumberOfFrames is {frames!r}; only single-frame slices are read")
    kind = fields.get("ImageType", "").upper().split("\\")
    if "LOCALIZER" in kind:
        raise UnsupportedSlice("localizer", f"ImageType is {fields['ImageType']}")
    if "SECONDARY" in kind[1:2] or fields.get("SOPClassUID") == SECONDARY_CAPTURE:
        raise UnsupportedSlice("derived_secondary", f"ImageType is {fields.get('ImageType', 'absent')}")
    if fields.get("Modality", "") != "CT":
        raise UnsupportedSlice("not_ct", f"Modality is {fields.get('Modality', 'absent')!r}")


def _id(fields: dict[str, Any], keyword: str) -> str:
    value = fields.get(keyword, "").strip()
    if not value:
        raise UnsupportedSlice("missing_id", f"{keyword} is empty; slices are told apart and split by their ids")
    return value


def _matrix(fields: dict[str, Any]) -> tuple[int, int, int, int]:
    """Rows, Columns, BitsAllocated, BitsStored (PS3.3 C.7.6.3.1, PS3.5 8.1.1)."""
    rows, columns = fields.get("Rows") or 0, fields.get("Columns") or 0
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


def _number(fields: dict[str, Any], keyword: str) -> float:
    numbers = _numbers(fields.get(keyword, ""))
    if len(numbers) != 1:
        raise UnsupportedSlice(
            "no_rescale", f"{keyword} is {fields.get(keyword, 'absent')!r}, so stored values give no HU"
        )
    return numbers[0]


def _numbers(text: str) -> tuple[float, ...]:
    """Values of a DS text (PS3.5 6.2); empty when one is no finite number."""
    try:
        values = tuple(float(part) for part in text.split("\\"))
    except ValueError:
        return ()
    return values if all(map(math.isfinite, values)) else ()


def _position_mm(fields: dict[str, Any]) -> float:
    """ImagePositionPatient along the normal of ImageOrientationPatient, towards the head."""
    corner = _numbers(fields.get("ImagePositionPatient", ""))
    axes = _numbers(fields.get("ImageOrientationPatient", ""))
    if len(corner) != 3 or len(axes) != 6:
        raise UnsupportedSlice("no_position", "ImagePositionPatient or ImageOrientationPatient is absent or unusable")
    ax, ay, az, bx, by, bz = axes
    normal = (ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx)
    length = math.sqrt(sum(part * part for part in normal))
    if not 0.5 < length < 2:
        raise UnsupportedSlice("no_position", f"ImageOrientationPatient {axes} are not two unit vectors")
    if abs(normal[2]) < length * math.sqrt(0.5):
        raise UnsupportedSlice("not_axial", f"the slice normal {normal} is more than 45 degrees off the body axis")
    along = sum(a * b for a, b in zip(corner, normal, strict=True)) / length
    return math.copysign(1.0, normal[2]) * along


def _check_length(expected: int, present: int, declared: int | None) -> None:
    """PixelData must hold the matrix, and one byte more at most (PS3.5 8.1.1 pads to even length)."""
    claimed = expected if declared is None else declared
    if claimed not in (expected, expected + 1):
        raise UnreadableSlice("wrong_pixel_length", f"PixelData has {claimed:,} bytes, the matrix needs {expected:,}")
    if present < expected:
        raise UnreadableSlice("truncated", f"PixelData has {max(present, 0):,} of {expected:,} bytes")
    if present > expected + 1:
        raise UnreadableSlice("wrong_pixel_length", f"PixelData has {present:,} bytes, the matrix needs {expected:,}")


def _hu(header: SliceHeader, cells: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.int16]:
    return pixels.to_hu(cells, header.bits_stored, header.signed, header.slope, header.intercept)


def _plain_cells(header: SliceHeader, data: Buffer, offset: int, order: str) -> npt.NDArray[np.unsignedinteger]:
    kind = f"{order}u{header.bits_allocated // 8}"
    cells = np.frombuffer(data, kind, header.rows * header.columns, offset)
    return cells.reshape(header.rows, header.columns)


def _dataset_cells(header: SliceHeader, dataset: Any) -> npt.NDArray[np.unsignedinteger]:
    """Unsigned cells [rows, columns] of a Dataset, decoded by pydicom's plugins where compressed."""
    if header.transfer_syntax in NATIVE:
        order = ">" if header.transfer_syntax == EXPLICIT_BIG and header.bits_allocated == 16 else "<"
        cells = _plain_cells(header, dataset.PixelData, 0, order)
        return cells.astype(cells.dtype.newbyteorder("="), copy=False)
    from pydicom.pixels import get_decoder

    try:
        decoder = get_decoder(header.transfer_syntax)
    except NotImplementedError as error:
        raise UnsupportedSlice("unsupported_syntax", f"transfer syntax {header.transfer_syntax}") from error
    if not decoder.is_available:
        lacking = "; ".join(decoder.missing_dependencies)
        raise UnsupportedSlice("unsupported_syntax", f"transfer syntax {header.transfer_syntax} needs {lacking}")
    cells, _ = decoder.as_array(dataset, raw=True)
    if cells.shape != (header.rows, header.columns) or cells.dtype.itemsize * 8 != header.bits_allocated:
        raise UnreadableSlice("decode_failed", f"decoded to {cells.shape} {cells.dtype}")
    return np.ascontiguousarray(cells).view(np.dtype(f"u{cells.dtype.itemsize}"))
