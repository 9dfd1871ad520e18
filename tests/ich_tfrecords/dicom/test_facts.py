"""Facts of a scan: what headers say becomes closed words and numbers, and what is no such thing goes nowhere."""

from __future__ import annotations

import numpy as np
import pytest
from dicom_files import BIG, DEFLATED, EXPLICIT, IMPLICIT, dicom_file, slice_elements
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords.dicom import ct_slice, facts
from ich_tfrecords.dicom.header import FACTS

SIEMENS = {
    "Manufacturer": b"SIEMENS",
    "ManufacturerModelName": b"SOMATOM Definition AS+",
    "ConvolutionKernel": b"J40s\\3",
    "KVP": b"120",
    "SliceThickness": b"4.8",
    "PixelSpacing": b"0.42\\0.43",
    "GantryDetectorTilt": b"-17.5",
    "ContrastBolusAgent": b"",
}
VRS = {"KVP": "DS", "SliceThickness": "DS", "PixelSpacing": "DS", "GantryDetectorTilt": "DS", "ConvolutionKernel": "SH"}


def slice_with(raw: dict[str, bytes], syntax: str = EXPLICIT) -> bytes:
    """A file whose header has these elements."""
    elements = slice_elements(np.zeros((32, 32), np.int16))
    tags = {keyword: tag for tag, keyword in FACTS.items()}
    return dicom_file(elements | {tags[key]: (VRS.get(key, "LO"), value) for key, value in raw.items()}, syntax)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, DEFLATED, BIG])
def test_what_a_header_says(syntax):
    data = slice_with(SIEMENS, syntax)
    for header in (ct_slice.read_header(data), ct_slice.pydicom_header(data)):
        assert facts.of(header.facts) == ("siemens", "SOMATOM Definition AS+", "J40S", 120, 4.8, 0.42, -17.5, False)


def test_a_silent_header_says_nothing():
    assert facts.of({}) == (None, None, None, None, None, None, None, False)
    assert facts.of(dict.fromkeys(FACTS.values(), b"")) == facts.of({})


@pytest.mark.parametrize(
    ("agent", "contrast"),
    [(b"", False), (b" ", False), (b"NONE", False), (b"no", False), (b"OMNIPAQUE 350", True), (b"\xff\xfe", True)],
)
def test_contrast_is_known_by_its_presence(agent, contrast):
    found = facts.of({"ContrastBolusAgent": agent})
    assert found == (*[None] * 7, contrast)


@pytest.mark.parametrize(
    ("keyword", "value", "known"),
    [
        ("Manufacturer", b"GE MEDICAL SYSTEMS", "ge"),
        ("Manufacturer", b"Canon Medical Systems", "canon"),
        ("Manufacturer", b"Mueller^Hans", "other"),
        ("ManufacturerModelName", b"LightSpeed VCT", "LightSpeed VCT"),
        ("ManufacturerModelName", b"Optima CT660", "Optima CT660"),
        ("ManufacturerModelName", b"Mueller Hans", "other"),
        ("ManufacturerModelName", b"CT 19580412", "other"),  # a date, or an id
        ("ManufacturerModelName", "Müller".encode("latin-1"), "other"),
        ("ConvolutionKernel", b"STANDARD", "STANDARD"),
        ("ConvolutionKernel", b"FC21", "FC21"),
        ("ConvolutionKernel", b"Hr36d\\3", "HR36D"),
        ("ConvolutionKernel", b"STD+", "STD+"),
        ("ConvolutionKernel", b"MUELLER", "other"),
        ("ConvolutionKernel", b"19580412", "other"),
        ("KVP", b"120\\140", 120),
        ("KVP", b"1_20", None),  # Python reads it as a number
        ("KVP", b"nan", None),
        ("KVP", b"HANS", None),
        ("SliceThickness", b"0", None),
        ("SliceThickness", b"5.0 ", 5),
        ("GantryDetectorTilt", b"0", 0),
        ("GantryDetectorTilt", b"91", None),
    ],
)
def test_names_and_nonsense_become_no_fact(keyword, value, known):
    assert known in facts.of({keyword: value})[:7]
    assert [one for one in facts.of({keyword: value})[:7] if one is not None] == ([] if known is None else [known])


@given(st.dictionaries(st.sampled_from(sorted(FACTS.values())), st.binary(max_size=80)))
def test_whatever_the_bytes_only_closed_words_come_out(raw):
    found = facts.of(raw)
    assert found.manufacturer in {None, facts.OTHER, *facts.VENDORS.values()}
    for word in ((found.model or "") + " " + (found.kernel or "")).replace("/", " ").split():
        assert len(word) <= 16 or word == facts.OTHER
        assert word.isascii()
        assert sum(letter.isdigit() for letter in word) <= 4
    for value in found[3:7]:
        assert value is None or -90 <= value <= 500


def test_facts_do_not_send_a_slice_the_slow_way():
    raw = SIEMENS | {"ManufacturerModelName": b"M\xfcller", "ContrastBolusAgent": b"\x1b$B"}
    data = slice_with(raw)
    assert ct_slice.fast_header(data, len(data)) is not None
