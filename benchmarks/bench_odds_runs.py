"""Finished runs with one shift a label, and with the joint of the labels: log loss on their test split, paired.

    python benchmarks/bench_odds_runs.py RUN [RUN ...] [--data_dir DIR] [--others DIR]

Both corrections start from the same logits, and each is followed by the same Platt scaling on the validation split.
The interval of the difference comes from 2,000 resamples of the patients; where the runs have one test split, that of
their mean is told too. A test split of a few dozen patients tells little: with `--others` both are held against all
patients of another data set instead. Exit code 1 where the joint is above in one of the runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import numpy.typing as npt

from trainer.data import sampling
from trainer.data.dataset import Slices, open_dataset
from trainer.models import model_file
from trainer.results import calibration, joint
from trainer.results.joint import Odds
from trainer.results.predictions import Predictions
from trainer.results.probability import ANY_WEIGHT, log_losses, prevalence
from trainer.training import assembly, hparams, metrics, scoring
from trainer.training.hparams import HParams

RESAMPLES = 2000


def alone(settings: HParams, train: Slices) -> Odds:
    """Odds with one shift a label, as before the joint was used."""
    labels = train.spec.labels
    shares = sampling.proportions(settings.sampling, train.stratum_counts, settings.proportions)
    rows = {name: train.labels[train.stratum == index] for index, name in enumerate(labels.strata)}
    ones, zeros = ({name: (values == value).sum(0) for name, values in rows.items()} for value in (1, 0))
    return joint.alone(labels.names, labels.any, sampling.log_odds_shift(ones, zeros, shares))


def scored(
    odds: Odds, held: Predictions, test: Predictions, shares: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], list[float]]:
    """The log loss of each slice of `test`, float64 [n], and the AUC of each label.

    Not a number for a slice of which no label is known. `shares` float64 [L]: of positives in training.
    """
    natural, unshifted = odds.log_odds(held.logits), np.zeros(len(odds.names))
    fitted = calibration.fit(odds.names, held.labels, natural, unshifted, held.patients, shares)
    shown = fitted.probabilities(odds.log_odds(test.logits))
    if len(odds.drawn):
        shown = joint.coherent(shown, odds.any_index)
    weights = np.array([ANY_WEIGHT if name == odds.any else 1.0 for name in odds.names]) * (test.labels >= 0)
    losses = (log_losses(test.labels == 1, shown) * weights).sum(1) / weights.sum(1)
    return losses, [metrics.auc(test.labels[:, at], shown[:, at]) for at in range(len(odds.names))]


def interval(difference: npt.NDArray[np.float64], patients: npt.NDArray[np.int64]) -> tuple[float, float]:
    """95% interval of the mean of `difference`, by resampling whole patients."""
    totals, slices = np.bincount(patients, difference), np.bincount(patients)
    drawn = np.random.default_rng(0).integers(0, len(totals), (RESAMPLES, len(totals)))
    low, high = np.quantile(totals[drawn].sum(1) / slices[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)


def told(difference: npt.NDArray[np.float64], patients: npt.NDArray[np.int64]) -> str:
    """The mean difference and its interval."""
    low, high = interval(difference, patients)
    return f"{difference.mean():+.4f} ({low:+.4f} to {high:+.4f})"


def compare(run: str, data_dir: str, others: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Print a run's line; returns the difference of each slice, joint less alone, and the patients."""
    folder = model_file.find(run)
    about = model_file.read_about(folder)
    settings, data = hparams.of_run(about.settings), open_dataset(data_dir or about.facts["data_dir"])
    splits = assembly.splits(data, settings)
    train, score = splits[settings.train_split], model_file.scorer(model_file.load_model(folder, about))

    def predicted(of: Slices) -> Predictions:
        return scoring.predict_split(score, about, of, settings.eval_batch_size, lambda done, total: None)

    held = predicted(splits[settings.validation_split])
    if others:
        other = open_dataset(others)
        if shared := set(data.slices["patient_key"].to_pylist()) & set(other.slices["patient_key"].to_pylist()):
            raise SystemExit(f"{others}: patient {min(shared)} is in {data.place} too; take a set of other patients")
        test = predicted(other.every().with_neighbours(settings.context_slices))
    else:
        test = predicted(splits[settings.test_split])
    shares = prevalence(train.labels)
    before, areas_before = scored(alone(settings, train), held, test, shares)
    after, areas_after = scored(assembly.odds_of(settings, train), held, test, shares)
    areas = ", ".join(f"{n} {b:.3f} -> {a:.3f}" for n, b, a in zip(about.spec.labels.names, areas_before, areas_after))
    known = np.isfinite(before)
    patients, difference = test.patients[known], (after - before)[known]
    print(f"{run}: {before[known].mean():.4f} -> {after[known].mean():.4f}, {told(difference, patients)}")
    print(f"  AUC {areas}")
    return difference, patients


def main() -> int:
    """Print the comparison; returns 1 where the joint does worse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--data_dir", default="", metavar="DIR", help="default: what each run was trained on")
    parser.add_argument("--others", default="", metavar="DIR", help="data set whose patients are held out instead")
    args = parser.parse_args()
    differences, patients = zip(*(compare(run, args.data_dir, args.others) for run in args.runs), strict=True)
    if len(args.runs) > 1 and all(np.array_equal(patients[0], other) for other in patients[1:]):
        print(f"all: {told(np.mean(differences, axis=0), patients[0])}")
    return int(max(difference.mean() for difference in differences) > 0)


if __name__ == "__main__":
    sys.exit(main())
