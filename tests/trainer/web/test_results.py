"""What was written by prediction, read back under the names that files came with."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.web import results
from trainer.worklist.spool import Entry


def inputs(folder: Path, *names: str) -> list[str]:
    """Of an upload with these files."""
    entry = Entry(folder / ("0" * 32))
    entry.begin()
    for name in names:
        (entry.files / name).touch()
    return entry.inputs()


@pytest.mark.parametrize(
    ("there", "number", "stored", "called"),
    [
        (("000000.dcm", "000001.dcm"), 1, "000001.dcm", "b"),
        (("000000.dcm", "000001.nii.gz"), 1, "000001.nii.gz#17", "b#17"),
        (("000000.zip",), 1, "deep/1.dcm", "deep/1.dcm"),
        (("000000.zip",), 1, "000000.dcm", "000000.dcm"),  # a member that is called so
        (("000000.dcm", "000001.zip"), 2, "deep/1.dcm", "b/deep/1.dcm"),
        (("000000.zip", "000001.zip"), 1, "000001.dcm", "a/000001.dcm"),
        (("000000.dcm",), 1, "odd", "odd"),
    ],
)
def test_what_a_file_was_called(tmp_path, there, number, stored, called):
    assert results.called(inputs(tmp_path, *there), ["a", "b"], number, stored) == called


@pytest.fixture
def result(tmp_path) -> Path:
    folder = tmp_path / "result"
    folder.mkdir()
    (folder / "run.json").write_text('{"command": "predict"}')
    (folder / "predictions.csv").write_text(
        "input,file,sop_uid,study_uid,series_uid,position_mm,any,epidural\n"
        '1,"a,""b"".dcm",1,2,3,-2.5,0.9,0.1\n1,c,1.1,2,3,nan,0.2,0.1\n1,d,1.2,2,3,,1,0\n'
    )
    (folder / "triage.csv").write_text(
        "rank,study_uid,slices,rejected,partial,any,epidural,driven_by,input,file,position_mm\n"
        "1,2,3,1,3 of 4 slices (missing: 1 x),1,0.1,1.2,1,d,0\n2,7,1,0,,0.5,0.5,1.3,1,e,0\n,9,0,1,,,,,,,\n"
    )
    (folder / "rejects.csv").write_text("input,file,study_uid,reason,detail\n1,x,2,truncated,cut\n")
    return folder


def test_rows(result):
    assert results.labels(result) == ["any", "epidural"]
    assert results.slices(result) == [
        (1, 'a,"b".dcm', "1", "2", "3", -2.5, [0.9, 0.1]),
        (1, "c", "1.1", "2", "3", None, [0.2, 0.1]),
        (1, "d", "1.2", "2", "3", None, [1.0, 0.0]),
    ]
    # a study without a rank has no probability
    assert results.studies(result) == [
        ("2", 1, [1.0, 0.1], True, 3, "unknown", ""),
        ("7", 2, [0.5, 0.5], False, 1, "unknown", ""),
    ]
    assert results.rejects(result) == [(1, "x", "truncated")]


def test_a_table_that_is_cut_is_an_error_and_no_other_table(result):
    path = result / "predictions.csv"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ValueError, match="zip"):
        results.slices(result)
