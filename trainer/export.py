"""The trained model of a run for other programs: a SavedModel or ONNX, the Keras model, and a card.

    python -m trainer.export --job_dir runs/cnn
    python -m trainer.export --job_dir runs/cnn --format onnx

The SavedModel needs TensorFlow alone, ONNX a runtime of it alone: neither this package nor Keras.
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
from types import ModuleType
from typing import Any

from ich_tfrecords.storage import atomic
from trainer.models import model_file, model_folder
from trainer.models.model_file import About
from trainer.results import evaluated
from trainer.serving import model_card
from trainer.serving.card_text import ONNX, SAVED_MODEL
from trainer.shell import command, extras, quiet, vertex
from trainer.shell.problems import WorkFailed, WrongUse

CARD = "MODEL_CARD.md"
MARKS = dict(zip((SAVED_MODEL, ONNX), model_folder.EXPORT_MARKS, strict=True))
SLICE_TOLD = f", {model_file.SLICE}/ (the slice model)"
EPILOG = """\
Written to --output: a SavedModel with the signatures hu, serving_default, records and
image (of a model that sees the neighbours of a slice, with context_slices or --model
series: series, serving_default and image); model.keras and about.json
(and the folder slice), from which predict works too; and MODEL_CARD.md with the results
of the test split, if the run was evaluated before.

With --format onnx the signatures are files, hu.onnx (or series.onnx) and image.onnx, which
answer the same to 1e-5, pixels bit for bit; records is left out, for ONNX reads no serialized
examples. It needs tf2onnx and onnxruntime: pip install 'ich-tfrecords[onnx]'.

example:
    python -m trainer.evaluate --job_dir runs/cnn
    python -m trainer.export --job_dir runs/cnn"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    return command.run("export", lambda: _export(command.parse(_parser(), argv)))


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(
        prog="python -m trainer.export",
        usage="%(prog)s --job_dir RUN [--format saved_model|onnx] [--output DIR]",
        description="Write the trained model of a run as a SavedModel or as ONNX, with a model card.",
        epilog=EPILOG,
    )
    parser.add_argument("--job_dir", required=True, metavar="RUN", help="folder of a run (--job_dir of trainer.task)")
    parser.add_argument(
        "--format", choices=list(MARKS), default=SAVED_MODEL,
        help="what to write (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--output", metavar="DIR",
        help="new or empty, or an older export, which is replaced (default: the --format, in the folder of the run)",
    )  # fmt: skip
    return parser


def _export(args: argparse.Namespace) -> None:
    source = model_file.find(args.job_dir)
    if model_folder.is_export(source):
        raise WrongUse(f"{args.job_dir} is an export already; give the folder of the run that it was made from")
    if args.format == ONNX:
        extras.require("--format onnx", "onnx", ("tf2onnx", "onnx", "onnxruntime"))
    run = model_file.run_folder(source)
    output = (vertex.mounted(args.output) if args.output else run / args.format).resolve()
    _check_output(output, MARKS[args.format])
    about = _shared(model_file.read_about(source))
    slice_about = None if about.blend is None else _shared(model_file.read_about(source / model_file.SLICE))
    split = str(about.settings.get("test_split") or "test")
    card = functools.partial(model_card.card, about, slice_about=slice_about, form=args.format)
    result = _result(evaluated.folder(run, split) / evaluated.METRICS, card, model_file.digest(source))
    quiet.import_tensorflow()
    with _told(output), _replacing(output) as folder:
        _fill(folder, source, about, card(result), args.format)
    lines = _lines(output, about, result is not None, args.format)
    print("\n".join([*lines, *about.notes(args.job_dir)]))


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


def _check_output(folder: Path, mark: str) -> None:
    """Refuse a place that holds something else than an export of ours of that format. Raises `WrongUse`."""
    if folder.exists() and not folder.is_dir():
        raise WrongUse(f"{folder} is a file, not a folder; choose another --output")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if missing := [name for name in (mark, model_file.ABOUT, CARD) if not (folder / name).is_file()]:
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


def _fill(folder: Path, source: Path, about: About, card: str, form: str) -> None:
    """Write all parts of an export into `folder` and check what they answer. Raises `WorkFailed`, `WrongUse`."""
    from trainer.serving import answers

    served, model = _writer(form), model_file.load_model(source, about)
    _put(folder, source, about)
    atomic.write_bytes(folder / CARD, card.encode())
    if about.blend is None:
        served.write(folder, model, about)
        (answers.check_neighbours if about.context_slices else answers.check)(served.opened(folder), model, about)
        return
    slice_model, slice_about = model_file.load_slice_model(source, about)
    (folder / model_file.SLICE).mkdir()
    _put(folder / model_file.SLICE, source / model_file.SLICE, _shared(slice_about))
    served.write(folder, model, about, slice_model, slice_about.context_slices)
    answers.check_series(served.opened(folder), slice_model, model, about, slice_about.context_slices)


def _writer(form: str) -> ModuleType:
    """What writes and opens exports of a format."""
    if form == ONNX:
        with quiet.kept_back():  # it warns of NumPy's names
            from trainer.serving import onnx_file
        return onnx_file
    from trainer.serving import saved_model

    return saved_model


def _put(folder: Path, source: Path, about: About) -> None:
    """The Keras model of `source`, and what is known of it."""
    for name in model_file.files(source):
        shutil.copyfile(source / name, folder / name)
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


def _lines(folder: Path, about: About, evaluated: bool, form: str) -> Iterator[str]:
    image = ", ".join(map(str, about.spec.image.shape))
    beside = SLICE_TOLD * (about.blend is not None)
    written = "SavedModel" if form == SAVED_MODEL else f"{_main(about)}.onnx, image.onnx"
    yield f"{folder}: {written}, {model_file.MODEL}, {model_file.ABOUT}{beside} and {CARD}"
    yield from _of_series(about, form) if about.in_series else _of_slices(about, form)
    yield f"  image: hu int16 [n, rows, columns] -> image {about.spec.image.dtype} [n, {image}]"
    if not evaluated:
        yield f"{CARD} has no results of these weights: run python -m trainer.evaluate, then this command again"
    yield "use it with"
    yield from (f"  {line}" for line in model_card.usage(str(folder), about.in_series, form))


def _main(about: About) -> str:
    return "series" if about.in_series else "hu"


def _named(about: About, form: str) -> str:
    return _main(about) + ", serving_default" * (form == SAVED_MODEL)


def _of_slices(about: About, form: str) -> Iterator[str]:
    labels = len(about.spec.labels.names)
    yield f"  {_named(about, form)}: hu int16 [n, rows, columns] -> probabilities and labels"
    if form == SAVED_MODEL:
        yield f"  records: records string [n], serialized -> probabilities float32 and labels string [n, {labels}]"
    else:
        yield "  (no records: ONNX has no operator that reads serialized examples; a SavedModel has)"


def _of_series(about: About, form: str) -> Iterator[str]:
    labels = len(about.spec.labels.names)
    yield f"  {_named(about, form)}: hu int16 [n, rows, columns], position_mm float32 [n] of one series, in any order"
    study = "" if about.blend is None else f", study_probabilities float32 [{labels}]"
    yield f"    -> probabilities float32 and labels string [n, {labels}]{study}"
    yield "    (no hu and no records: a slice without its series is another input than the model was evaluated on)"


if __name__ == "__main__":
    sys.exit(main())
