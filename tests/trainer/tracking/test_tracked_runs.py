"""Runs that MLflow is told of by the command: settings and scalars, and one run however often it is resumed."""

from __future__ import annotations

import csv
import json

import pytest
from small_runs import one_line, train

from trainer.tracking import mlflow_log

pytestmark = pytest.mark.slow  # trains


def test_a_run_and_its_resumption_are_one_run_there(blobs, tmp_path, monkeypatch, capsys):
    for name, value in mlflow_log.OF_CLIENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    assert train(blobs, tmp_path / "cnn", logger="mlflow", epochs=1) == 0
    first = json.loads((tmp_path / "cnn" / "mlflow.json").read_text())["run_id"]
    assert train(blobs, tmp_path / "cnn", logger="mlflow", epochs=2) == 0
    assert capsys.readouterr().err == ""
    from mlflow import MlflowClient

    client = MlflowClient((tmp_path / "store").as_uri())
    [run] = client.search_runs(["0"])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (first, "cnn", "FINISHED")
    assert (run.data.params["epochs"], run.data.tags["now.epochs"]) == ("1", "2")
    assert run.data.params["architecture.filters"] == "[4, 4]"
    history = list(csv.DictReader((tmp_path / "cnn" / "history.csv").open()))
    told = client.get_metric_history(first, "val_log_loss")
    assert [one.step for one in told] == [int(row["step"]) for row in history]
    assert [one.value for one in told] == [float(row["val_log_loss"]) for row in history]
    assert str(tmp_path) not in str(run.data)
    assert client.list_artifacts(first) == []


def test_without_a_place_nothing_begins(blobs, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert train(blobs, tmp_path / "run", logger="mlflow") == 2
    assert "needs MLFLOW_TRACKING_URI" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []
