"""Write a submission to the competition: the calibrated probabilities of every slice of a converted data set.

python -m trainer.submit --job_dir runs/cnn --data_dir data/rsna_test --output submission.csv
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ich_tfrecords.storage import atomic
from ich_tfrecords.views import progress_line
from trainer.data.dataset import Dataset, Slices, open_dataset
from trainer.models import model_file
from trainer.models.model_file import About
from trainer.results import competition
from trainer.shell import command, quiet
from trainer.shell.command import Parser
from trainer.shell.problems import WrongUse

BATCH_SIZE = 64
EPILOG = """\
example:
  python -m trainer.submit --job_dir runs/cnn --data_dir data/rsna_test \\
      --output submission.csv

Kaggle's test slices have no labels; they are converted with --labels none.
The file has one row for each label of each slice, the slices by their ids.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 wrong use or input."""
    return command.run("submit", lambda: _submit(command.parse(_parser(), argv)))


def _parser() -> Parser:
    parser = Parser(
        prog="python -m trainer.submit",
        description="Write a submission: the probabilities of every slice of a data set.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "--job_dir", required=True, metavar="DIR", help="folder of the run, or of an export, with the trained model"
    )
    command.add_data_dir(parser)
    parser.add_argument(
        "--output", required=True, type=Path, metavar="CSV", help="the file to write; replaced if there"
    )
    parser.add_argument(
        "--split", nargs="+", default=[], metavar="NAME", help="the slices of these splits alone (default: of all)"
    )
    parser.add_argument("--flip", action="store_true", help="average over each slice and its left-right mirror image")
    return parser


def _submit(args: argparse.Namespace) -> None:
    command.require_local("--output", args.output)
    _check_output(args.output)
    folder = model_file.find(args.job_dir)
    about = model_file.read_about(folder)
    place = command.data_place(args.data_dir)
    data = open_dataset(place)
    splits = data.named(args.split)
    quiet.import_tensorflow()
    from trainer.training import scoring

    scoring.check_spec(about, data.manifest, place)
    text = _text(folder, about, data, splits, args.flip)
    atomic.write_bytes(args.output, text.encode())
    slices = sum(map(len, splits))
    print(f"submission of {slices:,} slices, {slices * len(about.spec.labels.names):,} rows: {args.output}")
    for line in about.notes(args.job_dir):
        print(line)
    absent = sum(data.manifest.rejects.values()) + data.manifest.not_drawn
    if absent and not args.split:
        print(f"{absent:,} more were left out when {place} was converted; the competition asks for every slice")


def _check_output(path: Path) -> None:
    if path.is_dir():
        raise WrongUse(f"--output {path} is a folder; name a file in it, such as {path / 'submission.csv'}")
    if not path.parent.is_dir():
        raise WrongUse(f"--output {path} lies in no folder that is there; make {path.parent} first")


def _text(folder: Path, about: About, data: Dataset, splits: Sequence[Slices], flip: bool) -> str:
    """The submission, its slices in the order of their ids."""
    from trainer.series import judging

    judge = judging.judge_of(folder, about, data, flip)
    parts = []
    for slices in splits:
        with progress_line.shown(f"split {slices.split}", "slices", sys.stdout) as tell:
            parts.append(judge(slices, BATCH_SIZE, tell).slices)
    sop_uids = [uid for part in parts for uid in part.ids["sop_uid"].to_pylist()]
    rows = sorted(range(len(sop_uids)), key=sop_uids.__getitem__)
    labels = about.spec.labels
    probabilities = np.concatenate([part.probabilities for part in parts])[rows]
    return competition.submission_text([sop_uids[row] for row in rows], labels.names, labels.any, probabilities)


if __name__ == "__main__":
    sys.exit(main())
