"""What prediction wrote of an upload, read back: slices, studies, rejects, under the names that the files came with."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.prediction.folder import PredictFolder
from trainer.trust.scope import UNKNOWN

_ARCHIVE = ".zip"
_BEFORE, _AFTER = "partial", "driven_by"  # columns of triage.csv around its labels
_STORED = re.compile(r"'?(\d{6})\.(?:dcm|nii|nii\.gz)(#\d+)?")


class Row(NamedTuple):
    """A slice with its probabilities, in the order of the labels. `input`, `stored`: as predictions.csv names it."""

    input: int
    stored: str
    sop_uid: str
    study_uid: str
    series_uid: str
    z_mm: float | None
    probabilities: list[float]


class Study(NamedTuple):
    """A row of triage.csv that has a rank; `in_scope` is `UNKNOWN` in one of before that was told."""

    study_uid: str
    rank: int
    probabilities: list[float]
    partial: bool
    slices: int
    in_scope: str
    scope_reason: str


class Reject(NamedTuple):
    """A file without a prediction; `input`, `stored`: as rejects.csv names it."""

    input: int
    stored: str
    reason: str


def called(inputs: Sequence[str], names: Sequence[str], number: int, stored: str) -> str:
    """What a file was called that results name by the `number` of its input and what it is `stored` as.

    `inputs`: `Entry.inputs`; `names`: what was sent, by the numbers of the files.
    """
    place = Path(inputs[number - 1])
    if place.suffix == _ARCHIVE:
        return stored if len(inputs) == 1 else f"{names[int(place.stem)]}/{stored}"
    found = _STORED.fullmatch(stored)
    return names[int(found[1])] + (found[2] or "") if found else stored


def labels(result: Path) -> list[str]:
    """The labels of an upload's probabilities: a spool may have been another model's before."""
    head = next(_lines(PredictFolder(result).triage))
    return head[head.index(_BEFORE) + 1 : head.index(_AFTER)]


def slices(result: Path) -> list[Row]:
    """Every slice that has probabilities, in the order of predictions.csv."""
    names = labels(result)
    return [
        Row(
            int(row["input"]),
            row["file"],
            row["sop_uid"],
            row["study_uid"],
            row["series_uid"],
            _finite(row["position_mm"]),
            [float(row[name]) for name in names],
        )
        for row in _rows(PredictFolder(result).predictions)
    ]


def studies(result: Path) -> list[Study]:
    """Every study that has probabilities, most urgent first."""
    names = labels(result)
    return [
        Study(
            row["study_uid"],
            int(row["rank"]),
            [float(row[name]) for name in names],
            bool(row["partial"]),
            int(row["slices"]),
            row.get("in_scope", UNKNOWN),
            row.get("scope_reason", ""),
        )
        for row in _rows(PredictFolder(result).triage)
        if row["rank"]
    ]


def rejects(result: Path) -> list[Reject]:
    """Every file without a prediction."""
    rows = _rows(PredictFolder(result).rejects)
    return [Reject(int(row["input"]), row["file"], row["reason"]) for row in rows]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    head, *rows = _lines(path)
    return (dict(zip(head, row, strict=True)) for row in rows)


def _lines(path: Path) -> Iterator[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.reader(file)


def _finite(text: str) -> float | None:
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None
