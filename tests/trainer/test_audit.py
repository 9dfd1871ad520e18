"""`python -m trainer.audit` from end to end: folds asked, suspects ranked, corrections that convert takes, a page."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ich_tfrecords import spec
from ich_tfrecords.labels import fixes
from trainer import audit
from trainer.data.dataset import open_dataset
from trainer.models import model_file
from trainer.results import evaluated, predictions
from trainer.training import assembly, hparams, scoring

pytestmark = pytest.mark.slow
FOLDS = 2


def fold_of(run: Path, place: Path, fold: int, folds: int = FOLDS, **changes: object) -> Path:
    """A copy of a run's model that says it was a fold; nobody trains it anew."""
    shutil.copytree(run / "export", place / "export")
    shutil.copy(run / "config.yaml", place)
    about = model_file.read_about(place / "export")
    settings = {**about.settings, "folds": folds, "fold": fold if folds else 0}
    model_file.write_about(place / "export", dataclasses.replace(about, settings=settings, **changes))
    return place


@pytest.fixture(scope="module")
def folds(blob_run, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("folds")
    return [fold_of(blob_run, folder / f"fold{fold}", fold) for fold in range(FOLDS)]


def run(*words: object) -> int:
    return audit.main([*map(str, words)])


@pytest.fixture(scope="module")
def audited(folds, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("audited")
    assert run(*folds, "--output", output, "--most", 5) == 0
    return output


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def one_line(capsys) -> str:
    text = capsys.readouterr().err
    assert text.startswith("audit: "), text
    assert text.count("\n") == 1, text
    return text[:-1]


@pytest.mark.parametrize("most", [1, 2, 3])
def test_so_many_slices_are_corrected(folds, audited, tmp_path, most):
    """Whatever else is a suspect; those that come first."""
    assert run(*folds, "--output", tmp_path / "out", "--most", most) == 0
    some, more = ([row["sop_uid"] for row in rows_of(place / audit.FIXES)] for place in (tmp_path / "out", audited))
    assert [*dict.fromkeys(some)] == [*dict.fromkeys(more)][:most]
    assert len({*some}) == most


def test_a_fold_that_knows_nothing_of_a_label_has_no_opinion_of_it(folds, blob_run, tmp_path, capsys):
    about = model_file.read_about(folds[0] / "export")
    name = about.spec.labels.any
    at = about.spec.labels.names.index(name)
    slope = np.where(np.arange(len(about.spec.labels.names)) == at, 0.0, about.calibration.slope)
    nothing = dataclasses.replace(about.calibration, slope=slope, refused={name: "no positive slice"})
    blind = fold_of(blob_run, tmp_path / "blind", 0, calibration=nothing, odds=None)
    assert run(blind, *folds[1:], "--output", tmp_path / "out") == 0
    assert f"{blind}: {name} has the same probability in every slice" in capsys.readouterr().out
    for row in rows_of(tmp_path / "out" / audit.SUSPECTS):
        assert row["label"] != name or row["probability"] or "model is sure" not in row["reasons"]


def test_suspects_are_those_of_the_held_out_slices_worst_first(audited, blobs, folds):
    rows = rows_of(audited / audit.SUSPECTS)
    slices = {row["sop_uid"]: row for row in pq.read_table(blobs / "slices.parquet").to_pylist()}
    assert len(rows) > 10
    for row in rows:
        of_slice = slices[row["sop_uid"]]
        assert of_slice["split"] in ("train", "validation")
        assert int(row["given"]) == of_slice[row["label"]] == 1 - int(row["suggested"])
        assert row["reasons"]
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores)
    assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
    about, data = model_file.read_about(folds[1] / "export"), open_dataset(str(blobs))
    held = assembly.split(data, hparams.of_run(about.settings), "validation")
    score = model_file.scorer(model_file.load_model(folds[1] / "export", about))
    found = scoring.predict_split(score, about, held, 64, lambda done, total: None)
    place = {uid: at for at, uid in enumerate(found.ids["sop_uid"].to_pylist())}
    own = [row for row in rows if row["sop_uid"] in place]
    assert own
    for row in own:
        chance = found.probabilities[place[row["sop_uid"]], found.names.index(row["label"])]
        assert float(row["probability"]) == pytest.approx(chance, rel=1e-4)


def test_corrections_are_what_convert_takes(audited, blobs):
    labels = spec.load("rsna_ich").labels
    found = fixes.read_fixes((audited / audit.FIXES).read_bytes(), audit.FIXES, labels)
    table = pq.read_table(blobs / "slices.parquet")
    values = np.stack([table[name].to_numpy() for name in labels.names], axis=1)
    _, note = fixes.corrected(found, table["sop_uid"], np.ones(len(values), bool), values, labels)
    assert note.startswith(f"{audit.FIXES}: corrected {len(found.rows)} label")
    proposed = [row for row in rows_of(audited / audit.SUSPECTS) if row["fix"] == "1"]
    assert 0 < len(proposed) <= 5 * len(labels.names)


def test_the_page_shows_them_among_their_neighbours(audited):
    text = (audited / audit.PAGE).read_text()
    rows = rows_of(audited / audit.SUSPECTS)
    assert text.count("<figure>") == min(100, len(rows))
    assert f"1. {rows[0]['label']}: given {rows[0]['given']}" in text
    assert "A person looks at every row before it is used" in text
    assert "<script" not in text


def test_an_evaluation_of_the_same_weights_is_not_made_again(folds, blobs, audited, tmp_path, capsys):
    """What it left counts; that of other weights does not."""
    about, data = model_file.read_about(folds[0] / "export"), open_dataset(str(blobs))
    held = assembly.split(data, hparams.of_run(about.settings), "validation")
    score = model_file.scorer(model_file.load_model(folds[0] / "export", about))
    found = scoring.predict_split(score, about, held, 64, lambda done, total: None)
    folder = evaluated.folder(folds[0], "validation")
    folder.mkdir(parents=True)
    found.write(folder / evaluated.PREDICTIONS)
    assert predictions.read(folder / evaluated.PREDICTIONS).names == found.names
    for weights, told in ((model_file.digest(folds[0] / "export"), 1), ("0" * 64, 0)):
        (folder / evaluated.METRICS).write_text(json.dumps({"what": {"weights": weights, "flip": False}}))
        capsys.readouterr()
        assert run(*folds, "--output", tmp_path) == 0
        assert capsys.readouterr().out.count("as evaluated") == told
        assert (tmp_path / audit.SUSPECTS).read_text().splitlines()[1] == (
            (audited / audit.SUSPECTS).read_text().splitlines()[1]
        )


def test_too_little_data_is_said(folds, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(audit.suspects, "LEAST", 10**6)
    assert run(*folds, "--output", tmp_path) == 2
    told = capsys.readouterr()
    assert "epidural: not judged, " in told.out
    assert "positive slices, and 1,000,000 are needed\n" in told.out
    assert told.err == "audit: no label has 10 slices of either value, so none can be judged; take more data\n"
    assert list(tmp_path.iterdir()) == []


def test_folds_that_are_missing_twice_or_none_are_one_line(folds, blob_run, tmp_path, capsys):
    assert run(folds[0], "--output", tmp_path) == 2
    assert "fold 1 of 2 missing" in one_line(capsys)
    assert run(folds[0], folds[1], folds[0], "--output", tmp_path) == 2
    assert "fold 0 is given twice" in one_line(capsys)
    assert run(blob_run, "--output", tmp_path) == 2
    assert f"{blob_run} is no fold of a cross-validation" in one_line(capsys)
    other = fold_of(blob_run, tmp_path / "other", 1, fingerprint="0" * 64)
    assert run(folds[0], other, "--output", tmp_path) == 2
    assert "was trained on another data set" in one_line(capsys)
    third = fold_of(blob_run, tmp_path / "third", 2, folds=3)
    assert run(folds[0], third, "--output", tmp_path) == 2
    assert "the folds are not of one cross-validation" in one_line(capsys)
    assert run(tmp_path / "nothing", "--output", tmp_path) == 2
    assert "does not exist" in one_line(capsys)
