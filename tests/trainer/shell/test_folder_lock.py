"""The lock of a folder: one holder, named to the others, gone with its file."""

from __future__ import annotations

import errno
import os

import pytest

from trainer.shell import folder_lock
from trainer.shell.problems import WrongUse


def test_the_second_is_refused_by_name_and_the_lock_goes_with_its_file(tmp_path):
    path = tmp_path / "lock"
    with path.open("a+") as first, path.open("a+") as second:
        folder_lock.take(first, tmp_path, "--output")
        with pytest.raises(
            WrongUse, match=f"is in use by process {os.getpid()} on .*; wait for it, or choose another --"
        ):
            folder_lock.take(second, tmp_path, "--output")
    with path.open("a+") as third:
        folder_lock.take(third, tmp_path, "--output")
    assert path.read_text().startswith(f"process {os.getpid()} on ")


def test_a_file_system_without_locks_keeps_nobody_out_and_says_so(tmp_path, incapable, capsys):
    incapable(flock=errno.EOPNOTSUPP)
    with (tmp_path / "lock").open("a+") as file:
        folder_lock.take(file, tmp_path, "--job_dir")
    assert capsys.readouterr().err.startswith(f"{tmp_path} is on a file system without locks")
    assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")
