"""A run of the series model put together: its slice run, the vectors, the feeds, and the network."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import keras

from trainer.data import series
from trainer.data.dataset import Dataset, Slices
from trainer.data.series_feed import SeriesFeed
from trainer.models import context, model_file
from trainer.models.model_file import About
from trainer.results import joint, vectors
from trainer.results.vectors import Source, Vectors
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
    """The `session.Kind` of a series model. `note` shows a line to the user."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._slice_folder: Path
        self._digest: str
        self._feeds: dict[str, SeriesFeed]

    def prepare(self, settings: HParams, data: Dataset, slices: Mapping[str, Slices], workers: int) -> None:
        """Check the slice run, plan the series, and have the vectors at hand; those that lack are made."""
        blur = series_settings.read(settings.series).blur
        self._slice_folder, about = slice_run(settings, data)
        plans = {name: series.plan(part.table) for name, part in slices.items()}
        for name, part in slices.items():
            series.require_order(plans[name], part.table)
        sources = [scoring.source(settings.slice_run, about, data, flip) for flip in (False, True)[: 1 + settings.flip]]
        self._digest = sources[0].weights
        views = _views(sources, data, slices, may_make=workers <= 1)
        self._feeds = {name: SeriesFeed(part, plans[name], views[name], blur) for name, part in slices.items()}

    def identity(self) -> Mapping[str, str]:
        return {"slice model": self._digest}

    def data_of(self, settings: HParams, slices: Mapping[str, Slices], devices: Devices) -> Data:
        feeds = {name: _padded(feed, settings, devices) for name, feed in self._feeds.items()}
        train, labels = feeds[settings.train_split], slices[settings.train_split].spec.labels
        odds = joint.unchanged(labels.names, labels.any, settings.label_smoothing, settings.focal_gamma)
        plan = assembly.plan_of(settings, train, devices)
        return Data(train, feeds.get(settings.validation_split), plan, labels.names, odds)

    def network(self, settings: HParams, data: Dataset, devices: Devices, steps_per_epoch: int) -> Network:
        with devices.strategy.scope():
            model = self._build(settings)
            update = assembly.update_of(settings, model, devices, steps_per_epoch)
        of_series = series_settings.read(settings.series)
        weights = (of_series.head_weight, of_series.mil_weight)
        return Network(model, None, update, SeriesObjective(*assembly.objective_of(settings, data), *weights))

    def finish(self, loop: Loop, data: Dataset, test: Slices | None, state: State, note: Callable[[str], None]) -> None:
        build = functools.partial(self._build, loop.settings)
        ending.finish(ending.Ended(loop, data, state, self._feeds), self._slice_folder, build, note)

    def _build(self, settings: HParams) -> keras.Model:
        feed = self._feeds[settings.train_split]
        return context.build(feed.views[0].dim, len(feed.slices.spec.labels.names), settings.architecture)


def slice_run(settings: HParams, data: Dataset) -> tuple[Path, About]:
    """The model folder of the slice run and what is known of it. Raises `WrongUse` where it is not one for this run."""
    place = settings.slice_run
    if not place:
        raise WrongUse("model series sees the vectors of a trained slice model; name its run with --slice_run RUN")
    folder = model_file.find(place)
    about = model_file.read_about(folder)
    if about.settings["model"] == hparams.SERIES:
        raise WrongUse(f"--slice_run {place} is a series model itself; name the run of a model of slices")
    if about.fingerprint != data.manifest.fingerprint:
        raise WrongUse(
            f"--slice_run {place} was trained on another data set ({about.fingerprint[:16]}) than {data.place} "
            f"({data.manifest.fingerprint[:16]}), so it may have seen what is held out here; train one on this"
        )
    if about.odds is None:
        raise WrongUse(f"--slice_run {place}: {'; '.join(about.notes(place))}")
    theirs = hparams.of_run(about.settings)
    names = ("folds", "fold", "train_split", "validation_split")
    if differs := [name for name in names if getattr(theirs, name) != getattr(settings, name)]:
        told = ", ".join(f"{name} {getattr(theirs, name)!r} and not {getattr(settings, name)!r}" for name in differs)
        raise WrongUse(
            f"--slice_run {place} has {told}, so it was trained on slices that this run holds out; name the slice run "
            "of the same fold and splits"
        )
    return folder, about


def _views(
    sources: list[Source], data: Dataset, slices: Mapping[str, Slices], may_make: bool
) -> dict[str, list[Vectors]]:
    """Vectors of each split, of slices and of mirror images; made first where some lack. Raises `TrainerError`."""
    try:
        return _read(sources, data, slices)
    except WrongUse:
        if not may_make:  # the others would wait for hours; the message has the command
            raise
    names = sorted({name for part in slices.values() for name in part.table["split"].unique().to_pylist()})
    command = [sys.executable, "-m", "trainer.embed", "--job_dir", sources[0].job_dir, "--data_dir", data.place]
    # a process of its own: this one must not have met the devices before its strategy does
    made = subprocess.run([*command, "--split", *names, *["--flip"] * (len(sources) > 1)], check=False)
    if made.returncode:
        raise WrongUse(EMBED_FAILED) if made.returncode == WrongUse.exit_code else WorkFailed(EMBED_FAILED)
    return _read(sources, data, slices)


def _read(sources: list[Source], data: Dataset, slices: Mapping[str, Slices]) -> dict[str, list[Vectors]]:
    return {name: [vectors.read(source, data, part) for source in sources] for name, part in slices.items()}


def _padded(feed: SeriesFeed, settings: HParams, devices: Devices) -> SeriesFeed:
    """The feed with batches of one length, where a compiler wants shapes that are known."""
    if devices.kind != "tpu" and not settings.jit_compile:
        return feed
    return dataclasses.replace(feed, length=int(feed.series.lengths.max()))
