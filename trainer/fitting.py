"""What is fitted on the validation split: the calibration of the labels, and thresholds of slices and of studies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trainer import assembly, calibration, hparams, joint, model_file, scoring, study_level, thresholds
from trainer.calibration import Calibration
from trainer.dataset import Dataset
from trainer.joint import Odds
from trainer.model_file import About
from trainer.predictions import Predictions
from trainer.problems import WrongUse

Thresholds = Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """The calibration, and for each label the rules that say which slice and which study is positive."""

    calibration: Calibration
    thresholds: Thresholds
    study_thresholds: Thresholds


def unfitted(names: Sequence[str], why: str) -> Fitted:
    """Where there is no validation split, for the reason `why`: natural log odds as they are, thresholds of 0.5."""
    even = thresholds.unchosen(names)
    return Fitted(calibration.unfitted(names, np.zeros(len(names)), why), even, even)


def fit(odds: Odds, ids: pa.Table, labels: Any, logits: Any) -> Fitted:
    """Fitted on the slices of a natural split that was not trained on.

    `ids`: the columns `predictions.IDS`; `labels` integers [n, L], -1 unknown; `logits` float [n, L] of the model.
    """
    natural = odds.log_odds(logits)
    fitted = calibration.fit(odds.names, labels, natural, np.zeros(len(odds.names)))
    shown = joint.coherent(fitted.probabilities(natural), odds.any_index)
    found = Predictions(odds.names, odds.any, ids, labels, logits, shown)
    of_studies, greatest, _ = study_level.studies(found)
    return Fitted(fitted, _chosen(odds.names, labels, shown), _chosen(odds.names, of_studies, greatest))


def _chosen(names: Sequence[str], labels: Any, probabilities: Any) -> dict[str, dict[str, float]]:
    return {name: thresholds.choose(labels[:, at], probabilities[:, at]) for at, name in enumerate(names)}


def anew(folder: Path, about: About, data: Dataset, tell: Callable[[int, int], None]) -> About:
    """`about` with odds, calibration and thresholds fitted once more, by the run's own splits of `data`.

    `folder`: of the model; nothing is written. Raises `TrainerError`.
    """
    if about.fingerprint != data.manifest.fingerprint:
        raise WrongUse(
            f"{data.place} is not the data set that the model was trained on, and its calibration is fitted on the "
            "validation split of that; name that one with --data_dir"
        )
    settings = hparams.from_dict(about.settings)
    if not settings.validation_split:
        raise WrongUse("the run had no validation split, so there is nothing to fit a calibration on")
    odds = assembly.odds_of(settings, assembly.split(data, settings, settings.train_split))
    held = assembly.split(data, settings, settings.validation_split)
    score = model_file.scorer(model_file.load_model(folder, about))
    said = scoring.predict_split(score, about, held, settings.eval_batch_size, tell)
    found = fit(odds, said.ids, said.labels, said.logits)
    return dataclasses.replace(about, odds=odds, **{key: getattr(found, key) for key in Fitted.__dataclass_fields__})
