"""The end of a series run: blend with the slice model, calibration, thresholds of slices and studies, export."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Dataset, Slices
from trainer.data.series_feed import SeriesFeed
from trainer.models import model_file
from trainer.models.model_file import About
from trainer.results import blend, calibration, joint, study_level
from trainer.results.blend import Blend
from trainer.results.joint import Odds
from trainer.results.predictions import IDS, Predictions
from trainer.results.probability import prevalence
from trainer.series import scoring
from trainer.series.scoring import Said
from trainer.training import ending, fitting, metrics
from trainer.training.fitting import Fitted
from trainer.training.loop import Loop
from trainer.training.state import State


@dataclasses.dataclass(frozen=True, eq=False)
class Ended:
    """A run whose training is done: its loop, data set and state, and the feed of each split by name."""

    loop: Loop
    data: Dataset
    state: State
    feeds: Mapping[str, SeriesFeed]


def finish(run: Ended, slice_folder: Path, build: Callable[[], keras.Model], note: Callable[[str], None]) -> None:
    """Take the best weights, blend them with the slice model, calibrate, score the test split, export.

    `build` makes the architecture. What is written into the run is one model: the context, and the slice model in the
    folder `model_file.SLICE` beside it.
    """
    loop = run.loop
    ending.meet(loop.devices)  # the chief has written the best weights by now
    loop.saver.load_best(run.state)
    if loop.devices.chief:
        _finish(run, slice_folder, build, note)
    ending.meet(loop.devices)  # a worker that leaves earlier would look lost to the others


def _finish(run: Ended, slice_folder: Path, build: Callable[[], keras.Model], note: Callable[[str], None]) -> None:
    loop, settings = run.loop, run.loop.settings
    copy = model_file.float32_copy(loop.network.model, build)
    slice_about = model_file.read_about(slice_folder)
    assert slice_about.odds is not None  # `assembly.slice_run` refuses one without
    held, test = (run.feeds.get(name) for name in (settings.validation_split, settings.test_split))
    fitted, mix = _unfitted(slice_about.odds, loop.data.odds)
    if held is not None:
        fitted, mix = _fitted(loop, copy, held, slice_about.odds)
    found: dict[str, Any] = {"best": run.state.best, "epochs": run.state.epoch, "steps": run.state.step}
    found["fingerprint"] = run.data.manifest.fingerprint
    if test is not None:
        found[settings.test_split] = _result(_said(loop, copy, test), test, mix)
    model_file.write(loop.doors.run_dir.export, copy, _about(run, fitted, mix, slice_about), slice_folder)
    loop.doors.run_dir.write_result(found)
    told = ending.result_lines(found, loop, None if test is None else test.slices)
    for line in (*told, *mix.told(), *ending.calibration_lines(loop, fitted)):
        note(line)
    note(f"model {loop.doors.run_dir.export / model_file.MODEL}")


def _said(loop: Loop, model: keras.Model, feed: SeriesFeed) -> Said:
    one = dataclasses.replace(feed, views=feed.views[:1])
    logits = one.views[0].logits(np.arange(len(feed.slices)))
    return scoring.say(model, one, [logits], loop.settings.eval_batch_size, lambda done, total: None)


def _fitted(loop: Loop, model: keras.Model, held: SeriesFeed, slice_odds: Odds) -> tuple[Fitted, Blend]:
    """What the validation split says: the parts of the context, calibrations and thresholds."""
    odds = loop.data.odds
    names, any_name = odds.names, odds.any
    said, labels, trained = _said(loop, model, held), held.slices.labels, loop.data.train.slices
    ids, expected = held.slices.table.select(list(IDS)), prevalence(trained.labels)
    rows = Predictions(names, any_name, ids, labels.astype(np.int8), said.slice_logits, np.zeros(labels.shape))
    plain, context = slice_odds.log_odds(said.slice_logits), odds.log_odds(said.context_logits)
    slices = blend.fit(names, labels, plain, context, rows.patients, expected)
    whole = slices.log_odds(plain, context)
    fitted = fitting.fit(joint.unchanged(names, any_name), ids, labels, whole, expected)
    of_studies, _, patients = study_level.studies(rows)
    levels = (study_level.greatest(whole, rows.studies), odds.log_odds(said.study_heads(rows.studies)))
    expected = prevalence(_study_labels(trained))
    studies = blend.fit(names, of_studies, *levels, patients, expected)
    mixed = studies.log_odds(*levels)
    straight = calibration.fit(names, of_studies, mixed, np.zeros(len(names)), patients, expected)
    shown = joint.coherent(straight.probabilities(mixed), odds.any_index)
    chosen = fitting.chosen(names, of_studies, shown)
    return fitted, Blend(slice_odds, odds, slices, studies, straight, chosen)


def _study_labels(slices: Slices) -> npt.NDArray[np.int8]:
    ids, shape = slices.table.select(list(IDS)), slices.labels.shape
    names = slices.spec.labels
    rows = Predictions(
        names.names, names.any, ids, slices.labels.astype(np.int8), np.zeros(shape, np.float32), np.zeros(shape)
    )
    return study_level.studies(rows)[0]


def _unfitted(slice_odds: Odds, odds: Odds) -> tuple[Fitted, Blend]:
    """Without a validation split nothing can be chosen: the context alone speaks, as it is."""
    why = "the run had no validation split"
    fitted, mix = fitting.unfitted(odds.names, why), blend.alone(odds.names, why)
    return fitted, Blend(slice_odds, odds, mix, mix, fitted.calibration, fitted.study_thresholds)


def _about(run: Ended, fitted: Fitted, mix: Blend, slice_about: About) -> About:
    about = ending.about_of(run.loop, run.data, run.state, fitted)
    facts = {**about.facts, "slice_model": slice_about.settings["model"]}
    facts["parameters"] += slice_about.facts["parameters"]
    facts["vector_dim"] = next(iter(run.feeds.values())).views[0].dim
    return dataclasses.replace(about, facts=facts, odds=_natural(mix), blend=mix)


def _natural(mix: Blend) -> Odds:
    return joint.unchanged(mix.odds.names, mix.odds.any)


def _result(said: Said, feed: SeriesFeed, mix: Blend) -> dict[str, float]:
    """The metrics of a split, of slice model and context together."""
    log_odds, scores = mix.slice_log_odds(said.slice_logits, said.context_logits), metrics.Scores()
    scores.add(feed.slices.labels, log_odds, np.ones(len(log_odds)), np.arange(len(log_odds)))
    return scores.result(_natural(mix))
