"""One run put together: data set, devices, model, loop, and what it leaves behind."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np
import tensorflow as tf

from ich_tfrecords import pixels
from ich_tfrecords.plural import counted
from trainer.data import input_pipeline, neighbours
from trainer.data.dataset import Dataset, Slices
from trainer.shell import vertex, waiting
from trainer.shell.display import Display
from trainer.shell.problems import TrainingFailed, closed_after
from trainer.tracking import log
from trainer.training import assembly, ending, input_page, strategy
from trainer.training.hparams import HParams, to_yaml
from trainer.training.loop import Data, Doors, Loop, Network
from trainer.training.run_dir import RunDir
from trainer.training.saver import Saver
from trainer.training.scalars import Scalars
from trainer.training.state import State
from trainer.training.strategy import Devices


def run(
    settings: HParams,
    data: Dataset,
    job_dir: str | None,
    environ: Mapping[str, str],
    signals: Signals,
    note: Callable[[str], None],
    kind: Kind,
) -> None:
    """Train, or go on training, to the end. Raises `TrainerError`, and `Stopped` when a signal asked to stop.

    `job_dir`: the folder of the run; None: by environment or model. `note` shows a line to the user. `kind`: of model.
    """
    place = vertex.cluster(environ)
    chief, workers = place.is_chief, place.workers
    if chief:
        log.check(settings.logger, environ)
    slices = assembly.splits(data, settings)
    folder = _run_dir(settings, job_dir, environ)
    if chief:
        folder.create()
    with folder.lock() if chief else contextlib.nullcontext():
        note(_heading(settings, data, folder))
        with _plain_errors(workers, slices):
            signals.listen_closely()
            strategy.check_cluster(settings, place)
            kind.prepare(settings, data, slices, workers)  # before the others begin, who would wait for it
            if workers > 1:
                note(f"waiting for {workers} workers")
                waiting.for_all(place, settings.wait_minutes, _say)
            devices = strategy.prepare(settings, environ)
            signals.listen()  # again: TensorFlow took them when it started several workers
            note(f"devices: {devices.text}")
            tracker = log.of_run(settings.logger if chief else log.NONE, environ, folder.path, note)
            with log.ended(tracker):
                _train(settings, data, slices, devices, folder, tracker, signals, note, kind)


class Kind(Protocol):
    """What a run of one kind of model has of its own: what it reads, its network, and its end."""

    def prepare(self, settings: HParams, data: Dataset, slices: Mapping[str, Slices], workers: int) -> None:
        """Have at hand what the run begins with, before TensorFlow takes the devices. Raises `WrongUse`."""
        ...

    def identity(self) -> Mapping[str, str]:
        """What must not change on the way of a run besides settings and data set, by the word that tells it."""
        ...

    def data_of(self, settings: HParams, slices: Mapping[str, Slices], devices: Devices) -> Data: ...

    def network(self, settings: HParams, data: Dataset, devices: Devices, steps_per_epoch: int) -> Network: ...

    def finish(
        self, loop: Loop, data: Dataset, test: Slices | None, state: State, note: Callable[[str], None]
    ) -> None: ...


class OfSlices:
    """A model of single slices."""

    def prepare(self, settings: HParams, data: Dataset, slices: Mapping[str, Slices], workers: int) -> None:
        assembly.fetch_weights(settings, data)

    def identity(self) -> Mapping[str, str]:
        return {}

    data_of = staticmethod(assembly.data_of)
    network = staticmethod(assembly.network)
    finish = staticmethod(ending.finish)


def _say(text: str) -> None:
    """Show a line on every worker."""
    print(text, flush=True)


class Signals(Protocol):
    """Tells whether the process was asked to stop, once `listen` has taken the signals; or raises `Stopped` then."""

    def listen(self) -> None: ...

    def listen_closely(self) -> None: ...

    def __call__(self) -> bool: ...


def _run_dir(settings: HParams, job_dir: str | None, environ: Mapping[str, str]) -> RunDir:
    cloud = vertex.places(environ)
    fold = f"-fold{settings.fold}" if settings.folds else ""
    job_dir = job_dir or str(cloud.job_dir or f"runs/{settings.model}{fold}")
    checkpoints, model = (vertex.mounted(place) if place else None for place in (cloud.checkpoints, cloud.model))
    return RunDir(vertex.mounted(job_dir), checkpoints, cloud.tensorboard, model)


def _heading(settings: HParams, data: Dataset, folder: RunDir) -> str:
    shape = "x".join(map(str, data.manifest.spec.image.shape))
    where = (
        f"data set {data.place}: {data.manifest.slices:,} slices, {shape}, fingerprint {data.manifest.fingerprint[:16]}"
    )
    return f"{to_yaml(settings)}{where}\nrun {folder.path}"


def _train(
    settings: HParams,
    data: Dataset,
    slices: Mapping[str, Slices],
    devices: Devices,
    folder: RunDir,
    tracker: log.Log,
    stopping: Callable[[], bool],
    note: Callable[[str], None],
    kind: Kind,
) -> None:
    fed = kind.data_of(settings, slices, devices)
    network = kind.network(settings, data, devices, fed.plan.steps)
    for text in network.told:
        note(text)
    note(f"{settings.model}: {network.model.count_params():,} parameters; {fed.plan.steps:,} steps an epoch")
    twins = assembly.left_out(data, settings, slices)
    _note_left_out(fed, settings, twins, note)
    identity = {
        "settings": dataclasses.asdict(settings), "fingerprint": data.manifest.fingerprint, **kind.identity()
    }  # fmt: skip
    if twins:  # checkpoints of before had trained on them
        identity["slices left out"] = f"{twins:,}"
    saver = Saver(
        folder.checkpoints, network.model.variables, network.update.state, identity, settings.keep, devices.chief
    )
    stream = sys.stdout if devices.chief else open(os.devnull, "w")  # noqa: SIM115 - lives as long as the run
    display = Display(stream, settings.epochs, fed.plan.steps, fed.slices_a_step)
    scalars = Scalars(folder.tensorboard)
    with closed_after(scalars), contextlib.closing(display):
        doors = Doors(folder, scalars, tracker, display, stopping)
        loop = Loop(settings, fed, network, devices, saver, doors)
        if devices.chief:
            _show_inputs(loop)
        state = loop.fit()
        kind.finish(loop, data, slices.get(settings.test_split), state, note)


def _note_left_out(fed: Data, settings: HParams, twins: int, note: Callable[[str], None]) -> None:
    """Say which slices of the split an epoch leaves out, and why."""
    if twins:
        slices = counted(twins, "slice", "slices")
        note(f"{slices} of split {settings.train_split} not trained on: their pixels stand in a held-out split too")
    unlabelled = int((~fed.train.slices.labelled).sum())
    if unlabelled:
        note(f"{unlabelled:,} slices of split {settings.train_split} have no label and are not trained on")
    if settings.sampling == "natural" and not settings.steps_per_epoch:
        full, short = fed.plan.batches
        dropped = sum(fed.train.stratum_counts.values()) - full * settings.batch_size - short
        if dropped:
            samples = fed.train.samples
            note(f"{dropped:,} {samples} are left out of each epoch, so that every device has as many as the others")


def _show_inputs(loop: Loop) -> None:
    """A page of slices as the model gets them, into the folder and TensorBoard; once, when a run begins."""
    folder, spec = loop.doors.run_dir, loop.data.train.slices.spec
    if folder.inputs.exists():
        return
    batch = next(iter(loop.data.train.train_batches(loop.data.plan, loop.devices.share)))
    if "image" not in batch:
        return  # a model of vectors: its slice run has the page
    windows = [window.name for window in spec.image.windows]
    images = loop.network.objective.inputs(batch).numpy()[: input_page.PAGE_SLICES]
    own = neighbours.own(images, spec.image.shape[2])
    shown = np.stack([pixels.shown(image, spec.image) for image in own])
    page = input_page.input_page(shown, batch["labels"].numpy(), loop.data.labels, windows)
    folder.write_inputs(page)
    loop.doors.scalars.images(0, "inputs", page[None])


# errors


@contextlib.contextmanager
def _plain_errors(workers: int, slices: Mapping[str, Slices]) -> Iterator[None]:
    """Turn TensorFlow's errors into one line each: a damaged record, a lost worker, no memory left."""
    try:
        yield
    except tf.errors.OpError as error:
        for part in slices.values():
            problem = input_pipeline.problem(part, error)
            if problem is not None:
                raise problem from error
        first = _reason(error)
        if isinstance(error, tf.errors.ResourceExhaustedError):
            raise TrainingFailed(f"no memory left ({first}); lower batch_size or raise accumulate") from error
        if workers > 1:
            raise TrainingFailed(
                f"another worker is gone ({first}); start all workers again with the same command to go on"
            ) from error
        if isinstance(error, (tf.errors.InternalError, tf.errors.InvalidArgumentError)):
            raise  # a bug, of ours or TensorFlow's: the traceback is what is needed
        raise TrainingFailed(f"TensorFlow failed ({first}); what was saved stays, the same command goes on") from error


def _reason(error: tf.errors.OpError) -> str:
    """The line of TensorFlow's message that says why; it stands below the stack of the graph, if there is one."""
    lines = [line for line in (error.message or str(error)).splitlines() if line and not line.startswith(_STACK)]
    return lines[0].removeprefix("Collective ops is aborted by: ") if lines else type(error).__name__


_STACK = (" ", "\t", "Graph execution error", "Detected at node", "<stack traces")
