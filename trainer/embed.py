"""Keep what a trained model makes of every slice: its vector, for a model that sees a slice among its neighbours.

python -m trainer.embed --job_dir runs/densenet121
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from trainer.data.joined import open_datasets
from trainer.models import model_file
from trainer.shell import command, quiet
from trainer.shell.command import Parser
from trainer.shell.problems import WrongUse

GOES_ON = "whole parts stay, and the same command goes on"
EPILOG = """\
The vector of a slice is what the last layer of the model takes: the mean over
all places (densenet121 1,024 numbers, xception 2,048), or the last dense layer
of the cnn (64 as it comes). The model's logits lie beside it.

Written to RUN/vectors/SPLIT, of the mirror images to RUN/vectors/SPLIT-flip, of
another data set than the run's to RUN/vectors/SPLIT-<data set>:
  part-00000.npy ...  a row a slice: vector float16, logits float32
  index.json          weights, data set, and the sha256 of each whole part

Run it again after a stop: parts that are whole stay, those that lack or are
damaged are made. After the run was trained on, all are made anew. Vectors go by
the splits of the data set, so a run of --folds finds its own slices in them.

example:
  python -m trainer.embed --job_dir runs/densenet121 --split train validation"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 wrong use or input."""
    return command.run("embed", lambda: _embed(command.parse(_parser(), argv)), GOES_ON)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m trainer.embed",
        description="Keep the vector and the logits of every slice, as a trained model gives them.",
        epilog=EPILOG,
    )
    parser.add_argument("--job_dir", required=True, metavar="RUN", help="folder of the run")
    command.add_data_dirs(parser, "those that the run was trained on")
    parser.add_argument(
        "--split", nargs="+", default=[], metavar="NAME", help="the slices of these splits alone (default: of all)"
    )
    parser.add_argument("--flip", action="store_true", help="also of the left-right mirror image of each slice")
    return parser


def _embed(args: argparse.Namespace) -> None:
    about = model_file.read_about(model_file.find(args.job_dir))
    if about.blend is not None:
        raise WrongUse(f"{args.job_dir} is a series model, which takes vectors; name the run of its slice model")
    data = open_datasets(command.data_places(args.data_dir, about.facts.get("data_dir")))
    splits = [slices.split for slices in data.named(args.split)]  # before TensorFlow, which takes seconds to import
    quiet.import_tensorflow()
    from trainer.training import scoring

    scoring.check_spec(about, data.manifest, data.place)
    scoring.embed(args.job_dir, about, data, splits, args.flip)


if __name__ == "__main__":
    sys.exit(main())
