"""One picture of a scored slice: its windows, the composite, what speaks for a label, and a bar a probability."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from ich_tfrecords.spec import DatasetSpec
from ich_tfrecords.views import montage
from ich_tfrecords.views.charts import COLORS
from ich_tfrecords.views.montage import ACCENT, BACKGROUND, BRIGHT, DIM, GAP_PX, MARGIN_PX
from trainer.prediction.pen import HEAD_PX, SMALL_PX, TEXT_PX, TITLE_PX, WARNING_PX, Pen
from trainer.prediction.triage import probability_text

Uint8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

PANEL_PX, LARGE_PANEL_PX = 288, 440
LEAST_WIDTH_PX = 2 * LARGE_PANEL_PX + GAP_PX
LEAST_BARS_PX, MOST_BARS_PX = 560, 1200
ROW_PX, SCALE_PX, SCALE_BLOCK_PX = 32, 14, 104
VALUE_PX, NOTE_PX = 84, 108  # columns of numbers and of notes
MID_GREY = 110
BAR = COLORS[4]

COLORMAP = "inferno"  # brighter is more, for every kind of color vision
DARKEST = 0.45  # where the colormap begins; what is darker would pass for air in the slice
DIMMED = 0.65  # the grey under the colors, so that brain is nowhere brighter than what speaks
MOST_ALPHA = 0.85  # the slice stays visible under the strongest color
HALF = 0.5  # what is at least so strong is ringed


class Explanation(NamedTuple):
    """What speaks for `label`: `cam` float32 [size, size] in [0, 1] as `explain` gives it, and the method's name."""

    cam: Float32
    label: str
    method: str


def picture(
    image: Uint8,
    spec: DatasetSpec,
    title: str,
    names: Sequence[str],
    probabilities: npt.NDArray[np.float64],
    explanation: Explanation | None,
    uncalibrated: Collection[str] = (),
    warning: str = "",
) -> Image.Image:
    """RGB picture of a slice, uint8 [size, size, windows], with its `probabilities` [L] of the labels `names`.

    `explanation` is laid over the first window; None leaves that panel out. Labels in `uncalibrated` are marked.
    A `warning` stands on a bar of its own below the title.
    """
    above = heads(spec, explanation)  # the more of them, the smaller the panels
    panel_px = min(LARGE_PANEL_PX, max(PANEL_PX, LEAST_WIDTH_PX // len(above) - GAP_PX))
    strip_px = montage.strip_width_px(len(above), panel_px)
    width = max(strip_px, LEAST_WIDTH_PX)
    top = MARGIN_PX + TITLE_PX + 22 + (WARNING_PX + 14 if warning else 0)
    under = top + HEAD_PX + 12 + panel_px + 20
    beside_px = strip_px - panel_px - MARGIN_PX  # what the scale, under the last panel, leaves to the bars
    bars_top, bars_px = under, width
    if explanation and beside_px >= LEAST_BARS_PX:
        bars_px = beside_px
    elif explanation:
        bars_top += SCALE_BLOCK_PX
    height = max(bars_top + (len(names) + 1) * ROW_PX, under + SCALE_BLOCK_PX) + MARGIN_PX - 8
    canvas = Image.new("RGB", (width + 2 * MARGIN_PX, height), BACKGROUND)
    pen = Pen(canvas)
    pen.title((MARGIN_PX, MARGIN_PX + TITLE_PX // 2), title, width)
    if warning:
        pen.warning((MARGIN_PX, MARGIN_PX + TITLE_PX + 14), warning, width)
    for number, (panel, head) in enumerate(zip(panels(image, explanation, panel_px), above, strict=True)):
        left = MARGIN_PX + number * (panel_px + GAP_PX)
        pen.write((left, top + HEAD_PX // 2), head, HEAD_PX, DIM, panel_px)
        canvas.paste(panel, (left, top + HEAD_PX + 12))
    if explanation:
        _draw_scale(pen, (MARGIN_PX + strip_px - panel_px, under), panel_px, explanation)
    found = dict(zip(names, probabilities, strict=True))
    driving = explanation.label if explanation else None
    _draw_bars(pen, bars_top, min(bars_px, MOST_BARS_PX), found, driving, uncalibrated)
    return canvas


def heads(spec: DatasetSpec, explanation: Explanation | None) -> list[str]:
    """What stands above each of the `panels` of a slice."""
    of_windows = montage.panel_heads(spec)
    return [*of_windows, f"{explanation.method} on {spec.image.windows[0].name}"] if explanation else of_windows


def panels(image: Uint8, explanation: Explanation | None, panel_px: int) -> list[Image.Image]:
    """The windows of a slice, the composite, and the map of an `explanation`, each `panel_px` wide and high."""
    shown = montage.panels(image, panel_px)
    return [*shown, overlay(shown[0], explanation.cam)] if explanation else shown


def overlay(panel: Image.Image, cam: Float32) -> Image.Image:
    """The dimmed `panel` with a map in color on it, the stronger the more opaque, and a ring at half of the most."""
    wide = Image.fromarray(cam.astype(np.float32)).resize(panel.size, Image.Resampling.BICUBIC)
    strength = np.clip(np.asarray(wide), 0, 1)
    strong = Image.fromarray(np.where(strength >= HALF, 255, 0).astype(np.uint8))
    inner, outer = (np.asarray(strong.filter(made(3))) for made in (ImageFilter.MinFilter, ImageFilter.MaxFilter))
    blended = _blended(np.asarray(panel), strength)
    # white within and black without, seen on bone and on air alike
    blended[np.asarray(strong) > inner] = 255
    blended[outer > np.asarray(strong)] = 0
    return Image.fromarray(blended)


def _blended(grey: Uint8, strength: Float32) -> Uint8:
    """Colors of `strength` [h, w] over dimmed pixels [h, w, 3]."""
    colors = matplotlib.colormaps[COLORMAP](DARKEST + (1 - DARKEST) * strength)[..., :3] * 255
    alpha = (MOST_ALPHA * np.sqrt(strength))[..., None]
    return np.rint((1 - alpha) * DIMMED * grey + alpha * colors).astype(np.uint8)


def _draw_scale(pen: Pen, at: tuple[int, int], width: int, explanation: Explanation) -> None:
    (left, top), label = at, explanation.label
    if not explanation.cam.any():
        pen.write((left, top + ROW_PX // 2), f"nothing speaks for {label}", TEXT_PX, BRIGHT, width)
        return
    pen.write((left, top + ROW_PX // 2), f"speaks for {label}", TEXT_PX, ACCENT, width)
    ramp = np.broadcast_to(np.linspace(0, 1, width, dtype=np.float32), (SCALE_PX, width))
    scale = Image.fromarray(_blended(np.full((SCALE_PX, width, 3), MID_GREY, np.uint8), ramp))
    pen.canvas.paste(scale, (left, top + ROW_PX + 4))
    words = top + ROW_PX + SCALE_PX + 18
    pen.write((left, words), "not at all", SMALL_PX, DIM, width // 3)
    pen.write((left + width, words), "most in this slice", SMALL_PX, DIM, width * 2 // 3, "rm")
    pen.write((left, words + 24), "ring: half of the most", SMALL_PX, DIM, width)


def _draw_bars(
    pen: Pen,
    top: int,
    width: int,
    probabilities: Mapping[str, float],
    driving: str | None,
    uncalibrated: Collection[str],
) -> None:
    """A row for each label: name, bar from 0 to 1, number, and a mark where not calibrated. `driving` stands out."""
    left, after = MARGIN_PX, VALUE_PX + (NOTE_PX if uncalibrated else 0)
    name_px = round(min(max(pen.length(name, TEXT_PX) for name in probabilities) + 14, (width - after) / 2))
    bar_px = width - after - name_px
    bar_left = left + name_px
    pen.write((bar_left, top + ROW_PX // 2), "probability", SMALL_PX, DIM, bar_px)
    pen.write((bar_left + bar_px / 2, top + ROW_PX // 2), "0.5", SMALL_PX, DIM, bar_px, "mm")
    pen.write((bar_left + bar_px, top + ROW_PX // 2), "1", SMALL_PX, DIM, bar_px, "rm")
    for row, (name, probability) in enumerate(probabilities.items(), 1):
        middle = top + row * ROW_PX + ROW_PX // 2
        color = ACCENT if name == driving else BRIGHT
        pen.write((left, middle), name, TEXT_PX, color, name_px - 8)
        pen.bar((bar_left, middle), bar_px, float(probability), ACCENT if name == driving else BAR)
        pen.write((bar_left + bar_px + 10, middle), probability_text(float(probability)), TEXT_PX, color, VALUE_PX)
        if name in uncalibrated:
            pen.write((bar_left + bar_px + VALUE_PX, middle), "not calibrated", SMALL_PX, DIM, NOTE_PX)
