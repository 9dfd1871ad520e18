"""Evaluate a trained model on a split: calibrated predictions, every measure with its interval, and a page.

python -m trainer.evaluate --job_dir runs/cnn
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ich_tfrecords import pixels
from ich_tfrecords.spec import ImageSpec
from ich_tfrecords.storage import atomic
from ich_tfrecords.views import progress_line
from trainer.data import subgroup_columns
from trainer.data.dataset import EVERY, Dataset, Slices
from trainer.data.joined import join, open_datasets
from trainer.models import model_file, model_folder
from trainer.models.model_file import About
from trainer.results import cohort, conformal, evaluated
from trainer.results.evaluated import FORMAT, METRICS, PAGE, PREDICTIONS
from trainer.results.predictions import Predictions
from trainer.shell import command, quiet
from trainer.shell.problems import WrongUse
from trainer.training import hparams
from trainer.training.run_dir import RunDir, json_text

if TYPE_CHECKING:
    from trainer.series.judging import Judged

WORST = 24  # slices shown
OWN = 0.0  # --recalibrate without a share: on the run's own validation split
EPILOG = f"""\
Written to RUN/evaluation/SPLIT:
  {PREDICTIONS}  a row a slice: ids, labels, logits, calibrated probabilities
  {METRICS}         every number of the page, with 95% intervals
  {PAGE}          one page to look at, and to send

Intervals come from resampling whole patients. Thresholds are those that the
run chose on its validation split.

A test on another hospital: give its data set with --data_dir and --split all. The page
then says how it differs from training. Studies count where slices have no labels.

examples:
  python -m trainer.evaluate --job_dir runs/cnn --split test
  python -m trainer.evaluate --job_dir runs/cnn --data_dir data/cq500 --split all \\
      --by manufacturer --by ages.csv:age_decade --prevalence 0.1 --recalibrate 0.3"""


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
    command.add_data_dirs(parser, "those that the run was trained on")
    parser.add_argument("--split", default="test", metavar="NAME", help="split to evaluate, or all (default: test)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR",
        help="folder for the files (default: RUN/evaluation/SPLIT, then -recalibrated, -flip, -<data set> where meant)",
    )  # fmt: skip
    parser.add_argument(
        "--recalibrate", nargs="?", type=command.part(1), const=OWN, metavar="SHARE",
        help="first fit odds, calibration and thresholds anew on the run's validation split, and keep them in the run; "
        "with a SHARE such as 0.3: fit a calibration on that share of these patients, and test it beside the run's own "
        "on the rest; nothing is kept",
    )  # fmt: skip
    parser.add_argument(
        "--by", action="append", default=[], metavar="COLUMN",
        help=f"also measure each group: {', '.join(cohort.FACTS)}, or FILE.csv:COLUMN; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--prevalence", type=command.part(1), metavar="P",
        help="also say what a flag would mean where this share of the studies has a hemorrhage",
    )  # fmt: skip
    parser.add_argument(
        "--alpha", type=command.part(1), default=conformal.ALPHA, metavar="A",
        help="part of patients that may be called wrongly: tests the promise of predict --alpha (default: %(default)s)",
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
    # before TensorFlow, which takes seconds to import
    data = _in_order(about, open_datasets(command.data_places(args.data_dir, about.facts.get("data_dir"))))
    quiet.import_tensorflow()
    from trainer.training import scoring

    scoring.check_spec(about, data.manifest, data.place)
    slices = _slices(about, data, args.split)
    run = model_file.run_folder(folder)
    output = args.output or evaluated.folder(run, _name(about, data, args))
    command.make_output(output)
    print(f"{args.job_dir}: {len(slices):,} slices of split {slices.split} in {data.place}", flush=True)
    if not _own(about, data):
        print(f"the model was {evaluated.DOUBTS['elsewhere']}")
    groups = {asked: subgroup_columns.values(slices.table, asked, cohort.FACTS) for asked in args.by}
    if args.recalibrate == OWN:
        about = _recalibrated(folder, about, data)
    for line in about.notes(args.job_dir):
        print(line, flush=True)
    _write(args, about, folder, data, slices, groups, output)


def _in_order(about: About, data: Dataset) -> Dataset:
    """The data sets of the run in the order that it had them, in whatever order they were named."""
    order = {fingerprint: number for number, fingerprint in enumerate(about.fingerprints[1:])}
    if {part.manifest.fingerprint for part in data.parts} != order.keys():
        return data
    return join(sorted(data.parts, key=lambda part: order[part.manifest.fingerprint]))


def _own(about: About, data: Dataset) -> bool:
    """Whether the model was trained on the data set, or on each of these. Raises `WrongUse` where on some alone."""
    seen = {part.place: part.manifest.fingerprint in about.fingerprints for part in data.parts}
    if len(set(seen.values())) > 1:
        raise WrongUse(
            f"the model was trained on {' and '.join(place for place, own in seen.items() if own)}, and not on "
            f"{' and '.join(place for place, own in seen.items() if not own)}; evaluate them one by one"
        )
    return all(seen.values())


def _recalibrated(folder: Path, about: About, data: Dataset) -> About:
    """What is fitted anew, and written into the folder of the model."""
    from trainer.series import judging
    from trainer.training import fitting

    if model_folder.is_export(folder):
        raise WrongUse(f"{folder} is an export, whose graph keeps its calibration; give the folder of its run")
    with progress_line.shown("validation", "slices", sys.stdout) as tell:
        found = (fitting.anew if about.blend is None else judging.anew)(folder, about, data, tell)
    model_file.write_about(folder, found)
    print(f"{folder / model_file.ABOUT}: odds, calibration and thresholds fitted anew; export and predict again")
    return found


def _slices(about: About, data: Dataset, name: str) -> Slices:
    """The split, or the fold that stands for it in the run. Raises `WrongUse` where nothing is known of it."""
    from trainer.training import assembly

    own, every = _own(about, data), name == EVERY and name not in data.manifest.splits
    if own and every:
        raise WrongUse(
            f"--split {EVERY} of {data.place} holds the slices that the model was trained on; name one split of it, or "
            "another data set with --data_dir"
        )
    if own:
        slices = assembly.split(data, hparams.of_run(about.settings), name)
    else:
        slices = (data.every() if every else data.split(name)).with_neighbours(about.context_slices)
    if not slices.known:
        raise WrongUse(
            f"no slice or study of split {name} in {data.place} has a known label, so there is nothing to compare "
            "with; for probabilities alone use python -m trainer.predict, or trainer.submit"
        )
    return slices


def _name(about: About, data: Dataset, args: argparse.Namespace) -> str:
    """Name of the folder; only what was trained on, seen once, is called by the name of the split alone."""
    own = about.fingerprint == data.manifest.fingerprint
    split = f"{args.split}-recalibrated" if args.recalibrate else args.split  # on a part of the patients
    return evaluated.name_of(split, args.flip, "" if own else data.manifest.fingerprint)


def _write(
    args: argparse.Namespace,
    about: About,
    folder: Path,
    data: Dataset,
    slices: Slices,
    groups: Mapping[str, Sequence[Any]],
    output: Path,
) -> None:
    """Score, measure, and write the three files; each stays if a later one fails."""
    from trainer.pages import evaluation_lines, evaluation_page
    from trainer.results import measures
    from trainer.results.probability import sigmoid
    from trainer.series import judging

    judge = judging.judge_of(folder, about, data, args.flip)
    batch_size = hparams.of_run(about.settings).eval_batch_size
    began = time.monotonic()
    with progress_line.shown(f"split {slices.split}", "slices", sys.stdout) as tell:
        judged = judge(slices, batch_size, tell)
    rate = len(judged.slices) / (time.monotonic() - began)
    judged, kept, recalibrated = _parted(args, about, judged)
    found = judged.slices
    for name in (METRICS, PAGE):  # those of an earlier evaluation must not stand beside new predictions
        (output / name).unlink(missing_ok=True)
    found.write(output / PREDICTIONS)
    print(f"{args.resamples:,} resamples of the patients ...", flush=True)
    before, chosen = sigmoid(found.logits), (about.thresholds, about.study_thresholds)
    expected = _prevalence(about, data)
    drawn = (args.resamples, args.seed)
    measured = measures.measure(found, before, *chosen, expected, *drawn, judged.ways, args.prevalence)
    run = RunDir(model_file.run_folder(folder))
    history = run.read_history()
    what = {**_what(args, about, folder, data, rate), "train": run.training(len(history))}
    result = {"format": FORMAT, "what": what, "calibration": about.calibration.to_dict(), "measures": measured}
    result |= {"recalibrated": recalibrated} if recalibrated else {}
    alike = {asked: [values[row] for row in kept] for asked, values in groups.items()}
    result |= _elsewhere(args, about, data, slices, found, alike)
    result |= _promised(args, about, judged)
    text = json_text(result, indent=1)
    atomic.write_bytes(output / METRICS, (text + "\n").encode())
    worst = _worst(found, slices, kept, about.shown.image)
    page = evaluation_page.page(json.loads(text), found, history, worst)
    atomic.write_bytes(output / PAGE, page.encode())
    labels = about.spec.labels
    told = (evaluation_lines.of_measures(measured, labels.names, labels.any), evaluation_lines.elsewhere(result))
    for line in itertools.chain(*told):
        print(line)
    for name in (PREDICTIONS, METRICS, PAGE):
        print(output / name)


def _parted(
    args: argparse.Namespace, about: About, judged: Judged
) -> tuple[Judged, npt.NDArray[np.int64], dict[str, Any]]:
    """What is tested, the rows of it, and where a share of the patients was to fit a calibration, what came of it."""
    from trainer.results import recalibration

    found, share = judged.slices, args.recalibrate
    rows = np.arange(len(found))
    if not share:
        return judged, rows, {}
    part = recalibration.drawn(found, share)
    if part.all() or not part.any():
        raise WrongUse(f"--recalibrate {share:g} takes {'all' if part.any() else 'none'} of the patients; change it")
    log_odds, rest = about.log_odds(found.logits), found.take(~part)
    level, fitted_on = recalibration.said(found.take(part), log_odds[part])
    _, tested_on = recalibration.said(rest, log_odds[~part])
    told = recalibration.compared(fitted_on, tested_on, args.resamples, args.seed)
    left = np.unique(found.studies[~part])  # no study is of both parts
    ways = {way: (shown[left], chosen) for way, (shown, chosen) in judged.ways.items()}
    return dataclasses.replace(judged, slices=rest, ways=ways), rows[~part], {"share": share, "level": level, **told}


def _elsewhere(
    args: argparse.Namespace,
    about: About,
    data: Dataset,
    slices: Slices,
    found: Predictions,
    groups: Mapping[str, Sequence[Any]],
) -> dict[str, Any]:
    """What only a test elsewhere has: how it differs from training, groups, and how far its readers agree."""
    from trainer.results import agreement, subgroups
    from trainer.training import ending

    result: dict[str, Any] = {}
    if not _own(about, data):
        result["cohort"] = {"training": about.facts.get("cohort"), "here": ending.cohort_of(slices)}
    if groups:
        chosen = about.study_thresholds
        tables = {}
        for asked, values in groups.items():
            names, group = subgroups.codes(values)
            every = subgroups.measured(found, names, group, chosen, args.resamples, args.seed)
            tables[asked] = {"groups": every, "worst": subgroups.worst(every)}
        result["subgroups"] = tables
    if readers := agreement.of_studies(data.studies, found.ids["study_uid"], found.names):
        result["readers"] = readers
    return result


def _promised(args: argparse.Namespace, about: About, judged: Judged) -> dict[str, Any]:
    """Whether the promise about studies held; nothing where none can be made, which is told."""
    try:
        promise = conformal.promise(about.facts.get("conformal", {}), args.alpha)
    except WrongUse as error:
        print(error)
        return {}
    return {"promise": conformal.measured(promise, *judged.studies)}


def _prevalence(about: About, data: Dataset) -> Mapping[str, float]:
    """Label -> share of positives of the training split, what one who knows nothing would say.

    Runs of before did not note it; then of the data set at hand, of all its slices if it is another one.
    """
    from trainer.results.probability import prevalence
    from trainer.training import assembly

    if "prevalence" in about.facts:
        found: Mapping[str, float] = about.facts["prevalence"]
        return found
    settings = hparams.of_run(about.settings)
    own = _own(about, data)
    names = [name for name, entry in data.manifest.splits.items() if entry["slices"]]
    every = [assembly.split(data, settings, settings.train_split)] if own else [data.split(name) for name in names]
    labels = np.concatenate([slices.labels for slices in every])
    return dict(zip(about.spec.labels.names, prevalence(labels).tolist()))


def _what(args: argparse.Namespace, about: About, folder: Path, data: Dataset, rate: float) -> dict[str, Any]:
    from trainer.training import ending

    settings, manifest = about.settings, data.manifest
    dataset = {"name": manifest.spec.name, "version": manifest.spec.version, "fingerprint": manifest.fingerprint}
    parts = about.fingerprints[1:]
    return {
        "run": model_file.run_folder(folder).resolve().name,
        "split": args.split,
        "dataset": dataset,
        "trained_on": about.fingerprint,
        **({"trained_on_parts": list(parts)} if parts else {}),
        "foreseen": about.facts.get("foreseen", {}),  # runs of before did not foresee
        "weights": model_file.digest(folder),
        "flip": args.flip,
        "model": about.network,
        "parameters": about.facts["parameters"],
        **({"windows": about.facts["windows"]} if "windows" in about.facts else {}),
        "settings": dict(settings),
        "versions": ending.versions(),
        "fold": [settings["fold"], settings["folds"]] if settings["folds"] else None,
        "evaluated_slices_per_s": rate,
    }


def _worst(found: Any, slices: Slices, kept: npt.NDArray[np.int64], image: ImageSpec) -> list[Any]:
    """The slices whose probability is furthest from the truth, with what `image` shows of them."""
    from trainer.pages import evaluation_page
    from trainer.training import scoring

    pairs = evaluation_page.worst_rows(found, WORST)
    images = scoring.images(slices, [int(kept[row]) for row, _ in pairs])
    return [
        evaluation_page.Worst(
            found.ids.slice(row, 1).to_pylist()[0],
            found.names[label],
            int(found.labels[row, label]),
            float(found.probabilities[row, label]),
            pixels.shown(images[int(kept[row])], image),
        )
        for row, label in pairs
    ]


if __name__ == "__main__":
    sys.exit(main())
