"""Results that wait for the other side: tried again, less and less often, until it has them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from trainer.listening import outbox as outboxes
from trainer.listening.outbox import Outbox
from trainer.listening.sending import NotSent
from trainer.listening.studies import Parcel

ONE, TWO = "1" * 32, "2" * 32


class Rooms:
    """Studies whose results are to be sent."""

    def __init__(self, *studies: str) -> None:
        self.waiting, self.noted = list(studies), []

    def unsent(self) -> list[str]:
        return list(self.waiting)

    def parcel(self, study: str) -> Parcel | None:
        return Parcel(study, 1.0, [Path(f"{study}.dcm")]) if study in self.waiting else None

    def sent(self, parcel: Parcel) -> None:
        self.waiting.remove(parcel.study)
        self.noted.append(parcel.study)


class Line:
    """What sends: it fails as often as it is told to."""

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.calls = list(failures), []

    def __call__(self, files) -> None:
        self.calls.append([path.name for path in files])
        if self.failures:
            raise self.failures.pop(0)


def test_it_is_tried_again_less_and_less_often(clock, capsys):
    rooms, line = Rooms(ONE), Line(*[NotSent("PACS is away")] * 9)
    box = Outbox(rooms, line, now=clock)
    box.post(ONE)
    waits, before = [], clock.now
    while rooms.waiting:
        if box._next():
            box.attempt(ONE)
            waits.append(clock.now - before)
            before = clock.now
        clock.now += 5
    assert waits == [0, 5, 10, 20, 40, 80, 160, 320, 600, 600]
    out, err = capsys.readouterr()
    assert err == "listen: study 11111111: not sent, tried again later: PACS is away\n"  # once
    assert out == "study 11111111: 1 object sent\n"
    assert box._next() == ""


def test_another_reason_is_told(clock, capsys):
    box = Outbox(Rooms(ONE), Line(NotSent("a"), NotSent("b"), NotSent("b")), now=clock)
    box.post(ONE)
    for _ in range(3):
        box.attempt(ONE)
    assert [line[-1] for line in capsys.readouterr().err.splitlines()] == ["a", "b"]


def test_one_that_cannot_be_sent_does_not_hold_up_others(clock):
    rooms = Rooms(ONE, TWO)

    def send(files) -> None:
        if files[0].stem == ONE:
            raise NotSent("refused")

    box = Outbox(rooms, send, now=clock)
    box.post(ONE)
    box.post(TWO)
    while study := box._next():
        box.attempt(study)
    assert rooms.noted == [TWO]


def test_a_study_that_is_judged_again_meanwhile_is_sent_again(clock):
    """Its files go while they are sent; the new ones are posted in the middle of it."""

    def send(files) -> None:
        box.post(ONE)
        raise FileNotFoundError(2, "gone")

    box = Outbox(Rooms(ONE), send, now=clock)
    box.post(ONE)
    clock.now += 1
    box.attempt(ONE)
    assert box._next() == ONE  # at once, for it was posted anew


def test_nothing_is_sent_where_nothing_is_unsent(clock):
    line = Line()
    box = Outbox(Rooms(), line, now=clock)
    box.post(ONE)
    box.attempt(ONE)
    assert (line.calls, box._next()) == ([], "")


def test_what_an_earlier_process_left_is_sent(capsys):
    rooms = Rooms(ONE, TWO)
    box = Outbox(rooms, Line())
    box.start()
    deadline = time.monotonic() + 10
    while rooms.waiting and time.monotonic() < deadline:
        time.sleep(0.01)
    assert box.works
    box.stop()
    assert rooms.noted == [ONE, TWO]
    assert not box.works


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_end_that_nobody_foresaw_is_seen():
    box = Outbox(Rooms(ONE), Line(ZeroDivisionError()))
    box.start()
    deadline = time.monotonic() + 10
    while box.works and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not box.works


def test_the_longest_wait_is_minutes():
    assert outboxes.LONGEST_WAIT_S <= 900
