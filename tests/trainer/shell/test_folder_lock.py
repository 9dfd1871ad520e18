"""The lock of a folder: one holder, named to the others, gone with its file."""

from __future__ import annotations

import errno
import os

import pytest

from trainer.shell import folder_lock
from trainer.shell.problems import WrongUse


def test_the_second_is_refused_by_name_and_the_lock_goes_with_its_file(tmp_path):
    lock = folder_lock.take(tmp_path, "--output")
    refusal = f"is in use by process {os.getpid()} on .*; wait for it, or choose another --output"
    with pytest.raises(WrongUse, match=refusal):
        folder_lock.take(tmp_path, "--output")
    lock.close()
    folder_lock.take(tmp_path, "--output").close()
    assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_holder_that_has_not_told_its_name(tmp_path):
    lock = folder_lock.take(tmp_path, "--output")
    (tmp_path / "lock").write_text("")
    with pytest.raises(WrongUse, match="is in use by another process; wait"):
        folder_lock.take(tmp_path, "--output")
    lock.close()


def test_a_file_system_without_locks_keeps_nobody_out_and_says_so(tmp_path, incapable, capsys):
    incapable(flock=errno.EOPNOTSUPP)
    folder_lock.take(tmp_path, "--job_dir").close()
    assert capsys.readouterr().err.startswith(f"{tmp_path} is on a file system without locks")
    assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")
