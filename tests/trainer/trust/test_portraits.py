"""Portraits: the table of what series look like, from images, vectors and headers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from ich_tfrecords.dicom.facts import SliceFacts
from trainer.trust import portraits
from trainer.trust.portraits import BINS, SCHEMA, Gathered, Looks

PHILIPS = SliceFacts("philips", None, "UB", 120.0, 5.0, 0.45, None, False)


def looks(*distances: float) -> Looks:
    count = len(distances)
    grey, vector = np.full((count, BINS), 1 / BINS, np.float32), np.arange(2.0 * count, dtype=np.float32).reshape(-1, 2)
    far = np.array(distances, np.float32)
    return Looks(grey, vector, far, 2 * far)


def test_shares_count_the_pixels_of_each_window_by_themselves():
    image = np.zeros((2, 4, 4, 2), np.uint8)
    image[0, 0, 0, 0], image[1, :, :, 1] = 8, 255
    found = portraits.shares(image).reshape(2, 2, BINS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=2), 1)
    assert (found[0, 0, 0], found[0, 0, 1]) == (15 / 16, 1 / 16)
    assert (found[0, 1, 0], found[1, 0, 0], found[1, 1, BINS - 1]) == (1, 1, 1)


def test_slices_in_any_order_make_a_row_a_series():
    gathered = Gathered()
    gathered.take([("s", "b"), ("s", "a")], [None, PHILIPS], looks(1, 2), [[0.1, 0.9], [0.3, 0.2]])
    gathered.take([("s", "b")], [PHILIPS], looks(5), [[0.4, 0.5]])
    table = gathered.named()
    assert table.schema.names == ["study_uid", "series_uid", *SCHEMA.names]
    first, second = table.to_pylist()
    assert (first["series_uid"], first["slices"], second["series_uid"], second["slices"]) == ("b", 2, "a", 1)
    assert first["probabilities"] == pytest.approx([0.4, 0.9])
    assert first["vector"] == pytest.approx([0, 1])
    assert (first["manufacturer"], first["kvp"], first["tilt_deg"]) == ("philips", 120.0, None)
    assert (second["distance"], second["grey_distance"]) == (2, 4)


def test_the_commonest_header_of_a_series_counts():
    gathered = Gathered()
    thin = PHILIPS._replace(thickness_mm=1.25)
    gathered.take([0] * 3, [PHILIPS, thin, thin], looks(1, 1, 1), [[0.5]] * 3)
    assert gathered.table()["thickness_mm"].to_pylist() == [1.25]


@pytest.mark.parametrize(("strange", "expected"), [(1, 1.0), (3, 9.0)])
def test_one_strange_slice_of_twenty_makes_no_strange_series(strange, expected):
    assert portraits.far([9.0] * strange + [1.0] * (20 - strange)) == expected


def test_no_slices_make_an_empty_table_of_the_schema():
    table = Gathered().table()
    assert table.schema.equals(SCHEMA)
    assert len(table) == 0
    assert isinstance(table, pa.Table)
