"""What slices look like beside those that the model was trained on, where that was kept with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ich_tfrecords.pixels import Tensor
from trainer.models import model_file
from trainer.models.model_file import About
from trainer.prediction.slice_stream import FoundSlice
from trainer.trust import portraits, scope_file
from trainer.trust.portraits import PATIENT, UIDS, Gathered, Looks
from trainer.trust.scope import NO, UNKNOWN, YES, Judgement, Scope

NO_SCOPE = "the model does not keep what it was trained on"
NOTE = f"scope unknown: {NO_SCOPE}; the same train command adds it, then export again"


class Looked(NamedTuple):
    """k slices: their looks, and the probabilities float64 [k, L] of the slice model whose vectors they are."""

    looks: Looks
    said: npt.NDArray[np.float64]


class Looker(NamedTuple):
    """What a slice model was trained on, and what is known of it."""

    scope: Scope
    about: About

    def grey(self, images: Tensor) -> portraits.Float32:
        """`portraits.shares` of images [k, size, size, channels]."""
        return portraits.grey_of(images, self.about.spec.image)

    def looked(
        self, grey: portraits.Float32, vectors: npt.NDArray[np.float16], said: npt.NDArray[np.float64]
    ) -> Looked:
        """Of slices: their `grey`, their vectors float16 [k, dim], and what the slice model said."""
        return Looked(self.scope.looks(grey, vectors), said)


def looker(folder: Path, about: About) -> Looker | None:
    """Of the model in a folder, of a series model its slice model; None where it does not keep what it was trained on.

    `about`: of that slice model. Raises `WrongUse` where what it kept is damaged.
    """
    found = scope_file.read(folder, model_file.digest(folder))
    return None if found is None else Looker(found, about)


class Scoping:
    """Gathers what was seen of each series, and judges them in the end."""

    def __init__(self, scope: Scope | None) -> None:
        self.scope = scope
        self._gathered = Gathered()
        self._patients: dict[int, int] = {}  # as slices have them -> a running number, which tells nothing of them
        self._whose: dict[tuple[str, str], int | None] = {}  # of each series

    def take(self, slices: Sequence[FoundSlice], looked: Looked | None) -> None:
        """Some more slices, and what they look like."""
        if looked is not None:
            keys = [(found.study_uid, found.series_uid) for found in slices]
            self._gathered.take(keys, [found.facts for found in slices], *looked)
            for key, found in zip(keys, slices):
                if key not in self._whose:
                    number = self._patients.setdefault(found.patient, len(self._patients)) if found.patient else None
                    self._whose[key] = number

    def table(self) -> pa.Table:
        """The portraits of the series, with their UIDs, and a number for the patient of each where one is named."""
        return self._gathered.named().add_column(len(UIDS), PATIENT, pa.array([*self._whose.values()], pa.int32()))

    def judged(self, table: pa.Table) -> dict[tuple[str, str], Judgement]:
        """Each series of `table` by study and series UID; none where nothing is known of training."""
        if self.scope is None:
            return {}
        return dict(zip(self._gathered.keys, self.scope.judge(table), strict=True))  # type: ignore[arg-type]

    def notes(self) -> list[str]:
        """Why nothing can be judged, for people; empty where it can."""
        if self.scope is None:
            return [NOTE]
        why = self.scope.lacking()
        return [f"scope unknown: {why}"] if why else []


def of_study(series: Sequence[Judgement]) -> Judgement:
    """What a study is, by its series: out of scope where all of them are; some are told, and change no rank."""
    if not series:
        return Judgement(UNKNOWN, NO_SCOPE)
    out = [one for one in series if one.in_scope == NO]
    if len(out) in (0, len(series)):
        return series[0]
    return Judgement(YES, f"{len(out)} of {len(series)} series out of scope: {out[0].reason}")
