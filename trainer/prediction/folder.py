"""The folder that predict writes: whose it is, whether it is whole, and CSV files written row by row."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ich_tfrecords.storage import atomic
from ich_tfrecords.storage.csv_text import safe_cell
from trainer.shell import command, folder_lock
from trainer.shell.problems import WrongUse

RUN = "run.json"
FORMAT = 1


class PredictFolder:
    """Names the parts of the folder. It is predict's once run.json says so, and whole once that says "finished"."""

    def __init__(self, path: Path) -> None:
        """Raises `WrongUse` where the folder holds what others made."""
        self.path = path
        self.run = path / RUN
        self.predictions = path / "predictions.csv"
        self.triage = path / "triage.csv"
        self.rejects = path / "rejects.csv"
        self.series = path / "series.parquet"
        self.page = path / "triage.html"
        self.pictures = path / "pictures"
        command.require_local("--output", path)
        if path.exists() and not path.is_dir():
            raise WrongUse(f"--output {path} is a file, not a folder; choose another")
        others = sorted({entry.name for entry in path.iterdir()} - {folder_lock.LOCK}) if path.is_dir() else []
        if others and not _facts(self.run):
            raise WrongUse(f"--output {path} holds {others[0]}, which predict did not write; choose a new folder")

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the folder and its mark, and keep other processes of this machine out of it until the block ends.

        The results of an earlier run stay until `begin`. Raises `WrongUse` naming the process that has the folder.
        """
        with contextlib.closing(folder_lock.take(self.path, "--output")):
            if not self.run.exists():
                self._mark({"finished": False})
            for left in self._temporaries():  # of a run that was killed
                left.unlink()
            yield

    def _temporaries(self) -> list[Path]:
        """Files that `atomic` had not yet put in their place."""
        tables = (self.predictions.name, self.triage.name, self.rejects.name, self.series.name)
        names = (*tables, self.page.name, RUN, "pictures/[0-9]*_*.png")
        return [path for name in names for path in self.path.glob(f"{name}.*{atomic.TEMPORARY_SUFFIX}")]

    def begin(self) -> None:
        """Take away the results of an earlier run: new ones are ready to stand in their place."""
        names = _picture_names(_facts(self.run))
        self._mark({"finished": False, "pictures": names})  # a run that ends here leaves them to the next
        pictures = (self.pictures / name for name in names)
        for old in (self.predictions, self.triage, self.rejects, self.series, self.page, *pictures):
            old.unlink(missing_ok=True)

    def plan_pictures(self, names: Sequence[str]) -> None:
        """Say which pictures come, so that the next run knows them for predict's even if this one is killed."""
        self._mark({"finished": False, "pictures": list(names)})

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Say that everything is written, and how it was made; `facts["pictures"]`: the names of the pictures."""
        self._mark({"finished": True, **facts})

    def _mark(self, facts: Mapping[str, Any]) -> None:
        text = json.dumps({"command": "predict", "format": FORMAT, **facts}, indent=1)
        atomic.write_bytes(self.run, f"{text}\n".encode())


def _facts(path: Path) -> dict[str, Any]:
    """What run.json says; empty where it is not predict's."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) and values.get("command") == "predict" else {}


def _picture_names(facts: Mapping[str, Any]) -> list[str]:
    """The pictures that a run.json names; what is no plain name of a picture is none of predict's."""
    names = facts.get("pictures")
    return [name for name in names if re.fullmatch(r"\d{3,}_[^/]+\.png", str(name))] if isinstance(names, list) else []


@contextlib.contextmanager
def csv_file(path: Path, head: Sequence[str]) -> Iterator[Callable[[Iterable[Sequence[object]]], None]]:
    """A function that appends rows to a CSV file, which stands at `path` once the block ends well."""
    with atomic.replacing(path) as file:
        # a UID that is no proper text must not end the work
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(head)
        yield lambda rows: writer.writerows(map(safe_cell, row) for row in rows)
        text.detach()
