from __future__ import annotations

import pytest

from ich_tfrecords.views import progress_bar


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599, "59:59"), (3600, "1:00:00"), (36_061, "10:01:01")],
)
def test_clock(seconds, text):
    assert progress_bar.clock(seconds) == text


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [
        (0, 0, "[########################]"),
        (0, 7, "[........................]"),
        (6, 7, "[####################....]"),  # full only when done
        (7, 7, "[########################]"),
        (9, 7, "[########################]"),
    ],
)
def test_bar(done, total, text):
    assert progress_bar.bar(done, total) == text


@pytest.mark.parametrize(
    ("done", "rate", "seconds", "text"),
    [
        (0, 0.0, 0.0, "time left not known yet"),
        (1, 0.5, 2.0, "0:06 left"),
        (4, 0.5, 8.0, "0:08 in all"),
        (5, 0.0, 0.0, "0:00 in all"),  # done is done, at any rate
    ],
)
def test_time_left(done, rate, seconds, text):
    assert progress_bar.time_left(done, 4, rate, seconds) == text
