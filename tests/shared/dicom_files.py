"""DICOM files for tests, element by element, so that whole and malformed files come from one builder."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG = "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.57"
JPEG_LOSSLESS_SV1 = "1.2.840.10008.1.2.4.70"
JPEG_LS = "1.2.840.10008.1.2.4.80"
JPEG_LS_NEAR = "1.2.840.10008.1.2.4.81"
J2K_LOSSLESS = "1.2.840.10008.1.2.4.90"
J2K = "1.2.840.10008.1.2.4.91"
HTJ2K_LOSSLESS = "1.2.840.10008.1.2.4.201"

UNDEFINED = 0xFFFFFFFF
PIXEL_DATA = 0x7FE00010
NEAR = 3  # greatest error of the near-lossless files, in stored levels

Stored = npt.NDArray[np.int16] | npt.NDArray[np.uint16]
Elements = dict[int, tuple[str, bytes]]

_LONG = ("OB", "OW", "SQ", "UN", "UT", "OF", "UC", "UR")


def head_slice(side: int = 32, seed: int = 0, low: int = -200, high: int = 2400) -> npt.NDArray[np.int16]:
    """Smooth noisy stored values [side, side] that a codec can compress and that reach both ends."""
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(np.arange(side), np.arange(side)) / (2 * side - 2)
    values = low + (high - low) * ramp + rng.normal(0, 20, (side, side))
    values[0, 0], values[-1, -1] = low, high
    return np.clip(values, low, high).astype(np.int16)


def slice_elements(stored: Stored, bits_stored: int = 16, **changes: bytes | None) -> Elements:
    """Elements of an axial CT slice; `changes` replace a value, or with None leave the element out."""
    values: dict[str, tuple[int, str, bytes]] = {
        "ImageType": (0x00080008, "CS", b"ORIGINAL\\PRIMARY\\AXIAL"),
        "SOPClassUID": (0x00080016, "UI", b"1.2.840.10008.5.1.4.1.1.2"),
        "SOPInstanceUID": (0x00080018, "UI", b"ID_0000001aa"),
        "Modality": (0x00080060, "CS", b"CT"),
        "PatientID": (0x00100020, "LO", b"ID_patient"),
        "StudyInstanceUID": (0x0020000D, "UI", b"ID_study"),
        "SeriesInstanceUID": (0x0020000E, "UI", b"ID_series"),
        "ImagePositionPatient": (0x00200032, "DS", b"-125\\-120\\37.5"),
        "ImageOrientationPatient": (0x00200037, "DS", b"1\\0\\0\\0\\1\\0"),
        "SamplesPerPixel": (0x00280002, "US", short(1)),
        "PhotometricInterpretation": (0x00280004, "CS", b"MONOCHROME2"),
        "NumberOfFrames": (0x00280008, "IS", b"1"),
        "Rows": (0x00280010, "US", short(stored.shape[0])),
        "Columns": (0x00280011, "US", short(stored.shape[1])),
        "BitsAllocated": (0x00280100, "US", short(8 * stored.dtype.itemsize)),
        "BitsStored": (0x00280101, "US", short(bits_stored)),
        "HighBit": (0x00280102, "US", short(bits_stored - 1)),
        "PixelRepresentation": (0x00280103, "US", short(int(stored.dtype.kind == "i"))),
        "WindowCenter": (0x00281050, "DS", b"40\\600"),
        "RescaleIntercept": (0x00281052, "DS", b"-1024"),
        "RescaleSlope": (0x00281053, "DS", b"1"),
        "PixelData": (PIXEL_DATA, "OW", stored.astype(stored.dtype.newbyteorder("<")).tobytes()),
    }
    unknown = changes.keys() - values.keys()
    assert not unknown, unknown
    kept = {key: changes.get(key, value) for key, (_, _, value) in values.items()}
    return {values[key][0]: (values[key][1], value) for key, value in kept.items() if value is not None}


def short(number: int) -> bytes:
    return struct.pack("<H", number)


def element(tag: int, vr: str, value: bytes, syntax: str = EXPLICIT, length: int | None = None) -> bytes:
    """One element (PS3.5 7.1), padded to even length; `length` is a lie for the length field."""
    order = ">" if syntax == BIG else "<"
    if order == ">":
        value = _swapped(vr, value)
    value += (b"\0" if vr in ("UI", "OB", "OW") else b" ") * (len(value) % 2)
    length = len(value) if length is None else length
    place = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if syntax == IMPLICIT:
        return place + struct.pack("<L", length) + value
    if vr in _LONG:
        return place + vr.encode() + bytes(2) + struct.pack(f"{order}L", length) + value
    return place + vr.encode() + struct.pack(f"{order}H", length & 0xFFFF) + value


def _swapped(vr: str, value: bytes) -> bytes:
    return np.frombuffer(value, "<u2").astype(">u2").tobytes() if vr in ("US", "OW") else value


def meta(syntax: str) -> bytes:
    """Preamble, prefix and file meta group."""
    parts = element(0x00020001, "OB", b"\0\1") + element(0x00020010, "UI", syntax.encode())
    return bytes(128) + b"DICM" + element(0x00020000, "UL", struct.pack("<L", len(parts))) + parts


def dataset(elements: Elements, syntax: str = EXPLICIT) -> bytes:
    return b"".join(element(tag, vr, value, syntax) for tag, (vr, value) in sorted(elements.items()))


def dicom_file(elements: Elements, syntax: str = EXPLICIT) -> bytes:
    """A file of native pixels in one of the four native syntaxes."""
    if syntax == DEFLATED:
        return meta(syntax) + deflate(dataset(elements))
    return meta(syntax) + dataset(elements, syntax)


def deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = deflater.compress(data) + deflater.flush()
    return packed + bytes(len(packed) % 2)


def encapsulated(elements: Elements, syntax: str, codestream: bytes, fragments: int = 1) -> bytes:
    """A file whose PixelData is one codestream in so many fragments (PS3.5 A.4)."""
    codestream += bytes(len(codestream) % 2)
    step = max(-(-len(codestream) // (2 * fragments)) * 2, 2)
    items = [b"", *(codestream[at : at + step] for at in range(0, len(codestream), step))]
    body = b"".join(_item(0xFFFEE000, item) for item in items) + _item(0xFFFEE0DD, b"")
    head = {tag: value for tag, value in elements.items() if tag < PIXEL_DATA}
    return meta(syntax) + dataset(head) + element(PIXEL_DATA, "OB", body, length=UNDEFINED)


def _item(tag: int, value: bytes) -> bytes:
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value


def compressed_file(
    stored: Stored, syntax: str, bits_stored: int, work: Path, fragments: int = 1, **changes: bytes | None
) -> bytes:
    """A slice file in a compressed syntax; `work` is a scratch folder, for gdcm knows files only."""
    elements = slice_elements(stored, bits_stored, **changes)
    if syntax in (JPEG_LOSSLESS, JPEG_LOSSLESS_SV1, RLE):
        return _by_gdcm(dicom_file(elements), syntax, work)
    return encapsulated(elements, syntax, codestream(stored, syntax, bits_stored), fragments)


def codestream(stored: Stored, syntax: str, bits_stored: int) -> bytes:
    """JPEG-LS or JPEG 2000 codestream of stored values."""
    rows, columns = stored.shape
    if syntax in (JPEG_LS, JPEG_LS_NEAR):
        import jpeg_ls

        bits = stored.view(f"u{stored.itemsize}") & ((1 << bits_stored) - 1)
        error = NEAR if syntax == JPEG_LS_NEAR else 0
        return bytes(
            jpeg_ls.encode_buffer(bits.astype(f"u{stored.itemsize}").tobytes(), rows, columns, 1, bits_stored, error)
        )
    from openjpeg import utils as openjpeg

    ratios = [4.0] if syntax == J2K else None
    return bytes(openjpeg.encode_array(stored, bits_stored, compression_ratios=ratios))


def _by_gdcm(plain: bytes, syntax: str, work: Path) -> bytes:
    import gdcm

    (work / "plain.dcm").write_bytes(plain)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(work / "plain.dcm"))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(work / "packed.dcm"))
    assert writer.Write()
    return (work / "packed.dcm").read_bytes()
