"""What is left of an ideal model after skewed sampling is undone: its log loss beside that of Bayes' rule.

    python benchmarks/bench_odds.py [--output FILE.json] [--slices 20000] [--seed 0]

No network: slices are drawn with the prevalences of the RSNA data over the 32 combinations of kinds, each shows a
Gaussian signal a kind, and the posterior of every combination is known in closed form. The ideal model of a draw
says the posterior of each label under that draw, as float32 logits. Kinds are independent given hemorrhage, or come
together as in RSNA's strata; signals are weak or strong. Two more cells break what the correction assumes: noise
that the kinds share, and bleeds that look like each other (weak signals, kinds that come together).

Log losses are expectations under the posteriors, in the weights of the competition; ratios are the mean probability
of a kind over the mean of its posterior, among slices where another kind bleeds and where none does (the worst kind).
`alone` is one shift a label, which was used before; `apart` takes kinds as independent given hemorrhage. With a loss
that is smoothed or focal, the logits are those of its minimum. Exit code 1 where the joint is more than 1.5% above
Bayes, above `alone`, has a ratio outside 0.85 to 1.15, or shows a kind above `any`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import numpy.typing as npt

from ich_tfrecords import spec
from ich_tfrecords.labels.table import stratum_indices
from trainer.data import sampling
from trainer.results import joint
from trainer.results.joint import Odds
from trainer.results.probability import ANY_WEIGHT, sigmoid

Numbers = npt.NDArray[np.float64]

LABELS = spec.load("rsna_ich").labels
NAMES = LABELS.names
EVERY = joint.combinations(NAMES, LABELS.any)
KINDS = EVERY[:, 1:].astype(np.float64)
STRATA = stratum_indices(EVERY, LABELS)
SLICES = 674_258
PREVALENCE = {  # of RSNA 2019, stage 1
    "any": 0.1440, "epidural": 0.0041, "intraparenchymal": 0.0483, "intraventricular": 0.0352,
    "subarachnoid": 0.0476, "subdural": 0.0630,
}  # fmt: skip
OF_STRATUM = {
    "epidural": 2_761, "intraventricular": 23_550, "subarachnoid": 24_999, "intraparenchymal": 16_884,
    "subdural": 28_909, "none": 577_155,
}  # fmt: skip
# log odds ratios between kinds where those that come together are drawn; the counts above do the rest
TOGETHER = {("intraparenchymal", "intraventricular"): 1.5, ("intraventricular", "subarachnoid"): 1.0,
            ("subarachnoid", "subdural"): 0.7, ("epidural", "subdural"): 0.8}  # fmt: skip
POLICIES = ("natural", "sqrt", "balanced")
STRENGTHS = {"weak": 2.2, "strong": 3.2}
LIMIT, LEAST_RATIO, GREATEST_RATIO = 1.015, 0.85, 1.15
_SWEEPS = 5000


def natural_joint(together: bool) -> Numbers:
    """float64 [32], the share of each combination: RSNA's prevalences, and RSNA's strata where kinds come together."""
    share = np.exp(sum(weight * KINDS[:, at(one)] * KINDS[:, at(two)] for (one, two), weight in TOGETHER.items()))
    share = share if together else np.ones(len(EVERY))
    parts = [(EVERY[:, index] == 1, PREVALENCE[name]) for index, name in enumerate(NAMES)]
    if together:
        parts += [(LABELS.strata.index(name) == STRATA, count / SLICES) for name, count in OF_STRATUM.items()]
    for _ in range(_SWEEPS):
        for inside, wanted in parts:
            share = np.where(inside, share * wanted / share[inside].sum(), share * (1 - wanted) / share[~inside].sum())
    return share / share.sum()


def at(kind: str) -> int:
    """Column of a kind in `KINDS`."""
    return NAMES.index(kind) - 1


def weights_of(share: Numbers, policy: str) -> Numbers:
    """float64 [32], how often a slice of each combination is drawn beside the others."""
    counts = {name: round(SLICES * share[index == STRATA].sum()) for index, name in enumerate(LABELS.strata[:-1])}
    drawn = sampling.weights(sampling.proportions(policy, counts, {}), counts)
    return np.array([drawn[LABELS.strata[index]] for index in STRATA])


def seen(share: Numbers, slices: int, strength: float, shared: float, alike: float, seed: int) -> tuple[Any, Numbers]:
    """What slices drawn by nature hold, int [n] into `EVERY`, and the likelihood of each combination, [n, 32].

    `shared`: correlation of the noise between kinds; `alike`: part of a signal that every other kind shows too.
    """
    rng = np.random.default_rng(seed)
    held = rng.choice(len(EVERY), slices, p=share)
    kinds = KINDS.shape[1]
    means = strength * KINDS @ (alike + (1 - alike) * np.eye(kinds))
    noise = shared + (1 - shared) * np.eye(kinds)
    signal = means[held] + rng.normal(size=(slices, kinds)) @ np.linalg.cholesky(noise).T
    precision = np.linalg.inv(noise)
    logs = signal @ precision @ means.T - 0.5 * np.einsum("ci,ij,cj->c", means, precision, means)
    return held, np.exp(logs - logs.max(axis=1, keepdims=True))


def log_odds(posterior: Numbers) -> Numbers:
    """float64 [n, L] of combinations [n, 32], not normalised."""
    return np.log(posterior @ EVERY) - np.log(posterior @ (1 - EVERY))


def apart(logits: Numbers, weights: Numbers) -> Numbers:
    """Natural log odds where kinds count as independent given hemorrhage; kinds above `any` lift it."""
    shown = sigmoid(logits)
    bleeds = np.maximum(shown[:, :1], shown[:, 1:].max(axis=1, keepdims=True))
    given = np.clip(shown[:, 1:] / bleeds, 1e-9, 1 - 1e-9)
    each = np.where(KINDS == 1, given[:, None], 1 - given[:, None]).prod(axis=2)
    each[:, 0] = 0
    each *= bleeds / each.sum(axis=1, keepdims=True)
    each[:, 0] = 1 - bleeds[:, 0]
    return log_odds(np.maximum(each, 1e-300) / weights)


def log_loss(truth: Numbers, found: Numbers) -> float:
    """Expected log loss of log odds `found` where `truth` are the probabilities, both [n, L]."""
    each = truth * np.logaddexp(0, -found) + (1 - truth) * np.logaddexp(0, found)
    weights = np.array([ANY_WEIGHT if name == LABELS.any else 1.0 for name in NAMES])
    return float((each.mean(axis=0) * weights).sum() / weights.sum())


def ratios(held: Any, truth: Numbers, found: Numbers) -> tuple[float, float]:
    """Least and greatest mean probability over truth of a kind, with another kind in the slice or with none."""
    labels, shown = EVERY[held], sigmoid(found)
    values = []
    for kind in range(1, len(NAMES)):
        other = labels[:, 1:].sum(axis=1) > labels[:, kind]
        values += [float(shown[rows, kind].mean() / truth[rows, kind].mean()) for rows in (other, ~other)]
    return min(values), max(values)


def trained(logits: Numbers, smoothing: float, gamma: float) -> Numbers:
    """The logits of least loss where the log odds are `logits`: `joint.unfocused` turned round by bisection."""
    up, down = (sigmoid(side) * (1 - smoothing) + smoothing / 2 for side in (logits, -logits))
    target = np.log(up) - np.log(down)
    low, high = np.full(logits.shape, -60.0), np.full(logits.shape, 60.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = joint.unfocused(middle, gamma) < target
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return middle


def candidates(share: Numbers, weights: Numbers, logits: Numbers, smoothing: float, gamma: float) -> dict[str, Numbers]:
    """Natural log odds by each way, of the logits of a model."""
    drawn = share * weights / (share @ weights)
    shift = (log_odds(drawn[None]) - log_odds(share[None]))[0]
    if np.ptp(weights) <= 1e-9 * weights.max():
        right = joint.unchanged(NAMES, LABELS.any, smoothing, gamma)
    else:
        right = Odds(NAMES, LABELS.any, smoothing, gamma, share, drawn, np.zeros(len(NAMES)))
    as_drawn = joint.unsmoothed(joint.unfocused(logits, gamma), smoothing)
    return {"alone": logits - shift, "apart": apart(as_drawn, weights), "joint": right.log_odds(logits)}


def cells() -> Iterator[dict[str, Any]]:
    """What is simulated."""
    plain = {"smoothing": 0.0, "gamma": 0.0, "shared": 0.0, "alike": 0.0}
    for together in (False, True):
        for strength in STRENGTHS:
            for policy in POLICIES:
                yield {**plain, "together": together, "strength": strength, "policy": policy}
    for more in ({"shared": 0.5}, {"alike": 0.3}, {"smoothing": 0.1}, {"smoothing": 0.01}, {"gamma": 2.0}):
        for policy in POLICIES[1:]:
            yield {**plain, "together": True, "strength": "weak", "policy": policy, **more}


def measured(cell: dict[str, Any], share: Numbers, slices: int, seed: int) -> dict[str, Any]:
    """The numbers of a cell, the same slices for each way."""
    held, likelihood = seen(share, slices, STRENGTHS[cell["strength"]], cell["shared"], cell["alike"], seed)
    weights = weights_of(share, cell["policy"])
    natural = log_odds(likelihood * share)
    truth = sigmoid(natural)
    said = trained(log_odds(likelihood * (share * weights)), cell["smoothing"], cell["gamma"])
    logits = said.astype(np.float32).astype(np.float64)
    row: dict[str, Any] = {**cell, "bayes": log_loss(truth, natural), "ways": {}}
    for name, found in candidates(share, weights, logits, cell["smoothing"], cell["gamma"]).items():
        above = float((found[:, 1:] > found[:, :1] + 1e-9).any(axis=1).mean())
        least, greatest = ratios(held, truth, found)
        row["ways"][name] = {"log_loss": log_loss(truth, found), "least": least, "greatest": greatest, "above": above}
    return row


def kept(row: dict[str, Any]) -> bool:
    """Whether the joint keeps what it promises in a cell."""
    ours, alone = row["ways"]["joint"], row["ways"]["alone"]
    near = ours["log_loss"] <= LIMIT * row["bayes"] and ours["log_loss"] <= alone["log_loss"] * (1 + 1e-9)
    return near and ours["least"] >= LEAST_RATIO and ours["greatest"] <= GREATEST_RATIO and ours["above"] == 0


def line(row: dict[str, Any]) -> str:
    """A line of the table."""
    kinds = "together" if row["together"] else "independent"
    more = [f"{key} {row[key]:g}" for key in ("shared", "alike", "smoothing", "gamma") if row[key]]
    what = f"{kinds:11} {row['strength']:6} {row['policy']:8} {', '.join(more):14}"
    told = []
    for name, way in row["ways"].items():
        over = 100 * (way["log_loss"] / row["bayes"] - 1)
        told.append(f"{name} {over:+7.2f}% {way['least']:.2f}-{way['greatest']:.2f} {100 * way['above']:3.0f}%")
    return f"{what} {row['bayes']:.4f} | {' | '.join(told)}{'' if kept(row) else '  MISSED'}"


def main() -> int:
    """Print the table; returns 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--slices", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    shares = {together: natural_joint(together) for together in (False, True)}
    rows = []
    print("log loss of Bayes | above it, least to greatest probability over truth, slices with a kind above any")
    for cell in cells():
        rows.append(measured(cell, shares[cell["together"]], args.slices, args.seed))
        print(line(rows[-1]), flush=True)
    if args.output:
        args.output.write_text(json.dumps({"slices": args.slices, "seed": args.seed, "rows": rows}, indent=1) + "\n")
    return int(not all(map(kept, rows)))


if __name__ == "__main__":
    sys.exit(main())
