"""Evaluated runs made comparable: folds of one cross-validation become one model, all models get the same slices."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainer.results.predictions import Predictions
from trainer.shell.problems import WrongUse


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """An evaluated run: `result` is its metrics.json, `history` the rows of its history.csv."""

    name: str
    result: Mapping[str, Any]
    predictions: Predictions
    history: Sequence[Mapping[str, float]]

    @property
    def what(self) -> Mapping[str, Any]:
        """What was evaluated: model, data set, split, settings, cost."""
        return self.result["what"]

    @property
    def elsewhere(self) -> bool:
        """Whether it was evaluated on another data set than it was trained on."""
        return bool(self.what["dataset"]["fingerprint"] != self.what["trained_on"])

    @property
    def seen(self) -> str:
        """`train_split` or `validation_split` where the training saw the evaluated slices as such, else empty."""
        settings, split = self.what["settings"], self.what["split"]
        of = [key for key in ("train_split", "validation_split") if settings.get(key) == split]
        return of[0] if of and not self.elsewhere else ""

    @property
    def prevalence(self) -> Mapping[str, float]:
        """Label -> share of positives where it was trained."""
        found: Mapping[str, float] = self.result["measures"]["skill"]["prevalence"]
        return found

    @property
    def threshold(self) -> float:
        """Of the label `any`, chosen on the validation split of this run."""
        return float(self.result["measures"]["labels"][self.predictions.any]["threshold"])


class Part(NamedTuple):
    """Predictions of a model, a row a slice.

    `flagged` bool [n]: whether `any` reaches the threshold of the run; `run` int64 [n]: which of the model's runs;
    `prevalence` float64 [n, L]: share of positives where that run was trained.
    """

    predictions: Predictions
    flagged: npt.NDArray[np.bool_]
    run: npt.NDArray[np.int64]
    prevalence: npt.NDArray[np.float64]

    def take(self, rows: npt.NDArray[Any]) -> Part:
        """These rows alone, in that order; a mask or numbers."""
        return Part(self.predictions.take(rows), *(values[rows] for values in self[1:]))


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A run, or the runs of one cross-validation.

    `folds`: how many the cross-validation has, 0 without one. `pooled`: each run answers for the validation fold of
    its own training, and `parts` is one, of all of them; else there is one part a run, and a value is their mean.
    """

    name: str
    runs: tuple[Run, ...]
    folds: int
    pooled: bool
    parts: tuple[Part, ...]

    @property
    def by_run(self) -> list[tuple[Run, Part]]:
        """Each run and what it answered for; runs that have no slice among those compared are left out."""
        if not self.pooled:
            return list(zip(self.runs, self.parts, strict=True))
        (pool,) = self.parts
        return [(self.runs[number], pool.take(pool.run == number)) for number in np.unique(pool.run)]


# runs to models


def group(runs: Sequence[Run]) -> list[Model]:
    """The models that the runs are of, in order of first appearance, their names unique.

    Raises `WrongUse` for a fold that stands twice, and for validation folds that share a patient, study or series.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_group_key(run), []).append(run)
    models = [_model(sorted(members, key=_fold)) for members in groups.values()]
    names = [model.name for model in models]
    return [
        dataclasses.replace(model, name=f"{model.name}: {model.runs[0].name}") if names.count(model.name) > 1 else model
        for model in models
    ]


def _group_key(run: Run) -> str:
    """Equal for the folds of one model, and for nothing else."""
    what = run.what
    if what["fold"] is None:
        return run.name
    settings = {key: value for key, value in what["settings"].items() if key not in ("fold", "seed")}
    same = [what["dataset"]["fingerprint"], what["trained_on"], what["split"], what["flip"], what["fold"][1], settings]
    return json.dumps(same, sort_keys=True)


def _fold(run: Run) -> int:
    return run.what["fold"][0] if run.what["fold"] else 0


def _model(runs: Sequence[Run]) -> Model:
    parts = [_part(number, run) for number, run in enumerate(runs)]
    if runs[0].what["fold"] is None:
        return Model(runs[0].name, tuple(runs), 0, False, tuple(parts))
    for one, other in itertools.pairwise(runs):
        if _fold(one) == _fold(other):
            raise WrongUse(f"{one.name} and {other.name} are both fold {_fold(one)} of one model; name one of them")
    folds, name = runs[0].what["fold"][1], _shared_name(runs)
    how_many = f"{folds} folds" if len(runs) == folds else f"{len(runs)} of {folds} folds"
    pooled = all(run.seen == "validation_split" for run in runs)
    shown = (pool(name, runs, parts),) if pooled else tuple(parts)
    return Model(f"{name} ({how_many})", tuple(runs), folds, pooled, shown)


def _part(number: int, run: Run) -> Part:
    predictions = run.predictions
    slices, times = np.unique(_sops(predictions), return_counts=True)
    if times.max(initial=1) > 1:
        raise WrongUse(
            f"{run.name}: slice {slices[times.argmax()]} stands twice in its predictions and so in its data set; "
            "convert the data again, which takes each slice once, and evaluate on that"
        )
    flagged = predictions.probabilities[:, predictions.any_index] >= run.threshold
    shares = [run.prevalence[name] for name in predictions.names]
    every = np.broadcast_to(np.array(shares, np.float64), predictions.labels.shape)
    return Part(predictions, flagged, np.full(len(predictions), number, np.int64), every)


def _shared_name(runs: Sequence[Run]) -> str:
    """What the names of all runs begin with, without `fold` at its end, or else the name of the network."""
    if len(runs) == 1:
        return runs[0].name
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*(run.name for run in runs)))
    start = "".join(letters[0] for letters in alike)
    return re.sub(r"[-_./ ]*fold[-_./ ]*\d*$|[-_./ ]+$", "", start) or str(runs[0].what["model"])


_APART = {"patient_key": "patient", "study_uid": "study", "series_uid": "series"}


def pool(name: str, runs: Sequence[Run], parts: Sequence[Part]) -> Part:
    """One part of all rows. Raises `WrongUse` where the parts share a patient or disagree on the labels."""
    first = parts[0].predictions
    owner: dict[tuple[str, str], str] = {}
    for run, part in zip(runs, parts, strict=True):
        if (part.predictions.names, part.predictions.any) != (first.names, first.any):
            raise WrongUse(f"{run.name} and {runs[0].name} are folds of {name} with different labels; evaluate again")
        for column, word in _APART.items():
            for key in part.predictions.ids[column].unique().to_pylist():
                if owner.setdefault((column, key), run.name) != run.name:
                    both = f"{owner[column, key]} and {run.name}"
                    raise WrongUse(f"{both} were both evaluated on {word} {key}; folds share none: train them again")
    arrays = [
        np.concatenate([getattr(part.predictions, what) for part in parts])
        for what in ("labels", "logits", "probabilities")
    ]
    ids = pa.concat_tables([part.predictions.ids for part in parts])
    others = (np.concatenate(values) for values in list(zip(*parts))[1:])
    return Part(Predictions(first.names, first.any, ids, *arrays), *others)


# models to the same slices


def align(models: Sequence[Model], anyway: bool) -> tuple[list[Model], list[str]]:
    """The models with the slices and labels that all of them share, in order of id; and how they differed.

    Raises `WrongUse` where they differ, unless `anyway`, and where they share nothing.
    """
    told = _differences(models)
    every = [part.predictions for model in models for part in model.parts]
    names = tuple(name for name in every[0].names if all(name in other.names for other in every))
    ids = [_sops(predictions) for predictions in every]
    shared = functools.reduce(np.intersect1d, ids)
    if any(len(own) != len(shared) for own in ids):
        sizes = ", ".join(f"{model.name} {len(model.parts[0].predictions):,}" for model in models)
        told.append(f"slices ({sizes}, all share {len(shared):,})")
    if not len(shared) or len({predictions.any for predictions in every}) > 1 or every[0].any not in names:
        raise WrongUse(f"the runs share nothing that could be compared: {'; '.join(told)}")
    ids_in_order = _narrow(models[0].parts[0], names, shared).predictions.ids
    models = [
        _with_parts(model, [_narrow(part, names, shared, ids_in_order) for part in model.parts]) for model in models
    ]
    disputed = _disputed(models)
    if disputed.any():
        told.append(f"the labels of {disputed.sum():,} slices")
        models = [_with_parts(model, [part.take(~disputed) for part in model.parts]) for model in models]
    _require_comparable(told, int((~disputed).sum()), anyway)
    return models, told


def _require_comparable(told: Sequence[str], slices: int, anyway: bool) -> None:
    if told and not anyway:
        raise WrongUse(
            f"the runs were evaluated on different things: {'; '.join(told)}; evaluate them on the same data and "
            "split, or add --anyway to compare them on what they share"
        )
    if not slices:
        raise WrongUse(f"the runs share no slice whose labels they agree on: {'; '.join(told)}")


def _differences(models: Sequence[Model]) -> list[str]:
    told = []
    first = [model.runs[0] for model in models]
    compared: list[tuple[str, list[Any], list[str]]] = [
        ("data sets", [run.what["dataset"]["fingerprint"] for run in first], [_dataset(run) for run in first]),
        ("splits", [run.what["split"] for run in first], [run.what["split"] for run in first]),
        (
            "labels",
            [(run.predictions.names, run.predictions.any) for run in first],
            [" ".join(run.predictions.names) for run in first],
        ),
    ]
    for what, values, words in compared:
        if any(value != values[0] for value in values):
            told.append(f"{what} ({', '.join(f'{model.name} {word}' for model, word in zip(models, words))})")
    return told


def _dataset(run: Run) -> str:
    dataset = run.what["dataset"]
    return f"{dataset['name']} {dataset['version']} {dataset['fingerprint'][:12]}"


def _with_parts(model: Model, parts: Sequence[Part]) -> Model:
    return dataclasses.replace(model, parts=tuple(parts))


def _sops(predictions: Predictions) -> npt.NDArray[Any]:
    return np.asarray(predictions.ids["sop_uid"].to_pylist(), object).astype(str)


def _narrow(part: Part, names: tuple[str, ...], sops: npt.NDArray[Any], ids: pa.Table | None = None) -> Part:
    """The slices `sops` in that order, and the labels `names` alone.

    `ids` take the place of their own ids: two data sets may have other keys for a patient.
    """
    own = _sops(part.predictions)
    order = np.argsort(own)
    kept = part.take(order[np.searchsorted(own, sops, sorter=order)])
    old = kept.predictions
    columns = [old.names.index(name) for name in names]
    labels, logits, probabilities = old.labels[:, columns], old.logits[:, columns], old.probabilities[:, columns]
    predictions = Predictions(names, old.any, ids or old.ids, labels, logits, probabilities)
    return kept._replace(predictions=predictions, prevalence=kept.prevalence[:, columns])


def _disputed(models: Sequence[Model]) -> npt.NDArray[np.bool_]:
    """bool [n]: slices whose labels are not the same to all."""
    every = [part.predictions.labels for model in models for part in model.parts]
    return functools.reduce(np.logical_or, [(labels != every[0]).any(axis=1) for labels in every])


# what is in doubt


_SEEN = {
    "train_split": "trained on these very slices, so nothing here says how good it is on new patients.",
    "validation_split": "calibration, thresholds and the best epoch were chosen on these very slices, so log loss, "
    "calibration error and decisions are kinder than on new patients.",
}


def doubts(models: Sequence[Model]) -> list[str]:
    """What a reader must know of the runs, as sentences: folds that are missing, slices that training has seen."""
    told = [sentence for model in models for sentence in _missing(model)]
    every = [run for model in models for run in model.runs]
    if len({run.what["trained_on"] for run in every}) > 1:
        told.append("The runs were trained on different data sets.")
    for split, words in _SEEN.items():
        told += _of_some(models, [run for run in every if run.seen == split], words)
    other = "trained on another data set than the one evaluated on; see to it that no patient is in both."
    return told + _of_some(models, [run for run in every if run.elsewhere], other)


def _missing(model: Model) -> list[str]:
    told = []
    if 0 < len(model.runs) < model.folds:
        folds = ", ".join(str(_fold(run)) for run in model.runs)
        told.append(f"{model.name}: only fold {folds} of {model.folds}; the numbers stand for these alone.")
    compared = [run.name for run, _ in model.by_run]
    lost = [run.name for run in model.runs if run.name not in compared]
    if lost:
        have = "has" if len(lost) == 1 else "have"
        names = ", ".join(lost)
        told.append(f"{model.name}: {names} {have} none of the slices that all runs share, and no part in the numbers.")
    return told


def _of_some(models: Sequence[Model], runs: Sequence[Run], words: str) -> list[str]:
    """`words` behind the names of the models that the `runs` are of; nothing without runs."""
    names = [model.name for model in models if any(run in runs for run in model.runs)]
    return [f"{'All runs' if len(names) == len(models) else ', '.join(names)}: {words}"] if names else []
