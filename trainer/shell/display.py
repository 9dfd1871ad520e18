"""How far training is: a bar on a terminal, a line every ten seconds elsewhere, and a line for each epoch."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from ich_tfrecords.views.progress_line import BAR_EVERY_S, CLEAR, LINE_EVERY_S, bar, clock, count

RATE_MEMORY_S = 60.0  # a rate over the last minute or so follows a backbone that is unfrozen

# Key of an epoch's row -> how it is told. Keys that a row lacks are left out.
EPOCH_NUMBERS: Mapping[str, Callable[[float], str]] = {
    "loss": lambda value: f"loss {value:.4f}",
    "val_log_loss": lambda value: f"val_log_loss {value:.4f}",
    "val_auc_any": lambda value: f"val_auc_any {value:.4f}",
    "learning_rate": lambda value: f"learning rate {value:.2e}",
    "images_per_s": lambda value: f"{count(value)} images/s",
    "seconds": lambda value: clock(value),
}


def progress_line(
    place: str, step: int, steps: int, loss: float | None, images_per_s: float, left_s: float, run_left_s: float
) -> str:
    """`epoch 3/10 [####....] 120/350, loss 0.1234, 820 images/s, 0:17 left (2:40 in all)`.

    `left_s` and `run_left_s`: seconds left of the epoch and of the run; not used while `images_per_s` is 0.
    """
    parts = [f"{place} {bar(step, steps)} {step:,}/{steps:,}"]
    if loss is not None:
        parts.append(f"loss {loss:.4f}")
    if images_per_s > 0:
        parts += [f"{count(images_per_s)} images/s", f"{clock(left_s)} left ({clock(run_left_s)} in all)"]
    else:
        parts.append("time left not known yet")
    return ", ".join(parts)


def evaluation_line(place: str, done: int, total: int) -> str:
    """`epoch 3/10 [####....] evaluating, 20/44 batches`."""
    return f"{place} {bar(done, total)} evaluating, {done:,}/{total:,} batches"


def epoch_line(place: str, row: Mapping[str, float]) -> str:
    """`epoch 3/10: loss 0.1234, val_log_loss 0.2345, ...`; numbers that `row` lacks are left out."""
    return f"{place}: " + ", ".join(text(row[key]) for key, text in EPOCH_NUMBERS.items() if key in row)


class Rate:
    """Slices a second over the last minute or so: old seconds and their slices fade together."""

    def __init__(self) -> None:
        self._slices = self._seconds = 0.0

    def add(self, slices: float, seconds: float) -> None:
        """Count `slices` done in `seconds`."""
        kept = math.exp(-seconds / RATE_MEMORY_S)
        self._slices = self._slices * kept + slices
        self._seconds = self._seconds * kept + seconds

    @property
    def per_s(self) -> float:
        """Slices a second; 0 while nothing is known."""
        return self._slices / self._seconds if self._seconds > 0 else 0.0


class Display:
    """Shows a training run on `stream`. Epochs and steps count from 0 here; people read them from 1.

    The rate counts the slices of this process only, so a resumed run does not count what it skips, and it
    leaves out the first call, which compiles. `now` gives seconds.
    """

    def __init__(
        self,
        stream: TextIO,
        epochs: int,
        steps_per_epoch: int,
        batch_size: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream, self._now, self._live = stream, now, stream.isatty()
        self._epochs, self._steps, self._batch_size = epochs, steps_per_epoch, batch_size
        self._epoch = self._step = 0
        self._loss: float | None = None
        self._compiled = False
        self._rate = Rate()
        self._epoch_slices = self._epoch_s = self._pause_s = 0.0
        self._begin = self._last = now()
        self._ended: float | None = None  # when the last epoch's training ended
        self._shown_at = -math.inf if self._live else now()
        self._bar = ""  # the text of the bar that stands on the terminal

    def start(self, epoch: int, step_in_epoch: int) -> None:
        """An epoch begins, or goes on at a step after a resume."""
        self._begin = self._last = self._now()
        if self._ended is not None:
            self._pause_s = self._begin - self._ended
        self._epoch, self._step, self._loss = epoch, step_in_epoch, None
        self._epoch_slices = self._epoch_s = 0.0
        self._show(self._progress(), must=False)

    def update(self, epoch: int, step_in_epoch: int, loss: float) -> None:
        """A call of one or more steps is done: `step_in_epoch` steps of `epoch` lie behind, with this mean loss."""
        now = self._now()
        if self._compiled:
            slices = (step_in_epoch - self._step) * self._batch_size
            self._rate.add(slices, now - self._last)
            self._epoch_slices += slices
            self._epoch_s += now - self._last
        self._compiled = True
        self._epoch, self._step, self._loss, self._last = epoch, step_in_epoch, loss, now
        if step_in_epoch >= self._steps:
            self._ended = now
        self._show(self._progress(), must=step_in_epoch >= self._steps)

    def evaluating(self, done: int, total: int) -> None:
        """`done` of `total` batches of an evaluation are done."""
        self._show(evaluation_line(self._place, done, total), must=self._live and done >= total)

    def epoch_done(self, row: Mapping[str, float]) -> None:
        """The epoch's line; rate and seconds are the display's own where `row` (see `EPOCH_NUMBERS`) has none."""
        own = {"seconds": self._now() - self._begin}
        if self._epoch_s > 0:
            own["images_per_s"] = self._epoch_slices / self._epoch_s
        self._bar, text = "", epoch_line(self._place, {**own, **row})
        self.note(text)

    def note(self, text: str) -> None:
        """A line of its own; the bar goes on below it."""
        self._write(f"{CLEAR}{text}\n{self._bar}" if self._live else f"{text}\n")

    def close(self) -> None:
        """Leave the bar as it stands, so that what others write begins on a line of its own."""
        if self._bar:
            self._write("\n")
        self._bar = ""

    @property
    def _place(self) -> str:
        return f"epoch {self._epoch + 1}/{self._epochs}"

    def _progress(self) -> str:
        left_s, run_left_s = self._left()
        rate = self._rate.per_s
        return progress_line(self._place, self._step, self._steps, self._loss, rate, left_s, run_left_s)

    def _left(self) -> tuple[float, float]:
        """Seconds left of the epoch's training, and of the run with an evaluation after each epoch."""
        if not self._rate.per_s:
            return 0.0, 0.0
        step_s = self._batch_size / self._rate.per_s
        left_s = max(0, self._steps - self._step) * step_s
        epochs_left = max(0, self._epochs - self._epoch - 1)
        return left_s, left_s + epochs_left * self._steps * step_s + (epochs_left + 1) * self._pause_s

    def _show(self, text: str, must: bool) -> None:
        """Draw the bar or write the line if it is time; a full bar is always drawn."""
        now = self._now()
        due = now - self._shown_at >= (BAR_EVERY_S if self._live else LINE_EVERY_S)
        if not due and not (must and self._live):
            return
        self._shown_at = now
        if self._live:
            width = _columns(self._stream)
            self._bar = text if width is None else text[: width - 1]  # a wrapped line could not be drawn over
            self._write(f"{CLEAR}{self._bar}")
        else:
            self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _columns(stream: TextIO) -> int | None:
    """Width of the terminal behind `stream`, or None where it has none to tell."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):  # no descriptor, or one that is no terminal
        return None
