"""What goes on beside the port: lines on the screen, and ends that nobody asked for."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.listening import service
from trainer.listening.service import Settings
from trainer.shell.problems import WorkFailed, WrongUse
from trainer.worklist import spool as queue

ONE = "1" * 32


class Turns(threading.Event):
    """As many turns as are asked for."""

    def __init__(self, turns: int) -> None:
        super().__init__()
        self.left = turns

    def wait(self, timeout: float | None = None) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.fixture
def go(studies, inbox, tmp_path):
    """go(turns) -> what was posted to the outbox, and how often the worker was woken."""

    def turn(turns: int = 1, fault: str = "", works: bool = True, keep_days: float = 7) -> tuple[list[str], list[int]]:
        posted: list[str] = []
        woken: list[int] = []
        worker: Any = SimpleNamespace(fault=fault, wake=lambda: woken.append(1))
        outbox: Any = SimpleNamespace(post=posted.append, works=works)
        settings = Settings(tmp_path, "any", "ICH", "127.0.0.1", 0, tmp_path, 10, keep_days, (), None)
        service._turns(settings, studies, inbox, worker, outbox, Turns(turns))
        return posted, woken

    return turn


def put(studies) -> None:
    (studies.place(ONE) / "a.dcm").write_bytes(b"a slice")
    studies.arrived(ONE)


def test_a_study_goes_its_way(studies, spool, clock, go, capsys):
    put(studies)
    assert go() == ([], [])
    clock.now += 10
    assert go() == ([], [1])
    entry = spool.entry(ONE)
    entry.result.mkdir()
    (entry.result / "run.json").write_text('{"command": "predict"}')
    (entry.result / "triage.csv").write_text("study_uid,slices,partial,any\n1.2.3,12,10 of 12 slices,0.5\n")
    entry.turn(queue.DONE)
    assert go() == ([ONE], [])
    assert capsys.readouterr().out.splitlines() == [
        "study 11111111: 1 object, and quiet; waits for the model",
        f"study 11111111: any 0.5, 12 slices (10 of 12 slices), {entry.result}",
    ]


def test_a_study_without_result_is_told_with_its_reason(studies, spool, clock, go, capsys):
    put(studies)
    clock.now += 10
    go()
    spool.entry(ONE).turn(queue.FAILED, "no file gave a prediction")
    go()
    assert capsys.readouterr().err == "listen: study 11111111: no result: no file gave a prediction\n"


def test_what_is_over_is_removed_and_told(studies, spool, clock, go, capsys):
    put(studies)
    clock.now += 10
    go()
    spool.entry(ONE).turn(queue.FAILED, "no slice")
    go(keep_days=0)
    go(keep_days=0)
    assert "1 study removed after 0 days" in capsys.readouterr().out
    assert spool.entries() == []


def test_without_a_model_it_ends(go):
    with pytest.raises(WorkFailed, match="the model is gone: it was killed; what waits is taken up at the next start"):
        go(fault="it was killed")


def test_without_anybody_who_sends_it_ends(go):
    with pytest.raises(WorkFailed, match="sending has come to an end"):
        go(works=False)


def test_a_place_that_is_somebody_elses(tmp_path):
    service.make_place(tmp_path / "new" / "spool")
    service.make_place(tmp_path / "new" / "spool")
    with pytest.raises(WrongUse, match="holds spool, which is none of this command's"):
        service.make_place(tmp_path / "new")
