"""What is fitted on the validation split: the calibration of the labels, and thresholds of slices and of studies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.data.dataset import Dataset
from trainer.models import model_file
from trainer.models.model_file import About
from trainer.results import calibration, conformal, joint, study_level, thresholds
from trainer.results.calibration import Calibration
from trainer.results.joint import Odds
from trainer.results.predictions import Predictions, patients_of
from trainer.results.probability import prevalence
from trainer.shell.problems import WrongUse
from trainer.training import assembly, hparams, scoring
from trainer.training.hparams import HParams

RESAMPLES = 200  # of the validation patients, to foresee what thresholds will hold

Thresholds = Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """The calibration, and for each label the rules that say which slice and which study is positive.

    `foreseen`: "slices" and "studies" -> label -> what its rules rest on and will hold, see `thresholds.foreseen`.
    `conformal`: what a promise about studies rests on, see `conformal.scores`.
    """

    calibration: Calibration
    thresholds: Thresholds
    study_thresholds: Thresholds
    foreseen: Mapping[str, Any]
    conformal: conformal.Scores

    @property
    def facts(self) -> dict[str, Any]:
        """What of it are facts of `About`, by their names."""
        return {name: getattr(self, name) for name in ("foreseen", "conformal")}

    @property
    def decided(self) -> dict[str, Any]:
        """What of it are fields of `About`, by their names."""
        return {name: getattr(self, name) for name in ("calibration", "thresholds", "study_thresholds")}


def unfitted(names: Sequence[str], why: str) -> Fitted:
    """Where there is no validation split, for the reason `why`: natural log odds as they are, thresholds of 0.5."""
    even = thresholds.unchosen(names)
    return Fitted(calibration.unfitted(names, np.zeros(len(names)), why), even, even, {}, {})


def fit(odds: Odds, ids: pa.Table, labels: Any, logits: Any, prevalence: Any) -> Fitted:
    """Fitted on the slices of a natural split that was not trained on.

    `ids`: the columns `predictions.IDS`; `labels` integers [n, L], -1 unknown; `logits` float [n, L] of the model;
    `prevalence` float [L] of the training split.
    """
    names, natural, patients = odds.names, odds.log_odds(logits), patients_of(ids)
    fitted = calibration.fit(names, labels, natural, np.zeros(len(names)), patients, prevalence)
    shown = joint.coherent(fitted.probabilities(natural), odds.any_index)
    of_studies, greatest, whose = study_level.studies(Predictions(names, odds.any, ids, labels, logits, shown))
    slices, studies = (labels, shown), (of_studies, greatest)
    foreseen = {"slices": _foreseen(names, *slices, patients), "studies": _foreseen(names, *studies, whose)}
    promised = conformal.scores(names, *studies, whose)
    return Fitted(fitted, chosen(names, *slices), chosen(names, *studies), foreseen, promised)


def chosen(names: Sequence[str], labels: Any, probabilities: Any) -> dict[str, dict[str, float]]:
    """Label -> rule -> threshold, by labels integers [n, L] and probabilities float [n, L] of slices or studies."""
    return {name: thresholds.choose(labels[:, at], probabilities[:, at]) for at, name in enumerate(names)}


def _foreseen(names: Sequence[str], labels: Any, probabilities: Any, patients: Any) -> dict[str, Any]:
    return {
        name: thresholds.foreseen(labels[:, at], probabilities[:, at], patients, RESAMPLES, seed=0)
        for at, name in enumerate(names)
    }


def anew(folder: Path, about: About, data: Dataset, tell: Callable[[int, int], None]) -> About:
    """`about` with odds, calibration and thresholds fitted once more, by the run's own splits of `data`.

    `folder`: of the model; nothing is written. Raises `TrainerError`.
    """
    settings = own_settings(about, data)
    training = assembly.split(data, settings, settings.train_split)
    odds, shares = assembly.odds_of(settings, training), prevalence(training.labels)
    held = assembly.split(data, settings, settings.validation_split)
    score = model_file.scorer(model_file.load_model(folder, about))
    said = scoring.predict_split(score, about, held, settings.eval_batch_size, tell)
    found = fit(odds, said.ids, said.labels, said.logits, shares)
    facts = {**about.facts, "prevalence": dict(zip(odds.names, shares.tolist())), **found.facts}
    return dataclasses.replace(about, odds=odds, facts=facts, **found.decided)


def own_settings(about: About, data: Dataset) -> HParams:
    """The settings of a run whose validation split is one of `data`. Raises `WrongUse`."""
    if about.fingerprint != data.manifest.fingerprint:
        raise WrongUse(
            f"{data.place} is not the data set that the model was trained on, and its calibration is fitted on the "
            "validation split of that; name that one with --data_dir"
        )
    settings = hparams.of_run(about.settings)
    if not settings.validation_split:
        raise WrongUse("the run had no validation split, so there is nothing to fit a calibration on")
    return settings
