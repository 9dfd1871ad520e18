"""A classical classifier on the vectors of a slice run: fitted on its training split, calibrated on its validation."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import sklearn

from ich_tfrecords.dataset import splits
from ich_tfrecords.plural import counted
from ich_tfrecords.storage.file_lock import FileLock
from ich_tfrecords.views import progress_line
from trainer.classical import estimators
from trainer.classical.kinds import Wanted
from trainer.data.dataset import Dataset, Slices, splits_of
from trainer.models import classical, model_file
from trainer.models.model_file import About
from trainer.results import joint
from trainer.results.predictions import IDS
from trainer.results.probability import prevalence
from trainer.results.vectors import Vectors
from trainer.shell import folder_lock
from trainer.shell.problems import WorkFailed, WrongUse
from trainer.training import assembly, ending, fitting, scoring
from trainer.training.fitting import Fitted

MOST_NUMBERS = 2**30  # of the vectors in memory, 4.3 GB; as much again where labels of some slices are unknown
ROWS = 8192  # at a time
# settings that move the odds of labels: a classical fit sees each slice once, by nature
NATURAL: Mapping[str, Any] = {
    "sampling": "natural", "proportions": {}, "data_shares": [], "label_smoothing": 0.0, "focal_gamma": 0.0,
}  # fmt: skip

Float32 = npt.NDArray[np.float32]


def classify(
    job_dir: str, about: About, data: Dataset, wanted: Wanted, output: Path, note: Callable[[str], None]
) -> None:
    """Fit it, calibrate it, and write the model into `output`; vectors that lack are made in the run first.

    `job_dir`: the slice run, `about`: of its model, `data`: what it was trained on. Raises `TrainerError`, `OSError`.
    """
    scoring.check_spec(about, data.manifest, data.place)
    settings = dataclasses.replace(fitting.own_settings(about, data), **NATURAL)
    trained, held = (assembly.split(data, settings, name) for name in (settings.train_split, settings.validation_split))
    _require_both(trained.labels[trained.labelled], trained)
    with contextlib.closing(_lock(output)):
        scoring.embed(job_dir, about, data, splits_of((trained, held)), False)
        of_trained, of_held = (scoring.views(job_dir, about, data, part, False)[0] for part in (trained, held))
        last = _fitted(wanted, trained, of_trained, note)
        found = _calibrated(_logits(last, of_held), held, trained)
        model = classical.with_last(model_file.load_model(model_file.find(job_dir), about), last)
        told = {**dataclasses.asdict(settings), model_file.CLASSIFIER: wanted.identity(job_dir)}
        about = dataclasses.replace(about, settings=told, **_known(about, model, trained, found))
        with progress_line.shown("scope", "batches", sys.stdout) as tell:
            scope = scoring.scope_of(model, about, trained, held, tell)
        note(f"model {model_file.write(output, model, about, scope=scope)}")
        note(ending.scope_line(scope))
    for line in found.calibration.told():
        note(line)


def _lock(output: Path) -> FileLock:
    try:
        return folder_lock.take(output, "--output")
    except OSError as error:
        raise WrongUse(f"cannot write into {output}: {error.strerror}; choose another --output") from error


def _known(about: About, model: keras.Model, trained: Slices, found: Fitted) -> dict[str, Any]:
    """Fields of `About` for the model with another last layer than that of `about`."""
    labels = trained.spec.labels
    facts = {
        **about.facts,
        "parameters": model.count_params(),
        "prevalence": dict(zip(labels.names, prevalence(trained.labels).tolist())),
        **found.facts,
        "versions": {**ending.versions(), "scikit-learn": sklearn.__version__},
    }
    return {"facts": facts, "odds": joint.unchanged(labels.names, labels.any), **found.decided}


def _require_both(labels: npt.NDArray[Any], trained: Slices) -> None:
    """Raises `WrongUse` where a label has one value alone, or none."""
    for value, word in ((1, "positive"), (0, "negative")):
        lacking = [name for at, name in enumerate(trained.spec.labels.names) if not (labels[:, at] == value).any()]
        if lacking:
            raise WrongUse(
                f"no slice of split {trained.split} is {word} for {', '.join(lacking)}, so no classifier can tell it; "
                "train the slice run on more data"
            )


def drawn(trained: Slices, most: int, seed: int) -> npt.NDArray[np.int64]:
    """Rows of the slices with a label, in order; of more than `most` so many, by a hash of `seed` and their ids."""
    rows = np.flatnonzero(trained.labelled)
    if len(rows) <= most:
        return rows
    hashed = splits.hash64(f"classify {seed}", trained.table["sop_uid"].take(rows).to_pylist())
    return np.sort(rows[np.argsort(hashed)[:most]])


def matrix(vectors: Vectors, rows: npt.NDArray[np.int64]) -> Float32:
    """float32 [n, dim], the vectors at `rows` int64 [n]."""
    found = np.empty((len(rows), vectors.dim), np.float32)
    for begin in range(0, len(rows), ROWS):
        found[begin : begin + ROWS] = vectors.rows(rows[begin : begin + ROWS])
    return found


def _fitted(wanted: Wanted, trained: Slices, vectors: Vectors, note: Callable[[str], None]) -> keras.layers.Layer:
    names, every = trained.spec.labels.names, int(trained.labelled.sum())
    rows = drawn(trained, MOST_NUMBERS // vectors.dim, wanted.seed)
    if len(rows) < every:
        note(f"fitted on {len(rows):,} of {counted(every, 'slice')}, drawn by their ids: more would not fit in memory")
    labels = trained.labels[rows]
    _require_both(labels, trained)
    with progress_line.shown(wanted.kind, wanted.steps(len(names))[1], sys.stdout) as tell:
        last, astray = estimators.fit(wanted, matrix(vectors, rows), labels, tell)
    for at in astray:
        note(f"{wanted.kind} of {names[at]} had not converged when its steps ran out; a smaller --c converges sooner")
    return last


def _logits(last: keras.layers.Layer, vectors: Vectors) -> Float32:
    """float32 [n, L]. Raises `WorkFailed` where one is not finite."""
    every = np.arange(len(vectors))
    parts = [last(vectors.rows(every[at : at + ROWS])).numpy() for at in range(0, len(every), ROWS)]
    found: Float32 = np.concatenate(parts)
    if not np.isfinite(found).all():
        raise WorkFailed("the classifier gives logits that are not finite; fit it with a smaller --c")
    return found


def _calibrated(logits: Float32, held: Slices, trained: Slices) -> Fitted:
    labels = held.spec.labels
    odds = joint.unchanged(labels.names, labels.any)
    return fitting.fit(odds, held.table.select(list(IDS)), held.labels, logits, prevalence(trained.labels))
