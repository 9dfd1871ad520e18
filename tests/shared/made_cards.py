"""What a model card is made of: a model that nobody trained, and an evaluation of it."""

from __future__ import annotations

import dataclasses

import numpy as np
from made_predictions import predictions_of

from ich_tfrecords import spec
from trainer.models.model_file import About
from trainer.results import calibration, measures

RSNA = spec.load("rsna_ich")
LABELS = RSNA.labels.names
FINGERPRINT = "0123456789abcdef" * 4
SETTINGS = {
    "model": "densenet121",
    "architecture": {"dropout": 0.1},
    "train_split": "train",
    "validation_split": "validation",
    "fold": 0,
    "folds": 0,
}
FACTS = {"parameters": 7_654_321, "epoch": 9, "versions": {"tensorflow": "2.21.0", "keras": "3.15.1"}}


def about(**changes: object) -> About:
    refused = {LABELS[1]: "no positive slice among the 12 with a known label"}
    slope, intercept = np.array([0.5, 1, 1.25, 1, 1, 1]), np.array([0.75, 0, 0, 0, 0, 0])
    fitted = calibration.Calibration(LABELS, np.arange(6) / 8, slope, intercept, refused)
    chosen = {name: {"youden": 0.123456, "f1": 0.25, "even": 0.5} for name in LABELS} | {LABELS[1]: {"even": 0.5}}
    return dataclasses.replace(About(RSNA, FINGERPRINT, SETTINGS, fitted, chosen, chosen, FACTS), **changes)


def result_of() -> dict:
    """What an evaluation of 24 patients tells; the label at 1 has no positive slice."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (240, 6))
    labels[:, 1] = 0
    shown = np.clip(0.3 * labels + 0.6 * rng.random((240, 6)), 0.01, 0.99)
    found = predictions_of(labels, shown, np.arange(240) // 10)
    measured = measures.measure(
        found, shown, about().thresholds, about().thresholds, dict.fromkeys(LABELS, 0.4), 100, 0
    )
    dataset = {"name": "rsna_ich", "version": "1.0.0", "fingerprint": FINGERPRINT}
    return {"what": {"split": "test", "dataset": dataset, "flip": False}, "measures": measured}
