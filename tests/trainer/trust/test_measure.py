"""The distance of slices from training."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.trust import measure


@pytest.fixture
def training() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(400, 40)) * np.linspace(3, 0.1, 40) + 7


def test_whitened_training_has_mean_zero_and_variance_one(training):
    found = measure.fit(training)
    seen = found.whitened(training)
    assert seen.shape == (400, measure.MOST_AXES)
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(seen[:, :8].var(axis=0), 1, atol=0.02)


def test_the_distance_is_mahalanobis_where_nothing_is_left_out():
    rng = np.random.default_rng(1)
    training = rng.normal(size=(500, 5)) @ rng.normal(size=(5, 5))
    new = rng.normal(size=(20, 5))
    moved = new - training.mean(axis=0)
    wanted = np.sqrt(np.einsum("ni,ij,nj->n", moved, np.linalg.inv(np.cov(training.T)), moved))
    np.testing.assert_allclose(measure.fit(training).distance(new), wanted, rtol=0.2)


@pytest.mark.parametrize("what", ["beyond", "beside", "nothing"])
def test_what_training_lacks_is_far(training, what):
    found, usual = measure.fit(training), measure.fit(training).distance(training)
    strange = {"beyond": training + 20, "beside": training.copy(), "nothing": np.zeros_like(training)}[what]
    if what == "beside":
        strange[:, -4:] += 3  # where training hardly varies at all
    assert np.median(found.distance(strange)) > np.quantile(usual, 0.95)


def test_the_same_values_give_the_same_bits(training):
    first, second = (measure.fit(training).to_arrays("x") for _ in range(2))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_constant_values_have_no_direction_and_no_fault():
    found = measure.fit(np.ones((10, 6)))
    assert np.isfinite(found.distance(np.ones((3, 6)))).all()


def test_arrays_of_two_measures_are_refused(training):
    arrays = {**measure.fit(training).to_arrays("x"), "x_centre": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match="different sizes"):
        measure.of_arrays(arrays, "x")
