"""Charts as SVG text: bars of shares, a histogram, and windows drawn as ramps over HU.

Every text that comes in is escaped. Colors are those of Okabe and Ito, which people of all color visions
tell apart, and no chart depends on them: what a color says stands beside it in words.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ich_tfrecords.dataset.summary import Share
from ich_tfrecords.spec import Window

COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
WIDTH = 1080
_INK, _SOFT, _LINE = "#1b1f24", "#59636e", "#d8dee4"


def bars(groups: Sequence[tuple[str, Mapping[str, Share]]], title: str) -> str:
    """Horizontal bars of named shares in named groups, over one axis in percent."""
    bar_px, gap_px, left, right = 20, 14, 290, 230
    span = WIDTH - left - right
    most = max([0.01, *(share.part for _, members in groups for share in members.values())])
    step = nice_step(most, 5)
    steps = math.ceil(most / step - 1e-9)
    height = sum(len(members) * bar_px + gap_px for _, members in groups)
    parts = [
        _line(x, 0, x, height) + _text(x, height + 16, f"{100 * number * step:g}%", "middle", _SOFT)
        for number in range(steps + 1)
        for x in [left + span * number / steps]
    ]
    top = gap_px / 2
    for name, members in groups:
        parts.append(_text(0, top + bar_px * len(members) / 2 + 5, name, "start", _INK, bold=True))
        for number, (member, share) in enumerate(members.items()):
            length = span * share.part / (steps * step)
            y = top + number * bar_px
            parts.append(_text(left - 8, y + 14, member, "end", _SOFT))
            parts.append(_rect(left, y + 2, length, bar_px - 4, COLORS[number % len(COLORS)]))
            parts.append(_text(left + length + 7, y + 14, share.text, "start", _INK, halo=True))
        top += bar_px * len(members) + gap_px
    return _svg(height + 26, title, parts)


def histogram(values: Sequence[int], x_name: str, title: str) -> str:
    """Counts of whole numbers in at most 40 bins of equal width; the empty text for no values."""
    if not values:
        return ""
    first, width, counts = bins(values, 40)
    left, height, span = 60, 200, WIDTH - 80
    step = max(1, round(nice_step(max(counts), 4)))
    top_count = step * -(-max(counts) // step)
    parts = []
    for tick in range(0, top_count + 1, step):
        y = 10 + height - height * tick / top_count
        parts += [_line(left, y, left + span, y), _text(left - 8, y + 4, f"{tick:,}", "end", _SOFT)]
    bin_px = min(span / len(counts), 90.0)
    every = -(-len(counts) // 20)
    for number, count in enumerate(counts):
        x, tall = left + number * bin_px, height * count / top_count
        low = first + number * width
        parts.append(_rect(x + 1, 10 + height - tall, bin_px - 2, tall, COLORS[0]))
        if number % every == 0:
            name = f"{low:,}" if width == 1 else f"{low:,}-{low + width - 1:,}"
            parts.append(_text(x + bin_px / 2, height + 28, name, "middle", _SOFT))
    parts.append(_text(left, height + 50, x_name, "start", _SOFT))
    return _svg(height + 56, title, parts)


def bins(values: Sequence[int], most: int) -> tuple[int, int, list[int]]:
    """First value, width and counts of at most `most` bins over whole numbers; widths are 1, 2 or 5 times 10**n."""
    low, high = min(values), max(values)
    width = next(width for width in _round_widths() if high // width - low // width < most)
    first = low // width
    tally = Counter(value // width for value in values)
    return first * width, width, [tally[number] for number in range(first, high // width + 1)]


def _round_widths() -> Iterator[int]:
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10


def window_ramps(windows: Sequence[Window], title: str) -> str:
    """Each window as the greys it gives, over one axis in HU."""
    left, right, row_px = 120, 250, 44
    span = WIDTH - left - right
    lows = [window.level_hu - window.width_hu / 2 for window in windows]
    highs = [window.level_hu + window.width_hu / 2 for window in windows]
    margin_hu = (max(highs) - min(lows)) * 0.08
    least, most = min(lows) - margin_hu, max(highs) + margin_hu
    bottom = row_px * len(windows)

    def x_of(hu: float) -> float:
        return left + span * (hu - least) / (most - least)

    step = max(1, round(nice_step(most - least, 12)))
    ticks = range(math.ceil(least / step) * step, math.floor(most) + 1, step)
    parts = [_line(x_of(hu), 0, x_of(hu), bottom) for hu in ticks]
    parts += [_text(x_of(hu), bottom + 16, str(hu), "middle", _SOFT) for hu in ticks]
    parts.append(_text(left + span + 12, bottom + 16, "HU", "start", _SOFT))
    for number, (window, low, high) in enumerate(zip(windows, lows, highs, strict=True)):
        y, ramp = number * row_px + 6, f"ramp{number}"
        begin, end = ((hu - least) / (most - least) for hu in (low, high))
        stops = f'<stop offset="{begin:.4f}" stop-color="#000"/><stop offset="{end:.4f}" stop-color="#fff"/>'
        parts.append(f'<defs><linearGradient id="{ramp}">{stops}</linearGradient></defs>')
        parts.append(_rect(left, y, span, row_px - 12, f"url(#{ramp})", stroke=_SOFT))
        parts.append(_text(0, y + 21, window.name, "start", _INK, bold=True))
        words = f"level {window.level_hu}, width {window.width_hu}: {low:g} to {high:g} HU"
        parts.append(_text(left + span + 12, y + 21, words, "start", _INK))
    return _svg(bottom + 24, title, parts)


def nice_step(span: float, most: int) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that divides `span` into at most `most` steps."""
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    name = html.escape(title)
    head = f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{name}"><title>{name}</title>'
    return head + "".join(parts) + "</svg>"


def _rect(x: float, y: float, width: float, height: float, fill: str, stroke: str = "none") -> str:
    box = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
    return f'<rect {box} fill="{fill}" stroke="{stroke}"/>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{_LINE}"/>'


def _text(x: float, y: float, text: str, anchor: str, color: str, bold: bool = False, halo: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    outline = ' stroke="#fff" stroke-width="4" paint-order="stroke"' if halo else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}"'
    return f'<text {place}{weight}{outline} font-size="13">{html.escape(text)}</text>'
