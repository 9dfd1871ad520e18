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
from trainer.data.dataset import Dataset, Slices
from trainer.data.series_feed import Blur, SeriesFeed
from trainer.models import model_file
from trainer.models.model_file import About
from trainer.results import study_level, thresholds, vectors
from trainer.results.predictions import IDS, Predictions
from trainer.results.probability import sigmoid
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


def judge(
    folder: Path,
    about: About,
    data: Dataset,
    slices: Slices,
    flip: bool,
    batch_size: int,
    tell: Callable[[int, int], None],
) -> Judged:
    """`Judged` of a split of `data`, after the vectors that lack are made.

    `folder`: of the series model, `about`: what is known of it. `batch_size`: series at a time. Raises `TrainerError`.
    """
    mix = about.blend
    assert mix is not None  # it is a series model
    said = _said(folder, about, data, slices, flip, batch_size, tell)
    whole = mix.slice_log_odds(said.slice_logits, said.context_logits)
    labels, ids = about.spec.labels, slices.table.select(list(IDS))
    found = Predictions(
        labels.names,
        labels.any,
        ids,
        slices.labels.astype(np.int8),
        whole.astype(np.float32),
        about.probabilities(whole),
    )
    heads = said.study_heads(found.studies)
    mixed = mix.study_log_odds(study_level.greatest(whole, found.studies), heads)
    ways = {
        HEAD: (sigmoid(mix.odds.log_odds(heads)), thresholds.unchosen(labels.names)),
        BLEND: (mix.study_probabilities(mixed), mix.study_thresholds),
    }
    return Judged(found, ways)


def anew(folder: Path, about: About, data: Dataset, tell: Callable[[int, int], None]) -> About:
    """`about` with blend, calibrations and thresholds fitted once more, by the run's own splits of `data`.

    `folder`: of the series model; nothing is written there. Raises `TrainerError`.
    """
    settings = fitting.own_settings(about, data)
    trained, held = (assembly.split(data, settings, name) for name in (settings.train_split, settings.validation_split))
    mix = about.blend
    assert mix is not None  # it is a series model
    said = _said(folder, about, data, held, False, settings.eval_batch_size, tell)
    found, mix = ending.fit(said, held, trained, mix.slice_odds, mix.odds)
    facts = {**about.facts, "foreseen": found.foreseen}
    return dataclasses.replace(about, facts=facts, blend=mix, **found.decided)


def _said(
    folder: Path,
    about: About,
    data: Dataset,
    slices: Slices,
    flip: bool,
    batch_size: int,
    tell: Callable[[int, int], None],
) -> Said:
    plan = series.plan(slices.table)
    series.require_order(plan, slices.table)
    views = _views(folder, about, data, slices, flip)
    logits = [view.logits(np.arange(len(slices))) for view in views]
    feed = SeriesFeed(slices, plan, views, AS_IT_IS)
    return series_scoring.say(model_file.load_model(folder, about), feed, logits, batch_size, tell)


def _views(folder: Path, about: About, data: Dataset, slices: Slices, flip: bool) -> list[vectors.Vectors]:
    """Vectors of the split, and of its mirror images; those that lack are made."""
    place = _slice_model(folder, about)
    slice_about = model_file.read_about(model_file.find(place))
    names = sorted(slices.table["split"].unique().to_pylist())
    scoring.embed(place, slice_about, data, data.named(names), flip)
    sources = [scoring.source(place, slice_about, data, mirrored) for mirrored in (False, True)[: 1 + flip]]
    return [vectors.read(source, data, slices) for source in sources]


def _slice_model(folder: Path, about: About) -> str:
    """Where its slice model lies with vectors, of the same weights: in its slice run, in its run; else beside it."""
    own = folder / model_file.SLICE
    for place in (str(about.settings.get("slice_run") or ""), str(model_file.run_folder(folder) / SLICE_MODEL)):
        with contextlib.suppress(WrongUse):
            if place and model_file.digest(model_file.find(place)) == model_file.digest(own):
                return place
    return str(own)
