"""A share that lacks what a local disk has: all is done all the same, to the same bytes."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest
from faulty_runs import flags, only_line, sha256s

NO_LOCKS = "is on a file system without locks (Function not implemented); two processes that write there are not kept"
NO_SYNC = "is on a file system that cannot bring files to the disk when asked (Invalid argument)"


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ({"sync_folder": errno.EINVAL}, []),
        ({"flock": errno.ENOSYS}, [NO_LOCKS]),
        ({"sync_file": errno.EINVAL, "sync_folder": errno.EINVAL, "flock": errno.ENOSYS}, [NO_LOCKS, NO_SYNC]),
    ],
)
def test_what_a_share_lacks_is_passed_over(lacks, said, finishes, tmp_path, incapable, capsys):
    incapable(**lacks)
    finishes(tmp_path / "out")
    err = capsys.readouterr().err
    assert all(err.count(words) == 1 for words in said), err
    assert err.count("is on a file system") == len(said)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_share_that_fails_stops_the_conversion(number, synthetic_set, tmp_path, convert, incapable, capsys):
    incapable(sync_file=number)
    assert convert(*flags(synthetic_set.output, tmp_path / "out")) == 2
    assert os.strerror(number) in only_line(capsys.readouterr().err)


def open_places() -> list[str]:
    """Where the open files of this process lie, removed ones too."""
    places = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            places.append(str(descriptor.readlink()))
    return places


def test_a_share_that_keeps_the_folder_of_an_open_file(dataset, finishes, tmp_path, monkeypatch):
    """NFS renames an open file that is removed to `.nfs...`, and its folder cannot go before it is closed."""
    real, refused = os.rmdir, []

    def rmdir(path, *more, **named):
        if str(path).endswith(".work") and any("/.work/" in place for place in open_places()):
            refused.append(path)
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        real(path, *more, **named)

    monkeypatch.setattr(os, "rmdir", rmdir)
    finishes(tmp_path / "out")
    assert len(refused) == 1
    assert not (tmp_path / "out" / ".work").exists()
    assert sha256s(tmp_path / "out") == sha256s(dataset)
