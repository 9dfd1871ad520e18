"""Fixtures of the faults.

unfinished           `synthetic_set` converted but for the commit: every shard is there   (session)
unfinished_copy      a copy of it to damage
source_copy          a copy of `synthetic_set` to change
finishes             finishes(output, source): the same command again ends in the bytes of `dataset`
small_disk           small_disk(size) -> a mounted file system of that size, or a skip
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty_runs import flags, sha256s

from ich_tfrecords.dataset import manifest
from ich_tfrecords.storage import atomic
from ich_tfrecords.synthetic.rsna_layout import Summary


@pytest.fixture(scope="session")
def unfinished(synthetic_set: Summary, tmp_path_factory: pytest.TempPathFactory, convert) -> Path:
    output = tmp_path_factory.mktemp("unfinished") / "out"
    real = atomic.write_bytes

    def stopping(path: Path, data: bytes) -> None:
        if path.parent == output:
            raise KeyboardInterrupt
        real(path, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "write_bytes", stopping)
        assert convert(*flags(synthetic_set.output, output)) == 130
    assert not (output / manifest.MANIFEST).exists()
    return output


@pytest.fixture
def unfinished_copy(unfinished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unfinished, tmp_path / "unfinished"))


@pytest.fixture
def source_copy(synthetic_set: Summary, tmp_path: Path) -> Path:
    return Path(shutil.copytree(synthetic_set.output, tmp_path / "source"))


@pytest.fixture
def finishes(dataset: Path, synthetic_set: Summary, convert) -> Callable[..., None]:
    def check(output: Path, source: Path = synthetic_set.output) -> None:
        assert convert(*flags(source, output)) == 0
        assert sha256s(output) == sha256s(dataset)

    return check


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """`remount` changes it afterwards."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size_bytes: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("mounting a tmpfs needs more rights")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)
