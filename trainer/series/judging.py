"""A series model run over the slices of a converted data set: predictions of slices, and what it says of studies."""

from __future__ import annotations

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
from trainer.series import scoring as series_scoring
from trainer.shell import vertex
from trainer.shell.problems import WrongUse
from trainer.training import scoring

AS_IT_IS = Blur(0.0, 0.0, 0.0)
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
    plan = series.plan(slices.table)
    series.require_order(plan, slices.table)
    views = _views(folder, about, data, slices, flip)
    logits = [view.logits(np.arange(len(slices))) for view in views]
    context = model_file.load_model(folder, about)
    said = series_scoring.say(context, SeriesFeed(slices, plan, views, AS_IT_IS), logits, batch_size, tell)
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


def _views(folder: Path, about: About, data: Dataset, slices: Slices, flip: bool) -> list[vectors.Vectors]:
    """Vectors of the split, and of its mirror images; those that lack are made."""
    place = _slice_model(folder, about)
    slice_about = model_file.read_about(model_file.find(place))
    names = sorted(slices.table["split"].unique().to_pylist())
    scoring.embed(place, slice_about, data, data.named(names), flip)
    sources = [scoring.source(place, slice_about, data, mirrored) for mirrored in (False, True)[: 1 + flip]]
    return [vectors.read(source, data, slices) for source in sources]


def _slice_model(folder: Path, about: About) -> str:
    """The slice run, where it is still what the series model was trained on: its vectors are there; else its copy."""
    own = folder / model_file.SLICE
    place = str(about.settings.get("slice_run") or "")
    try:
        same = bool(place) and model_file.digest(model_file.find(place)) == model_file.digest(own)
    except WrongUse:
        same = False
    return place if same else str(vertex.mounted(str(own)))
