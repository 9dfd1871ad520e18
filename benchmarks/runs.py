"""The benchmarks behind docs/benchmarks.md: how each is run, and its figures with what they were measured on."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.made_dataset import ROOT
from ich_tfrecords.storage import atomic

QUICK_FLAGS = {  # name of the benchmark -> flags of a small run; bench_NAME.py is its program
    "scale": ("--sizes", "10000,100000", "--rounds", "1"),
    "zip": ("--entries", "100000", "--runs", "1"),
    "processes": ("--quick",),
    "tfds": ("--quick",),
    "streams": ("--quick",),
    "requests": ("--quick",),
}
NAMES = tuple(QUICK_FLAGS)


class ResultError(ValueError):
    """Figures that are not there or cannot be read; the message is for the user."""


@dataclasses.dataclass(frozen=True)
class Result:
    """Figures of one benchmark and how they were got: command, date, seconds, machine, quick, kept (its promise)."""

    figures: Any
    run: dict[str, Any]

    @property
    def words(self) -> str:
        """Command, date and machine in one line."""
        how = f"`{self.run['command']}`, {self.run['date']}, {self.run['seconds']:,.0f} s in all"
        small = " A quick run: too small to rely on." if self.run["quick"] else ""
        broken = "" if self.run["kept"] else " **It missed what it promises.**"
        return f"{how}. {machine.in_words(self.run['machine'])}.{small}{broken}"


def run(name: str, folder: Path, quick: bool) -> bool:
    """Run a benchmark, keep its figures in `folder`, and say whether it kept its promise.

    Raises `ResultError` when it ends without figures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures, facts = folder / f"{name}.json", folder / f"{name}.run.json"
    for old in (figures, facts):
        old.unlink(missing_ok=True)
    shown = ["python", f"benchmarks/bench_{name}.py", *(QUICK_FLAGS[name] if quick else ())]
    print(f"== {shlex.join(shown)}", flush=True)
    begin = time.perf_counter()
    command = [sys.executable, *shown[1:], "--output", str(figures.absolute())]
    code = subprocess.run(command, cwd=ROOT).returncode
    if code not in (0, 1) or not figures.exists():
        raise ResultError(f"{shlex.join(shown)} ended with {code} and without figures; run it alone to see why")
    told = {
        "command": shlex.join(shown),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "seconds": time.perf_counter() - begin,
        "quick": quick,
        "kept": code == 0,
        "machine": machine.facts(),
    }
    atomic.write_bytes(facts, json.dumps(told, indent=1).encode())
    return code == 0


def load(folder: Path) -> dict[str, Result]:
    """The figures of every benchmark in `folder`. Raises `ResultError` naming the first that is missing or damaged."""
    return {name: Result(_read(folder, name, ""), _read(folder, name, ".run")) for name in NAMES}


def _read(folder: Path, name: str, kind: str) -> Any:
    path = folder / f"{name}{kind}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ResultError(f"{path} is missing; make it with: python benchmarks/page.py --run {name}") from error
    except ValueError as error:
        raise ResultError(f"{path}: {error}; make it anew with: python benchmarks/page.py --run {name}") from error
