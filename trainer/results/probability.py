"""Probabilities of logits, and what they cost: the log loss of RSNA 2019 (Kaggle, "Evaluation"); float64, numpy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

CLIP = 1e-15  # of probabilities; float32 cannot tell 1 - 1e-15 from 1
ANY_WEIGHT = 2.0  # of the label any in the competition; the others weigh 1

_Numbers = npt.NDArray[np.float64]


def sigmoid(logits: Any) -> _Numbers:
    """float64, of the shape of `logits`: 1 / (1 + exp(-logit))."""
    # beyond 700 exp overflows, and nothing that is shown can tell the difference
    return 1 / (1 + np.exp(-np.clip(np.asarray(logits, np.float64), -700, 700)))


def logit(probabilities: Any) -> _Numbers:
    """float64, of the shape of `probabilities`, which lie between 0 and 1: what `sigmoid` makes them of."""
    values = np.asarray(probabilities, np.float64)
    return np.log(values) - np.log1p(-values)


def competition_weights(names: Iterable[str], any_name: str) -> list[float]:
    """Weight of each label in the competition's loss."""
    return [ANY_WEIGHT if name == any_name else 1.0 for name in names]


def log_losses(positive: Any, probabilities: Any) -> _Numbers:
    """float64, -log of the probability, clipped, given to what is so; `positive`: bool, of the shape of the other."""
    clipped = np.clip(np.asarray(probabilities, np.float64), CLIP, 1 - CLIP)
    return -np.where(np.asarray(positive, bool), np.log(clipped), np.log1p(-clipped))


def prevalence(labels: Any) -> _Numbers:
    """float64 [L], the share of positives that the known labels (integers [n, L], -1 for unknown) let one expect.

    (ones + 1/2) / (known + 1), the estimate of Krichevsky and Trofimov (1981): never 0 or 1, and 1/2 where none is
    known. It is what a model that knows nothing of a slice says of it.
    """
    labels = np.asarray(labels)
    ones = np.count_nonzero(labels == 1, axis=0)
    return (ones + 0.5) / (np.count_nonzero(labels >= 0, axis=0) + 1)
