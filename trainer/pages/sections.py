"""What the sections of the page of an evaluation show, each from its part of metrics.json: tables, images, texts.

A value that is not defined is a dash, and its reason is among those that are `missing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ich_tfrecords.views.html_page import Image, Table
from trainer.pages import figures, plots
from trainer.pages.figures import DASH
from trainer.results import calibration, curves
from trainer.results.predictions import Predictions
from trainer.results.thresholds import EVEN

BAND_RESAMPLES = 200  # of the patients, for the bands of the curves; a picture needs fewer than a number
_SEED = 0

Measures = Mapping[str, Any]
Shown = Mapping[str, Any]  # in a section


def training(what: Measures, history: Sequence[Mapping[str, float]]) -> Image | None:
    """Loss, accuracy, AUC and learning rate by epoch, where there is a history. `what`: that part of metrics.json."""
    if not history:
        return None
    best = best_epoch(history, what["settings"]["monitor"])
    alt = f"Loss, accuracy, AUC and learning rate by epoch, {len(history)} epochs, the best {best}"
    return figures.image(plots.curves(history, best), alt)


def best_epoch(history: Sequence[Mapping[str, float]], monitor: str) -> int | None:
    """The epoch with the best validation value of `monitor`, the first of equals; None without validation."""
    from trainer.training.metrics import better

    values = np.array([row.get(f"val_{monitor}", np.nan) for row in history]) * better(monitor)
    return None if np.isnan(values).all() else int(history[int(np.nanargmax(values))]["epoch"])


# numbers


def _interval(value: Mapping[str, float | None]) -> str:
    return figures.with_interval(value["value"], value["low"], value["high"])


def cell(value: Mapping[str, float | None]) -> str:
    """Value and interval for a table; a narrow cell breaks before the bracket and nowhere else."""
    return _interval(value).replace(" to ", "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}")


def _number(value: float | None) -> str:
    return figures.with_interval(value, None, None)


def _threshold(value: float, rule: str) -> str:
    return f"{value:.3g} ({RULES[rule]})"


RULES = {
    "youden": "Youden",
    "f1": "greatest F1",
    "sensitivity_95": "sensitivity 0.95",
    "specificity_95": "specificity 0.95",
    "even": "one half",
}


def labels(measures: Measures) -> Shown:
    """Every measure of every label, with intervals."""
    every = measures["labels"]
    ranked = ("log_loss", "auc", "average_precision", "calibration_error")
    heads = ["label", "known", "positive", "log loss", "ROC AUC", "average precision", "calibration error"]
    return {
        "probabilities": _table(heads, every, ranked),
        "decisions": _decisions(every),
        "missing": _missing(every),
    }


def skill(measures: Measures) -> Mapping[str, Table]:
    """Log losses and Brier scores beside those of one who knows nothing but how often each label is positive."""
    found = measures["skill"]
    every = {"all labels": found["overall"], **found["labels"]}
    shares = {name: f"{share:.3g}" for name, share in found["prevalence"].items()}
    heads = ["label", "prevalence", "of the model", "of the prevalence", "skill"]
    kinds = {
        "Log loss": ("log_loss", "log_loss_of_prevalence", "skill"),
        "Brier score": ("brier", "brier_of_prevalence", "brier_skill"),
    }
    return {
        title: Table(
            heads, [[name, shares.get(name, ""), *(cell(one[key]) for key in keys)] for name, one in every.items()]
        )
        for title, keys in kinds.items()
    }


def studies(measures: Measures, foreseen: Measures) -> Shown:
    """Every measure at the level of studies, with intervals."""
    every = measures["studies_level"]
    heads = ["label", "known", "positive", "ROC AUC", "average precision"]
    return {
        "ranking": _table(heads, every, ("auc", "average_precision")),
        "decisions": _decisions(every),
        "missing": _missing(every),
        "foreseen": _foreseen(foreseen.get("studies", {})),
        "ways": _ways(every, measures.get("studies_by", {})),
    }


def _ways(greatest: Mapping[str, Measures], ways: Mapping[str, Mapping[str, Measures]]) -> Table | None:
    """The areas of studies judged by their greatest slice and in other ways; None where there is no other."""
    if not ways:
        return None
    told = [(f"by {way}", f"{way} - greatest slice") for way in ways]
    rows = [
        [name, cell(label["auc"]), *(cell(ways[way][name][key]) for way in ways for key in ("auc", "auc_gain"))]
        for name, label in greatest.items()
    ]
    return Table(["label", "ROC AUC by greatest slice", *(head for heads in told for head in heads)], rows)


def _table(heads: Sequence[str], every: Mapping[str, Measures], keys: Sequence[str]) -> Table:
    rows = [
        [name, f"{label['known']:,}", f"{label['positives']:,}", *(cell(label[key]) for key in keys)]
        for name, label in every.items()
    ]
    return Table(heads, rows)


def _decisions(every: Mapping[str, Measures]) -> Table:
    """What comes of the thresholds; recall is sensitivity."""
    keys = ("sensitivity", "specificity", "accuracy", "precision", "f1")
    heads = ["label", "threshold", "sensitivity (recall)", "specificity", "accuracy", "precision", "F1"]
    rows = [[name, f"{one['threshold']:.3g}", *(cell(one[key]) for key in keys)] for name, one in every.items()]
    return Table(heads, rows)


def _missing(every: Mapping[str, Measures]) -> list[str]:
    """Why some values are a dash, or stand without an interval."""
    return [f"{name}: {label['note']}" for name, label in every.items() if label["note"]]


# curves


def roc(measures: Measures, predictions: Predictions) -> Image:
    """ROC curve of each label."""

    def curve(label: Measures, truth: Any, shown: Any) -> plots.Curve:
        band = curves.roc_band(truth, shown, predictions.patients, BAND_RESAMPLES, _SEED)
        point = (1 - label["specificity"]["value"], label["sensitivity"]["value"])
        return plots.Curve(f"AUC {_interval(label['auc'])}", *curves.roc_points(truth, shown), band, point)

    panels = _curve_panels(measures, predictions, curve)
    return figures.image(plots.roc(panels), f"ROC of each label: {_spoken(panels)}")


def precision_recall(measures: Measures, predictions: Predictions) -> Image:
    """Precision over recall of each label."""

    def curve(label: Measures, truth: Any, shown: Any) -> plots.Curve:
        band = curves.pr_band(truth, shown, predictions.patients, BAND_RESAMPLES, _SEED)
        precision, share = label["precision"]["value"], label["positives"] / label["known"]
        point = None if precision is None else (label["recall"]["value"], precision)
        words = f"AP {_interval(label['average_precision'])}, {100 * share:.2g}% positive"
        return plots.Curve(words, *curves.pr_points(truth, shown), band, point, share)

    panels = _curve_panels(measures, predictions, curve)
    return figures.image(plots.precision_recall(panels), f"Precision and recall of each label: {_spoken(panels)}")


def _curve_panels(
    measures: Measures, predictions: Predictions, curve: Callable[[Measures, Any, Any], plots.Curve]
) -> dict[str, plots.Curve | str]:
    """What to draw of each label, or why there is nothing."""
    panels: dict[str, plots.Curve | str] = {}
    for at, name in enumerate(predictions.names):
        label, shown = measures["labels"][name], predictions.probabilities[:, at]
        defined = label["auc"]["value"] is not None
        no_curve = f"no curve: {label['note']}"
        panels[name] = curve(label, predictions.labels[:, at], shown) if defined else no_curve
    return panels


def _spoken(panels: Mapping[str, Any]) -> str:
    """What the panels show, for those who do not see them."""
    return "; ".join(f"{name} {getattr(panel, 'words', panel)}" for name, panel in panels.items())


# decisions and probabilities


def confusions(measures: Measures) -> Image:
    """Confusion matrix of each label at the threshold chosen on validation."""
    panels: dict[str, plots.Counts | str] = {
        name: plots.Counts(f"threshold {_threshold(label['threshold'], label['rule'])}", **label["confusion"])
        if label["known"]
        else label["note"]
        for name, label in measures["labels"].items()
    }
    words = "; ".join(f"{name} {label['confusion']}" for name, label in measures["labels"].items())
    return figures.image(plots.confusion(panels), f"Confusion matrix of each label: {words}")


def reliability(measures: Measures, fitted: Measures) -> Shown:
    """How far probabilities can be relied on, before and after calibration, and the calibration itself."""
    panels: dict[str, plots.Bins | str] = {}
    for name, label in measures["labels"].items():
        before, after = (_number(label[f"calibration_error{when}"]["value"]) for when in ("_before", ""))
        groups = measures["reliability"][name]
        bins = plots.Bins(f"calibration error {before} before, {after} after", groups["before"], groups["after"])
        panels[name] = bins if label["known"] else label["note"]
    return {
        "before": _interval(measures["log_loss_before"]),
        "after": _interval(measures["log_loss"]),
        "picture": figures.image(plots.reliability(panels), f"Reliability of each label: {_spoken(panels)}"),
        "calibration": _calibration(measures["labels"], fitted),
        "refused": list(calibration.from_dict(fitted).told()),
    }


def _calibration(every: Mapping[str, Measures], found: Measures) -> Table:
    heads = ["label", "log loss before", "log loss after", "shift", "slope", "intercept"]
    rows = []
    for at, name in enumerate(found["names"]):
        losses = (cell(every[name][key]) for key in ("log_loss_before", "log_loss"))
        rows.append([name, *losses, *(f"{found[key][at]:.3f}" for key in ("shift", "slope", "intercept"))])
    return Table(heads, rows)


def thresholds(measures: Measures, foreseen: Measures) -> Mapping[str, Table]:
    """What comes of each rule that chose a threshold, beside what was foreseen on validation."""
    heads = ["label", "rule", "threshold", "sensitivity", "specificity", "precision", "NPV", "slices flagged"]
    rows = [
        [
            name if row is rules[0] else "",
            RULES[row["rule"]],
            f"{row['threshold']:.3g}",
            *(_number(row[key]) for key in ("sensitivity", "specificity", "precision", "npv")),
            DASH if row["flagged"] is None else f"{100 * row['flagged']:.1f}%",
        ]
        for name, rules in measures["thresholds"].items()
        for row in rules
    ]
    return {"rules": Table(heads, rows, words=2), "foreseen": _foreseen(foreseen.get("slices", {}))}


def _foreseen(every: Measures) -> Table:
    """What the thresholds rest on and will hold; no row for a run that did not foresee."""
    heads = ["label", "rule", "positive on validation", "of patients", "sensitivity to expect", "specificity to expect"]
    rows = [
        [name if first else "", RULES[rule], f"{label['positives']:,}", f"{label['patients']:,}"]
        + [cell(value) for value in held.values()]
        for name, label in every.items()
        for first, (rule, held) in zip([True] + [False] * len(RULES), label["rules"].items())
    ]
    return Table(heads, rows, words=2)


def both_ways(measures: Measures) -> Shown:
    """Accuracy, precision, recall and F1, for hemorrhage and for its absence."""
    heads = ["read for", "threshold", "slices", "accuracy", "precision", "recall", "F1"]
    rows = [
        [
            value,
            _threshold(way["threshold"], rule),
            f"{way[value]['slices']:,}",
            cell(way["accuracy"]),
            *(cell(way[value][key]) for key in ("precision", "recall", "f1")),
        ]
        for rule, way in measures["both_ways"].items()
        for value in ("hemorrhage", "no hemorrhage")
    ]
    return {"rules": Table(heads, rows, words=2), "without": _without(measures["both_ways"][EVEN])}


def _without(way: Measures) -> float | None:
    """How many of 100 slices are free of hemorrhage, which a model that finds nothing would get right."""
    without, whole = way["no hemorrhage"]["slices"], way["no hemorrhage"]["slices"] + way["hemorrhage"]["slices"]
    return 100 * without / whole if whole else None
