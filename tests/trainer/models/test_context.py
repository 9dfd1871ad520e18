"""The context network: what it makes of vectors must not depend on how they were handed in."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from trainer.models import context

pytestmark = pytest.mark.slow  # builds networks

SMALL = {"width": 12, "units": 8, "layers": 1}


@pytest.mark.parametrize("kind", context.KINDS)
def test_float16_vectors_are_normalised_in_float32(kind):
    """Rounded to float16 after it, the last bit would follow from what else is in the batch, and grow to 2e-4."""
    network = context.build(8, 6, {"kind": kind, **SMALL})
    normal = keras.Model(network.inputs, network.get_layer("normal").output)
    vectors = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float16)
    given = {"vectors": vectors, "place": np.zeros((2, 5, 3), np.float32), "mask": np.ones((2, 5), bool)}
    exact = vectors.astype(np.float64)
    epsilon = network.get_layer("normal").epsilon
    wanted = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + epsilon)
    found = normal([given[one.name] for one in network.inputs]).numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
