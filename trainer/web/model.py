"""The model behind the server: what is known of it, and the process that holds it."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from trainer.models.model_file import About
from trainer.prediction.map_on_slice import MapOnSlice
from trainer.worklist.spool import Entry


class Reads(Protocol):
    """What is asked of `trainer.worklist.worker.Worker`. `fault`: why no model can be had any more; "" as long as."""

    fault: str

    def wake(self) -> None:
        """Look for uploads that wait."""

    def map(self, entry: Entry, place: int, file: str) -> MapOnSlice:
        """The map of a slice, as predictions.csv names it. Raises `TrainerError`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A process that reads, and what is known of its model; `digest`: sha256 of its weights."""

    process: Reads
    about: About
    digest: str
