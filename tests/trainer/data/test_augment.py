"""Augmentation: exact where it can be, bilinear elsewhere, and the same for a position of an epoch always."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data import augment, warp
from trainer.data.augment import Augmentation
from trainer.shell.problems import WrongUse

ALL = Augmentation(flip=True, rotate_deg=15, shift=0.1)


def noise(batch: int, size_px: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, size_px, size_px, channels), np.uint8)


def one(size_px: int, flip: bool = False, turn_deg: float = 0, right_px: float = 0, down_px: float = 0) -> np.ndarray:
    numbers = (np.array([value], np.float64) for value in (turn_deg, right_px, down_px))
    rows = augment.compose(np.array([flip]), *numbers, size_px)
    return np.concatenate([rows, np.float32([[1, 0, 0, 0, 0, 0, 0]])], 1)


def eagerly(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return augment.apply(images, rows).numpy()


def in_a_pipeline(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    batches = tf.data.Dataset.from_tensor_slices((images, rows)).batch(2).map(augment.on_host)
    assert batches.element_spec.dtype == tf.uint8
    assert batches.element_spec.shape[1:] == images.shape[1:]
    return np.concatenate(list(batches.as_numpy_iterator()))


def in_a_step(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return tf.function(augment.in_step)(images, rows).numpy()


def compiled(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    pytest.importorskip("numba")
    return warp.changed(images, rows)


EVERY = [eagerly, in_a_pipeline, in_a_step, compiled]
WAYS = pytest.mark.parametrize("way", EVERY)


def oracle(image: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The image seen through a transform, pixel by pixel, in float64; grey levels not yet rounded."""
    size_px = image.shape[0]
    padded = np.pad(image.astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    seen = np.zeros(image.shape)
    for y in range(size_px):
        for x in range(size_px):
            at_x, at_y = row[0] * x + row[1] * y + row[2], row[3] * x + row[4] * y + row[5]
            left, top = math.floor(at_x), math.floor(at_y)
            for v, u in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                if -1 <= u <= size_px and -1 <= v <= size_px:
                    seen[y, x] += (1 - abs(at_x - u)) * (1 - abs(at_y - v)) * padded[v + 1, u + 1]
    return seen


# exact cases


@pytest.mark.slow
@WAYS
@pytest.mark.parametrize("size_px", [1, 2, 7, 32])
def test_identity_keeps_every_bit(way, size_px):
    images = noise(3, size_px)
    assert (way(images, np.repeat(one(size_px), 3, axis=0)) == images).all()


@pytest.mark.slow
@WAYS
@pytest.mark.parametrize("size_px", [1, 2, 7, 32, 223, 512])
def test_a_flip_equals_np_flip(way, size_px):
    images = noise(2, size_px)
    assert (way(images, np.repeat(one(size_px, flip=True), 2, axis=0)) == np.flip(images, 2)).all()


@pytest.mark.slow
@WAYS
@pytest.mark.parametrize("turn_deg", [90, 180, 270, -90])
@pytest.mark.parametrize("size_px", [2, 7, 32, 223])
def test_a_quarter_turn_equals_np_rot90(way, turn_deg, size_px):
    """About the centre of the pixel grid, between the pixels when the side is even."""
    images = noise(1, size_px)
    assert (way(images, one(size_px, turn_deg=turn_deg)) == np.rot90(images, turn_deg // 90, (1, 2))).all()


@pytest.mark.slow
@WAYS
@pytest.mark.parametrize(("right_px", "down_px"), [(3, 0), (0, 2), (-1, 4), (-5, -5), (0, 9), (40, -40)])
def test_a_move_by_whole_pixels_is_a_copy_with_air(way, right_px, down_px):
    images = noise(1, 9)
    expected = np.zeros_like(images)
    for y in range(9):
        for x in range(9):
            if 0 <= y - down_px < 9 and 0 <= x - right_px < 9:
                expected[0, y, x] = images[0, y - down_px, x - right_px]
    assert (way(images, one(9, right_px=right_px, down_px=down_px)) == expected).all()


def test_flip_comes_first_then_the_turn_then_the_move():
    images = noise(1, 8)
    expected = np.roll(np.rot90(np.flip(images, 2), 1, (1, 2)), 2, axis=2)
    expected[:, :, :2] = 0
    assert (eagerly(images, one(8, flip=True, turn_deg=90, right_px=2)) == expected).all()


def test_half_a_pixel_is_rounded_to_the_nearest_grey_level():
    image = np.array([[10, 21], [10, 21]], np.uint8)[None, :, :, None]
    moved = eagerly(image, one(2, right_px=0.25))
    assert moved[0, 0, :, 0].tolist() == [8, 18]  # 0.75 * 10 = 7.5 to even; 0.75 * 21 + 0.25 * 10 = 18.25


def test_an_empty_batch_stays_empty():
    assert eagerly(noise(0, 5), np.zeros((0, augment.WIDTH), np.float32)).shape == (0, 5, 5, 3)


# bilinear


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    size_px=st.sampled_from([1, 2, 3, 5, 8]),
    channels=st.sampled_from([1, 3, 4]),
    seed=st.integers(0, 1000),
    flip=st.booleans(),
    turn_deg=st.floats(-180, 180),
    moves=st.tuples(st.floats(-0.99, 0.99), st.floats(-0.99, 0.99)),
)
def test_bilinear_as_counted_by_hand(size_px, channels, seed, flip, turn_deg, moves):
    images = noise(1, size_px, channels, seed)
    rows = one(size_px, flip, turn_deg, moves[0] * size_px, moves[1] * size_px)
    # half a level for rounding, the rest for float32 coordinates where neighbours differ by 255
    assert np.abs(eagerly(images, rows)[0] - oracle(images[0], rows[0].astype(np.float64))).max() <= 0.51


@pytest.mark.slow
@WAYS
def test_drawn_transforms_agree_with_the_oracle(way):
    images, rows = noise(5, 24), augment.draw(ALL, 3, 1, 5, 24)
    expected = np.stack([oracle(image, row.astype(np.float64)) for image, row in zip(images, rows)])
    assert np.abs(way(images, rows) - expected).max() <= 0.51


@pytest.mark.slow
def test_each_image_goes_through_its_own_transform():
    images, rows = noise(6, 16), augment.draw(ALL, 0, 0, 6, 16)
    singly = np.concatenate([eagerly(images[i : i + 1], rows[i : i + 1]) for i in range(6)])
    assert (eagerly(images, rows) == singly).all()
    assert (in_a_pipeline(images, rows) == singly).all()
    assert (in_a_step(images, rows) == singly).all()


# drawing


def parts_of(rows: np.ndarray, size_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """flip [n], turn_deg [n], move_px [n, 2] of transforms, recovered from their numbers."""
    rows = rows.astype(np.float64)
    matrix = rows[:, [[0, 1], [3, 4]]]
    centre = (size_px - 1) / 2
    # the output place whose input is the centre: where the centre moved to
    places = np.linalg.solve(matrix, (centre - rows[:, [2, 5]])[..., None])[..., 0]
    return np.linalg.det(matrix) < 0, np.rad2deg(np.arctan2(rows[:, 3], rows[:, 4])), places - centre


@pytest.mark.parametrize("size_px", [32, 224])
def test_draws_fill_their_limits_and_stay_within(size_px):
    flip, turn_deg, move_px = parts_of(augment.draw(ALL, 5, 2, 4000, size_px), size_px)
    assert flip.mean() == pytest.approx(0.5, abs=0.03)
    for drawn, limit in ((turn_deg, 15), (move_px[:, 0], 0.1 * size_px), (move_px[:, 1], 0.1 * size_px)):
        assert 0.99 * limit < np.abs(drawn).max() <= limit * 1.0001
        assert drawn.mean() == pytest.approx(0, abs=0.05 * limit)
        assert np.abs(drawn).mean() == pytest.approx(limit / 2, abs=0.03 * limit)
    assert np.abs(np.corrcoef([flip, turn_deg, *move_px.T]) - np.eye(4)).max() < 0.06


@settings(deadline=None)
@given(size=st.integers(0, 40), longer=st.integers(0, 40), seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_a_position_keeps_its_transform_whatever_the_size(size, longer, seed, epoch):
    short = augment.draw(ALL, seed, epoch, size, 64)
    assert short.shape == (size, augment.WIDTH)
    assert short.dtype == np.float32
    assert short.tobytes() == augment.draw(ALL, seed, epoch, size + longer, 64)[:size].tobytes()


def test_seeds_epochs_and_positions_differ():
    drawn = np.concatenate([augment.draw(ALL, seed, epoch, 50, 64) for seed in (0, 1) for epoch in (0, 1)])
    assert len(np.unique(drawn, axis=0)) == 200


def test_the_draws_are_frozen():
    """Who relies on it: a resumed run must see the pixels it would have seen."""
    flipped = [-0.97068, -0.240374, 131.543243, -0.240374, 0.97068, 17.455784, 0, 0]
    flipped_too = [-0.992452, -0.122635, 127.769058, -0.122635, 0.992452, 18.678106, 0, 0]
    assert augment.draw(ALL, 7, 1, 2, 128)[:, :8] == pytest.approx(np.array([flipped, flipped_too]), abs=1e-5)


@pytest.mark.parametrize(
    ("augmentation", "unchanged"),
    [
        (Augmentation(False, 0, 0), "all"),
        (Augmentation(True, 0, 0), "turn and move"),
        (Augmentation(False, 10, 0), "flip and move"),
        (Augmentation(False, 0, 0.2), "flip and turn"),
    ],
)
def test_what_is_not_asked_for_does_not_happen(augmentation, unchanged):
    rows = augment.draw(augmentation, 1, 1, 64, 32)
    flip, turn_deg, move_px = parts_of(rows, 32)
    assert flip.any() == ("flip" not in unchanged and unchanged != "all")
    assert (np.abs(turn_deg).max() > 1) == ("turn" not in unchanged and unchanged != "all")
    assert (np.abs(move_px).max() > 1) == ("move" not in unchanged and unchanged != "all")
    assert augmentation.on == (unchanged != "all")
    assert unchanged != "all" or (rows == [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]).all()


@pytest.mark.parametrize(
    ("rotate_deg", "shift", "words"),
    [
        (-1, 0, "rotate_deg is -1"),
        (181, 0, "rotate_deg is 181"),
        (math.nan, 0, "rotate_deg is nan"),
        (0, -0.1, "shift is -0.1"),
        (0, 1, "shift is 1;"),
        (0, math.nan, "shift is nan"),
    ],
)
def test_limits_out_of_range_are_refused(rotate_deg, shift, words):
    with pytest.raises(WrongUse, match=words):
        Augmentation(True, rotate_deg, shift)


# what recipes add


PARTS = ("scale", "crop", "contrast", "brightness", "erase")


def recipe(**parts: float) -> Augmentation:
    return Augmentation(False, 0, 0, **parts)


def changed_by_hand(image: np.ndarray, change: np.ndarray) -> np.ndarray:
    """The image after its change, in float64 from the first pixel to the last; grey levels not yet rounded."""
    gain, bias, left, top, right, bottom = change[8:14].astype(np.float64)
    seen = np.clip(oracle(image, change.astype(np.float64)) * gain + bias, 0, 255)
    y, x = np.mgrid[: image.shape[0], : image.shape[0]]
    seen[(x >= left) & (x < right) & (y >= top) & (y < bottom)] = 0
    return seen


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    parts=st.fixed_dictionaries({name: st.floats(0, 0.9) for name in PARTS}),
    channels=st.sampled_from([1, 3, 5]),
    seed=st.integers(0, 1000),
)
def test_a_recipe_as_counted_by_hand(parts, channels, seed):
    """All of it at once, on every way there is; on the host with the same bits."""
    images = noise(2, 8, channels, seed)
    changes = augment.draw(Augmentation(True, 20, 0.1, **parts), seed, 1, 2, 8)
    found = eagerly(images, changes)
    expected = np.stack([changed_by_hand(image, change) for image, change in zip(images, changes)])
    # half a level for each rounding, the first one times the gain, and the rest for float32
    allowed = 0.51 + 0.51 * changes[:, 8].max()
    assert np.abs(found - expected).max() <= allowed
    # where TensorFlow joins multiplication and addition, halves may go the other way before the gain
    assert np.abs(in_a_step(images, changes).astype(int) - found).max() <= np.ceil(changes[:, 8].max())
    assert (augment.in_step(tf.constant(images), tf.constant(changes)).numpy() == found).all()
    assert not warp.installed() or (warp.changed(images, changes) == found).all()


@pytest.mark.long
@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    parts=st.fixed_dictionaries({name: st.floats(0, 0.9) for name in ("scale", "crop", "erase")}),
    channels=st.sampled_from([1, 2, 3]),
    air=st.sampled_from([-1000, -3024, 0, 32767, -32768]),
    seed=st.integers(0, 1000),
)
def test_hu_as_counted_by_hand(parts, channels, air, seed):
    """Rounded to the nearest HU; what lies outside and what is erased is air, whatever number that is."""
    rng = np.random.default_rng(seed)
    images = rng.integers(-32768, 32768, (2, 8, 8, channels)).astype(np.int16)
    images[0, 1:, 2:5] = air
    changes = augment.draw(Augmentation(True, 20, 0.1, **parts), seed, 1, 2, 8, air)
    found = eagerly(images, changes)
    assert found.dtype == np.int16
    for image, change, way in zip(images, changes, found):
        expected = oracle(image.astype(np.float64) - air, change[:8]) + air
        left, top, right, bottom = change[10:14].astype(int)
        expected[top:bottom, left:right] = air
        assert np.abs(way - expected).max() <= 0.52
    # where TensorFlow joins multiplication and addition, halves may go the other way
    assert np.abs(in_a_step(images, changes).astype(int) - found).max() <= 1
    assert (augment.in_step(tf.constant(images), tf.constant(changes)).numpy() == found).all()
    assert not warp.installed() or (warp.changed(images, changes) == found).all()


@pytest.mark.slow
def test_a_turn_by_almost_nothing_loses_no_pixel():
    """A row's pixels lie beside the image or in it, as float32 rounds each place."""
    images = np.full((1, 256, 256, 1), 32767, np.int16)
    changes = np.zeros((1, augment.WIDTH), np.float32)
    changes[0, :6] = [1, 0, 0, -(2**-15) / 250, 1, 60 + 5 * 2**-18]
    changes[0, 8], changes[0, 14] = 1, -32768
    found = eagerly(images, changes)
    assert found[0, 196, 188, 0] > -32768
    assert (compiled(images, changes) == found).all()


@pytest.mark.slow
def test_an_image_shrunk_to_a_dot_keeps_it():
    """Its places lie a million pixels apart from end to end, and float32 rounds them by as many sixteenths of one."""
    images = np.full((1, 128, 128, 3), 255, np.uint8)
    changes = np.zeros((1, augment.WIDTH), np.float32)
    changes[0, :6] = 1016.4777221679688, -9779.09375, 992967.375, 9779.09375, 1016.4777221679688, -1289328.25
    changes[0, 8] = 1
    found = eagerly(images, changes)
    assert found[0, 114, 120].tolist() == [16] * 3
    assert (compiled(images, changes) == found).all()


@pytest.mark.slow
def test_images_of_one_call_may_have_other_air():
    images, moved = np.zeros((3, 4, 4, 1), np.int16), np.repeat(one(4, right_px=2), 3, axis=0)
    moved[:, 14] = [-1000, 0, -3024]
    assert compiled(images, moved)[:, 0, :, 0].tolist() == [[-1000, -1000, 0, 0], [0] * 4, [-3024, -3024, 0, 0]]


@pytest.mark.slow
def test_hu_outside_of_a_slice_are_air():
    images, moved = np.zeros((1, 4, 4, 1), np.int16), one(4, right_px=2)
    moved[:, 14] = -1000
    for way in (eagerly, in_a_step, warp.changed) if warp.installed() else (eagerly, in_a_step):
        assert way(images, moved)[0, 0, :, 0].tolist() == [-1000, -1000, 0, 0]


@pytest.mark.slow
def test_a_step_that_xla_compiles_differs_by_a_grey_level_at_most():
    """A compiler may join multiplication and addition, which rounds once instead of twice."""
    images = noise(16, 64)
    changes = augment.draw(Augmentation(True, 20, 0.1, 0.2, 0.2, 0.2, 0.2, 0.3), 0, 0, 16, 64)
    found = tf.function(augment.in_step, jit_compile=True)(images, changes).numpy()
    differs = np.abs(found.astype(int) - eagerly(images, changes))
    assert differs.max() <= 1
    assert (differs > 0).mean() < 0.01


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_a_recipe_does_what_it_says_and_nothing_else(name):
    """Limits are met and kept; whatever else a change says stays as it was."""
    changes = augment.draw(recipe(**{name: 0.4}), 1, 1, 4000, 100).astype(np.float64)
    ranges = {
        "scale": (1 / changes[:, 0], 0.6, 1.4),
        "crop": (1 / changes[:, 0], 1, 1 / 0.6),
        "contrast": (changes[:, 8], 0.6, 1.4),
        "brightness": (changes[:, 9], -102, 102),
        "erase": (changes[:, 12] - changes[:, 10], 0, 40),
    }
    drawn, low, high = ranges[name]
    assert [drawn.min(), drawn.max()] == pytest.approx([low, high], abs=0.01 * (high - low))
    moved = name in ("scale", "crop")
    still, kept = (changes[:, 8:14], [1, 0, 0, 0, 0, 0]) if moved else (changes[:, :8], [1, 0, 0, 0, 1, 0, 0, 0])
    assert (still == kept).all()


def test_a_crop_shows_a_part_of_the_image_and_nothing_beyond():
    """Its corners lie within the picture, up to the half pixel around the outermost centres."""
    rows = augment.draw(recipe(crop=0.6), 3, 0, 2000, 64).astype(np.float64)
    for at, offset in ((0, 2), (4, 5)):
        first, last = rows[:, offset] - rows[:, at] / 2, rows[:, at] * 63.5 + rows[:, offset]
        assert first.min() >= -0.5001
        assert last.max() <= 63.5001
    assert np.abs(np.corrcoef(rows[:, 2] - 31.5 * (1 - rows[:, 0]), rows[:, 5] - 31.5 * (1 - rows[:, 0]))[0, 1]) < 0.06


def test_contrast_turns_about_the_middle_grey_and_brightness_adds():
    image = np.array([0, 100, 127, 128, 200, 255], np.uint8)[None, None, :, None].repeat(6, 1)
    change = one(6)
    change[:, 8:10] = [0.5, 127.5 * 0.5]
    assert eagerly(image, change)[0, 0, :, 0].tolist() == [64, 114, 127, 128, 164, 191]  # halves to even
    change[:, 8:10] = [1, 25.5]
    assert eagerly(image, change)[0, 0, :, 0].tolist() == [26, 126, 152, 154, 226, 255]
    change[:, 8:10] = [1, -25.5]
    assert eagerly(image, change)[0, 0, :, 0].tolist() == [0, 74, 102, 102, 174, 230]


def test_what_is_erased_is_air_after_all_else():
    image, change = np.full((1, 5, 5, 2), 9, np.uint8), one(5)
    change[:, 9:14] = [100, 1, 2, 4, 4]  # brighter; columns 1 to 3, rows 2 and 3
    found = eagerly(image, change)[0, ..., 0]
    assert (found[2:4, 1:4] == 0).all()
    assert (np.delete(found, [2, 3], 0) == 109).all()


def test_the_draws_of_flips_turns_and_moves_are_those_of_runs_without_a_recipe():
    """So that a setting added to a recipe changes nothing else."""
    plain, more = (augment.draw(which, 7, 1, 50, 64) for which in (ALL, Augmentation(True, 15, 0.1, erase=0.3)))
    assert plain[:, :10].tobytes() == more[:, :10].tobytes()
    assert (more[:, 10:] != 0).any()


def test_the_draws_of_a_recipe_are_frozen():
    """Who relies on it: a resumed run must see the pixels it would have seen."""
    [change] = augment.draw(Augmentation(True, 15, 0.1, 0.2, 0.2, 0.2, 0.2, 0.3), 7, 1, 1, 128)
    assert change[:14] == pytest.approx(np.array(FROZEN), rel=1e-5)


FROZEN = [-0.863208, -0.213761, 121.354, -0.213761, 0.863208, 21.9029, 0, 0, 0.894698, 17.581, 92, 24, 128, 46]


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("value", [-0.1, 1, math.nan])
def test_parts_out_of_range_are_refused(name, value):
    with pytest.raises(WrongUse, match=rf"{name} is {value}; it is a part of .*, from 0 to below 1"):
        recipe(**{name: value})


@pytest.mark.slow
def test_without_numba_the_host_does_the_same(monkeypatch):
    images, changes = noise(6, 16), augment.draw(ALL, 0, 0, 6, 16)
    before = in_a_pipeline(images, changes)
    monkeypatch.setattr(warp, "installed", lambda: False)
    assert (in_a_pipeline(images, changes) == before).all()


@pytest.mark.parametrize("broken", [ImportError("Numba needs NumPy 2.2 or less"), SystemError("half a library")])
def test_a_numba_that_cannot_be_imported_counts_as_none(broken, monkeypatch):
    def refuse(name: str) -> None:
        assert name == "numba"
        raise broken

    warp.installed.cache_clear()
    monkeypatch.setattr(warp.importlib, "import_module", refuse)
    try:
        assert not warp.installed()
    finally:
        warp.installed.cache_clear()


@pytest.mark.parametrize("deg", [0.0, 15.0, 180.0])
def test_the_hull_around_what_is_not_air_loses_nothing(deg):
    """Heads that are small, off the centre or not there; numba looks at the hull alone."""
    pytest.importorskip("numba")
    images = np.zeros((40, 32, 32, 3), np.uint8)
    for number in range(1, 40):
        x, y = number * 7 % 30, number * 11 % 31
        images[number, y : y + 1 + number % 9, x : x + 1 + number % 5] = number
    changes = augment.draw(Augmentation(True, deg, 0.3, 0.3, 0.3, 0.2, 0.2), 1, 0, 40, 32)
    assert (warp.changed(images, changes) == eagerly(images, changes)).all()


def pieces(rng: np.random.Generator, shape: tuple[int, ...], dtype: type, air: int) -> np.ndarray:
    """Images of air with up to three rectangles of noise in each."""
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max + 1
    images = np.full(shape, air, dtype)
    for image in images:
        for _ in range(rng.integers(0, 4)):
            y, x = rng.integers(0, shape[1], 2)
            height, width = rng.integers(1, shape[1] // 2 + 2, 2)
            part = image[y : y + height, x : x + width]
            part[:] = rng.integers(least, most, part.shape)
    return images


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size_px", "channels", "dtype", "air"),
    [
        (1, 1, np.uint8, 0),
        (13, 3, np.uint8, 0),  # rows that end within a group of eight pixels
        (40, 3, np.uint8, 0),
        (600, 1, np.uint8, 0),  # a row of more groups than are placed together
        (24, 5, np.uint8, 0),  # channels in two goes
        (17, 2, np.int16, -1000),
        (32, 3, np.int16, 32767),
    ],
)
def test_numba_gives_the_bits_of_the_plain_operation(size_px, channels, dtype, air):
    """Groups of pixels that run over the ends of rows, and near the hull of what is not air."""
    pytest.importorskip("numba")
    rng = np.random.default_rng(size_px)
    for turn_deg, scale, contrast in ((0.001, 0, 0), (10, 0, 0), (180, 0.9, 0.5)):
        images = pieces(rng, (8 if size_px > 100 else 48, size_px, size_px, channels), dtype, air)
        how = Augmentation(True, turn_deg, 0.3, scale=scale, contrast=contrast, erase=0.3)
        changes = augment.draw(how, int(rng.integers(1000)), 0, len(images), size_px, air)
        assert (warp.changed(images, changes) == eagerly(images, changes)).all()


def test_of_no_image_nothing_is_changed():
    pytest.importorskip("numba")
    assert warp.changed(noise(0, 9), np.zeros((0, augment.WIDTH), np.float32)).shape == (0, 9, 9, 3)


def test_what_is_erased_stays_within_the_image():
    pytest.importorskip("numba")
    images, changes = noise(3, 9) | 1, np.repeat(one(9), 3, axis=0)
    changes[1, 10:14] = 0, -2.5, 9, 20
    found = warp.changed(images, changes)
    assert (found[1] == 0).all()
    assert (found[::2] == images[::2]).all()


def test_threads_that_come_at_once_share_what_is_compiled():
    pytest.importorskip("numba")
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: warp.kernel(11, 1, 1).one, range(4)))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_white_stays_white(channels):
    """Several channels share a word: what rounds above 255 in one would change another."""
    images = np.full((64, 16, 16, channels), 255, np.uint8)
    changes = augment.draw(Augmentation(True, 45, 0.2, contrast=0.9, brightness=0.9), 0, 0, 64, 16)
    changes[::2, 8:10] = 1, 0
    assert (compiled(images, changes) == eagerly(images, changes)).all()
