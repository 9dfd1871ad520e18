"""What of headers, grey, vectors and probabilities has moved since a model was trained.

python -m trainer.monitor --job_dir runs/cnn --predicted predicted
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ich_tfrecords import NOT_A_DEVICE
from ich_tfrecords.storage import atomic, sources
from ich_tfrecords.views import progress_line
from trainer.models import model_file
from trainer.models.model_file import About
from trainer.prediction import outcome_lines
from trainer.prediction.folder import RUN, PredictFolder
from trainer.shell import command
from trainer.shell.problems import WorkFailed, WrongUse, in_short
from trainer.trust import drift, portraits, scope_file
from trainer.trust.drift import DRAWS, FEWEST, PROBABILITY, TRAINING, VALIDATION, Drift
from trainer.trust.scope import Scope

PAGE, VALUES = "drift.html", "drift.json"
FLIPPED = "predicted with --flip, and those of validation were not"
MOVED = 3  # exit code of --fail_on_drift
EXIT_CODES = f"""\
exit codes:
    0  done, whatever was found
    1  the work failed on the way
    2  wrong use or input; nothing was done
    {MOVED}  done, and something has moved beyond chance (with --fail_on_drift)
  130  interrupted (Ctrl-C)
Every failure is one line."""
EPILOG = f"""\
Written to --output: {PAGE} (what moved most first) and {VALUES} (every number).

Headers and grey are compared with the series of training that the run kept at its end,
vectors and probabilities with those of validation. Each thing gets how far it lies apart,
0 to 1, and a p-value by dealing the patients anew {DRAWS:,} times, corrected for the number
of things: where nothing has moved, something is named at most 5% of the time.
At least {FEWEST} patients are needed, now and of the reference; where the headers name none,
a study counts as one.

--predicted takes a folder that predict wrote with the same model, --input predicts first,
into a temporary folder. No id of a patient or study stands in the results.

examples:
    python -m trainer.monitor --job_dir runs/densenet121 --predicted predicted
    python -m trainer.monitor --job_dir runs/densenet121 --input scans.zip --output drift"""


class Read(NamedTuple):
    """Portraits of now, as predict wrote them, and kinds of things that they cannot be judged by, with the reason."""

    portraits: pa.Table
    without: dict[str, str]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 wrong use, 3 moved, 130 interrupted."""
    return command.run("monitor", lambda: _monitor(command.parse(_parser(), argv)))


def _parser() -> command.Parser:
    parser = command.Parser(
        prog="python -m trainer.monitor",
        usage="%(prog)s --job_dir RUN (--predicted DIR | --input PATH) [flags]",
        description="What of headers, grey, vectors and probabilities has moved since training.",
        epilog=EPILOG,
        exit_codes=EXIT_CODES,
    )
    parser.add_argument("--job_dir", required=True, type=command.path, metavar="RUN", help="folder of the run")
    now = parser.add_mutually_exclusive_group()
    now.add_argument("--predicted", type=command.path, metavar="DIR", help="folder that predict wrote, with this model")
    now.add_argument(
        "--input", type=command.path, action="append", metavar="PATH",
        help="DICOM slices or NIfTI volumes to predict first: a folder, a glob in quotes, a file or a .zip; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=command.path, metavar="DIR", help="folder for the two files (default: RUN/drift)"
    )
    parser.add_argument(
        "--seed", type=command.whole_number(0, 2**31 - 1), default=0, metavar="N",
        help="of the deals by chance (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--fail_on_drift", action="store_true", help=f"end with exit code {MOVED} where something has moved"
    )
    return parser


def _monitor(args: argparse.Namespace) -> int:
    if not (args.predicted or args.input):
        raise WrongUse("nothing to compare: give --predicted DIR, a folder of predict, or --input PATH")
    folder = model_file.find(args.job_dir)
    about, weights = model_file.read_about(folder), model_file.digest(folder)
    seen, known = _known(args.job_dir, folder, about)
    output = _output(args, folder)
    if args.predicted:
        read = _read(Path(args.predicted), weights)
        _require_alike(PredictFolder(Path(args.predicted)).series, read.portraits, known.training.portraits)
    else:
        with tempfile.TemporaryDirectory(prefix="monitor-") as place:
            read = _predicted(folder, about, args.input, PredictFolder(Path(place) / "predicted"), weights)
    found = _compared(known, read, seen, args.seed)
    from trainer.pages import drift_page

    windows = seen.spec.image.windows
    made_from = {"model": about.network, "weights, sha256": weights, "trained on, fingerprint": about.fingerprint}
    values = drift_page.values(found, windows, made_from, args.seed)
    page = drift_page.page(found, windows, made_from, args.seed)
    command.make_output(output)
    atomic.write_bytes(output / VALUES, f"{json.dumps(values, indent=1, allow_nan=False)}\n".encode())
    atomic.write_bytes(output / PAGE, page.encode())
    print(*drift_page.lines(found, windows), output / PAGE, output / VALUES, NOT_A_DEVICE, sep="\n", flush=True)
    return MOVED if args.fail_on_drift and found.moved else 0


def _known(job_dir: str, folder: Path, about: About) -> tuple[About, Scope]:
    """What the run kept of its series, and the slice model that saw them; of a series model the one inside.

    Raises `WrongUse` where it kept nothing.
    """
    if about.blend is not None:
        folder = folder / model_file.SLICE
        about = model_file.read_about(folder)
    found = scope_file.read(folder, model_file.digest(folder))
    if found is None:
        raise WrongUse(
            f"{job_dir} kept no series to compare with ({scope_file.NAME}); the same train command adds it to a run of "
            "an earlier version, and one that reads a bucket needs --cache_dir; then predict again"
        )
    wide = len(about.spec.image.windows) * portraits.BINS
    before = found.training.portraits
    if len(before) and len(before["grey"][0]) != wide:
        raise WrongUse(f"{folder / scope_file.NAME} is of other windows than {model_file.ABOUT}; train again")
    return about, found


def _compared(known: Scope, read: Read, seen: About, seed: int) -> Drift:
    """What has moved."""
    references = {TRAINING: known.training, VALIDATION: known.validation}
    windows = [one.name for one in seen.spec.image.windows]
    return drift.compare(references, read.portraits, windows, seen.spec.labels.names, read.without, seed)


def _output(args: argparse.Namespace, folder: Path) -> Path:
    """The folder of the results. Raises `WrongUse` where they cannot lie there."""
    output = Path(args.output) if args.output else model_file.run_folder(folder) / "drift"
    command.require_room(output)
    return output


def _read(place: Path, weights: str) -> Read:
    """What predict wrote. Raises `WrongUse` where that is not whole, or of another model."""
    try:
        facts = json.loads((place / RUN).read_text(encoding="utf-8"))
        whole, sha256 = facts["command"] == "predict" and facts["finished"], facts.get("model", {}).get("sha256")
        flipped = facts.get("flags", {}).get("flip")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WrongUse(f"--predicted {place} is no folder that predict wrote ({in_short(error)})") from error
    if not whole:
        raise WrongUse(f"--predicted {place} is not finished; the same predict command makes it anew")
    if sha256 != weights:
        raise WrongUse(f"--predicted {place} is of another model than --job_dir; predict again with --model of it")
    return Read(_table(PredictFolder(place).series), {PROBABILITY: FLIPPED} if flipped else {})


def _table(path: Path) -> pa.Table:
    """The portraits that predict wrote. Raises `WrongUse`."""
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        why = "an earlier version predicted, or the run kept no series then"
        raise WrongUse(f"{path} is missing: {why}; predict again") from error
    except (OSError, pa.ArrowException) as error:
        raise WrongUse(f"{path} is damaged ({in_short(error)}); predict again") from error
    if fault := portraits.fault_of(table, portraits.PREDICTED):
        raise WrongUse(f"{path} {fault}; predict again with this version")
    return table


def _require_alike(path: Path, now: pa.Table, before: pa.Table) -> None:
    """Refuse lists of other lengths than those that the run kept: the file is not as predict wrote it."""
    for field in portraits.SCHEMA:
        if pa.types.is_list(field.type) and len(now) and len(before):
            wide, known = (len(table[field.name][0]) for table in (now, before))
            if wide != known:
                raise WrongUse(
                    f"{path} holds {wide} numbers in column {field.name}, and the run {known}; predict again"
                )


def _predicted(folder: Path, about: About, inputs: Sequence[str], output: PredictFolder, weights: str) -> Read:
    """What predict makes of the inputs, in a folder that does not stay."""
    from trainer.worklist.reading import How, Reader

    try:
        listing = sources.list_inputs(inputs)
    except sources.SourceError as error:
        raise WrongUse(str(error)) from error
    read = Reader(folder, about, How(pictures=0)).read(listing, output, None, _shown)
    if not read.found.slices:
        why = outcome_lines.reasons(read.found.rejects)
        raise WorkFailed(f"no file gave a prediction ({why}); python -m trainer.predict names each")
    return _read(output.path, weights)


def _shown(stage: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """How far a stage is stands on the screen."""
    return progress_line.shown(stage, "files", sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
