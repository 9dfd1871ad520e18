"""The page of slices as the model gets them: pixels unsmoothed, labels under each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ich_tfrecords.views import montage
from trainer.training import input_page
from trainer.training.run_dir import RunDir


def test_a_page_shows_slices_unsmoothed_with_their_windows_as_colours():
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    page = input_page.input_page(images, np.zeros((3, 2), int), ["any", "subdural"], ["a", "b", "c"])
    assert page.dtype == np.uint8
    assert page.shape == (36 + 192 + 16 + 18, 3 * (192 + 16) + 16, 3)
    for number, image in enumerate(images):
        left = 16 + number * (192 + 16)
        np.testing.assert_array_equal(page[36 : 36 + 192, left : left + 192][1::3, 1::3], image)


@pytest.mark.parametrize("windows", [1, 2, 4])
def test_other_numbers_of_windows_show_the_first_in_grey(windows):
    images = np.random.default_rng(0).integers(0, 256, (1, 192, 192, windows), np.uint8)
    page = input_page.input_page(images, np.zeros((1, 1), int), ["any"], [f"w{k}" for k in range(windows)])
    assert (page[36 : 36 + 192, 16 : 16 + 192] == images[0, ..., :1]).all()


@pytest.mark.parametrize(("n", "rows", "across"), [(1, 1, 1), (4, 1, 4), (5, 2, 4), (16, 4, 4), (40, 4, 4)])
def test_a_page_has_up_to_sixteen_slices(n, rows, across):
    page = input_page.input_page(np.zeros((n, 8, 8, 1), np.uint8), np.ones((n, 1), int), ["any"], ["brain"])
    width = max(across * (192 + 16) + 16, 340)
    assert page.shape == (rows * (192 + 16 + 18) + 36, width, 3)


def page_of(labels: list[int]) -> np.ndarray:
    """Picture of one black slice with `labels` of two names, the text under it."""
    page = input_page.input_page(
        np.zeros((1, 192, 192, 1), np.uint8), np.array([labels]), ["any", "subdural"], ["brain"]
    )
    return page[36 + 192 :]


def test_the_labels_are_written_under_the_slice():
    pages = {str(labels): page_of(labels).tobytes() for labels in ([0, 0], [1, 0], [0, 1], [1, 1], [-1, -1])}
    assert len(set(pages.values())) == 5  # each says something else
    assert (page_of([1, 1]) == montage.BRIGHT).all(axis=-1).any()


def test_wrapped():
    def wrap(words, width):
        return input_page.wrapped(words, width, len)

    assert wrap(["any"], 0) == ["any"]
    assert wrap(["any", "epidural"], 13) == ["any,", "epidural"]
    assert wrap(["any", "epidural"], 14) == ["any, epidural"]
    assert wrap(["a", "b", "cccc", "d"], 5) == ["a, b,", "cccc,", "d"]


@given(st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=8), st.integers(1, 30))
@settings(max_examples=50)
def test_wrapping_loses_nothing_and_keeps_the_width(words, width):
    lines = input_page.wrapped(words, width, len)
    assert " ".join(lines).split(", ") == words
    assert all(len(line) <= width or ", " not in line for line in lines)


def test_the_page_of_a_converted_slice_is_kept_as_png(tmp_path, dataset, rsna_spec):
    rows = montage.slice_rows(dataset, rsna_spec).slice(0, 6)
    pictures = montage.read_pictures(dataset, rows, rsna_spec)
    images = np.stack([picture.image for picture in pictures])
    labels = np.array([[picture.row[name] for name in rsna_spec.labels.names] for picture in pictures])
    windows = [window.name for window in rsna_spec.image.windows]
    page = input_page.input_page(images, labels, rsna_spec.labels.names, windows)
    run = RunDir(tmp_path)
    run.write_inputs(page)
    with Image.open(run.inputs) as kept:
        assert (np.asarray(kept) == page).all()
    np.testing.assert_array_equal(page[36 : 36 + 256 : 2, 16 : 16 + 256 : 2], images[0])
