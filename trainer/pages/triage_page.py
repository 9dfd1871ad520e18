"""The page `triage.html`: studies most urgent first, one HTML file without scripts and without a request.

Its size has a bound: pictures of the first `PICTURED` studies, rows of `LISTED`, and 200 rejects; the CSV files hold
all. The same results give the same bytes. Everything that comes from files is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ich_tfrecords.plural import counted
from ich_tfrecords.views import html_page
from ich_tfrecords.views.html_page import Image, Table
from ich_tfrecords.views.montage import shortened
from trainer.models.model_file import About
from trainer.prediction import outcome_lines, thumbnails, triage
from trainer.prediction.panel import Opinions
from trainer.prediction.picture_files import PANEL_PX, Pictured
from trainer.prediction.slice_stream import uid_hash
from trainer.prediction.thumbnails import Records, Thumbnails
from trainer.prediction.triage import Study, Triage, probability_text
from trainer.trust.scope import UNKNOWN

TEMPLATES = "trainer.pages"
PICTURED, LISTED = 50, 1000  # studies
MOST_THUMBNAILS, MOST_POINTS = 16, 512  # of a series
UNWANTED = "another series was read, or it is a copy"
UID_LETTERS, FILE_LETTERS = 64, 120  # shown of names from outside


class Label(NamedTuple):
    """A label of a study: its probability there and in the driving slice, in words; `percent`: that of the study.

    `group`: of `conformal.GROUPS`, None where nothing is promised; `spread`: of several models the lowest and the
    highest, in words, None of one.
    """

    name: str
    study: str
    slice: str
    percent: float
    calibrated: bool
    group: str | None
    spread: str | None


class Curve(NamedTuple):
    """Probabilities along a series from feet to head, in a box of 1000 x 100, and where its driving slice lies.

    `lines`: name of the label -> the corners of its line. `slices`: how many there are.
    """

    lines: Mapping[str, str]
    driver: float
    feet: str
    head: str
    slices: int


class Card(NamedTuple):
    """A study with pictures. `panels`: of the driving slice, with their words; `partial`: None where whole.

    `disagreed`: labels about which several models do, None where they agree or there is one. `scope`: what of it is
    unlike training, None where nothing is or nobody knows.
    """

    rank: int
    study_uid: str
    driver: str
    slices: str
    partial: str | None
    disagreed: str | None
    scope: str | None
    labels: Sequence[Label]
    panels: Sequence[tuple[str, Image]]
    strip: Image
    curve: Curve


class Row(NamedTuple):
    """A study without pictures; `partial`: None where whole; `group`: of "any", None where nothing is promised.

    `scope`: as of a `Card`.
    """

    rank: int
    study_uid: str
    any: str
    kind: str
    slices: str
    partial: str | None
    group: str | None
    scope: str | None


def shown(found: Triage) -> set[str]:
    """SOP UIDs of the driving slices of the studies with pictures."""
    return {study.driver.found.sop_uid for study in found.studies()[:PICTURED]}


def page(found: Triage, about: About, digest: str, kept: Thumbnails, pictured: Sequence[Pictured]) -> str:
    """HTML text of the page. `digest`: sha256 of the model; `kept`: all slices; `pictured`: panels of some."""
    studies, unread = found.studies(), found.without_slices()
    panels = {one.sop_uid: one.panels for one in pictured}
    cards = [_card(rank, study, found, about, kept, panels) for rank, study in enumerate(studies[:PICTURED], 1)]
    rows = [_row(rank, study, found, about) for rank, study in enumerate(studies[PICTURED:LISTED], PICTURED + 1)]
    return html_page.page(
        "triage.html",
        TEMPLATES,
        title=f"Triage of {counted(len(studies), 'study', 'studies')}",
        facts=_facts(found),
        ranked_by=outcome_lines.ranked_by(about),
        model=about.network,
        digest=digest,
        notes=[*outcome_lines.uncalibrated(about, found), *found.notes],
        models=len(found.panel.thresholds) if found.panel else 1,
        promise=found.promise.sentence() if found.promise else None,
        any=about.spec.labels.any,
        window=about.shown.image.windows[0].name,
        cards=cards,
        explained=sum(bool(card.panels) for card in cards),
        rows=rows,
        strange=[_row(rank, study, found, about) for rank, study in enumerate(studies, 1) if study.is_strange][:LISTED],
        more_strange=max(0, len(found.strange()) - LISTED),
        more=max(0, len(studies) - LISTED),
        unread=[(shortened(uid, UID_LETTERS), files, partial) for uid, files, partial in unread[:LISTED]],
        more_unread=max(0, len(unread) - LISTED),
        reasons=_reasons(found) if found.rejects else None,
        lost=[(shortened(one.file, FILE_LETTERS), one.input, one.reason, one.detail) for one in found.lost],
        astray=found.astray,
    )


def _facts(found: Triage) -> dict[str, str]:
    numbers = {
        "studies": len(found.studies()),
        "judged by a part of their slices": len(found.partial()),
        **({"unlike training": len(found.strange())} if found.judged else {}),
        "without any prediction": len(found.without_slices()),
        "slices": found.slices,
        "files without a prediction": found.rejects.total(),
    }
    return {name: f"{number:,}" for name, number in numbers.items()}


def _card(
    rank: int,
    study: Study,
    found: Triage,
    about: About,
    kept: Thumbnails,
    panels: Mapping[str, Sequence[tuple[str, bytes]]],
) -> Card:
    driver, names = study.driver.found, about.spec.labels.names
    series = kept.series(driver)
    at = int(np.flatnonzero(series["uid"] == uid_hash(driver.sop_uid))[0])
    return Card(
        rank,
        shortened(study.study_uid, UID_LETTERS),
        f"slice {shortened(driver.sop_uid, UID_LETTERS)} at {driver.position_mm:.1f} mm",
        counted(study.slices, "slice"),
        study.partial or None,
        ", ".join(found.panel.disagreed(study.opinions)) or None if found.panel else None,
        _scope(study),
        _labels(study, found, about),
        [(head, _image(data, f"{head} of the driving slice")) for head, data in panels.get(driver.sop_uid, ())],
        _strip(series, at),
        _curve(series, at, _told_labels(study, found, about), names),
    )


def _image(jpeg: bytes, alt: str) -> Image:
    return html_page.image(jpeg, "jpeg", alt, PANEL_PX)


def _labels(study: Study, found: Triage, about: About) -> list[Label]:
    refused = outcome_lines.refused_of_studies(about, found)
    names = about.spec.labels.names
    nothing = [None] * len(names)
    numbers = (study.probabilities.tolist(), study.driver.probabilities.tolist())
    told = (study.groups or nothing, _spreads(study.opinions) if study.opinions.size else nothing)
    return [
        Label(name, probability_text(whole), probability_text(one), 100 * whole, name not in refused, *words)
        for name, whole, one, *words in zip(names, *numbers, *told, strict=True)
    ]


def _spreads(opinions: Opinions) -> list[str]:
    ends = zip(opinions.min(axis=0).tolist(), opinions.max(axis=0).tolist(), strict=True)
    return [f"{probability_text(low)} to {probability_text(high)}" for low, high in ends]


def _told_labels(study: Study, found: Triage, about: About) -> list[int]:
    """Numbers of the labels whose curve is drawn: "any", and the study's likeliest kind."""
    labels = about.spec.labels
    kind = triage.likeliest_kind(study.probabilities, labels, outcome_lines.refused_of_studies(about, found))
    return list(dict.fromkeys((labels.names.index(labels.any), kind)))


def _strip(series: Records, driver: int) -> Image:
    rows = thumbnails.chosen(len(series), MOST_THUMBNAILS, driver)
    drawn = thumbnails.strip(series["thumbnail"][rows], rows.index(driver))
    alt = f"{counted(len(rows), 'slice')} of the series from feet to head"
    return html_page.image(thumbnails.jpeg_bytes(drawn), "jpeg", alt, drawn.width)


def _curve(series: Records, driver: int, told: Sequence[int], names: Sequence[str]) -> Curve:
    ends = (series["position_mm"][0], series["position_mm"][-1])
    feet, head = (f"{where}, {position:.1f} mm" for where, position in zip(("feet", "head"), ends, strict=True))
    lines = {names[label]: _corners(series["probabilities"][:, label]) for label in told}
    return Curve(lines, _across(driver, len(series)), feet, head, len(series))


def _corners(values: npt.NDArray[np.float32]) -> str:
    """`12.5,93.0 37.5,80.2`: a level line for a slice alone; of very many slices the greatest of each few."""
    count, begins = len(values), np.arange(0, len(values), -(-len(values) // MOST_POINTS))
    peaks = [(int(begin), float(value)) for begin, value in zip(begins, np.maximum.reduceat(values, begins))]
    if count == 1:
        return f"0,{100 - 100 * peaks[0][1]:.1f} 1000,{100 - 100 * peaks[0][1]:.1f}"
    return " ".join(f"{_across(at, count):.1f},{100 - 100 * value:.1f}" for at, value in peaks)


def _across(at: int, count: int) -> float:
    """Where a slice lies in the box: in the middle of its part, as its thumbnail does."""
    return round(1000 * (at + 0.5) / count, 1)


def _row(rank: int, study: Study, found: Triage, about: About) -> Row:
    labels, values = about.spec.labels, study.probabilities
    kind = triage.likeliest_kind(values, labels, outcome_lines.refused_of_studies(about, found))
    return Row(
        rank,
        shortened(study.study_uid, UID_LETTERS),
        probability_text(float(values[labels.names.index(labels.any)])),
        f"{labels.names[kind]} {probability_text(float(values[kind]))}",
        f"{study.slices:,}",
        study.partial or None,
        study.groups[labels.names.index(labels.any)] if study.groups else None,
        _scope(study),
    )


def _scope(study: Study) -> str | None:
    """What of a study is unlike training, in words."""
    if study.scope.in_scope == UNKNOWN or not study.scope.reason:
        return None
    return study.strangeness or study.scope.reason


def _reasons(found: Triage) -> Table:
    """How many files there are of each reason, and what that means."""
    rows = []
    for reason, files in found.rejects.most_common():
        never = found.never[reason]
        meaning = UNWANTED if reason in triage.NOT_WANTED else "missing"
        parts = {"never an axial CT slice": never, meaning: files - never}
        rows += [[reason, words, f"{number:,}"] for words, number in parts.items() if number]
    return Table(["reason", "meaning", "files"], rows, words=2)
