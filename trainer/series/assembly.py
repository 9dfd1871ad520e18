"""A run of the series model put together: its slice run, the vectors, the feeds, and the network."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import keras

from trainer.data import series
from trainer.data.dataset import Dataset, Slices, splits_of
from trainer.data.series import Series
from trainer.data.series_feed import Blur, SeriesFeed
from trainer.models import context, model_file
from trainer.models.model_file import About
from trainer.results import joint
from trainer.results.vectors import Vectors
from trainer.series import ending
from trainer.series import settings as series_settings
from trainer.series.objective import SeriesObjective
from trainer.shell.problems import WorkFailed, WrongUse
from trainer.training import assembly, hparams, scoring
from trainer.training.hparams import HParams
from trainer.training.loop import Data, Loop, Network
from trainer.training.state import State
from trainer.training.strategy import Devices

EMBED_FAILED = "the vectors could not be made, see the line above; the same command goes on"


class OfSeries:
    """The `session.Kind` of a series model; `prepare` comes first and sets what the others need."""

    slice_folder: Path
    slice_about: About
    digest: str
    feeds: Mapping[str, SeriesFeed]

    def prepare(self, settings: HParams, data: Dataset, slices: Mapping[str, Slices], workers: int) -> None:
        """Check the slice run, plan the series, and have the vectors at hand; those that lack are made."""
        of_series = series_settings.read(settings.series)
        if of_series.recompute and not settings.end_to_end:
            raise WrongUse("series.recompute belongs to end_to_end; without it the slice model is not computed at all")
        self.slice_folder, self.slice_about = slice_run(settings, data)
        plans = {name: series.plan(part.table) for name, part in slices.items()}
        for name, part in slices.items():
            series.require_order(plans[name], part.table)
        self.digest = model_file.digest(self.slice_folder)
        self.feeds = self._feeds(settings, data, slices, plans, of_series.blur, workers)

    def _feeds(
        self,
        settings: HParams,
        data: Dataset,
        slices: Mapping[str, Slices],
        plans: Mapping[str, Series],
        blur: Blur,
        workers: int,
    ) -> Mapping[str, SeriesFeed]:
        views = _views(settings, self.slice_about, data, slices, may_make=workers <= 1)
        return {name: SeriesFeed(part, plans[name], views[name], blur) for name, part in slices.items()}

    def identity(self) -> Mapping[str, str]:
        return {"slice model": self.digest}

    def data_of(self, settings: HParams, slices: Mapping[str, Slices], devices: Devices) -> Data:
        feeds = {name: _padded(feed, settings, devices) for name, feed in self.feeds.items()}
        train, labels = feeds[settings.train_split], slices[settings.train_split].spec.labels
        odds = joint.unchanged(labels.names, labels.any, settings.label_smoothing, settings.focal_gamma)
        plan = assembly.plan_of(settings, train, devices)
        return Data(train, feeds.get(settings.validation_split), plan, labels.names, odds)

    def network(self, settings: HParams, data: Dataset, devices: Devices, steps_per_epoch: int) -> Network:
        with devices.strategy.scope():
            model, objective = self._built(settings, data, devices)
            update = assembly.update_of(settings, model, devices, steps_per_epoch)
        return Network(model, None, update, objective)

    def _built(self, settings: HParams, data: Dataset, devices: Devices) -> tuple[keras.Model, SeriesObjective]:
        dim = next(iter(self.feeds.values())).views[0].dim
        of_series = series_settings.read(settings.series)
        weights = (of_series.head_weight, of_series.mil_weight)
        objective = SeriesObjective(*assembly.objective_of(settings, data.manifest.spec.labels), *weights)
        return begun(settings, data, dim), objective

    def finish(self, loop: Loop, data: Dataset, test: Slices | None, state: State, note: Callable[[str], None]) -> None:
        def left() -> ending.Ended:
            dim = next(iter(self.feeds.values())).views[0].dim
            copy = model_file.float32_copy(loop.network.model, lambda: context_of(loop.settings, data, dim))
            return ending.Ended(copy, self.slice_folder, self.feeds)

        ending.finish(loop, data, state, left, note)


def context_of(settings: HParams, data: Dataset, dim: int, vectors: str = "float16") -> keras.Model:
    """The context network of the settings for vectors of `dim` numbers."""
    return context.build(dim, len(data.manifest.spec.labels.names), settings.architecture, vectors)


def begun(settings: HParams, data: Dataset, dim: int, vectors: str = "float16") -> keras.Model:
    """The context network with the weights that the settings begin with. Raises `WrongUse`."""
    model = context_of(settings, data, dim, vectors)
    if settings.weights == "none":
        return model
    folder = model_file.find(settings.weights)
    about = model_file.read_about(folder)
    trained = model_file.load_model(folder, about)
    shapes = [[tuple(variable.shape) for variable in one.weights] for one in (model, trained)]
    if about.blend is None or shapes[0] != shapes[1]:
        raise WrongUse(f"weights {settings.weights} is no series run with this architecture and slice model; name one")
    for variable, value in zip(model.weights, trained.weights):  # not the state of what draws random numbers
        variable.assign(value.value.numpy())
    return model


def slice_run(settings: HParams, data: Dataset) -> tuple[Path, About]:
    """The model folder of the slice run and what is known of it. Raises `WrongUse` where it is not one for this run."""
    place = settings.slice_run
    if not place:
        raise WrongUse("model series sees the vectors of a trained slice model; name its run with --slice_run RUN")
    folder = model_file.find(place)
    about = model_file.read_about(folder)
    if about.settings["model"] == hparams.SERIES:
        raise WrongUse(f"--slice_run {place} is a series model itself; name the run of a model of slices")
    theirs, known = hparams.of_run(about.settings), {one.manifest.fingerprint for one in (data, *data.parts)}
    if about.fingerprint not in known:
        raise WrongUse(
            f"--slice_run {place} was trained on another data set ({about.fingerprint[:16]}) than {data.place} "
            f"({data.manifest.fingerprint[:16]}), so it may have seen what is held out here; train one on this"
        )
    if settings.folds and about.fingerprint != data.manifest.fingerprint:
        raise WrongUse(
            f"--slice_run {place} was trained on one of the data sets alone, whose folds may be others than those of "
            "all together; train one on all of them"
        )
    if about.odds is None:
        raise WrongUse(f"--slice_run {place}: {'; '.join(about.notes(place))}")
    names = ("folds", "fold", "train_split", "validation_split")
    if differs := [name for name in names if getattr(theirs, name) != getattr(settings, name)]:
        told = ", ".join(f"{name} {getattr(theirs, name)!r} and not {getattr(settings, name)!r}" for name in differs)
        raise WrongUse(
            f"--slice_run {place} has {told}, so it was trained on slices that this run holds out; name the slice run "
            "of the same fold and splits"
        )
    return folder, about


def _views(
    settings: HParams, about: About, data: Dataset, slices: Mapping[str, Slices], may_make: bool
) -> dict[str, list[Vectors]]:
    """Vectors of each split, of slices and of mirror images; made first where some lack. Raises `TrainerError`.

    `about`: of the slice run.
    """

    def read() -> dict[str, list[Vectors]]:
        of = settings.slice_run, about, data
        return {name: scoring.views(*of, part, settings.flip) for name, part in slices.items()}

    try:
        return read()
    except WrongUse:
        if not may_make:  # the others would wait for hours; the message has the command
            raise
    names = splits_of(slices.values())
    places = [word for part in data.parts for word in ("--data_dir", part.place)]
    command = [sys.executable, "-m", "trainer.embed", "--job_dir", settings.slice_run, *places, "--split", *names]
    # a process of its own: this one must not have met the devices before its strategy does
    made = subprocess.run([*command, *["--flip"] * settings.flip], check=False)
    if made.returncode:
        raise WrongUse(EMBED_FAILED) if made.returncode == WrongUse.exit_code else WorkFailed(EMBED_FAILED)
    return read()


def wants_shapes(settings: HParams, devices: Devices) -> bool:
    """Whether a compiler wants all shapes to be known."""
    return devices.kind == "tpu" or settings.jit_compile


def _padded(feed: SeriesFeed, settings: HParams, devices: Devices) -> SeriesFeed:
    """The feed with batches of one length, where shapes must be known."""
    if not wants_shapes(settings, devices):
        return feed
    return dataclasses.replace(feed, length=int(feed.series.lengths.max()))
