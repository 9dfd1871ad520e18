"""What a file system may lack is passed over, and told where a promise gets weaker; what is wrong with it is not."""

from __future__ import annotations

import errno
import fcntl
import os

import psutil
import pytest

from ich_tfrecords.storage import file_system

LACKING = [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK]
WRONG = [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS]


@pytest.fixture
def file(tmp_path):
    with (tmp_path / "file").open("wb") as opened:
        yield opened.fileno()


@pytest.mark.parametrize("number", LACKING)
def test_a_file_that_cannot_be_brought_to_the_disk_is_told_once(number, file, tmp_path, incapable, capsys):
    incapable(sync_file=number)
    for _ in range(2):
        file_system.sync(file, tmp_path)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path} is on a file system that cannot bring files to the disk when asked")
    assert os.strerror(number) in line


@pytest.mark.parametrize("number", [*LACKING, errno.EACCES, errno.EPERM, errno.EBADF])
def test_a_folder_that_cannot_be_brought_to_the_disk_is_passed_over(number, tmp_path, incapable, capsys):
    incapable(sync_folder=number)
    file_system.sync_folder(tmp_path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", [errno.EACCES, errno.EISDIR])
def test_a_folder_that_cannot_be_opened_is_passed_over(number, tmp_path, monkeypatch):
    def refusing(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refusing)
    file_system.sync_folder(tmp_path)


def test_no_descriptor_is_left_open(tmp_path, incapable):
    incapable(sync_folder=errno.EINVAL)
    before = psutil.Process().num_fds()
    for _ in range(3):
        file_system.sync_folder(tmp_path)
    assert psutil.Process().num_fds() == before


@pytest.mark.parametrize("number", WRONG)
def test_a_disk_that_fails_is_not_passed_over(number, file, tmp_path, incapable):
    incapable(sync_file=number, sync_folder=number, flock=number)
    calls = (
        (file_system.sync, (file, tmp_path)),
        (file_system.sync_folder, (tmp_path,)),
        (file_system.lock, (file, tmp_path)),
    )
    for call, given in calls:
        with pytest.raises(OSError, match=os.strerror(number)):
            call(*given)


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        file_system.sync_folder(tmp_path / "none")


@pytest.mark.parametrize("number", LACKING)
def test_without_locks_nobody_is_kept_out_which_is_told_once(number, file, tmp_path, incapable, capsys):
    incapable(flock=number)
    assert file_system.lock(file, tmp_path)
    assert file_system.lock(file, tmp_path)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path} is on a file system without locks ({os.strerror(number)}); two processes")


def test_a_lock_has_one_holder(tmp_path):
    with (tmp_path / "lock").open("w") as one, (tmp_path / "lock").open("w") as other:
        assert file_system.lock(one.fileno(), tmp_path)
        assert not file_system.lock(other.fileno(), tmp_path)
        fcntl.flock(one, fcntl.LOCK_UN)
        assert file_system.lock(other.fileno(), tmp_path)


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_both_answers_of_a_held_lock(number, file, tmp_path, incapable):
    incapable(flock=number)
    assert not file_system.lock(file, tmp_path)
