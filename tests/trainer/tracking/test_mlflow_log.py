"""The log in MLflow: one run there for one folder, no failing server ends a run, and numbers alone go out."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer.shell.problems import Stopped, WrongUse
from trainer.tracking import log, mlflow_log
from trainer.tracking.mlflow_log import MlflowLog

URI = {"MLFLOW_TRACKING_URI": "http://me:secret@tracker:5000"}


@pytest.fixture(autouse=True)
def plain(request, monkeypatch):
    """Values as plain objects, which saves the seconds that MLflow takes to import."""
    if "real" not in request.node.name:
        for name in ("_metrics", "_params"):
            monkeypatch.setattr(mlflow_log, name, plain_values)


def plain_values(values: list[tuple]) -> list[SimpleNamespace]:
    return [SimpleNamespace(key=one[0], value=one[1], step=one[-1]) for one in values]


class Gone(Exception):
    error_code = "RESOURCE_DOES_NOT_EXIST"


class Client:
    """As MLflow's, in memory; every call fails while `down`."""

    def __init__(self) -> None:
        self.runs: dict[str, SimpleNamespace] = {}
        self.experiments: list[str] = []
        self.down = False
        self.calls = 0

    def _answer(self) -> None:
        self.calls += 1
        if self.down:
            raise ConnectionError("http://me:secret@tracker:5000/api refused\nand more")

    def get_experiment_by_name(self, name):
        self._answer()
        return SimpleNamespace(experiment_id=name) if name in self.experiments else None

    def create_experiment(self, name):
        self._answer()
        self.experiments.append(name)
        return name

    def create_run(self, experiment, run_name):
        self._answer()
        run = SimpleNamespace(name=run_name, params={}, metrics=[], tags={}, status="RUNNING")
        self.runs[name := f"run{len(self.runs)}"] = run
        return SimpleNamespace(info=SimpleNamespace(run_id=name))

    def get_run(self, run):
        self._answer()
        return SimpleNamespace(data=self.runs[run])

    def update_run(self, run, status):
        self._answer()
        if run not in self.runs:
            raise Gone(f"no run {run}")
        self.runs[run].status = status

    def log_batch(self, run, metrics=(), params=()):
        self._answer()
        self.runs[run].metrics += [(one.key, one.value, one.step) for one in metrics]
        self.runs[run].params |= {one.key: one.value for one in params}

    def set_tag(self, run, name, value):
        self._answer()
        self.runs[run].tags[name] = value

    def set_terminated(self, run, status):
        self._answer()
        self.runs[run].status = status


class Made:
    """A log on a client and a clock of its own; `told`: its lines."""

    def __init__(self, folder: Path, client: Client | None = None) -> None:
        self.client, self.told, self.seconds = client or Client(), [], 0.0
        folder.mkdir(exist_ok=True)
        self.log = MlflowLog(URI, folder, self.told.append, self.client, lambda: self.seconds)


def test_settings_and_values_arrive(tmp_path):
    made = Made(tmp_path / "densenet121")
    made.log.settings({"seed": 0, "architecture.filters": "[4, 4]"})
    made.log.write(3, {"loss": 0.5, "val_auc": float("nan")})
    [run] = made.client.runs.values()
    assert (run.name, made.client.experiments) == ("densenet121", ["Default"])
    assert run.params == {"seed": "0", "architecture.filters": "[4, 4]"}
    assert run.metrics == [("loss", 0.5, 3)]
    made.log.write(4, {"loss": 0.25})
    assert len(run.metrics) == 1  # it waits
    made.log.end("FINISHED")
    assert run.metrics[1:] == [("loss", 0.25, 4)]
    assert (run.status, made.told) == ("FINISHED", [])


def test_values_are_gathered(tmp_path):
    made = Made(tmp_path)
    made.log.settings({})
    seen = []
    for step in range(65):
        made.seconds = step
        made.log.write(step, {"loss": 0.5})
        seen.append(len(made.client.runs["run0"].metrics))
    assert seen == [1] * 30 + [31] * 30 + [61] * 5


def test_a_resumed_run_goes_on_in_the_same_one(tmp_path):
    first = Made(tmp_path)
    first.log.settings({"epochs": 2, "seed": 0})
    first.log.end("KILLED")
    assert json.loads((tmp_path / "mlflow.json").read_text()) == {"run_id": "run0"}
    again = Made(tmp_path, first.client)
    again.log.settings({"epochs": 5, "seed": 0, "younger": 1})
    [run] = first.client.runs.values()
    assert run.status == "RUNNING"
    assert run.params == {"epochs": "2", "seed": "0", "younger": "1"}
    assert run.tags == {"now.epochs": "5"}
    Made(tmp_path, first.client).log.settings({"epochs": 2, "seed": 0, "younger": 1})
    assert run.tags == {"now.epochs": "2"}


@pytest.mark.parametrize("login", ["me:secret", "me:se@cret", "me:se/cret", "me:s@e/cret"])
def test_a_login_is_never_told(login):
    assert mlflow_log._without_login(f"refused by http://{login}@tracker:5000/x") == "refused by http://tracker:5000/x"


def test_a_run_that_the_server_lost_begins_anew(tmp_path):
    (tmp_path / "mlflow.json").write_text('{"run_id": "lost"}')
    made = Made(tmp_path)
    made.log.settings({})
    assert made.told == ["MLflow at http://tracker:5000 has no run lost any more; another one begins there"]
    assert json.loads((tmp_path / "mlflow.json").read_text()) == {"run_id": "run0"}


def test_a_new_run_needs_the_server(tmp_path):
    made = Made(tmp_path)
    made.client.down = True
    with pytest.raises(WrongUse, match="tracker:5000 cannot be used: http://tracker:5000/api refused; start it"):
        made.log.settings({})
    assert not (tmp_path / "mlflow.json").exists()
    made.log.end("FAILED")  # it never began
    assert made.client.calls == 1


def test_a_resumed_run_does_without_the_server(tmp_path):
    first = Made(tmp_path)
    first.log.settings({})
    first.client.down = True
    again = Made(tmp_path, first.client)
    again.log.settings({"seed": 0})
    assert len(again.told) == 1
    first.client.down = False
    again.seconds = mlflow_log.RETRY_EVERY_S
    again.log.write(1, {"loss": 0.5})
    [run] = first.client.runs.values()
    assert (run.params, run.metrics) == ({"seed": "0"}, [("loss", 0.5, 1)])


def test_a_server_that_fails_is_told_once_and_gets_all_when_it_is_back(tmp_path):
    made = Made(tmp_path)
    made.log.settings({})
    made.client.down = True
    for step in range(1, 1001):
        made.seconds = step
        made.log.write(step, {"loss": 0.5})
    words = (
        "MLflow at http://tracker:5000 fails: http://tracker:5000/api refused; training goes on, and it is tried again"
    )
    assert made.told == [words]
    assert made.client.calls < 12  # a try every five minutes, not at every step
    made.client.down = False
    made.seconds = 2000
    made.log.write(1001, {"loss": 0.5})
    assert [step for _, _, step in made.client.runs["run0"].metrics] == list(range(1, 1002))
    assert made.told[1:] == ["MLflow at http://tracker:5000 answers again"]


def test_what_waits_has_a_bound_and_a_failing_end_is_quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_log, "MOST_WAITING", 10)
    made = Made(tmp_path)
    made.log.settings({})
    made.client.down = True
    for step in range(50):
        made.log.write(step, {"loss": 0.5})
    made.log.end("FINISHED")
    assert len(made.told) == 1
    made.client.down = False
    made.log.end("FINISHED")
    assert [step for _, _, step in made.client.runs["run0"].metrics] == list(range(40, 50))


def test_no_path_goes_out(tmp_path):
    made = Made(tmp_path / "run")
    made.log.settings({"weights": "/home/jane/doe.h5", "slice_run": "/data/jane/run", "seed": 0})
    [run] = made.client.runs.values()
    assert run.params == {"weights": "doe.h5", "seed": "0"}
    assert "jane" not in str(run)


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (ValueError, "FAILED"), (Stopped, "KILLED"), (KeyboardInterrupt, "KILLED")],
)
def test_how_a_run_ended(tmp_path, error, status):
    made = Made(tmp_path)
    made.log.settings({})
    if error is None:
        with log.ended(made.log):
            pass
    else:
        with pytest.raises(error), log.ended(made.log):
            raise error
    assert made.client.runs["run0"].status == status


def test_what_it_needs_is_told_in_a_line(monkeypatch):
    log.check("none", {})
    log.check("mlflow", URI)
    with pytest.raises(WrongUse, match="--set logger=mlflow needs MLFLOW_TRACKING_URI, such as http://HOST:5000"):
        log.check("mlflow", {})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WrongUse, match=r"needs mlflow, not installed; pip install 'ich-tfrecords\[mlflow\]' brings it"):
        log.check("mlflow", URI)


def test_without_a_logger_nothing_is_kept(tmp_path):
    nothing = log.of_run("none", {}, tmp_path, print)
    nothing.settings({"seed": 0})
    nothing.write(1, {"loss": 0.5})
    nothing.end("FINISHED")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # imports all of MLflow
def test_the_real_client_keeps_it(tmp_path, monkeypatch):
    """In a folder, which its present versions take only when asked: the same calls as to a server."""
    for name, value in mlflow_log.OF_CLIENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    place = {"MLFLOW_TRACKING_URI": (tmp_path / "store").as_uri(), "MLFLOW_EXPERIMENT_NAME": "heads"}
    for status in ("KILLED", "FINISHED"):
        told: list[str] = []
        made = MlflowLog(place, tmp_path, told.append)
        made.settings({"seed": 0, "epochs": 2 if status == "KILLED" else 5, "data_shares": ""})
        made.write(3, {"step/loss": 0.5, "val_auc_any": 0.75})
        made.end(status)
        assert told == []
    client = MlflowClient(place["MLFLOW_TRACKING_URI"])
    [run] = client.search_runs([client.get_experiment_by_name("heads").experiment_id])
    assert (run.info.status, run.info.run_id) == (
        "FINISHED",
        json.loads((tmp_path / "mlflow.json").read_text())["run_id"],
    )
    assert run.data.params["epochs"] == "2"
    assert run.data.tags["now.epochs"] == "5"
    assert run.data.metrics == {"step/loss": 0.5, "val_auc_any": 0.75}
