"""TensorBoard logs of a run."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorboard.plugins.hparams import summary_v2 as hparams_summary  # its api would import tf.keras

from trainer.shell.problems import TrainingFailed

SEND_EVERY_S = 30.0  # to a bucket the file goes as a whole each time; a call of a few steps may take no second
MAX_QUEUE = 10_000  # values; TensorFlow's own queue of ten would send between


class Scalars:
    """Writes TensorBoard logs to a folder or a `gs://` address; opened by the first write.

    Scalars are gathered and sent at most every `SEND_EVERY_S`, the first at once. Every method raises
    `TrainingFailed` in one line when the place cannot be written. `now` gives seconds.
    """

    def __init__(self, place: str | Path, now: Callable[[], float] = time.monotonic) -> None:
        self._place, self._now = str(place), now
        self._writer: Any = None
        self._waiting: list[tuple[int, str, float]] = []
        self._sent_at = -math.inf

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log each value under its name at `step`."""
        self._waiting += [(step, name, float(value)) for name, value in values.items()]
        if self._now() - self._sent_at >= SEND_EVERY_S:
            self._send()

    def images(self, step: int, name: str, images: npt.NDArray[np.uint8]) -> None:
        """Log all of `images`, uint8 [n, height, width, 3], under one name at `step`, and send them."""
        with self._open() as summary:
            summary.image(name, images, step=step, max_outputs=len(images))

    def settings(self, values: Mapping[str, Any]) -> None:
        """Log what decides the run, for the tab HParams; settings within settings get dotted names, and send it."""
        with self._open():
            hparams_summary.hparams(flat(values))

    def close(self) -> None:
        """Send what waits and finish the file; a later write begins another."""
        try:
            if self._waiting:
                self._send()
        finally:
            writer, self._writer, self._sent_at = self._writer, None, -math.inf
            if writer is not None:
                with self._told():
                    writer.close()

    def _send(self) -> None:
        waiting, self._waiting, self._sent_at = self._waiting, [], self._now()
        with self._open() as summary:
            for step, name, value in waiting:
                summary.scalar(name, value, step=step)

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        """`tf.summary` with the log as its target; flushed at the end."""
        import tensorflow as tf

        with self._told():
            if self._writer is None:
                self._writer = tf.summary.create_file_writer(self._place, max_queue=MAX_QUEUE)
            with self._writer.as_default():
                yield tf.summary

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Tell a failed write in one line."""
        import tensorflow as tf

        try:
            yield
        except tf.errors.OpError as error:
            reason = re.sub(r"\{\{.*?\}\} *", "", error.message).strip().splitlines()[0]
            raise TrainingFailed(
                f"cannot write TensorBoard logs to {self._place}: {reason}; make it writable and run it again"
            ) from error


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, bool | int | float | str]:
    """Each value under its dotted name, as what TensorBoard compares: flags, numbers, and text for all others."""
    found: dict[str, bool | int | float | str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return found
