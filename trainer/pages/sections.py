"""The sections of the page of an evaluation, each from its part of metrics.json, as HTML text.

Every section says in a sentence or two how to read it. A value that is not defined is a dash, and the reason stands
under its table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ich_tfrecords.views import html_page
from ich_tfrecords.views.html_page import escape, section
from trainer.pages import figures, plots
from trainer.pages.figures import DASH
from trainer.results import calibration, curves
from trainer.results.predictions import Predictions
from trainer.results.thresholds import EVEN

BAND_RESAMPLES = 200  # of the patients, for the bands of the curves; a picture needs fewer than a number
_SEED = 0

Measures = Mapping[str, Any]


def training(what: Measures, history: Sequence[Mapping[str, float]]) -> str:
    """Loss, accuracy, AUC and learning rate by epoch. `what`: that part of metrics.json."""
    if not history:
        return section("Training", "<p>The run has no history.csv.</p>")
    best = best_epoch(history, what["settings"]["monitor"])
    alt = f"Loss, accuracy, AUC and learning rate by epoch, {len(history)} epochs, the best {best}"
    return section("Training", _figure(plots.curves(history, best), alt), _TRAINING)


_TRAINING = (
    "Where the loss of validation rises while that of training still falls, the model learns slices by heart. A "
    "sampler that shows rare slices more often changes the odds; they are undone in the line named validation."
)


def best_epoch(history: Sequence[Mapping[str, float]], monitor: str) -> int | None:
    """The epoch with the best validation value of `monitor`, the first of equals; None without validation."""
    from trainer.training.metrics import better

    values = np.array([row.get(f"val_{monitor}", np.nan) for row in history]) * better(monitor)
    return None if np.isnan(values).all() else int(history[int(np.nanargmax(values))]["epoch"])


def _figure(data: bytes, alt: str) -> str:
    return html_page.image(data, "svg+xml", alt, figures.WIDTH_PX)


# numbers


def _interval(value: Mapping[str, float | None]) -> str:
    return figures.with_interval(value["value"], value["low"], value["high"])


def _cell(value: Mapping[str, float | None]) -> str:
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


def labels(measures: Measures, split: str) -> str:
    """Every measure of every label, with intervals."""
    every = measures["labels"]
    ranked = ("log_loss", "auc", "average_precision", "calibration_error")
    heads = ["label", "known", "positive", "log loss", "ROC AUC", "average precision", "calibration error"]
    chosen = {name: f"{label['threshold']:.3g}" for name, label in every.items()}
    body = f"<h3>Probabilities</h3>{_table(heads, every, ranked)}<h3>Decisions</h3>{_decisions(every, chosen)}"
    note = (
        f"Slices of the split {split}; in brackets the 95% interval over patients, where enough of them carry the "
        "label: the fewer they are, the wider it is beyond what their slices show. AUC: how often a positive slice "
        "ranks above a negative one, 0.5 for a model that guesses. Average precision: such a model has the share of "
        "positive slices. Calibration error: noise makes it greater, most with few slices. Decisions are those at the "
        "threshold chosen on validation."
    )
    return section("Labels", body + _notes(every), note)


def skill(measures: Measures) -> str:
    """Log losses and Brier scores beside those of one who knows nothing but how often each label is positive."""
    found = measures["skill"]
    every = {"all labels": found["overall"], **found["labels"]}
    shares = {name: f"{share:.3g}" for name, share in found["prevalence"].items()}
    body = "".join(
        f"<h3>{title}</h3>"
        + html_page.table(
            ["label", "prevalence", "of the model", "of the prevalence", "skill"],
            [[name, shares.get(name, ""), *(_cell(one[key]) for key in keys)] for name, one in every.items()],
        )
        for title, keys in (
            ("Log loss", ("log_loss", "log_loss_of_prevalence", "skill")),
            ("Brier score", ("brier", "brier_of_prevalence", "brier_skill")),
        )
    )
    note = (
        "Beside one who knows nothing of a slice and says of each how often the label is positive where the model was "
        "trained. Skill: the part of that one's loss that the model saves, 1 for a model that knows, 0 for one that "
        "knows no more than the prevalence. No skill can be claimed where its interval includes 0. In the log loss of "
        "all labels the headline label counts twice, as in the competition."
    )
    return section("Against knowing nothing", body, note)


def studies(measures: Measures, foreseen: Measures) -> str:
    """Every measure at the level of studies, with intervals."""
    every = measures["studies_level"]
    heads = ["label", "known", "positive", "ROC AUC", "average precision"]
    chosen = {name: f"{label['threshold']:.3g}" for name, label in every.items()}
    body = f"<h3>Ranking</h3>{_table(heads, every, ('auc', 'average_precision'))}<h3>Decisions</h3>"
    note = (
        "A study counts as its worst slice: label and probability are the greatest of its slices. Its thresholds were "
        "chosen on the studies of the validation split."
    )
    return section(
        "Studies", body + _decisions(every, chosen) + _notes(every) + _foreseen(foreseen.get("studies", {})), note
    )


def _table(heads: Sequence[str], every: Mapping[str, Measures], keys: Sequence[str]) -> str:
    rows = [
        [name, f"{label['known']:,}", f"{label['positives']:,}", *(_cell(label[key]) for key in keys)]
        for name, label in every.items()
    ]
    return html_page.table(heads, rows)


def _decisions(every: Mapping[str, Measures], chosen: Mapping[str, str]) -> str:
    """Table of what comes of the thresholds `chosen`; recall is sensitivity."""
    keys = ("sensitivity", "specificity", "accuracy", "precision", "f1")
    heads = ["label", "threshold", "sensitivity (recall)", "specificity", "accuracy", "precision", "F1"]
    return html_page.table(
        heads, [[name, chosen[name], *(_cell(label[key]) for key in keys)] for name, label in every.items()]
    )


def _notes(every: Mapping[str, Measures]) -> str:
    """Why some values are a dash, or stand without an interval."""
    words = "; ".join(f"{name}: {label['note']}" for name, label in every.items() if label["note"])
    return (
        f'<p class="note" style="margin-top:10px">What is missing ({DASH}), and why: {escape(words)}.</p>'
        if words
        else ""
    )


# curves


def roc(measures: Measures, predictions: Predictions) -> str:
    """ROC curve of each label."""

    def curve(label: Measures, truth: Any, shown: Any) -> plots.Curve:
        band = curves.roc_band(truth, shown, predictions.patients, BAND_RESAMPLES, _SEED)
        point = (1 - label["specificity"]["value"], label["sensitivity"]["value"])
        return plots.Curve(f"AUC {_interval(label['auc'])}", *curves.roc_points(truth, shown), band, point)

    note = (
        "How many false alarms each gain in sensitivity costs; the nearer to the upper left corner, the better. "
        f"Shaded: the middle 95% of {BAND_RESAMPLES} resamples of the patients."
    )
    return _curve_section("ROC", note, plots.roc, _curve_panels(measures, predictions, curve))


def precision_recall(measures: Measures, predictions: Predictions) -> str:
    """Precision over recall of each label."""

    def curve(label: Measures, truth: Any, shown: Any) -> plots.Curve:
        band = curves.pr_band(truth, shown, predictions.patients, BAND_RESAMPLES, _SEED)
        precision, share = label["precision"]["value"], label["positives"] / label["known"]
        point = None if precision is None else (label["recall"]["value"], precision)
        words = f"AP {_interval(label['average_precision'])}, {100 * share:.2g}% positive"
        return plots.Curve(words, *curves.pr_points(truth, shown), band, point, share)

    note = (
        "How many of the flagged slices are positive (precision) when so many of the positive ones are found (recall); "
        "the nearer to the upper right corner, the better. AP: average precision. Shaded: the middle 95% of "
        f"{BAND_RESAMPLES} resamples of the patients."
    )
    return _curve_section(
        "Precision and recall", note, plots.precision_recall, _curve_panels(measures, predictions, curve)
    )


def _curve_panels(
    measures: Measures, predictions: Predictions, curve: Callable[[Measures, Any, Any], plots.Curve]
) -> dict[str, plots.Curve | str]:
    """What to draw of each label, or why there is nothing."""
    panels: dict[str, plots.Curve | str] = {}
    for at, name in enumerate(predictions.names):
        label, shown = measures["labels"][name], predictions.probabilities[:, at]
        defined = label["auc"]["value"] is not None
        panels[name] = curve(label, predictions.labels[:, at], shown) if defined else _why_not(label)
    return panels


def _why_not(label: Measures) -> str:
    return f"no curve: {label['note']}"


def _curve_section(title: str, note: str, draw: Callable[..., bytes], panels: Mapping[str, plots.Curve | str]) -> str:
    words = "; ".join(f"{name} {getattr(panel, 'words', panel)}" for name, panel in panels.items())
    return section(title, _figure(draw(panels), f"{title} of each label: {words}"), note)


# decisions and probabilities


def confusions(measures: Measures) -> str:
    """Confusion matrix of each label at the threshold chosen on validation."""
    panels: dict[str, plots.Counts | str] = {
        name: plots.Counts(f"threshold {_threshold(label['threshold'], label['rule'])}", **label["confusion"])
        if label["known"]
        else label["note"]
        for name, label in measures["labels"].items()
    }
    words = "; ".join(f"{name} {label['confusion']}" for name, label in measures["labels"].items())
    note = (
        "Rows are the truth, columns what the model says at the threshold chosen on validation; each share is that of "
        "its row. The upper left share is the sensitivity, the lower right one the specificity."
    )
    picture = _figure(plots.confusion(panels), f"Confusion matrix of each label: {words}")
    return section("Confusion matrices", picture, note)


def reliability(measures: Measures, fitted: Measures) -> str:
    """How far probabilities can be relied on, before and after calibration, and the calibration itself."""
    panels: dict[str, plots.Bins | str] = {}
    for name, label in measures["labels"].items():
        before, after = (_number(label[f"calibration_error{when}"]["value"]) for when in ("_before", ""))
        groups = measures["reliability"][name]
        bins = plots.Bins(f"calibration error {before} before, {after} after", groups["before"], groups["after"])
        panels[name] = bins if label["known"] else label["note"]
    words = "; ".join(f"{name} {getattr(panel, 'words', panel)}" for name, panel in panels.items())
    note = (
        f"Log loss {_interval(measures['log_loss_before'])} before calibration, {_interval(measures['log_loss'])} "
        "after. Of slices given a probability of 0.2, one in five should be positive: then a sign lies on the dotted "
        "line. Each sign is a tenth of the slices, or more where probabilities are equal; both axes grow by the square "
        "root."
    )
    picture = _figure(plots.reliability(panels), f"Reliability of each label: {words}")
    return section("Reliability", picture + _calibration(measures["labels"], fitted), note)


def _calibration(every: Mapping[str, Measures], found: Measures) -> str:
    heads = ["label", "log loss before", "log loss after", "shift", "slope", "intercept"]
    rows = []
    for at, name in enumerate(found["names"]):
        losses = (_cell(every[name][key]) for key in ("log_loss_before", "log_loss"))
        rows.append([name, *losses, *(f"{found[key][at]:.3f}" for key in ("shift", "slope", "intercept"))])
    refused = "; ".join(calibration.from_dict(found).told())
    told = f" Not fitted: {refused}." if refused else ""
    words = (
        "A probability is sigmoid(slope * (log odds - shift) + intercept), fitted on validation, and no kind is above "
        "any; slope and intercept stay at 1 and 0 where its patients do not clearly speak against that. Log odds are "
        f"the logits with what loss and sampling did to them undone.{told}"
    )
    return f'<h3>Calibration</h3><p class="note">{escape(words)}</p>{html_page.table(heads, rows)}'


def thresholds(measures: Measures, foreseen: Measures) -> str:
    """What comes of each rule that chose a threshold, beside what was foreseen on validation."""
    heads = ["label", "rule", "threshold", "sensitivity", "specificity", "precision", "NPV"]
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
    note = (
        "Each rule chose its threshold on validation; the numbers are those of this split, so that a sensitivity meant "
        "to be 0.95 may come out as another. Youden: the greatest sum of sensitivity and specificity. NPV: the "
        "share of slices left alone that are negative."
    )
    body = html_page.table([*heads, "slices flagged"], rows, words=2) + _foreseen(foreseen.get("slices", {}))
    return section("Thresholds", body, note)


def _foreseen(every: Measures) -> str:
    """What the thresholds rest on and will hold; nothing for a run that did not foresee."""
    heads = ["label", "rule", "positive on validation", "of patients", "sensitivity to expect", "specificity to expect"]
    rows = [
        [name if first else "", RULES[rule], f"{label['positives']:,}", f"{label['patients']:,}"]
        + [_cell(value) for value in held.values()]
        for name, label in every.items()
        for first, (rule, held) in zip([True] + [False] * len(RULES), label["rules"].items())
    ]
    words = (
        "A threshold looks better on the slices that chose it than it is: what to expect on new patients is measured "
        "on those whom a resample of the validation patients left out when it chose; with 95% intervals. On few "
        "positive patients a threshold is half luck."
    )
    return (
        f'<h3>What they rest on</h3><p class="note">{words}</p>{html_page.table(heads, rows, words=2)}' if rows else ""
    )


def both_ways(measures: Measures, any_name: str) -> str:
    """The table of accuracy, precision, recall and F1, for hemorrhage and for its absence."""
    heads = ["read for", "threshold", "slices", "accuracy", "precision", "recall", "F1"]
    rows = [
        [
            value,
            _threshold(way["threshold"], rule),
            f"{way[value]['slices']:,}",
            _cell(way["accuracy"]),
            *(_cell(way[value][key]) for key in ("precision", "recall", "f1")),
        ]
        for rule, way in measures["both_ways"].items()
        for value in ("hemorrhage", "no hemorrhage")
    ]
    note = (
        f"The label {any_name}, read for each of its values. Where few slices hold a hemorrhage, accuracy and the rows "
        "'no hemorrhage' look good even for a model that finds little: an accuracy of 86 to 91% with precision and "
        "recall around 0.95, as published for such networks, can only be read for 'no hemorrhage'."
    )
    return section(
        "Both values of the headline label",
        _idle(measures["both_ways"][EVEN]) + html_page.table(heads, rows, words=2),
        note,
    )


def _idle(way: Measures) -> str:
    """What a model that finds nothing would reach."""
    without, whole = way["no hemorrhage"]["slices"], way["no hemorrhage"]["slices"] + way["hemorrhage"]["slices"]
    if not whole:
        return ""
    return f"<p>Calling every slice free of hemorrhage would be right for {100 * without / whole:.1f}% of them.</p>"
