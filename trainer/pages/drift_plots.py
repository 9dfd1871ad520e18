"""Figures of what has moved: how the series of a run were shared out, and how they are now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.pages import figures
from trainer.pages.figures import INK, Look
from trainer.pages.plots import BLUE, ORANGE

_BEFORE: Look = {"color": BLUE, "linestyle": "--"}
_NOW: Look = {"color": ORANGE, "linestyle": "-"}
_MOST_WORDS = 5  # that fit into a panel
_WORDS_PX = 250  # of all words side by side


class Shares(NamedTuple):
    """Shares of each side in bins: words under the name, `edges` [b + 1], `before` and `now` [b].

    `deep`: whether small shares are to be seen beside great ones.
    """

    words: str
    edges: Sequence[float]
    before: Sequence[float]
    now: Sequence[float]
    deep: bool = False


class Words(NamedTuple):
    """Shares of each side by word: words under the name, and of each word the share before and now."""

    words: str
    shares: Mapping[str, Sequence[float]]


Panel = Shares | Words


@figures.svg
def moved(panels: Mapping[str, Panel]) -> Figure:
    """A panel a thing: what the series of the run were like, dashed, and what it is like now."""
    keys = {"series of the run": _BEFORE, "now": _NOW}
    return figures.small_multiples(panels, _draw, keys, ("", "share"))


def _draw(axes: Axes, panel: Any) -> None:
    """`panel`: a `Panel`."""
    if isinstance(panel, Words):
        _draw_words(axes, panel)
    else:
        _draw_shares(axes, panel)
    axes.set_ylim(bottom=0)


def _draw_shares(axes: Axes, panel: Shares) -> None:
    axes.stairs(panel.now, panel.edges, fill=True, alpha=0.22, color=ORANGE, linewidth=0)
    for shares, look in ((panel.now, _NOW), (panel.before, _BEFORE)):
        axes.stairs(shares, panel.edges, linewidth=1.7, **look)
    top = max(*panel.before, *panel.now, 1e-9)
    if panel.deep:
        axes.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
        ticks = [0.0, *(tick for tick in (0.01, 0.05, 0.2, 0.5, 1.0) if tick <= top)]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set(xlim=(panel.edges[0], panel.edges[-1]), ylim=(0, 1.08 * top))


def _draw_words(axes: Axes, panel: Words) -> None:
    shown = list(panel.shares.items())[:_MOST_WORDS]
    for place, (_, (before, now)) in enumerate(shown):
        axes.bar(place - 0.2, before, 0.36, facecolor="none", edgecolor=BLUE, linewidth=1.5, linestyle="--")
        axes.bar(place + 0.2, now, 0.36, facecolor=(ORANGE, 0.3), edgecolor=ORANGE, linewidth=1.5)
    names = [figures.plain(word, _WORDS_PX / max(len(shown), 2)) for word, _ in shown]
    axes.set_xticks(range(len(shown)), names, color=INK)
    axes.set(xlim=(-0.6, max(len(shown), 2) - 0.4), ylim=(0, 1.05))
    axes.grid(visible=False, axis="x")
