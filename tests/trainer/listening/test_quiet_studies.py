"""When a study counts as whole, what makes it be judged again, what is to be sent, and what a restart knows of it."""

from __future__ import annotations

import os
import shutil

import pytest

from trainer.listening import studies as rooms
from trainer.listening.studies import Parcel, Studies
from trainer.worklist import spool as queue

ONE, TWO = "1" * 32, "2" * 32
IDLE_S = 10


def put(studies: Studies, study: str, name: str, data: bytes = b"a slice") -> None:
    """An object arrives as the inbox brings it."""
    (studies.place(study) / f"{name}.dcm").write_bytes(data)
    studies.arrived(study)


def judge(spool, study: str, state: str = queue.DONE) -> None:
    """What the worker does, without a model."""
    entry = spool.entry(study)
    entry.turn(queue.WORKING)
    (entry.dicom / "1.2").mkdir(parents=True, exist_ok=True)
    (entry.dicom / "1.2" / "report.dcm").write_bytes(b"report")
    entry.turn(state, "" if state == queue.DONE else "no slice")


def state(spool, study: str) -> str:
    return spool.entry(study).state().state


def handed(studies: Studies) -> list[str]:
    return [entry.id for entry in studies.hand_over()]


@pytest.fixture
def again(spool, clock):
    """again() -> what another process makes of the same spool."""
    return lambda sends=True: Studies(spool, IDLE_S, sends=sends, now=clock)


def test_a_study_that_is_quiet_waits_for_the_model(studies, spool, clock):
    put(studies, ONE, "a")
    clock.now += 6
    put(studies, ONE, "b")
    put(studies, TWO, "a")
    clock.now += 9.9
    assert handed(studies) == []
    put(studies, TWO, "b")
    clock.now += 0.2
    assert handed(studies) == [ONE]
    assert (state(spool, ONE), state(spool, TWO)) == (queue.WAITING, queue.RECEIVING)
    assert handed(studies) == []
    clock.now += 10
    assert handed(studies) == [TWO]


def test_what_broke_off_waits_longer_for_its_rest(studies, clock):
    """One that began earlier and ends whole has not brought the rest; one that began later has."""
    other, broken = studies.begin(), studies.begin()
    for brought in (other, broken):
        brought.ids.add(ONE)
    put(studies, ONE, "a")
    clock.now += 1
    studies.ended(broken, whole=False)
    studies.ended(other, whole=True)
    clock.now += rooms.PATIENCE * IDLE_S - 1
    assert handed(studies) == []
    clock.now += 1
    later = studies.begin()
    put(studies, ONE, "b")
    later.ids.add(ONE)
    clock.now += 1
    studies.ended(later, whole=True)
    clock.now += IDLE_S
    assert handed(studies) == [ONE]


def test_a_rest_that_never_comes_is_not_waited_for_for_ever(studies, clock):
    brought = studies.begin()
    put(studies, ONE, "a")
    brought.ids.add(ONE)
    studies.ended(brought, whole=False)
    clock.now += rooms.PATIENCE * IDLE_S
    assert handed(studies) == [ONE]


@pytest.mark.parametrize("ended", [queue.DONE, queue.FAILED])
def test_late_objects_make_a_study_be_judged_again(studies, spool, clock, ended):
    put(studies, ONE, "a")
    clock.now += IDLE_S
    studies.hand_over()
    judge(spool, ONE, ended)
    assert [entry.id for entry in studies.judged()] == [ONE]
    assert studies.judged() == []
    put(studies, ONE, "b")
    assert state(spool, ONE) == queue.RECEIVING
    assert studies.parcel(ONE) is None  # no half result on its way meanwhile
    clock.now += IDLE_S
    assert handed(studies) == [ONE]


def test_what_is_sent_once_more_changes_nothing(studies, spool, clock):
    put(studies, ONE, "a")
    clock.now += IDLE_S
    studies.hand_over()
    judge(spool, ONE)
    studies.judged()
    studies.arrived(ONE)  # the inbox left the same object as it was
    assert state(spool, ONE) == queue.DONE


@pytest.mark.parametrize("before", [queue.WAITING, queue.WORKING])
def test_what_comes_while_the_model_is_asked_is_not_forgotten(studies, spool, clock, before):
    put(studies, ONE, "a")
    clock.now += IDLE_S
    studies.hand_over()
    spool.entry(ONE).turn(before)
    put(studies, ONE, "b")
    assert state(spool, ONE) == before  # the worker has it
    judge(spool, ONE)
    assert studies.judged() == []
    assert state(spool, ONE) == queue.RECEIVING
    clock.now += IDLE_S
    assert handed(studies) == [ONE]
    judge(spool, ONE)
    assert [entry.id for entry in studies.judged()] == [ONE]


def test_what_was_read_counts_even_if_it_came_after_the_question(studies, spool, clock):
    """The model lists the files when it begins; what it read is not read again."""
    put(studies, ONE, "a")
    clock.now += IDLE_S
    studies.hand_over()
    put(studies, ONE, "b")
    entry = spool.entry(ONE)
    entry.result.mkdir()
    digest = rooms._content(entry)
    (entry.result / "run.json").write_text(f'{{"command": "predict", "input": {{"sha256": "{digest}"}}}}')
    judge(spool, ONE)
    assert [found.id for found in studies.judged()] == [ONE]


def test_a_restart_goes_on(studies, spool, clock, again):
    put(studies, ONE, "a")
    put(studies, TWO, "a")
    clock.now += IDLE_S
    assert len(studies.hand_over()) == 2
    judge(spool, ONE)
    put(studies, "3" * 32, "a")
    later = again()
    assert later.unsent() == [ONE]
    assert handed(later) == []
    judge(spool, TWO)
    assert [entry.id for entry in later.judged()] == [TWO]
    clock.now += IDLE_S
    assert handed(later) == ["3" * 32]  # its rest was waited for once more


def test_a_restart_sees_what_came_in_front_of_the_kill(studies, spool, clock, again):
    """An object stood in its place, and the process was killed before it noted that."""
    put(studies, ONE, "a")
    clock.now += IDLE_S
    studies.hand_over()
    judge(spool, ONE)
    studies.judged()
    (studies.place(ONE) / "b.dcm").write_bytes(b"late")
    later = again()
    assert state(spool, ONE) == queue.RECEIVING
    clock.now += IDLE_S
    assert handed(later) == [ONE]


def test_a_folder_that_somebody_took_away_ends_nothing(studies, spool, clock):
    for study in (ONE, TWO):
        put(studies, study, "a")
    shutil.rmtree(spool.entry(ONE).path)
    clock.now += IDLE_S
    assert handed(studies) == [TWO]
    shutil.rmtree(spool.entry(TWO).path)
    assert studies.judged() == []
    assert studies.parcel(TWO) is None


def test_a_study_without_any_object_is_none(studies, spool, again):
    studies.place(ONE)
    again()
    assert spool.entries() == []


def test_a_study_that_failed_is_not_tried_at_each_start(studies, spool, clock, again):
    put(studies, ONE, "a")
    clock.now += IDLE_S
    studies.hand_over()
    judge(spool, ONE, queue.FAILED)
    later = again()
    clock.now += IDLE_S
    assert handed(later) == []
    assert later.unsent() == []


def test_what_was_sent_is_noted_for_what_was_sent_alone(studies, spool, clock):
    put(studies, ONE, "a")
    clock.now += IDLE_S
    studies.hand_over()
    judge(spool, ONE)
    studies.judged()
    parcel = studies.parcel(ONE)
    assert parcel is not None
    assert [path.name for path in parcel.files] == ["report.dcm"]
    studies.sent(Parcel(ONE, parcel.since - 1, parcel.files))  # of an earlier judgement
    assert studies.unsent() == [ONE]
    studies.sent(parcel)
    assert studies.unsent() == []
    assert studies.parcel(ONE) is None
    assert studies.parcel("7" * 32) is None


def test_what_is_done_with_goes_after_a_while_but_nothing_unsent(studies, spool, clock, monkeypatch, again):
    for study in (ONE, TWO):
        put(studies, study, "a")
    clock.now += IDLE_S
    studies.hand_over()
    for study in (ONE, TWO):
        judge(spool, study)
    studies.judged()
    parcel = studies.parcel(ONE)
    assert parcel is not None
    studies.sent(parcel)
    put(studies, "3" * 32, "a")
    assert studies.forget(3600) == 0
    monkeypatch.setattr(rooms.time, "time", lambda: os.times().elapsed + 1e10)
    assert studies.forget(3600) == 1
    assert {entry.id for entry in spool.entries()} == {TWO, "3" * 32}
    assert again(sends=False).forget(3600) == 1  # nobody sends it any more


def test_without_a_destination_nothing_is_unsent(again, spool, clock):
    studies = again(sends=False)
    put(studies, ONE, "a")
    clock.now += IDLE_S
    studies.hand_over()
    judge(spool, ONE)
    assert again(sends=True).unsent() == []
