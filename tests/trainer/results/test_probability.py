"""The prevalence that known labels let one expect."""

from __future__ import annotations

import numpy as np

from trainer.results.probability import prevalence


def test_prevalence_counts_known_labels_alone_and_is_never_0_or_1():
    labels = np.array([[1, 0, -1, 1], [0, 0, -1, 1], [-1, 0, -1, 1]])
    np.testing.assert_allclose(prevalence(labels), [1.5 / 3, 0.5 / 4, 0.5, 3.5 / 4])


def test_prevalence_of_many_is_their_share():
    labels = (np.arange(100_000) < 400).astype(np.int8)[:, None]
    np.testing.assert_allclose(prevalence(labels), [0.004], rtol=2e-3)
