"""Classical classifiers as the last layer of a slice model: a linear one is Keras's own, a forest is defined here.

So a network whose last layer was exchanged is one model like every other: what scores, explains, predicts and exports
models takes it, and `model.keras` holds plain arrays, as ever.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

VECTOR, LOGITS = "vector", "logits"


@dataclasses.dataclass(frozen=True, eq=False)
class Trees:
    """The nodes of a forest a label, tree after tree, label after label; a leaf leads to itself.

    `root` int32 [labels * trees]: where each tree begins. `feature` int32 [n], `threshold` float32 [n]: a vector whose
    number `feature` is above `threshold` goes to the second of `child` int32 [n, 2], another one to the first.
    `share` float64 [n]: share of positives, of leaves. `depth`: most steps from a root to a leaf.
    """

    root: npt.NDArray[np.int32]
    feature: npt.NDArray[np.int32]
    threshold: npt.NDArray[np.float32]
    child: npt.NDArray[np.int32]
    share: npt.NDArray[np.float64]
    depth: int


class Forest(keras.layers.Layer):
    """Vectors [n, dim] -> logits float32 [n, labels]: log odds of the mean share of positives over a label's trees.

    The mean is scikit-learn's `predict_proba`; one more tree, which says 1/2, keeps its log odds finite. No gradient
    passes.
    """

    def __init__(self, labels: int, trees: int, nodes: int, depth: int, **options: Any) -> None:
        super().__init__(**options)
        self.labels, self.trees, self.nodes, self.depth = labels, trees, nodes, depth

    def build(self, input_shape: Any) -> None:
        """Make room for the arrays of `Trees`."""
        sizes = {"root": (self.labels * self.trees,), "child": (self.nodes, 2)}
        kinds = {"root": "int32", "feature": "int32", "threshold": "float32", "child": "int32", "share": "float64"}
        for name, kind in kinds.items():
            shape = sizes.get(name, (self.nodes,))
            kept = self.add_weight(shape, "zeros", kind, trainable=False, autocast=False, name=name)
            setattr(self, name, kept)

    def call(self, vectors: Any) -> Any:
        """float32 [n, labels]."""
        shares = tf.reshape(self.shares(vectors), (-1, self.labels, self.trees))
        # one after the other, as scikit-learn adds them
        mean = (tf.cumsum(shares, 2)[..., -1] + 0.5) / (self.trees + 1)
        return tf.cast(tf.math.log(mean) - tf.math.log1p(-mean), tf.float32)

    def shares(self, vectors: Any) -> Any:
        """float64 [n, labels * trees], what each tree says."""
        count, dim = tf.unstack(tf.shape(vectors))
        numbers, children = tf.reshape(tf.cast(vectors, tf.float32), [-1]), tf.reshape(self.child, [-1])
        begin = tf.range(count)[:, None] * dim
        node = tf.tile(tf.convert_to_tensor(self.root)[None], (count, 1))
        for _ in range(self.depth):
            above = tf.gather(numbers, begin + tf.gather(self.feature, node)) > tf.gather(self.threshold, node)
            node = tf.gather(children, 2 * node + tf.cast(above, tf.int32))
        return tf.gather(self.share, node)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """[n, labels]."""
        return (input_shape[0], self.labels)

    def get_config(self) -> dict[str, Any]:
        """What `__init__` takes, for Keras."""
        sizes = {name: getattr(self, name) for name in ("labels", "trees", "nodes", "depth")}
        return {**super().get_config(), **sizes}


def linear(kernel: npt.NDArray[Any], bias: npt.NDArray[Any]) -> keras.layers.Layer:
    """The layer that gives `vectors @ kernel + bias`; `kernel` [dim, L], `bias` [L]."""
    layer = keras.layers.Dense(len(bias), name=LOGITS, dtype="float32")
    layer.build((None, len(kernel)))
    layer.set_weights([kernel.astype(np.float32), bias.astype(np.float32)])
    return layer


def forest(trees: Trees, labels: int, dim: int) -> keras.layers.Layer:
    """The layer of `trees` for vectors of `dim` numbers."""
    layer = Forest(labels, len(trees.root) // labels, len(trees.feature), trees.depth, name=LOGITS, dtype="float32")
    layer.build((None, dim))
    layer.set_weights([trees.root, trees.feature, trees.threshold, trees.child, trees.share])
    return layer


def with_last(model: keras.Model, last: keras.layers.Layer) -> keras.Model:
    """The network of `model` with the layer `last`, which takes its vectors as they are kept, in float16."""
    # in the precision that `last` was fitted on
    vector = keras.layers.Activation("linear", dtype="float16", name=VECTOR)(model.layers[-1].input)
    return keras.Model(model.input, last(vector), name=model.name)


def require_whole(model: keras.Model) -> None:
    """Raises ValueError for a forest whose trees lead out of it, or whose shares are none."""
    last = model.layers[-1]
    if not isinstance(last, Forest):
        return
    root, feature, _, child, share = last.get_weights()
    inside = [(root, last.nodes), (child, last.nodes), (feature, last.input.shape[-1])]
    if not all(((values >= 0) & (values < end)).all() for values, end in inside):
        raise ValueError("its trees lead out of the forest")
    if not ((share >= 0) & (share <= 1)).all():
        raise ValueError("a leaf of its trees bears a share that is not from 0 to 1")


def has_gradient(model: keras.Model) -> bool:
    """Whether the logits have a slope, and so a map of where the model looks."""
    return not isinstance(model.layers[-1], Forest)
