"""Figures of docs/benchmarks.md as PNG: one look, axes with units, the same figures give the same picture."""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from ich_tfrecords.views.charts import COLORS
from trainer.pages.figures import LOOK, SIGNS, SOFT

P = ParamSpec("P")
Rows = Sequence[Mapping[str, Any]]
INCHES, DPI = (9.6, 3.7), 110
_STYLE = LOOK | {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
}
_PLAIN = FuncFormatter(lambda value, _: f"{value:,.10g}")


def png(draw: Callable[P, Figure]) -> Callable[P, bytes]:
    """`draw` in this look, its figure as the bytes of a PNG file."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> bytes:
        with style.context(["default", _STYLE]):
            figure, out = draw(*args, **kwargs), io.BytesIO()
            FigureCanvasAgg(figure).print_png(out, metadata={"Software": None})
        return out.getvalue()

    return drawn


def _panels(*titles: str, inches: tuple[float, float] = INCHES) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=inches, dpi=DPI, layout="constrained", facecolor="white")
    panels = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title)
    return figure, panels


def _plain_axis(axes: Axes, *names: str) -> None:
    for name in names:
        axis = axes.xaxis if name == "x" else axes.yaxis
        axis.set_major_formatter(_PLAIN)
        axis.set_minor_formatter(NullFormatter())


def _line(axes: Axes, number: int, x: Sequence[float], y: Sequence[float], name: str, **look: Any) -> None:
    axes.plot(x, y, color=COLORS[number % len(COLORS)], marker=SIGNS[number % len(SIGNS)], label=name, **look)


@png
def scale(runs: Mapping[int, Mapping[str, Mapping[str, float]]], size: int, most_s: float, most_mb: float) -> Figure:
    """Seconds of each stage of the launcher, and its peak memory, over slices; the limits are for `size` slices."""
    figure, (left, right) = _panels("seconds of the launcher", "peak memory of the launcher")
    sizes = sorted(runs)
    stages = [stage for stage in runs[sizes[0]] if stage != "start"]
    for number, stage in enumerate(stages):
        look = {"linewidth": 2.4} if stage == "sum" else {"linewidth": 1.2, "linestyle": "--"}
        _line(left, number, sizes, [runs[count][stage]["seconds"] for count in sizes], stage, **look)
    left.set(xscale="log", yscale="log", xlabel="slices", ylabel="seconds")
    left.legend(ncols=2)
    _line(right, 0, sizes, [runs[count]["sum"]["peak_mb"] for count in sizes], "peak")
    for axes, most, unit in ((left, most_s, "s"), (right, most_mb, "MB")):
        axes.axhline(most, color=SOFT, linestyle=":")
        words = f"promised at {size:,} slices: {most:,.0f} {unit}"
        axes.annotate(words, (sizes[0], most), xytext=(0, 4), textcoords="offset points", color=SOFT)
    right.set(xlabel="slices", ylabel="MB", xlim=(0, None))
    right.xaxis.set_major_locator(MaxNLocator(4))
    left.set_ylim(top=2.5 * max(left.get_ylim()[1], most_s))
    right.set_ylim(0, 1.15 * max(right.get_ylim()[1], most_mb))
    _plain_axis(left, "x", "y")
    _plain_axis(right, "x", "y")
    return figure


PARTS = ("header", "read", "decode", "window", "encode")


@png
def processes(rows: Rows, zip_row: Mapping[str, Any]) -> Figure:
    """Slices/s of the steps over processes with the line of perfect scaling, and milliseconds of each part."""
    figure, (left, right) = _panels("slices/s by number of processes", "ms a slice, one process")
    counts = [row["processes"] for row in rows]
    for number, (name, step) in enumerate((("convert", "convert"), ("both", "index and convert"))):
        rates = [row[f"{name}_slices_per_s"] for row in rows]
        _line(left, number, counts, rates, step)
        ideal = [rates[0] * count for count in counts]
        left.plot(counts, ideal, color=COLORS[number], linestyle=":", label=f"{step}, if it scaled perfectly")
    left.set(xlabel="processes", ylabel="slices/s", ylim=(0, None), xticks=counts)
    left.margins(x=0.12)
    left.legend()
    _plain_axis(left, "y")
    names = ("plain files", "deflated zip")
    begin = [0.0, 0.0]
    for number, part in enumerate(PARTS):
        values = [rows[0]["worker_ms"][part], zip_row["worker_ms"][part]]
        right.barh(names, values, left=begin, height=0.5, color=COLORS[number], label=part)
        begin = [before + value for before, value in zip(begin, values, strict=True)]
    right.set(xlabel="ms a slice", ylim=(-0.6, 2.3))
    right.grid(visible=False, axis="y")
    right.legend(ncols=3, loc="upper left")
    return figure


@png
def tfds(rows: Rows) -> Figure:
    """Peak memory and core-seconds of both ways over slices."""
    figure, (left, right) = _panels("peak memory of the process", "core-seconds of the process, start-up included")
    for number, (way, name) in enumerate((("tfds", "TFDS Beam builder"), ("convert", "beam_pipelines.convert"))):
        own = [row for row in rows if row["way"] == way]
        sizes = [row["slices"] for row in own]
        _line(left, number, sizes, [row["peak_bytes"] / 1e6 for row in own], name)
        _line(right, number, sizes, [row["core_s"] for row in own], name)
    left.set(xlabel="slices", ylabel="MB")
    right.set(xlabel="slices", ylabel="core-seconds")
    for axes in (left, right):
        axes.set(ylim=(0, None), xlim=(0, None))
        axes.margins(y=0.1)
        axes.legend(loc="center right")
        _plain_axis(axes, "x", "y")
    return figure


@png
def streams(rows: Rows, base: tuple[int, int]) -> Figure:
    """Images/s of either reader with one core and two, over shards at the strata of `base` and the reverse."""
    figure, panels = _panels(f"{base[1]} strata", f"{base[0]:,} shards")
    for axes, over, fixed, value in zip(panels, ("shards", "strata"), ("strata", "shards"), base[::-1], strict=True):
        for number, (reader, cores) in enumerate(itertools.product(("number", "stream"), (1, 2))):
            own = [row for row in rows if (row["reader"], row["cores"], row[fixed]) == (reader, cores, value)]
            own.sort(key=lambda row: row[over])
            name = f"by {reader}, {cores} core{'s' * (cores > 1)}"
            look = {"linestyle": "-" if cores == 2 else "--"}
            _line(axes, number, [row[over] for row in own], [row["images_per_s"] for row in own], name, **look)
        axes.set(xlabel=over, ylabel="images/s", ylim=(0, None))
        axes.margins(y=0.1)
        _plain_axis(axes, "x", "y")
    panels[0].set_xscale("log")
    panels[0].set_xticks(sorted({row["shards"] for row in rows}))
    panels[1].set_xticks(sorted({row["strata"] for row in rows}))
    _plain_axis(panels[0], "x")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=4)
    return figure


@png
def projections(bars: Mapping[str, Mapping[str, float]]) -> Figure:
    """Minutes of each part at each place, on top of one another; `bars`: place -> part -> seconds."""
    figure, (axes,) = _panels("minutes of a whole conversion", inches=(9.6, 1.3 + 0.42 * len(bars)))
    begin = dict.fromkeys(bars, 0.0)
    for number, part in enumerate(next(iter(bars.values()))):
        minutes = [parts[part] / 60 for parts in bars.values()]
        axes.barh(list(bars), minutes, left=list(begin.values()), height=0.6, color=COLORS[number], label=part)
        begin = {name: begin[name] + more for name, more in zip(bars, minutes, strict=True)}
    for place, total in begin.items():
        axes.annotate(f"{total:,.0f} min", (total, place), (4, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(xlabel="minutes")
    axes.grid(visible=False, axis="y")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=4)
    return figure
