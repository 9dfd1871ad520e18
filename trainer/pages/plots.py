"""Figures of results as SVG: training curves, ROC, precision-recall, reliability, confusion, and overlays of runs.

Every function returns a whole SVG file, `figures.WIDTH_PX` wide on the screen. Where there is nothing to draw, a
text takes the place of the values and says why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ich_tfrecords.views.charts import COLORS
from trainer.pages import figures
from trainer.pages.figures import INK, PX, SIGNS, SOFT, Look, defined

Floats = npt.NDArray[np.float64]
History = Sequence[Mapping[str, float]]
BLUE, ORANGE = COLORS[:2]


# training


@figures.svg
def curves(history: History, best_epoch: int | None = None) -> Figure:
    """Log loss and accuracy of training and validation, validation AUC and learning rate, by epoch.

    `history`: the rows of history.csv; a column that is missing or has no number is left out. `best_epoch` is
    marked.
    """
    canvas = figures.figure(524)
    handles: dict[str, Any] = {}
    for (name, columns), place in zip(_panels(history), _PLACES_PX, strict=True):
        handles |= _epoch_panel(figures.axes_at(canvas, place), history, columns, name, best_epoch)
    figures.legend(canvas, {words: handles[words] for words in _COLUMNS if words in handles})
    return canvas


_COLUMNS = {  # a name has the same look in every panel
    "training": ("log_loss", "accuracy", "learning_rate"),
    "validation": ("val_log_loss", "val_accuracy", "val_auc"),
    "validation, at the odds of training": ("val_log_loss_as_sampled",),
    "the loss that training minimises": ("loss",),
}
_PLACES_PX = ((72, 56, 445, 235), (607, 56, 445, 235), (72, 364, 445, 110), (607, 364, 445, 110))


def _panels(history: History) -> list[tuple[str, list[str]]]:
    """Name of the axis and columns of each panel; losses that only repeat another are left out."""
    losses = ["log_loss", "val_log_loss"]
    losses += [one for one, other in (("val_log_loss_as_sampled", "val_log_loss"), ("loss", "log_loss"))
               if not np.array_equal(_column(history, one), _column(history, other), equal_nan=True)]  # fmt: skip
    parts = [("accuracy", ["accuracy", "val_accuracy"]), ("mean ROC AUC", ["val_auc"])]
    return [("log loss", losses), *parts, ("learning rate", ["learning_rate"])]


def _column(history: History, name: str) -> Floats:
    return np.array([row.get(name, math.nan) for row in history], np.float64)


def _epoch_panel(
    axes: Axes, history: History, columns: Sequence[str], name: str, best_epoch: int | None
) -> dict[str, Any]:
    """The lines drawn, by their words in the legend."""
    drawn = {}
    for number, (words, known) in enumerate(_COLUMNS.items()):
        for column in set(columns) & set(known):
            values = _column(history, column)
            if np.isfinite(values).any():
                (drawn[words],) = axes.plot(_column(history, "epoch"), values, **figures.look(number))
    _epoch_axis(axes, [history], name)
    if "learning_rate" in columns and drawn:
        axes.set_ylim(bottom=0)  # a constant one would fill the axis with its rounding
    if not drawn:
        figures.say(axes, "the run wrote no such values")
    elif best_epoch is not None:
        _mark_epoch(axes, best_epoch)
    return drawn


def _epoch_axis(axes: Axes, histories: Sequence[History], name: str) -> None:
    epochs = [row["epoch"] for history in histories for row in history]
    axes.set(xlabel="epoch", ylabel=figures.plain(name))
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    if epochs:
        axes.set_xlim(min(epochs) - 0.3, max(epochs) + 0.3)


def _mark_epoch(axes: Axes, epoch: int) -> None:
    axes.axvline(epoch, color=SOFT, linestyle=(0, (2, 2)), linewidth=1)
    side = "right" if epoch > sum(axes.get_xlim()) / 2 else "left"
    halo: Look = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5}
    place: Look = {"ha": side, "va": "bottom", "transform": axes.get_xaxis_transform()}
    axes.text(epoch, 1.01, f"best epoch: {epoch}", color=SOFT, bbox=halo, **place)


# one panel a label


class Curve(NamedTuple):
    """A curve to draw: `x` and `y` float64 [k], and the words under its name.

    `band`: x, low and high, float64 [g] each, nan where not defined; `point`: x and y at the threshold in use;
    `level`: height of a horizontal line to compare with.
    """

    words: str
    x: Floats
    y: Floats
    band: tuple[Floats, Floats, Floats] | None = None
    point: tuple[float, float] | None = None
    level: float | None = None


_CURVE: Look = {"color": BLUE}
_BAND: Look = {"color": BLUE, "alpha": 0.2}
_CHANCE: Look = {"color": SOFT, "linestyle": "--", "linewidth": 1.0}
_POINT: Look = {"color": INK, "marker": "o", "linestyle": "", "markersize": 6}


@figures.svg
def roc(panels: Mapping[str, Curve | str]) -> Figure:
    """ROC curve of each label with its band; a text instead of a curve says why there is none."""
    keys = _keys(panels, "a model that guesses")
    return figures.small_multiples(panels, _roc_panel, keys, ("1 - specificity (false alarms)", "sensitivity"))


def _roc_panel(axes: Axes, curve: Curve) -> None:
    axes.plot([0, 1], [0, 1], **_CHANCE)
    _draw_curve(axes, curve)


@figures.svg
def precision_recall(panels: Mapping[str, Curve | str]) -> Figure:
    """Precision over recall of each label with its band; `level` of a curve is the share of positive slices."""
    keys = _keys(panels, "a model that guesses: the share of positive slices")
    return figures.small_multiples(panels, _precision_panel, keys, ("recall (sensitivity)", "precision"))


def _precision_panel(axes: Axes, curve: Curve) -> None:
    if curve.level is not None:
        axes.axhline(curve.level, **_CHANCE)
    _draw_curve(axes, curve)


def _is_drawn(band: Any) -> bool:
    """Whether a band has a value anywhere; of few patients it has none."""
    return bool(band) and not np.isnan(np.asarray(band[1], float)).all()


def _keys(panels: Mapping[str, Curve | str], guess: str) -> dict[str, Look]:
    """What some panel draws, for the legend."""
    shown = [curve for curve in panels.values() if isinstance(curve, Curve)]
    keys: dict[str, Look] = {"this model": _CURVE} if shown else {}
    keys |= (
        {"middle 95% of resamples": {**_BAND, "linewidth": 9}} if any(_is_drawn(curve.band) for curve in shown) else {}
    )
    keys |= {"threshold chosen on validation": _POINT} if any(curve.point for curve in shown) else {}
    return keys | ({guess: _CHANCE} if shown else {})


def _draw_curve(axes: Axes, curve: Curve) -> None:
    if curve.band is not None:
        axes.fill_between(*curve.band, linewidth=0, **_BAND)
    axes.plot(curve.x, curve.y, clip_on=False, **_CURVE)
    if curve.point is not None:
        axes.plot(*curve.point, clip_on=False, zorder=5, **_POINT)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axes.set(xlim=(0, 1), ylim=(0, 1))


class Bins(NamedTuple):
    """Reliability of a label: words, and before and after calibration rows of mean probability, share, slices."""

    words: str
    before: Sequence[Sequence[float]]
    after: Sequence[Sequence[float]]


_BEFORE: Look = {"color": ORANGE, "marker": "s", "linestyle": "--", "markerfacecolor": "white"}
_AFTER: Look = {"color": BLUE, "marker": "o", "linestyle": "-"}
_HONEST: Look = {"color": SOFT, "linestyle": ":", "linewidth": 1.3}


@figures.svg
def reliability(panels: Mapping[str, Bins | str]) -> Figure:
    """Share of positive slices over the mean probability of each bin, before and after calibration, per label.

    Both axes reach to the greatest value that occurs and grow by the square root, which spreads the small
    probabilities of rare labels; the area of a sign grows with the slices of its bin.
    """
    keys = {"before calibration": _BEFORE, "after calibration": _AFTER, "as often as predicted": _HONEST}
    shown = keys if any(isinstance(panel, Bins) for panel in panels.values()) else {}
    return figures.small_multiples(panels, _reliability_panel, shown, ("mean probability", "share of positive slices"))


def _reliability_panel(axes: Axes, panel: Bins) -> None:
    before, after = (np.array([[*row] for row in bins], np.float64).reshape(-1, 3) for bins in panel[1:])
    every = np.concatenate([before, after])
    top = min(1.0, max(0.002, 1.08 * float(every[:, :2].max(initial=0))))
    axes.plot([0, top], [0, top], **_HONEST)
    for bins, drawn in ((before, _BEFORE), (after, _AFTER)):
        x, y, slices = bins.T
        axes.plot(x, y, color=drawn["color"], linestyle=drawn["linestyle"], linewidth=1.2, clip_on=False)
        face = drawn.get("markerfacecolor", drawn["color"])
        sizes = 12 + 30 * slices / every[:, 2].max(initial=1)
        axes.scatter(x, y, sizes, face, marker=drawn["marker"], edgecolor=drawn["color"], clip_on=False, zorder=4)
    axes.set_xscale("function", functions=(_root, np.square))
    axes.set_yscale("function", functions=(_root, np.square))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([], minor=True)
        axis.set_ticks(root_ticks(top), [f"{tick:g}" for tick in root_ticks(top)])
    axes.set(xlim=(0, top), ylim=(0, top))


def _root(values: Any) -> Floats:
    return np.sqrt(np.maximum(values, 0))


def root_ticks(top: float) -> list[float]:
    """0 and up to four round numbers up to `top`, about evenly apart on an axis that grows by the square root."""
    ticks = [0.0]
    for share in (0.06, 0.25, 0.55, 1.0):
        power = 10.0 ** math.floor(math.log10(top * share))
        value = max(step for step in (1, 2, 3, 5, 8) if step * power <= top * share * (1 + 1e-9)) * power
        if value > ticks[-1]:
            ticks.append(float(f"{value:.1g}"))
    return ticks


class Counts(NamedTuple):
    """Confusion matrix of a label: words and numbers of slices."""

    words: str
    tp: int
    fn: int
    fp: int
    tn: int


@figures.svg
def confusion(panels: Mapping[str, Counts | str]) -> Figure:
    """Two by two counts of each label with the share of the row, the darker the greater."""
    return figures.small_multiples(panels, _confusion_panel, {}, ("", ""), (90, 230, 150))


def _confusion_panel(axes: Axes, panel: Counts) -> None:
    counts = np.array([[panel.tp, panel.fn], [panel.fp, panel.tn]], np.int64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for (row, column), count in np.ndenumerate(counts):
        share = float(shares[row, column])
        axes.fill_between([column - 0.49, column + 0.49], row - 0.48, row + 0.48, color=_tint(share), linewidth=0)
        centre: Look = {"ha": "center", "va": "center", "color": "white" if share > 0.65 else INK}
        axes.text(column, row - 0.1, f"{count:,}", fontsize=16 * PX, **centre)
        words = f"{100 * share:.1f}%" if counts[row].sum() else "no slice"
        axes.text(column, row + 0.24, words, **centre)
    axes.set(xlim=(-0.5, 1.5), ylim=(1.5, -0.5))
    axes.set_xticks([0, 1], ["flagged", "not flagged"])
    axes.set_yticks([0, 1], ["positive", "negative"])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)


def _tint(share: float) -> tuple[float, ...]:
    """Color between a light grey and a dark blue."""
    light, dark = (236, 239, 242), (0, 69, 120)
    return tuple((a + (b - a) * share) / 255 for a, b in zip(light, dark, strict=True))


# runs side by side


@figures.svg
def roc_overlay(series: Mapping[str, tuple[Floats, Floats]]) -> Figure:
    """The ROC curves of several runs in one plot: name -> false positive rate and true positive rate."""
    canvas = figures.figure(500)
    axes = figures.axes_at(canvas, (72, 16, 425, 425))
    for number, (name, (x, y)) in enumerate(series.items()):
        axes.plot(x, y, label=figures.plain(name, 480), clip_on=False, **figures.look(number, sign=False))
    axes.plot([0, 1], [0, 1], label="a model that guesses", zorder=1, **_CHANCE)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="1 - specificity (false alarms)", ylabel="sensitivity")
    axes.legend(loc="center left", bbox_to_anchor=(1.04, 0.5), handlelength=3.6, labelspacing=0.9)
    return canvas


@figures.svg
def history_overlay(histories: Mapping[str, History], columns: Mapping[str, str]) -> Figure:
    """Columns of history.csv by epoch, a panel each, one line a run; `columns`: column -> name of its axis."""
    legend_px = 10 + 22 * len(histories)
    canvas = figures.figure(legend_px + 300 * max(1, -(-len(columns) // 2)))
    handles: dict[str, Any] = {}
    for number, (column, words) in enumerate(columns.items()):
        place = (72 + 535 * (number % 2), legend_px + 14 + 300 * (number // 2), 445, 230)
        handles |= _history_panel(figures.axes_at(canvas, place), histories, column, words)
    figures.legend(canvas, {name: handles[name] for name in histories if name in handles}, across=1)
    return canvas


def _history_panel(axes: Axes, histories: Mapping[str, History], column: str, words: str) -> dict[str, Any]:
    """The lines drawn, by the name of their run."""
    drawn = {}
    for number, (name, history) in enumerate(histories.items()):
        values = _column(history, column)
        if np.isfinite(values).any():
            (drawn[name],) = axes.plot(_column(history, "epoch"), values, **figures.look(number))
    _epoch_axis(axes, list(histories.values()), words)
    if not drawn:
        figures.say(axes, "no run wrote such values")
    return drawn


Row = tuple[str, float | None, float | None, float | None]


@figures.svg
def interval_plot(rows: Sequence[Row], x_name: str, reference: float | None = None, decimals: int = 3) -> Figure:
    """Dots with intervals over one axis, a row each: name, value, low, high; `reference` is a dashed line.

    Values that are None or nan leave their row empty, with a dash for words.
    """
    height_px = 30 * max(len(rows), 1)
    canvas = figures.figure(height_px + 56)
    axes = figures.axes_at(canvas, (300, 8, 520, height_px))
    for number, (name, value, low, high) in enumerate(rows):
        _draw_interval(axes, number, value, low, high)
        place: Look = {"va": "center", "transform": axes.get_yaxis_transform()}
        axes.text(-0.025, number, figures.plain(name, 280), ha="right", **place)
        axes.text(1.025, number, figures.with_interval(value, low, high, decimals), ha="left", **place)
    if not axes.has_data():
        figures.say(axes, "nothing to compare")
    elif reference is not None:
        axes.axvline(reference, zorder=1, **_CHANCE)
    axes.margins(x=0.06)
    axes.set(ylim=(max(len(rows), 1) - 0.5, -0.5), xlabel=figures.plain(x_name), yticks=[])
    return canvas


def _draw_interval(axes: Axes, row: int, value: float | None, low: float | None, high: float | None) -> None:
    color, sign = COLORS[row % len(COLORS)], SIGNS[row % len(SIGNS)]
    if defined(low) and defined(high):
        axes.hlines(row, low, high, color=color, linewidth=2.2)
    if defined(value):
        axes.plot(value, row, color=color, marker=sign, markersize=6.5)
