"""The folder that is the queue: states that last, order, what a kill leaves, names from outside."""

from __future__ import annotations

import pytest

from trainer.shell.problems import WrongUse
from trainer.worklist import spool
from trainer.worklist.spool import Progress, Spool

ONE, TWO, THREE = ("1" * 32, "2" * 32, "3" * 32)


@pytest.fixture
def opened(tmp_path):
    """opened() -> the spool of one folder; the one before is let go, as a kill lets it go."""
    held: list[Spool] = []

    def open_again() -> Spool:
        while held:
            held.pop().close()
        held.append(Spool(tmp_path / "spool", "--data"))
        return held[-1]

    yield open_again
    held[-1].close()


def begun(where: Spool, name: str, *states: str) -> spool.Entry:
    entry = where.entry(name)
    entry.begin(name="head")
    for state in states:
        entry.turn(state)
    return entry


def test_states_and_facts_last(opened):
    entry = begun(opened(), ONE)
    entry.turn(spool.FAILED, "no slice", files=3)
    found = opened().entry(ONE).state()
    assert (found.state, found.error, dict(found.facts)) == (spool.FAILED, "no slice", {"name": "head", "files": 3})
    entry.turn(spool.WAITING)
    assert entry.state().error == ""


def test_the_oldest_that_waits_comes_first(opened):
    where = opened()
    for name in (THREE, ONE, TWO):
        begun(where, name, spool.WAITING)
    begun(where, "4" * 32)
    assert [entry.id for entry in where.waiting()] == [THREE, ONE, TWO]
    where.entry(THREE).turn(spool.WAITING)  # once more, so it goes to the end
    assert [entry.id for entry in where.waiting()] == [ONE, TWO, THREE]


def test_what_a_kill_interrupted_waits_again_but_not_for_ever(opened):
    entry = begun(opened(), ONE, spool.WAITING)
    for tries in range(1, spool.MOST_TRIES + 1):
        assert opened().entry(ONE).state().state == spool.WAITING
        entry.turn(spool.WORKING, tries=tries)
    found = opened().entry(ONE).state()
    assert found.state == spool.FAILED
    assert found.error.startswith("begun 3 times and never ended")


def test_what_came_and_what_is_done_outlive_a_kill(opened):
    where = opened()
    for name, state in ((ONE, spool.DONE), (TWO, spool.RECEIVING)):
        entry = begun(where, name, state)
        (entry.files / "0.dcm").write_bytes(b"slice")
    (where.root / THREE / "files").mkdir(parents=True)  # killed before its first state, or half removed
    again = opened()
    assert {entry.id: entry.state().state for entry in again.entries()} == {ONE: spool.DONE, TWO: spool.RECEIVING}
    assert all((entry.files / "0.dcm").read_bytes() == b"slice" for entry in again.entries())
    assert not (again.root / THREE).exists()


def test_a_removed_entry_is_none(opened):
    where = opened()
    entry = begun(where, ONE, spool.DONE)
    entry.remove()
    assert where.entries() == []
    assert not entry.path.exists()
    entry.remove()
    with pytest.raises(FileNotFoundError):
        entry.turn(spool.WAITING)
    assert not entry.path.exists()


@pytest.mark.parametrize(
    "name", ["", "..", "../" + ONE, ONE.upper().replace("1", "A"), ONE + "\n", f"{ONE}/x", "1" * 31]
)
def test_a_name_from_outside_is_no_id(opened, name):
    with pytest.raises(ValueError, match="32 hexadecimal"):
        opened().entry(name)


def test_one_process_and_only_its_own_folder(opened, tmp_path):
    where = opened()
    with pytest.raises(WrongUse, match=r"--data$|choose another --data"):
        Spool(where.root, "--data")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(WrongUse, match=r"thesis\.tex, which is none of this command's"):
        Spool(tmp_path / "other", "--data")


def test_inputs_are_the_folder_and_each_archive(opened):
    entry = begun(opened(), ONE)
    assert entry.inputs() == [str(entry.files)]
    (entry.files / "1.zip").touch()
    assert entry.inputs() == [str(entry.files / "1.zip")]
    (entry.files / "0.dcm").touch()
    assert entry.inputs() == [str(entry.files), str(entry.files / "1.zip")]


def test_progress_is_told_and_taken_away(opened):
    entry = begun(opened(), ONE)
    assert entry.progress() is None
    entry.tell(Progress("predict", 3, 40))
    assert entry.progress() == Progress("predict", 3, 40)
    entry.tell(None)
    entry.tell(None)
    assert entry.progress() is None


def test_results_are_cleared_with_what_a_kill_left_of_them(opened):
    entry = begun(opened(), ONE)
    for path in (entry.result, entry.dicom, entry.path / "dicom.0123.tmp"):
        path.mkdir()
        (path / "x").touch()
    entry.clear_results()
    entry.clear_results()
    assert sorted(path.name for path in entry.path.iterdir()) == ["files", spool.STATE]
