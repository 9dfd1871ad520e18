"""The trained model of a run for other programs: a SavedModel, the Keras model, and a card that says what it is.

    python -m trainer.export --job_dir runs/cnn

The folder that it writes needs TensorFlow alone, neither this package nor Keras.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ich_tfrecords.storage import atomic
from trainer.models import model_file
from trainer.models.model_file import About
from trainer.results import evaluated
from trainer.serving import model_card
from trainer.shell import command, quiet, vertex
from trainer.shell.problems import WorkFailed, WrongUse

SAVED_MODEL, CARD = "saved_model.pb", "MODEL_CARD.md"
SLICE_TOLD = f", {model_file.SLICE}/ (the slice model)"
EPILOG = """\
Written to --output: a SavedModel with the signatures hu, serving_default, records and
image (of a model that sees the neighbours of a slice, with context_slices or --model
series: series, serving_default and image); model.keras and about.json
(and the folder slice), from which predict works too; and MODEL_CARD.md with the results
of the test split, if the run was evaluated before.

example:
    python -m trainer.evaluate --job_dir runs/cnn
    python -m trainer.export --job_dir runs/cnn"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    return command.run("export", lambda: _export(command.parse(_parser(), argv)))


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(
        prog="python -m trainer.export",
        usage="%(prog)s --job_dir RUN [--output DIR]",
        description="Write the trained model of a run as a SavedModel, with a model card.",
        epilog=EPILOG,
    )
    parser.add_argument("--job_dir", required=True, metavar="RUN", help="folder of a run (--job_dir of trainer.task)")
    parser.add_argument(
        "--output", metavar="DIR",
        help="new or empty, or an older export, which is replaced (default: saved_model in the folder of the run)",
    )  # fmt: skip
    return parser


def _export(args: argparse.Namespace) -> None:
    source = model_file.find(args.job_dir)
    if (source / SAVED_MODEL).exists():
        raise WrongUse(f"{args.job_dir} is an export already; give the folder of the run that it was made from")
    run = model_file.run_folder(source)
    output = (vertex.mounted(args.output) if args.output else run / "saved_model").resolve()
    _check_output(output)
    about = _shared(model_file.read_about(source))
    slice_about = None if about.blend is None else _shared(model_file.read_about(source / model_file.SLICE))
    split = str(about.settings.get("test_split") or "test")
    card = functools.partial(model_card.card, about, slice_about=slice_about)
    result = _result(evaluated.folder(run, split) / evaluated.METRICS, card, model_file.digest(source))
    quiet.import_tensorflow()
    with _told(output), _replacing(output) as folder:
        _fill(folder, source, about, card(result))
    print("\n".join([*_lines(output, about, result is not None), *about.notes(args.job_dir)]))


def _shared(about: About) -> About:
    """What goes out with an export: all but where data set, slice run and first weights lay, nobody else's business."""
    facts = {key: value for key, value in about.facts.items() if key != "data_dir"}
    settings = dict(about.settings)
    if "weights" in settings:  # none, imagenet, or a file
        settings["weights"] = Path(settings["weights"]).name
    if "slice_run" in settings:
        settings["slice_run"] = ""
    return dataclasses.replace(about, facts=facts, settings=settings)


# what is there


def _check_output(folder: Path) -> None:
    """Refuse a place that holds something else than an export of ours. Raises `WrongUse`."""
    if folder.exists() and not folder.is_dir():
        raise WrongUse(f"{folder} is a file, not a folder; choose another --output")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if missing := [name for name in (SAVED_MODEL, model_file.ABOUT, CARD) if not (folder / name).is_file()]:
        raise WrongUse(
            f"{folder} is not empty and no export of this command (it has no {missing[0]}); choose another --output"
        )


def _result(path: Path, card: Callable[[Any], str], weights: str) -> dict[str, Any] | None:
    """Values of an evaluation's `metrics.json`; None where it is absent or of other weights. Raises `WrongUse`."""
    if not path.is_file():
        return None
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        card(result)  # it has all that the card tells
        return result if result["what"]["weights"] == weights else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WrongUse(f"cannot use {path} ({error!r}); run python -m trainer.evaluate again, or delete it") from error


# writing


def _fill(folder: Path, source: Path, about: About, card: str) -> None:
    """Write all parts of an export into `folder` and check what they answer. Raises `WorkFailed`."""
    from trainer.serving import answers, saved_model

    model = model_file.load_model(source, about)
    _put(folder, source, about)
    atomic.write_bytes(folder / CARD, card.encode())
    if about.blend is None:
        saved_model.write(folder, model, about)
        (answers.check_neighbours if about.context_slices else answers.check)(folder, model, about)
        return
    slice_model, slice_about = model_file.load_slice_model(source, about)
    (folder / model_file.SLICE).mkdir()
    _put(folder / model_file.SLICE, source / model_file.SLICE, _shared(slice_about))
    saved_model.write(folder, model, about, slice_model, slice_about.context_slices)
    answers.check_series(folder, slice_model, model, about, slice_about.context_slices)


def _put(folder: Path, source: Path, about: About) -> None:
    """The Keras model of `source`, and what is known of it."""
    shutil.copyfile(source / model_file.MODEL, folder / model_file.MODEL)
    model_file.write_about(folder, about)


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends well, and vanishes when it does not."""
    temporary = _beside(folder)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _swap(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(new: Path, folder: Path) -> None:
    """Put `new` at `folder`; what was there is moved aside first, back if that fails, and removed at the end."""
    aside = _beside(folder)
    old = folder.exists()
    if old:
        folder.replace(aside)
    try:
        new.replace(folder)
    except OSError:
        if old:
            aside.replace(folder)
        raise
    atomic.sync_folder(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.{uuid.uuid4().hex}{atomic.TEMPORARY_SUFFIX}")


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Tell a failed write in one line, TensorFlow's too."""
    import tensorflow as tf

    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise WorkFailed(f"cannot write {folder}: {reason}; what was there before is whole") from error


# telling


def _lines(folder: Path, about: About, evaluated: bool) -> Iterator[str]:
    image = ", ".join(map(str, about.spec.image.shape))
    beside = SLICE_TOLD * (about.blend is not None)
    yield f"{folder}: SavedModel, {model_file.MODEL}, {model_file.ABOUT}{beside} and {CARD}"
    yield from _of_series(about) if about.in_series else _of_slices(about)
    yield f"  image: hu int16 [n, rows, columns] -> image {about.spec.image.dtype} [n, {image}]"
    if not evaluated:
        yield f"{CARD} has no results of these weights: run python -m trainer.evaluate, then this command again"
    yield "use it with"
    yield from (f"  {line}" for line in model_card.usage(str(folder), about.in_series))


def _of_slices(about: About) -> Iterator[str]:
    labels = len(about.spec.labels.names)
    yield "  hu, serving_default: hu int16 [n, rows, columns] -> probabilities and labels"
    yield f"  records: records string [n], serialized -> probabilities float32 and labels string [n, {labels}]"


def _of_series(about: About) -> Iterator[str]:
    labels = len(about.spec.labels.names)
    yield "  series, serving_default: hu int16 [n, rows, columns], position_mm float32 [n] of one series, in any order"
    study = "" if about.blend is None else f", study_probabilities float32 [{labels}]"
    yield f"    -> probabilities float32 and labels string [n, {labels}]{study}"
    yield "    (no hu and no records: a slice without its series is another input than the model was evaluated on)"


if __name__ == "__main__":
    sys.exit(main())
