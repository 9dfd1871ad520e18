"""Figures as SVG text with one look: sizes in pixels of the screen, small multiples, legends, words in the font.

The same input gives the same bytes, whatever the settings of matplotlib. Letters are drawn as paths, so that a
page looks alike everywhere, and no text is read as mathematics. Colors are those of Okabe and Ito, each with a
line style and a sign of its own.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, Protocol, TypeGuard, TypeVar

from matplotlib import font_manager, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ich_tfrecords.views.charts import COLORS
from ich_tfrecords.views.montage import fitted

WIDTH_PX = 1070  # of a figure, which fills a section of a page
INK, SOFT, LINE = "#1b1f24", "#59636e", "#d8dee4"
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1.5, 1, 1.5, 1, 1.5)), (0, (1, 2.5)))
SIGNS = ("o", "s", "^", "D", "v", "P")
PX = 0.75  # points
_DPI = 96
_FONT, _TEXT_PX = "DejaVu Sans", 12.5
LOOK: dict[str, Any] = {  # of every figure, on pages and in docs
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "legend.frameon": False,
    "lines.markersize": 5,
}
_STYLE = LOOK | {
    "svg.fonttype": "path",
    "svg.hashsalt": "ich",
    "axes.formatter.use_mathtext": False,
    "font.family": _FONT,
    "font.size": _TEXT_PX * PX,
    "axes.labelsize": _TEXT_PX * PX,
    "xtick.labelsize": 12 * PX,
    "ytick.labelsize": 12 * PX,
    "legend.fontsize": _TEXT_PX * PX,
    "lines.linewidth": 1.7,
}
DASH = "\N{EN DASH}"
Look = dict[str, Any]  # color, line style and the like, as matplotlib names them
P = ParamSpec("P")


def svg(draw: Callable[P, Figure]) -> Callable[P, bytes]:
    """`draw` with matplotlib's own defaults and ours over them, its figure written as an SVG file."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> bytes:
        with style.context(["default", _STYLE]):
            figure, out = draw(*args, **kwargs), io.BytesIO()
            FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
        return out.getvalue()

    return drawn


def figure(height_px: float) -> Figure:
    """An empty figure, `WIDTH_PX` wide."""
    return Figure(figsize=(WIDTH_PX / _DPI, height_px / _DPI), facecolor="white")


def axes_at(canvas: Figure, place_px: tuple[float, float, float, float]) -> Axes:
    """Axes at left, top, width and height in pixels."""
    left, top, width, height = place_px
    height_px = canvas.get_figheight() * _DPI
    return canvas.add_axes((left / WIDTH_PX, 1 - (top + height) / height_px, width / WIDTH_PX, height / height_px))


class _Panel(Protocol):
    @property
    def words(self) -> str: ...


Panel = TypeVar("Panel", bound=_Panel)
ACROSS = 3  # panels in a row
HEADING_PX = 52


def small_multiples(
    panels: Mapping[str, Panel | str],
    draw: Callable[[Axes, Panel], None],
    keys: Mapping[str, Look],
    names: tuple[str, str],
    size_px: tuple[float, float, float] = (62, 270, 250),
) -> Figure:
    """Three panels a row, each under its name and the words of its values; a text alone is shown in place of a panel.

    `keys`: the legend, words -> look of a line; `names` of the axes; `size_px`: left, width and height of a panel.
    """
    left_px, width_px, height_px = size_px
    top_px = 36 if keys else 0
    row_px = height_px + HEADING_PX + (56 if any(names) else 40)
    canvas = figure(top_px + row_px * max(1, -(-len(panels) // ACROSS)))
    for number, (name, panel) in enumerate(panels.items()):
        row, column = divmod(number, ACROSS)
        place = (left_px + 362 * column, top_px + HEADING_PX + row_px * row, width_px, height_px)
        axes = axes_at(canvas, place)
        if isinstance(panel, str):
            _heading(axes, name, "", left_px)
            say(axes, panel)
        else:
            _heading(axes, name, panel.words, left_px)
            draw(axes, panel)
            axes.set(xlabel=names[0], ylabel=names[1])
    legend(canvas, {words: Line2D([], [], **look) for words, look in keys.items()})
    return canvas


def _heading(axes: Axes, name: str, words: str, left_px: float) -> None:
    """Name in bold and words under it, above the axes; they begin where the cell of the panel begins."""
    bold: Look = {"weight": "bold", "fontsize": 14 * PX}
    for text, up_px, drawn in ((name, 33, bold), (words, 14, {"color": SOFT})):
        at: Look = {
            "xycoords": "axes fraction",
            "xytext": ((12 - left_px) * PX, up_px * PX),
            "textcoords": "offset points",
        }
        axes.annotate(plain(text, 345), (0, 1), **at, **drawn)


def legend(canvas: Figure, handles: Mapping[str, Any], across: int = 4) -> None:
    """Names of the handles at the top of the figure, `across` in a row."""
    if handles:
        place: Look = {"loc": "upper left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.1}
        canvas.legend(
            list(handles.values()), [plain(name, 900) for name in handles],
            ncols=across, handlelength=3.2, columnspacing=1.8, **place,
        )  # fmt: skip


def say(axes: Axes, words: str) -> None:
    """Words in the middle of axes that have nothing to show."""
    axes.set(xticks=[], yticks=[])
    width_px = axes.get_position().width * WIDTH_PX - 24
    text = "\n".join(_lines(plain(words), width_px))
    axes.text(0.5, 0.5, text, ha="center", va="center", color=SOFT, transform=axes.transAxes, linespacing=1.5)


def _lines(words: str, width_px: float) -> Iterator[str]:
    """`words` broken at its blanks into lines that fit into `width_px`."""
    line = ""
    for word in words.split(" "):
        longer = f"{line} {word}".strip()
        if line and _length_px(longer) > width_px:
            yield line
            line = word
        else:
            line = longer
    yield line


def plain(text: str, width_px: float | None = None) -> str:
    """`text` on one line, with ? for what the font cannot show, ending in dots where it is wider than `width_px`."""
    known = _font().get_charmap()
    shown = "".join(letter if ord(letter) in known and letter.isprintable() else "?" for letter in text)
    return shown if width_px is None else fitted(shown, width_px, _length_px)


def _font() -> Any:
    return font_manager.get_font(font_manager.findfont(_FONT))


def _length_px(text: str) -> float:
    font = _font()
    font.set_size(_TEXT_PX, 72)
    font.set_text(text)
    return font.get_width_height()[0] / 64


def look(number: int, sign: bool = True) -> Look:
    """Color, line style and sign of line `number`; they come round after 36."""
    color, line = COLORS[number % len(COLORS)], LINES[(number + number // len(COLORS)) % len(LINES)]
    return {"color": color, "linestyle": line} | ({"marker": SIGNS[number % len(SIGNS)]} if sign else {})


def with_interval(value: float | None, low: float | None, high: float | None, decimals: int = 3) -> str:
    """`0.912 (0.880 to 0.941)`; a dash where there is no value, the value alone where there is no interval."""
    if not defined(value):
        return DASH
    words = f"{value:.{decimals}f}"
    return f"{words} ({low:.{decimals}f} to {high:.{decimals}f})" if defined(low) and defined(high) else words


def defined(value: float | None) -> TypeGuard[float]:
    """Whether there is a value, and a finite one."""
    return value is not None and math.isfinite(value)
