"""What every command line of the trainer shares: flags refused in one line, and exit codes that mean something."""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ich_tfrecords import environment
from trainer.shell.problems import TrainerError, WrongUse, hint

DATA_DIR = "data/rsna_ich"
LEAST_PART = 1e-6
EXIT_CODES = """\
exit codes:
    0  done
    1  the work failed on the way
    2  wrong use or input; nothing was done
  130  interrupted (Ctrl-C)
Every failure is one line."""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, without the usage; its texts are shown as they are written."""

    def __init__(self, epilog: str, exit_codes: str = EXIT_CODES, **options: Any) -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(epilog=f"{epilog}\n\n{exit_codes}", formatter_class=raw, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise WrongUse(f"{message}; {self.prog} --help tells more")


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, advice: Callable[[str], str] = lambda flag: ""
) -> argparse.Namespace:
    """The flags of a command line. Raises `WrongUse` for an unknown one.

    It gives the `advice` on that flag, or where there is none the nearest known flag.
    """
    args, unknown = parser.parse_known_args(argv)
    if not unknown:
        return args
    if not unknown[0].startswith("-"):
        raise WrongUse(f"{unknown[0]} follows no flag; name its flag, and quote a glob (*)")
    flag = unknown[0].partition("=")[0]
    raise WrongUse(f"unknown flag {flag}; {advice(flag) or hint(flag, list(parser._option_string_actions))}")


def path(text: str) -> str:
    """Reads the value of a flag that is a path: no empty one, which pathlib takes for the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return text


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Reads the value of a flag that is a whole number from `least` to `most`, of at most 10 digits."""

    def read(text: str) -> int:
        # the length first: Python refuses to read thousands of digits
        is_number = text.isascii() and text.isdecimal() and len(text) <= 10
        if not (is_number and least <= int(text) <= most):
            from ich_tfrecords.views.montage import shortened  # takes Pillow to import

            raise argparse.ArgumentTypeError(f"{shortened(text)!r} is no whole number from {least:,} to {most:,}")
        return int(text)

    return read


def part(below: float) -> Callable[[str], float]:
    """Reads the value of a flag that is a number from `LEAST_PART` on and below `below`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not LEAST_PART <= value < below:
            from ich_tfrecords.views.montage import shortened  # takes Pillow to import

            raise argparse.ArgumentTypeError(
                f"{shortened(text)!r} is no number from {LEAST_PART:g} on and below {below:g}"
            )
        return value

    return read


def add_data_dir(parser: argparse._ActionsContainer, default: str = f"$ICH_DATA_DIR or {DATA_DIR}") -> None:
    """The flag --data_dir; `default` says what is taken without it."""
    parser.add_argument(
        "--data_dir", metavar="DIR", help=f"converted data set, or gs://BUCKET/PATH (default: {default})"
    )  # fmt: skip


def add_data_dirs(parser: argparse._ActionsContainer, default: str = f"$ICH_DATA_DIR or {DATA_DIR}") -> None:
    """The flag --data_dir that may be given several times; `default` says what is taken without it."""
    parser.add_argument(
        "--data_dir", metavar="DIR", action="append",
        help=f"converted data set, or gs://BUCKET/PATH; repeatable, for several as one (default: {default})",
    )  # fmt: skip


def data_places(given: Sequence[str] | None, otherwise: str | Sequence[str] | None = None) -> list[str]:
    """The data sets that --data_dir names, else `otherwise`, else the environment or the usual place.

    `otherwise`: those that a run was trained on. Raises `WrongUse` where such a folder is not there any more.
    """
    if given:
        return list(given)
    if not otherwise:
        return [data_place(None)]
    found = [otherwise] if isinstance(otherwise, str) else list(otherwise)
    for place in found:
        if not place.startswith("gs://") and not Path(place).is_dir():
            raise WrongUse(
                f"the run was trained on {place}, which is not there; name where it lies now with --data_dir"
            )
    return found


def data_place(given: str | None) -> str:
    """The data set that --data_dir names, else the environment or the usual place."""
    return given or os.environ.get("ICH_DATA_DIR") or DATA_DIR


def require_local(flag: str, folder: Path) -> None:
    """Raise `WrongUse` where the folder of a flag is a `gs://` address, which would be made here as `gs:`."""
    if folder.parts[:1] == ("gs:",):
        raise WrongUse(f"{flag} {folder} is in a bucket; name a local folder")


def require_room(folder: Path) -> None:
    """Raise `WrongUse` where the folder of `--output` is none, and cannot be made."""
    require_local("--output", folder)
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        raise WrongUse(f"--output {folder}: {there} is a file, not a folder; choose another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise WrongUse(f"cannot write into {there}; choose another --output")


def make_output(folder: Path) -> None:
    """Make the folder of `--output` where it is not there. Raises `WrongUse`."""
    require_room(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WrongUse(f"cannot make the folder {folder}: {error.strerror}; choose another --output") from error


def run(name: str, work: Callable[[], int | None], goes_on: str = "nothing half-written is left") -> int:
    """Exit code of `work`, its failures told in one line that begins with `name`.

    `goes_on`: what an interruption leaves behind, and what to do then.
    """
    environment.settle()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not end the work
    try:
        return work() or 0
    except TrainerError as error:
        return complain(name, error, error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush goes nowhere
        return complain(name, f"nobody reads the output any more; {goes_on}", 1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return complain(name, f"{error.strerror or error}{where}; {goes_on}", 1)
    except KeyboardInterrupt:
        return complain(name, f"interrupted; {goes_on}", 130)


def complain(name: str, error: object, code: int) -> int:
    """`code`, after the one line that tells why."""
    print(f"{name}: {error}", file=sys.stderr, flush=True)
    return code
