"""DICOM files byte for byte: file meta group and the 22 elements of an RSNA slice (PS3.10, PS3.5)."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Sequence

import numpy as np

from ich_tfrecords.dicom.header import CT_IMAGE

_EXPLICIT, _IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
_IMPLEMENTATION = "2.25.196420071895321104227803"


_Value = str | int | bytes | Sequence[float]
Element = tuple[int, str, _Value]  # tag, VR, value


@dataclasses.dataclass(frozen=True)
class SliceFields:
    """Header values of one slice. Rows, columns and pixels come from the array beside it.

    `position_mm` and `orientation` are ImagePositionPatient and ImageOrientationPatient (PS3.3 C.7.6.2.1.1),
    `spacing_mm` is PixelSpacing: between rows, then between columns. `extra`: more elements, which RSNA's lack.
    """

    sop_uid: str = "ID_000000001"
    patient_id: str = "ID_00000001"
    study_uid: str = "ID_0000000001"
    series_uid: str = "ID_0000000002"
    study_id: str = ""
    modality: str = "CT"
    photometric: str = "MONOCHROME2"
    position_mm: tuple[float, float, float] = (-125.0, -125.0, 0.0)
    orientation: tuple[float, float, float, float, float, float] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    spacing_mm: tuple[float, float] = (0.488281, 0.488281)
    bits_stored: int = 16
    signed: bool = True
    window_center: tuple[float, ...] = (40.0,)
    window_width: tuple[float, ...] = (80.0,)
    intercept: float = -1024.0
    slope: float = 1.0
    extra: tuple[Element, ...] = ()


def dicom_bytes(stored: np.ndarray, header: SliceFields, explicit_vr: bool = True) -> bytes:
    """One DICOM file (PS3.10 section 7.1) with the 22 elements of an RSNA slice, little endian.

    `stored` is int16 or uint16 [rows, columns] and is written as it is, bits above `bits_stored` included.
    The file meta group is explicit VR either way. Raises `ValueError` for another shape or dtype.
    """
    if stored.ndim != 2 or stored.dtype not in (np.int16, np.uint16):
        raise ValueError(f"stored is {stored.dtype}{list(stored.shape)}; give int16 or uint16 [rows, columns]")
    meta = _file_meta(header.sop_uid, explicit_vr)
    pixels = stored.astype("<u2" if stored.dtype == np.uint16 else "<i2", copy=False).tobytes()
    elements = _elements(header, stored.shape, pixels)
    return b"".join([meta, *(part for element in elements for part in _encoded(*element, explicit_vr))])


def _elements(header: SliceFields, shape: tuple[int, ...], pixels: bytes) -> list[Element]:
    own: list[Element] = [
        (0x00080018, "UI", header.sop_uid),
        (0x00080060, "CS", header.modality),
        (0x00100020, "LO", header.patient_id),
        (0x0020000D, "UI", header.study_uid),
        (0x0020000E, "UI", header.series_uid),
        (0x00200010, "SH", header.study_id),
        (0x00200032, "DS", header.position_mm),
        (0x00200037, "DS", header.orientation),
        (0x00280002, "US", 1),
        (0x00280004, "CS", header.photometric),
        (0x00280010, "US", shape[0]),
        (0x00280011, "US", shape[1]),
        (0x00280030, "DS", header.spacing_mm),
        (0x00280100, "US", 16),
        (0x00280101, "US", header.bits_stored),
        (0x00280102, "US", header.bits_stored - 1),
        (0x00280103, "US", int(header.signed)),
        (0x00281050, "DS", header.window_center),
        (0x00281051, "DS", header.window_width),
        (0x00281052, "DS", (header.intercept,)),
        (0x00281053, "DS", (header.slope,)),
        (0x7FE00010, "OW", pixels),
    ]
    return sorted([*own, *header.extra], key=lambda element: element[0])


def _encoded(tag: int, vr: str, value: _Value, explicit_vr: bool) -> tuple[bytes, bytes]:
    """Head and padded value of one element (PS3.5 section 7.1)."""
    content = _value_bytes(vr, value)
    place = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if not explicit_vr:
        return place + struct.pack("<I", len(content)), content
    if vr in ("OB", "OW"):
        return place + vr.encode() + struct.pack("<HI", 0, len(content)), content
    return place + vr.encode() + struct.pack("<H", len(content)), content


def _value_bytes(vr: str, value: _Value) -> bytes:
    """Little-endian bytes of even length: UIDs are padded with NUL, other text with a space."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, int):
        return struct.pack("<H" if vr == "US" else "<I", value)
    text = value if isinstance(value, str) else "\\".join(_decimal(number) for number in value)
    return (text + ("\0" if vr == "UI" else " ") * (len(text) % 2)).encode("ascii")


def _decimal(number: float) -> str:
    """Decimal string of at most 16 characters (PS3.5 table 6.2-1), with six places at most."""
    return f"{number:.6f}".rstrip("0").rstrip(".")


def _file_meta(sop_uid: str, explicit_vr: bool) -> bytes:
    """Preamble, prefix and group 0002. Its SOP UID differs from the dataset's, as in the RSNA files."""
    instance = "2.25." + str(int.from_bytes(hashlib.blake2b(sop_uid.encode(), digest_size=15).digest(), "big"))
    elements: list[tuple[int, str, _Value]] = [
        (0x00020001, "OB", b"\0\1"),
        (0x00020002, "UI", CT_IMAGE),
        (0x00020003, "UI", instance),
        (0x00020010, "UI", _EXPLICIT if explicit_vr else _IMPLICIT),
        (0x00020012, "UI", _IMPLEMENTATION),
        (0x00020013, "SH", "ICH_TFRECORDS"),
    ]
    group = b"".join(part for element in elements for part in _encoded(*element, True))
    return b"".join([bytes(128), b"DICM", *_encoded(0x00020000, "UL", len(group), True), group])
