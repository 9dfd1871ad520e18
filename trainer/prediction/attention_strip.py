"""Where the head of a series model looks: a strip of the slices of a series from feet to head, below a picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ich_tfrecords.views.montage import ACCENT, BACKGROUND, BRIGHT, DIM, MARGIN_PX
from trainer.prediction.pen import HEAD_PX, SMALL_PX, TEXT_PX, TRACK, Pen
from trainer.prediction.triage import Attention

STRIP_PX = 72
ROW_PX, END_PX = 28, 180  # a line of words; what stands at each end of the strip
WIDEST_PX, NARROWEST_PX = 30, 2  # of the bar of a slice
FLOOR_PX = 2  # of a slice that nobody looks at, so that gaps are seen
MARK_PX, DASH_PX = 8, 6
BLOCK_PX = 4 * ROW_PX + STRIP_PX + MARK_PX + 16
NOTE = "The map is of the slice model, which sees this slice alone; the probabilities come from its neighbours as well."


def below(picture: Image.Image, attention: Attention, label: str, part: float) -> Image.Image:
    """`picture` with the strip of `attention` added below; that is of several slices, not all at one position.

    `label`: the name of its label; `part`: how much the series head counts in a study's probability of it, 0 to 1.
    """
    canvas = Image.new("RGB", (picture.width, picture.height + BLOCK_PX), BACKGROUND)
    canvas.paste(picture, (0, 0))
    pen, top = Pen(canvas), picture.height
    width = picture.width - 2 * MARGIN_PX
    head = f"where the series head looks for {label}; dashes: if it looked everywhere alike"
    pen.write((MARGIN_PX, top + ROW_PX // 2), head, HEAD_PX, DIM, width)
    _draw_slices(pen, top + ROW_PX + 6, width, attention)
    words = top + ROW_PX + STRIP_PX + MARK_PX + 22
    first, last = attention.position_mm[0], attention.position_mm[-1]
    pen.write((MARGIN_PX, words), f"feet, {first:.1f} mm", SMALL_PX, DIM, END_PX)
    pen.write((MARGIN_PX + width, words), f"head, {last:.1f} mm", SMALL_PX, DIM, END_PX, "rm")
    pen.write((MARGIN_PX + width / 2, words), _told(attention), TEXT_PX, ACCENT, width - 2 * END_PX, "mm")
    pen.write((MARGIN_PX, words + ROW_PX), NOTE, SMALL_PX, DIM, width)
    counts = (
        f"In the study's probability of {label} the series head counts {part:.0%}, the greatest slice {1 - part:.0%}."
    )
    pen.write((MARGIN_PX, words + ROW_PX + 22), counts, SMALL_PX, DIM, width)
    return canvas


def _told(attention: Attention) -> str:
    """`this slice: 12 of 34, 23% of the attention`."""
    count, share = len(attention.weights), float(attention.weights[attention.at])
    shown = "<1%" if 0 < share < 0.005 else f"{share:.0%}"
    return f"this slice: {attention.at + 1:,} of {count:,}, {shown} of the attention"


def _draw_slices(pen: Pen, top: int, width: int, attention: Attention) -> None:
    """A bar a slice at its place, as high as it has attention beside the slice that has most; one slice is marked."""
    pen.box((MARGIN_PX, top, MARGIN_PX + width - 1, top + STRIP_PX - 1), TRACK)
    bar_px, middles = _places(width, attention)
    a_share_px = (STRIP_PX - 6) / attention.weights.max()
    heights = np.maximum(np.rint(attention.weights * a_share_px), FLOOR_PX)
    # the shown one last: in a long series others lie over it
    for at in sorted(range(len(middles)), key=lambda at: at == attention.at):
        left, up = MARGIN_PX + middles[at] - bar_px // 2, top + STRIP_PX - int(heights[at])
        pen.box((left, up, left + bar_px - 1, top + STRIP_PX - 1), ACCENT if at == attention.at else BRIGHT)
    even = top + STRIP_PX - round(float(a_share_px) / len(middles))
    for left in range(MARGIN_PX, MARGIN_PX + width - DASH_PX, 2 * DASH_PX):
        pen.box((left, even, left + DASH_PX - 1, even), DIM)
    pen.mark((MARGIN_PX + middles[attention.at], top + STRIP_PX + 3), MARK_PX, ACCENT)


def _places(width: int, attention: Attention) -> tuple[int, list[int]]:
    """Width of a bar and the middle of each in pixels from the left, so that none reaches over an end."""
    position_mm = attention.position_mm.astype(np.float64)
    whole_mm = position_mm[-1] - position_mm[0]
    room = width - WIDEST_PX
    step_px = float(np.median(np.diff(position_mm))) / whole_mm * room
    bar_px = int(np.clip(0.7 * step_px, NARROWEST_PX, WIDEST_PX))
    middles = WIDEST_PX / 2 + (position_mm - position_mm[0]) / whole_mm * room
    return bar_px, np.rint(middles).astype(int).tolist()
