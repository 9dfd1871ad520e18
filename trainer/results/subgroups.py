"""How good a model is in each group of slices: scanner, kernel, thickness, or whatever column says who is alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.results import bootstrap, measures, study_level
from trainer.results.predictions import Predictions
from trainer.results.ratings import Rating, resampled
from trainer.results.thresholds import headline

MOST_VALUES = 12  # of numbers that stand for themselves; more are cut into four groups of about one size
PARTS = 4
UNKNOWN = "unknown"


def codes(values: Sequence[Any]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Names of the groups, and the group of each value, int64 [n].

    `values`: texts, or numbers, or None where nothing is known. Words are sorted, numbers ascend, and what is unknown
    comes last.
    """
    known = [value for value in values if not _is_unknown(value)]
    if not known:
        return [UNKNOWN], np.zeros(len(values), np.int64)
    if all(isinstance(value, (int, float)) for value in known):
        names, found = _of_numbers(np.array([np.nan if _is_unknown(one) else one for one in values], np.float64))
    else:
        texts = np.array([UNKNOWN if _is_unknown(one) else str(one) for one in values], object).astype(str)
        words = sorted({str(one) for one in known} - {UNKNOWN})
        place = {word: at for at, word in enumerate(words)}
        names, found = words, np.array([place.get(text, len(words)) for text in texts], np.int64)
    return names + [UNKNOWN] * bool((found == len(names)).any()), found


def measured(
    predictions: Predictions,
    names: Sequence[str],
    group: npt.NDArray[np.int64],
    study_thresholds: Mapping[str, Mapping[str, float]],
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """One entry a group that has slices: its size, log loss over slices, and how studies are told by the label `any`.

    `group`: int64 [n], into `names`. A study counts in a group by its slices of that group. Values are as in
    `measures.measure`.
    """
    every = [(name, np.flatnonzero(group == at)) for at, name in enumerate(names)]
    return [
        {"group": name, **_one(predictions.take(rows), study_thresholds, resamples, seed)}
        for name, rows in every
        if len(rows)
    ]


def worst(groups: Sequence[Mapping[str, Any]]) -> str:
    """The group whose studies are told worst by AUC, of those with an interval; "" where fewer than two have one."""
    told = [one for one in groups if one["study_auc"]["low"] is not None]
    return str(min(told, key=lambda one: one["study_auc"]["value"])["group"]) if len(told) > 1 else ""


def _one(found: Predictions, study_thresholds: Any, resamples: int, seed: int) -> dict[str, Any]:
    at = found.any_index
    labels, shown, patients = study_level.studies(found)
    slices, studies = (
        Rating(known[:, at], said[:, at], whose)
        for known, said, whose in ((found.labels, found.probabilities, found.patients), (labels, shown, patients))
    )
    slices.add_losses("", found.probabilities[:, at])
    studies.add_confusion("confusion", headline(study_thresholds[found.any])[1])
    of_slices, of_studies = resampled([slices, studies], found.patients, resamples, seed)
    return {
        "slices": len(found),
        "studies": len(labels),
        "patients": bootstrap.patients_in(found.patients),
        "positive_studies": studies.positives,
        **measures.of_group(slices, of_slices, studies, of_studies),
    }


def _of_numbers(values: npt.NDArray[np.float64]) -> tuple[list[str], npt.NDArray[np.int64]]:
    known = values[~np.isnan(values)]
    distinct = np.unique(known)
    if len(distinct) <= MOST_VALUES:
        found = np.where(np.isnan(values), len(distinct), np.searchsorted(distinct, values))
        return [f"{value:g}" for value in distinct], found.astype(np.int64)
    edges = np.unique(np.quantile(known, np.arange(1, PARTS) / PARTS, method="inverted_cdf"))
    part = np.searchsorted(edges, values, side="left")
    parts = [values[(part == at) & ~np.isnan(values)] for at in range(len(edges) + 1)]
    kept = [at for at, one in enumerate(parts) if len(one)]
    place = np.full(len(edges) + 1, -1)
    place[kept] = np.arange(len(kept))
    names = [f"{parts[at].min():g} to {parts[at].max():g}" for at in kept]
    return names, np.where(np.isnan(values), len(names), place[part]).astype(np.int64)


def _is_unknown(value: Any) -> bool:
    return value is None or value == "" or value != value
