"""TensorBoard logs: what is written, when it is sent, and what happens when it cannot be."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import json_format
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from trainer.shell.problems import TrainingFailed
from trainer.training.scalars import Scalars

NAN = float("nan")


def events(folder: Path) -> dict[str, list]:
    """Steps and values of each tag in a folder of TensorBoard logs."""
    tf = pytest.importorskip("tensorflow")
    found: dict[str, list] = {}
    for path in sorted(folder.glob("events.*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, tf.make_ndarray(value.tensor)))
    return found


def test_scalars_and_images_are_in_the_log(tmp_path):
    log = Scalars(tmp_path / "tensorboard")
    assert not (tmp_path / "tensorboard").exists()  # nothing before the first write
    log.close()
    log.write(3, {"loss": np.float32(0.5), "val/auc": NAN})
    images = np.zeros((5, 4, 6, 3), np.uint8)
    images[..., 0] = 200
    log.images(7, "inputs", images)
    log.close()
    found = events(tmp_path / "tensorboard")
    assert found["loss"] == [(3, 0.5)]
    assert math.isnan(found["val/auc"][0][1])
    (step, (width, height, *pngs)), tf = found["inputs"][0], pytest.importorskip("tensorflow")
    assert (step, width, height, len(pngs)) == (7, b"6", b"4", 5)
    assert (tf.io.decode_png(pngs[4]).numpy() == images[4]).all()
    log.write(4, {"loss": 0.25})
    log.close()
    assert sorted(step for step, _ in events(tmp_path / "tensorboard")["loss"]) == [3, 4]  # a file each


def test_scalars_are_sent_at_once_first_and_then_gathered(tmp_path):
    now = iter([0, 0, *range(1, 30), 31, 31]).__next__
    log = Scalars(tmp_path, now)
    seen = []
    for step in range(31):
        log.write(step, {"loss": 0.5, "rate": step})
        seen.append(len(events(tmp_path)["rate"]))
    assert seen == [1] * 30 + [31]
    assert [(step, float(value)) for step, value in events(tmp_path)["rate"]] == [(step, step) for step in range(31)]


def test_runs_can_be_compared_in_the_tab_of_settings(tmp_path):
    """By TensorBoard's own reader of that tab: a row a run, with its settings and what it reached."""
    for name, rate in (("slow", 0.001), ("fast", 0.01)):
        log = Scalars(tmp_path / name)
        log.settings({"model": "cnn", "flip": True, "architecture": {"filters": [4, 4], "dropout": 0.5}, "rate": rate})
        log.write(1, {"val_auc": 0.9 + rate})
        log.close()
    rows = {one.sessions[0].name: one for one in session_groups(tmp_path)}
    assert set(rows) == {"slow", "fast"}
    for name, rate in (("slow", 0.001), ("fast", 0.01)):
        found = {key: json_format.MessageToDict(value) for key, value in rows[name].hparams.items()}
        wanted = {"model": "cnn", "flip": True, "architecture.filters": "[4, 4]", "architecture.dropout": 0.5}
        assert found == wanted | {"rate": rate}
        assert [(one.name.tag, round(one.value, 6)) for one in rows[name].metric_values] == [("val_auc", 0.9 + rate)]


def session_groups(folder: Path) -> list:
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(folder))
    context = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    asked = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=100)
    asked.allowed_statuses.extend([0, 1, 2, 3])
    request, experiment = RequestContext(), ""
    runs = context.hparams_metadata(request, experiment)
    found = context.experiment_from_metadata(request, experiment, True, runs, None)
    asked.col_params.extend(api_pb2.ColParams(metric=one.name) for one in found.metric_infos)
    return list_session_groups.Handler(request, context, experiment, asked).run().session_groups


def test_logs_that_cannot_be_written_are_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(TrainingFailed, match=r"cannot write TensorBoard logs to .*file/logs") as caught:
        Scalars(tmp_path / "file" / "logs").write(1, {"loss": 1.0})
    assert "\n" not in str(caught.value)
