"""One command as a child process: its seconds, its core-seconds, its peak memory and what it printed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.made_dataset import ROOT
from benchmarks.peak import peak_bytes

POLL_S = 0.02


@dataclasses.dataclass(frozen=True)
class Job:
    """What a command did: wall seconds, core-seconds of it and its children, peak bytes of it alone, its stdout."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    stdout: str

    @property
    def stage_s(self) -> dict[str, float]:
        """Seconds of each stage of `beam_pipelines.convert`, from its own words."""
        return _numbers(self._line("seconds "))

    @property
    def worker_ms(self) -> dict[str, float]:
        """Milliseconds a slice that the workers of `beam_pipelines.convert` counted: header, read, decode, ..."""
        return _numbers(self._line("ms a slice in one worker:").replace(";", ","))

    def _line(self, start: str) -> str:
        found = [line.removeprefix(start) for line in self.stdout.splitlines() if line.startswith(start)]
        if not found:
            raise ValueError(f"no line begins with {start!r} in what the command printed:\n{self.stdout}")
        return found[0]


def _numbers(line: str) -> dict[str, float]:
    parts = (part.rsplit(" ", 1) for part in line.strip().split(", "))
    return {name.strip(): float(value) for name, value in parts}


def run(command: list[str]) -> Job:
    """Run a command in the repository's root. Raises `RuntimeError` with its last words when it fails."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        begin = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err)
        peak = done = 0
        while not done:
            peak = max(peak, peak_bytes(process.pid))
            time.sleep(POLL_S)
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
        wall_s = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, err):
            file.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {err.read()[-2000:]}")
        return Job(wall_s, usage.ru_utime + usage.ru_stime, peak, out.read())


def convert(source: Path, output: Path, *flags: str) -> Job:
    """`python -m beam_pipelines.convert` of unlabelled slices."""
    places = ["--input", str(source), "--labels", "none", "--output", str(output)]
    return run([sys.executable, "-m", "beam_pipelines.convert", *places, *flags])
