"""Words, bars and warnings on a picture, each in the width that it is given."""

from __future__ import annotations

import bisect

from PIL import Image, ImageDraw, ImageFont

from ich_tfrecords.views import montage
from ich_tfrecords.views.montage import ACCENT, BACKGROUND, BRIGHT

Color = tuple[int, int, int] | str

TITLE_PX, HEAD_PX, TEXT_PX, SMALL_PX = 32, 19, 19, 15
BAR_PX, WARNING_PX = 18, 34
TRACK = (38, 43, 51)


class Pen:
    """Draws on a canvas; places are the left (or right) end and the middle of the height of what is drawn."""

    def __init__(self, canvas: Image.Image) -> None:
        self.canvas = canvas
        self._draw = ImageDraw.Draw(canvas)

    def length(self, text: str, size_px: int) -> float:
        return ImageFont.load_default(size=size_px).getlength(text)

    def write(
        self, at: tuple[float, float], text: str, size_px: int, color: Color, width_px: float, anchor: str = "lm"
    ) -> None:
        """Text that ends in dots where it is too wide."""
        font = ImageFont.load_default(size=size_px)
        self._draw.text(at, montage.fitted(text, width_px, font.getlength), fill=color, font=font, anchor=anchor)

    def title(self, at: tuple[float, float], text: str, width_px: float) -> None:
        """A line whose middle gives way where it is too wide: an id stands at its start and a number at its end."""
        lengths = range(8, max(8, len(text)) + 1)
        # by halving, for a damaged file may have made the text as long as it likes
        fitting = bisect.bisect_right(
            lengths, width_px, key=lambda most: self.length(montage.shortened(text, most), TITLE_PX)
        )
        self.write(at, montage.shortened(text, lengths[max(0, fitting - 1)]), TITLE_PX, BRIGHT, width_px)

    def warning(self, at: tuple[int, int], text: str, width_px: int) -> None:
        """Dark words on a bright bar; `at` is its upper left corner."""
        left, top = at
        self._draw.rectangle((left, top, left + width_px - 1, top + WARNING_PX - 1), fill=ACCENT)
        self.write((left + 10, top + WARNING_PX // 2), text, TEXT_PX, BACKGROUND, width_px - 20)

    def bar(self, at: tuple[float, float], width_px: float, part: float, color: Color) -> None:
        left, middle = at
        top, bottom = middle - BAR_PX // 2, middle + BAR_PX // 2
        self._draw.rectangle((left, top, left + width_px, bottom), fill=TRACK)
        if part > 0:
            self._draw.rectangle((left, top, left + max(2, round(width_px * part)), bottom), fill=color)
        for tick in (0.25, 0.5, 0.75):
            x = left + round(width_px * tick)
            self._draw.line((x, top, x, bottom), fill=BACKGROUND)

    def box(self, corners: tuple[int, int, int, int], color: Color) -> None:
        """A filled rectangle; `corners`: left, top, right and bottom, all of them inside."""
        self._draw.rectangle(corners, fill=color)

    def mark(self, at: tuple[int, int], size_px: int, color: Color) -> None:
        """A triangle that points up to `at`."""
        across, down = at
        self._draw.polygon(
            [(across, down), (across - size_px, down + size_px), (across + size_px, down + size_px)], color
        )
