"""What a comparison says: a sentence on what may be claimed, an HTML page, a CSV, a table of text.

The same comparison gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ich_tfrecords import __version__
from ich_tfrecords.storage.csv_text import csv_text
from ich_tfrecords.views import html_page
from ich_tfrecords.views.html_page import Image, Table
from ich_tfrecords.views.progress_line import clock
from trainer.pages import figures, plots
from trainer.results.comparison import BETTER, UNCLEAR, WORSE

TEMPLATES = "trainer.pages"
Result = Mapping[str, Any]
_READINGS = {WORSE: "worse than the best", BETTER: "better than the best", UNCLEAR: "no difference can be claimed"}
HEAD = ("run", "metric", "value", "low", "high", "mean_of_folds", "sd_of_folds", "difference", "difference_low",
        "difference_high", "share_worse")  # fmt: skip
MOST_DECIMALS = 6
ACROSS = 4  # models whose values fit beside each other


# the sentence


def verdict(result: Result) -> list[str]:
    """What the log loss lets one claim, in one to a few sentences."""
    models = result["models"]
    if len(models) == 1:
        return [_alone(models[0])]
    if result["best"] is None:
        return ["No difference can be claimed: the log loss is not defined, for no label of these slices is known."]
    if result["too_few"]:
        return [f"No difference can be claimed: {result['too_few']}."]
    best = _named(result, result["best"])
    others = [(_named(result, one["name"]), one["values"]["log_loss"]) for one in result["differences"]]
    return [_of_two(best, *others[0], result)] if len(others) == 1 else _of_many(best, others, result)


def _alone(model: Result) -> str:
    value = model["values"]["log_loss"]
    whole = "their pooled predictions have" if model["pooled"] else "over resamples of the patients it is"
    return (
        f"{model['name']} is one model, with nothing to compare it with: its log loss is {_number(value['mean'])} on "
        f"average over the folds, with a standard deviation of {_number(value['sd'])}; {whole} {_with_interval(value)}."
    )


def _of_two(best: Result, other: Result, found: Result, result: Result) -> str:
    d = decimals(found)
    one, two = (_number(model["values"]["log_loss"]["value"], d) for model in (best, other))
    if found["reading"] == UNCLEAR:
        values = f"{best['name']} has a log loss of {one} and {other['name']} of {two}"
        return f"No difference can be claimed: {values}, and {_open(found, d, result)}."
    return (
        f"{best['name']} has the lower log loss: {one} against {two} of {other['name']}, a difference of "
        f"{_number(found['value'], d)} ({percent(result['pair_level'])} interval {_span(found, d)})."
    )


def _open(found: Result, digits: int, result: Result) -> str:
    """Why a difference stays open."""
    interval = f"the {percent(result['pair_level'])} interval of the difference"
    return (
        f"{interval} is not defined" if math.isnan(found["low"]) else f"{interval}, {_span(found, digits)}, includes 0"
    )


def _of_many(best: Result, others: Sequence[tuple[Result, Result]], result: Result) -> list[str]:
    d = max(decimals(found) for _, found in others)
    clear = [(other, found) for other, found in others if found["reading"] != UNCLEAR]
    unclear = [(other, found) for other, found in others if found["reading"] == UNCLEAR]
    lowest = f"{best['name']} has the lowest log loss, {_number(best['values']['log_loss']['value'], d)}"
    sentences = [f"{lowest}." if clear else f"No difference can be claimed: {lowest}, but no other is clearly higher."]
    sentences += [
        f"It is lower than the {_number(other['values']['log_loss']['value'], d)} of {other['name']} by "
        f"{_number(found['value'], d)} ({percent(result['pair_level'])} interval {_span(found, d)})."
        for other, found in clear
    ]
    sentences += [
        f"No difference to the {_number(other['values']['log_loss']['value'], d)} of {other['name']} can be claimed: "
        f"{_open(found, d, result)}."
        for other, found in unclear
    ]
    return [*sentences, _corrected(result)]


def _corrected(result: Result) -> str:
    return (
        f"The {percent(result['pair_level'])} intervals are Bonferroni-corrected for the {result['pairs']} pairs, "
        f"so that all claims about log loss together hold with {percent(result['level'])}."
    )


def _named(result: Result, name: str) -> Result:
    return next(model for model in result["models"] if model["name"] == name)


# numbers


def decimals(found: Result) -> int:
    """Digits behind the point, 3 or more, that show an interval by two digits and no end of it as 0."""
    sizes = [abs(found["high"] - found["low"]), 10 * abs(found["low"]), 10 * abs(found["high"])]
    least = min((size for size in sizes if size > 0 and math.isfinite(size)), default=1.0)
    return min(MOST_DECIMALS, max(3, 1 - math.floor(math.log10(least))))


def percent(share: float) -> str:
    """`95%`, `98.33%`, `99.17%`: enough digits to tell the levels of intervals apart."""
    return f"{float(f'{100 * share:.4g}'):g}%"


def _number(value: float | None, digits: int = 3) -> str:
    """`-0.003`; a dash where there is none."""
    words = figures.with_interval(value, None, None, digits)
    return words.lstrip("-") if value is not None and words.strip("-0.") == "" else words


def _span(found: Result, digits: int) -> str:
    return f"{_number(found['low'], digits)} to {_number(found['high'], digits)}"


def _with_interval(value: Result) -> str:
    return figures.with_interval(value["value"], value["low"], value["high"])


def _signed(value: float, digits: int) -> str:
    words = _number(value, digits)
    return f"+{words}" if value > 0 and words.strip("0.") else words


def _unbroken(words: str) -> str:
    """On one line in a narrow cell."""
    return words.replace(" ", "\N{NO-BREAK SPACE}")


def _count(value: float) -> str:
    return figures.DASH if math.isnan(value) else f"{value:,.0f}"


# the page


def page(result: Result) -> str:
    """The HTML text."""
    models = result["models"]
    names = [model["name"] for model in models]
    return html_page.page(
        "comparison.html",
        TEMPLATES,
        title=f"Comparison of {', '.join(names) if len(names) <= ACROSS else f'{len(names)} models'}",
        result=result,
        verdict=verdict(result),
        facts={name: f"{result[name]:,}" for name in ("slices", "studies", "patients", "resamples")},
        level=percent(result["level"]),
        log_losses=_log_losses(models),
        metrics=[_metrics(models[first : first + ACROSS], result) for first in range(0, len(models), ACROSS)],
        gaps={"chart": _gap_chart(result), "table": _gaps(result)} if result["differences"] else None,
        corrected=_corrected(result) if result["pairs"] > 1 else "",
        roc=_roc(result),
        histories=_histories(models),
        cost=_cost(models),
        folds={model["name"]: _folds(model, result) for model in models if model["folds"]},
        settings=Table(["", *names], [[key, *words] for key, words in result["settings"].items()], len(names) + 1),
        made_from=_made_from(result),
    )


def _log_losses(models: Sequence[Result]) -> Image:
    rows = [(model["name"], *(model["values"]["log_loss"][end] for end in _ENDS)) for model in models]
    return figures.image(plots.interval_plot(rows, "log loss"), "Log loss of each run with its interval")


_ENDS = ("value", "low", "high")


def _metrics(models: Sequence[Result], result: Result) -> Table:
    """Every metric of a few models, with its interval."""
    rows = [
        [words, *(_unbroken(_with_interval(model["values"][metric])) for model in models)]
        for metric, words in result["metrics"].items()
    ]
    return Table(["", *(model["name"] for model in models)], rows)


def _gaps(result: Result) -> Table:
    rows = []
    for metric in result["compared"]:
        for one in result["differences"]:
            found = one["values"][metric]
            d = decimals(found)
            ends = [_signed(found[end], d) for end in ("low", "high")]
            span = figures.DASH if math.isnan(found["low"]) else " to ".join(ends)
            share = figures.DASH if math.isnan(found["worse"]) else f"{100 * found['worse']:.1f}%"
            words = [result["metrics"][metric], one["name"], _READINGS[found["reading"]]]
            rows.append([*words, _signed(found["value"], d), _unbroken(span), share])
    head = ["metric", "run", "reading", "difference", f"{percent(result['pair_level'])} interval", "worse in"]
    return Table(head, rows, words=3)


def _gap_chart(result: Result) -> Image:
    """The differences in log loss; the best at 0, so that each run has the color of the other charts."""
    gaps = {one["name"]: one["values"]["log_loss"] for one in result["differences"]}
    at_zero = {"value": 0.0, "low": None, "high": None}
    shown = [(model["name"], *map(gaps.get(model["name"], at_zero).get, _ENDS)) for model in result["models"]]
    digits = max(map(decimals, gaps.values()))
    svg = plots.interval_plot(shown, f"log loss minus that of {result['best']}", 0.0, digits)
    return figures.image(svg, "Differences in log loss with their intervals")


def _roc(result: Result) -> Image | None:
    rates = {model["name"]: model["roc"] for model in result["models"]}  # all, so that colors agree between charts
    if not any(rate for rate, _ in rates.values()):
        return None
    return figures.image(plots.roc_overlay(rates), f"ROC curves of {result['any']}, one a run")


def _histories(models: Sequence[Result]) -> Image | None:
    histories = {model["name"]: model["history"] for model in models}
    if not any(histories.values()):
        return None
    columns = {"val_log_loss": "validation log loss", "val_auc": "mean validation ROC AUC"}
    return figures.image(plots.history_overlay(histories, columns), "Validation log loss and AUC by epoch")


def _cost(models: Sequence[Result]) -> Table:
    rows = []
    for model in models:
        facts = model["facts"]
        time = figures.DASH if math.isnan(facts["seconds"]) else clock(facts["seconds"])
        numbers = [_count(facts[key]) for key in ("parameters", "epochs", "images_per_s")]
        rows.append([model["name"], facts["network"], facts["sampling"], facts["flip"], *numbers, time])
    head = ["run", "network", "sampling", "flipped too", "parameters", "epochs", "images/s", "training time"]
    return Table(head, rows, words=4)


def _folds(model: Result, result: Result) -> Table:
    """Every metric of the runs of a cross-validation."""
    rows = [
        [words, *map(_number, [value["mean"], value["sd"], *value["of_runs"].values()])]
        for metric, words in result["metrics"].items()
        for value in [model["values"][metric]]
    ]
    return Table(["", "mean", "sd", *model["values"]["log_loss"]["of_runs"]], rows)


def _made_from(result: Result) -> Table:
    dataset = result["dataset"]
    rows = [
        ["data set", f"{dataset['name']} {dataset['version']}"],
        ["fingerprint", dataset["fingerprint"]],
        ["split", result["split"]],
        ["resamples, seed", f"{result['resamples']:,}, {result['seed']}"],
        ["runs", ", ".join(run for model in result["models"] for run in model["runs"])],
        ["version", __version__],
    ]
    return Table(["", ""], rows, words=2)


# beside the page


def csv(result: Result) -> str:
    """CSV text, a row for each run and metric; what is not defined is empty. Differences are run - best."""
    gaps = {one["name"]: one["values"] for one in result["differences"]}
    rows = []
    for model in result["models"]:
        for metric in result["metrics"]:
            value = model["values"][metric]
            found = gaps.get(model["name"], {}).get(metric, {})
            numbers = [value.get(key) for key in ("value", "low", "high", "mean", "sd")]
            numbers += [found.get(key) for key in ("value", "low", "high", "worse")]
            rows.append([model["name"], metric, *map(_cell, numbers)])
    return csv_text(HEAD, rows)


def _cell(value: float | None) -> object:
    return "" if value is None or math.isnan(value) else value


def text(result: Result) -> str:
    """Lines for a terminal: a short table, the notes, and the verdict."""
    shown = list(result["compared"])
    head = ["", *(result["metrics"][metric] for metric in shown)]
    rows = [
        [model["name"], *(_with_interval(model["values"][metric]) for metric in shown)] for model in result["models"]
    ]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in [head, *rows]]
    return "\n".join([*lines, "", *result["notes"], " ".join(verdict(result))])
