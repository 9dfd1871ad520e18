"""A series model run over the slices of a converted data set: predictions of slices, and what it says of studies."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data import series
from trainer.data.dataset import Dataset, Slices, splits_of
from trainer.data.series_feed import Blur, SeriesFeed
from trainer.models import model_file
from trainer.models.model_file import About
from trainer.results import study_level, thresholds
from trainer.results.predictions import IDS, Predictions
from trainer.results.probability import sigmoid
from trainer.results.vectors import Vectors
from trainer.series import ending
from trainer.series import scoring as series_scoring
from trainer.series.scoring import Said
from trainer.shell.problems import WrongUse
from trainer.training import assembly, fitting, scoring

AS_IT_IS = Blur(0.0, 0.0, 0.0)
SLICE_MODEL = "slice_model"  # in a run of the second stage: the slice model as it came out, and its vectors
HEAD, BLEND = "series head", "blend"


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """Predictions of the slices, whose logits are the natural log odds of both networks.

    `ways`: how studies are judged besides by their greatest slice, see `measures.measure`.
    """

    slices: Predictions
    ways: Mapping[str, tuple[npt.NDArray[np.float64], Any]]

    @property
    def studies(self) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """`study_level.studies`, with the probabilities that triage ranks by."""
        labels, greatest, patients = study_level.studies(self.slices)
        shown, _ = self.ways.get(BLEND, (greatest, None))
        return labels, shown, patients


Judge = Callable[[Slices, int, Callable[[int, int], None]], Judged]


def judge_of(folder: Path, about: About, data: Dataset, flip: bool) -> Judge:
    """A function (slices of a split of `data`, batch size, tell) -> `Judged`, of a model of any kind, loaded once.

    `folder`: of the model, `about`: what is known of it. Batches are of slices, or of series where the model sees
    those; then vectors that lack are made first. Both raise `TrainerError`.
    """
    if about.blend is not None:
        return _SeriesModel(folder, about, data, flip).judge
    score = model_file.scorer(model_file.load_model(folder, about), flip)
    return lambda slices, batch_size, tell: Judged(scoring.predict_split(score, about, slices, batch_size, tell), {})


def anew(folder: Path, about: About, data: Dataset, tell: Callable[[int, int], None]) -> About:
    """`about` with blend, calibrations and thresholds fitted once more, by the run's own splits of `data`.

    `folder`: of the series model; nothing is written there. Raises `TrainerError`.
    """
    settings = fitting.own_settings(about, data)
    trained, held = (assembly.split(data, settings, name) for name in (settings.train_split, settings.validation_split))
    model = _SeriesModel(folder, about, data, False)
    said = model.say(held, settings.eval_batch_size, tell)
    found, mix = ending.fit(said, held, trained, model.mix.slice_odds, model.mix.odds)
    facts = {**about.facts, **found.facts}
    return dataclasses.replace(about, facts=facts, blend=mix, **found.decided)


class _SeriesModel:
    """A series model at work on the splits of a data set; `flip`: the mean over each slice and its mirror image."""

    def __init__(self, folder: Path, about: About, data: Dataset, flip: bool) -> None:
        assert about.blend is not None  # it is a series model
        self.mix = about.blend
        self._about, self._data, self._flip = about, data, flip
        self._context = model_file.load_model(folder, about)
        self._place = _slice_model(folder, about)

    def judge(self, slices: Slices, batch_size: int, tell: Callable[[int, int], None]) -> Judged:
        """`Judged` of a split; `batch_size`: series at a time."""
        said, labels = self.say(slices, batch_size, tell), self._about.spec.labels
        whole = self.mix.slice_log_odds(said.slice_logits, said.context_logits)
        ids, known = slices.table.select(list(IDS)), slices.labels.astype(np.int8)
        shown = self._about.probabilities(whole)
        logits = whole.astype(np.float32)
        found = Predictions(labels.names, labels.any, ids, known, logits, shown, slices.study_labels)
        heads = said.study_heads(found.studies)
        mixed = self.mix.study_log_odds(study_level.greatest(whole, found.studies), heads)
        ways = {
            HEAD: (sigmoid(self.mix.odds.log_odds(heads)), thresholds.unchosen(labels.names)),
            BLEND: (self.mix.study_probabilities(mixed), self.mix.study_thresholds),
        }
        return Judged(found, ways)

    def say(self, slices: Slices, batch_size: int, tell: Callable[[int, int], None]) -> Said:
        """What both networks say of a split, after the vectors that lack are made."""
        plan = series.plan(slices.table)
        series.require_order(plan, slices.table)
        views = self._views(slices)
        logits = [view.logits(np.arange(len(slices))) for view in views]
        return series_scoring.say(self._context, SeriesFeed(slices, plan, views, AS_IT_IS), logits, batch_size, tell)

    def _views(self, slices: Slices) -> list[Vectors]:
        """Vectors of the split, and of its mirror images."""
        about = model_file.read_about(model_file.find(self._place))
        names = splits_of([slices])
        scoring.embed(self._place, about, self._data, names, self._flip)
        return scoring.views(self._place, about, self._data, slices, self._flip)


def _slice_model(folder: Path, about: About) -> str:
    """Where its slice model lies with vectors, of the same weights: in its slice run, in its run; else beside it."""
    own = model_file.find(str(folder / model_file.SLICE))
    for place in (str(about.settings.get("slice_run") or ""), str(model_file.run_folder(folder) / SLICE_MODEL)):
        with contextlib.suppress(WrongUse):
            if place and model_file.digest(model_file.find(place)) == model_file.digest(own):
                return place
    return str(own)
