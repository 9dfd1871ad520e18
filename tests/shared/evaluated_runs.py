"""Folders of runs as `trainer.evaluate` leaves them, with simulated predictions: no network, no data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.results import thresholds
from trainer.results.comparable import Run
from trainer.results.predictions import Predictions
from trainer.results.probability import prevalence
from trainer.training.run_dir import history_text

NAMES = ("any", "epidural", "subdural")


def predictions(skill: float = 2.0, seed: int = 0, patients: range = range(40), each: int = 12) -> Predictions:
    """`each` slices of `patients`, half of them bleeding; logits grow with `skill`, noise comes from `seed`.

    The truth depends on the patient alone, so that different seeds are different models on the same slices.
    """
    parts = [_patient(number, each) for number in patients]
    labels = np.concatenate([part[0] for part in parts])
    ids = pa.concat_tables([part[1] for part in parts])
    noise = np.random.default_rng([seed, patients.start]).normal(0, 1, labels.shape)
    logits = (skill * (labels - 0.5) + noise - 0.5).astype(np.float32)
    return Predictions(NAMES, "any", ids, labels, logits, 1 / (1 + np.exp(-logits.astype(np.float64))))


def _patient(number: int, each: int) -> tuple[np.ndarray, pa.Table]:
    rng = np.random.default_rng([99, number])
    subtypes = (rng.random((each, len(NAMES) - 1)) < 0.3 * (number % 2)).astype(np.int8)
    labels = np.concatenate([subtypes.max(axis=1, keepdims=True), subtypes], axis=1)
    study = [f"study_{number:03d}_{slice_number * 2 // each}" for slice_number in range(each)]
    columns = {
        "sop_uid": [f"ID_{number:03d}_{slice_number:02d}" for slice_number in range(each)],
        "study_uid": study,
        "series_uid": study,
        "patient_key": [f"key_{number:03d}"] * each,
        "slice_index": np.arange(each),
        "position_mm": np.arange(each, dtype=np.float32),
    }
    return labels, pa.table(columns)


def result(own: Predictions, split: str = "test", **what: Any) -> dict[str, Any]:
    """The parts of metrics.json that a comparison reads; `what` replaces those of its "what"."""
    settings = {
        "model": "cnn",
        "sampling": "balanced",
        "train_split": "train",
        "validation_split": "validation",
        "fold": 0,
        "folds": 0,
        "seed": 0,
    }
    at = own.names.index(own.any)
    shares = dict(zip(own.names, prevalence(own.labels).tolist()))
    chosen = thresholds.choose(own.labels[:, at], own.probabilities[:, at])
    return {
        "format": 2,
        "what": {
            "run": "named by its folder",
            "split": split,
            "dataset": {"name": "made_up", "version": "1.0.0", "fingerprint": "f" * 64},
            "trained_on": "f" * 64,
            "flip": False,
            "model": "cnn",
            "parameters": 1_234_567,
            "fold": None,
            "train": {"epochs": 3, "seconds": 75.0, "images_per_s": 812.0},
            **what,
            "settings": settings | what.get("settings", {}),
        },
        "measures": {
            "labels": {own.any: {"threshold": chosen.get("youden", 0.5), "rule": "youden"}},
            "skill": {"prevalence": shares},
        },
    }


def history(skill: float, epochs: int = 3) -> list[dict[str, float]]:
    """Rows of a history.csv."""
    return [
        {"epoch": epoch, "val_log_loss": 1 / (epoch + skill), "val_auc": 1 - 1 / (2 + epoch * skill)}
        for epoch in range(1, epochs + 1)
    ]


def run(name: str, own: Predictions, **what: Any) -> Run:
    """An evaluated run in memory."""
    return Run(name, result(own, **what), own, history(2.0))


def folds(name: str, skill: float, seed: int, count: int = 4, split: str = "validation") -> list[Run]:
    """A cross-validation of patients 0 to 39, each run evaluated on its own fold, or all on the same `split`."""
    of = {fold: range(fold * 40 // count, (fold + 1) * 40 // count) if split == "validation" else range(40)
          for fold in range(count)}  # fmt: skip
    settings = {"seed": seed, "folds": count, "name": name}
    return [
        run(f"{name}-fold{fold}", predictions(skill, seed + fold, patients), split=split, fold=[fold, count],
            settings=settings | {"fold": fold})
        for fold, patients in of.items()
    ]  # fmt: skip


def write(folder: Path, evaluated: Run) -> Path:
    """Put a run where `trainer.compare` looks for it; returns `folder`."""
    place = folder / "evaluation" / evaluated.what["split"]
    place.mkdir(parents=True)
    evaluated.predictions.write(place / "predictions.parquet")
    (place / "metrics.json").write_text(json.dumps(evaluated.result))
    (folder / "history.csv").write_text(history_text(evaluated.history))
    return folder
