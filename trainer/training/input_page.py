"""One picture of slices as the model gets them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ich_tfrecords.views import montage

Uint8 = npt.NDArray[np.uint8]
PAGE_SLICES, PAGE_ACROSS = 16, 4
PANEL_PX, MIN_WIDTH_PX = 192, 340  # the least width of a slice and of the page
GAP_PX, HEAD_PX, LINE_PX, FONT_PX = 16, 36, 18, 15


def input_page(images: Uint8, labels: npt.NDArray[Any], names: Sequence[str], windows: Sequence[str]) -> Uint8:
    """Picture uint8 [H, W, 3] of up to 16 slices of a training batch, as the model gets them, with their labels.

    `images`: uint8 [n, size, size, windows], n >= 1; `labels`: int [n, L] in the order of `names` (1, 0, or -1
    unknown). Three windows stand as red, green and blue; otherwise the first is shown in grey. Pixels are
    enlarged by a whole number and not smoothed.
    """
    panels = [_panel(image) for image in images[:PAGE_SLICES]]
    font = ImageFont.load_default(size=FONT_PX)
    captions = [wrapped(_caption(row, names), panels[0].width, font.getlength) for row in labels[:PAGE_SLICES]]
    cell_px, row_px = panels[0].width + GAP_PX, panels[0].height + GAP_PX + LINE_PX * max(map(len, captions))
    across = min(len(panels), PAGE_ACROSS)
    width_px = max(across * cell_px + GAP_PX, MIN_WIDTH_PX)
    canvas = Image.new("RGB", (width_px, -(-len(panels) // across) * row_px + HEAD_PX), montage.BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    title = montage.fitted(_page_title(windows), width_px - 2 * GAP_PX, font.getlength)
    draw.text((GAP_PX, GAP_PX // 2), title, fill=montage.ACCENT, font=font)
    for number, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        left, top = GAP_PX + number % across * cell_px, HEAD_PX + number // across * row_px
        canvas.paste(panel, (left, top))
        draw.text((left, top + panel.height + 4), "\n".join(caption), fill=montage.BRIGHT, font=font)
    return np.asarray(canvas)


def _page_title(windows: Sequence[str]) -> str:
    return f"{', '.join(windows)} as red, green, blue" if len(windows) == 3 else f"{windows[0]} window"


def _panel(image: Uint8) -> Image.Image:
    shown = image if image.shape[-1] == 3 else np.repeat(image[..., :1], 3, axis=-1)
    times = -(-PANEL_PX // image.shape[0])
    return Image.fromarray(np.ascontiguousarray(shown.repeat(times, axis=0).repeat(times, axis=1)))


def _caption(labels: npt.NDArray[Any], names: Sequence[str]) -> list[str]:
    found = [name for name, value in zip(names, labels, strict=True) if value == 1]
    return found or ["labels unknown" if (labels == -1).any() else "no label positive"]


def wrapped(words: Sequence[str], width_px: float, length_px: Callable[[str], float]) -> list[str]:
    """`words` with commas between them, in as few lines as fit into `width_px`; a word is not broken."""
    lines = [words[0]]
    for word in words[1:]:
        if length_px(f"{lines[-1]}, {word},") <= width_px:
            lines[-1] += f", {word}"
        else:
            lines[-1] += ","
            lines.append(word)
    return lines
