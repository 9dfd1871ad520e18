"""A whole run of the series model on discs that only the neighbours tell from decoys."""

from __future__ import annotations

import json

from trainer.models import model_file


def test_the_context_learns_what_a_slice_cannot_show(series_run):
    """Against the slice model in honest log odds: its part is 0 where the context does not help."""
    about = model_file.read_about(series_run / "export")
    assert about.blend.slices.part.max() >= 0.5
    result = json.loads((series_run / "result.json").read_text())
    assert result["test"]["log_loss"] < 0.29  # 0.286 of the slice model once it is calibrated, 0.367 of the prevalence
    assert model_file.read_about(series_run / "export" / model_file.SLICE).settings["model"] == "cnn"
