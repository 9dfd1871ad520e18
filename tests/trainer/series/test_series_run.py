"""A whole run of the series model on discs that only the neighbours tell from decoys."""

from __future__ import annotations

import json

from trainer.models import model_file


def test_the_context_learns_what_a_slice_cannot_show(series_run):
    result, slices = (
        json.loads((run / "result.json").read_text()) for run in (series_run, series_run.parent / "slice_run")
    )
    assert result["test"]["log_loss"] < 0.9 * slices["test"]["log_loss"]
    about = model_file.read_about(series_run / "export")
    assert about.blend.slices[0] > 0.5
    assert model_file.read_about(series_run / "export" / "slice").settings["model"] == "cnn"
