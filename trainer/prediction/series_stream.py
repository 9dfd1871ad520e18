"""Files to what a series model says of them: series after series, pixels gone once the slice model has seen them.

Batches go through the slice model across the borders of series, so it works at its own rate however short they are.
The vectors of a series wait until it is whole, and those of a few short ones for each other: the context takes about
`TOGETHER` slices at a time. So memory does not depend on how many series there are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.data import series
from trainer.models.model_file import About
from trainer.prediction import neighbour_stream, slice_stream, thumbnails, triage
from trainer.prediction.heads import Heads
from trainer.prediction.looking import Looked, Looker
from trainer.prediction.neighbour_stream import series_of
from trainer.prediction.networks import Float16, Float32, InSeries
from trainer.prediction.slice_outcomes import NO_NUMBER, NOT_FINITE
from trainer.prediction.slice_stream import Batch, FoundSlice, Reject
from trainer.prediction.triage import Attention, Outcome, Probabilities

TOGETHER = 256  # padded slices that the context takes at once; a longer series goes alone


class Embedded(NamedTuple):
    """Slices of one series, and what the slice model makes of v views of each.

    `vectors` float16 [v, n, dim]; `logits` float32 [n, L], the mean over the views; `thumbnails` uint8 [n, px, px];
    `grey` float32 [n, ...], `Looker.grey`, of no width where nobody asks for it.
    """

    slices: list[FoundSlice]
    vectors: Float16
    logits: Float32
    thumbnails: npt.NDArray[np.uint8]
    grey: Float32

    def take(self, rows: npt.NDArray[np.int64]) -> Embedded:
        """The slices of these numbers, in their order."""
        slices = [self.slices[row] for row in rows]
        return Embedded(slices, self.vectors[:, rows], self.logits[rows], self.thumbnails[rows], self.grey[rows])


class Spoken(NamedTuple):
    """What the context says of a series: logits float32 [n, L] and [L], and attention float32 [n, L] that sums to 1."""

    slices: Float32
    series: Float32
    attention: Float32


def outcomes(
    heads: Heads, about: About, networks: InSeries, batch_size: int, looks: bool, looker: Looker | None = None
) -> Generator[Outcome, None, None]:
    """What a series model says of the files that `heads` has read; `looks`: with the attention of each slice.

    `looker`: tells what slices look like beside training.

    Slices come by study, series and position. Close the iterator (`contextlib.closing`) to end its thread early.
    """
    study = _Study(about)
    for rejects in heads.settle(about.spec, batch_size):
        yield triage.without_slices(rejects, len(rejects))
    lost: list[Reject] = []  # on the way, until the next outcome
    with contextlib.closing(slice_stream.decoded(heads.refs(), about.spec, batch_size, heads.inputs)) as batches:
        seen = neighbour_stream.batches(batches, networks.beside, batch_size) if networks.beside else batches
        ordered = _in_order(_whole(_embedded(seen, about, networks, lost, looker)), lost)
        for some in _together(ordered):
            for one, spoken in zip(some, _spoken(some, networks)):
                if all(np.isfinite(part).all() for part in spoken):
                    found = _outcome(one, spoken, about, study, lost, looks)
                    yield found if looker is None else found._replace(looked=_looked(looker, one))
                    lost.clear()
                else:
                    lost += [slice_stream.refused(found, NOT_FINITE, NO_NUMBER) for found in one.slices]
    yield triage.without_slices(lost, len(lost))._replace(studies=study.end())


def _looked(looker: Looker, one: Embedded) -> Looked:
    return looker.looked(one.grey, one.vectors[0], looker.about.probabilities(one.logits))


def _embedded(
    batches: Iterable[Batch], about: About, networks: InSeries, lost: list[Reject], looker: Looker | None
) -> Iterator[Embedded]:
    """The slices of each batch by series, as they come; `lost` grows by what gives no finite number."""
    for batch in batches:
        lost += batch.rejects
        if not batch.slices:
            continue
        views = [view(batch.images) for view in networks.views]
        vectors = np.stack([vectors for vectors, _ in views])
        logits = _mean([logits for _, logits in views])
        small = thumbnails.of_images(batch.images, about.shown.image)
        grey = looker.grey(batch.images) if looker else np.empty((len(batch.slices), 0), np.float32)
        whole = Embedded(batch.slices, vectors, logits, small, grey)
        good = np.isfinite(vectors).all(axis=(0, 2)) & np.isfinite(logits).all(axis=1)
        lost += [slice_stream.refused(batch.slices[row], NOT_FINITE, NO_NUMBER) for row in np.flatnonzero(~good)]
        kept = whole.take(np.flatnonzero(good))
        for _, some in groupby(enumerate(kept.slices), lambda pair: series_of(pair[1])):
            yield kept.take(np.array([at for at, _ in some]))


def _whole(parts: Iterable[Embedded]) -> Iterator[Embedded]:
    """Each series in one piece."""
    for _, some in groupby(parts, lambda part: series_of(part.slices[0])):
        pieces = list(some)
        slices = [found for piece in pieces for found in piece.slices]
        vectors = np.concatenate([piece.vectors for piece in pieces], 1)
        logits = np.concatenate([piece.logits for piece in pieces])
        small, grey = (np.concatenate(parts) for parts in zip(*((piece.thumbnails, piece.grey) for piece in pieces)))
        yield Embedded(slices, vectors, logits, small, grey)


def _mean(views: Sequence[Float32]) -> Float32:
    return np.asarray(np.mean(views, axis=0, dtype=np.float32))


def _in_order(whole: Iterable[Embedded], lost: list[Reject]) -> Iterator[Embedded]:
    """Each series from feet to head; `lost` grows by those of which nobody can tell the order."""
    for one in whole:
        rows = neighbour_stream.order(one.slices, lost)
        if len(rows):
            yield one.take(rows)


def _together(ordered: Iterable[Embedded]) -> Iterator[list[Embedded]]:
    """As many series as have `TOGETHER` slices once they are padded to the longest, and one at least."""
    some: list[Embedded] = []
    longest = 0
    for one in ordered:
        if some and (len(some) + 1) * max(longest, len(one.slices)) > TOGETHER:
            yield some
            some, longest = [], 0
        some.append(one)
        longest = max(longest, len(one.slices))
    if some:
        yield some


def _spoken(some: Sequence[Embedded], networks: InSeries) -> list[Spoken]:
    """What the context says of each series, the mean over the views."""
    longest = max(len(one.slices) for one in some)
    views, _, dim = some[0].vectors.shape
    place, mask = np.zeros((len(some), longest, 3), np.float32), np.zeros((len(some), longest), bool)
    vectors = np.zeros((views, len(some), longest, dim), np.float16)
    for at, one in enumerate(some):
        filled = slice(len(one.slices))
        place[at, filled] = series.place(np.array([found.position_mm for found in one.slices]))
        mask[at, filled], vectors[:, at, filled] = True, one.vectors
    found = [networks.context({"vectors": view, "place": place, "mask": mask}) for view in vectors]
    slices, heads, attention = map(_mean, zip(*found, strict=True))
    counts = [len(one.slices) for one in some]
    return [Spoken(slices[at, :count], heads[at], attention[at, :count]) for at, count in enumerate(counts)]


def _outcome(
    one: Embedded, spoken: Spoken, about: About, study: _Study, lost: Sequence[Reject], looks: bool
) -> Outcome:
    assert about.blend is not None
    log_odds = about.blend.slice_log_odds(one.logits, spoken.slices)
    probabilities = about.probabilities(log_odds)
    studies = study.add(one.slices[0].study_uid, log_odds.max(axis=0), spoken.series)
    attention = _attention(one, spoken, probabilities, about) if looks and len(one.slices) > 1 else ()
    files = len(one.slices) + len(lost)
    return Outcome(one.slices, probabilities, list(lost), files, attention, studies, thumbnails=one.thumbnails)


def _attention(one: Embedded, spoken: Spoken, probabilities: Probabilities, about: About) -> list[Attention]:
    """Where the series head looks for the leading label of each slice."""
    labels, refused = about.spec.labels, about.calibration.refused
    position_mm = np.array([found.position_mm for found in one.slices], np.float32)
    leading = [triage.leading_label(values, labels, refused) for values in probabilities]
    weights = {label: spoken.attention[:, label].copy() for label in set(leading)}
    return [Attention(label, position_mm, weights[label], at) for at, label in enumerate(leading)]


class _Study:
    """Gathers the series of the study that is under way; each call gives the probabilities of one that has ended."""

    def __init__(self, about: About) -> None:
        assert about.blend is not None
        self._blend = about.blend
        self._uid = ""
        self._greatest: list[Probabilities] = []  # log odds of slices, of each series
        self._heads: list[Float32] = []

    def add(self, study_uid: str, greatest: Probabilities, head: Float32) -> dict[str, Probabilities]:
        """One more series: its greatest log odds float64 [L], and the logits float32 [L] of its head."""
        ended = {} if study_uid == self._uid else self.end()
        self._uid = study_uid
        self._greatest.append(greatest)
        self._heads.append(head)
        return ended

    def end(self) -> dict[str, Probabilities]:
        """The last study."""
        if not self._heads:
            return {}
        greatest, heads = (np.max(parts, axis=0, keepdims=True) for parts in (self._greatest, self._heads))
        (probabilities,) = self._blend.study_probabilities(self._blend.study_log_odds(greatest, heads))
        self._greatest, self._heads = [], []
        return {self._uid: probabilities}
