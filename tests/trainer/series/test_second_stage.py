"""The second stage as a command, on made-up slices of 32 px: it learns, resumes to the bit, leaves a whole model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_runs import flags, main, one_line, train

from trainer.models import model_file
from trainer.training.run_dir import RunDir

pytestmark = pytest.mark.slow

SMALL = {
    "architecture.width": 64,
    "architecture.units": 32,
    "architecture.layers": 1,
    "batch_size": 8,
    "accumulate": 4,
    "learning_rate": 0.001,
    "schedule": "steps",
    "warmup_epochs": 0,
    "steps_per_epoch": 2,
    "rotate_deg": 5,
}


@pytest.fixture(scope="module")
def stages(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a slice run and of a series run on top of it, a few steps each."""
    folder = tmp_path_factory.mktemp("stages")
    slices, context = folder / "slice_run", {"width": 64, "units": 32, "layers": 1}
    small = {"steps_per_epoch": 0, "steps_per_call": 0}
    convolutions = {"architecture__filters": [8, 16], "architecture__dense": [32]}
    assert train(tiny_dataset, slices, epochs=3, **convolutions, **small) == 0
    of_series = {f"architecture__{name}": value for name, value in context.items()}
    given = {"epochs": 3, "batch_size": 8, "learning_rate": 0.005, **of_series, **small}
    assert train(tiny_dataset, folder / "series_run", "--slice_run", str(slices), model="series", **given) == 0
    return folder


def run(data_dir, job_dir, slice_run, **settings):
    given = flags(data_dir, job_dir, {**SMALL, **settings})
    return main(["--config", "series_end_to_end", "--slice_run", str(slice_run), *given])


def weights(folder):
    about = model_file.read_about(folder)
    return [variable.value.numpy() for variable in model_file.load_model(folder, about).weights]


@pytest.mark.long
def test_it_learns_resumes_to_the_bit_and_leaves_a_whole_model(stages, tiny_dataset, tmp_path):
    slice_run, series_run = stages / "slice_run", stages / "series_run"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(tiny_dataset, whole, slice_run, epochs=3, weights=str(series_run)) == 0
    for epochs in (1, 3):
        assert run(tiny_dataset, parts, slice_run, epochs=epochs, weights=str(series_run)) == 0
    history = RunDir(whole).read_history()
    assert RunDir(parts).read_history() == history
    assert history[-1]["loss"] < history[0]["loss"]
    for folder in ("export", f"export/{model_file.SLICE}"):
        for one, other in zip(weights(whole / folder), weights(parts / folder), strict=True):
            np.testing.assert_array_equal(one, other)
    before, after = weights(slice_run / "export"), weights(whole / "export" / model_file.SLICE)
    assert any((one != other).any() for one, other in zip(before, after, strict=True))
    assert np.isfinite(json.loads((whole / "result.json").read_text())["test"]["log_loss"])
    about = model_file.read_about(whole / "export" / model_file.SLICE)
    assert not len(about.odds.drawn)  # series are weighed back to nature
    assert not (whole / "export" / model_file.SLICE / "vectors").exists()
    for split in ("validation", "test"):  # made once, and still those of the weights that went out
        index = json.loads((whole / "slice_model" / "vectors" / split / "index.json").read_text())
        assert index["weights"] == model_file.digest(whole / "export" / model_file.SLICE)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 256, "accumulate": 1}, "256 series at once"),
        ({"weights": "no_such_run"}, "no_such_run does not exist"),
        ({"architecture.units": 8, "weights": "series_run"}, "no series run with this architecture"),
    ],
)
def test_what_it_refuses(settings, words, stages, tiny_dataset, tmp_path, capsys):
    if settings.get("weights") == "series_run":
        settings = {**settings, "weights": str(stages / "series_run")}
    assert run(tiny_dataset, tmp_path / "run", stages / "slice_run", epochs=1, **settings) == 2
    assert words in one_line(capsys)
