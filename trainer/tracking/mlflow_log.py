"""The log of a run in MLflow: one MLflow run for the folder of a run, however often that is resumed."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ich_tfrecords.storage import atomic
from trainer.shell.problems import TrainingFailed, WrongUse

TRACKING_URI, EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
FILE = "mlflow.json"  # in the folder of the run: which MLflow run it is
FINISHED, FAILED, KILLED, RUNNING = "FINISHED", "FAILED", "KILLED", "RUNNING"
SEND_EVERY_S = 30.0
RETRY_EVERY_S = 300.0  # a server that does not answer is asked no more often, for training waits meanwhile
MOST_WAITING = 20_000  # values; the oldest go
A_BATCH = 500  # MLflow takes 1,000 values a request, and 100 settings
SETTINGS_A_BATCH = 100
# of its client, unless the user says otherwise: no report of its use to its makers, and short waits
OF_CLIENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
_LOGIN = re.compile(r"(?<=//)\S*@")  # of an address; a password may hold all that ends one
FILE_NAMES = ("weights",)  # settings that may be paths: none but the name goes out
LEFT_OUT = ("slice_run",)  # a folder of this machine


class MlflowLog:
    """Sends settings and values to the server of `MLFLOW_TRACKING_URI`, values at most every `SEND_EVERY_S`.

    Its MLflow run begins, or goes on, with `settings`. A new one needs the server, and `settings` raises `WrongUse`
    without it; from then on nothing that the server does ends training or holds it up for long: what cannot be sent is
    told once, waits, and is tried again every `RETRY_EVERY_S`. `now` gives seconds; `client`: of MLflow, imported where
    none is given.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        folder: Path,
        note: Callable[[str], None],
        client: Any = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._note, self._now, self._file = note, now, folder / FILE
        self._uri, self._experiment = environ[TRACKING_URI], environ.get(EXPERIMENT) or "Default"
        self._place = _without_login(self._uri)
        self._client, self._run = client, ""
        self._unsent: dict[str, str] = {}
        self._waiting: list[tuple[str, float, int, int]] = []  # name, value, ms since 1970, step
        self._send_at, self._told = -math.inf, False

    def settings(self, values: Mapping[str, object]) -> None:
        """Log what decides the run; what differs from what it began with becomes a tag, for MLflow keeps settings."""
        self._begin()
        self._unsent = {name: _text(name, value) for name, value in values.items() if name not in LEFT_OUT}
        if self._send():
            self._send_at = -math.inf  # the first values need not wait

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log each value under its name at `step`; those that are not finite are left out."""
        at = int(time.time() * 1000)
        self._waiting += [(name, float(value), at, step) for name, value in values.items() if math.isfinite(value)]
        del self._waiting[:-MOST_WAITING]
        if self._run and self._now() >= self._send_at:
            self._send()

    def end(self, status: str) -> None:
        """Send what waits, once more where that failed, and say how the run ended."""
        if self._run and self._send():
            with self._tolerant():
                self._client.set_terminated(self._run, status)

    def _send(self) -> bool:
        """Whether all that waited was sent; what was not goes on waiting."""
        self._send_at = self._now() + SEND_EVERY_S
        with self._tolerant():
            if self._unsent:
                self._send_settings(self._unsent)
                self._unsent = {}
            while self._waiting:
                self._client.log_batch(self._run, metrics=_metrics(self._waiting[:A_BATCH]))
                del self._waiting[:A_BATCH]
            return True
        return False

    def _send_settings(self, given: Mapping[str, str]) -> None:
        data = self._client.get_run(self._run).data
        there = data.params
        new = [(name, text) for name, text in given.items() if name not in there]
        for at in range(0, len(new), SETTINGS_A_BATCH):
            self._client.log_batch(self._run, params=_params(new[at : at + SETTINGS_A_BATCH]))
        for name, text in given.items():
            if data.tags.get(f"now.{name}", there.get(name, text)) != text:
                self._client.set_tag(self._run, f"now.{name}", text)

    def _begin(self) -> None:
        """Go on with the MLflow run of this folder, or begin one and keep its name there."""
        with self._refused():
            self._client = self._client or _client(self._uri)
        self._run = self._resumed(self._read())
        if not self._run:
            with self._refused():
                self._run = self._begun()
            self._keep()

    def _keep(self) -> None:
        """Name the MLflow run in the folder of the run."""
        try:
            atomic.write_bytes(self._file, (json.dumps({"run_id": self._run}) + "\n").encode())
        except OSError as error:
            raise TrainingFailed(
                f"cannot write {self._file}: {error.strerror}; make room there and run it again"
            ) from error

    def _read(self) -> str:
        """The MLflow run that this folder has; "" where it has none, or the file is no such thing."""
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))["run_id"]
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        return found if isinstance(found, str) else ""

    def _resumed(self, run: str) -> str:
        """The run, running again; "" where the server says that it has no such run."""
        if not run:
            return ""
        try:
            with _quietly():
                self._client.update_run(run, status=RUNNING)
        except Exception as error:
            if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                self._failed(error)
                return run
            self._note(f"MLflow at {self._place} has no run {run} any more; another one begins there")
            return ""
        return run

    def _begun(self) -> str:
        """A new run in the experiment; it bears the name of the folder, and no path."""
        found = self._client.get_experiment_by_name(self._experiment)
        of = self._client.create_experiment(self._experiment) if found is None else found.experiment_id
        return str(self._client.create_run(of, run_name=self._file.parent.name).info.run_id)

    @contextlib.contextmanager
    def _refused(self) -> Iterator[None]:
        """Turn what goes wrong at the beginning into a line. Raises `WrongUse`."""
        try:
            with _quietly():
                yield
        except Exception as error:  # its stores raise whatever their libraries do
            raise WrongUse(
                f"MLflow at {self._place} cannot be used: {_reason(error)}; start it, mend {TRACKING_URI}, or leave "
                "out --set logger=mlflow"
            ) from error

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        """Go on where the server fails: told the first time, and once more when it answers again."""
        try:
            with _quietly():
                yield
        except Exception as error:  # a tracker must not end a training of days, whatever it raises
            self._failed(error)
            return
        if self._told:
            self._note(f"MLflow at {self._place} answers again")
            self._told = False

    def _failed(self, error: Exception) -> None:
        self._send_at = self._now() + RETRY_EVERY_S
        if not self._told:
            self._note(f"MLflow at {self._place} fails: {_reason(error)}; training goes on, and it is tried again")
            self._told = True


def _client(place: str) -> Any:
    for name, value in OF_CLIENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=place)


def _metrics(values: list[tuple[str, float, int, int]]) -> list[Any]:
    from mlflow.entities import Metric

    return [Metric(*value) for value in values]


def _params(values: list[tuple[str, str]]) -> list[Any]:
    from mlflow.entities import Param

    return [Param(name, text) for name, text in values]


def _text(name: str, value: object) -> str:
    """What MLflow keeps of a setting."""
    return Path(str(value)).name if name in FILE_NAMES else str(value)


def _without_login(text: str) -> str:
    return _LOGIN.sub("", text)


def _reason(error: Exception) -> str:
    """The first line of what a library says, without logins, and short."""
    lines = _without_login(str(error)).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings of MLflow and of its HTTP client: what fails is told in our own line."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "urllib3", "alembic")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
