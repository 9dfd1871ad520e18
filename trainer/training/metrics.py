"""The competition's log loss, ROC AUC and accuracy: on whole arrays, gathered from batches, and in the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from trainer.results.joint import Odds, coherent
from trainer.results.probability import CLIP, competition_weights, log_losses, sigmoid
from trainer.shell.problems import TrainingFailed, WrongUse, hint

_BETTER = {"log_loss": -1, "log_loss_as_sampled": -1, "auc": 1, "accuracy": 1}
_PER_LABEL = ("auc", "accuracy")


def log_loss(labels: Any, logits: Any, weights: Any) -> float:
    """Weighted mean of the log losses of the known labels: the metric of RSNA 2019 (Kaggle, "Evaluation").

    `labels`: integers [n, L], 1, 0 or -1 for unknown; `logits` [n, L]; `weights` [L], there 2 for `any` and 1
    for the others. Probabilities are clipped to [1e-15, 1 - 1e-15]; all in float64. nan with no label known.
    """
    labels = np.asarray(labels)
    losses = log_losses(labels == 1, sigmoid(logits))
    known = np.where(labels >= 0, np.asarray(weights, np.float64), 0.0)
    # one order of summation, whatever the memory order of the arguments
    total = np.ascontiguousarray(losses * known).sum()
    weight = np.ascontiguousarray(known).sum()
    return float(total / weight) if weight > 0 else float("nan")


def auc(labels: Any, scores: Any) -> float:
    """Area under the ROC curve, ties counted half; `labels` integers [n] (-1 left out), `scores` float [n].

    nan where the known labels are not both of 0 and 1.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    labels, scores = labels[labels >= 0], scores[labels >= 0]
    if len(np.unique(labels)) < 2:
        return float("nan")
    return float(roc_auc_score(labels, scores))


def accuracy(labels: Any, logits: Any) -> np.ndarray:
    """float64 [L]: share of right decisions (1 where logit >= 0) among the known labels; nan with none known."""
    labels = np.asarray(labels)
    right = ((np.asarray(logits) >= 0) == (labels == 1)) & (labels >= 0)
    known = (labels >= 0).sum(axis=0)
    return np.where(known > 0, right.sum(axis=0) / np.maximum(known, 1), np.nan)


class Scores:
    """Labels and logits of a split, gathered batch by batch in any order; exact, as on the whole arrays."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._seen: set[int] = set()

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, labels: Any, logits: Any, weight: Any, row: Any) -> None:
        """Take the slices of a batch: `labels` integers [b, L], `logits` [b, L], `weight` [b], `row` int64 [b].

        Slices of weight 0 are padding and left out. `row`: the place of the slice in the table of the split.
        Raises `TrainingFailed` naming the first row with a logit that is not finite or that came before.
        """
        kept = np.asarray(weight) != 0
        rows, labels, logits = np.asarray(row)[kept], np.asarray(labels)[kept], np.asarray(logits)[kept]
        _check_finite(rows, logits)
        for number in rows.tolist():
            if number in self._seen:
                raise TrainingFailed(
                    f"row {number} of the split was scored twice and each slice counts once: the workers' shares "
                    "overlap; evaluate on one worker and report this"
                )
            self._seen.add(number)
        self._parts.append((rows, labels, logits))

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows int64 [n] ascending, their labels [n, L] and logits [n, L]. `TrainingFailed` without slices."""
        if not self._seen:
            raise TrainingFailed("no slice was scored; evaluation needs a split with at least one slice")
        rows, labels, logits = (np.concatenate(part) for part in zip(*self._parts))
        order = np.argsort(rows)
        return rows[order], labels[order], logits[order]

    def result(self, odds: Odds) -> dict[str, float]:
        """The numbers of `metric_names(odds.names)`, from all that was added.

        They are of the natural log odds, no kind above `any`; `log_loss_as_sampled` is of the logits as they are.
        Log losses weigh `any` as the competition does, whatever the loss of the training: so runs can be compared.
        `auc` and `accuracy` are means over the labels where they are defined.
        """
        _, labels, logits = self.arrays()
        names, natural = odds.names, coherent(odds.log_odds(logits), odds.any_index)
        weights = competition_weights(names, odds.any)
        areas = np.array([auc(labels[:, at], natural[:, at]) for at in range(len(names))])
        shares = accuracy(labels, natural)
        return {
            "log_loss": log_loss(labels, natural, weights),
            "log_loss_as_sampled": log_loss(labels, logits, weights),
            "auc": _mean_defined(areas),
            "accuracy": _mean_defined(shares),
            **{f"auc_{name}": float(area) for name, area in zip(names, areas)},
            **{f"accuracy_{name}": float(share) for name, share in zip(names, shares)},
        }


def _check_finite(rows: np.ndarray, logits: np.ndarray) -> None:
    bad = ~np.isfinite(logits)
    if bad.any():
        at, label = np.argwhere(bad)[0]
        raise TrainingFailed(
            f"row {rows[at]} of the split: logit {label} is {logits[at, label]}; the weights have left the numbers: "
            "go back to an earlier checkpoint and lower the learning rate"
        )


def _mean_defined(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def step_sums(labels: Any, logits: Any, label_weights: Any) -> Any:
    """float32 [4]: log-loss sum and its weight, right decisions (1 where logit >= 0) and known labels; a tensor op.

    `labels`: integers [n, L], -1 for unknown; `logits` float32 [n, L]; `label_weights` float32 [L]. The first
    by the second is the competition's log loss of these slices, the third by the fourth their accuracy.
    """
    logits = tf.cast(logits, tf.float32)
    known = tf.cast(labels >= 0, tf.float32)
    weights = known * label_weights
    signed = tf.where(labels == 1, -logits, logits)
    # float32 has no 1 - 1e-15, so the clip is put on the loss
    losses = tf.minimum(tf.math.softplus(signed), -np.log(CLIP).astype(np.float32))
    right = known * tf.cast(tf.equal(logits >= 0, labels == 1), tf.float32)
    return tf.stack([tf.reduce_sum(part) for part in (weights * losses, weights, right, known)])


def metric_names(labels: Sequence[str]) -> list[str]:
    """The keys of `Scores.result` for these labels, in its order."""
    return [*_BETTER, *(f"{metric}_{label}" for metric in _PER_LABEL for label in labels)]


def lacking(name: str, names: Sequence[str], labels: Any) -> str:
    """Why the metric `name` has no value on slices with these labels: what they hold, in words; "" where it has one.

    `labels`: integers [n, L] of the labels `names`, 1, 0 or -1 for unknown.
    """
    labels = np.asarray(labels)
    known, ones = (labels >= 0).sum(axis=0), (labels == 1).sum(axis=0)
    both = (ones > 0) & (ones < known)
    if name.startswith("auc_"):
        at = names.index(name.removeprefix("auc_"))
        return "" if both[at] else f"{ones[at]:,} positive and {known[at] - ones[at]:,} negative slices of {names[at]}"
    if name.startswith("accuracy_"):
        at = names.index(name.removeprefix("accuracy_"))
        return "" if known[at] else f"no slice where {names[at]} is known"
    if name == "auc":
        return "" if both.any() else "no label that is positive in some slices and negative in others"
    return "" if known.any() else "no slice with a known label"


def better(name: str, labels: Sequence[str] | None = None) -> int:
    """+1 where a higher value of the metric `name` is better (AUC, accuracy), -1 where a lower one is (log loss).

    Metrics of one label are `auc_<label>` and `accuracy_<label>`; with `labels` it must be one of them. Raises
    `WrongUse` for another name, with the nearest known one.
    """
    known = metric_names(labels or ())
    of_any_label = labels is None and name.startswith(tuple(f"{metric}_" for metric in _PER_LABEL))
    if name not in known and not of_any_label:
        raise WrongUse(f"no metric is named {name!r}; {hint(name, known)}")
    return -1 if name.startswith("log_loss") else 1
