"""Runs of the command line in this process: a small network, few steps."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import keras

from trainer import task

SMALL = {
    "architecture.filters": [4, 4],
    "architecture.dense": [8],
    "batch_size": 16,
    "epochs": 2,
    "steps_per_epoch": 3,
    "steps_per_call": 1,
}


def flags(data_dir: Path, job_dir: Path, settings: dict[str, object]) -> list[str]:
    """A command line without --model; `settings` by their dotted names, over `SMALL` where the network is a cnn."""
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    return ["--data_dir", str(data_dir), "--job_dir", str(job_dir), *given]


def train(data_dir: Path, job_dir: Path, *more: str, model: str = "cnn", **settings: object) -> int:
    """Exit code of a run; `more` flags. In `settings` `architecture__dense` stands for `architecture.dense`."""
    named = {key.replace("__", "."): value for key, value in settings.items()}
    base = {key: value for key, value in SMALL.items() if model == "cnn" or not key.startswith("architecture")}
    return main(["--model", model, *flags(data_dir, job_dir, {**base, **named}), *more])


def main(command_line: list[str]) -> int:
    """Exit code of `trainer.task`; the signals and the dtype policy are as before afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return task.main(command_line)
    finally:
        keras.config.set_dtype_policy("float32")
        for number, handler in before.items():
            signal.signal(number, handler)


def one_line(capsys) -> str:
    """What stands on stderr: one line of the trainer."""
    text = capsys.readouterr().err
    assert text.startswith("train: "), text
    assert text.count("\n") == 1, text
    assert text.endswith("\n")
    return text[:-1]


def log_of(job_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (job_dir / "metrics.jsonl").read_text().splitlines()]


def result_of(job_dir: Path) -> dict:
    return json.loads((job_dir / "result.json").read_text())


def steps_saved(job_dir: Path) -> list[str]:
    """Names of the checkpoints, the best first."""
    return sorted(path.name for path in (job_dir / "checkpoints").iterdir())
