"""Evaluate a trained model on a split: calibrated predictions, every measure with its interval, and a page.

python -m trainer.evaluate --job_dir runs/cnn
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ich_tfrecords.storage import atomic
from ich_tfrecords.views import progress_line
from trainer.data.dataset import Dataset, Slices, open_dataset
from trainer.models import model_file
from trainer.models.model_file import About
from trainer.results import evaluated
from trainer.results.evaluated import FORMAT, METRICS, PAGE, PREDICTIONS
from trainer.shell import command, quiet
from trainer.shell.problems import WrongUse
from trainer.training import hparams
from trainer.training.run_dir import RunDir, json_text

WORST = 24  # slices shown
EPILOG = f"""\
Written to RUN/evaluation/SPLIT:
  {PREDICTIONS}  a row a slice: ids, labels, logits, calibrated probabilities
  {METRICS}         every number of the page, with 95% intervals
  {PAGE}          one page to look at, and to send

Intervals come from resampling whole patients. Thresholds are those that the
run chose on its validation split.

example:
  python -m trainer.evaluate --job_dir runs/cnn --split test"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 wrong use or input."""
    return command.run("evaluate", lambda: _evaluate(command.parse(_parser(), argv)))


def _parser() -> command.Parser:
    parser = command.Parser(
        prog="python -m trainer.evaluate",
        description="Evaluate a trained model on a split of a converted data set.",
        epilog=EPILOG,
    )
    parser.add_argument("--job_dir", required=True, metavar="RUN", help="folder of the run")
    command.add_data_dir(parser, "the one that the run was trained on")
    parser.add_argument("--split", default="test", metavar="NAME", help="split to evaluate (default: test)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR",
        help="folder for the files (default: RUN/evaluation/SPLIT, with -flip and -<data set> where those differ)",
    )  # fmt: skip
    parser.add_argument(
        "--recalibrate", action="store_true",
        help="first fit odds, calibration and thresholds anew on the run's validation split, and keep them in the run",
    )  # fmt: skip
    parser.add_argument("--flip", action="store_true", help="average over each slice and its left-right mirror image")
    parser.add_argument(
        "--resamples", type=int, default=1000, metavar="N", help="of the patients, for intervals (default: 1000)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the resampling (default: 0)")
    return parser


def _evaluate(args: argparse.Namespace) -> None:
    if not 100 <= args.resamples <= 100_000:
        raise WrongUse(f"--resamples is {args.resamples}; 100 to 100,000 give an interval")
    folder = model_file.find(args.job_dir)
    about = model_file.read_about(folder)
    place = command.data_place(args.data_dir, about.facts.get("data_dir", ""))
    data = open_dataset(place)  # before TensorFlow, which takes seconds to import
    quiet.import_tensorflow()
    from trainer.training import scoring

    scoring.check_spec(about, data.manifest, place)
    slices = _slices(about, data, args.split)
    run = model_file.run_folder(folder)
    output = args.output or evaluated.folder(run, _name(about, data, args))
    _make(output)
    print(f"{args.job_dir}: {len(slices):,} slices of split {slices.split} in {place}", flush=True)
    if about.fingerprint != data.manifest.fingerprint:
        print(f"the model was {evaluated.DOUBTS['elsewhere']}")
    if args.recalibrate:
        about = _recalibrated(folder, about, data)
    for line in about.notes(args.job_dir):
        print(line, flush=True)
    _write(args, about, folder, data, slices, output)


def _recalibrated(folder: Path, about: About, data: Dataset) -> About:
    """What is fitted anew, and written into the folder of the model."""
    from trainer.series import judging
    from trainer.training import fitting

    if (folder / "saved_model.pb").exists():
        raise WrongUse(f"{folder} is an export, whose graph keeps its calibration; give the folder of its run")
    with progress_line.shown("validation", "slices", sys.stdout) as tell:
        found = (fitting.anew if about.blend is None else judging.anew)(folder, about, data, tell)
    model_file.write_about(folder, found)
    print(f"{folder / model_file.ABOUT}: odds, calibration and thresholds fitted anew; export and predict again")
    return found


def _slices(about: About, data: Dataset, name: str) -> Slices:
    """The split, or the fold that stands for it in the run. Raises `WrongUse` where nothing is known of it."""
    from trainer.training import assembly

    own = about.fingerprint == data.manifest.fingerprint
    slices = assembly.split(data, hparams.of_run(about.settings), name) if own else data.split(name)
    if not slices.labelled.any():
        raise WrongUse(
            f"no slice of split {name} in {data.place} has a known label, so there is nothing to compare with; "
            "for probabilities alone use python -m trainer.predict, or trainer.submit"
        )
    return slices


def _name(about: About, data: Dataset, args: argparse.Namespace) -> str:
    """Name of the folder; only what was trained on, seen once, is called by the name of the split alone."""
    own = about.fingerprint == data.manifest.fingerprint
    return evaluated.name_of(args.split, args.flip, "" if own else data.manifest.fingerprint)


def _make(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WrongUse(f"cannot make the folder {output}: {error.strerror}; choose another --output") from error


def _write(args: argparse.Namespace, about: About, folder: Path, data: Dataset, slices: Slices, output: Path) -> None:
    """Score, measure, and write the three files; each stays if a later one fails."""
    from trainer.pages import evaluation_page
    from trainer.results import measures
    from trainer.results.probability import sigmoid
    from trainer.series import judging

    judge = judging.judge_of(folder, about, data, args.flip)
    batch_size = hparams.of_run(about.settings).eval_batch_size
    began = time.monotonic()
    with progress_line.shown(f"split {slices.split}", "slices", sys.stdout) as tell:
        judged = judge(slices, batch_size, tell)
    found = judged.slices
    rate = len(found) / (time.monotonic() - began)
    for name in (METRICS, PAGE):  # those of an earlier evaluation must not stand beside new predictions
        (output / name).unlink(missing_ok=True)
    found.write(output / PREDICTIONS)
    print(f"{args.resamples:,} resamples of the patients ...", flush=True)
    before, chosen = sigmoid(found.logits), (about.thresholds, about.study_thresholds)
    expected = _prevalence(about, data)
    measured = measures.measure(found, before, *chosen, expected, args.resamples, args.seed, judged.ways)
    run = RunDir(model_file.run_folder(folder))
    history = run.read_history()
    what = {**_what(args, about, folder, data, rate), "train": _training(run.metrics, len(history))}
    result = {"format": FORMAT, "what": what, "calibration": about.calibration.to_dict(), "measures": measured}
    text = json_text(result, indent=1)
    atomic.write_bytes(output / METRICS, (text + "\n").encode())
    worst = _worst(found, slices)
    page = evaluation_page.page(json.loads(text), found, history, worst)
    atomic.write_bytes(output / PAGE, page.encode())
    for line in _lines(measured, about, output):
        print(line)


def _prevalence(about: About, data: Dataset) -> Mapping[str, float]:
    """Label -> share of positives of the training split, what one who knows nothing would say.

    Runs of before did not note it; then of the data set at hand, of all its slices if it is another one.
    """
    from trainer.results.probability import prevalence
    from trainer.training import assembly

    if "prevalence" in about.facts:
        found: Mapping[str, float] = about.facts["prevalence"]
        return found
    settings = hparams.from_dict(about.settings)
    own = about.fingerprint == data.manifest.fingerprint
    names = [name for name, entry in data.manifest.splits.items() if entry["slices"]]
    every = [assembly.split(data, settings, settings.train_split)] if own else [data.split(name) for name in names]
    labels = np.concatenate([slices.labels for slices in every])
    return dict(zip(about.spec.labels.names, prevalence(labels).tolist()))


def _what(args: argparse.Namespace, about: About, folder: Path, data: Dataset, rate: float) -> dict[str, Any]:
    from trainer.training import ending

    settings, manifest = about.settings, data.manifest
    dataset = {"name": manifest.spec.name, "version": manifest.spec.version, "fingerprint": manifest.fingerprint}
    return {
        "run": model_file.run_folder(folder).resolve().name,
        "split": args.split,
        "dataset": dataset,
        "trained_on": about.fingerprint,
        "foreseen": about.facts.get("foreseen", {}),  # runs of before did not foresee
        "weights": model_file.digest(folder),
        "flip": args.flip,
        "model": settings["model"],
        "parameters": about.facts["parameters"],
        "settings": dict(settings),
        "versions": ending.versions(),
        "fold": [settings["fold"], settings["folds"]] if settings["folds"] else None,
        "evaluated_slices_per_s": rate,
    }


def _training(log: Path, epochs: int) -> dict[str, Any]:
    """Epochs, seconds and images a second of the training, as far as its metrics.jsonl tells."""
    try:
        entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):  # an export without its run has no log; a torn one tells nothing certain
        return {"epochs": epochs, "seconds": None, "images_per_s": None}
    rates = [entry["images_per_s"] for entry in entries if entry.get("images_per_s")]
    seconds = [entry["seconds"] for entry in entries if entry.get("seconds")]
    return {
        "epochs": epochs,
        "seconds": sum(seconds) or None,
        "images_per_s": statistics.median(rates) if rates else None,
    }


def _worst(found: Any, slices: Slices) -> list[Any]:
    """The slices whose probability is furthest from the truth, with their images."""
    from trainer.pages import evaluation_page
    from trainer.training import scoring

    pairs = evaluation_page.worst_rows(found, WORST)
    images = scoring.images(slices, [row for row, _ in pairs])
    return [
        evaluation_page.Worst(
            found.ids.slice(row, 1).to_pylist()[0],
            found.names[label],
            int(found.labels[row, label]),
            float(found.probabilities[row, label]),
            images[row],
        )
        for row, label in pairs
    ]


def _lines(measured: Mapping[str, Any], about: About, output: Path) -> Iterator[str]:
    from trainer.results.measures import unskilled

    if words := unskilled(measured):
        yield words
    skill = measured["skill"]["overall"]
    yield (
        f"{measured['slices']:,} slices of {measured['patients']:,} patients: log loss {_told(measured['log_loss'])}, "
        f"{_plain(measured['log_loss_before'])} before calibration, {_plain(skill['log_loss_of_prevalence'])} of the "
        f"prevalence alone; skill {_told(skill['skill'])}"
    )
    for name in about.spec.labels.names:
        found = measured["labels"][name]
        yield (
            f"  {name:<18} {found['positives']:>7,} positive, AUC {_told(found['auc'])}, "
            f"sensitivity {_told(found['sensitivity'])}, specificity {_told(found['specificity'])}"
        )
        if found["note"]:
            yield f"  {'':<18} {found['note']}"
    for name in (PREDICTIONS, METRICS, PAGE):
        yield f"{output / name}"


def _told(value: Mapping[str, float | None]) -> str:
    """`0.912 (0.880 to 0.941)`, or a dash."""
    if value["value"] is None or value["low"] is None or value["high"] is None:
        return _plain(value)
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def _plain(value: Mapping[str, float | None]) -> str:
    return "-" if value["value"] is None else f"{value['value']:.3f}"


if __name__ == "__main__":
    sys.exit(main())
