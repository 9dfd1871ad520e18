"""Fixtures of the web application.

known     what is known of a model, without one and without TensorFlow
server    an application in this process, its client, and a model that reads when it is woken
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import web_server
from web_server import Served

from trainer.models.model_file import About
from trainer.results import calibration


@pytest.fixture(scope="session")
def known(rsna_spec) -> About:
    names = rsna_spec.labels.names
    fitted = calibration.unfitted(names, [0.0] * len(names), "no validation split")
    even = {name: {"even": 0.5} for name in names}
    return About(rsna_spec, "f" * 64, {"model": "cnn"}, fitted, even, even, {"parameters": 1, "epoch": 1, "step": 1})


@pytest.fixture
def server(tmp_path, known) -> Iterator[Served]:
    with web_server.served(tmp_path / "spool", known) as made:
        yield made
