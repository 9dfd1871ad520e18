"""The end of a series run: blend with the slice model, calibration, thresholds of slices and studies, export."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from trainer.data.dataset import Dataset, Slices
from trainer.data.series_feed import SeriesFeed
from trainer.models import model_file
from trainer.results import blend, calibration, conformal, joint, study_level
from trainer.results.blend import Blend
from trainer.results.joint import Odds
from trainer.results.predictions import IDS, patients_of, studies_of
from trainer.results.probability import prevalence
from trainer.series import scoring
from trainer.series.scoring import Said
from trainer.training import ending, fitting, metrics
from trainer.training.fitting import Fitted
from trainer.training.loop import Loop
from trainer.training.state import State


@dataclasses.dataclass(frozen=True, eq=False)
class Ended:
    """What a run leaves: the context network in float32, the folder of its slice model, and a feed a split by name."""

    context: keras.Model
    slice_folder: Path
    feeds: Mapping[str, SeriesFeed]


def finish(loop: Loop, data: Dataset, state: State, left: Callable[[], Ended], note: Callable[[str], None]) -> None:
    """Take the best weights, blend context and slice model, calibrate, score the test split, export.

    `left`: what the run leaves, called on the chief once the best weights are in place. What is written is one model:
    the context, and the slice model in the folder `model_file.SLICE` beside it.
    """
    ending.meet(loop.devices)  # the chief has written the best weights by now
    loop.saver.load_best(state)
    if loop.devices.chief:
        _finish(loop, data, state, left(), note)
    ending.meet(loop.devices)  # a worker that leaves earlier would look lost to the others


def _finish(loop: Loop, data: Dataset, state: State, run: Ended, note: Callable[[str], None]) -> None:
    settings, slice_about = loop.settings, model_file.read_about(run.slice_folder)
    assert slice_about.odds is not None  # `assembly.slice_run` refuses one without
    held, test = (run.feeds.get(name) for name in (settings.validation_split, settings.test_split))
    fitted, mix = _unfitted(slice_about.odds, loop.data.odds)
    if held is not None:
        said, trained = _said(loop, run.context, held), loop.data.train.slices
        fitted, mix = fit(said, held.slices, trained, slice_about.odds, loop.data.odds)
    found: dict[str, Any] = {"best": state.best, "epochs": state.epoch, "steps": state.step}
    found["fingerprint"] = data.manifest.fingerprint
    if test is not None:
        found[settings.test_split] = _result(_said(loop, run.context, test), test, mix)
    about = ending.about_of(loop, data, state, fitted)
    dim = next(iter(run.feeds.values())).views[0].dim
    facts = {**about.facts, "slice_model": slice_about.network, "vector_dim": dim}
    facts |= {name: slice_about.facts[name] for name in ("windows",) if name in slice_about.facts}
    facts["parameters"] = run.context.count_params() + slice_about.facts["parameters"]
    about = dataclasses.replace(about, facts=facts, odds=_natural(mix), blend=mix)
    model_file.write(loop.doors.run_dir.export, run.context, about, run.slice_folder)
    loop.doors.run_dir.write_result(found)
    told = ending.result_lines(found, loop, None if test is None else test.slices)
    for line in (*told, *mix.told(), *ending.calibration_lines(loop, fitted)):
        note(line)
    note(f"model {loop.doors.run_dir.export / model_file.MODEL}")


def _said(loop: Loop, model: keras.Model, feed: SeriesFeed) -> Said:
    one = dataclasses.replace(feed, views=feed.views[:1])
    logits = one.views[0].logits(np.arange(len(feed.slices)))
    return scoring.say(model, one, [logits], loop.settings.eval_batch_size, lambda done, total: None)


def fit(said: Said, held: Slices, trained: Slices, slice_odds: Odds, odds: Odds) -> tuple[Fitted, Blend]:
    """The parts of the context, calibrations and thresholds, by what is `said` of `held`, the validation split.

    `trained`: the split that was trained on. `slice_odds`, `odds`: of the slice model and of the context.
    """
    names, labels, ids = odds.names, held.labels, held.table.select(list(IDS))
    patients, whose = patients_of(ids), studies_of(ids)
    plain, context = slice_odds.log_odds(said.slice_logits), odds.log_odds(said.context_logits)
    slices = blend.fit(names, labels, plain, context, patients, prevalence(trained.labels))
    whole = slices.log_odds(plain, context)
    fitted = fitting.fit(joint.unchanged(names, odds.any), ids, labels, whole, prevalence(trained.labels))
    of_studies = study_level.labels(labels, whose, held.study_labels)
    patients = study_level.greatest(patients, whose)
    levels = (study_level.greatest(whole, whose), odds.log_odds(said.study_heads(whose)))
    trained_on = study_level.labels(trained.labels, studies_of(trained.table), trained.study_labels)
    expected = prevalence(trained_on)
    studies = blend.fit(names, of_studies, *levels, patients, expected)
    mixed = studies.log_odds(*levels)
    straight = calibration.fit(names, of_studies, mixed, np.zeros(len(names)), patients, expected)
    shown = joint.coherent(straight.probabilities(mixed), odds.any_index)
    fitted = dataclasses.replace(fitted, conformal=conformal.scores(names, of_studies, shown, patients))
    return fitted, Blend(slice_odds, odds, slices, studies, straight, fitting.chosen(names, of_studies, shown))


def _unfitted(slice_odds: Odds, odds: Odds) -> tuple[Fitted, Blend]:
    """Without a validation split nothing can be chosen: the context alone speaks, as it is."""
    why = "the run had no validation split"
    fitted, mix = fitting.unfitted(odds.names, why), blend.alone(odds.names, why)
    return fitted, Blend(slice_odds, odds, mix, mix, fitted.calibration, fitted.study_thresholds)


def _natural(mix: Blend) -> Odds:
    return joint.unchanged(mix.odds.names, mix.odds.any)


def _result(said: Said, feed: SeriesFeed, mix: Blend) -> dict[str, float]:
    """The metrics of a split, of slice model and context together."""
    log_odds, scores = mix.slice_log_odds(said.slice_logits, said.context_logits), metrics.Scores()
    scores.add(feed.slices.labels, log_odds, np.ones(len(log_odds)), np.arange(len(log_odds)))
    return scores.result(_natural(mix))
