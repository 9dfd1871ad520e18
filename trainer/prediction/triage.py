"""Which study should be read first: one row a study, the slice that drives it, and the words for people.

A study is as urgent as its slice with the greatest probability of the label "any" (`LabelSpec.any`), or, by a series
model, as its own probability of that. One that was judged by a part of its slices says so wherever it is shown: what
was not seen may be worse.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ich_tfrecords.dataset import repeats, series_choice
from ich_tfrecords.problems import BY_NATURE, is_by_nature
from ich_tfrecords.spec import LabelSpec
from ich_tfrecords.storage.slice_reader import slice_name
from ich_tfrecords.views.montage import shortened
from trainer.prediction import looking
from trainer.prediction.looking import Looked
from trainer.prediction.panel import Opinions, Panel, spread
from trainer.prediction.slice_stream import FoundSlice, Reject
from trainer.results.conformal import Promise
from trainer.trust.scope import NO, UNKNOWN, Judgement

DIGITS = 6  # significant ones of a probability in a CSV file
NOT_WANTED = frozenset((repeats.COPY, series_choice.OTHER))  # reasons of slices that another one stands for
NOT_LOST = BY_NATURE | NOT_WANTED  # reasons of files that take no slice away from their study
MOST_LOST = 200  # rejects kept for a page
SCOPE = ("in_scope", "scope_reason")  # columns of triage.csv
CLEAR = 0.5  # of the probability of "any": a kind with less does not explain why a slice is urgent

Probabilities = npt.NDArray[np.float64]


class Attention(NamedTuple):
    """How much a series head looks at each of the n slices of a series, for the label number `label`.

    `position_mm` float32 [n], ascending; `weights` float32 [n], which sum to 1; `at`: which of them is shown.
    """

    label: int
    position_mm: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    at: int


class ScoredSlice(NamedTuple):
    """A slice and the probability of each label, float64 [L], in label order; `attention` of a series model's."""

    found: FoundSlice
    probabilities: Probabilities
    attention: Attention | None = None


class Outcome(NamedTuple):
    """What became of some files: slices with `probabilities` float64 [k, L], and rejects.

    `files`: of how many it is the end. `attention`: of each slice, or of none. `studies`: the probabilities float64 [L]
    of studies that are whole by now, where a series model gives them. `notes`: lines for people. `thumbnails` uint8
    [k, px, px]: `thumbnails.of_images` of the slices. `opinions` float64 [k, M, L]: of each model, where the mean of
    several is meant.
    """

    slices: list[FoundSlice]
    probabilities: Probabilities
    rejects: list[Reject]
    files: int
    attention: Sequence[Attention | None] = ()
    studies: Mapping[str, Probabilities] = MappingProxyType({})
    notes: Sequence[str] = ()
    thumbnails: npt.NDArray[np.uint8] = np.empty((0, 0, 0), np.uint8)
    opinions: Opinions = np.empty((0, 0, 0))
    looked: Looked | None = None  # what the slices look like beside training, where that is known


def without_slices(rejects: Sequence[Reject], files: int) -> Outcome:
    """The `Outcome` of some files of which none gives a slice by now."""
    return Outcome([], np.empty((0, 0)), list(rejects), files)


class Study(NamedTuple):
    """A study: its number of slices, the probability of each label, and the slice that drives it.

    `probabilities` float64 [L]: of a slice model the greatest over the slices, of a series model the study's own.
    `driver`: the slice with the greatest probability of "any", the first of equal ones. `rejected`: how many of its
    files gave no probability. `partial`: which of its slices are among those, in words; "" where none is. `groups`: of
    each label, see `conformal.Promise`; none where nothing was promised. `opinions` float64 [M, L]: of each of several
    models the greatest over the slices; empty of one. `scope`: whether its series look like training.
    """

    study_uid: str
    slices: int
    probabilities: Probabilities
    driver: ScoredSlice
    rejected: int = 0
    partial: str = ""
    groups: tuple[str, ...] = ()
    opinions: Opinions = np.empty((0, 0))
    scope: Judgement = Judgement(UNKNOWN)

    @property
    def is_strange(self) -> bool:
        """Whether it is out of scope, so that it is ranked apart: what the model says of it is worth nothing."""
        return self.scope.in_scope == NO

    @property
    def strangeness(self) -> str:
        """What of it is unlike training, in words; "" where it is not out of scope."""
        return f"OUT OF SCOPE: {self.scope.reason}" if self.is_strange else ""

    @property
    def warning(self) -> str:
        """What must be known wherever its numbers are shown; "" where nothing must."""
        if not self.partial:
            return self.strangeness
        # pictures have room for one reason, and the other stands in the list
        return f"{'OUT OF SCOPE; ' * self.is_strange}PARTIAL: the study was judged by {self.partial}"


class Triage:
    """Gathers scored slices into studies. Memory: one driving slice a study, and the `pictured` most urgent slices.

    `slices`: how many there are; `rejects`: how many files gave none, by reason; `never`: those of them that never
    were slices; `astray`: how many of the others are of no known study; `lost`: the first `MOST_LOST` files whose
    slices are missing; `notes`: lines for people; `promise`: by which studies are called negative or positive;
    `panel`: of several models that judge together; `judged`: of each series (study and series UID) what was decided
    about its scope, once all of them were taken.
    """

    def __init__(
        self, labels: LabelSpec, pictured: int, promise: Promise | None = None, panel: Panel | None = None
    ) -> None:
        self.promise, self.panel = promise, panel
        self._any = labels.names.index(labels.any)
        self._pictured = pictured
        self._studies: dict[str, Study] = {}
        self._top: list[tuple[float, int, ScoredSlice]] = []  # a heap, the least urgent first
        self._rejected: dict[str, Counter[str]] = defaultdict(Counter)
        self.slices = self.astray = 0
        self.rejects: Counter[str] = Counter()
        self.never: Counter[str] = Counter()
        self.judged: Mapping[tuple[str, str], Judgement] = {}
        self.lost: list[Reject] = []
        self.notes: list[str] = []

    def take(self, outcome: Outcome) -> None:
        """Count everything that `outcome` holds."""
        self.add(outcome.slices, outcome.probabilities, outcome.attention)
        if self.panel:
            self._hear(outcome.slices, outcome.opinions)
        self.reject(outcome.rejects)
        self.notes += outcome.notes
        for uid, probabilities in outcome.studies.items():
            self._studies[uid] = self._studies[uid]._replace(probabilities=probabilities)

    def add(
        self, slices: Sequence[FoundSlice], probabilities: Probabilities, attention: Sequence[Attention | None] = ()
    ) -> None:
        """Count `slices` with their `probabilities` float64 [k, L], and perhaps their `attention`."""
        for found, values, looked in zip(slices, probabilities, attention or [None] * len(slices), strict=True):
            scored = ScoredSlice(found, values.copy(), looked)
            self._add_to_study(scored)
            # the number keeps the first of equals, and ends the comparison before arrays
            heapq.heappush(self._top, (float(values[self._any]), -self.slices, scored))
            if len(self._top) > self._pictured:
                heapq.heappop(self._top)
            self.slices += 1

    def reject(self, rejects: Sequence[Reject]) -> None:
        """Count files without a prediction, by reason, and by study where that is known."""
        self.rejects.update(one.reason for one in rejects)
        for one in rejects:
            never = is_by_nature(one.reason, one.file)
            self.never.update([one.reason] * never)
            if len(self.lost) < MOST_LOST and not never and one.reason not in NOT_WANTED:
                self.lost.append(one)
            if one.study_uid:
                self._rejected[one.study_uid][one.reason] += 1
            else:
                self.astray += not never and one.reason != repeats.COPY

    def _hear(self, slices: Sequence[FoundSlice], opinions: Opinions) -> None:
        for found, own in zip(slices, opinions, strict=True):
            study = self._studies[found.study_uid]
            greatest = np.maximum(study.opinions, own) if study.opinions.size else own.copy()
            self._studies[found.study_uid] = study._replace(opinions=greatest)

    def _add_to_study(self, scored: ScoredSlice) -> None:
        uid, values = scored.found.study_uid, scored.probabilities
        before = self._studies.get(uid)
        if before is None:
            self._studies[uid] = Study(uid, 1, values, scored)
            return
        drives = values[self._any] > before.driver.probabilities[self._any]
        greatest = np.maximum(before.probabilities, values)
        driver = scored if drives else before.driver
        self._studies[uid] = before._replace(slices=before.slices + 1, probabilities=greatest, driver=driver)

    def studies(self) -> list[Study]:
        """Every study, most urgent first; equal ones in order of their UIDs. Those out of scope come behind."""
        series: dict[str, list[Judgement]] = defaultdict(list)
        for (uid, _), judgement in self.judged.items():
            series[uid].append(judgement)
        studies = [
            self._with_rejects(study._replace(scope=looking.of_study(series[study.study_uid])))
            for study in self._studies.values()
        ]
        return sorted(studies, key=self._urgency)

    def _urgency(self, study: Study) -> tuple[bool, float, str]:
        return study.is_strange, -float(study.probabilities[self._any]), study.study_uid

    def strange(self) -> list[Study]:
        """The studies out of scope, most urgent first."""
        return [study for study in self.studies() if study.is_strange]

    def _with_rejects(self, study: Study) -> Study:
        reasons = self._rejected.get(study.study_uid, Counter())
        partial = partial_text(study.slices, reasons)
        # a file of nobody knows which study may be any study's, and the promise is made for studies like validation's
        sure = not (partial or self.astray or study.is_strange)
        groups = self.promise.groups(study.probabilities, sure) if self.promise else ()
        return study._replace(rejected=reasons.total(), partial=partial, groups=groups)

    def without_slices(self) -> list[tuple[str, int, str]]:
        """UID, number of files, and `partial_text` of each study of which no file gave a probability, by UID."""
        unread = [(uid, reasons) for uid, reasons in self._rejected.items() if uid not in self._studies]
        return sorted((uid, reasons.total(), partial_text(0, reasons)) for uid, reasons in unread)

    def partial(self) -> dict[str, str]:
        """What is said of each study that was judged by a part of its slices, by UID."""
        return {study.study_uid: study.partial for study in self.studies() if study.partial}

    def warnings(self) -> dict[str, str]:
        """`Study.warning` of each study that has one, by UID."""
        return {study.study_uid: study.warning for study in self.studies() if study.warning}

    def to_picture(self) -> list[ScoredSlice]:
        """The slices worth a picture: the driving ones of the most urgent studies, then the most urgent others."""
        driving = [study.driver for study in self.studies()[: self._pictured]]
        uids = {scored.found.sop_uid for scored in driving}
        others = [scored for *_, scored in sorted(self._top, key=lambda entry: entry[:2], reverse=True)]
        return [*driving, *(scored for scored in others if scored.found.sop_uid not in uids)][: self._pictured]


def partial_text(slices: int, rejects: Mapping[str, int]) -> str:
    """`1 of 6 slices (missing: 5 uid_conflict)`, of its slices and its rejects by reason; "" where none is lost."""
    lost = sorted((-files, reason) for reason, files in rejects.items() if reason not in NOT_LOST)
    if not lost:
        return ""
    missing = ", ".join(f"{-files:,} {reason}" for files, reason in lost)
    return f"{slices:,} of {slices - sum(files for files, _ in lost):,} slices (missing: {missing})"


def rounded(probabilities: Sequence[float] | Probabilities) -> list[str]:
    """Each probability with `DIGITS` significant digits."""
    return [f"{value:.{DIGITS}g}" for value in probabilities]


def slice_head(labels: LabelSpec) -> list[str]:
    """Columns of predictions.csv."""
    return ["input", "file", "sop_uid", "study_uid", "series_uid", "position_mm", *labels.names]


def slice_row(found: FoundSlice, probabilities: Probabilities) -> list[object]:
    """A row of predictions.csv."""
    ids = [found.input, slice_name(found.ref), found.sop_uid, found.study_uid, found.series_uid]
    return [*ids, round(found.position_mm, 3), *rounded(probabilities)]


def study_head(labels: LabelSpec, found: Triage) -> list[str]:
    """Columns of triage.csv: behind the usual ones a group of each label, and what several models say of it."""
    known = ["rank", "study_uid", "slices", "rejected", "partial"]
    groups = [f"{name}_group" for name in labels.names] if found.promise else []
    spreads = [*(f"{name}_spread" for name in labels.names), "disagreed"] if found.panel else []
    return [*known, *labels.names, "driven_by", "input", "file", "position_mm", *SCOPE, *groups, *spreads]


def study_rows(found: Triage, labels: LabelSpec) -> Iterator[list[object]]:
    """Rows of triage.csv: studies most urgent first, then those without a slice, of which nothing is known."""
    for rank, study in enumerate(found.studies(), 1):
        driver = study.driver.found
        place = [driver.sop_uid, driver.input, slice_name(driver.ref), round(driver.position_mm, 3)]
        known: list[object] = [rank, study.study_uid, study.slices, study.rejected, study.partial]
        behind = [*study.scope, *study.groups, *_opinions(study, found.panel)]
        yield [*known, *rounded(study.probabilities), *place, *behind]
    for uid, files, partial in found.without_slices():
        known = ["", uid, 0, files, partial]
        yield known + [""] * (len(study_head(labels, found)) - len(known))


def _opinions(study: Study, panel: Panel | None) -> list[str]:
    return [*rounded(spread(study.opinions)), " ".join(panel.disagreed(study.opinions))] if panel else []


def likeliest_kind(probabilities: Probabilities, labels: LabelSpec, refused: Collection[str] = ()) -> int:
    """Index of the most likely kind of hemorrhage; of "any" where that is the only label.

    `refused`: labels that could not be calibrated; they count only where that holds for every kind.
    """
    kinds = [at for at, name in enumerate(labels.names) if name != labels.any]
    calibrated = [at for at in kinds if labels.names[at] not in refused]
    return max(calibrated or kinds, key=lambda at: probabilities[at], default=0)


def leading_label(probabilities: Probabilities, labels: LabelSpec, refused: Collection[str] = ()) -> int:
    """Index of the label that explains a slice: its likeliest kind, or "any" where no kind has `CLEAR` of that.

    A label that could not be calibrated (`refused`) explains only where the other could not either.
    """
    kind, whole = likeliest_kind(probabilities, labels, refused), labels.names.index(labels.any)
    kind_refused, any_refused = labels.names[kind] in refused, labels.any in refused
    if kind_refused != any_refused:
        return whole if kind_refused else kind
    return kind if probabilities[kind] >= CLEAR * probabilities[whole] else whole


def probability_text(probability: float) -> str:
    """`0.027`; what would round to 0 or 1 without being it is `<0.001` or `>0.999`."""
    if 0 < probability < 0.0005:
        return "<0.001"
    if 0.9995 <= probability < 1:
        return ">0.999"
    return f"{probability:.3f}"


def sentences(scored: ScoredSlice, labels: LabelSpec) -> list[str]:
    """What the probabilities say, a sentence for each kind of hemorrhage, and the last for any type."""
    who = shortened(scored.found.sop_uid, most=70)
    named = dict(zip(labels.names, map(probability_text, scored.probabilities.tolist()), strict=True))
    kinds = {name: f"{'an' if name[0] in 'aeiou' else 'a'} '{name}' type" for name in named if name != labels.any}
    kinds[labels.any] = "any type"
    return [f"{who} has a probability {named[name]} for {kind} of hemorrhage" for name, kind in kinds.items()]


def table(studies: Sequence[Study], labels: LabelSpec, most: int, refused: Collection[str] = ()) -> list[str]:
    """The first `most` studies (most urgent first) as lines of text in columns, below a head.

    `refused`: labels that could not be calibrated. The last column stands where one of the studies is partial.
    """
    head = ("rank", "study", "slices", labels.any, "most likely", "driven by slice", "")
    rows = [head, *(_table_row(rank, study, labels, refused) for rank, study in enumerate(studies[:most], 1))]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(map(_padded, row, widths, _IS_NUMBER)).rstrip() for row in rows]
    more = len(studies) - most
    return [*lines, f"... and {more:,} more"] if more > 0 else lines


_IS_NUMBER = (True, False, True, True, False, False, False)


def _table_row(rank: int, study: Study, labels: LabelSpec, refused: Collection[str]) -> tuple[str, ...]:
    shown = [probability_text(value) for value in study.probabilities.tolist()]
    kind = likeliest_kind(study.probabilities, labels, refused)
    return (
        f"{rank}",
        shortened(study.study_uid),
        f"{study.slices:,}",
        shown[labels.names.index(labels.any)],
        f"{shown[kind]} {labels.names[kind]}",
        shortened(study.driver.found.sop_uid),
        "; ".join(filter(None, (study.strangeness, f"PARTIAL: {study.partial}" if study.partial else ""))),
    )


def _padded(cell: str, width: int, is_number: bool) -> str:
    return cell.rjust(width) if is_number else cell.ljust(width)
