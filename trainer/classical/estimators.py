"""scikit-learn's classifiers on vectors of slices, one a label: fitted by nature, kept as plain arrays.

Natural means that each slice counts once, so that what comes out are natural log odds; only the SVM weighs the values
of a label alike, and its margins are no odds at all until a slope and an intercept (Platt 1999) make them some.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.preprocessing import StandardScaler

from trainer.classical.kinds import FOREST, LOGISTIC, SVM, Wanted
from trainer.models import classical
from trainer.models.classical import Trees
from trainer.results import calibration

Float32 = npt.NDArray[np.float32]
Labels = npt.NDArray[np.integer[Any]]
Tell = Callable[[int, int], None]

LEAST_LEAF = 5  # slices; a leaf of one says 0 or 1
TREE_SLICES = 32_768  # that a tree draws at most: so it takes as long of 500,000 slices as of so many
GROWN = 10  # trees at a time
ROWS = 8192  # at a time
SVM_STEPS, SVM_EPOCHS = 1_000_000, 5  # slices it sees at least, one after the other; and how often each
MOST_STEPS = 1000  # of the logistic regression, each over all slices


def estimator(wanted: Wanted, slices: int) -> Any:
    """scikit-learn's, not yet fitted, for so many slices with a known label."""
    return _MADE[wanted.kind](slices=slices, seed=wanted.seed, **wanted.parameters)


def _forest(trees: int, depth: int, slices: int, seed: int) -> Any:
    drawn = TREE_SLICES if slices > TREE_SLICES else None
    sizes = {"max_depth": depth, "min_samples_leaf": LEAST_LEAF, "max_samples": drawn}
    return RandomForestClassifier(trees, **sizes, random_state=seed, n_jobs=-1)


def _svm(c: float, slices: int, seed: int) -> Any:
    epochs = max(SVM_EPOCHS, math.ceil(SVM_STEPS / slices))
    how = {"average": True, "max_iter": epochs, "tol": None, "class_weight": "balanced"}
    return SGDClassifier(loss="hinge", alpha=1 / (c * slices), **how, random_state=seed)


def _logistic(c: float, slices: int, seed: int) -> Any:
    return LogisticRegression(C=c, max_iter=MOST_STEPS, random_state=seed)


_MADE: dict[str, Callable[..., Any]] = {FOREST: _forest, SVM: _svm, LOGISTIC: _logistic}


def fit(wanted: Wanted, vectors: Float32, labels: Labels, tell: Tell) -> tuple[keras.layers.Layer, list[int]]:
    """The last layer of a model, and columns of the labels whose fit had not converged.

    `vectors` [n, dim], which a linear fit standardises in place; `labels` [n, L], -1 unknown, both values of each.
    `tell(done, total)` is called as `Wanted.steps` counts.
    """
    if wanted.kind == FOREST:
        return _fit_forests(wanted, vectors, labels, tell), []
    return _fit_linear(wanted, vectors, labels, tell)


def _known(vectors: Float32, labels: Labels, at: int) -> tuple[Float32, npt.NDArray[np.bool_]]:
    """Vectors of the slices whose label `at` is known, and whether it is positive; all of them without a copy."""
    rows = labels[:, at] >= 0
    return (vectors, labels[:, at] == 1) if rows.all() else (vectors[rows], labels[rows, at] == 1)


# linear


def _fit_linear(wanted: Wanted, vectors: Float32, labels: Labels, tell: Tell) -> tuple[keras.layers.Layer, list[int]]:
    scaler = _standardised(vectors)
    kernels, biases, astray = [], [], []
    for at in range(labels.shape[1]):
        kernel, bias, converged = _plane(wanted, *_known(vectors, labels, at))
        kernels.append(kernel / scaler.scale_)
        biases.append(bias - kernel @ (scaler.mean_ / scaler.scale_))
        astray += [] if converged else [at]
        tell(at + 1, labels.shape[1])
    return classical.linear(np.stack(kernels, axis=1), np.array(biases)), astray


def _standardised(vectors: Float32) -> StandardScaler:
    """What made `vectors` [n, dim] have mean 0 and deviation 1, in place; a fit of all at once takes two copies."""
    scaler = StandardScaler(copy=False)
    parts = [vectors[begin : begin + ROWS] for begin in range(0, len(vectors), ROWS)]
    for part in parts:
        scaler.partial_fit(part)
    for part in parts:
        scaler.transform(part)
    return scaler


def _plane(wanted: Wanted, vectors: Float32, positive: npt.NDArray[np.bool_]) -> tuple[Any, float, bool]:
    """Kernel float64 [dim] and bias of natural log odds of standardised vectors, and whether the fit converged."""
    found = estimator(wanted, len(vectors))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        found.fit(vectors, positive)
    astray = any(issubclass(one.category, ConvergenceWarning) for one in caught)
    kernel, bias = found.coef_[0].astype(np.float64), float(found.intercept_[0])
    if wanted.kind == SVM:
        margins = found.decision_function(vectors).astype(np.float64)
        slope, offset = calibration.platt(positive, margins)
        kernel, bias = slope * kernel, slope * bias + offset
    return kernel, bias, not astray


# forests


def _fit_forests(wanted: Wanted, vectors: Float32, labels: Labels, tell: Tell) -> keras.layers.Layer:
    every, (total, _) = [], wanted.steps(labels.shape[1])
    for at in range(labels.shape[1]):
        for grown in _grown(wanted, *_known(vectors, labels, at)):
            tell(at * wanted.parameters["trees"] + len(grown.estimators_), total)
        every += [tree.tree_ for tree in grown.estimators_]
    return classical.forest(_flat(every), labels.shape[1], vectors.shape[1])


def _grown(wanted: Wanted, vectors: Float32, positive: npt.NDArray[np.bool_]) -> Iterator[Any]:
    """The forest as it grows; the last one is what a fit at once would give."""
    forest = estimator(wanted, len(vectors)).set_params(warm_start=True)
    trees = wanted.parameters["trees"]
    for count in (*range(GROWN, trees, GROWN), trees):
        yield forest.set_params(n_estimators=count).fit(vectors, positive)


def _flat(trees: list[Any]) -> Trees:
    """The nodes of scikit-learn's trees, one after the other."""
    sizes = [tree.node_count for tree in trees]
    root = np.cumsum([0, *sizes])[:-1]
    child = np.concatenate([_children(tree, begin) for tree, begin in zip(trees, root)])
    leaf = np.concatenate([tree.children_left for tree in trees]) < 0
    threshold = np.concatenate([tree.threshold for tree in trees])
    feature = np.concatenate([tree.feature for tree in trees])
    return Trees(
        root.astype(np.int32),
        np.where(leaf, 0, feature).astype(np.int32),
        np.where(leaf, np.float32(np.inf), _rounded_down(threshold)),
        child.astype(np.int32),
        np.concatenate([tree.value[:, 0, 1] for tree in trees]),
        max(tree.max_depth for tree in trees),
    )


def _children(tree: Any, begin: int) -> npt.NDArray[np.int64]:
    """int64 [n, 2], both children of each node, which stand from `begin` on; a leaf's are itself."""
    child = np.stack([tree.children_left, tree.children_right], axis=1)
    return np.where(child < 0, np.arange(len(child))[:, None], child) + begin


def _rounded_down(values: npt.NDArray[np.float64]) -> Float32:
    """The greatest float32 that is not above each value: a float32 is above the one where it is above the other."""
    near = values.astype(np.float32)
    return np.where(near > values, np.nextafter(near, np.float32(-np.inf)), near)
