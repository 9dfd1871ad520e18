"""What predict says of slices that are like those of training, and of others; and of a model that does not know."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import blob_dataset
import numpy as np
import pyarrow.parquet as pq
import pytest

from trainer import predict
from trainer.models import model_file
from trainer.trust import portraits, scope_file

SLICES = 8


def write(folder: Path, patient: int, moved_hu: int) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(SLICES):
        hu = blob_dataset.image_hu(np.zeros(5, bool), np.random.default_rng([patient, number])) + np.int16(moved_hu)
        data = blob_dataset.dicom(f"ID_{patient:04d}{number:02d}", patient, number, hu)
        (folder / f"{patient}_{number}.dcm").write_bytes(data)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Eight like those of training, and four with HU that no head has."""
    folder = tmp_path_factory.mktemp("mixed") / "ct"
    for patient in range(9000, 9012):
        write(folder, patient, 0 if patient < 9008 else 60)
    return folder


def ran(model: Path, given: Path, out: Path) -> list[dict[str, str]]:
    assert predict.main(["--model", str(model), "--input", str(given), "--output", str(out), "--pictures", "0"]) == 0
    with (out / "triage.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_unlike_training_is_ranked_behind_told_and_on_the_page(blob_run, mixed, tmp_path, capsys):
    studies = ran(blob_run, mixed, tmp_path / "out")
    strange = {row["study_uid"] for row in studies[-4:]}
    assert all(row["in_scope"] == "no" and "as far as 95% of validation" in row["scope_reason"] for row in studies[-4:])
    assert [int(row["rank"]) for row in studies] == list(range(1, 13))
    assert sum(row["in_scope"] == "yes" for row in studies[:8]) >= 6
    said = capsys.readouterr().out
    assert "unlike what the model was trained on and ranked behind the others (triage.csv: in_scope)" in said
    assert all(f"  {uid}: " in said for uid in strange)
    page = (tmp_path / "out" / "triage.html").read_text()
    assert page.index("Unlike what the model was trained on") < page.index("How to read it")
    assert page.count("OUT OF SCOPE: ") >= 2 * len(strange)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["studies_out_of_scope"] >= 4
    table = pq.read_table(tmp_path / "out" / "series.parquet")
    assert table.schema.equals(portraits.PREDICTED)
    assert table["slices"].to_pylist() == [SLICES] * 12
    assert {row["study_uid"] for row in studies} == set(table["study_uid"].to_pylist())


def test_a_model_without_its_scope_says_so_once_and_ranks_as_before(blob_run, mixed, tmp_path, capsys):
    bare = Path(shutil.copytree(blob_run / "export", tmp_path / "export"))
    (bare / scope_file.NAME).unlink()
    studies = ran(bare, mixed, tmp_path / "out")
    assert {row["in_scope"] for row in studies} == {"unknown"}
    urgency = [float(row["any"]) for row in studies]
    assert urgency == sorted(urgency, reverse=True)
    assert capsys.readouterr().out.count("scope unknown: the model does not keep what it was trained on") == 1
    assert not (tmp_path / "out" / "series.parquet").exists()


def test_the_run_keeps_its_scope_with_its_weights(blob_run):
    folder = blob_run / "export"
    found = scope_file.read(folder, model_file.digest(folder))
    assert found is not None
    assert found.lacking() == ""
    series = found.training.portraits
    assert series["slices"].to_pylist() == [20] * len(series)
    assert len(series["vector"][0].as_py()) == 32
