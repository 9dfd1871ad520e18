"""The page `audit.html`: the labels most likely wrong, each with its slice among its neighbours, in one HTML file.

No script, no request; the same results give the same bytes. Everything that comes from data or file names is escaped.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ich_tfrecords.views import html_page
from ich_tfrecords.views.html_page import Table
from ich_tfrecords.views.montage import ACCENT, BACKGROUND, shortened

TEMPLATES = "trainer.pages"
SHOWN = 100  # suspects
PANEL_PX, GAP_PX, RING_PX = 100, 4, 3
QUALITY = 85  # of JPEG
UID_LETTERS = 64
HEAD = ("label", "judged", "surely 1, given 0", "surely 0, given 1", "suspects", "clear ones")


class Suspect(NamedTuple):
    """A label in doubt. `probability`: of 1, held out; `fix`: whether a correction is proposed.

    `pictures`: uint8 [s, s], the slice and up to two on either side, from feet to head; `given`: their labels, -1 where
    unknown; `place`: which of them is in doubt.
    """

    rank: int
    sop_uid: str
    study_uid: str
    label: str
    probability: float
    score: float
    reasons: str
    fix: bool
    pictures: Sequence[npt.NDArray[np.uint8]]
    given: Sequence[int]
    place: int


def page(
    title: str,
    suspects: Sequence[Suspect],
    facts: Mapping[str, str],
    by_label: Sequence[Sequence[str]],
    runs: Sequence[str],
    fingerprint: str,
    look: str,
) -> str:
    """HTML text of the page. `by_label`: a row a label, as `HEAD` says; `look`: what a person has to do first."""
    return html_page.page(
        "audit.html",
        TEMPLATES,
        title=title,
        facts=facts,
        labels=Table(HEAD, by_label),
        runs=runs,
        fingerprint=fingerprint,
        look=look,
        suspects=[_card(one) for one in suspects],
    )


def _card(one: Suspect) -> dict[str, object]:
    given = one.given[one.place]
    words = f"{one.label}: given {given}, suggested {1 - given}"
    return {
        "rank": one.rank,
        "sop_uid": shortened(one.sop_uid, UID_LETTERS),
        "study_uid": shortened(one.study_uid, UID_LETTERS),
        "label": one.label,
        "given": given,
        "suggested": 1 - given,
        "probability": f"{one.probability:.3g}",
        "score": f"{one.score:.3g}",
        "reasons": one.reasons,
        "fix": one.fix,
        "strip": _strip(one, words),
        "around": ["?" if value < 0 else str(value) for value in one.given],
        "place": one.place,
    }


def _strip(one: Suspect, words: str) -> html_page.Image:
    """The pictures side by side, that of the slice in doubt in a frame."""
    wide = PANEL_PX + GAP_PX
    canvas = Image.new("RGB", (wide * len(one.pictures) - GAP_PX, PANEL_PX), BACKGROUND)
    for at, picture in enumerate(one.pictures):
        square = Image.fromarray(np.ascontiguousarray(picture)).resize((PANEL_PX,) * 2, Image.Resampling.BICUBIC)
        canvas.paste(square.convert("RGB"), (at * wide, 0))
    left = one.place * wide
    frame = (left, 0, left + PANEL_PX - 1, PANEL_PX - 1)
    ImageDraw.Draw(canvas).rectangle(frame, outline=ACCENT, width=RING_PX)
    out = io.BytesIO()
    canvas.save(out, "JPEG", quality=QUALITY)
    return html_page.image(out.getvalue(), "jpeg", f"slice {one.sop_uid} among its neighbours; {words}", canvas.width)
