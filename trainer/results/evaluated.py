"""An evaluation in the folder of its run: where it lies, its files, and what the training had to do with its slices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PREDICTIONS, METRICS, PAGE = "predictions.parquet", "metrics.json", "report.html"
FORMAT = 2  # of METRICS
_NAME = re.compile(r"(.*?)(-flip)?(-[0-9a-f]{8})?", re.DOTALL)

DOUBTS = {  # why numbers are kinder, or other, than those of new patients; words behind the name of a run and a colon
    "train_split": "trained on these very slices, so nothing here says how good it is on new patients",
    "validation_split": "calibration, thresholds and the best epoch were chosen on these very slices, so log loss, "
    "calibration error and decisions are kinder than on new patients",
    "elsewhere": "trained on another data set than the one evaluated on; see to it that no patient is in both",
}


def folder(run: Path, name: str) -> Path:
    """Where the evaluation of that name lies."""
    return run / "evaluation" / name


def name_of(split: str, flip: bool, other: str = "") -> str:
    """Name of an evaluation; `other`: fingerprint of the data set, where it is not the one that was trained on."""
    return "".join((split, "-flip" * flip, f"-{other[:8]}" if other else ""))


def parts_of(name: str) -> tuple[str, bool, bool]:
    """Split, whether flipped, and whether of another data set, as `name_of` put them together."""
    split, flip, other = _NAME.fullmatch(name).groups()  # type: ignore[union-attr]  # it fits every text
    return split, bool(flip), bool(other)


def doubt(what: Mapping[str, Any]) -> str:
    """Which of `DOUBTS` an evaluation is in, or none: the empty text. `what`: that part of its `METRICS`."""
    if what["dataset"]["fingerprint"] not in (what["trained_on"], *what.get("trained_on_parts", ())):
        return "elsewhere"
    settings = what["settings"]
    return next((key for key in ("train_split", "validation_split") if settings.get(key) == what["split"]), "")
