"""Score a submission as the competition does.

python -m trainer.score --submission submission.csv --labels stage_2_train.csv
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv

from ich_tfrecords.labels.csv_file import LabelError, open_csv
from ich_tfrecords.labels.table import LabelTable, read_labels
from trainer.results import competition
from trainer.results.probability import log_losses, prevalence
from trainer.shell import command
from trainer.shell.command import Parser
from trainer.shell.problems import WrongUse

USAGE = "Usage"
IGNORED = "Ignored"
SHOWN = 3
EPILOG = """\
example:
  python -m trainer.score --submission submission.csv --labels stage_2_train.csv

The loss is that of RSNA 2019 (Kaggle): probabilities clipped to
[1e-15, 1 - 1e-15], the label any twice, in float64. A column Usage of the
labels (Public, Private) gives one more line for each of its values; its
images marked Ignored are not scored. The last line is the loss of one who says
of every image how often each label is 1 among these.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 wrong use or input."""
    return command.run("score", lambda: _score(command.parse(_parser(), argv)))


def _parser() -> Parser:
    parser = Parser(
        prog="python -m trainer.score", description="Score a submission as the competition does.", epilog=EPILOG
    )
    parser.add_argument(
        "--submission", type=Path, required=True, metavar="CSV", help="ID,Label with probabilities; may be gzipped"
    )
    parser.add_argument(
        "--labels", type=Path, required=True, metavar="CSV", help="the truth: ID,Label with 0 and 1; may be gzipped"
    )
    parser.add_argument(
        "--subset", action="store_true", help="let the submission hold rows that the labels do not speak of"
    )
    return parser


def _score(args: argparse.Namespace) -> None:
    spec = competition.label_spec()
    truth, usage = _truth(args.labels)
    keys, values = competition.read_submission(args.submission)
    rows = competition.rows_of(keys, truth.ids, spec.names)
    _check_missing(rows, truth, spec.names, args)
    _check_extra(rows, keys, args)
    for note in truth.notes():
        print(f"score: {note}", file=sys.stderr)
    _report(truth.values, values[rows], usage)


def _truth(path: Path) -> tuple[LabelTable, npt.NDArray[np.str_]]:
    """The labels of every image, and the usage of each (str [n], "" where the file does not tell)."""
    try:
        truth = read_labels(path, competition.label_spec())
        if truth.dropped:
            raise WrongUse(f"{truth.notes()[-1]}; a score needs all, mend the file")
        if not {competition.COLUMNS[0], USAGE} <= set(open_csv(path).header):
            return truth, np.full(len(truth.ids), "")
        ignored = tuple(column for column in truth.ignored_columns if column != USAGE)
        return dataclasses.replace(truth, ignored_columns=ignored), _usage(path, truth)
    except LabelError as error:
        raise WrongUse(str(error)) from error


def _usage(path: Path, truth: LabelTable) -> npt.NDArray[np.str_]:
    """str [n], the usage of each image. Raises `WrongUse` where the rows of one do not agree."""
    types = dict.fromkeys((competition.COLUMNS[0], USAGE), pa.large_string())
    options = pa_csv.ConvertOptions(column_types=types, include_columns=list(types))
    try:
        table = pa_csv.read_csv(pa.BufferReader(open_csv(path).data), convert_options=options)
    except pa.ArrowException as error:
        raise WrongUse(f"{path}: cannot read its {USAGE}: {' '.join(str(error).split())}; mend the file") from error
    keys, values = (table[column].combine_chunks() for column in types)
    rows = competition.rows_of(keys, truth.ids, competition.label_spec().names)
    usage = values.to_numpy(zero_copy_only=False)[rows].astype(str)
    mixed = (usage != usage[:, :1]).any(axis=1)
    if mixed.any():
        at = int(mixed.argmax())
        raise WrongUse(f"{path}: image {truth.ids[at]} has {USAGE} {' and '.join(sorted(set(usage[at])))}; give it one")
    return usage[:, 0]


def _check_missing(
    rows: npt.NDArray[np.int64], truth: LabelTable, names: Sequence[str], args: argparse.Namespace
) -> None:
    missing = np.argwhere(rows < 0)
    if len(missing):
        first = ", ".join(f"{truth.ids[image]}_{names[label]}" for image, label in missing[:SHOWN].tolist())
        raise WrongUse(
            f"{args.submission} lacks {len(missing):,} of the {rows.size:,} rows that {args.labels} asks for, "
            f"first {first}; predict every image, or give the labels of those predicted alone"
        )


def _check_extra(rows: npt.NDArray[np.int64], keys: pa.Array, args: argparse.Namespace) -> None:
    extra = np.ones(len(keys), bool)
    extra[rows] = False
    if not extra.any():
        return
    first = ", ".join(keys.take(pa.array(np.flatnonzero(extra)[:SHOWN])).to_pylist())
    told = f"{args.submission} holds {extra.sum():,} rows that {args.labels} does not speak of, first {first}"
    if not args.subset:
        raise WrongUse(f"{told}; --subset leaves them out")
    print(f"score: {told}; left out", file=sys.stderr)


def _report(labels: npt.NDArray[np.int8], probabilities: npt.NDArray[np.float64], usage: npt.NDArray[np.str_]) -> None:
    """Print one line a number: the loss, that of each usage, and the log loss of each label."""
    spec = competition.label_spec()
    scored = usage != IGNORED
    labels, probabilities, usage = labels[scored], probabilities[scored], usage[scored]
    lines = {"competition loss": competition.loss(labels, probabilities, spec.names, spec.any)}
    for name in sorted(set(usage.tolist()) - {""}):
        of = usage == name
        lines[f"competition loss, {name}"] = competition.loss(labels[of], probabilities[of], spec.names, spec.any)
    means = log_losses(labels == 1, probabilities).mean(axis=0)
    for name in competition.order(spec.names, spec.any):
        lines[f"log loss, {name}"] = float(means[spec.names.index(name)])
    expected = np.broadcast_to(prevalence(labels), labels.shape)
    lines["competition loss of the prevalence alone"] = competition.loss(labels, expected, spec.names, spec.any)
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {value!r}")


if __name__ == "__main__":
    sys.exit(main())
