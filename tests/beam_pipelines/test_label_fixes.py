"""`convert --label_fixes`: a corrected set says that it is one, and is no resumed original."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from ich_tfrecords.dataset import manifest
from ich_tfrecords.dataset.verify import verify


@pytest.fixture
def given(synthetic_set) -> tuple:
    folder = synthetic_set.output
    return ("--input", folder / "stage_2_train", "--labels", folder / "stage_2_train.csv")


def test_a_corrected_set_is_another_one_and_says_so(given, dataset, tmp_path, convert, capfd):
    table = pq.read_table(dataset / "slices.parquet")
    negative = next(row for row in table.to_pylist() if not row["any"])["sop_uid"]
    fixes, output = tmp_path / "fixes.csv", tmp_path / "after"
    fixes.write_text(f"sop_uid,label,value\n{negative},subdural,1\n")
    capfd.readouterr()
    assert convert(*given, "--label_fixes", fixes, "--output", output) == 0
    told = capfd.readouterr()
    assert f"{fixes}: corrected 1 label, 1 more follow, of 1 slice\n" in told.err
    assert "labels corrected by a file of 1 row" in told.out
    [row] = [one for one in pq.read_table(output / "slices.parquet").to_pylist() if one["sop_uid"] == negative]
    assert (row["any"], row["subdural"], row["epidural"], row["stratum"]) == (1, 1, 0, "subdural")
    before, after = manifest.read(dataset), manifest.read(output)
    assert after.made_from["label_fixes"]["rows"] == 1
    assert "label_fixes" not in before.made_from
    assert after.fingerprint != before.fingerprint
    assert "Not the original labels" in (output / "README.md").read_text()
    assert list(verify(output).problems) == []

    fixes.write_text(f"sop_uid,label,value\n{negative},epidural,1\n")
    for flags in (("--label_fixes", fixes), ()):
        assert convert(*given, *flags, "--output", output) == 2
        line = capfd.readouterr().err.splitlines()[-1]
        assert "was made from something else; label_fixes: rows 1 sha256" in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file or directory; check the path"),
        ("sop_uid,label,value\nID_x,any,yes\n", "line 2: value is 'yes'; it must be 0 or 1"),
        ("sop_uid,label,value\nID_x,any,1\n", "line 2: no slice of the input has the sop_uid 'ID_x'"),
    ],
)
def test_what_cannot_be_corrected_is_one_line(given, text, words, tmp_path, convert, capfd):
    fixes = tmp_path / "fixes.csv"
    if text:
        fixes.write_text(text)
    assert convert(*given, "--label_fixes", fixes, "--output", tmp_path / "out") == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("convert: ")
    assert words in line


def test_without_labels_there_is_nothing_to_correct(given, tmp_path, convert, capfd):
    flags = [*given[:2], "--labels", "none"]
    assert convert(*flags, "--label_fixes", tmp_path / "f.csv", "--output", tmp_path / "out") == 2
    assert "--labels none gives none" in capfd.readouterr().err
