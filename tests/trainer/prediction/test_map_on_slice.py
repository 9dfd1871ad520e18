"""A map on the pixels of its slice: where it lies, and of which slice it is."""

from __future__ import annotations

import csv
import dataclasses
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords import crop, pixels
from ich_tfrecords.spec import HEAD
from ich_tfrecords.storage import sources
from ich_tfrecords.volumes.reader import FrameReader
from trainer import predict
from trainer.models import model_file
from trainer.prediction import map_on_slice, networks, picture_files, slice_stream
from trainer.prediction.slice_stream import FoundSlice
from trainer.prediction.triage import ScoredSlice
from trainer.shell.problems import WrongUse


def corner(size: int) -> np.ndarray:
    cam = np.zeros((size, size), np.float32)
    cam[: size // 4, : size // 4] = 1
    return cam


def test_a_map_covers_a_square_slice(rsna_spec):
    strength = map_on_slice.on_pixels(corner(128), np.zeros((512, 512), np.int16), rsna_spec.image)
    assert (strength.dtype, strength.shape) == (np.uint8, (512, 512))
    assert (strength[:120, :120] == 255).all()
    assert not strength[140:].any()
    assert not strength[:, 140:].any()


@given(rows=st.integers(1, 90), columns=st.integers(1, 90), seed=st.integers(0, 99))
def test_what_pads_a_slice_is_cut_from_its_map(rsna_spec, rows, columns, seed):
    side = max(rows, columns)
    cam = np.random.default_rng(seed).random((side, side), np.float32)  # of the size of the square: nothing is resized
    strength = map_on_slice.on_pixels(cam, np.zeros((rows, columns), np.int16), rsna_spec.image)
    marked = pixels.pad_square(np.ones((rows, columns), np.int16), 0) > 0
    np.testing.assert_array_equal(strength.ravel(), np.rint(255 * cam[marked]).astype(np.uint8))


def test_the_map_of_a_head_lies_on_the_head(rsna_spec):
    hu = np.full((512, 512), -1000, np.int16)
    hu[64:224, 256:416] = 40
    image = dataclasses.replace(rsna_spec.image, crop=HEAD)
    square = crop.head_square(hu)
    strength = map_on_slice.on_pixels(np.ones((128, 128), np.float32), hu, image)
    expected = np.zeros((512, 512), np.uint8)
    crop.cut(expected, square)[:] = 255
    np.testing.assert_array_equal(strength, expected)
    assert square.side < 512


@pytest.mark.slow
def test_the_map_of_a_slice_is_that_of_its_picture(export, synthetic_set, tmp_path):
    """Found by the names of predictions.csv among two inputs that hold files of one name."""
    files = sorted((synthetic_set.output / "stage_2_test").glob("*.dcm"))[:2]
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, file in zip(folders, files, strict=True):
        folder.mkdir()
        shutil.copy(file, folder / "same.dcm")
    out = tmp_path / "out"
    inputs = [part for folder in folders for part in ("--input", str(folder))]
    assert predict.main(["--model", str(export), *inputs, "--output", str(out), "--pictures", "0"]) == 0
    loaded = networks.load(export, model_file.read_about(export))
    maps = picture_files.maps_of(loaded, "hirescam")
    assert maps is not None
    table = sources.list_inputs([str(folder) for folder in folders]).table
    with (out / "predictions.csv").open(newline="") as lines:
        rows = {int(row["input"]): row for row in csv.DictReader(lines)}
    for number, ref in enumerate(sources.refs(table), 1):
        row = rows[number]
        found = map_on_slice.of_slice(table, out / "predictions.csv", number, "same.dcm", loaded, maps, "hirescam")
        probabilities = np.array([float(row[name]) for name in loaded.about.spec.labels.names])
        uids = (row["sop_uid"], row["study_uid"], row["series_uid"])
        scored = ScoredSlice(FoundSlice(ref, number, *uids, float(row["position_mm"])), probabilities)
        with sources.SliceReader() as reader, FrameReader(reader) as frames:
            ct, image = slice_stream.read_image(ref, frames, loaded.about.spec.image)
            explained = picture_files.explained(image, scored, loaded.about, maps, "hirescam")
            assert found.label == explained.label
            expected = map_on_slice.on_pixels(explained.cam, ct.hu, loaded.about.spec.image)
            np.testing.assert_array_equal(found.strength, expected)
    with pytest.raises(WrongUse, match="no slice other of input 1"):
        map_on_slice.of_slice(table, out / "predictions.csv", 1, "other", loaded, maps, "hirescam")
