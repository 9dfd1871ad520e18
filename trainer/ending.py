"""The end of a run: its best weights scored on held-out slices, calibrated on validation slices, and exported."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import tensorflow as tf

from ich_tfrecords import __version__, splits
from trainer import assembly, calibration, metrics, model_file, steps, study_level, thresholds
from trainer.calibration import Calibration
from trainer.dataset import Dataset, Slices
from trainer.loop import Loop
from trainer.model_file import About
from trainer.predictions import IDS, Predictions, patients_of
from trainer.probability import prevalence
from trainer.state import State
from trainer.strategy import Devices

RESAMPLES = 200  # of the validation patients, to foresee what thresholds will hold

Thresholds = dict[str, dict[str, float]]


def finish(loop: Loop, data: Dataset, test: Slices | None, state: State, note: Callable[[str], None]) -> None:
    """Take the best weights; score them on the test split, calibrate them on the validation split, export them."""
    _meet(loop.devices)  # the chief has written the best weights by now
    loop.saver.load_best(state)
    found = {"best": state.best, "epochs": state.epoch, "steps": state.step, "fingerprint": data.manifest.fingerprint}
    if test is not None:
        found[loop.settings.test_split] = loop.result(loop.evaluate(test))
    decided = _calibrated(loop)
    if loop.devices.chief:
        copy = model_file.float32_copy(
            loop.network.model, lambda: assembly.build_model(loop.settings, data, weights="none")
        )
        model_file.write(loop.doors.run_dir.export, copy, _about(loop, data, state, *decided))
        loop.doors.run_dir.write_result(found)
    for line in (*_result_lines(found, loop, test), *_calibration_lines(decided[0])):
        note(line)
    note(f"model {loop.doors.run_dir.export / model_file.MODEL}")
    _meet(loop.devices)  # a worker that leaves earlier would look lost to the others


def _meet(devices: Devices) -> None:
    if devices.workers > 1:
        steps.summed(devices, [0.0])


def _calibrated(loop: Loop) -> tuple[Calibration, Thresholds, Thresholds, dict[str, Any]]:
    """Of the weights as they are, by the validation split: the calibration, and thresholds of slices and of studies.

    At last what those rest on and will hold, see `thresholds.foreseen`: "slices" and "studies" -> label -> that.
    """
    names, shift, held = loop.data.labels, loop.data.shift, loop.data.validation
    if held is None:
        unfitted = calibration.unfitted(names, shift, "the run had no validation split")
        return unfitted, thresholds.unchosen(names), thresholds.unchosen(names), {}
    rows, labels, logits = loop.evaluate(held).arrays()
    ids = held.table.select(list(IDS)).take(pa.array(rows))
    patients = patients_of(ids)
    fitted = calibration.fit(names, labels, logits, shift, patients, prevalence(loop.data.train.labels))
    found = Predictions(names, held.spec.labels.any, ids, labels, logits, fitted.probabilities(logits))
    of_studies, shown, whose = study_level.studies(found)
    slices, studies = (labels, found.probabilities), (of_studies, shown)
    foreseen = {"slices": _foreseen(names, *slices, patients), "studies": _foreseen(names, *studies, whose)}
    return fitted, _chosen(names, *slices), _chosen(names, *studies), foreseen


def _chosen(names: Sequence[str], labels: Any, probabilities: Any) -> Thresholds:
    return {name: thresholds.choose(labels[:, at], probabilities[:, at]) for at, name in enumerate(names)}


def _foreseen(names: Sequence[str], labels: Any, probabilities: Any, patients: Any) -> dict[str, Any]:
    return {
        name: thresholds.foreseen(labels[:, at], probabilities[:, at], patients, RESAMPLES, seed=0)
        for at, name in enumerate(names)
    }


def _about(
    loop: Loop,
    data: Dataset,
    state: State,
    fitted: Calibration,
    chosen: Thresholds,
    of_studies: Thresholds,
    foreseen: Mapping[str, Any],
) -> About:
    facts = {
        "data_dir": data.place,
        "parameters": loop.network.model.count_params(),
        "epoch": int(state.best.get("epoch", state.epoch)),
        "step": state.step,
        "prevalence": dict(zip(loop.data.labels, prevalence(loop.data.train.labels).tolist())),
        "foreseen": foreseen,
        "versions": versions(),
    }
    settings = dataclasses.asdict(loop.settings)
    return About(data.manifest.spec, data.manifest.fingerprint, settings, fitted, chosen, of_studies, facts)


def versions() -> dict[str, str]:
    """What computes here, by name."""
    own = {"ich_tfrecords": __version__, "python": platform.python_version()}
    return {**own, "tensorflow": tf.__version__, "keras": keras.__version__}


def _result_lines(found: Mapping[str, Any], loop: Loop, test: Slices | None) -> Iterator[str]:
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
    shares = prevalence(loop.data.train.labels)
    logits = np.broadcast_to(np.log(shares) - np.log1p(-shares), slices.labels.shape)
    return metrics.log_loss(slices.labels, logits, loop.network.objective.label_weights)


def _calibration_lines(fitted: Calibration) -> Iterator[str]:
    yield from fitted.told()
