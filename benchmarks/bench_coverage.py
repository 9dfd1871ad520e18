"""How often the 95% intervals of an evaluation hold the truth, and how often equal models are called different.

    python benchmarks/bench_coverage.py [--output FILE.json] [--repetitions 500] [--resamples 1000] [--seed 0]

Patients drawn from a population with known truth (60,000 patients), each with 16 slices, positive ones with 1 to 8
positive slices, and with what their slices have in common. Of each draw the package's own intervals: how many hold
the truth, and on which side the others miss it. Then two and five models that are equally good on the same patients:
how often a difference in log loss is claimed, at the level that `trainer.compare` takes for so many. The percentiles
of the resamples, which the package used before, stand beside. Exit code 1 where a promise is broken by more than
chance: coverage below 93% or above 97% of log loss, AUC, average precision and sensitivity at 40 patients and at 8
positive ones, two equal models called different in under 3 or over 7%, five in over 7%.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from trainer.results import bootstrap
from trainer.results.probability import log_losses, sigmoid
from trainer.results.ratings import Rating, decisions, ratio, scale

SLICES = 16  # of a patient
POPULATION = 60_000
THRESHOLD = 0.2
# patients of a draw, and the share of them that is positive
DESIGNS = {"40 patients": (40, 0.4), "8 positive of 60": (60, 8 / 60), "200 patients": (200, 0.3)}
PROMISED = ("log_loss", "auc", "average_precision", "sensitivity")
SHOWN = (*PROMISED, "specificity", "f1")
COVERAGE, TWO, FIVE = (0.93, 0.97), (0.03, 0.07), (0.0, 0.07)


def made(rng: np.random.Generator, patients: int, share: float, models: int = 1) -> tuple[np.ndarray, list[np.ndarray]]:
    """Labels bool [patients, SLICES], and the logits of so many equally good models."""
    ill = rng.random(patients) < share
    labels = np.arange(SLICES) < (rng.integers(1, 9, patients) * ill)[:, None]
    hard = rng.normal(0, 0.5, patients)[:, None] + rng.normal(0, 0.5, labels.shape)
    own = [rng.normal(0, 0.5, patients)[:, None] + rng.normal(0, 0.7, labels.shape) for _ in range(models)]
    return labels, [-3 + 3 * labels + hard + noise for noise in own]


def values(labels: np.ndarray, logits: np.ndarray, counts: np.ndarray) -> tuple[Rating, dict[str, np.ndarray]]:
    """Measure -> float64 [c], and the rating that they are of; `counts` int32 [c, patients]."""
    patients = np.repeat(np.arange(len(labels)), SLICES)
    rating = Rating(labels.ravel().astype(np.int8), sigmoid(logits.ravel()), patients)
    rating.add_losses("", sigmoid(logits.ravel()))
    rating.add_confusion("confusion", THRESHOLD)
    drawn = rating.drawn(counts)
    found = {"log_loss": ratio(drawn["log_loss"][:, 0], drawn["known"][:, 0]), **decisions(drawn["confusion"])}
    return rating, found | {name: drawn[name] for name in ("auc", "average_precision")}


def coverage(design: tuple[int, float], args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure -> share of the draws whose interval holds the truth, lies above it, below it; and of percentiles."""
    rng, (patients, share) = np.random.default_rng(args.seed), design
    truth = values(*_first(made(rng, POPULATION, share)), np.ones((1, POPULATION), np.int32))[1]
    resamples = next(bootstrap.patient_counts(patients, args.resamples, args.seed, args.resamples))
    counts = np.concatenate([np.ones((1, patients), np.int32), resamples])
    sides: dict[str, list[tuple[bool, bool, bool]]] = {name: [] for name in SHOWN}
    for _ in range(args.repetitions):
        rating, found = values(*_first(made(rng, patients, share)), counts)
        for name in SHOWN:
            low, high = bootstrap.interval(found[name], scale(name), rating.carriers(name))
            if not math.isnan(low):
                below, above = bootstrap.middle(found[name][1:])
                sides[name].append((truth[name][0] < low, truth[name][0] > high, below <= truth[name][0] <= above))
    return {
        name: {
            "draws": len(rows),
            "holds": 1 - float(np.mean([a or b for a, b, _ in rows])),
            "above": float(np.mean([a for a, _, _ in rows])),
            "below": float(np.mean([b for _, b, _ in rows])),
            "percentiles": float(np.mean([held for *_, held in rows])),
        }
        for name, rows in sides.items()
    }


def _first(drawn: tuple[np.ndarray, list[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return drawn[0], drawn[1][0]


def claims(models: int, design: tuple[int, float], args: argparse.Namespace) -> dict[str, float]:
    """How often the best of equal models is called better than another, by the package and by percentiles."""
    rng, (patients, share) = np.random.default_rng(args.seed), design
    resamples = next(bootstrap.patient_counts(patients, args.resamples, args.seed, args.resamples))
    counts = np.concatenate([np.ones((1, patients), np.int32), resamples]).astype(np.float64)
    level = 1 - (1 - bootstrap.LEVEL) / math.comb(models, 2)
    claimed = {"package": 0, "percentiles": 0}
    for _ in range(4 * args.repetitions):
        labels, every = made(rng, patients, share, models)
        losses = counts @ np.stack([log_losses(labels, sigmoid(one)).mean(axis=1) for one in every], axis=1)
        carriers = Rating(labels.any(axis=1).astype(np.int8), np.zeros(patients), np.arange(patients)).patients
        telling = min(patients, max(2 * min(carriers["positive"], patients - carriers["positive"]), 6))
        best = losses[0].argmin()
        gaps = [losses[:, other] - losses[:, best] for other in range(models) if other != best]
        by = {"package": [bootstrap.interval(gap / patients, bootstrap.DIFFERENCE, telling, level) for gap in gaps]}
        by["percentiles"] = [bootstrap.middle(gap[1:], level) for gap in gaps]
        for name, spans in by.items():
            claimed[name] += any(low > 0 or high < 0 for low, high in spans)
    return {name: times / (4 * args.repetitions) for name, times in claimed.items()}


def outside(share: float, promise: tuple[float, float], draws: int) -> bool:
    """Whether `share` of `draws` breaks the promise by more than chance (three standard errors)."""
    low, high = (end + side * 3 * math.sqrt(end * (1 - end) / draws) for end, side in zip(promise, (-1, 1)))
    return not low <= share <= high


def main() -> int:
    """Print the tables; returns 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--repetitions", type=int, default=500)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found: dict[str, Any] = {"coverage": {}, "claims": {}}
    broken = []
    print("coverage of 95% intervals       holds  too high  too low   percentiles before")
    for name, design in DESIGNS.items():
        found["coverage"][name] = coverage(design, args)
        for measure, of in found["coverage"][name].items():
            shares = "   ".join(f"{100 * of[key]:6.1f}" for key in ("holds", "above", "below", "percentiles"))
            print(f"{name:17} {measure:18} {shares}   of {of['draws']}", flush=True)
            if measure in PROMISED and outside(of["holds"], COVERAGE, of["draws"]):
                broken.append(f"{name}, {measure}")
    print("equal models called different, %")
    for patients, share in ((20, 0.5), (40, 0.4)):
        for models, promise in ((2, TWO), (5, FIVE)):
            of = claims(models, (patients, share), args)
            found["claims"][f"{models} models, {patients} patients"] = of
            print(
                f"{models} models, {patients} patients: {100 * of['package']:.1f}, {100 * of['percentiles']:.1f} before"
            )
            if outside(of["package"], promise, 4 * args.repetitions):
                broken.append(f"{models} models, {patients} patients")
    print("broken: " + "; ".join(broken) if broken else "every promise is kept")
    if args.output:
        args.output.write_text(json.dumps(found | {"arguments": vars(args)}, indent=1, default=str) + "\n")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
