from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.shell import display
from trainer.shell.display import Display, Rate

NAN = float("nan")


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def drawn(self) -> list[str]:
        """What stood in the bar's line, one after another."""
        return [text for text in self.getvalue().replace("\n", display.CLEAR).split(display.CLEAR) if text]


def shown(stream: io.StringIO, epochs: int = 10, steps: int = 350, batch_size: int = 32) -> tuple[Display, Clock]:
    now = Clock()
    return Display(stream, epochs, steps, batch_size, now), now


@pytest.mark.parametrize(
    ("rate", "text"), [(0.04, "0.0"), (9.94, "9.9"), (9.96, "10"), (819.6, "820"), (1234, "1,234")]
)
def test_count(rate, text):
    assert display.count(rate) == text


@pytest.mark.parametrize(
    ("step", "loss", "rate", "text"),
    [
        (0, None, 0.0, "epoch 3/10 [........................] 0/1,350, time left not known yet"),
        (8, 0.5, 0.0, "epoch 3/10 [........................] 8/1,350, loss 0.5000, time left not known yet"),
        (
            675,
            NAN,
            820.4,
            "epoch 3/10 [############............] 675/1,350, loss nan, 820 images/s, 0:17 left (2:40 in all)",
        ),
    ],
)
def test_progress_line(step, loss, rate, text):
    assert display.progress_line("epoch 3/10", step, 1350, loss, rate, 17, 160) == text


def test_evaluation_line():
    text = "epoch 1/2 [############............] evaluating, 22/44 batches"
    assert display.evaluation_line("epoch 1/2", 22, 44) == text


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({}, "epoch 3/10: "),
        ({"epoch": 3, "loss": 0.12345}, "epoch 3/10: loss 0.1235"),
        (
            {"seconds": 160, "val_auc_any": 0.98765, "val_log_loss": NAN, "learning_rate": 1e-4, "images_per_s": 820.2},
            "epoch 3/10: val_log_loss nan, val_auc_any 0.9877, learning rate 1.00e-04, 820 images/s, 2:40",
        ),
    ],
)
def test_epoch_line(row, text):
    assert display.epoch_line("epoch 3/10", row) == text


@given(st.lists(st.floats(0.01, 30), min_size=1, max_size=30), st.floats(0.1, 1e4))
def test_a_steady_rate_is_told_as_it_is(seconds, per_s):
    rate = Rate()
    for s in seconds:
        rate.add(per_s * s, s)
    assert rate.per_s == pytest.approx(per_s)


def test_a_rate_follows_a_change_within_minutes():
    rate = Rate()
    assert rate.per_s == 0
    for per_s in [1000.0] * 100 + [100.0] * 30:
        rate.add(per_s * 10, 10)
    assert rate.per_s == pytest.approx(100, rel=0.1)


def test_the_rate_leaves_out_the_first_call_and_what_a_resumed_run_skips():
    out = Terminal()
    view, now = shown(out, epochs=4, steps=100, batch_size=10)
    view.start(2, 40)
    now.s += 60  # compiles
    view.update(2, 50, 0.5)
    assert out.drawn[-1].endswith("50/100, loss 0.5000, time left not known yet")
    now.s += 2
    view.update(2, 60, 0.25)
    # 100 slices in 2 s; 40 steps left of this epoch, 100 of the other
    assert (
        out.drawn[-1]
        == "epoch 3/4 [##############..........] 60/100, loss 0.2500, 50 images/s, 0:08 left (0:28 in all)"
    )


def test_the_time_left_of_the_run_has_an_evaluation_after_each_epoch():
    out = Terminal()
    view, now = shown(out, epochs=3, steps=10, batch_size=10)
    for epoch in range(2):
        view.start(epoch, 0)
        for step in range(1, 11):
            now.s += 1
            view.update(epoch, step, 0.5)
        assert "0:00 left" in out.drawn[-1]
        now.s += 30
    # of epoch 2 an evaluation, of epoch 3 training and an evaluation
    assert out.drawn[-1].endswith("10 images/s, 0:00 left (1:10 in all)")
    view.start(2, 0)
    assert out.drawn[-1].endswith("10 images/s, 0:10 left (0:40 in all)")


def test_a_terminal_gets_one_line_that_is_drawn_ten_times_a_second_at_most():
    out = Terminal()
    view, now = shown(out, steps=1000)
    view.start(0, 0)
    for step in range(1, 1001):
        now.s += 0.01
        view.update(0, step, 0.5)
    assert 90 <= len(out.drawn) <= 103
    assert "\n" not in out.getvalue()
    assert "1,000/1,000" in out.drawn[-1]  # the full bar is drawn in any case


def test_a_file_gets_a_line_every_ten_seconds_and_one_for_each_epoch():
    out = io.StringIO()
    view, now = shown(out, epochs=2, steps=35, batch_size=8)
    view.start(0, 0)
    for step in range(1, 36):
        now.s += 1
        view.update(0, step, 0.5)
    view.evaluating(4, 4)
    view.epoch_done({"loss": 0.5, "val_auc_any": 0.75})
    lines = out.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines[:-1]] == [
        "epoch 1/2 [######..................] 10/35",
        "epoch 1/2 [#############...........] 20/35",
        "epoch 1/2 [####################....] 30/35",
    ]
    assert lines[-1] == "epoch 1/2: loss 0.5000, val_auc_any 0.7500, 8.0 images/s, 0:35"
    assert "\r" not in out.getvalue()


def test_an_epoch_line_tells_the_row_s_own_rate_and_time_first():
    out = io.StringIO()
    view, now = shown(out)
    view.start(0, 0)
    now.s += 5
    view.epoch_done({"seconds": 61.0, "images_per_s": 12.0})
    assert out.getvalue() == "epoch 1/10: 12 images/s, 1:01\n"


def test_a_note_stands_on_a_line_of_its_own_and_the_bar_goes_on():
    out = Terminal()
    view, _ = shown(out)
    view.start(0, 0)
    bar = out.drawn[-1]
    view.note("saved")
    assert out.getvalue().endswith(f"{display.CLEAR}saved\n{bar}")
    view.epoch_done({"loss": 1.0, "seconds": 1})
    assert out.getvalue().endswith(f"{display.CLEAR}epoch 1/10: loss 1.0000, 0:01\n")
    view.close()
    assert out.getvalue().endswith("0:01\n")  # no bar stands, so nothing to leave


def test_closing_leaves_the_bar_on_its_line():
    out = Terminal()
    view, _ = shown(out)
    view.start(0, 0)
    view.close()
    view.close()
    assert out.getvalue().endswith("not known yet\n")
    assert out.getvalue().count("\n") == 1


def test_a_bar_does_not_wrap_on_a_narrow_terminal():
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    with os.fdopen(follower, "w") as stream:
        Display(stream, 10, 350, 32, Clock()).start(0, 0)
        drawn = os.read(leader, 1000).decode()
    os.close(leader)
    assert drawn == f"{display.CLEAR}{'epoch 1/10 [........................] 0/350'[:39]}"
