"""What a training loop draws its batches from: the slices of a split, or anything that hands them out alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from trainer.data import input_pipeline, sampling
from trainer.data.dataset import Slices
from trainer.data.input_pipeline import EpochPlan, Share


class Feed(Protocol):
    """A split as a run reads it, in samples: what a step takes `batch_size` of.

    `slices`: the split. `samples`: what they are called; `slices_a_sample`: how many slices one holds on average.
    `stratum_counts`: samples of each stratum but `unlabelled`, in stratum order; `counts_of_parts`: of each data set.
    """

    @property
    def slices(self) -> Slices: ...

    @property
    def samples(self) -> str: ...

    @property
    def slices_a_sample(self) -> float: ...

    @property
    def stratum_counts(self) -> Mapping[str, int]: ...

    def counts_of_parts(self, parts: int) -> list[Mapping[str, int]]: ...

    def epoch_size(self, share: Share) -> int:
        """Samples of a whole natural epoch."""
        ...

    def train_batches(self, plan: EpochPlan, share: Share, skip_steps: int = 0) -> Any:
        """`tf.data.Dataset` of replica batches of an epoch, without its first steps; each holds `labels`."""
        ...

    def evaluation_batches(self, batch_size: int, share: Share) -> Any:
        """`tf.data.Dataset` of replica batches with every slice once: `labels`, and `weight` and `row` of each."""
        ...

    def evaluation_steps(self, batch_size: int, share: Share) -> int:
        """Steps of `evaluation_batches`, the same for all workers."""
        ...

    def slices_of_step(self, plan: EpochPlan, share: Share, step: int) -> list[str]:
        """SOP UIDs of the slices that this worker's replicas meet in a step."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class SliceFeed:
    """A `Feed` whose samples are the slices, see `input_pipeline`."""

    slices: Slices
    samples: str = "slices"
    slices_a_sample: float = 1.0

    @property
    def stratum_counts(self) -> Mapping[str, int]:
        return self.slices.stratum_counts

    def counts_of_parts(self, parts: int) -> list[Mapping[str, int]]:
        return sampling.counts_of_parts(self.slices.stratum, self.slices.part, self.slices.spec.labels.strata, parts)

    def epoch_size(self, share: Share) -> int:
        return input_pipeline.epoch_size(self.slices, share)

    def train_batches(self, plan: EpochPlan, share: Share, skip_steps: int = 0) -> Any:
        return input_pipeline.train_batches(self.slices, plan, share, skip_steps)

    def evaluation_batches(self, batch_size: int, share: Share) -> Any:
        return input_pipeline.evaluation_batches(self.slices, batch_size, share)

    def evaluation_steps(self, batch_size: int, share: Share) -> int:
        return input_pipeline.evaluation_steps(self.slices, batch_size, share)

    def slices_of_step(self, plan: EpochPlan, share: Share, step: int) -> list[str]:
        share = Share.whole() if self.slices.random_access else share  # a stream knows its own slices
        return input_pipeline.slices_of_step(self.slices, plan, share, step)
