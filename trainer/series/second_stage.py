"""A run of the second stage put together: slice model and context, begun with the weights of both runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np

from trainer.data.dataset import Dataset, Slices, splits_of
from trainer.data.series import Series
from trainer.data.series_feed import Blur, SeriesFeed
from trainer.data.series_images import ImageFeed
from trainer.models import model_file
from trainer.models.model_file import About
from trainer.results.predictions import IDS
from trainer.results.probability import prevalence
from trainer.series import ending
from trainer.series import settings as series_settings
from trainer.series.assembly import OfSeries, begun, context_of, wants_shapes
from trainer.series.end_to_end import BothObjective, EndToEnd
from trainer.series.judging import SLICE_MODEL
from trainer.series.objective import SeriesObjective
from trainer.shell.problems import WrongUse
from trainer.training import assembly, fitting, hparams, scoring
from trainer.training import ending as slice_ending
from trainer.training.hparams import HParams
from trainer.training.loop import Loop
from trainer.training.state import State
from trainer.training.strategy import Devices
from trainer.trust import scope_file

MOST_SERIES = 32  # at once on a device; of 128 px and 35 slices they are a thousand images and their activations


class OfBoth(OfSeries):
    """The `session.Kind` of slice model and context trained together."""

    def _feeds(
        self,
        settings: HParams,
        data: Dataset,
        slices: Mapping[str, Slices],
        plans: Mapping[str, Series],
        blur: Blur,
        workers: int,
    ) -> Mapping[str, SeriesFeed]:
        if model_file.CLASSIFIER in self.slice_about.settings:
            raise WrongUse(
                f"--slice_run {settings.slice_run} is a {self.slice_about.network}, whose last layer end_to_end cannot "
                "train; name the run that it was fitted on"
            )
        at_once = settings.batch_size // settings.accumulate
        if at_once > MOST_SERIES:
            raise WrongUse(
                f"end_to_end with batch_size {settings.batch_size} in {settings.accumulate} part(s) computes {at_once} "
                f"series at once, {MOST_SERIES} are the most; lower it, raise accumulate, or take --config "
                "series_end_to_end"
            )
        if not data.local:
            raise WrongUse(f"{data.place}: end_to_end needs the shards as files; copy them here with --cache_dir DIR")
        context = self.slice_about.context_slices
        return {name: ImageFeed(part.with_neighbours(context), plans[name], (), blur) for name, part in slices.items()}

    def _built(self, settings: HParams, data: Dataset, devices: Devices) -> tuple[keras.Model, SeriesObjective]:
        of_series = series_settings.read(settings.series)
        encoder = self._encoder(data)
        trained = model_file.load_model(self.slice_folder, self.slice_about)
        for variable, value in zip(encoder.weights, trained.weights, strict=True):
            variable.assign(value.value.numpy())
        network = begun(settings, data, model_file.vector_dim(encoder), "float32")
        weights = (of_series.head_weight, of_series.mil_weight, of_series.slice_weight)
        objective = BothObjective(*assembly.objective_of(settings, data.manifest.spec.labels), *weights)
        return EndToEnd(
            encoder, network, of_series.blur, of_series.recompute, wants_shapes(settings, devices)
        ), objective

    def _encoder(self, data: Dataset) -> keras.Model:
        return assembly.build_model(hparams.of_run(self.slice_about.settings), data, weights="none")

    def finish(self, loop: Loop, data: Dataset, test: Slices | None, state: State, note: Callable[[str], None]) -> None:
        ending.finish(loop, data, state, lambda: self._left(loop, data), note)

    def _left(self, loop: Loop, data: Dataset) -> ending.Ended:
        """The slice model goes into the run with vectors of what is held out, and is calibrated as one by itself."""
        model, settings = loop.network.model, loop.settings
        folder = loop.doors.run_dir.path / SLICE_MODEL
        encoder = model_file.float32_copy(model.encoder, lambda: self._encoder(data))
        about = dataclasses.replace(
            self.slice_about,
            fingerprint=data.manifest.fingerprint,
            facts={
                **self.slice_about.facts,
                **slice_ending.place_facts(data),
                **slice_ending.window_facts(hparams.of_run(self.slice_about.settings), data, encoder),
            },
            odds=loop.data.odds,
        )
        model_file.write(folder, encoder, about)
        held = {name: self.feeds[name] for name in (settings.validation_split, settings.test_split) if name}
        names = splits_of(feed.slices for feed in held.values())
        scoring.embed(str(folder), about, data, names, False)
        feeds = {
            name: SeriesFeed(
                feed.slices, feed.series, scoring.views(str(folder), about, data, feed.slices, False), feed.blur
            )
            for name, feed in held.items()
        }
        if settings.validation_split:
            about = self._calibrate(folder, about, loop, feeds[settings.validation_split])
        self._fit_scope(folder, encoder, about, loop)
        dim = model_file.vector_dim(encoder)
        copy = model_file.float32_copy(model.context, lambda: context_of(settings, data, dim))
        return ending.Ended(copy, folder, feeds)

    def _fit_scope(self, folder: Path, encoder: keras.Model, about: About, loop: Loop) -> None:
        """Keep beside the slice model what it was trained on, as far as a series tells."""
        held = self.feeds.get(loop.settings.validation_split)
        parts = (loop.data.train.slices, None if held is None else held.slices)
        scope = scoring.scope_of(encoder, about, *parts, loop.evaluated)
        if scope is not None:
            scope_file.write(folder, dataclasses.replace(scope, weights=model_file.digest(folder)))

    def _calibrate(self, folder: Path, about: About, loop: Loop, held: SeriesFeed) -> About:
        """Say in the slice model's `about.json` what the validation split says; its weights stay, so vectors do too."""
        logits = held.views[0].logits(np.arange(len(held.slices)))
        ids, trained = held.slices.table.select(list(IDS)), loop.data.train.slices.labels
        found = fitting.fit(loop.data.odds, ids, held.slices.labels, logits, prevalence(trained))
        facts = {**about.facts, **found.facts}
        about = dataclasses.replace(about, facts=facts, **found.decided)
        model_file.write_about(folder, about)
        return about
