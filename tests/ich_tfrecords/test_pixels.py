"""Pixel maths against exact fractions: HU, 12-bit repair, windows, box-area resample, quantising."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from math import floor

import cv2
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from ich_tfrecords import pixels, spec
from ich_tfrecords.spec import ImageSpec, Window

IMAGE = spec.load("rsna_ich").image
ODD_WINDOWS = (Window("odd", 40, 75), Window("narrow", -3, 1), Window("two", 0, 2), Window("wide", 0, 65534))
EDGE_WINDOWS = (Window("low", -32764, 7), Window("high", 32764, 5), Window("carry", 0, 4095), Window("past", 0, 4096))
ALL_WINDOWS = (*IMAGE.windows, *ODD_WINDOWS, *EDGE_WINDOWS)
EVERY_INT16 = np.arange(-32768, 32768, dtype=np.int16)


def exact_level(hu: int, window: Window) -> int:
    """Grey level of one uniform pixel by the definition, in fractions."""
    low = Fraction(2 * window.level_hu - window.width_hu, 2)
    clipped = min(max(Fraction(hu), low), low + window.width_hu)
    return floor(255 * (clipped - low) / window.width_hu + Fraction(1, 2))


def overlaps(height: int, size: int) -> np.ndarray:
    """Weights int64 [size, height]: overlap of output i with input j, in units of 1/size of an input."""
    outputs, inputs = np.arange(size)[:, None], np.arange(height)[None, :]
    end = np.minimum((outputs + 1) * height, (inputs + 1) * size)
    return np.maximum(end - np.maximum(outputs * height, inputs * size), 0)


def exact_channel(hu: np.ndarray, window: Window, size: int) -> np.ndarray:
    """`window_channel` by the definition: two matrix products of whole numbers (everything doubled)."""
    low = 2 * window.level_hu - window.width_hu
    clipped = np.clip(2 * hu.astype(np.int64), low, low + 2 * window.width_hu)
    weights = overlaps(hu.shape[0], size)
    # float64 products are exact here: every partial sum stays below 2**53
    sums = (weights.astype(float) @ clipped.astype(float) @ weights.T.astype(float)).astype(np.int64)
    area = hu.shape[0] ** 2
    return (2 * 255 * (sums - low * area) + 2 * window.width_hu * area) // (4 * window.width_hu * area)


def noise(side: int, seed: int, low: int = -1100, high: int = 1500) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(low, high, (side, side), dtype=np.int16)


# --- window and quantise -------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", ALL_WINDOWS, ids=lambda window: window.name)
def test_every_hu_gives_the_level_of_the_definition(window):
    hu = EVERY_INT16.reshape(256, 256)
    levels = pixels.window_channel(hu, window, 256)
    assert levels.dtype == np.uint8
    assert np.array_equal(levels, exact_channel(hu, window, 256))
    low = window.level_hu - window.width_hu // 2
    high = low + window.width_hu
    edges = {-32768, -1000, 0, 40, 32767, *range(low - 3, low + 4), *range(high - 3, high + 4)}
    for value in edges & set(range(-32768, 32768)):
        assert levels.reshape(-1)[value + 32768] == exact_level(value, window), value


@pytest.mark.parametrize("window", ALL_WINDOWS, ids=lambda window: window.name)
def test_every_hu_gives_the_same_level_on_the_fast_path(window):
    cells = np.repeat(np.repeat(EVERY_INT16.reshape(256, 256), 4, axis=0), 4, axis=1)
    expected = pixels.window_channel(EVERY_INT16.reshape(256, 256), window, 256)
    assert np.array_equal(pixels.window_channel(cells, window, 256), expected)


@pytest.mark.parametrize(
    ("hu", "level"),
    [(-1, 0), (0, 0), (1, 3), (2, 6), (40, 128), (79, 252), (80, 255), (81, 255), (-32768, 0), (32767, 255)],
)
def test_levels_of_the_brain_window(hu, level):
    square = np.full((16, 16), hu, np.int16)
    assert (pixels.window_channel(square, IMAGE.windows[0], 4) == level).all()


def test_quantise_rounds_a_half_up():
    # 255 * s / 510 = s / 2: odd sums fall on a half
    assert pixels.quantise(np.array([0, 1, 2, 3, 509, 510]), 0, 510, 1).tolist() == [0, 1, 1, 2, 255, 255]


def test_windows_clip_before_they_average():
    """Half bone, half brain: the average of clipped values, not the clipped average."""
    square = np.zeros((8, 8), np.int16)
    square[:, ::2] = 1000
    assert (pixels.window_channel(square, IMAGE.windows[0], 2) == 128).all()


# --- box-area resample ---------------------------------------------------------------------------------------


@given(
    side=st.integers(20, 1100), size=st.integers(8, 300), window=st.sampled_from(ALL_WINDOWS), seed=st.integers(0, 99)
)
@settings(max_examples=30, deadline=None)
def test_any_size_equals_the_exact_sum(side, size, window, seed):
    reach = window.width_hu // 2 + 9
    hu = noise(side, seed, max(window.level_hu - reach, -32768), min(window.level_hu + reach, 32767))
    assert np.array_equal(pixels.window_channel(hu, window, size), exact_channel(hu, window, size))


@given(size=st.integers(8, 200), window=st.sampled_from(ALL_WINDOWS), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_fast_path_equals_the_general_one(size, window, seed):
    hu = noise(4 * size, seed, -32768, 32767)
    low, scale = 2 * window.level_hu - window.width_hu, 2
    clipped = np.clip(scale * hu.astype(np.int32), low, low + scale * window.width_hu)
    general = pixels.quantise(pixels.box_sums(clipped, size, 2 * 32768 + 65536), low, scale * window.width_hu, hu.size)
    assert np.array_equal(pixels.window_channel(hu, window, size), general)


def cumulated(values: np.ndarray, size: int) -> np.ndarray:
    """`box_sums` by cumulative sums along each axis, which take ten times as long."""
    for _ in range(2):
        height = len(values)
        whole, part = np.divmod(np.arange(size + 1) * height, size)
        before = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
        edges = values[np.minimum(whole, height - 1)] * part[:, None]
        values = np.diff(before[whole] * size + edges, axis=0).T
    return values


@given(st.integers(1, 300), st.integers(1, 300), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_box_sums_equal_those_of_cumulative_sums(height, size, small, seed):
    most = np.iinfo(np.int32).max // (height**2 if small else height)  # sums of small values fit 32 bits
    values = np.random.default_rng(seed).integers(-most, most, (height, height), dtype=np.int32, endpoint=True)
    sums = pixels.box_sums(values, size, most)
    assert sums.dtype == np.int64
    np.testing.assert_array_equal(sums, cumulated(values.astype(np.int64), size))


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_whole_blocks_count_each_input_alike(size, block, seed):
    values = np.random.default_rng(seed).integers(0, 1000, (size * block, size * block), dtype=np.int32)
    blocks = values.reshape(size, block, size, block).sum(axis=(1, 3))
    np.testing.assert_array_equal(pixels.box_sums(values, size, 999), blocks * size**2)


@pytest.mark.slow
def test_the_widest_windows_over_the_greatest_slice_overflow_nowhere():
    hu = np.full((4096, 4096), 32767, np.int16)
    hu[:, :2048] = -32768
    for width in (65533, 65534):  # odd widths count in halves
        assert pixels.window_channel(hu, Window("wide", 0, width), 2).tolist() == [[0, 255], [0, 255]]


@pytest.mark.parametrize(("height", "size"), [(7, 3), (3, 7), (5, 5), (12, 4), (1, 8), (511, 128), (513, 128)])
def test_box_weights_add_up(height, size):
    ones = pixels.box_sums(np.ones((height, height), np.int32), size, 1)
    assert (ones == height * height).all()
    values = np.arange(height * height, dtype=np.int32).reshape(height, height)
    weights = overlaps(height, size)
    assert np.array_equal(pixels.box_sums(values, size, height**2), weights @ values @ weights.T)


@pytest.mark.parametrize("most", [2**31 // 64 - 1, 2**31 // 64, 2**31 // 8 - 1])
def test_sums_at_the_ends_of_32_bits(most):
    for value in (most, -most):
        sums = pixels.box_sums(np.full((8, 8), value, np.int32), 3, most)
        assert (sums == 64 * value).all()


def test_box_sums_of_one_box_in_fractions():
    """3 to 2: the first output covers one and a half inputs on each axis."""
    values = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.int32)
    half = Fraction(1, 2)
    mean = (1 + 2 * half + 4 * half + 5 * half * half) / (Fraction(3, 2) ** 2)
    assert Fraction(int(pixels.box_sums(values, 2, 9)[0, 0]), 9) == mean


def test_upscaling_repeats_whole_pixels():
    hu = noise(8, 3, 0, 80)
    window = IMAGE.windows[0]
    repeated = np.repeat(np.repeat(pixels.window_channel(hu, window, 8), 3, axis=0), 3, axis=1)
    assert np.array_equal(pixels.window_channel(hu, window, 24), repeated)


@pytest.mark.parametrize(("side", "size"), [(512, 128), (512, 100), (513, 128), (640, 128), (768, 256), (130, 128)])
def test_opencv_area_agrees_within_one_level(side, size):
    hu = noise(side, side)
    for window in IMAGE.windows:
        low = window.level_hu - window.width_hu / 2
        clipped = np.clip(hu.astype(np.float32), low, low + window.width_hu)
        mean = cv2.resize(clipped, (size, size), interpolation=cv2.INTER_AREA)
        levels = np.floor((mean - low) * 255 / window.width_hu + 0.5)
        assert np.abs(levels - pixels.window_channel(hu, window, size)).max() <= 1


# --- the tensor ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(512, 512), (512, 400), (301, 512), (64, 65), (1, 9)])
def test_the_tensor_is_the_channels_of_the_padded_square(shape):
    hu = np.random.default_rng(1).integers(-1000, 500, shape, dtype=np.int16)
    tensor = pixels.image_of(hu, IMAGE)
    assert tensor.shape == IMAGE.shape
    assert tensor.dtype == np.uint8
    assert tensor.flags.c_contiguous
    for channel, window in enumerate(IMAGE.windows):
        assert np.array_equal(tensor[:, :, channel], exact_channel(pixels.pad_square(hu, -1000), window, 128))


@pytest.mark.parametrize(
    ("hu", "mean"),
    [
        ([[1, 2], [3, 4]], 10),
        ([[-1, -2], [-3, -4]], -10),
        ([[-8192] * 2] * 2, -32768),
        ([[-8193] * 2] * 2, -32768),
        ([[8191] * 2] * 2, 32764),
        ([[8192] * 2] * 2, 32767),
        ([[32767, -32768], [0, 0]], -1),
        ([[7]], 28),
        ([[1] + [0] * 7] * 8, 1),  # an eighth of a HU is half of a step, and goes up
        ([[-1] + [0] * 7] * 8, 0),  # so does this
    ],
)
def test_a_mean_of_hu_is_rounded_to_the_nearest_quarter(hu, mean):
    assert pixels.mean_steps(np.array(hu, np.int16), 1).tolist() == [[mean]]


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 99))
def test_means_of_hu_are_exact(side, size, seed):
    """Blocks of whole pixels and boxes of parts of them: the mean in fractions, rounded once."""
    hu = np.random.default_rng(seed).integers(-9000, 9000, (side, side)).astype(np.int16)
    weights = overlaps(side, size)
    sums = weights @ hu.astype(np.int64) @ weights.T
    expected = [[floor(Fraction(4 * int(one), side * side) + Fraction(1, 2)) for one in row] for row in sums]
    found = pixels.mean_steps(hu, size)
    assert found.dtype == np.int16
    assert found.tolist() == np.clip(expected, -32768, 32767).tolist()


HU_IMAGE = dataclasses.replace(IMAGE, kind="hu")


@pytest.mark.parametrize("shape", [(512, 512), (300, 512)])
def test_a_tensor_of_hu_and_what_is_shown_of_it(shape):
    hu = np.random.default_rng(1).integers(-1000, 500, shape, dtype=np.int16)
    tensor = pixels.image_of(hu, HU_IMAGE)
    assert (tensor.shape, tensor.dtype) == ((128, 128, 1), np.int16)
    assert np.array_equal(tensor[:, :, 0], pixels.mean_steps(pixels.pad_square(hu, -1000), 128))
    shown = pixels.shown(tensor, HU_IMAGE)
    for channel, window in enumerate(IMAGE.windows):
        low = window.level_hu - window.width_hu / 2
        clipped = np.clip(tensor[:, :, 0] / 4, low, low + window.width_hu)
        assert np.array_equal(shown[:, :, channel], np.floor((clipped - low) * 255 / window.width_hu + 0.5))
    windowed = pixels.image_of(hu, IMAGE)
    assert pixels.shown(windowed, IMAGE) is windowed


def test_hu_and_windows_agree_where_no_pixel_holds_both_sides_of_an_end():
    """Elsewhere, as at the edge of bone, the mean of clipped HU is another than the clipped mean of HU."""
    rows, columns = np.mgrid[:512, :512]
    away = np.hypot(rows - 255.5, columns - 255.5)
    hu = np.where(away < 200, 30 + 40 * np.sin(rows / 37) * np.cos(columns / 29), -1000)
    hu = np.where((away >= 170) & (away < 200), 1200, hu).astype(np.int16)
    windowed, shown = pixels.image_of(hu, IMAGE), pixels.shown(pixels.image_of(hu, HU_IMAGE), HU_IMAGE)
    boxes = hu.reshape(128, 4, 128, 4)
    for channel, window in enumerate(IMAGE.windows):
        low, high = window.level_hu - window.width_hu // 2, window.level_hu + window.width_hu // 2
        least, most = boxes.min((1, 3)), boxes.max((1, 3))
        mixed = ((least < low) & (most > low)) | ((least < high) & (most > high))
        differ = np.abs(windowed[:, :, channel].astype(int) - shown[:, :, channel])
        assert differ[~mixed].max() <= 1
        assert differ[mixed].max() > 1
        assert (~mixed).mean() > 0.8


def test_padding_is_air_around_the_centre_and_an_odd_line_goes_last():
    square = pixels.pad_square(np.full((2, 5), 7, np.int16), IMAGE.pad_hu)
    assert square.tolist() == [[-1000] * 5, [7] * 5, [7] * 5, [-1000] * 5, [-1000] * 5]
    assert pixels.pad_square(np.full((3, 2), 7, np.int16), IMAGE.pad_hu).tolist() == [[7, 7, -1000]] * 3


def test_layout_and_strides_of_the_slice_do_not_matter():
    hu = noise(512, 5)
    expected = pixels.image_of(hu, IMAGE)
    assert np.array_equal(pixels.image_of(np.asfortranarray(hu), IMAGE), expected)
    window = IMAGE.windows[1]
    assert np.array_equal(pixels.window_channel(np.asfortranarray(hu), window, 128), expected[:, :, 1])
    twice = np.repeat(hu, 2, axis=1)[:, ::2]
    assert np.array_equal(pixels.window_channel(twice, window, 128), expected[:, :, 1])


@pytest.mark.parametrize("side", [512, 500])
def test_a_read_only_slice_stays_as_it_is(side):
    hu = noise(side, 6)
    before = hu.copy()
    hu.setflags(write=False)
    pixels.image_of(hu, ImageSpec(64, -1000, ALL_WINDOWS, "none", "windows"))
    assert np.array_equal(hu, before)


# --- stored values to HU -------------------------------------------------------------------------------------


def exact_hu(stored: int, slope: Fraction, intercept: Fraction) -> int:
    return min(max(round(stored * slope + intercept), -32768), 32767)  # round of a Fraction is half to even


def exact_stored(cell: int, bits_stored: int, signed: bool) -> int:
    value = cell & ((1 << bits_stored) - 1)
    return value - (1 << bits_stored) if signed and value >> (bits_stored - 1) else value


@given(
    cells=st.lists(st.integers(0, 65535), min_size=1, max_size=50),
    bits_stored=st.integers(1, 16),
    signed=st.booleans(),
    slope=st.sampled_from([1, Fraction(1, 2), -1, Fraction(1, 4), 3, 2000]),
    intercept=st.sampled_from([0, -1024, -1000, Fraction(1, 2), -8192, 40000, -40000, 32767, -32767]),
)
def test_hu_are_rounded_sums_of_any_cell(cells, bits_stored, signed, slope, intercept):
    stored = [exact_stored(cell, bits_stored, signed) for cell in cells]
    values = np.array(stored, np.int16 if signed else np.uint16)
    values.setflags(write=False)
    before = values.tolist()
    got = pixels.to_hu(values, bits_stored, signed, float(slope), float(intercept))
    if bits_stored == 12 and not signed and intercept > -100:
        stored, intercept = [(value + 1000) % 4096 for value in stored], -1000
    assert got.dtype == np.int16
    assert got.tolist() == [exact_hu(value, Fraction(slope), Fraction(intercept)) for value in stored]
    assert values.tolist() == before


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("intercept", [-1024, 0, -32767, 32767, -40000])
def test_every_16_bit_cell(signed, intercept):
    raw = np.arange(65536, dtype=np.uint16)
    stored = raw.view(np.int16).astype(np.int64) if signed else raw.astype(np.int64)
    expected = np.clip(stored + intercept, -32768, 32767)
    values = raw.view(np.int16) if signed else raw
    assert np.array_equal(pixels.to_hu(values, 16, signed, 1.0, intercept), expected)


@pytest.mark.parametrize(
    ("stored", "hu"), [(1, 0), (3, 2), (5, 2), (7, 4), (-1, -0), (-3, -2)], ids=lambda value: str(value)
)
def test_halves_go_to_even(stored, hu):
    assert pixels.to_hu(np.array([stored], np.int16), 16, True, 0.5, 0.0).tolist() == [hu]


def test_a_giant_slope_saturates_quietly(recwarn):
    cells = np.array([0, 1, -1], np.int16)
    assert pixels.to_hu(cells, 16, True, 1e308, -1e308).tolist() == [-32768, 0, -32768]
    assert pixels.to_hu(np.array([30000], np.int16), 16, True, 1e308, 0.0).tolist() == [32767]
    assert not recwarn.list


def test_8_bit_cells():
    raw = np.array([0, 127, 128, 255], np.uint8)
    assert pixels.to_hu(raw, 8, False, 1.0, -100.0).tolist() == [-100, 27, 28, 155]
    assert pixels.to_hu(raw.view(np.int8), 8, True, 1.0, 0.0).tolist() == [0, 127, -128, -1]


# --- the RSNA 12-bit defect ----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong_intercept", [0.0, 1.0, -99.0])
def test_wrapped_12_bit_values_are_recovered(wrong_intercept):
    hu = np.arange(-1000, 3096)
    wrapped = (hu % 4096).astype(np.uint16)  # what the scanner stored
    assert np.array_equal(pixels.to_hu(wrapped, 12, False, 1.0, wrong_intercept), hu)


@pytest.mark.parametrize(
    ("bits_stored", "signed", "intercept", "wrapped"),
    [
        (12, False, 0.0, True),
        (12, False, -99.0, True),
        (12, False, -100.0, False),
        (12, False, -1024.0, False),
        (12, True, 0.0, False),  # valid: some scanners store HU as they are
        (16, False, 0.0, False),
        (11, False, 0.0, False),
        (13, False, 0.0, False),
    ],
)
def test_only_unsigned_12_bit_with_a_high_intercept_is_repaired(bits_stored, signed, intercept, wrapped):
    assert pixels.is_wrapped(bits_stored, signed, intercept) is wrapped
    cells = np.array([0, 40, 1064], np.uint16)
    expected = [0, 40, 1064] if wrapped else [int(intercept), int(intercept) + 40, int(intercept) + 1064]
    assert pixels.to_hu(cells, bits_stored, signed, 1.0, intercept).tolist() == expected


def test_repair_leaves_a_read_only_buffer_alone():
    cells = np.frombuffer(np.arange(4096, dtype=np.uint16).tobytes(), np.uint16)
    pixels.to_hu(cells, 12, False, 1.0, 0.0)
    assert np.array_equal(cells, np.arange(4096))
