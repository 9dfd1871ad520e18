"""The line of a pass over slices, on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest

from trainer.shell import progress_line


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
    assert progress_line.line("split test", "slices", done, 400, seconds) == text


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
