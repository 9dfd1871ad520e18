"""A model that stays loaded and reads one input after the other: CSV files, pages, pictures, and results as DICOM."""

from __future__ import annotations

import contextlib
import functools
import logging
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ich_tfrecords import __version__
from ich_tfrecords.dataset import series_choice
from ich_tfrecords.plural import counted
from ich_tfrecords.storage import atomic, sources
from ich_tfrecords.storage.csv_text import csv_text
from trainer.models import model_file
from trainer.models.model_file import About
from trainer.pages import triage_page
from trainer.prediction import (
    dicom_folder,
    looking,
    map_on_slice,
    networks,
    outcome_lines,
    panel,
    picture_files,
    series_stream,
    slice_outcomes,
    slice_stream,
    triage,
)
from trainer.prediction.dicom_folder import DicomFolder, Written
from trainer.prediction.folder import PredictFolder, csv_file
from trainer.prediction.heads import Heads
from trainer.prediction.map_on_slice import MapOnSlice
from trainer.prediction.neighbour_stream import NO_ORDER
from trainer.prediction.picture_files import Pictured
from trainer.prediction.slice_outcomes import NOT_FINITE
from trainer.prediction.slice_stream import Reject
from trainer.prediction.thumbnails import Thumbnails
from trainer.prediction.triage import Outcome, Triage
from trainer.results import conformal
from trainer.shell import quiet
from trainer.shell.problems import WorkFailed, WrongUse

Tell = Callable[[int, int], None]  # of (done, total) files
Watch = Callable[[str], AbstractContextManager[Tell]]  # of the name of a stage


class How(NamedTuple):
    """How inputs are read. `series`: a mode of `series_choice`, None for the usual; `map`: of `picture_files.METHODS`.

    `flip`: mean over each slice and its mirror image; `pictures`: how many; `batch_size`: slices at once; `alpha`: the
    error rate that `conformal` promises, None for no promise.
    """

    series: str | None = None
    flip: bool = False
    pictures: int = 8
    map: str = picture_files.DEFAULT
    batch_size: int = 32
    alpha: float | None = None


class Stage(NamedTuple):
    """A part of the work: what it is called, how many files it deals with, and what becomes of them."""

    name: str
    files: int
    outcomes: Generator[Outcome, None, None]


class Read(NamedTuple):
    """What an input gave, which is written by now; `filed`: None where no result as DICOM was asked for."""

    found: Triage
    seconds: float
    pictured: list[Pictured]
    filed: Written | None

    def require_something(self, output: PredictFolder, otherwise: str = "") -> None:
        """Raises `WorkFailed` where the model or every file failed, `WrongUse` where no series could be taken.

        `otherwise`: what a user can do about series.
        """
        found, names = self.found, f"{output.rejects} names each"
        if found.rejects[NOT_FINITE]:
            slices = counted(found.rejects[NOT_FINITE], "slice")
            raise WorkFailed(f"the model gives no finite number for {slices}; {names}; train or export the model again")
        if not found.slices and found.rejects[series_choice.UNFIT]:
            raise WrongUse(f"no series qualifies ({outcome_lines.reasons(found.rejects)}); {names}{otherwise}")
        if not found.slices and found.rejects[NO_ORDER]:
            why = f"no slice has a place among others ({outcome_lines.reasons(found.rejects)})"
            raise WrongUse(f"{why}; {names}; a model of single slices reads them")
        if not found.slices:
            raise WorkFailed(f"no file gave a prediction ({outcome_lines.reasons(found.rejects)}); {names}")
        if self.filed and self.filed.failed:
            studies = counted(self.filed.failed, "study", "studies")
            raise WorkFailed(f"no DICOM result for {studies}, whose files changed meanwhile; predict again")


class Reader:
    """The model of a folder (`model_file.find`), loaded and compiled once."""

    def __init__(
        self, folder: Path, about: About, how: How, others: Mapping[Path, About] = MappingProxyType({})
    ) -> None:
        """`others`: slice models that judge with it (`panel.require_alike`); the mean of all counts, maps are its own.

        Raises `WrongUse` where a model is damaged, or has no patients to promise by. Imports TensorFlow.
        """
        if others and how.alpha is not None:
            raise WrongUse("--alpha promises by the validation patients of one model; give it one --model")
        if how.flip and how.alpha is not None:
            raise WrongUse("--alpha promises by probabilities without --flip; leave one of them out")
        self._promise = None if how.alpha is None else conformal.promise(about.facts.get("conformal", {}), how.alpha)
        self._panel = panel.panel_of([about, *others.values()]) if others else None
        quiet.import_tensorflow()
        _quiet_pydicom()
        self.about, self.how = about, how
        self.networks = networks.load(folder, about)
        self._folder, self._digest = folder, model_file.digest(folder)
        self._others = {model_file.digest(place): networks.load(place, other) for place, other in others.items()}
        if self.networks.context is None:
            self._say = panel.say([self.networks, *self._others.values()], how.flip)
            self._looker = looking.looker(folder, about)
        else:
            self._looker = looking.looker(folder / model_file.SLICE, self.networks.slice_about)
            self._in_series = self.networks.in_series(how.flip)

    def read(
        self,
        listing: sources.Listing,
        output: PredictFolder,
        results: DicomFolder | None,
        watch: Watch,
        include_given: bool = False,
    ) -> Read:
        """Write what the slices of `listing` give into `output`, and into `results` where that is given.

        `watch` hears how far it is. Raises `TrainerError` and `OSError`; then run.json does not say "finished".
        `include_given`: whether the listing was narrowed.
        """
        about = self.about
        with contextlib.ExitStack() as growing:
            place = growing.enter_context(results.growing()) if results else None
            with output.claimed():
                with tempfile.TemporaryFile(dir=output.path) as file:
                    kept = Thumbnails(file, len(about.spec.labels.names), about.spec.image.size_px)
                    stages = self._stages(listing.table, looks=bool(self.how.pictures or results))
                    found, seconds = self._score_files(stages, output, kept, watch)
                    chosen, shown = found.to_picture(), triage_page.shown(found)
                    told, maps = found.warnings(), self.maps if chosen else None
                    pictured = picture_files.draw(output, chosen, told, about, maps, self.how.map, shown)
                    text = triage_page.page(found, about, self._digest, kept, pictured)
                atomic.write_bytes(output.page, text.encode(errors="backslashreplace"))
                filed = self._file(place, found) if place else None
                growing.close()  # what is filed stands in its place before the run counts as finished
                facts = {**self._facts(listing, found, include_given), "dicom": filed and filed._asdict()}
                names = [one.path.name for one in pictured]
                output.finish({**facts, "pictures": names, "seconds": round(seconds, 3)})
        return Read(found, seconds, pictured, filed)

    @functools.cached_property
    def maps(self) -> picture_files.Maps | None:
        """What explains slices; None where the model has no gradient."""
        return picture_files.maps_of(self.networks, self.how.map)

    def map(self, table: pa.Table, predictions: Path, place: int, file: str) -> MapOnSlice:
        """`map_on_slice.of_slice` by this model. Raises `WrongUse` where that has no gradient."""
        if self.maps is None:
            raise WrongUse("a forest has no gradient, so there is no map")
        return map_on_slice.of_slice(table, predictions, place, file, self.networks, self.maps, self.how.map)

    def _stages(self, table: pa.Table, looks: bool) -> Iterator[Stage]:
        """What is to be done, one after the other: first which files are one series, to choose among them.

        A model of single slices that takes all series needs no such look.
        """
        if self.networks.context is None and not self.networks.beside:
            return self._by_slice(table)
        return self._by_series(table, looks)

    def _by_slice(self, table: pa.Table) -> Iterator[Stage]:
        left_out, numbers = triage.without_slices([], 0), slice_stream.input_numbers(table)
        if self.how.series != series_choice.ALL:
            heads = Heads(table, self.about.spec.accept)
            # what cannot be read is looked at again, and told then
            yield Stage("group", table.num_rows, (found._replace(rejects=[]) for found in heads.read()))
            left_out, table = heads.choose(self.how.series or series_choice.TOLD), heads.kept()
        batches = slice_stream.batches(table, self.about.spec, self.how.batch_size, numbers)
        outcomes = slice_outcomes.alone(batches, self.about, self._say, self._looker)
        yield Stage("predict", table.num_rows, _after(left_out, outcomes))

    def _by_series(self, table: pa.Table, looks: bool) -> Iterator[Stage]:
        heads = Heads(table, self.about.spec.accept)
        yield Stage("group", table.num_rows, heads.read())
        left_out = heads.choose(self.how.series or series_choice.TOLD)
        yield Stage("predict", len(heads), _after(left_out, self._in_order(heads, looks)))

    def _in_order(self, heads: Heads, looks: bool) -> Generator[Outcome, None, None]:
        """What the model makes of files whose heads were read."""
        about, size = self.about, self.how.batch_size
        if self.networks.context is not None:
            return series_stream.outcomes(heads, about, self._in_series, size, looks, self._looker)
        return slice_outcomes.among_neighbours(heads, about, self._say, self._looker, self.networks.beside, size)

    def _score_files(
        self, stages: Iterator[Stage], output: PredictFolder, kept: Thumbnails, watch: Watch
    ) -> tuple[Triage, float]:
        """What was found, and seconds; the CSV files are written on the way, and thumbnails `kept`."""
        labels = self.about.spec.labels
        found, begin = Triage(labels, self.how.pictures, self._promise, self._panel), time.perf_counter()
        scoping = looking.Scoping(self._looker.scope if self._looker else None)
        with (
            csv_file(output.predictions, triage.slice_head(labels)) as write_slices,
            csv_file(output.rejects, Reject._fields) as write_rejects,
        ):
            for stage in stages:
                with contextlib.closing(_told(stage, watch)) as outcomes:
                    for outcome in outcomes:
                        found.take(outcome)
                        kept.take(outcome)
                        scoping.take(outcome.slices, outcome.looked)
                        write_slices(map(triage.slice_row, outcome.slices, outcome.probabilities))
                        write_rejects(outcome.rejects)
            output.begin()
        seconds = time.perf_counter() - begin
        portraits = scoping.table()
        found.judged = scoping.judged(portraits)
        found.notes += scoping.notes()
        if scoping.scope:
            atomic.write_table(output.series, portraits)
        text = csv_text(triage.study_head(labels, found), triage.study_rows(found, labels))
        atomic.write_bytes(output.triage, text.encode(errors="backslashreplace"))
        return found, seconds

    def _file(self, place: Path, found: Triage) -> Written:
        """Write the results as DICOM into a folder."""
        from trainer.prediction.dicom_objects import MadeBy  # takes highdicom

        by = MadeBy(self.about.network, self._digest, self.about.fingerprint)
        return dicom_folder.write(place, found, self.about, self.maps, by, self.how.map)

    def _facts(self, listing: sources.Listing, found: Triage, include_given: bool) -> dict[str, Any]:
        """What made the results. No path and no glob of the input, which may hold the names of people."""
        import keras
        import tensorflow as tf

        about = self.about
        model: dict[str, Any] = {
            "kind": about.network,
            "sha256": self._digest,
            "dataset": about.spec.name,
            "trained_on": about.fingerprint,
        }
        if self.networks.context is not None:
            beside = self._folder / model_file.SLICE
            model["slice_model"] = {"kind": about.facts["slice_model"], "sha256": model_file.digest(beside)}
        if self._others:
            model["others"] = [
                {"kind": one.about.network, "sha256": sha, "uncalibrated": dict(one.about.calibration.refused)}
                for sha, one in self._others.items()
            ]
        places = len(slice_stream.input_numbers(listing.table))
        files = {"inputs": places, "files": listing.table.num_rows, "ignored": dict(sorted(listing.ignored.items()))}
        versions = {"ich_tfrecords": __version__, "python": platform.python_version(), "numpy": np.__version__}
        return {
            "model": {**model, "uncalibrated": dict(about.calibration.refused)},
            "input": {**files, "sha256": sources.listing_digest(listing.table)},
            "flags": {"include_given": include_given, **self.how._asdict()},
            "slices": found.slices,
            "studies": len(found.studies()),
            "studies_partial": len(found.partial()),
            "studies_out_of_scope": len(found.strange()),
            "study_probability": outcome_lines.ranked_by(about),
            "studies_without_slices": len(found.without_slices()),
            "rejects": dict(sorted(found.rejects.items())),
            "versions": {**versions, "tensorflow": tf.__version__, "keras": keras.__version__},
        }


def _after(left_out: Outcome, others: Generator[Outcome, None, None]) -> Generator[Outcome, None, None]:
    yield left_out
    yield from others


def _told(stage: Stage, watch: Watch) -> Generator[Outcome, None, None]:
    """The outcomes of a stage; `watch` hears how far it is."""
    done = 0
    with contextlib.closing(stage.outcomes) as outcomes, watch(stage.name) as tell:
        for outcome in outcomes:
            yield outcome
            done += outcome.files
            if outcome.files:
                tell(done, stage.files)


def _quiet_pydicom() -> None:
    """Keep warnings that repeat for every file off the screen."""
    warnings.filterwarnings("ignore", module="pydicom")
    logging.getLogger("pydicom").setLevel(logging.ERROR)
