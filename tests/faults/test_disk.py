"""A disk that is full or read-only, on a real small file system; with room again the same bytes come out."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from faulty_runs import flags, only_line, sha256s

from ich_tfrecords.dataset import manifest
from ich_tfrecords.dataset.verify import verify

PAGE_BYTES = 4096
ROOMY_BYTES = 64 << 20


def remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def pages_bytes(folder: Path) -> int:
    """What the files of a folder take up on a tmpfs."""
    return sum(-(-path.stat().st_size // PAGE_BYTES) * PAGE_BYTES for path in folder.rglob("*") if path.is_file())


def room_for(stage: str, unfinished: Path) -> int:
    """A size that the work files fill before, while, or just after the shards are written."""
    work, shards = pages_bytes(unfinished / ".work"), pages_bytes(unfinished)
    return {"index": 4 * PAGE_BYTES, "convert": (work + shards) // 2, "commit": shards + 2 * PAGE_BYTES}[stage]


@pytest.mark.parametrize("stage", ["index", "convert", "commit"])
def test_a_full_disk_and_then_room(unfinished, synthetic_set, small_disk, finishes, convert, capsys, stage):
    disk = small_disk(room_for(stage, unfinished))
    output = disk / "out"
    assert convert(*flags(synthetic_set.output, output)) == 2
    assert "No space left on device" in only_line(capsys.readouterr().err)
    assert any((output / ".work" / "sidecars").iterdir()) == (stage != "index")
    assert not (output / manifest.MANIFEST).exists()
    remount(disk, f"size={ROOMY_BYTES}")
    finishes(output)


@pytest.mark.parametrize("begun", [False, True])
def test_a_read_only_output(unfinished, synthetic_set, small_disk, finishes, convert, capsys, begun):
    disk = small_disk(ROOMY_BYTES)
    output = disk / "out"
    if begun:
        shutil.copytree(unfinished, output)
    before = sha256s(disk)
    remount(disk, "ro")
    assert convert(*flags(synthetic_set.output, output)) == 2
    assert f"cannot write to --output {output}: Read-only file system" in only_line(capsys.readouterr().err)
    assert sha256s(disk) == before
    remount(disk, "rw")
    finishes(output)


def test_a_finished_set_on_a_read_only_disk_is_complete(dataset, small_disk, finishes):
    disk = small_disk(ROOMY_BYTES)
    output = Path(shutil.copytree(dataset, disk / "out"))
    remount(disk, "ro")
    finishes(output)
    assert verify(output).problems == []
