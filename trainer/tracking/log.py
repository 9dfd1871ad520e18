"""Where the numbers of a run go besides its folder and TensorBoard: nowhere, or to MLflow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from trainer.shell import extras
from trainer.shell.problems import Stopped, WrongUse
from trainer.tracking.mlflow_log import FAILED, FINISHED, KILLED, TRACKING_URI, MlflowLog

NONE, MLFLOW = "none", "mlflow"
LOGGERS = (NONE, MLFLOW)


class Log(Protocol):
    """What a tracker is told of a run. No method ends the run: a tracker that fails is told once, and left alone."""

    def settings(self, values: Mapping[str, object]) -> None:
        """Log what decides the run, by dotted names."""
        ...

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log each value under its name at `step`."""
        ...

    def end(self, status: str) -> None:
        """Send what waits, and say how the run ended."""
        ...


class NoLog:
    """Takes everything and keeps nothing."""

    def settings(self, values: Mapping[str, object]) -> None:
        """Nothing."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def end(self, status: str) -> None:
        """Nothing."""


def check(logger: str, environ: Mapping[str, str]) -> None:
    """Refuse a logger that lacks its extra, or its place in the environment. Raises `WrongUse`."""
    if logger == NONE:
        return
    extras.require("--set logger=mlflow", MLFLOW, ("mlflow",))
    if not environ.get(TRACKING_URI):
        raise WrongUse(
            f"--set logger=mlflow needs {TRACKING_URI}, such as http://HOST:5000; without it MLflow would begin a "
            "store of its own in this folder"
        )


def of_run(logger: str, environ: Mapping[str, str], folder: Path, note: Callable[[str], None]) -> Log:
    """The log of the run in `folder`: the one that it had before, where it goes on. Raises `WrongUse`."""
    return NoLog() if logger == NONE else MlflowLog(environ, folder, note)


@contextlib.contextmanager
def ended(log: Log) -> Iterator[None]:
    """Tell the log at the end how the block ended."""
    try:
        yield
    except (Stopped, KeyboardInterrupt):
        log.end(KILLED)
        raise
    except BaseException:
        log.end(FAILED)
        raise
    log.end(FINISHED)
