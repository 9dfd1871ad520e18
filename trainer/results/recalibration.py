"""The calibration of a run as it is, and fitted anew on some patients of another hospital; the rest test both."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from ich_tfrecords.dataset import splits
from ich_tfrecords.plural import counted
from trainer.results import bootstrap, calibration, joint, measures, study_level
from trainer.results.calibration import Calibration
from trainer.results.predictions import Predictions
from trainer.results.probability import logit
from trainer.results.ratings import Rating, resampled
from trainer.shell.problems import WrongUse

_Numbers = npt.NDArray[np.float64]
SLICES, STUDIES = "slices", "studies"


@dataclasses.dataclass(frozen=True, eq=False)
class Said:
    """What a run says of slices or studies: `labels` integers [n, L], -1 for unknown, its own `probabilities` and
    the natural `log_odds` behind them, float64 [n, L], and `patients` int64 [n], 0 to P - 1."""

    names: tuple[str, ...]
    any_index: int
    labels: npt.NDArray[Any]
    probabilities: _Numbers
    log_odds: _Numbers
    patients: npt.NDArray[np.int64]


def drawn(predictions: Predictions, share: float) -> npt.NDArray[np.bool_]:
    """bool [n], the slices of about that `share` of the patients; which ones follows from their keys alone."""
    groups = splits.groups(predictions.ids)
    hashed = splits.hash64("recalibrate", groups.keys.to_pylist()).astype(np.float64)
    return (hashed < share * 2.0**64)[groups.of_row]


def said(predictions: Predictions, log_odds: _Numbers) -> tuple[str, Said]:
    """Of the slices, or where no label of any is known, of the studies by their greatest slice."""
    of_all = (predictions.names, predictions.any_index)
    if (predictions.labels >= 0).any():
        labels, shown = predictions.labels, predictions.probabilities
        return SLICES, Said(*of_all, labels, shown, log_odds, predictions.patients)
    labels, shown, patients = study_level.studies(predictions)
    return STUDIES, Said(*of_all, labels, shown, logit(np.clip(shown, 1e-9, 1 - 1e-9)), patients)


def anew(part: Said) -> Calibration:
    """Fitted on `part`. Raises `WrongUse` where no label can be."""
    some = np.full(len(part.names), 0.5)  # of labels that are refused, which keep what they have
    found = calibration.fit(part.names, part.labels, part.log_odds, 0 * some, part.patients, some)
    if len(found.refused) == len(part.names):
        patients = counted(len(np.unique(part.patients)), "patient", "patients")
        why = next(iter(found.refused.items()))
        raise WrongUse(f"no label can be calibrated on {patients}: {why[0]} has {why[1]}; take a greater share")
    return found


def compared(part: Said, rest: Said, resamples: int, seed: int) -> dict[str, Any]:
    """Label -> log loss and calibration error of the `rest`, as it is (`_before`) and fitted anew on `part`.

    A label that cannot be fitted there keeps what it has, and `kept` says why. Raises `WrongUse`.
    """
    found = anew(part)
    fits = np.array([name not in found.refused for name in rest.names])
    shown = np.where(fits, found.probabilities(rest.log_odds), rest.probabilities)
    shown = joint.coherent(shown, rest.any_index)
    ratings = {}
    for at, name in enumerate(rest.names):
        ratings[name] = Rating(rest.labels[:, at], rest.probabilities[:, at], rest.patients)
        ratings[name].add_calibration("", shown[:, at])
        ratings[name].add_calibration("_before", rest.probabilities[:, at])
    every = resampled(list(ratings.values()), rest.patients, resamples, seed)
    return {
        "fitted_on": bootstrap.patients_in(part.patients),
        "tested_on": bootstrap.patients_in(rest.patients),
        "labels": {
            name: {
                **measures.of_calibration(rating, one),
                "slope": float(found.slope[at]),
                "intercept": float(found.intercept[at]),
                "kept": found.refused.get(name, ""),
            }
            for at, ((name, rating), one) in enumerate(zip(ratings.items(), every))
        },
    }
