"""Models side by side, from arrays and dicts to one dict: values, paired differences, and the sentence they allow.

Each resample draws the same patients for all models (Efron and Tibshirani 1993), so that a difference is not blurred
by which patients are hard. Among k models the best is read off the same slices, so the intervals of differences are
Bonferroni-corrected for all k(k-1)/2 pairs: a claim on the log loss holds whichever model came out best. The areas
beside it are not corrected for there being several metrics.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.results import bootstrap, study_level
from trainer.results.bootstrap import FEWEST_PATIENTS
from trainer.results.comparable import Model, Part, Run, align, doubts, group
from trainer.results.curves import roc_points
from trainer.results.probability import competition_weights
from trainer.results.ratings import (
    Rating,
    calibration_errors,
    decisions,
    known_patients,
    ratio,
    resampled,
    scale,
    telling,
)

Floats = npt.NDArray[np.float64]
Values = dict[str, Floats]
FEW_PATIENTS = 20  # of fewer nothing is claimed
WORSE, BETTER, UNCLEAR = "worse", "better", "unclear"
LUCK = (
    "Intervals tell of the patients that were drawn, not the luck of a training run: with another seed the same run "
    "comes out somewhat better or worse."
)
_AREAS = ("auc", "average_precision")
_PREVALENCE = "_of_prevalence"
_GRID = np.linspace(0, 1, 201)


def compare(runs: Sequence[Run], resamples: int, seed: int, anyway: bool) -> dict[str, Any]:
    """Everything that is shown of the runs. Raises `WrongUse` where they cannot be compared.

    "models": name, runs, folds, pooled, facts, settings, "values" (metric -> value, low, high, and of the runs of
    a cross-validation each one, their mean and sd), roc and history; "metrics": their titles; "best": the model
    with the lowest log loss, None where no log loss is defined; "differences" of the others to it;
    "known_patients": those with a known label; "too_few": why no difference can be claimed, or empty; "notes".
    """
    models, told = align(group(runs), anyway)
    slices = models[0].parts[0].predictions
    titles = metrics(slices.names, slices.any)
    values = [_values(model, resamples, seed) for model in models]
    carried = _carriers(models)
    best = _best([found["log_loss"][0] for found in values])
    pairs = len(models) * (len(models) - 1) // 2
    result = {
        "dataset": dict(models[0].runs[0].what["dataset"]),
        "split": models[0].runs[0].what["split"],
        "any": slices.any,
        "slices": len(slices),
        "studies": len(np.unique(slices.studies)),
        "patients": bootstrap.patients_in(slices.patients),
        "known_patients": known_patients(slices.labels, slices.patients),
        "resamples": resamples,
        "seed": seed,
        "level": bootstrap.LEVEL,
        "pairs": pairs,
        "pair_level": 1 - (1 - bootstrap.LEVEL) / max(pairs, 1),
        "metrics": titles,
        "compared": compared(slices.any),
        "models": [_shown(model, found, carried) for model, found in zip(models, values, strict=True)],
        "settings": _settings(models),
        "best": None if best is None else models[best].name,
    }
    result["too_few"] = too_few(result["known_patients"])
    result["differences"] = _differences(models, values, best, carried, result)
    return result | {"notes": _notes(models, told, result)}


def metrics(names: Sequence[str], any_name: str) -> dict[str, str]:
    """Metric -> title, in the order in which they are shown."""
    order = [any_name, *(name for name in names if name != any_name)]
    return {
        "log_loss": "log loss",
        "skill": "skill over the prevalence",
        "auc": "ROC AUC, mean",
        **{f"auc_{name}": f"ROC AUC, {name}" for name in order},
        "average_precision": "average precision, mean",
        **{f"average_precision_{name}": f"average precision, {name}" for name in order},
        f"sensitivity_{any_name}": f"sensitivity, {any_name}",
        f"specificity_{any_name}": f"specificity, {any_name}",
        f"study_auc_{any_name}": f"ROC AUC of studies, {any_name}",
        f"calibration_error_{any_name}": f"calibration error, {any_name}",
    }


def compared(any_name: str) -> dict[str, int]:
    """The metrics whose differences are shown: +1 where a higher value is better, -1 where a lower one is."""
    return {"log_loss": -1, "auc": 1, f"auc_{any_name}": 1}


# values


def _values(model: Model, resamples: int, seed: int) -> Values:
    """Metric -> float64 [1 + resamples], the value on the slices as they are and on each resample."""
    names = averaged(model.parts)
    parts = [part_values(part, names, resamples, seed) for part in model.parts]
    return {metric: np.mean([part[metric] for part in parts], axis=0) for metric in parts[0]}


def averaged(parts: Sequence[Part]) -> list[str]:
    """The labels with slices of both values in each of the parts: a mean over others would be another measure."""
    names = parts[0].predictions.names
    both = [[set(column) >= {0, 1} for column in part.predictions.labels.T] for part in parts]
    return [name for name, defined in zip(names, zip(*both), strict=True) if all(defined)]


def part_values(part: Part, names: Sequence[str], resamples: int, seed: int) -> Values:
    """Metric -> float64 [1 + resamples] of one part; `names`: the labels whose areas are averaged.

    nan where a resample lacks a value of the label.
    """
    slices, any_name = part.predictions, part.predictions.any
    ratings, studies, decided = _ratings(part)
    *labels, of_studies, called = resampled([*ratings.values(), studies, decided], slices.patients, resamples, seed)
    of = dict(zip(ratings, labels, strict=True))
    rates = decisions(called["confusion"])
    areas = {f"{area}_{name}": of[name][area] for area in _AREAS for name in of}
    log_loss = _log_loss(of, any_name, "")
    return areas | {
        "log_loss": log_loss,
        "skill": 1 - ratio(log_loss, _log_loss(of, any_name, _PREVALENCE)),
        **{area: _mean([areas[f"{area}_{name}"] for name in names], 1 + resamples) for area in _AREAS},
        **{f"{rate}_{any_name}": rates[rate] for rate in ("sensitivity", "specificity")},
        f"study_auc_{any_name}": of_studies["auc"],
        f"calibration_error_{any_name}": calibration_errors(of[any_name], ""),
    }


def _carriers(models: Sequence[Model]) -> dict[str, int]:
    """Metric -> how many patients carry it, see `Rating.carriers`; the models have the same slices and labels."""
    every = [_carriers_of(part, averaged(model.parts)) for model in models for part in model.parts]
    return {metric: min(of[metric] for of in every) for metric in every[0]}


def _carriers_of(part: Part, names: Sequence[str]) -> dict[str, int]:
    ratings, studies, _ = _ratings(part)
    slices, own = part.predictions, ratings[part.predictions.any]
    areas = {name: rating.carriers("auc") for name, rating in ratings.items()}
    known = known_patients(slices.labels, slices.patients)
    loss = telling(known, max(rating.rarer for rating in ratings.values()))
    return {
        **dict.fromkeys(("log_loss", "skill"), loss),
        **{area: min((areas[name] for name in names), default=0) for area in _AREAS},
        **{f"{area}_{name}": found for area in _AREAS for name, found in areas.items()},
        **{f"{of}_{slices.any}": own.carriers(of) for of in ("sensitivity", "specificity", "calibration_error")},
        f"study_auc_{slices.any}": studies.carriers("auc"),
    }


def _ratings(part: Part) -> tuple[dict[str, Rating], Rating, Rating]:
    """One of each label, one of the studies for `any`, and one of the decisions on `any`."""
    slices, at = part.predictions, part.predictions.any_index
    columns = range(len(slices.names))
    labels = [Rating(slices.labels[:, i], slices.probabilities[:, i], slices.patients) for i in columns]
    for rating, shown, prevalence in zip(labels, slices.probabilities.T, part.prevalence.T, strict=True):
        rating.add_calibration("", shown)
        rating.add_losses(_PREVALENCE, prevalence)
    truth, shown, patients = study_level.studies(slices)
    of_studies = Rating(truth[:, at], shown[:, at], patients)
    # the runs of a cross-validation have thresholds of their own, so decisions are pooled, not probabilities
    called = Rating(slices.labels[:, at], part.flagged.astype(np.float64), slices.patients)
    called.add_confusion("confusion", 0.5)
    return dict(zip(slices.names, labels, strict=True)), of_studies, called


def _log_loss(of: Mapping[str, Mapping[str, Floats]], any_name: str, suffix: str) -> Floats:
    weights = dict(zip(of, competition_weights(of, any_name)))
    keys = (f"log_loss{suffix}", "known")
    return ratio(*(sum(weight * of[name][key][:, 0] for name, weight in weights.items()) for key in keys))


def _mean(areas: Sequence[Floats], rows: int) -> Floats:
    """Mean over the labels, nan where one of them is."""
    return np.mean(areas, axis=0) if areas else np.full(rows, np.nan)


def _shown(model: Model, found: Values, carried: Mapping[str, int]) -> dict[str, Any]:
    values = {metric: _value(metric, drawn, carried[metric]) for metric, drawn in found.items()}
    if model.folds:
        runs = model.by_run
        names = averaged([part for _, part in runs])
        of_runs = {run.name: part_values(part, names, 0, 0) for run, part in runs}
        for metric in values:
            values[metric] |= _spread({name: float(own[metric][0]) for name, own in of_runs.items()})
    return {
        "name": model.name,
        "runs": [run.name for run in model.runs],
        "folds": model.folds,
        "pooled": model.pooled,
        "facts": _facts(model.runs),
        "values": values,
        "roc": _roc(model),
        "history": _history(model.runs),
    }


def _value(metric: str, drawn: Floats, patients: int) -> dict[str, Any]:
    if metric == "skill":
        high, low = (1 - end for end in bootstrap.interval(1 - drawn, bootstrap.LOSS, patients))
    else:
        low, high = bootstrap.interval(drawn, scale(metric), patients)
    return {"value": float(drawn[0]), "low": low, "high": high}


def _spread(of_runs: Mapping[str, float]) -> dict[str, Any]:
    """Each run's value, their mean, and their standard deviation (n - 1), over the runs that have one."""
    every = np.array(list(of_runs.values()))
    defined = every[~np.isnan(every)]
    mean = float(defined.mean()) if len(defined) else float("nan")
    sd = float(defined.std(ddof=1)) if len(defined) > 1 else float("nan")
    return {"of_runs": dict(of_runs), "mean": mean, "sd": sd}


# what else is known of a model


def _facts(runs: Sequence[Run]) -> dict[str, Any]:
    """Network, sampling, parameters and cost; numbers are means over the runs, nan where none is known."""
    whats = [run.what for run in runs]
    train = {key: _mean_known([what["train"].get(key) for what in whats]) for key in ("epochs", "seconds")}
    return {
        "network": _joined([what["model"] for what in whats]),
        "sampling": _joined([what["settings"].get("sampling", "") for what in whats]),
        "flip": _joined(["yes" if what["flip"] else "no" for what in whats]),
        "parameters": _mean_known([what["parameters"] for what in whats]),
        **train,
        "images_per_s": _mean_known([what["train"].get("images_per_s") for what in whats]),
    }


def _mean_known(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


def _joined(words: Sequence[object]) -> str:
    return ", ".join(dict.fromkeys(map(str, words)))


def _settings(models: Sequence[Model]) -> dict[str, list[str]]:
    """Setting -> its words for each model, of the settings in which the models differ; the fold is left out."""
    every = dict.fromkeys(key for model in models for key in model.runs[0].what["settings"] if key != "fold")
    words = {
        key: [_joined([_plain(run.what["settings"].get(key)) for run in model.runs]) for model in models]
        for key in every
    }
    return {key: row for key, row in words.items() if len(set(row)) > 1}


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _roc(model: Model) -> list[list[float]]:
    """False and true positive rates of `any`; both empty where they are not defined.

    Of a model with several parts the mean sensitivity at each false positive rate (Fawcett 2006).
    """
    curves = [_curve(part) for part in model.parts]
    if len(curves) == 1 or not all(len(rates[0]) for rates in curves):
        return [rates.tolist() for rates in curves[0]]
    heights = np.mean([np.interp(_GRID, *rates) for rates in curves], axis=0)
    return [[0.0, *_GRID.tolist()], [0.0, *heights.tolist()]]


def _curve(part: Part) -> tuple[Floats, Floats]:
    slices = part.predictions
    return roc_points(slices.labels[:, slices.any_index], slices.probabilities[:, slices.any_index])


def _history(runs: Sequence[Run]) -> list[dict[str, float]]:
    """Validation log loss and mean AUC by epoch: their means over the runs, of the epochs that all of them have."""
    by_run = [{row["epoch"]: row for row in run.history if "epoch" in row} for run in runs]
    epochs = sorted(set.intersection(*(set(rows) for rows in by_run)))
    columns = ("val_log_loss", "val_auc")
    return [
        {
            "epoch": epoch,
            **{key: float(np.mean([rows[epoch].get(key, np.nan) for rows in by_run])) for key in columns},
        }
        for epoch in epochs
    ]


# differences


def _best(log_losses: Sequence[float]) -> int | None:
    """The model with the lowest log loss, the first of equal ones; None where one is not defined, or alone."""
    if len(log_losses) < 2 or np.isnan(log_losses).any():
        return None
    return int(np.argmin(log_losses))


def too_few(patients: int) -> str:
    """Why no interval can show a difference; the empty text where it can. `patients`: those with a known label."""
    if patients >= FEW_PATIENTS:
        return ""
    words = "patient with a known label is" if patients == 1 else "patients with a known label are"
    return f"{patients} {words} too few ({FEW_PATIENTS} at least)"


def _differences(
    models: Sequence[Model],
    values: Sequence[Values],
    best: int | None,
    carried: Mapping[str, int],
    result: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Of each other model to the best: metric -> value (other - best), low, high, worse, reading."""
    if best is None:
        return []
    level, signs = result["pair_level"], result["compared"]
    found = []
    for at, model in enumerate(models):
        if at != best:
            of = {
                key: difference(values[at][key] - values[best][key], signs[key], carried[key], level) for key in signs
            }
            if result["too_few"]:
                of = {key: value | {"reading": UNCLEAR} for key, value in of.items()}
            found.append({"name": model.name, "values": of})
    return found


def difference(drawn: Floats, sign: int, patients: int, level: float) -> dict[str, Any]:
    """What differences (float64 [1 + r], the first on the slices as they are) say of a model beside the best.

    `sign`: +1 where a higher value is better; `patients`: how many carry the metric. "worse": share of the resamples
    in which it is worse. "reading": worse, better, or unclear where the interval of `level` includes 0 or is not
    defined.
    """
    low, high = bootstrap.interval(drawn, bootstrap.DIFFERENCE, patients, level)
    found = {"value": float(drawn[0]), "low": low, "high": high}
    resamples = drawn[1:] if patients >= FEWEST_PATIENTS else drawn[:0]
    defined = resamples[~np.isnan(resamples)]
    worse = float((sign * defined < 0).mean()) if len(defined) else float("nan")
    reading = UNCLEAR
    if found["low"] > 0 or found["high"] < 0:
        reading = BETTER if sign * found["low"] > 0 else WORSE
    return found | {"worse": worse, "reading": reading}


def _notes(models: Sequence[Model], told: Sequence[str], result: Mapping[str, Any]) -> list[str]:
    """What a reader must know beside the numbers."""
    notes = []
    if told:
        what = f"{result['slices']:,} slices"
        notes.append(f"The runs differ in {'; '.join(told)}. Only what they share is compared: {what}.")
    notes += doubts(models)
    notes += [words for model in result["models"] if (words := _unskilled(model, result["level"]))]
    values = [value for model in result["models"] for value in model["values"].values()]
    if any(math.isnan(value["low"]) and not math.isnan(value["value"]) for value in values):
        notes.append(
            f"A value stands without an interval where fewer than {FEWEST_PATIENTS} patients carry what it needs."
        )
    return [*notes, LUCK]


def _unskilled(model: Mapping[str, Any], level: float) -> str:
    """Why no skill of a model can be claimed; the empty text where it can be, or where nothing is known."""
    skill = model["values"]["skill"]
    if math.isnan(skill["value"]) or skill["low"] > 0:
        return ""
    if math.isnan(skill["low"]):
        return f"{model['name']}: whether it knows more than the prevalence cannot be told; its skill has no interval."
    interval = f"{level:.0%} interval {skill['low']:.3f} to {skill['high']:.3f}"
    return f"{model['name']} shows no skill over the prevalence: {skill['value']:.3f} ({interval})."
