"""Probabilities for DICOM slices, and which study to read first.

    python -m trainer.predict --model runs/cnn --input data/ct --output predicted

PatientID is never written. Names of files and folders below the input are, since a slice must be found again, and
they may be names of people.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import platform
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ich_tfrecords import NOT_A_DEVICE, __version__
from ich_tfrecords.plural import counted
from ich_tfrecords.storage import atomic, packed, sources
from ich_tfrecords.storage.csv_text import csv_text
from ich_tfrecords.views import progress_line
from ich_tfrecords.views.montage import shortened
from trainer.models import model_file
from trainer.models.model_file import About
from trainer.prediction import picture_files, slice_stream, triage
from trainer.prediction.folder import PredictFolder, csv_file
from trainer.prediction.slice_stream import Reject
from trainer.prediction.triage import Triage
from trainer.shell import command, quiet
from trainer.shell.display import count
from trainer.shell.problems import WorkFailed, WrongUse

SHOWN_STUDIES, SHOWN_REASONS = 10, 4
MOST_PICTURES, MOST_AT_ONCE = 1000, 4096
NOT_FINITE = "no_probability"
EPILOG = """\
Written to --output: predictions.csv (one row a slice), triage.csv (one row a study,
most urgent first; "partial" says of which a slice is missing; below them, without a
rank, studies of which no file gave a probability), rejects.csv (files without a
prediction, and why), run.json, and pictures of the most urgent slices. Files that are no
CT slice do not stop the work. "file" is the name below the folder or archive, and
"input" says below which: 1, 2, ... in order of their paths.

PatientID is never written. Names of files and folders below the input are, and they may
be names of people.

A shell turns a glob without quotes into many names, and --input takes one: quote the
glob, or repeat --input.

example:
    python -m trainer.predict --model runs/densenet121 --input scans.zip --output predicted"""

Score = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
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
        help="DICOM slices: a folder, a glob in quotes, a file or a .zip; repeatable",
    )  # fmt: skip
    what.add_argument(
        "--include", action="append", default=[], metavar="GLOB",
        help="only slices whose name inside the input fits, such as '*/stage_2_test/*'; repeatable",
    )  # fmt: skip
    what.add_argument(
        "--output", required=True, type=_path, metavar="DIR", help="new or empty, or written by this command before"
    )
    how = parser.add_argument_group("how")
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
    listing = _listing(args)
    quiet.import_tensorflow()
    _quiet_pydicom()
    model = model_file.load_model(folder, about)
    score = model_file.scorer(model, args.flip)
    score(np.zeros((1, *about.spec.image.shape), np.uint8))  # compiles, before time is taken
    with output.claimed():
        found, seconds = _score_files(args, about, listing, score, output)
        pictured = picture_files.draw(output, found.to_picture(), found.partial(), about, model, args.map)
        facts = _run_facts(args, folder, about, listing, found)
        output.finish({**facts, "pictures": [path.name for path in pictured], "seconds": round(seconds, 3)})
    _tell(args, about, listing, found, seconds, output, pictured)
    return _exit_code(found, output)


def _listing(args: argparse.Namespace) -> sources.Listing:
    try:
        return sources.list_inputs(args.input, args.include)
    except sources.SourceError as error:
        raise WrongUse(str(error)) from error


def _quiet_pydicom() -> None:
    """Keep warnings that repeat for every file off the screen."""
    warnings.filterwarnings("ignore", module="pydicom")
    logging.getLogger("pydicom").setLevel(logging.ERROR)


def _score_files(
    args: argparse.Namespace, about: About, listing: sources.Listing, score: Score, output: PredictFolder
) -> tuple[Triage, float]:
    """What was found, and seconds; the CSV files are written on the way."""
    labels, files = about.spec.labels, listing.table.num_rows
    found, begin = Triage(labels, args.pictures), time.perf_counter()
    with (
        csv_file(output.predictions, triage.slice_head(labels)) as write_slices,
        csv_file(output.rejects, Reject._fields) as write_rejects,
        contextlib.closing(slice_stream.batches(listing.table, about.spec.image, args.batch_size)) as batches,
        progress_line.shown("predict", "files", sys.stdout) as tell,
    ):
        for batch in batches:
            slices, probabilities, rejects = _scored(batch, about, score)
            found.add(slices, probabilities)
            found.reject(rejects)
            write_slices(map(triage.slice_row, slices, probabilities))
            write_rejects(rejects)
            tell(found.slices + found.rejects.total(), files)
        output.begin()
    seconds = time.perf_counter() - begin
    text = csv_text(triage.study_head(labels), triage.study_rows(found, labels))
    atomic.write_bytes(output.triage, text.encode(errors="backslashreplace"))
    return found, seconds


def _scored(
    batch: slice_stream.Batch, about: About, score: Score
) -> tuple[list[slice_stream.FoundSlice], npt.NDArray[np.float64], list[Reject]]:
    """The slices of a batch that get probabilities, those, float64 [k, L], and the rejects."""
    if not batch.slices:
        return [], np.empty((0, len(about.spec.labels.names))), batch.rejects
    logits = _logits(score, batch.images)
    good = np.isfinite(logits).all(axis=1)
    bad = [batch.slices[row] for row in np.flatnonzero(~good)]
    detail = "the model gives a number that is not finite"
    rejects = [*batch.rejects, *(slice_stream.refused(found, NOT_FINITE, detail) for found in bad)]
    slices = [batch.slices[row] for row in np.flatnonzero(good)]
    return slices, about.probabilities(logits[good]), rejects


def _logits(score: Score, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    import tensorflow as tf

    try:
        return score(images)
    except tf.errors.ResourceExhaustedError as error:
        raise WorkFailed(f"{len(images)} slices at once need more memory than there is; lower --batch_size") from error


def _run_facts(
    args: argparse.Namespace, folder: Path, about: About, listing: sources.Listing, found: Triage
) -> dict[str, Any]:
    """What made the results. No path and no glob of the input, which may hold the names of people."""
    import keras
    import tensorflow as tf

    data_spec = about.spec
    model = {
        "kind": about.settings["model"],
        "sha256": model_file.digest(folder),
        "dataset": data_spec.name,
        "trained_on": about.fingerprint,
    }
    places = len(slice_stream.input_numbers(listing.table))
    files = {"inputs": places, "files": listing.table.num_rows, "ignored": dict(sorted(listing.ignored.items()))}
    given = {name: getattr(args, name) for name in ("flip", "pictures", "map", "batch_size")}
    versions = {"ich_tfrecords": __version__, "python": platform.python_version(), "numpy": np.__version__}
    return {
        "model": {**model, "uncalibrated": dict(about.calibration.refused)},
        "input": {**files, "sha256": sources.listing_digest(listing.table)},
        "flags": {"include_given": bool(args.include), **given},
        "slices": found.slices,
        "studies": len(found.studies()),
        "studies_partial": len(found.partial()),
        "studies_without_slices": len(found.without_slices()),
        "rejects": dict(sorted(found.rejects.items())),
        "versions": {**versions, "tensorflow": tf.__version__, "keras": keras.__version__},
    }


def _tell(
    args: argparse.Namespace,
    about: About,
    listing: sources.Listing,
    found: Triage,
    seconds: float,
    output: PredictFolder,
    pictured: Sequence[Path],
) -> None:
    """Print the outcome: the sentences of a single slice, or the head of the triage list, and where all of it lies."""
    _tell_studies(about, found)
    for line in (*about.notes(args.model), *about.calibration.told()):
        print(line)
    studies, rate = counted(len(found.studies()), "study", "studies"), count(found.slices / seconds)
    print(f"{counted(found.slices, 'slice')} of {studies}, {rate} slices/s")
    if listing.ignored:
        files = counted(listing.ignored.total(), "file")
        print(f"{files} with other suffixes left aside: {packed.counted(listing.ignored)}")
    if archives := packed.unread(listing.ignored):
        print(archives)
    if never := found.never.total():
        print(f"{counted(never, 'file')} of other kinds than axial CT slices: {_reasons(found.never)}")
    if lost := found.rejects - found.never:
        print(f"{counted(lost.total(), 'file')} without a prediction: {_reasons(lost)}")
    if partial := found.partial():
        studies = counted(len(partial), "study is", "studies are")
        print(f"{studies} ranked by a part of the slices ({output.triage.name}: partial); what is missing may be worse")
    if found.astray:
        files = counted(found.astray, "file that tells no study", "files that tell no study")
        print(f"{files} could not be read; any study may lack them")
    if unread := found.without_slices():
        print(f"{counted(len(unread), 'study', 'studies')} without any prediction, at the end of {output.triage.name}")
    for path in (output.predictions, output.triage, output.rejects, *pictured[:1]):
        print(path)
    if len(pictured) > 1:
        print(f"and {len(pictured) - 1} more there")
    print(NOT_A_DEVICE, flush=True)


def _tell_studies(about: About, found: Triage) -> None:
    labels, studies = about.spec.labels, found.studies()
    if found.slices == 1:
        print(*triage.sentences(studies[0].driver, labels), sep="\n")
        if studies[0].partial:
            print(f"PARTIAL: this is {studies[0].partial}")
    elif studies:
        print("studies, most urgent first, by their greatest probability of any hemorrhage in one slice")
        print(*triage.table(studies, labels, SHOWN_STUDIES, about.calibration.refused), sep="\n")


def _reasons(rejects: Counter[str]) -> str:
    return ", ".join(f"{files:,} {reason}" for reason, files in rejects.most_common(SHOWN_REASONS))


def _exit_code(found: Triage, output: PredictFolder) -> int:
    """0; raises `WorkFailed` where the model or every file failed, with what there is already written."""
    names = f"{output.rejects} names each"
    if found.rejects[NOT_FINITE]:
        slices = counted(found.rejects[NOT_FINITE], "slice")
        raise WorkFailed(f"the model gives no finite number for {slices}; {names}; train or export the model again")
    if not found.slices:
        raise WorkFailed(f"no file gave a prediction ({_reasons(found.rejects)}); {names}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
