"""Runs of `python -m trainer.task` for tests: as processes that can be stopped anywhere, or in this process."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from trainer.training import checkpoints

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 300  # generous: the machine may be busy with other tests
POLL_S = 0.001


def flags(data_dir: Path, job_dir: Path, settings: Mapping[str, object]) -> list[str]:
    """The command line of a run of the small network; `settings` by their dotted names."""
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    return ["--model", "cnn", "--data_dir", str(data_dir), "--job_dir", str(job_dir), *given]


class Run:
    """A run in a process of its own; `environ` is added to the environment."""

    def __init__(
        self, command_line: list[str], log: Path, program: Sequence[str] = ("-m", "trainer.task"), **environ: str
    ) -> None:
        self._out, self._err = log.with_suffix(".out"), log.with_suffix(".err")
        alone = {key: value for key, value in os.environ.items() if key != "TF_CONFIG"}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *program, *command_line],
                cwd=ROOT, env={**alone, **environ}, stdout=out, stderr=err,
            )  # fmt: skip

    @property
    def out(self) -> str:
        """Standard output so far."""
        return self._out.read_text()

    @property
    def codes(self) -> list[int]:
        """The exit codes of `several` runs."""
        return json.loads(self.out.splitlines()[-1])

    @property
    def err(self) -> str:
        """Standard error so far."""
        return self._err.read_text()

    def wait(self) -> int:
        """The exit code, negative after a signal that nobody caught; a run that hangs is killed."""
        try:
            return self.process.wait(TIMEOUT_S)
        finally:
            self.process.kill()

    def until(self, what: Callable[[], bool]) -> None:
        """Return once `what` holds; fails when the process ends before."""
        end = time.monotonic() + TIMEOUT_S
        while not what():
            assert self.process.poll() is None, f"ended too early, with {self.process.returncode}: {self.out}{self.err}"
            assert time.monotonic() < end, f"hangs: {self.out}{self.err}"
            time.sleep(POLL_S)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The process stands still meanwhile."""
        self.send(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        try:
            yield
        finally:
            self.send(signal.SIGCONT)


def finished(command_line: list[str], log: Path, **environ: str) -> Run:
    """A run that has ended well."""
    run = Run(command_line, log, **environ)
    assert run.wait() == 0, run.err
    return run


def several(command_lines: list[list[str]], log: Path, **environ: str) -> Run:
    """Runs one after the other in one process, which spares the start of TensorFlow; their exit codes are `codes`."""
    lines = json.dumps(command_lines)
    run = Run([lines], log, ("-c", SEVERAL), **environ)
    assert run.wait() == 0, run.err
    return run


SEVERAL = """
import json, sys
from trainer import task
print(json.dumps([task.main(line) for line in json.loads(sys.argv[1])]))
"""


def last_step(job_dir: Path) -> int:
    """The last step that metrics.jsonl tells of; 0 without one."""
    path = job_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    return json.loads(whole[-1])["step"] if whole else 0


def calls(job_dir: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl that tell of calls."""
    entries = [json.loads(line) for line in (job_dir / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if "loss_scale" in entry]


def losses(job_dir: Path) -> np.ndarray:
    """float64 [calls], in order; steps must ascend."""
    found = calls(job_dir)
    assert all(one["step"] < other["step"] for one, other in itertools.pairwise(found))
    return np.array([entry["loss"] for entry in found])


def newest(job_dir: Path) -> checkpoints.Checkpoint:
    """The checkpoint of the highest step, which must be whole."""
    return checkpoints.load(max((job_dir / "checkpoints").glob("step-*.npz")))


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path -> bytes of every file below a folder; not of `lock`, which names the last process."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def two_workers() -> list[dict[str, str]]:
    """TF_CONFIG of two workers on this machine, at ports that were free just now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        places = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    tasks = [{"type": "worker", "index": index} for index in range(2)]
    return [{"TF_CONFIG": json.dumps({"cluster": {"worker": places}, "task": task})} for task in tasks]
