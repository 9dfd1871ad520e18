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

    Both are the maximum over the slices of the study. A label is -1 where some slices are unknown and none is
    positive. The codes of the patients are those of `predictions.patients`.
    """
    whose = predictions.studies
    shown, patients = (greatest(values, whose) for values in (predictions.probabilities, predictions.patients))
    return labels(predictions.labels, whose), shown, patients


def labels(known: npt.NDArray[Any], whose: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """[m, L], those of studies as in `studies`; `known` integers [n, L] of slices, `whose` int64 [n] as below."""
    most, least = greatest(known, whose), -greatest(-known, whose)
    return np.where(most == 1, most, least)


def greatest(values: npt.NDArray[Any], whose: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """[m, ...], the maximum of `values` [n, ...] over the rows of each study; `whose` int64 [n], 0 to m - 1."""
    order = np.argsort(whose, kind="stable")
    starts = np.flatnonzero(np.diff(whose[order], prepend=-1))
    found: npt.NDArray[Any] = np.maximum.reduceat(values[order], starts, axis=0)
    return found
