"""Probabilities for DICOM slices, and which study to read first.

    python -m trainer.predict --model runs/cnn --input data/ct --output predicted

PatientID is never written, but by --dicom. Names of files and folders below the input are, since a slice must be
found again, and they may be names of people.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ich_tfrecords import NOT_A_DEVICE
from ich_tfrecords.dataset import series_choice
from ich_tfrecords.storage import sources
from ich_tfrecords.views import progress_line
from trainer.models import model_file
from trainer.prediction import outcome_lines, panel, picture_files
from trainer.prediction.dicom_folder import DicomFolder, Written
from trainer.prediction.folder import PredictFolder
from trainer.prediction.picture_files import Pictured
from trainer.shell import command
from trainer.shell.problems import WrongUse
from trainer.worklist.reading import How, Reader

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

"in_scope" says whether a study looks like what the model was trained on, "scope_reason"
why not. What does not is ranked behind the others and named on the screen. Of patients
like those of the validation split 5 of 100 at most are called so. series.parquet holds
what each series looks like.

PatientID is never written, but by --dicom. Names of files and folders below the input
are, and they may be names of people.

Several models (--model RUN0 --model RUN1 ..., as of a cross-validation) judge together: the
mean of their probabilities counts. any_spread and the like say by how much the highest
is above the lowest for a study, "disagreed" which labels some call positive and others
not, each by its own threshold. Pictures and maps are of the first.

--alpha 0.05 adds a group of each label to each study (any_group, ...): of patients like
those of the validation split who have a kind, at most 5 of 100 are called negative for
it, of those who have not at most 5 positive; what is neither, or lacks slices, is
uncertain. The promise is about the average over such patients, not about one of them.

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
    what.add_argument(
        "--model", required=True, type=command.path, action="append", metavar="DIR",
        help="folder of a run, or of an export; repeatable, for the mean of slice models such as those of all folds",
    )  # fmt: skip
    what.add_argument(
        "--input", required=True, type=command.path, action="append", metavar="PATH",
        help="DICOM slices or NIfTI volumes: a folder, a glob in quotes, a file or a .zip; repeatable",
    )  # fmt: skip
    what.add_argument(
        "--include", action="append", default=[], metavar="GLOB",
        help="only slices whose name inside the input fits, such as '*/stage_2_test/*'; repeatable",
    )  # fmt: skip
    what.add_argument(
        "--output", required=True, type=command.path, metavar="DIR",
        help="new or empty, or written by this command before",
    )  # fmt: skip
    what.add_argument(
        "--dicom", type=command.path, metavar="DIR",
        help="also write each study's result as DICOM, with its patient, into this new or empty folder",
    )  # fmt: skip
    how = parser.add_argument_group("how")
    how.add_argument("--series", choices=(series_choice.ALL, series_choice.BEST), help=series_choice.HELP)
    how.add_argument("--flip", action="store_true", help="mean over each slice and its left-right mirror image")
    how.add_argument(
        "--alpha", type=command.part(0.5), metavar="A",
        help="also call each study negative, uncertain or positive for each label, with at most this part of patients "
        "called wrongly, such as 0.05",
    )  # fmt: skip
    how.add_argument(
        "--pictures", type=command.whole_number(0, MOST_PICTURES), default=8, metavar="N",
        help="explained pictures of the N most urgent slices, each study's own first (default: %(default)s)",
    )  # fmt: skip
    how.add_argument(
        "--map", choices=tuple(picture_files.METHODS), default=picture_files.DEFAULT,
        help="how the pictures show where the model looks (default: %(default)s)",
    )  # fmt: skip
    how.add_argument(
        "--batch_size", type=command.whole_number(1, MOST_AT_ONCE), default=32, metavar="N",
        help="slices that the model takes at once (default: %(default)s)",
    )  # fmt: skip
    return parser


def _predict(args: argparse.Namespace) -> int:
    folders = list(map(model_file.find, args.model))
    abouts = list(map(model_file.read_about, folders))
    if len(folders) > 1:
        panel.require_alike(args.model, abouts)
    (folder, *others), (about, *known) = folders, abouts
    output = PredictFolder(Path(args.output))
    results = DicomFolder(Path(args.dicom), output.path) if args.dicom else None
    listing = _listing(args)
    how = How(args.series, args.flip, args.pictures, args.map, args.batch_size, args.alpha)
    reader = Reader(folder, about, how, dict(zip(others, known, strict=True)))
    read = reader.read(listing, output, results, _shown, include_given=bool(args.include))
    print(*outcome_lines.outcome(about, args.model[0], read.found, listing.ignored, read.seconds), sep="\n")
    _tell_files(output, read.pictured, args.dicom, read.filed)
    read.require_something(output, "; --series all takes every one")
    return 0


def _shown(stage: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """How far a stage is stands on the screen."""
    return progress_line.shown(stage, "files", sys.stdout)


def _listing(args: argparse.Namespace) -> sources.Listing:
    try:
        return sources.list_inputs(args.input, args.include)
    except sources.SourceError as error:
        raise WrongUse(str(error)) from error


def _tell_files(output: PredictFolder, pictured: Sequence[Pictured], place: str | None, filed: Written | None) -> None:
    for path in (output.page, output.predictions, output.triage, output.rejects, *(one.path for one in pictured[:1])):
        print(path)
    if len(pictured) > 1:
        print(f"and {len(pictured) - 1} more there")
    if filed:
        print(*filed.lines(), place, sep="\n")
    print(NOT_A_DEVICE, flush=True)


if __name__ == "__main__":
    sys.exit(main())
