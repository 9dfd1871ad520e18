"""Cells -> stored values: every combination of stream, header and cells that contradict each other."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from dicom_files import head_slice
from hypothesis import given

from ich_tfrecords.dicom import cells
from ich_tfrecords.dicom.cells import Samples
from ich_tfrecords.dicom.header import SliceHeader, UnsupportedSlice

HU = head_slice(64, low=-1000, high=1800)  # smooth, from air to bone


def header(bits_stored: int = 16, signed: bool = True, **changes) -> SliceHeader:
    bits = {"bits_allocated": 16, "bits_stored": bits_stored, "signed": signed}
    plain = SliceHeader("1", "2", "3", "4", 0.0, 64, 64, 16, 16, True, 1.0, 0.0, None, "", -1, False, {})
    return plain._replace(**bits, **changes)


def unsigned(values: np.ndarray, bits: int = 16) -> np.ndarray:
    return (values.astype(np.int32) & ((1 << bits) - 1)).astype(np.uint16)


def refused(reason: str, *arguments) -> str:
    with pytest.raises(UnsupportedSlice) as error:
        arguments[0](*arguments[1:])
    assert error.value.reason == reason
    return error.value.detail


# --- bits above BitsStored -----------------------------------------------------------------------------------


def exact(cell: int, bits_stored: int, signed: bool) -> int:
    value = cell & ((1 << bits_stored) - 1)
    return value - (1 << bits_stored) if signed and value >> (bits_stored - 1) else value


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=50), st.integers(1, 16), st.booleans())
def test_cells_that_fit_come_back_as_they_are(values, bits_stored, signed):
    stored = [exact(value, bits_stored, signed) for value in values]
    raw = unsigned(np.array([stored]))
    raw.setflags(write=False)
    found = cells.stored_values(raw, bits_stored, signed)
    assert found.tolist() == [stored]
    assert np.shares_memory(found, raw)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("garbage", [0x1000, 0xA000, 0x5000])
def test_bits_above_are_dropped_where_the_picture_is_smooth_without_them(signed, garbage):
    """An overlay of old scanners, or whatever a writer left there (PS3.5 8.1.1)."""
    stored = HU if signed else HU + 1024
    raw = unsigned(stored, 12)
    raw[20:30, 20:50] |= garbage
    assert np.array_equal(cells.stored_values(raw, 12, signed), stored)


@pytest.mark.parametrize("garbage", [0, 0xA000])
def test_the_same_bits_above_every_cell_are_dropped(garbage):
    raw = unsigned(np.full((4, 4), 0x0FFF)) | np.uint16(garbage)
    assert np.array_equal(cells.stored_values(raw, 12, False), np.full((4, 4), 0x0FFF))


def test_negative_values_without_their_upper_bits_are_read():
    """Signed 12 bits with zeros above: conforming, if rare."""
    assert np.array_equal(cells.stored_values(unsigned(HU, 12), 12, True), HU)


@pytest.mark.parametrize("bits_stored", [9, 10, 11])
def test_too_few_declared_bits_of_signed_cells_are_overruled(bits_stored):
    """Negative values fill all 16 bits, so nothing else can lie in them."""
    assert np.array_equal(cells.stored_values(unsigned(HU), bits_stored, True), HU)


def test_metal_above_the_declared_range_of_signed_cells():
    metal = HU.copy()
    metal[40:44, 40:44] = 3000
    assert np.array_equal(cells.stored_values(unsigned(metal), 12, True), metal)


def test_metal_above_the_declared_range_of_unsigned_cells_is_refused():
    y, x = np.mgrid[:64, :64]
    metal = HU + 1024 + (6000 * np.exp(-((y - 30) ** 2 + (x - 30) ** 2) / 18)).astype(np.int16)
    assert "from 0 to" not in refused("bits_contradict", cells.stored_values, unsigned(metal), 12, False)


def test_unsigned_values_that_are_called_signed_are_refused():
    """Bone above 2,047 would turn to -2,048 and below."""
    detail = refused("bits_contradict", cells.stored_values, unsigned(HU + 1024), 12, True)
    assert "BitsStored is 12, but stored values run from 24 to 2,824; which bits are the value cannot" in detail


@pytest.mark.parametrize("value", [-2000, -1500, -5])
def test_negative_values_in_unsigned_cells_are_no_overlay(value):
    """Padding that no header tells of: with the bits above dropped, -2,000 would be bone, and -5 metal."""
    stored = HU.astype(np.int32) + 1024
    stored[:9] = value
    refused("bits_contradict", cells.stored_values, unsigned(stored), 12, False)


def test_an_overlay_upon_filled_signs_is_refused():
    raw = unsigned(HU)
    raw[30:40, 30:40] |= 0x1000
    refused("bits_contradict", cells.stored_values, raw, 12, True)


@pytest.mark.parametrize("signed", [True, False])
def test_rows_of_noise_prove_nothing(signed):
    """RSNA's ID_b79eed528: below some row every bit is random. What is above it stays as it is."""
    stored = HU if signed else HU + 1024
    raw = unsigned(stored)
    raw[40:] = np.random.default_rng(0).integers(0, 1 << 16, (24, 64))
    found = cells.stored_values(raw, 12, signed)
    assert np.array_equal(found[:40], stored[:40])
    masked = raw[40:].astype(np.int64) & 0xFFF
    assert np.array_equal(found[40:], np.where(masked >> 11, masked - 4096, masked) if signed else masked)


def test_one_negative_value_is_no_proof_of_filled_signs():
    """Padding of 16 bits in cells of 12: the rest has zeros above its signs."""
    raw = unsigned(HU, 12)
    raw[:5] = 0xF830
    found = cells.stored_values(raw, 12, True)
    assert np.array_equal(found[5:], HU[5:])
    assert (found[:5] == -2000).all()


# --- the sign of a stream ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits_stored", [12, 13, 16])
@pytest.mark.parametrize("precision", [12, 13, 14, 16])
@pytest.mark.parametrize("stream_signed", [False, True])
def test_a_signed_slice_keeps_its_sign_in_every_stream(stream_signed, precision, bits_stored):
    values = HU if stream_signed else unsigned(HU, precision)
    raw = cells.from_stream(Samples(values, precision, stream_signed), 16, bits_stored, True)
    assert raw.dtype == np.uint16
    assert np.array_equal(cells.stored_values(raw.reshape(64, 64), bits_stored, True), HU)


def test_values_above_the_half_of_a_narrow_stream_may_be_positive():
    """Twelve unsigned bits in an unsigned stream, and a header that says signed 16: extended, bone would be black."""
    detail = refused("ambiguous_sign", cells.from_stream, Samples(unsigned(HU + 1024), 12, False), 16, 16, True)
    assert detail == (
        "the header says signed values of 16 bits, the unsigned stream has 12 bits and uses the topmost one; "
        "both signs are possible"
    )


@pytest.mark.parametrize("precision", [12, 14])
def test_nobody_knows_the_sign_of_a_narrow_jpeg_lossless_stream(precision):
    samples = Samples(unsigned(HU, precision), precision, None)
    refused("ambiguous_sign", cells.from_stream, samples, 16, 16, True)
    without = Samples(unsigned(np.maximum(HU, 0), precision), precision, None)
    raw = cells.from_stream(without, 16, 16, True)
    assert np.array_equal(raw, np.maximum(HU, 0).ravel())


def test_jpeg_lossless_of_all_bits_stored_has_the_sign_of_the_header():
    raw = cells.from_stream(Samples(unsigned(HU, 12), 12, None), 16, 12, True)
    assert np.array_equal(raw.view(np.int16), HU.ravel())
    plain = cells.from_stream(Samples(unsigned(HU + 1024), 12, None), 16, 12, False)
    assert np.array_equal(plain, HU.ravel() + 1024)


@pytest.mark.parametrize("kind", [False, None])
def test_a_header_that_calls_a_stream_of_unsigned_values_signed(kind):
    """Its bits agree with the stream's, but bone above 2,047 would be -2,048 and below."""
    refused("ambiguous_sign", cells.from_stream, Samples(unsigned(HU + 1024), 12, kind), 16, 12, True)


@pytest.mark.parametrize("kind", [False, None])
def test_a_stream_as_wide_as_the_cells_holds_the_cells(kind):
    """dcm4che compresses signed cells of 12 bits as they lie in memory."""
    for bits in (12, 16):
        raw = unsigned(HU, bits)
        assert np.array_equal(cells.from_stream(Samples(raw, 16, kind), 16, 12, True), raw.ravel())


@pytest.mark.parametrize("precision", [13, 14])
def test_a_jpeg_lossless_stream_of_more_bits_than_are_stored(precision):
    raw = cells.from_stream(Samples(unsigned(HU, precision), precision, None), 16, 12, True)
    assert np.array_equal(raw.view(np.int16), HU.ravel())
    beyond = Samples(unsigned(3 * HU, precision), precision, None)
    refused("ambiguous_sign", cells.from_stream, beyond, 16, 12, True)


def test_an_unsigned_slice_in_a_signed_stream():
    """The encoder called 12 unsigned bits signed: the upper half comes out negative."""
    stored = HU.astype(np.int32) + 1024
    wrapped = np.where(stored >= 2048, stored - 4096, stored).astype(np.int16)
    raw = cells.from_stream(Samples(wrapped, 12, True), 16, 12, False)
    assert np.array_equal(raw, stored.ravel())
    refused("ambiguous_sign", cells.from_stream, Samples(HU, 12, True), 16, 12, False)


def test_8_bit_cells_keep_their_width():
    values = np.arange(-128, 128).reshape(16, 16).astype(np.int8)
    raw = cells.from_stream(Samples(values.view(np.uint8), 8, False), 8, 8, True)
    assert raw.dtype == np.uint8
    assert np.array_equal(raw.view(np.int8), values.ravel())


# --- the sign of the cells -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [12, 13])
@pytest.mark.parametrize("signed", [True, False])
def test_twos_complement_that_no_header_tells_of_is_refused(signed, bits):
    stored = unsigned(HU, bits).view(np.int16 if signed else np.uint16)
    detail = refused("ambiguous_sign", cells.check_sign, stored, header(16, signed))
    kind = "signed" if signed else "unsigned"
    assert f"are smooth as two's complement of {bits} bits, but the header says {kind} values of 16 bits" in detail


def test_signed_values_in_unsigned_cells_are_refused():
    refused("ambiguous_sign", cells.check_sign, unsigned(HU), header(16, False, intercept=-1024.0))


def test_undeclared_padding_of_minus_2000_in_unsigned_cells_is_refused():
    stored = unsigned(HU + 1024)
    stored[:9] = 63536
    refused("ambiguous_sign", cells.check_sign, stored, header(16, False, intercept=-1024.0))


@pytest.mark.parametrize(
    ("stored", "facts"),
    [
        (HU, header()),
        (HU + 1024, header(intercept=-1024.0)),
        (unsigned(HU + 1024), header(16, False, intercept=-1024.0)),
        (unsigned(np.maximum(HU, 0)), header(16, False)),  # no air, and no sign either
        (unsigned(np.full((4, 4), 60000)), header(16, False)),
        (np.full((4, 4), 4095, np.int16), header()),
        (unsigned(HU, 12), header(12, False)),  # RSNA's defect, which is repaired
        (unsigned(HU, 12).view(np.int16), header(slope=-1.0)),
    ],
    ids=["signed", "shifted", "unsigned", "no air", "constant", "constant signed", "wrapped", "negative slope"],
)
def test_other_values_pass(stored, facts):
    cells.check_sign(stored, facts)


# --- padding -------------------------------------------------------------------------------------------------


def padded_hu(stored: np.ndarray, facts: SliceHeader) -> np.ndarray:
    """HU of cells, by way of all the steps that `dicom` takes."""
    from ich_tfrecords.dicom import ct_slice

    return ct_slice.hu_of(facts._replace(rows=stored.shape[0], columns=stored.shape[1]), unsigned(stored).ravel())


@pytest.mark.parametrize(("value", "hu"), [(63536, 62512), (65535, 64511), (5000, 3976)])
def test_padding_above_every_tissue_is_air_wherever_it_is(value, hu):
    stored = HU.astype(np.int32) + 1024
    stored[:10] = stored[30, 30] = value
    expected = HU.copy()
    expected[:10] = expected[30, 30] = -1000
    facts = header(16, False, intercept=-1024.0, padding=(value, value))
    assert value - 1024 == hu > cells.HIGHEST_HU
    assert np.array_equal(padded_hu(stored, facts), expected)


@pytest.mark.parametrize("value", [0, 40, 300, 3071])
def test_padding_of_an_ordinary_value_is_air_outside_of_the_scan_alone(value):
    """0 HU is water too, and 3,071 is metal."""
    stored = np.where(value == HU, value + 1, HU).astype(np.int16)  # what touches the padding and is alike, is taken
    stored[20:23, 20:23] = stored[0, 40] = value  # tissue; an edge without a corner
    stored[-8:] = stored[:, -8:] = value
    expected = stored.copy()
    expected[-8:] = expected[:, -8:] = -1000
    assert np.array_equal(padded_hu(stored, header(padding=(value, value))), expected)


def test_tissue_of_an_undrawn_padding_value_stays():
    stored = np.tile(np.arange(-30, 34, dtype=np.int16), (64, 1))
    assert np.array_equal(padded_hu(stored, header(padding=(0, 0))), stored)


@pytest.mark.parametrize("value", [-1000, -1024, -1500, -2000, -32768])
def test_padding_at_air_or_below_stays(value):
    stored = HU.copy()
    stored[:10] = value
    assert np.array_equal(padded_hu(stored, header(padding=(value, value))), stored)


@pytest.mark.parametrize("limits", [(60000, 63536), (63536, 63536), (63000, 65535)])
def test_a_range_of_padding_holds_both_its_ends(limits):
    stored = HU.astype(np.int32) + 1024
    stored[:5], stored[5:10] = limits
    facts = header(16, False, intercept=-1024.0, padding=limits)
    expected = HU.copy()
    expected[:10] = -1000
    assert np.array_equal(padded_hu(stored, facts), expected)


@pytest.mark.parametrize(("signed", "value"), [(False, 63536), (True, -2000), (True, -3024), (True, -32768)])
def test_padding_beyond_bits_stored_is_seen_in_the_whole_cell(signed, value):
    """Cells of 12 bits, padded with a number of 16."""
    intercept = 0.0 if signed else -1024.0
    stored = HU.astype(np.int32) - int(intercept)
    stored[:10] = value
    expected = HU.copy()
    expected[:10] = value if signed else -1000
    facts = header(12, signed, intercept=intercept, padding=(value, value))
    assert np.array_equal(padded_hu(stored, facts), expected)


@pytest.mark.parametrize(("intercept", "limits"), [(0.0, (-2000, 0)), (-1024.0, (0, 4095)), (-1024.0, (24, 525))])
def test_a_range_of_padding_that_holds_air_and_tissue_is_refused(intercept, limits):
    """A range limit that was never set, or was set to the greatest value: all would be air."""
    facts = header(intercept=intercept, padding=limits)
    assert "air as well as tissue" in refused("bad_padding", cells.padding, unsigned(HU), facts)


def test_a_slice_of_nothing_but_padding_is_air():
    stored = np.full((6, 9), 63536)
    facts = header(16, False, intercept=-1024.0, padding=(63536, 63536))
    assert (padded_hu(stored, facts) == -1000).all()


def test_a_slope_turns_padding_around():
    """Slope -1: the stored value -4,000 is 4,000 HU."""
    stored = -HU.copy()
    stored[:10] = -4000
    expected = HU.copy()
    expected[:10] = -1000
    assert np.array_equal(padded_hu(stored, header(slope=-1.0, padding=(-4000, -4000))), expected)


def test_a_giant_slope_is_quiet(recwarn):
    facts = header(slope=1e308, padding=(5, 9))
    assert padded_hu(np.array([[5, 0], [-1, 9]], np.int16), facts).tolist() == [[-1000, 0], [-32768, -1000]]
    assert not recwarn.list


def reached_slowly(open_: np.ndarray) -> np.ndarray:
    rows, columns = open_.shape
    reached = np.zeros_like(open_)
    pending = [(row, column) for row in (0, rows - 1) for column in (0, columns - 1)]
    while pending:
        row, column = pending.pop()
        inside = 0 <= row < rows and 0 <= column < columns
        if inside and open_[row, column] and not reached[row, column]:
            reached[row, column] = True
            pending += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
    return reached


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32), st.floats(0.3, 1))
def test_what_corners_reach(rows, columns, seed, share):
    open_ = np.random.default_rng(seed).random((rows, columns)) < share
    assert np.array_equal(cells._reached_from_corners(open_), reached_slowly(open_))


def test_padding_that_winds_through_a_slice_is_found():
    """A spiral: one corner reaches its middle after as many turns as there are."""
    open_ = np.zeros((65, 65), bool)
    for turn in range(0, 32, 2):
        open_[turn, max(turn - 2, 0) : 65 - turn] = open_[turn : 65 - turn, 64 - turn] = True
        open_[64 - turn, turn : 65 - turn] = open_[turn + 2 : 65 - turn, turn] = True
    assert np.array_equal(cells._reached_from_corners(open_), open_)
    open_[0, 32] = False
    assert np.array_equal(cells._reached_from_corners(open_), reached_slowly(open_))
