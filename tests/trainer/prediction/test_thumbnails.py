"""Thumbnails beside plain means, a series back as it went in, and strips that hold the driving slice."""

from __future__ import annotations

import dataclasses
import io
import tempfile
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ich_tfrecords import spec
from ich_tfrecords.storage.slice_reader import SliceRef
from trainer.prediction import thumbnails
from trainer.prediction.slice_stream import FoundSlice, uid_hash
from trainer.prediction.thumbnails import MOST_PX, Thumbnails
from trainer.prediction.triage import Outcome

LABELS, SIZE = 3, 128


def looks(size_px: int) -> spec.ImageSpec:
    return dataclasses.replace(spec.load("rsna_ich").image, size_px=size_px)


@pytest.mark.slow
@given(st.integers(8, 300), st.integers(0, 2**32 - 1))
def test_a_thumbnail_holds_the_mean_of_each_block_of_the_first_window(size, seed):
    image = np.random.default_rng(seed).integers(0, 256, (1, size, size, 3), np.uint8)
    (found,) = thumbnails.of_images(image, looks(size))
    block = -(-size // MOST_PX)
    assert found.shape == (size // block, size // block)
    assert max(found.shape) <= MOST_PX
    for row, column in ((0, 0), (len(found) - 1, 0), (len(found) // 2, len(found) - 1)):
        here = image[0, row * block : (row + 1) * block, column * block : (column + 1) * block, 0]
        assert found[row, column] == int(here.sum(dtype=int)) // block**2


def test_the_brightest_image_stays_so():
    for size in (8, 64, 128, 1024):
        assert (thumbnails.of_images(np.full((2, size, size, 3), 255, np.uint8), looks(size)) == 255).all()


def test_of_a_slice_among_neighbours_its_own_window_is_shown():
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 9), np.uint8)
    np.testing.assert_array_equal(thumbnails.of_images(images, looks(32)), images[..., 3])


def test_of_hu_the_first_window_is_shown():
    of_hu = dataclasses.replace(looks(128), kind=spec.HU)
    steps = np.full((3, 128, 128, 1), 4 * 20, np.int16)  # 20 HU, a quarter of the brain window
    steps[1], steps[2] = -4000, 4 * 100
    assert [sorted({*one.ravel().tolist()}) for one in thumbnails.of_images(steps, of_hu)] == [[64], [0], [255]]
    assert thumbnails.of_images(steps[:0], of_hu).dtype == np.uint8


def found(study: str, series: str, sop: str, position_mm: float) -> FoundSlice:
    return FoundSlice(SliceRef("/in", f"{sop}.dcm", -1, -1, 1, 1, -1, 1), 1, sop, study, series, position_mm)


@pytest.fixture
def kept() -> Iterator[Thumbnails]:
    with tempfile.TemporaryFile() as file:
        yield Thumbnails(file, LABELS, SIZE)


def test_series_come_back_from_feet_to_head_however_they_were_mixed(kept):
    rng = np.random.default_rng(0)
    slices = [
        found(f"S{number % 3}", f"E{number % 2}", f"{number}", position)
        for number, position in enumerate(rng.permutation(90).tolist())
    ]
    images = rng.integers(0, 256, (90, 64, 64), np.uint8)
    probabilities = rng.random((90, LABELS))
    for begin in range(0, 90, 7):
        part = slice(begin, begin + 7)
        kept.take(Outcome(slices[part], probabilities[part], [], 7, thumbnails=images[part]))
        kept.take(Outcome([], np.empty((0, 0)), [], 1))  # a batch of rejects
    for asked in (slices[4], slices[89]):
        own = [at for at, one in enumerate(slices) if one[3:5] == asked[3:5]]
        own.sort(key=lambda at: slices[at].position_mm)
        records = kept.series(asked)
        assert records["uid"].tolist() == [uid_hash(slices[at].sop_uid) for at in own]
        assert records["position_mm"].tolist() == [slices[at].position_mm for at in own]
        np.testing.assert_allclose(records["probabilities"], probabilities[own], rtol=1e-6)
        assert (records["thumbnail"] == images[own]).all()


@given(st.integers(1, 400), st.integers(1, 20), st.data())
def test_chosen_slices_are_spread_and_hold_the_ringed_one(count, most, data):
    ringed = data.draw(st.integers(0, count - 1))
    rows = thumbnails.chosen(count, most, ringed)
    assert len(rows) == min(count, most)
    assert ringed in rows
    assert rows == sorted(set(rows))
    for cell, row in enumerate(rows):  # each stands over its own part of the series
        assert cell * count <= (row + 1) * len(rows)
        assert row * len(rows) <= (cell + 1) * count


@pytest.mark.parametrize(("count", "ringed", "left"), [(16, 2, 2 * 66), (10, 9, 9 * 66), (1, 0, 297), (2, 1, 462)])
def test_a_strip_frames_one_in_the_middle_of_its_part(count, ringed, left):
    drawn = thumbnails.strip(np.full((count, 64, 64), 50, np.uint8), ringed)
    assert drawn.size == (max(count, 10) * 66, 64)
    pixels = np.asarray(drawn).astype(int)
    framed = (pixels == thumbnails.ACCENT).all(axis=-1).any(axis=0)
    assert np.flatnonzero(framed).tolist() == list(range(left, left + 66))
    shown = (pixels == 50).all(axis=-1).any(axis=0)
    assert shown.sum() == count * 64 - 2 * (thumbnails.RING_PX - 1)


def test_a_jpeg_opens_again():
    with Image.open(io.BytesIO(thumbnails.jpeg_bytes(Image.new("RGB", (70, 9), "white")))) as shown:
        assert (shown.format, shown.size) == ("JPEG", (70, 9))
        assert min(shown.convert("L").getdata()) > 250
