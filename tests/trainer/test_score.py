"""The command that scores a submission: its lines, and one line with exit code 2 for what cannot be scored."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ich_tfrecords.synthetic.rsna_layout import RSNA_LABELS
from trainer import score
from trainer.results import competition

ROOT = Path(__file__).parents[2]
LABELS = competition.label_spec()
IDS = ["ID_b", "ID_a", "ID_c", "ID_d"]
TRUTH = np.array([[0] * 6, [1, 1, 0, 0, 0, 0], [1, 0, 0, 1, 0, 1], [0] * 6])
PROBABILITIES = np.random.default_rng(0).random((4, 6))
USAGES = {"ID_a": "Public", "ID_b": "Private", "ID_c": "Public", "ID_d": "Ignored"}

NOTHING = "competition loss of the prevalence alone"


def truth_lines(ids=IDS) -> list[str]:
    """Rows of the labels CSV, in the competition's order."""
    rows = [(image, TRUTH[IDS.index(image), LABELS.names.index(name)], name) for image in ids for name in RSNA_LABELS]
    return [f"{image}_{name},{value}" for image, value, name in rows]


@pytest.fixture
def files(tmp_path):
    """Writes both files and gives the flags; `labels` lines, `rows` lines of the submission."""

    def write(labels: list[str] | None = None, rows: list[str] | None = None, head: str = "ID,Label") -> list[str]:
        text = competition.submission_text(IDS, LABELS.names, LABELS.any, PROBABILITIES).splitlines()
        for name, lines in (
            ("labels.csv", [head, *(truth_lines() if labels is None else labels)]),
            ("submission.csv", text if rows is None else ["ID,Label", *rows]),
        ):
            (tmp_path / name).write_text("\n".join(lines) + "\n")
        return ["--submission", str(tmp_path / "submission.csv"), "--labels", str(tmp_path / "labels.csv")]

    return write


def numbers(capsys) -> dict[str, float]:
    lines = capsys.readouterr().out.splitlines()
    return {name.strip(): float(value) for name, value in (line.rsplit(None, 1) for line in lines)}


def one_line(capsys) -> str:
    said = capsys.readouterr()
    assert said.out == ""
    [line] = said.err.splitlines()
    assert line.startswith("score: ")
    return line


@pytest.mark.slow
def test_every_number_in_full(files, capsys):
    assert score.main(files()) == 0
    found = numbers(capsys)
    assert list(found) == ["competition loss", *(f"log loss, {name}" for name in RSNA_LABELS), NOTHING]
    shares = (np.asarray(TRUTH).sum(axis=0) + 0.5) / (len(TRUTH) + 1)
    every = np.broadcast_to(shares, np.shape(TRUTH))
    assert found[NOTHING] == competition.loss(TRUTH, every, LABELS.names, LABELS.any)
    assert found["competition loss"] == competition.loss(TRUTH, PROBABILITIES, LABELS.names, LABELS.any)
    by_hand = [-math.log(p if y else 1 - p) for y, p in zip(TRUTH[:, 0], PROBABILITIES[:, 0])]
    assert found["log loss, any"] == pytest.approx(math.fsum(by_hand) / 4, rel=1e-14)
    parts = np.array([found[f"log loss, {name}"] for name in RSNA_LABELS])
    assert found["competition loss"] == pytest.approx(np.average(parts, weights=[1, 1, 1, 1, 1, 2]), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("value", "expected"), [(0.5, math.log(2)), (None, 1e-15)])
def test_a_constant_and_a_perfect_submission(value, expected, files, capsys):
    rows = [f"{key},{value or label}" for key, label in (line.split(",") for line in truth_lines())]
    assert score.main(files(rows=rows)) == 0
    assert numbers(capsys)["competition loss"] == pytest.approx(expected, rel=1e-3 if value is None else 1e-15)


@pytest.mark.slow
def test_the_order_of_the_rows_does_not_matter(files, capsys):
    assert score.main(files()) == 0
    first = capsys.readouterr().out
    flags = files(labels=truth_lines()[::-1])
    path = Path(flags[1])
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([head, *sorted(rows)]))
    assert score.main(flags) == 0
    assert capsys.readouterr().out == first


@pytest.mark.slow
def test_usage_gives_a_line_each_and_ignored_images_do_not_count(files, capsys):
    lines = [f"{line},{USAGES[line[:4]]}" for line in truth_lines()]
    assert score.main(files(labels=lines, head="ID,Label,Usage")) == 0
    found = numbers(capsys)
    loss = {name: competition.loss(TRUTH[rows], PROBABILITIES[rows], LABELS.names, LABELS.any) for name, rows in (
        ("competition loss", [0, 1, 2]), ("competition loss, Private", [0]), ("competition loss, Public", [1, 2]),
    )}  # fmt: skip
    assert {name: found[name] for name in loss} == pytest.approx(loss, rel=1e-14)
    assert {name for name in found if name.startswith("competition loss")} == {*loss, NOTHING}


def test_an_image_of_two_usages(files, capsys):
    lines = [f"{line},Public" for line in truth_lines()]
    lines[7] = lines[7].replace("Public", "Private")
    assert score.main(files(labels=lines, head="ID,Label,Usage")) == 2
    assert "image ID_a has Usage Private and Public; give it one" in one_line(capsys)


def test_a_usage_that_is_no_text(files, capsys):
    flags = files(labels=[f"{line},Public" for line in truth_lines()], head="ID,Label,Usage")
    path = Path(flags[-1])
    path.write_bytes(path.read_bytes().replace(b"Public", b"Publi\xe7", 1))
    assert score.main(flags) == 2
    assert "labels.csv: cannot read its Usage: " in one_line(capsys)


@pytest.mark.slow
def test_labels_of_one_row_an_image_are_read_too(files, capsys):
    lines = [f"{image},{','.join(map(str, row))}" for image, row in zip(IDS, TRUTH)]
    assert score.main(files()) == 0
    expected = capsys.readouterr().out
    assert score.main(files(labels=lines, head=",".join(["sop_uid", *LABELS.names]))) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.slow
def test_agreeing_repeats_of_the_labels_are_told_and_merged(files, capsys):
    assert score.main(files()) == 0
    once = capsys.readouterr().out
    assert score.main(files(labels=[*truth_lines(), *truth_lines(["ID_c"])])) == 0
    said = capsys.readouterr()
    assert said.out == once
    assert "merged 6 duplicate rows of 1 image (they agree)" in said.err


def test_missing_rows_are_counted_and_the_first_named(files, capsys):
    rows = [f"ID_a_{name},0.5" for name in RSNA_LABELS[1:]]
    assert score.main(files(rows=rows)) == 2
    line = one_line(capsys)
    assert "lacks 19 of the 24 rows" in line
    assert "first ID_a_epidural, ID_b_any, ID_b_epidural; predict every image" in line


@pytest.mark.slow
def test_rows_too_many_need_leave(files, capsys):
    flags = files(labels=truth_lines(["ID_a", "ID_b"]))
    assert score.main(flags) == 2
    line = one_line(capsys)
    assert "holds 12 rows that" in line
    assert "first ID_c_epidural, ID_c_intraparenchymal, ID_c_intraventricular; --subset leaves them out" in line
    assert score.main([*flags, "--subset"]) == 0
    said = capsys.readouterr()
    assert "holds 12 rows that" in said.err
    expected = competition.loss(TRUTH[[1, 0]], PROBABILITIES[[1, 0]], LABELS.names, LABELS.any)
    assert float(said.out.splitlines()[0].split()[-1]) == expected


@pytest.mark.parametrize(
    ("labels", "rows", "words"),
    [
        (["ID_a_any,2"], None, "labels.csv, line 2: Label is '2'; it must be 0 or 1"),
        ([], None, "labels.csv: has a header and no rows"),
        (truth_lines()[1:], None, "left out 1 image, first ID_b: not every label has a row"),
        ([*truth_lines(), "ID_a_any,0"], None, "first ID_a: their rows contradict each other"),
        (None, ["ID_a_any,1.5"], "submission.csv, line 2: 'ID_a_any' has probability 1.5"),
        (None, ["ID_a_any,nan"], "submission.csv, line 2: 'ID_a_any' has probability nan"),
        (None, ["ID_a_any,0", "ID_a_any,0"], "submission.csv, line 3: 'ID_a_any' comes a second time"),
    ],
)
def test_what_cannot_be_scored_is_one_line(labels, rows, words, files, capsys):
    assert score.main(files(labels=labels, rows=rows)) == 2
    assert words in one_line(capsys)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", "the following arguments are required: --submission, --labels"),
        ("--submission a.csv --label b.csv", "the following arguments are required: --labels"),
        ("--submission a.csv --labels b.csv --subsets", "unknown flag --subsets; did you mean '--subset'?"),
        ("--submission a.csv --labels b.csv", "b.csv: no such file"),
    ],
)
def test_wrong_words_are_one_line(flags, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert score.main(flags.split()) == 2
    assert words in one_line(capsys)


@pytest.mark.slow
def test_without_tensorflow(files):
    code = "import sys; sys.modules['tensorflow'] = sys.modules['keras'] = None; from trainer import score; "
    command = [sys.executable, "-c", f"{code} sys.exit(score.main())", *files()]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert done.stdout.startswith("competition loss ")


def test_labels_of_studies_are_no_truth(files, capsys):
    names = ",".join(LABELS.names)
    assert score.main(files(labels=["1.2,0,0,0,0,0,0"], head=f"study_uid,{names}")) == 2
    assert "header is 'study_uid,any,epidural," in one_line(capsys)
