"""From slices to studies: a study is as urgent as its worst slice."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainer.results.predictions import Predictions


def studies(
    predictions: Predictions,
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Labels int8 [m, L], probabilities float64 [m, L] and patients int64 [m] of the studies, by sorted UID.

    Both are the maximum over the slices of the study. A label is -1 where some slices are unknown and none is
    positive. The codes of the patients are those of `predictions.patients`.
    """
    order = np.argsort(predictions.studies, kind="stable")
    starts = np.flatnonzero(np.diff(predictions.studies[order], prepend=-1))
    labels = predictions.labels[order]
    most, least = (extreme.reduceat(labels, starts, axis=0) for extreme in (np.maximum, np.minimum))
    shown = np.maximum.reduceat(predictions.probabilities[order], starts, axis=0)
    return np.where(most == 1, most, least), shown, predictions.patients[order][starts]
