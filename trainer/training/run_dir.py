"""The folder of a training run: what is written there, under which names, and so that a resumed run fits on.

`config.yaml` `history.csv` `metrics.jsonl` `result.json` `inputs.png` `lock`, and the folders `checkpoints`,
`tensorboard` and `export`; `tracking` adds `mlflow.json`, later commands `evaluation` and `vectors`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from ich_tfrecords.storage import atomic
from ich_tfrecords.views import montage
from trainer.shell import folder_lock
from trainer.shell.problems import TrainingFailed, WrongUse, closed_after

Uint8 = npt.NDArray[np.uint8]


class RunDir:
    """Names and writes the parts of a run's folder. One process at a time writes: the chief.

    `checkpoints`, `tensorboard` and `export` lie inside `path` unless they are given a place of their own, as
    Vertex AI does; `tensorboard` may be a `gs://` address, which TensorFlow writes itself.
    """

    def __init__(
        self,
        path: Path,
        checkpoints: Path | None = None,
        tensorboard: str | Path | None = None,
        export: Path | None = None,
    ) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.history = path / "history.csv"
        self.metrics = path / "metrics.jsonl"
        self.result = path / "result.json"
        self.inputs = path / "inputs.png"
        self.checkpoints = checkpoints or path / "checkpoints"
        self.tensorboard = str(tensorboard or path / "tensorboard")
        self.export = export or path / "export"
        self._log: TextIO | None = None

    def create(self) -> None:
        """Make the folders of the run and of its checkpoints. Raises `WrongUse` where nothing can be written."""
        for folder in (self.path, self.checkpoints):
            _make_writable(folder)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes of this machine out of the folder; the lock goes with its holder, however it ends.

        Raises `WrongUse` naming the holder when there is one.
        """
        try:
            lock = folder_lock.take(self.path, "--job_dir")
        except OSError as error:
            path = self.path / folder_lock.LOCK
            raise WrongUse(f"cannot write {path}: {error.strerror}; choose another --job_dir") from error
        with contextlib.closing(lock):
            for left in self.path.glob(f"*{atomic.TEMPORARY_SUFFIX}"):  # of writers that were killed
                _remove(left)
            with closed_after(self):
                yield

    def close(self) -> None:
        """Close metrics.jsonl; the next `log` opens it again."""
        log, self._log = self._log, None
        if log is not None:
            with _told(self.metrics):
                log.close()

    def write_config(self, text: str) -> None:
        """Put the resolved settings at config.yaml, whole or not at all."""
        _write(self.config, text)

    def read_config(self) -> str | None:
        """Text of config.yaml, or None when the run has none yet. Raises `WrongUse` when it cannot be read."""
        return _read(self.config)

    def write_history(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Put one row an epoch at history.csv, whole or not at all; floats read back to the same bits, nan is empty.

        Columns stand in the order in which they first appear. metrics.jsonl is closed on the way, because a
        bucket mounted as a folder gets a file only when it is closed.
        """
        _write(self.history, history_text(rows))
        self.close()

    def read_history(self) -> list[dict[str, float]]:
        """The rows of history.csv, empty values as nan; no rows when there is no file. Raises `WrongUse`."""
        text = _read(self.history)
        try:
            return [] if text is None else history_rows(text)
        except (ValueError, csv.Error) as error:
            raise WrongUse(f"{self.history} is damaged ({error}); delete it, checkpoints hold the same rows") from error

    def training(self, epochs: int) -> dict[str, Any]:
        """Of so many epochs the seconds and images a second, None as far as the log does not tell them."""
        try:
            entries = [json.loads(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError):  # an export without its run has no log; a torn one tells nothing certain
            return {"epochs": epochs, "seconds": None, "images_per_s": None}
        rates = [entry["images_per_s"] for entry in entries if entry.get("images_per_s")]
        seconds = [entry["seconds"] for entry in entries if entry.get("seconds")]
        return {
            "epochs": epochs,
            "seconds": sum(seconds) or None,
            "images_per_s": statistics.median(rates) if rates else None,
        }

    def log(self, entry: Mapping[str, Any]) -> None:
        """Append one JSON line to metrics.jsonl; nan and infinities become null."""
        with _told(self.metrics):
            if self._log is None:
                self._log = self.metrics.open("a", encoding="utf-8")
            self._log.write(json_text(entry) + "\n")
            self._log.flush()

    def cut_log(self, step: int) -> None:
        """Remove from metrics.jsonl what came after `step` (the value of "step" in a line) and a torn last line."""
        self.close()
        text = _read(self.metrics)
        kept = None if text is None else lines_until(text, step)
        if kept is not None and kept != text:
            _write(self.metrics, kept)

    def write_result(self, values: Mapping[str, Any]) -> None:
        """Put `values` at result.json, whole or not at all; nan and infinities become null."""
        _write(self.result, json_text(values, indent=2) + "\n")

    def write_inputs(self, page: Uint8) -> None:
        """Put the picture of `input_page` at inputs.png, whole or not at all."""
        with _told(self.inputs):
            atomic.write_bytes(self.inputs, montage.png_bytes(Image.fromarray(page)))


def _make_writable(folder: Path) -> None:
    if folder.parts[:1] == ("gs:",):
        raise WrongUse(f"{folder} is in a bucket; name a local folder, or /gcs/BUCKET/... where buckets are mounted")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(folder / ".writable", b"")  # permission bits do not tell all: read-only mounts, quotas
        (folder / ".writable").unlink(missing_ok=True)
    except FileExistsError as error:
        raise WrongUse(f"{folder} is a file, not a folder; choose another --job_dir") from error
    except OSError as error:
        raise WrongUse(f"cannot write to {folder}: {error.strerror}; choose another --job_dir") from error


def _remove(left: Path) -> None:
    """Take away what a killed writer left: a file, or the folder of an export."""
    if left.is_dir():
        shutil.rmtree(left)
    else:
        left.unlink(missing_ok=True)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Tell a failed write in one line."""
    try:
        yield
    except OSError as error:
        raise TrainingFailed(f"cannot write {path}: {error.strerror}; make room there and run it again") from error


def _write(path: Path, text: str) -> None:
    with _told(path):
        atomic.write_bytes(path, text.encode())


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")  # a torn line may end inside a character
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WrongUse(f"cannot read {path}: {error.strerror}") from error


def history_text(rows: Sequence[Mapping[str, float]]) -> str:
    """Rows as CSV with a head line; columns in order of first appearance, floats by repr, nan and missing empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([names, *([_number_text(row.get(name, math.nan)) for name in names] for row in rows)])
    return out.getvalue()


def _number_text(value: Any) -> str:
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    return "" if math.isnan(value) else repr(float(value))


def history_rows(text: str) -> list[dict[str, float]]:
    """Rows of `history_text`: whole numbers as int, empty values as nan. Raises ValueError."""
    lines = list(csv.reader(io.StringIO(text)))
    return [dict(zip(lines[0], map(_number, line), strict=True)) for line in lines[1:]]


def _number(text: str) -> float:
    if not text:
        return math.nan
    return int(text) if text.removeprefix("-").isdecimal() else float(text)


def json_text(values: Mapping[str, Any], indent: int | None = None) -> str:
    """JSON of nested values, numpy numbers and arrays too; nan and infinities as null."""
    return json.dumps(_plain(values), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def lines_until(text: str, step: int) -> str:
    """The lines of a log before the first whose "step" is above `step`, without unreadable ones."""
    kept = []
    for line in text.splitlines(keepends=True):
        entry = _entry(line)
        if entry is None:
            continue
        at = entry.get("step")
        if isinstance(at, (int, float)) and at > step:
            break
        kept.append(line)
    return "".join(kept)


def _entry(line: str) -> dict[str, Any] | None:
    """Values of a whole line; None for a torn one."""
    if not line.endswith("\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
