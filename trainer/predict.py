"""Probabilities for DICOM slices, and which study to read first.

    python -m trainer.predict --model runs/cnn --input data/ct --output predicted

PatientID is never written, but by --dicom. Names of files and folders below the input are, since a slice must be
found again, and they may be names of people.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ich_tfrecords import NOT_A_DEVICE, __version__
from ich_tfrecords.dataset import series_choice
from ich_tfrecords.plural import counted
from ich_tfrecords.storage import atomic, sources
from ich_tfrecords.storage.csv_text import csv_text
from ich_tfrecords.views import progress_line
from ich_tfrecords.views.montage import shortened
from trainer.models import model_file
from trainer.models.model_file import About
from trainer.pages import triage_page
from trainer.prediction import (
    dicom_folder,
    networks,
    outcome_lines,
    picture_files,
    series_stream,
    slice_outcomes,
    slice_stream,
    triage,
)
from trainer.prediction.dicom_folder import DicomFolder, Written
from trainer.prediction.folder import PredictFolder, csv_file
from trainer.prediction.heads import Heads
from trainer.prediction.neighbour_stream import NO_ORDER
from trainer.prediction.networks import Networks, Score
from trainer.prediction.picture_files import Pictured
from trainer.prediction.slice_outcomes import NOT_FINITE
from trainer.prediction.slice_stream import Reject
from trainer.prediction.thumbnails import Thumbnails
from trainer.prediction.triage import Outcome, Triage
from trainer.shell import command, quiet
from trainer.shell.problems import WorkFailed, WrongUse

MOST_PICTURES, MOST_AT_ONCE = 1000, 4096
EPILOG = """\
Written to --output: triage.html (the studies in one page, most urgent first),
predictions.csv (one row a slice), triage.csv (one row a study; "partial" says of which a
slice is missing; below them, without a rank, studies of which no file gave a
probability), rejects.csv (files without a prediction, and why; also those of a series
left out), run.json, and pictures of the most urgent slices. Files that are no CT slice do
not stop the work. "file" is the name below the folder or archive, and "input" says below
which: 1, 2, ... in order of their paths. Of a file that holds many slices (enhanced CT,
NIfTI) it is followed by # and the number of the slice: head.nii.gz#7.

Studies are ranked by their greatest probability of any hemorrhage in one slice. A model
that sees neighbours ("context_slices" or "--model series" in training) first groups the
files by study and series, from their heads, and each slice is judged beside those that
could be read; slices of a series that all lie at one position have no order, and are
rejects (no_order). A series model ranks studies by their own probability, of the series
head and the greatest slice together.

PatientID is never written, but by --dicom. Names of files and folders below the input
are, and they may be names of people.

--dicom DIR writes for each study a folder with report.dcm (a Comprehensive SR: the
probability of each label) and picture.dcm (a secondary capture of the explained picture),
in new series of the same study of the same patient: name, id, birth date, sex and age of
the slice that drives it stand there as that slice says. It needs
pip install 'ich-tfrecords[dicom]'.

A shell turns a glob without quotes into many names, and --input takes one: quote the
glob, or repeat --input.

example:
    python -m trainer.predict --model runs/densenet121 --input scans.zip --output predicted"""

GOES_ON = 'results count only where run.json says "finished": true; the same command makes them anew'


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    return command.run("predict", lambda: _predict(command.parse(_parser(), argv)), GOES_ON)


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(
        prog="python -m trainer.predict",
        usage="%(prog)s --model RUN_OR_EXPORT --input PATH [--input PATH ...] --output DIR [flags]",
        description="Probabilities for DICOM slices, and which study to read first.",
        epilog=EPILOG,
    )
    what = parser.add_argument_group("what")
    what.add_argument("--model", required=True, type=_path, metavar="DIR", help="folder of a run, or of an export")
    what.add_argument(
        "--input", required=True, type=_path, action="append", metavar="PATH",
        help="DICOM slices or NIfTI volumes: a folder, a glob in quotes, a file or a .zip; repeatable",
    )  # fmt: skip
    what.add_argument(
        "--include", action="append", default=[], metavar="GLOB",
        help="only slices whose name inside the input fits, such as '*/stage_2_test/*'; repeatable",
    )  # fmt: skip
    what.add_argument(
        "--output", required=True, type=_path, metavar="DIR", help="new or empty, or written by this command before"
    )
    what.add_argument(
        "--dicom", type=_path, metavar="DIR",
        help="also write each study's result as DICOM, with its patient, into this new or empty folder",
    )  # fmt: skip
    how = parser.add_argument_group("how")
    how.add_argument("--series", choices=(series_choice.ALL, series_choice.BEST), help=series_choice.HELP)
    how.add_argument("--flip", action="store_true", help="mean over each slice and its left-right mirror image")
    how.add_argument(
        "--pictures", type=_whole_number(0, MOST_PICTURES), default=8, metavar="N",
        help="explained pictures of the N most urgent slices, each study's own first (default: %(default)s)",
    )  # fmt: skip
    how.add_argument(
        "--map", choices=tuple(picture_files.METHODS), default=picture_files.DEFAULT,
        help="how the pictures show where the model looks (default: %(default)s)",
    )  # fmt: skip
    how.add_argument(
        "--batch_size", type=_whole_number(1, MOST_AT_ONCE), default=32, metavar="N",
        help="slices that the model takes at once (default: %(default)s)",
    )  # fmt: skip
    return parser


def _path(text: str) -> str:
    if not text:  # pathlib would take it for the current folder
        raise argparse.ArgumentTypeError("the path is empty")
    return text


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        # the length first: Python refuses to read thousands of digits
        is_number = text.isascii() and text.isdecimal() and len(text) <= 9
        if not (is_number and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{shortened(text)!r} is no whole number from {least:,} to {most:,}")
        return int(text)

    return read


def _predict(args: argparse.Namespace) -> int:
    folder = model_file.find(args.model)
    about = model_file.read_about(folder)
    output = PredictFolder(Path(args.output))
    results = DicomFolder(Path(args.dicom), output.path) if args.dicom else None
    listing = _listing(args)
    quiet.import_tensorflow()
    _quiet_pydicom()
    loaded = networks.load(folder, about)
    stages = _stages(args, loaded, listing.table)  # compiled here, before time is taken
    with contextlib.ExitStack() as growing:
        place = growing.enter_context(results.growing()) if results else None
        with output.claimed():
            with tempfile.TemporaryFile(dir=output.path) as file:
                kept = Thumbnails(file, len(about.spec.labels.names), about.spec.image.size_px)
                found, seconds = _score_files(args, about, stages, output, kept)
                chosen, shown = found.to_picture(), triage_page.shown(found)
                pictured = picture_files.draw(output, chosen, found.partial(), loaded, args.map, shown)
                text = triage_page.page(found, about, model_file.digest(folder), kept, pictured)
            atomic.write_bytes(output.page, text.encode(errors="backslashreplace"))
            filed = _file(place, found, loaded, folder, args.map) if place else None
            growing.close()  # what is filed stands in its place before the run counts as finished
            facts = _run_facts(args, folder, loaded, listing, found, filed)
            output.finish({**facts, "pictures": [one.path.name for one in pictured], "seconds": round(seconds, 3)})
    print(*outcome_lines.outcome(about, args.model, found, listing.ignored, seconds), sep="\n")
    _tell_files(output, pictured, args.dicom, filed)
    return _exit_code(found, output, filed)


def _listing(args: argparse.Namespace) -> sources.Listing:
    try:
        return sources.list_inputs(args.input, args.include)
    except sources.SourceError as error:
        raise WrongUse(str(error)) from error


def _quiet_pydicom() -> None:
    """Keep warnings that repeat for every file off the screen."""
    warnings.filterwarnings("ignore", module="pydicom")
    logging.getLogger("pydicom").setLevel(logging.ERROR)


class Stage(NamedTuple):
    """A part of the work: what it is called, how many files it deals with, and what becomes of them."""

    name: str
    files: int
    outcomes: Generator[Outcome, None, None]


def _stages(args: argparse.Namespace, loaded: Networks, listing: pa.Table) -> Iterator[Stage]:
    """What is to be done, one after the other: which files are one series has to be known first, to choose among them.

    A model of single slices that takes all series needs no such look.
    """
    if loaded.context is None and not loaded.beside:
        return _by_slice(args, loaded.about, loaded.scorer(args.flip), listing)
    return _by_series(args, loaded, listing)


def _by_slice(args: argparse.Namespace, about: About, score: Score, listing: pa.Table) -> Iterator[Stage]:
    left_out, numbers = triage.without_slices([], 0), slice_stream.input_numbers(listing)
    if args.series != series_choice.ALL:
        heads = Heads(listing, about.spec.accept)
        # what cannot be read is looked at again, and told then
        yield Stage("group", listing.num_rows, (found._replace(rejects=[]) for found in heads.read()))
        left_out, listing = heads.choose(args.series or series_choice.TOLD), heads.kept()
    batches = slice_stream.batches(listing, about.spec, args.batch_size, numbers)
    yield Stage("predict", listing.num_rows, _after(left_out, slice_outcomes.alone(batches, about, score)))


def _after(left_out: Outcome, others: Generator[Outcome, None, None]) -> Generator[Outcome, None, None]:
    yield left_out
    yield from others


def _by_series(args: argparse.Namespace, loaded: Networks, listing: pa.Table) -> Iterator[Stage]:
    about, outcomes = loaded.about, _asked(args, loaded)
    heads = Heads(listing, about.spec.accept)
    yield Stage("group", listing.num_rows, heads.read())
    left_out = heads.choose(args.series or series_choice.TOLD)
    yield Stage("predict", len(heads), _after(left_out, outcomes(heads)))


def _asked(args: argparse.Namespace, loaded: Networks) -> Callable[[Heads], Generator[Outcome, None, None]]:
    """What the model makes of files whose heads were read; it is compiled by now."""
    about, size = loaded.about, args.batch_size
    if loaded.context is not None:
        asked, looks = loaded.in_series(args.flip), bool(args.pictures or args.dicom)
        return lambda heads: series_stream.outcomes(heads, about, asked, size, looks=looks)
    score = loaded.scorer(args.flip)
    return lambda heads: slice_outcomes.among_neighbours(heads, about, score, loaded.beside, size)


def _score_files(
    args: argparse.Namespace, about: About, stages: Iterator[Stage], output: PredictFolder, kept: Thumbnails
) -> tuple[Triage, float]:
    """What was found, and seconds; the CSV files are written on the way, and thumbnails `kept`."""
    labels = about.spec.labels
    found, begin = Triage(labels, args.pictures), time.perf_counter()
    with (
        csv_file(output.predictions, triage.slice_head(labels)) as write_slices,
        csv_file(output.rejects, Reject._fields) as write_rejects,
    ):
        for stage in stages:
            with contextlib.closing(_told(stage)) as outcomes:
                for outcome in outcomes:
                    found.take(outcome)
                    kept.take(outcome)
                    write_slices(map(triage.slice_row, outcome.slices, outcome.probabilities))
                    write_rejects(outcome.rejects)
        output.begin()
    seconds = time.perf_counter() - begin
    text = csv_text(triage.study_head(labels), triage.study_rows(found, labels))
    atomic.write_bytes(output.triage, text.encode(errors="backslashreplace"))
    return found, seconds


def _told(stage: Stage) -> Generator[Outcome, None, None]:
    """The outcomes of a stage; how far it is stands on the screen."""
    done = 0
    with (
        contextlib.closing(stage.outcomes) as outcomes,
        progress_line.shown(stage.name, "files", sys.stdout) as tell,
    ):
        for outcome in outcomes:
            yield outcome
            done += outcome.files
            if outcome.files:
                tell(done, stage.files)


def _run_facts(
    args: argparse.Namespace,
    folder: Path,
    loaded: Networks,
    listing: sources.Listing,
    found: Triage,
    filed: Written | None,
) -> dict[str, Any]:
    """What made the results. No path and no glob of the input, which may hold the names of people."""
    import keras
    import tensorflow as tf

    about = loaded.about
    model: dict[str, Any] = {
        "kind": about.network,
        "sha256": model_file.digest(folder),
        "dataset": about.spec.name,
        "trained_on": about.fingerprint,
    }
    if loaded.context is not None:
        beside = folder / model_file.SLICE
        model["slice_model"] = {"kind": about.facts["slice_model"], "sha256": model_file.digest(beside)}
    places = len(slice_stream.input_numbers(listing.table))
    files = {"inputs": places, "files": listing.table.num_rows, "ignored": dict(sorted(listing.ignored.items()))}
    given = {name: getattr(args, name) for name in ("series", "flip", "pictures", "map", "batch_size")}
    versions = {"ich_tfrecords": __version__, "python": platform.python_version(), "numpy": np.__version__}
    return {
        "model": {**model, "uncalibrated": dict(about.calibration.refused)},
        "input": {**files, "sha256": sources.listing_digest(listing.table)},
        "flags": {"include_given": bool(args.include), **given},
        "slices": found.slices,
        "studies": len(found.studies()),
        "studies_partial": len(found.partial()),
        "study_probability": outcome_lines.ranked_by(about),
        "studies_without_slices": len(found.without_slices()),
        "rejects": dict(sorted(found.rejects.items())),
        "dicom": filed and filed._asdict(),
        "versions": {**versions, "tensorflow": tf.__version__, "keras": keras.__version__},
    }


def _file(place: Path, found: Triage, loaded: Networks, folder: Path, method: str) -> Written:
    """Write the results as DICOM into a folder."""
    from trainer.prediction.dicom_objects import MadeBy  # takes highdicom

    by = MadeBy(loaded.about.network, model_file.digest(folder), loaded.about.fingerprint)
    return dicom_folder.write(place, found, loaded, by, method)


def _tell_files(output: PredictFolder, pictured: Sequence[Pictured], place: str | None, filed: Written | None) -> None:
    for path in (output.page, output.predictions, output.triage, output.rejects, *(one.path for one in pictured[:1])):
        print(path)
    if len(pictured) > 1:
        print(f"and {len(pictured) - 1} more there")
    if filed:
        print(*filed.lines(), place, sep="\n")
    print(NOT_A_DEVICE, flush=True)


def _exit_code(found: Triage, output: PredictFolder, filed: Written | None) -> int:
    """0; raises `WorkFailed` where the model or every file failed, with what there is already written."""
    names = f"{output.rejects} names each"
    if found.rejects[NOT_FINITE]:
        slices = counted(found.rejects[NOT_FINITE], "slice")
        raise WorkFailed(f"the model gives no finite number for {slices}; {names}; train or export the model again")
    if not found.slices and found.rejects[series_choice.UNFIT]:
        raise WrongUse(
            f"no series qualifies ({outcome_lines.reasons(found.rejects)}); {names}; --series all takes every one"
        )
    if not found.slices and found.rejects[NO_ORDER]:
        why = f"no slice has a place among others ({outcome_lines.reasons(found.rejects)})"
        raise WrongUse(f"{why}; {names}; a model of single slices reads them")
    if not found.slices:
        raise WorkFailed(f"no file gave a prediction ({outcome_lines.reasons(found.rejects)}); {names}")
    if filed and filed.failed:
        studies = counted(filed.failed, "study", "studies")
        raise WorkFailed(f"no DICOM result for {studies}, whose files changed meanwhile; predict again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
