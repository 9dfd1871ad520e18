"""`python -m trainer.compare RUN RUN ... --output FILE.html`: evaluated runs side by side, and what may be claimed."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ich_tfrecords.storage import atomic
from trainer.results import evaluated
from trainer.shell import command, vertex
from trainer.shell.problems import WrongUse

if TYPE_CHECKING:
    from trainer.results.comparable import Run

FEWEST_RESAMPLES = 40  # of fewer, a standard error is off by more than a tenth
_WHAT = ("split", "dataset", "trained_on", "flip", "model", "parameters", "settings", "fold", "train")

DESCRIPTION = """\
Compare runs that were evaluated on the same slices: metrics with 95% intervals,
differences by a bootstrap over patients that all runs share, curves in one plot,
cost, and a sentence on what may be claimed."""
EPILOG = """\
The runs of `--fold K` that differ in nothing but fold and seed count as one model:
its numbers are means over the folds, and where each fold was evaluated on its own
validation split, the predictions of all folds are pooled.

example:
  python -m trainer.evaluate --job_dir runs/cnn
  python -m trainer.evaluate --job_dir runs/xception
  python -m trainer.compare runs/cnn runs/xception --output comparison.html

FILE.html needs no other file; FILE.csv beside it has a row for each run and metric."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run("compare", lambda: _compare(command.parse(_parser(), argv)))


def _parser() -> command.Parser:
    parser = command.Parser(
        prog="python -m trainer.compare",
        usage="%(prog)s RUN RUN ... --output FILE.html [flags]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folder of an evaluated run; two or more")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.html", help="the page to write")
    parser.add_argument(
        "--split", default="test", help="folder in RUN/evaluation: a split, or such as test-flip (default: test)"
    )
    parser.add_argument(
        "--resamples", type=_enough, default=1000, metavar="N", help="draws of the bootstrap (default: 1000)"
    )
    parser.add_argument("--seed", type=_natural, default=0, help="of the draws (default: 0)")
    parser.add_argument(
        "--anyway", action="store_true", help="compare runs evaluated on different slices, on those that they share"
    )
    return parser


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 0 or more")
    return int(text)


def _enough(text: str) -> int:
    if not text.isdecimal() or int(text) < FEWEST_RESAMPLES:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of {FEWEST_RESAMPLES} or more")
    return int(text)


def _compare(args: argparse.Namespace) -> None:
    command.require_local("--output", args.output)
    table = _csv_beside(args.output)
    places = distinct([vertex.mounted(run) for run in args.runs])
    _require_evaluated(places, args.split)
    from trainer.pages import comparison_page
    from trainer.results import comparison

    _require_own(table, comparison_page.HEAD)
    runs = [_read(place, name, args.split) for place, name in zip(places, names(places), strict=True)]
    result = comparison.compare(runs, args.resamples, args.seed, args.anyway)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(table, comparison_page.csv(result).encode())
    atomic.write_bytes(args.output, comparison_page.page(result).encode())
    print(f"{comparison_page.text(result)}\n\nwrote {args.output} and {table.name}")


def _csv_beside(output: Path) -> Path:
    """The path of the CSV beside the page. Raises `WrongUse` where the page cannot lie."""
    if output.suffix.lower() not in (".html", ".htm"):
        raise WrongUse(f"--output {output} does not end in .html; write --output {output.name or 'comparison'}.html")
    if output.is_dir():
        raise WrongUse(f"--output {output} is a folder; name a file in it, such as {output / 'comparison.html'}")
    return output.with_suffix(".csv")


def _require_own(table: Path, head: Sequence[str]) -> None:
    """Refuse to write over a CSV that is not of a comparison, such as the history.csv of a run."""
    if table.exists() and not table.read_text(encoding="utf-8", errors="replace").startswith(",".join(head)):
        raise WrongUse(f"{table} is there already and not of a comparison; choose another --output")


def distinct(places: Sequence[Path]) -> Sequence[Path]:
    """`places`. Raises `WrongUse` for fewer than two, for one that is no folder, and for one that stands twice."""
    if len(places) < 2:
        raise WrongUse(f"{len(places)} runs named; a comparison needs at least two: RUN RUN --output FILE.html")
    seen: dict[Path, Path] = {}
    for place in places:
        if not place.is_dir():
            raise WrongUse(f"{place} is not the folder of a run; name folders given to trainer.task as --job_dir")
        first = seen.setdefault(place.resolve(), place)
        if first is not place:
            twice = place if first == place else f"{place} (as {first})"
            raise WrongUse(f"{twice} is named twice; name each run once")
    return places


def names(places: Sequence[Path]) -> list[str]:
    """The folder names, with as many parents before them as make each one unique. Resolved paths must differ."""
    parts = [place.resolve().parts for place in places]

    def name(own: tuple[str, ...]) -> str:
        taken = next(
            count for count in range(1, len(own) + 1) if sum(one[-count:] == own[-count:] for one in parts) == 1
        )
        return str(Path(*own[-taken:]))

    return [name(own) for own in parts]


def _require_evaluated(places: Sequence[Path], split: str) -> None:
    missing = [place for place in places if any(not file.is_file() for file in _files(place, split))]
    if missing:
        commands = " and ".join(f"`{_evaluate(place, split)}`" for place in missing)
        which = f"{missing[0]} is" if len(missing) == 1 else f"{len(missing)} of {len(places)} runs are"
        raise WrongUse(f"{which} not evaluated on {split!r}; run {commands}")


def _files(place: Path, split: str) -> tuple[Path, Path]:
    folder = evaluated.folder(place, split)
    return folder / evaluated.METRICS, folder / evaluated.PREDICTIONS


def _evaluate(place: Path, split: str) -> str:
    """The command that makes the folder `split`, whose name is that of the split and of what else differs."""
    name, flip, other = evaluated.parts_of(split)
    more = f"{' --flip' * flip}{' --data_dir DIR' * other}"
    return f"python -m trainer.evaluate --job_dir {shlex.quote(str(place))} --split {shlex.quote(name)}{more}"


def _read(place: Path, name: str, split: str) -> Run:
    from trainer.results.comparable import Run
    from trainer.results.predictions import read
    from trainer.training.run_dir import RunDir

    metrics, predictions = _files(place, split)
    result, slices = _result(metrics, _evaluate(place, split)), read(predictions)
    if slices.any not in result["measures"]["labels"]:
        raise WrongUse(f"{metrics} has no threshold of {slices.any}; run `{_evaluate(place, split)}`")
    return Run(name, result, slices, RunDir(place).read_history())


def _result(path: Path, again: str) -> Mapping[str, Any]:
    """Values of metrics.json. Raises `WrongUse` when it is damaged or of another format."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != evaluated.FORMAT:
            known = evaluated.FORMAT
            raise WrongUse(f"{path} has format {values['format']}, this version reads {known}; run `{again}`")
        for key in _WHAT:
            values["what"][key]
        values["measures"]["labels"], values["measures"]["skill"]["prevalence"]
    except (ValueError, KeyError, TypeError) as error:
        raise WrongUse(f"{path} is damaged ({error!r}); run `{again}`") from error
    return values


if __name__ == "__main__":
    sys.exit(main())
