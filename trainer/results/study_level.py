"""From slices to studies: a study is as urgent as its worst slice."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.results.predictions import Predictions


def studies(
    predictions: Predictions,
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Labels int8 [m, L], probabilities float64 [m, L] and patients int64 [m] of the studies, by sorted UID.

    The probability is the maximum over the slices of the study, the label that of `labels`. The codes of the patients
    are those of `predictions.patients`.
    """
    whose = predictions.studies
    shown, patients = (greatest(values, whose) for values in (predictions.probabilities, predictions.patients))
    return labels(predictions.labels, whose, predictions.study_labels), shown, patients


def labels(
    known: npt.NDArray[Any], whose: npt.NDArray[np.int64], study_labels: npt.NDArray[Any] | None = None
) -> npt.NDArray[Any]:
    """[m, L], of each study: what is known of it as a whole, else what follows from its slices.

    From slices follows 1 where one is positive, 0 where all are negative, else -1. `known` integers [n, L] of slices,
    `study_labels` integers [n, L] of the study of each, -1 for unknown; `whose` int64 [n], 0 to m - 1.
    """
    most, least = greatest(known, whose), -greatest(-known, whose)
    found = np.where(most == 1, most, least)
    if study_labels is None:
        return found
    whole = greatest(study_labels, whose)
    return np.where(whole >= 0, whole, found)


def greatest(values: npt.NDArray[Any], whose: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """[m, ...], the maximum of `values` [n, ...] over the rows of each study; `whose` int64 [n], 0 to m - 1."""
    order = np.argsort(whose, kind="stable")
    starts = np.flatnonzero(np.diff(whose[order], prepend=-1))
    found: npt.NDArray[Any] = np.maximum.reduceat(values[order], starts, axis=0)
    return found
