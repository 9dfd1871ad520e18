"""TensorBoard logs: what is written, when it is sent, and what happens when it cannot be."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

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


def test_logs_that_cannot_be_written_are_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(TrainingFailed, match=r"cannot write TensorBoard logs to .*file/logs") as caught:
        Scalars(tmp_path / "file" / "logs").write(1, {"loss": 1.0})
    assert "\n" not in str(caught.value)
