"""A source that changes between two runs, or while a run reads it. Nothing is mixed; put back, it goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_runs import flags, only_line, sha256s

from ich_tfrecords.conversion import job, plan
from ich_tfrecords.dataset import manifest


def first(source: Path) -> Path:
    return min((source / "stage_2_train").iterdir())


def rewrite(source: Path) -> None:
    path = first(source)
    path.write_bytes(path.read_bytes()[::-1])


def touch(source: Path) -> None:
    os.utime(first(source), ns=(10**18, 10**18))


def add(source: Path) -> None:
    shutil.copy2(first(source), first(source).with_name("ID_fffffffff.dcm"))


def remove(source: Path) -> None:
    first(source).unlink()


def rename(source: Path) -> None:
    first(source).rename(first(source).with_name("ID_fffffffff.dcm"))


def restore(source: Path, good: Path) -> None:
    shutil.rmtree(source)
    shutil.copytree(good, source)


@pytest.mark.parametrize("change", [rewrite, touch, add, remove, rename])
def test_a_source_changed_between_two_runs_refuses_to_mix(
    unfinished_copy, source_copy, synthetic_set, finishes, convert, capsys, change
):
    before = sha256s(unfinished_copy)
    change(source_copy)
    # one file without a label is another matter
    assert convert(*flags(source_copy, unfinished_copy, "--max_reject_fraction", 0.5)) == 2
    assert "was made from something else; input: files 60" in only_line(capsys.readouterr().err)
    assert sha256s(unfinished_copy) == before
    restore(source_copy, synthetic_set.output)
    finishes(unfinished_copy, source_copy)


def between(monkeypatch, module, name: str, act: Callable[[], None]) -> None:
    """Do `act` when the launcher comes to the function `name` of `module`."""
    real = getattr(module, name)

    def acting(*args: object) -> object:
        act()
        return real(*args)

    monkeypatch.setattr(module, name, acting)


STEPS = {"before the index": (job, "forget_transient"), "before the shards": (plan, "build_plan")}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("change", "reason"), [(remove, "unreadable_file"), (rewrite, "changed"), (touch, "changed")])
def test_a_file_that_goes_or_changes_after_the_listing(
    source_copy, synthetic_set, tmp_path, finishes, convert, monkeypatch, capsys, step, change, reason
):
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        between(patch, *STEPS[step], lambda: change(source_copy))
        assert convert(*flags(source_copy, output)) == 1
    line = only_line(capsys.readouterr().err)
    assert f"1 of 60 slices (1.7%) give no record, more than --max_reject_fraction 0.01 allows: 1 {reason}" in line
    assert not (output / manifest.MANIFEST).exists()
    restore(source_copy, synthetic_set.output)
    finishes(output, source_copy)


@pytest.mark.parametrize("step", STEPS)
def test_a_share_that_goes_away_and_comes_back(source_copy, tmp_path, finishes, convert, monkeypatch, capsys, step):
    output, away = tmp_path / "out", tmp_path / "away"
    with monkeypatch.context() as patch:
        between(patch, *STEPS[step], lambda: source_copy.rename(away))
        assert convert(*flags(source_copy, output)) in (1, 2)
    assert "60 unreadable_file" in only_line(capsys.readouterr().err)
    away.rename(source_copy)
    finishes(output, source_copy)
