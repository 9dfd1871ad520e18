"""Audit labels: which are most likely wrong, by the folds of a cross-validation that never saw the slice.

python -m trainer.audit runs/fold0 runs/fold1 runs/fold2 runs/fold3 runs/fold4 --output audit
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords import pixels
from ich_tfrecords.dataset import splits
from ich_tfrecords.labels import fixes
from ich_tfrecords.plural import counted
from ich_tfrecords.storage import atomic
from ich_tfrecords.storage.csv_text import csv_text
from ich_tfrecords.views import progress_line
from trainer.data import series
from trainer.data.dataset import Dataset, Slices, open_dataset
from trainer.models import model_file
from trainer.models.model_file import About
from trainer.results import evaluated, predictions
from trainer.shell import command, quiet
from trainer.shell.problems import WrongUse
from trainer.training import hparams
from trainer.trust import suspects
from trainer.trust.portraits import UIDS
from trainer.trust.suspects import LEAST, Judged

SUSPECTS, FIXES, PAGE = "audit.csv", "label_fixes.csv", "audit.html"
HEAD = ("rank", "sop_uid", "study_uid", "label", "given", "suggested", "probability", "score", "fix", "reasons")
LOOK = "A person looks at every row before it is used: the model may be wrong where the label is right."
EPILOG = f"""\
Each run of a cross-validation (trainer.task --folds 5 --fold 0, and so on) judges
the patients that it held out. The test split is not judged.

Written to DIR:
  {SUSPECTS}        all suspects, worst first, with the reasons
  {FIXES}  those that the model is sure of and that all neighbours in the
                   series or copies contradict, as convert --label_fixes takes them
  {PAGE}       the worst hundred with their neighbours, to look at

{LOOK}

example:
  python -m trainer.audit runs/fold0 runs/fold1 runs/fold2 runs/fold3 runs/fold4 --output audit
  python -m beam_pipelines.convert --input rsna.zip --labels stage_2_train.csv \\
      --label_fixes audit/label_fixes.csv --output data/corrected"""


@dataclasses.dataclass(frozen=True, eq=False)
class Fold:
    """A run: its folder as it was named, that of its model, and what is known of it."""

    place: str
    folder: Path
    about: About

    @property
    def settings(self) -> hparams.HParams:
        """Of the run."""
        return hparams.of_run(self.about.settings)


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """All slices of a cross-validation, a row each: `table` of `slices.parquet`, what is said, what is thought [n, L].

    `neighbours` int64 [n, 2]: `suspects.beside`.
    """

    table: pa.Table
    labels: npt.NDArray[np.int8]
    probabilities: npt.NDArray[np.float64]
    neighbours: npt.NDArray[np.int64]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 wrong use or input."""
    return command.run("audit", lambda: _audit(command.parse(_parser(), argv)))


def _parser() -> command.Parser:
    parser = command.Parser(
        prog="python -m trainer.audit",
        usage="%(prog)s RUN-fold0 RUN-fold1 ... --output DIR [flags]",
        description="Rank the labels of a data set that are most likely wrong.",
        epilog=EPILOG,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the runs of all folds of a cross-validation")
    parser.add_argument("--output", required=True, type=command.path, metavar="DIR", help="folder for the files")
    command.add_data_dir(parser, "the one that the runs were trained on")
    parser.add_argument(
        "--most", type=command.whole_number(1, 10**9), metavar="N", help=f"slices in {FIXES} at most, worst first"
    )
    return parser


def _audit(args: argparse.Namespace) -> None:
    runs = _folds([Fold(run, *_known(run)) for run in args.runs])
    data = _data(args.data_dir, runs[0])
    output = Path(args.output)
    command.make_output(output)
    quiet.import_tensorflow()
    pool = _pool(runs, data)
    spec = data.manifest.spec
    any_label = spec.labels.names.index(spec.labels.any)
    found = suspects.judge(
        pool.labels, pool.probabilities, pool.neighbours, splits.sorted_codes(pool.table["pixel_digest"])[1], any_label
    )
    for line in _told(found, spec.labels.names):
        print(line, flush=True)
    if not found.judged:
        raise WrongUse(f"no label has {LEAST} slices of either value, so none can be judged; take more data")
    _write(output, pool, data, found, any_label, args.most, runs)


def _known(run: str) -> tuple[Path, About]:
    folder = model_file.find(run)
    return folder, model_file.read_about(folder)


def _folds(runs: Sequence[Fold]) -> list[Fold]:
    """The runs in the order of their folds. Raises `WrongUse` where they are not all folds of one data set."""
    first, by_fold = runs[0], dict[int, Fold]()
    for run in runs:
        settings, wanted = run.settings, first.settings
        if not settings.folds:
            raise WrongUse(f"{run.place} is no fold of a cross-validation; train with --folds 5 --fold 0, and so on")
        if run.about.fingerprint != first.about.fingerprint:
            raise WrongUse(f"{run.place} was trained on another data set than {first.place}; give folds of one")
        if (settings.folds, _pair(run)) != (wanted.folds, _pair(first)):
            ways = [f"{one.place} one of {one.settings.folds} of {' and '.join(_pair(one))}" for one in (first, run)]
            raise WrongUse(f"the folds are not of one cross-validation: {ways[0]}, {ways[1]}")
        if run.about.facts.get("data_sets"):
            raise WrongUse(f"{run.place} was trained on several data sets; audit runs of one")
        if twice := by_fold.get(settings.fold):
            raise WrongUse(f"fold {settings.fold} is given twice: {twice.place} and {run.place}")
        by_fold[settings.fold] = run
    if missing := sorted(set(range(first.settings.folds)) - by_fold.keys()):
        lacks = f"fold {missing[0]}" if len(missing) == 1 else f"folds {', '.join(map(str, missing))}"
        how = f"--folds {first.settings.folds} --fold {missing[0]}"
        raise WrongUse(f"{lacks} of {first.settings.folds} missing, so their slices have no judge; train with {how}")
    return [by_fold[fold] for fold in sorted(by_fold)]


def _pair(run: Fold) -> tuple[str, str]:
    return run.settings.train_split, run.settings.validation_split


def _data(given: str | None, run: Fold) -> Dataset:
    """The data set of the runs. Raises `WrongUse` where it is another one."""
    places = command.data_places([given] if given else None, run.about.facts.get("data_dir"))
    data = open_dataset(places[0])
    if data.manifest.fingerprint != run.about.fingerprint:
        raise WrongUse(f"{data.place} is not the data set that {run.place} was trained on; name that with --data_dir")
    return data


def _pool(runs: Sequence[Fold], data: Dataset) -> Pool:
    """What each fold says of the slices that it held out, all together; nan of a label of which it knows nothing."""
    from trainer.training import assembly

    parts = []
    for run in runs:
        slices = assembly.split(data, run.settings, run.settings.validation_split)
        said = _held_out(run, data, slices)
        said[:, run.about.calibration.slope == 0] = np.nan  # the prevalence in every slice is no opinion
        for line in run.about.calibration.told():
            print(f"{run.place}: {line}", flush=True)
        parts.append((slices.table, slices.labels.astype(np.int8), said))
    tables, labels, told = zip(*parts, strict=True)
    table = pa.concat_tables(tables).combine_chunks()
    beside = suspects.beside(series.numbers(table, UIDS), table["slice_index"].to_numpy())
    return Pool(table, np.concatenate(labels), np.concatenate(told), beside)


def _held_out(run: Fold, data: Dataset, slices: Slices) -> npt.NDArray[np.float64]:
    """float64 [n, L], probabilities of the slices that a fold held out: of its evaluation where there is one."""
    name = run.settings.validation_split
    if (logits := _evaluated(run, name, slices)) is not None:
        print(f"{run.place}: {slices.split}, {len(slices):,} slices, as evaluated", flush=True)
        return run.about.probabilities(logits)
    from trainer.series import judging

    judge = judging.judge_of(run.folder, run.about, data, False)
    with progress_line.shown(f"{run.place}: {slices.split}", "slices", sys.stdout) as tell:
        return judge(slices, run.settings.eval_batch_size, tell).slices.probabilities


def _evaluated(run: Fold, split: str, slices: Slices) -> npt.NDArray[np.float32] | None:
    """Logits float32 [n, L] that `trainer.evaluate` left of the slices by the same weights; None where it did not."""
    folder = evaluated.folder(model_file.run_folder(run.folder), split)
    try:
        what = json.loads((folder / evaluated.METRICS).read_text(encoding="utf-8"))["what"]
        if what["weights"] != model_file.digest(run.folder) or what["flip"]:
            return None
        found = predictions.read(folder / evaluated.PREDICTIONS)
    except (OSError, ValueError, KeyError, TypeError, WrongUse):
        return None  # of another version, or damaged: the model itself is asked
    at = pc.index_in(slices.table["sop_uid"], value_set=found.ids["sop_uid"].combine_chunks())
    if at.null_count or len(found) != len(slices) or found.names != slices.spec.labels.names:
        return None
    return found.logits[at.to_numpy()]


def _told(found: Judged, names: Sequence[str]) -> Iterator[str]:
    """A line a label: how many slices are suspects, or why it is not judged."""
    for label, (name, why) in enumerate(zip(names, found.refused, strict=True)):
        if why:
            yield f"{name}: not judged, {why}"
            continue
        slices, doubted = (int(one[:, label].sum()) for one in (np.isfinite(found.score), found.suspect))
        clear = int(found.clear[:, label].sum())
        yield f"{name}: {doubted:,} of {counted(slices, 'label')} are suspects, {clear:,} of them clear ones"


def _reasons(found: Judged, row: int, label: int) -> str:
    words = {
        "model is sure of the other value": found.confident,
        "all neighbours have the other value": found.against,
        "next to a change": found.border,
        "same pixels with the other value elsewhere": found.copied,
        "any and kinds contradict": found.contradicts,
    }
    return "; ".join(word for word, holds in words.items() if holds[row, label]) or "model leans to the other value"


def _write(
    output: Path, pool: Pool, data: Dataset, found: Judged, any_label: int, most: int | None, runs: Sequence[Fold]
) -> None:
    """The three files, the page last."""
    from trainer.pages import audit_page

    names, ranked = data.manifest.spec.labels.names, found.ranked()
    clear = [(row, label) for row, label in ranked.tolist() if found.clear[row, label]]
    fixed = suspects.corrections(pool.labels, clear, found.suspect, any_label)
    first = set(list(dict.fromkeys(row for row, *_ in fixed))[:most])  # slices, worst first
    fixed = [fix for fix in fixed if fix[0] in first]
    uids, studies = pool.table["sop_uid"].to_pylist(), pool.table["study_uid"].to_pylist()
    told = {(row, label) for row, label, _ in fixed}

    def rows() -> Iterator[Sequence[object]]:
        for rank, (row, label) in enumerate(ranked.tolist(), 1):
            given = int(pool.labels[row, label])
            chance = pool.probabilities[row, label]
            numbers = ("" if np.isnan(chance) else f"{chance:.6g}", f"{found.score[row, label]:.6g}")
            fix = int((row, label) in told)
            words = (uids[row], studies[row], names[label])
            yield rank, *words, given, 1 - given, *numbers, fix, _reasons(found, row, label)

    wrong = ((uids[row], names[label], value) for row, label, value in fixed)
    shown = _worst(runs[0].about, data, pool, found, ranked, told)
    facts = {
        "slices judged": f"{len(pool.labels):,}",
        "labels judged": f"{found.judged:,}",
        "suspects": f"{len(ranked):,}",
        "proposed corrections": f"{len(fixed):,}",
    }
    by_label = [[name, *_counts(found, label)] for label, name in enumerate(names)]
    places = [run.place for run in runs]
    title = f"Doubtful labels of {data.manifest.spec.name} {data.manifest.spec.version}"
    page = audit_page.page(title, shown, facts, by_label, places, data.manifest.fingerprint, LOOK)
    atomic.write_bytes(output / SUSPECTS, csv_text(HEAD, rows()).encode())
    atomic.write_bytes(output / FIXES, csv_text(fixes.HEAD, wrong).encode())
    atomic.write_bytes(output / PAGE, page.encode())
    print(f"{counted(len(ranked), 'suspect')} of {found.judged:,} labels, {counted(len(fixed), 'correction')}. {LOOK}")
    for name in (SUSPECTS, FIXES, PAGE):
        print(output / name)


def _counts(found: Judged, label: int) -> list[str]:
    """Of a label: judged, of either value, confident of the other, suspects, clear ones; or why it is not judged."""
    if found.refused[label]:
        return [f"not judged: {found.refused[label]}", *[""] * 4]
    columns = (np.isfinite(found.score), found.suspect, found.clear)
    judged, doubted, clear = (f"{int(one[:, label].sum()):,}" for one in columns)
    missed, false = found.joint[label, 0, 1], found.joint[label, 1, 0]
    return [judged, f"{missed:,}", f"{false:,}", doubted, clear]


def _worst(
    about: About,
    data: Dataset,
    pool: Pool,
    found: Judged,
    ranked: npt.NDArray[np.int64],
    told: Container[tuple[int, int]],
) -> list[Any]:
    """The first suspects with the slices around them, as the page shows them."""
    from trainer.pages.audit_page import SHOWN, Suspect

    every, names = data.every(), data.manifest.spec.labels.names
    at = pc.index_in(pool.table["sop_uid"], value_set=every.table["sop_uid"].combine_chunks()).to_numpy()
    shown = []
    for rank, (row, label) in enumerate(ranked[:SHOWN].tolist(), 1):
        around = _around(row, pool.neighbours)
        images, _ = every.read(at[around])
        uid, study = (pool.table[name][row].as_py() for name in ("sop_uid", "study_uid"))
        pictures = [pixels.shown(image, about.shown.image)[..., 0] for image in images]
        given = pool.labels[around, label].tolist()
        numbers = (float(pool.probabilities[row, label]), float(found.score[row, label]))
        reasons, fix = _reasons(found, row, label), (row, label) in told
        of_strip = {"pictures": pictures, "given": given, "place": around.index(row)}
        shown.append(Suspect(rank, uid, study, names[label], *numbers, reasons, fix, **of_strip))
    return shown


def _around(row: int, neighbours: npt.NDArray[np.int64]) -> list[int]:
    """Rows of up to two slices below a slice, of itself, and of up to two above it."""
    found = [row]
    for side, add in ((0, lambda one: found.insert(0, one)), (1, found.append)):
        at = row
        for _ in range(2):
            at = int(neighbours[at, side])
            if at < 0:
                break
            add(at)
    return found


if __name__ == "__main__":
    sys.exit(main())
