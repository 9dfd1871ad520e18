from __future__ import annotations

import errno
import itertools
import os

import pytest

from ich_tfrecords.storage.file_lock import FileLock, Held


def test_a_second_is_refused_and_told_by_whom(tmp_path):
    path = tmp_path / ".work" / "lock"
    first = FileLock(path)
    first.require()
    with pytest.raises(Held, match=rf"process {os.getpid()} on "):
        FileLock(path)
    first.close()
    FileLock(path).close()


def test_a_lock_whose_file_was_removed_holds_nobody_up(tmp_path):
    """The holder removes the folder at its end; who waited at that moment locks a file that nobody sees any more."""
    path = tmp_path / "lock"
    first = FileLock(path)
    path.unlink()
    second = FileLock(path)
    with pytest.raises(Held):
        FileLock(path)
    first.close()
    second.close()


def test_a_file_that_is_exchanged_while_it_is_locked_does_not_count(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    usual = os.open

    def exchanged(*given, **named):
        descriptor = usual(*given, **named)
        path.unlink()
        os.close(usual(path, os.O_CREAT | os.O_WRONLY, 0o600))
        return descriptor

    monkeypatch.setattr(os, "open", exchanged)
    with pytest.raises(Held, match=r"^$"):
        FileLock(path)


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        FileLock(tmp_path / "file" / "lock")


def test_a_full_disk_takes_no_words_and_the_lock_holds(tmp_path, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    lock = FileLock(tmp_path / "lock")
    with pytest.raises(Held, match=r"^$"):
        FileLock(tmp_path / "lock")
    lock.close()


def test_a_share_that_gives_a_file_another_number_each_time(tmp_path, monkeypatch):
    numbers = itertools.count()
    real = os.fstat
    monkeypatch.setattr(os, "fstat", lambda file: os.stat_result((*real(file)[:1], next(numbers), *real(file)[2:])))
    lock = FileLock(tmp_path / "lock")
    with pytest.raises(Held):
        FileLock(tmp_path / "lock")
    lock.close()


def test_an_empty_folder_goes_with_its_lock(tmp_path):
    first = FileLock(tmp_path / ".work" / "lock")
    first.close()
    assert (tmp_path / ".work" / "lock").exists()
    again = FileLock(tmp_path / ".work" / "lock")
    (tmp_path / ".work" / "lock").unlink()
    again.close()
    assert not (tmp_path / ".work").exists()
