"""The end of a run: its best weights scored on held-out slices, calibrated on validation slices, and exported."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import tensorflow as tf

from ich_tfrecords import __version__
from ich_tfrecords.dataset import splits
from ich_tfrecords.plural import counted
from trainer.data.dataset import Dataset, Slices
from trainer.data.feed import SliceFeed
from trainer.models import model_file, window_layer, windows
from trainer.models.model_file import About
from trainer.results import cohort, study_level
from trainer.results.predictions import IDS, studies_of
from trainer.results.probability import competition_weights, logit, prevalence
from trainer.training import assembly, fitting, metrics, scoring, steps
from trainer.training.fitting import Fitted
from trainer.training.hparams import HParams
from trainer.training.loop import Loop
from trainer.training.state import State
from trainer.training.strategy import Devices
from trainer.trust.scope import Scope


def finish(loop: Loop, data: Dataset, test: Slices | None, state: State, note: Callable[[str], None]) -> None:
    """Take the best weights; score them on the test split, calibrate them on the validation split, export them."""
    meet(loop.devices)  # the chief has written the best weights by now
    loop.saver.load_best(state)
    found = {"best": state.best, "epochs": state.epoch, "steps": state.step, "fingerprint": data.manifest.fingerprint}
    if test is not None:
        found[loop.settings.test_split] = loop.result(loop.evaluate(SliceFeed(test)))
    decided = _calibrated(loop)
    if loop.devices.chief:
        copy = model_file.float32_copy(
            loop.network.model, lambda: assembly.build_model(loop.settings, data, weights="none")
        )
        about = about_of(loop, data, state, decided)
        scope = _scope(loop, copy, about)
        model_file.write(loop.doors.run_dir.export, copy, about, scope=scope)
        loop.doors.run_dir.write_result(found)
        note(scope_line(scope))
    lines = (*result_lines(found, loop, test), *window_lines(loop, data), *calibration_lines(loop, decided))
    for line in lines:
        note(line)
    note(f"model {loop.doors.run_dir.export / model_file.MODEL}")
    meet(loop.devices)  # a worker that leaves earlier would look lost to the others


def meet(devices: Devices) -> None:
    """Wait until every worker is here."""
    if devices.workers > 1:
        steps.summed(devices, [0.0])


def _calibrated(loop: Loop) -> Fitted:
    """Of the weights as they are: the calibration, and thresholds of slices and of studies, by the validation split."""
    held = loop.data.validation
    if held is None:
        return fitting.unfitted(loop.data.labels, "the run had no validation split")
    rows, labels, logits = loop.evaluate(held).arrays()
    ids = held.slices.table.select(list(IDS)).take(pa.array(rows))
    return fitting.fit(loop.data.odds, ids, labels, logits, prevalence(loop.data.train.slices.labels))


def _scope(loop: Loop, model: keras.Model, about: About) -> Scope | None:
    """What the model was trained on, as far as a series tells. Raises `Stopped`."""
    held = loop.data.validation
    parts = (loop.data.train.slices, None if held is None else held.slices)
    return scoring.scope_of(model, about, *parts, loop.evaluated)


def scope_line(scope: Scope | None) -> str:
    """Whether predictions will say what is out of scope, in words."""
    if scope is None:
        return "scope: not fitted, for slices of a bucket come as streams; with --cache_dir DIR they can be drawn"
    if why := scope.lacking():
        return f"scope: predictions will not say what is unlike training: {why}"
    series, patients = len(scope.training.portraits), counted(scope.validation.many, "patient")
    return f"scope: by {counted(series, 'series', 'series')} of training and {patients} of validation"


def about_of(loop: Loop, data: Dataset, state: State, found: Fitted) -> About:
    """What is to be known of the model of a run that ends, with what was `found` on the validation split."""
    facts = {
        **place_facts(data),
        "parameters": loop.network.model.count_params(),
        "epoch": int(state.best.get("epoch", state.epoch)),
        "step": state.step,
        "prevalence": dict(zip(loop.data.labels, prevalence(loop.data.train.slices.labels).tolist())),
        **found.facts,
        "cohort": cohort_of(loop.data.train.slices),
        "versions": versions(),
        **window_facts(loop.settings, data, loop.network.model),
    }
    settings = dataclasses.asdict(loop.settings)
    spec, fingerprint = data.manifest.spec, data.manifest.fingerprint
    return About(spec, fingerprint, settings, facts=facts, odds=loop.data.odds, **found.decided)


def window_facts(settings: HParams, data: Dataset, model: keras.Model) -> dict[str, Any]:
    """How the model windows HU; nothing where the data set did that."""
    inside = assembly.windows_of(settings, data.manifest.spec.image)
    return {} if inside is None else {"windows": window_layer.facts(model, inside)}


def place_facts(data: Dataset) -> dict[str, Any]:
    """Where the data set lies; of several as one where each lies, and which they are."""
    if len(data.parts) == 1:
        return {"data_dir": _lasting(data.place)}
    return {
        "data_dir": [_lasting(part.place) for part in data.parts],
        "data_sets": [part.manifest.fingerprint for part in data.parts],
    }


def _lasting(place: str) -> str:
    """The same place from whatever folder it is looked for."""
    return place if place.startswith("gs://") else str(Path(place).absolute())


def cohort_of(slices: Slices) -> dict[str, Any]:
    """What they are like, see `cohort.told`."""
    of_studies = study_level.labels(slices.labels, studies_of(slices.table), slices.study_labels)
    return cohort.told(slices.table, slices.spec.labels.names, slices.labels, of_studies)


def versions() -> dict[str, str]:
    """What computes here, by name."""
    own = {"ich_tfrecords": __version__, "python": platform.python_version()}
    return {**own, "tensorflow": tf.__version__, "keras": keras.__version__}


def result_lines(found: Mapping[str, Any], loop: Loop, test: Slices | None) -> Iterator[str]:
    """What a run found, in words."""
    settings = loop.settings
    if found["best"]:
        yield f"best epoch {found['best']['epoch']}: val_{settings.monitor} {found['best']['value']:.4f}"
    if test is None:
        return
    values = found[settings.test_split]
    aucs = [f"{name.removeprefix('auc_')} {value:.3f}" for name, value in values.items() if name.startswith("auc_")]
    patients = len(splits.groups(test.table))
    yield (
        f"held-out result, split {settings.test_split}, {len(test):,} slices of {patients} patients: log loss "
        f"{values['log_loss']:.4f} ({_knowing_nothing(loop, test):.4f} of the prevalence alone), AUC {', '.join(aucs)}"
    )


def _knowing_nothing(loop: Loop, slices: Slices) -> float:
    """The log loss of one who says of every slice how often each label is positive in training."""
    logits = np.broadcast_to(logit(prevalence(loop.data.train.slices.labels)), slices.labels.shape)
    labels = slices.spec.labels
    return metrics.log_loss(slices.labels, logits, competition_weights(labels.names, labels.any))


def window_lines(loop: Loop, data: Dataset) -> Iterator[str]:
    """The windows that a model learned, in words."""
    inside = window_facts(loop.settings, data, loop.network.model).get("windows")
    if inside and inside["learned"]:
        yield f"windows learned ({inside['form']}), level/width in HU: {windows.learned(inside)}"


def calibration_lines(loop: Loop, found: Fitted) -> Iterator[str]:
    """What is to be known of a calibration, in words."""
    if loop.data.odds.shift.any():
        yield f"{len(loop.data.labels)} labels: the sampling is undone label by label, which is right on average only"
    yield from found.calibration.told()
