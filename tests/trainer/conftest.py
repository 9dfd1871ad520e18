"""Fixtures of the commands.

about     what is known of a model that nobody trained: a shift, a calibration, one label without
export    a small cnn with such weights, as an export
"""

from __future__ import annotations

from pathlib import Path

import keras
import pytest

from trainer.models import model_file, networks
from trainer.models.model_file import About
from trainer.results import calibration

SMALL = {"filters": [4, 4], "dense": [8]}
SHIFT = [0.5, 0.25, 0, -0.25, 0.1, 1.0]


@pytest.fixture(scope="session")
def about(rsna_spec) -> About:
    names = rsna_spec.labels.names
    found = calibration.unfitted(names, SHIFT, "no validation split")
    refused = {names[1]: "no positive slice"}
    fitted = calibration.Calibration(names, found.shift, 0.5 * found.slope, found.intercept + 0.125, refused)
    even = {name: {"even": 0.5} for name in names}
    return About(rsna_spec, "f" * 64, {"model": "cnn"}, fitted, even, even, {"parameters": 1, "epoch": 1, "step": 1})


@pytest.fixture(scope="session")
def export(about, tmp_path_factory) -> Path:
    """A small network with weights that nobody trained, which give every slice other probabilities."""
    keras.utils.set_random_seed(3)
    model = networks.build("cnn", about.spec.image.shape, len(about.spec.labels.names), "none", SMALL)
    folder = tmp_path_factory.mktemp("trained") / "run"
    model_file.write(folder / "export", model, about)
    return folder / "export"
