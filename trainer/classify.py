"""A random forest, an SVM or a logistic regression on what a trained network makes of each slice.

python -m trainer.classify --job_dir runs/densenet121 --with forest
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ich_tfrecords.views.montage import shortened
from trainer.classical.kinds import DEFAULTS, FOREST, SVM, Wanted
from trainer.data.joined import open_datasets
from trainer.models import model_file
from trainer.models.model_file import CLASSIFIER, About
from trainer.shell import command, folder_lock, quiet, vertex
from trainer.shell.command import Parser
from trainer.shell.problems import WrongUse

MOST_TREES, MOST_DEPTH, GREATEST_C = 1000, 24, 1e6
GOES_ON = "vectors that are whole stay, and the same command fits anew"
EPILOG = """\
The network stays as it is; its last layer gives way to scikit-learn's classifiers,
one a label, on the vectors of trainer.embed (those that lack are made first). They
are fitted on the training split of the run, calibrated on its validation split, and
come out as a model like every other: evaluate, compare, predict and export take it.

Written to --output: model.keras and about.json, once all is fitted.

example:
  python -m trainer.classify --job_dir runs/densenet121 --with forest
  python -m trainer.evaluate --job_dir runs/densenet121-forest
  python -m trainer.compare runs/densenet121-forest runs/densenet121 --output forest.html"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 wrong use or input, 130 interrupted."""
    return command.run("classify", lambda: _classify(command.parse(_parser(), argv)), GOES_ON)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m trainer.classify",
        usage="%(prog)s --job_dir RUN --with KIND [--output DIR] [flags]",
        description="Classical classifiers on the vectors that a trained slice model makes of every slice.",
        epilog=EPILOG,
    )
    parser.add_argument("--job_dir", required=True, metavar="RUN", help="folder of the run of a slice model")
    parser.add_argument(
        "--with", required=True, choices=tuple(DEFAULTS), dest="kind",
        help="random forest, linear support vector machine, or logistic regression",
    )  # fmt: skip
    command.add_data_dirs(parser, "those that the run was trained on")
    parser.add_argument("--output", metavar="DIR", help="new or empty (default: RUN-KIND, beside the run)")
    whole = command.whole_number
    texts = {
        "trees": (whole(1, MOST_TREES), "N", "of a forest", FOREST),
        "depth": (whole(1, MOST_DEPTH), "N", "of a tree of a forest, at most", FOREST),
        "c": (_positive, "C", "of svm and logistic: how much errors count against large weights", SVM),
    }
    for name, (kind, metavar, text, of) in texts.items():
        parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=f"{text} (default: {DEFAULTS[of][name]:g})")
    parser.add_argument(
        "--seed", type=whole(0, 2**31 - 1), default=0, metavar="N", help="of what is drawn (default: 0)"
    )
    return parser


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= GREATEST_C:
        raise argparse.ArgumentTypeError(f"{shortened(text)!r} is no number above 0, {GREATEST_C:,.0f} at most")
    return value


def _classify(args: argparse.Namespace) -> None:
    parameters = _parameters(args)
    folder = model_file.find(args.job_dir)
    about = model_file.read_about(folder)
    _require_slice_run(args.job_dir, about)
    output = vertex.mounted(args.output or _beside(model_file.run_folder(folder), args.kind))
    wanted = Wanted(args.kind, parameters, args.seed)
    if _is_there(output, args.job_dir, wanted):
        print(f"{output} holds this classifier already; nothing was done")
        return
    # before TensorFlow, which takes seconds to import
    data = open_datasets(command.data_places(args.data_dir, about.facts.get("data_dir")))
    quiet.import_tensorflow()
    from trainer.classical import run

    run.classify(args.job_dir, about, data, wanted, output, lambda line: print(line, flush=True))
    print(f"evaluate it with: {shlex.join(['python', '-m', 'trainer.evaluate', '--job_dir', str(output)])}")


def _parameters(args: argparse.Namespace) -> dict[str, Any]:
    """What the kind takes. Raises `WrongUse` for a flag of another kind."""
    known = DEFAULTS[args.kind]
    given = {name: getattr(args, name) for name in ("trees", "depth", "c") if getattr(args, name) is not None}
    if others := [name for name in given if name not in known]:
        takes = " and ".join(f"--{name}" for name in known)
        raise WrongUse(f"--{others[0]} does not belong to --with {args.kind}, which takes {takes}; leave it out")
    return {**known, **given}


def _require_slice_run(place: str, about: About) -> None:
    if about.blend is not None:
        raise WrongUse(f"{place} is a series model, which takes vectors; name the run of its slice model")
    if CLASSIFIER in about.settings:
        raise WrongUse(f"{place} is a {about.network} already; name the run whose vectors it was fitted on")


def _beside(run: Path, kind: str) -> str:
    """`RUN-KIND`, the fold at the end of a name staying there, so that folds keep one name."""
    named = run if run.name not in ("", "..") else run.resolve()
    return str(named.with_name(re.sub(r"(-fold\d+)?$", rf"-{kind}\1", named.name, count=1)))


def _is_there(output: Path, job_dir: str, wanted: Wanted) -> bool:
    """Whether `output` holds this very classifier. Raises `WrongUse` where it holds anything else."""
    if output.exists() and not output.is_dir():
        raise WrongUse(f"{output} is a file, not a folder; choose another --output")
    if not output.exists() or not [path for path in output.iterdir() if path.name != folder_lock.LOCK]:
        return False
    if not all((output / name).is_file() for name in (model_file.ABOUT, model_file.MODEL)):
        raise WrongUse(f"{output} is not empty and holds no classifier of this command; choose another --output")
    found, asked = model_file.read_about(output).settings.get(CLASSIFIER, {}), wanted.identity(job_dir)
    if differs := [f"{key} {found.get(key)}, now {value}" for key, value in asked.items() if found.get(key) != value]:
        raise WrongUse(f"{output} holds another model ({'; '.join(differs)}); choose another --output")
    return True


if __name__ == "__main__":
    sys.exit(main())
