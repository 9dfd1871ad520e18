"""Where a run stands: everything a checkpoint holds beside the variables, as plain values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.training import metrics
from trainer.training.steps import SUMS


@dataclasses.dataclass
class State:
    """Steps done, sums of the epoch under way (float64, in the order of `SUMS`), rows of the finished epochs.

    `step` counts over the whole run, `step_in_epoch` within `epoch`, which counts finished epochs. `best`:
    value, epoch and step of the best epoch so far, or empty. `waited`: epochs since that had a value.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    sums: npt.NDArray[np.float64] = dataclasses.field(default_factory=lambda: np.zeros(len(SUMS)))
    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)
    best: dict[str, float] = dataclasses.field(default_factory=dict)
    waited: int = 0

    def add(self, sums: npt.NDArray[np.float64]) -> None:
        """Count the steps of a call: `sums` float64 [steps, 6]."""
        for row in sums:  # one after the other: the sum must not depend on how steps fall into calls
            self.sums = self.sums + row
        self.step += len(sums)
        self.step_in_epoch += len(sums)

    def close_epoch(self, row: dict[str, float], monitor: str) -> bool:
        """Count the epoch as finished with its `row`; returns whether `monitor` is the best so far.

        An epoch in which `monitor` has no value does not count as waiting for a better one.
        """
        self.rows.append(row)
        self.epoch, self.step_in_epoch, self.sums = self.epoch + 1, 0, np.zeros(len(SUMS))
        if is_better(row.get(f"val_{monitor}"), self.best.get("value"), monitor):
            self.best = {"value": row[f"val_{monitor}"], "epoch": self.epoch, "step": self.step}
            self.waited = 0
            return True
        if has_value(row, monitor):
            self.waited += 1
        return False

    def to_dict(self) -> dict[str, Any]:
        """JSON values; floats keep every bit."""
        return {**dataclasses.asdict(self), "sums": self.sums.tolist()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> State:
        """State of `to_dict`'s values."""
        fields = {field.name: values[field.name] for field in dataclasses.fields(State)}
        return State(**{**fields, "sums": np.asarray(values["sums"], np.float64)})


def has_value(row: Mapping[str, float], monitor: str) -> bool:
    """Whether the metric is a number in the row of an epoch."""
    return not math.isnan(row.get(f"val_{monitor}", math.nan))


def is_better(value: float | None, best: float | None, monitor: str) -> bool:
    """Whether `value` of the metric is better than `best`; anything known is better than nothing, nan never is."""
    if value is None or math.isnan(value):
        return False
    return best is None or metrics.better(monitor) * (value - best) > 0


def means(sums: npt.NDArray[np.float64]) -> dict[str, float]:
    """Loss, competition log loss and accuracy of added sums; nan where no label was known."""
    values = dict(zip(SUMS, sums.tolist()))
    return {
        "loss": _ratio(values["loss"], values["loss_weight"]),
        "log_loss": _ratio(values["log_loss"], values["log_loss_weight"]),
        "accuracy": _ratio(values["correct"], values["known"]),
    }


def _ratio(total: float, weight: float) -> float:
    return total / weight if weight else math.nan
