"""The grey of the browser is that of pixels.py, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ich_tfrecords import pixels
from ich_tfrecords.spec import Window

ALL_HU = np.arange(-32768, 32768, dtype=np.int16).reshape(256, 256)
GREYS = """async ([level, width]) => {
  const { greyTable } = await import("/static/hu.js");
  return Array.from(greyTable(level, width));
}"""

pytestmark = pytest.mark.slow


def oracle(hu, level, width):
    return pixels.window_channel(hu, Window("free", level, width), hu.shape[0])


@pytest.fixture
def page(open_page):
    return open_page("/login")


@pytest.mark.parametrize(
    ("level", "width"),
    [(40, 80), (40, 380), (40, 81), (0, 1), (-3, 2), (-32767, 2), (32766, 2), (0, 65534)],
)
def test_each_hu_has_the_grey_of_pixels_py(page, level, width):
    assert np.array_equal(page.evaluate(GREYS, [level, width]), oracle(ALL_HU, level, width).ravel())


@pytest.mark.long
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(-2000, 4000), st.integers(1, 8000))
def test_any_window_has_the_grey_of_pixels_py(page, level, width):
    assert np.array_equal(page.evaluate(GREYS, [level, width]), oracle(ALL_HU, level, width).ravel())
