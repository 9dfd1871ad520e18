"""The line of a pass over slices, on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest

from ich_tfrecords.views import progress_line


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("done", "seconds", "text"),
    [
        (0, 0, "split test [........................] 0/400 slices, 0.0 slices/s, time left not known yet"),
        (100, 10, "split test [######..................] 100/400 slices, 10 slices/s, 0:30 left"),
        (400, 40, "split test [########################] 400/400 slices, 10 slices/s, 0:40 in all"),
    ],
)
def test_the_line(done, seconds, text):
    assert progress_line.line("split test", "slices", done, 400, done, seconds) == text


def test_the_rate_of_work_that_goes_on_counts_what_is_done_now():
    text = "x [############............] 500/1,000 slices, 10 slices/s, 0:50 left"
    assert progress_line.line("x", "slices", 500, 1000, 100, 10.0) == text


def told(stream: io.StringIO, every_s: float) -> str:
    clock = Clock()
    with progress_line.shown("test", "slices", stream, clock) as tell:
        for done in range(1, 5):
            clock.seconds += every_s
            tell(done, 4)
    return stream.getvalue()


def test_a_file_gets_a_line_every_ten_seconds_and_the_last():
    assert [text.split()[2] for text in told(io.StringIO(), 6).splitlines()] == ["2/4", "4/4"]
    assert [text.split()[2] for text in told(io.StringIO(), 1).splitlines()] == ["4/4"]


def test_a_terminal_draws_over_its_line_and_ends_it():
    text = told(Terminal(), 6)
    assert text.count("\r\x1b[K") == 4
    assert text.count("\n") == 1
    assert text.endswith("0:24 in all\n")


def test_a_pass_that_ends_early_ends_its_line():
    stream, clock = Terminal(), Clock()
    with progress_line.shown("test", "slices", stream, clock) as tell:
        clock.seconds = 1
        tell(1, 4)
    assert stream.getvalue().endswith(" left\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599, "59:59"), (3600, "1:00:00"), (36_061, "10:01:01")],
)
def test_clock(seconds, text):
    assert progress_line.clock(seconds) == text


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
    assert progress_line.bar(done, total) == text


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
    assert progress_line.time_left(done, 4, rate, seconds) == text
