"""Predictions for tests of the measures, from arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.results.predictions import Predictions

NAMES = ("any", "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")


def predictions_of(
    labels: Any, probabilities: Any, patients: Sequence[Any], studies: Sequence[str] | None = None
) -> Predictions:
    """`Predictions` of the first labels of `NAMES`, as many as there are columns; without `studies` one a patient."""
    labels, probabilities = np.asarray(labels, np.int8), np.asarray(probabilities, np.float64)
    size, width = labels.shape
    keys = [f"{patient:04d}" for patient in patients]
    ids = {
        "sop_uid": [f"ID_{row}" for row in range(size)],
        "study_uid": studies or keys,
        "series_uid": studies or keys,
        "patient_key": keys,
        "slice_index": np.arange(size),
        "position_mm": np.arange(size, dtype=np.float32),
    }
    inside = np.clip(probabilities, 1e-15, 1 - 1e-15)
    logits = (np.log(inside) - np.log1p(-inside)).astype(np.float32)
    return Predictions(NAMES[:width], NAMES[0], pa.table(ids), labels, logits, probabilities)


def made(patients: int, seed: int, slices: int = 12) -> Predictions:
    """Of a model that is right: labels `any` and two kinds, drawn with the probabilities that it says."""
    rng = np.random.default_rng(seed)
    kinds = 1 / (1 + np.exp(-rng.normal(-1.5, 1.5, (patients * slices, 2))))
    drawn = rng.random(kinds.shape) < kinds
    labels = np.column_stack([drawn.any(axis=1), drawn])
    shown = np.column_stack([1 - (1 - kinds).prod(axis=1), kinds])
    return predictions_of(labels, shown, np.repeat(np.arange(patients), slices).tolist())
