from __future__ import annotations

import io
import time

import pytest

from beam_pipelines import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_line_that_is_drawn_again(monkeypatch):
    monkeypatch.setattr(progress, "BAR_EVERY_S", 0.01)
    out, done = Terminal(), iter(range(1000))
    with progress.Progress("x", 1000, lambda: next(done), out):
        time.sleep(0.1)
    text = out.getvalue()
    assert text.count("\n") == 1
    assert text.count("\r") > 1
    assert "1,000/1,000" in text.splitlines()[-1]


def test_a_file_gets_plain_lines(monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.01)
    out = io.StringIO()
    with progress.Progress("x", 10, lambda: 5, out):
        time.sleep(0.1)
    assert "\r" not in out.getvalue()
    assert "x [############............] 5/10" in out.getvalue()


def test_an_error_passes_and_leaves_no_finished_bar():
    out = io.StringIO()
    with pytest.raises(ValueError, match="stop"), progress.Progress("x", 10, lambda: 5, out):
        raise ValueError("stop")
    assert "in all" not in out.getvalue()
