"""Precision of the stream against BitsStored and PixelRepresentation: every combination, beside independent decoders.

The slice is known, so each combination gives its HU or is refused; where HU come out, pydicom with gdcm (JPEG
Lossless, JPEG 2000), with CharLS and its own rule of signs (JPEG-LS) and with its own RLE decoder must give them too.
"""

from __future__ import annotations

import io
import itertools
import logging
import warnings

import numpy as np
import pytest
from codestreams import jpeg, rle
from dicom_files import J2K_LOSSLESS, JPEG_LOSSLESS_SV1, JPEG_LS, RLE, encapsulated, head_slice, slice_elements

from ich_tfrecords.dicom import ct_slice

DECODER = {RLE: "pydicom", JPEG_LOSSLESS_SV1: "gdcm", JPEG_LS: "pyjpegls", J2K_LOSSLESS: "gdcm"}
BITS = (8, 10, 12, 14, 16)
COMBINATIONS = [
    (syntax, precision, bits_stored, signed, stream_signed)
    for syntax, precision, bits_stored, signed, stream_signed in itertools.product(
        DECODER, BITS, BITS, (False, True), (False, True)
    )
    if (syntax == J2K_LOSSLESS or not stream_signed) and (syntax != RLE or precision == 16)
]


def stored_slice(precision: int, signed: bool) -> np.ndarray:
    """Stored values, int32, that the precision holds: -1000 to 1000, or 0 to 2000."""
    values = head_slice(32, low=-1000, high=1000).astype(np.int32)
    if not signed:
        return np.clip(values + 1000, 0, (1 << precision) - 1)
    return np.clip(values, -(1 << precision - 1), (1 << precision - 1) - 1)


def stream_of(stored: np.ndarray, syntax: str, precision: int, stream_signed: bool) -> bytes:
    """Codestream of that precision; where it is signed, values of its upper half come out negative."""
    bits = stored & ((1 << precision) - 1)
    width = 1 if precision <= 8 else 2
    if syntax == RLE:
        return rle((stored & 0xFFFF).astype(np.uint16))
    if syntax == JPEG_LOSSLESS_SV1:
        return jpeg(bits.astype(np.uint16), precision, 1)
    raw = bits.astype(f"u{width}").tobytes()
    if syntax == JPEG_LS:
        import jpeg_ls

        return bytes(jpeg_ls.encode_buffer(raw, *stored.shape, 1, precision, 0))
    from openjpeg import utils as openjpeg

    if stream_signed:
        raw = np.where(bits >> (precision - 1), bits - (1 << precision), bits).astype(f"i{width}").tobytes()
    columns, rows = stored.shape
    form = {"photometric_interpretation": 2, "use_mct": False}
    return bytes(openjpeg.encode_buffer(raw, columns, rows, 1, precision, stream_signed, **form))


def independent(data: bytes, syntax: str) -> np.ndarray:
    """Stored values by pydicom's pixel_array, int32."""
    import pydicom

    logging.getLogger("pydicom").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(data))
        dataset.pixel_array_options(decoding_plugin=DECODER[syntax])
        return dataset.pixel_array.astype(np.int32)


def refusal(syntax: str, precision: int, bits_stored: int, signed: bool, stored: np.ndarray) -> str:
    """The reason that docs/decisions/0025 gives, empty where there is none."""
    fits = -(1 << bits_stored - 1) <= stored.min() and stored.max() < 1 << bits_stored - 1
    if syntax == JPEG_LOSSLESS_SV1 and signed and (precision < bits_stored or (precision < 16 and not fits)):
        return "ambiguous_sign"
    return "bits_contradict" if not signed and stored.max() >= 1 << bits_stored else ""


@pytest.mark.parametrize(("syntax", "precision", "bits_stored", "signed", "stream_signed"), COMBINATIONS)
def test_a_slice_gives_its_hu_or_is_refused(syntax, precision, bits_stored, signed, stream_signed):
    stored = stored_slice(precision, signed)
    intercept = 0 if signed else -1000
    cells = stored.astype(np.int16 if signed else np.uint16)
    elements = slice_elements(cells, bits_stored, RescaleIntercept=b"%d" % intercept)
    data = encapsulated(elements, syntax, stream_of(stored, syntax, precision, stream_signed))
    reason = refusal(syntax, precision, bits_stored, signed, stored)
    if reason:
        with pytest.raises(ct_slice.UnsupportedSlice) as refused:
            ct_slice.read_slice(data)
        assert refused.value.reason == reason
        return
    assert np.array_equal(ct_slice.read_slice(data).hu, stored + intercept)
    drops_bits = syntax in (RLE, JPEG_LOSSLESS_SV1) and precision > bits_stored  # these decoders then mask, we do not
    if not drops_bits:
        assert np.array_equal(independent(data, syntax), stored)
