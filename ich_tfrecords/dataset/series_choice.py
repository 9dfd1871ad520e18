"""Which series of a study is the one to read: the others with the reason of each.

Pure work on facts of series; whoever reads headers, the converter or the predictor, gathers them.
"""

from __future__ import annotations

import functools
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from ich_tfrecords.dataset.series_rules import SHARP, SOFT, SeriesRules
from ich_tfrecords.plural import counted

ALL, BEST, TOLD = "all", "best", "told"  # `TOLD`: as `BEST`, but only what a header says against a series leaves it out
OTHER, UNFIT = "other_series", "unfit_series"  # reasons: a better one was taken; none of the study qualifies
SHOWN_STUDIES = 3
HELP = (  # of the flag --series
    "all: every series of a study; best: one of each study, and none where none qualifies (12 slices, no contrast). "
    "Without it, of several series those are left out against which their header speaks beside a better one: contrast, "
    "sharp kernel, thickness. rejects.csv says why"
)


class SeriesFacts(NamedTuple):
    """What is known of a series before any pixels are read; None or "" where headers are silent.

    `thickness_mm`: the median over the slices. `contrast`, `derived`: of any slice. `labelled`: whether any slice has
    a label; True where no labels were given.
    """

    study_uid: str
    series_uid: str
    slices: int
    contrast: bool
    derived: bool
    kernel: str
    thickness_mm: float | None
    labelled: bool = True


class LeftOut(NamedTuple):
    """Why a series is not read: `OTHER` or `UNFIT`, the facts for people, and the kind of fact in a word or two."""

    reason: str
    detail: str
    kind: str


class _Why(NamedTuple):
    kind: str
    text: str


def series_facts(
    uids: tuple[str, str],
    slices: int,
    contrast: bool,
    derived: bool,
    kernels: Iterable[str | None],
    thickness_mm: Iterable[float | None],
    labelled: bool = True,
) -> SeriesFacts:
    """Facts of a series by its study and series UID, of what its slices say; of several kernels the first by name."""
    known_mm = [value for value in thickness_mm if value is not None]
    kernel = min(filter(None, kernels), default="")
    median_mm = round(statistics.median_low(known_mm), 3) if known_mm else None
    return SeriesFacts(*uids, slices, contrast, derived, kernel, median_mm, labelled)


def left_out(series: Iterable[SeriesFacts], rules: SeriesRules, mode: str) -> dict[tuple[str, str], LeftOut]:
    """Study and series UID of each series that is not to be read, and why. The order of `series` does not matter.

    `mode`: `ALL` leaves none out. `BEST` takes one series of each study, and none where none qualifies. `TOLD` takes
    the best where one qualifies, and leaves out only those of which their own header says what speaks against them.
    """
    if mode == ALL:
        return {}
    found: dict[tuple[str, str], LeftOut] = {}
    for _, group in groupby(sorted(series, key=_uids), lambda one: one.study_uid):
        found |= _of_study(list(group), rules, mode)
    return found


def _uids(one: SeriesFacts) -> tuple[str, str]:
    return one.study_uid, one.series_uid


def _of_study(study: Sequence[SeriesFacts], rules: SeriesRules, mode: str) -> dict[tuple[str, str], LeftOut]:
    fit = [one for one in study if not _unfit(one, rules)]
    if not fit and mode != BEST:
        return {}
    found = {}
    best = min(fit, key=functools.partial(_rank, rules=rules), default=None)
    for one in study:
        if best is None:
            why = _unfit(one, rules)[0]
            found[_uids(one)] = LeftOut(UNFIT, why.text, why.kind)
        elif one is not best and (against := (_worse if mode == BEST else _told_against)(one, best, rules)):
            why = against[0]
            found[_uids(one)] = LeftOut(OTHER, f"{why.text}; series {best.series_uid} was taken", why.kind)
    return found


def _unfit(one: SeriesFacts, rules: SeriesRules) -> list[_Why]:
    """Why a series does not qualify, the weightiest first; empty where it does."""
    found = [_Why("contrast", "contrast agent")] if one.contrast else []
    if one.slices < rules.least_slices:
        found.append(_Why("few slices", f"{counted(one.slices, 'slice')}, {rules.least_slices} are the least"))
    return found


def _faults(one: SeriesFacts, rules: SeriesRules) -> list[_Why]:
    """What the header says against a series, the weightiest first."""
    (low_mm, high_mm), mm = rules.thickness_mm, one.thickness_mm
    found = [_Why("contrast", "contrast agent")] if one.contrast else []
    if one.derived:
        found.append(_Why("derived", "made from another series"))
    if rules.kernel(one.kernel) == SHARP:
        found.append(_Why("sharp kernel", f"sharp kernel {one.kernel}"))
    if mm is not None and not low_mm <= mm <= high_mm:
        found.append(_Why("thickness", f"slices of {mm:g} mm, {low_mm:g} to {high_mm:g} mm are preferred"))
    return found


def _rank(one: SeriesFacts, rules: SeriesRules) -> tuple[object, ...]:
    """Least for the best of the series that qualify."""
    faults = {why.kind for why in _faults(one, rules)}
    told = [kind in faults for kind in ("derived", "sharp kernel")] + [rules.kernel(one.kernel) != SOFT]
    thickness = ["thickness" in faults, one.thickness_mm is None]
    return (not one.labelled, *told, *thickness, -one.slices, one.series_uid)


def _told_against(one: SeriesFacts, best: SeriesFacts, rules: SeriesRules) -> list[_Why]:
    """What the header says against a series and not against the best, which has labels where that has some."""
    if one.labelled > best.labelled:
        return []
    known = {why.kind for why in _faults(best, rules)}
    return [why for why in _faults(one, rules) if why.kind not in known]


def _worse(one: SeriesFacts, best: SeriesFacts, rules: SeriesRules) -> list[_Why]:
    """Why a series is not the best one of its study, the weightiest first; never empty."""
    found = [*_unfit(one, rules), *_told_against(one, best, rules)]
    if one.labelled < best.labelled:
        found.append(_Why("no label", "no slice has a label"))
    if rules.kernel(one.kernel) != SOFT and rules.kernel(best.kernel) == SOFT:
        found.append(_Why("kernel", f"kernel {one.kernel or 'not told'}, {best.kernel} is soft"))
    if one.thickness_mm is None and best.thickness_mm is not None:
        found.append(_Why("thickness", "thickness not told"))
    if one.slices < best.slices:
        found.append(_Why("fewer slices", f"{one.slices:,} of {best.slices:,} slices"))
    return [*found, _Why("alike", "nothing tells them apart but the UID")]


def notes(found: Mapping[tuple[str, str], LeftOut], slices: Mapping[tuple[str, str], int]) -> list[str]:
    """Lines for people about `left_out`; `slices`: how many each series has."""
    others = [uids for uids, why in found.items() if why.reason == OTHER]
    lines = []
    if others:
        kinds = Counter(found[uids].kind for uids in sorted(others))
        why = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
        what = f"{counted(sum(slices[uids] for uids in others), 'slice')} of {len(others):,} series"
        lines.append(f"{what} left out, as a better series of the study was taken ({why}); --series all takes all")
    unfit: dict[str, list[str]] = {}
    for (study, series), why_not in sorted(found.items()):
        if why_not.reason == UNFIT:
            unfit.setdefault(study, []).append(f"series {series}: {why_not.detail}")
    if unfit:
        shown = "; ".join(f"study {uid} ({', '.join(why)})" for uid, why in list(unfit.items())[:SHOWN_STUDIES])
        more = f" and {len(unfit) - SHOWN_STUDIES:,} more" if len(unfit) > SHOWN_STUDIES else ""
        studies = counted(len(unfit), "study", "studies")
        lines.append(f"no series qualifies in {studies}: {shown}{more}; --series all takes them")
    return lines
