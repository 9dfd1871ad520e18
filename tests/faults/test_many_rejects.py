"""10,000 slices that cannot be used: all are named, and none costs a good one."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from dicom_files import RLE, dicom_file, encapsulated, head_slice, slice_elements
from faulty_runs import only_line

from ich_tfrecords.dataset import manifest
from ich_tfrecords.dataset.verify import verify

BAD, GOOD = 10_000, 20


def uid(number: int) -> bytes:
    return f"ID_{number:09x}".encode()


@pytest.fixture(scope="module")
def mostly_bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small slices; a third of the bad ones are empty, a third are cut short, a third break when they are decoded."""
    folder = tmp_path_factory.mktemp("bad") / "in"
    folder.mkdir()
    elements = slice_elements(head_slice(side=8), SOPInstanceUID=uid(0))
    good, packed = dicom_file(elements), encapsulated(elements, RLE, bytes(64))
    kinds = [b"", good[:-50], packed]
    for number in range(1, BAD + GOOD + 1):
        data = good if number > BAD else kinds[number % 3]
        (folder / f"{number:05d}.dcm").write_bytes(data.replace(uid(0), uid(number)))
    return folder


def run(convert, source: Path, output: Path, limit: float) -> int:
    """In this process, which saves the start of workers."""
    command = ("--input", source, "--labels", "none", "--output", output, "--runner", "FnApiRunner")
    return convert(*command, "--max_reject_fraction", limit)


def test_ten_thousand_rejects_are_ten_thousand_rows(mostly_bad, tmp_path, convert, capsys):
    output = tmp_path / "out"
    assert run(convert, mostly_bad, output, 0.01) == 1
    line = only_line(capsys.readouterr().err)
    assert "more than --max_reject_fraction 0.01 allows" in line
    assert line.endswith("nothing was committed; mend those files, or raise --max_reject_fraction")
    assert run(convert, mostly_bad, output, 1) == 0
    with (output / manifest.REJECTS).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [f"{number:05d}.dcm" for number in range(1, BAD + 1)]
    counts = Counter(row["reason"] for row in rows)
    assert counts["empty_file"] == BAD // 3
    assert len(counts) == 3
    done = manifest.read(output)
    assert (done.slices, done.rejects) == (GOOD, dict(counts))
    assert verify(output).problems == []
