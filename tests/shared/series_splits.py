"""Splits of made-up series and their vectors, in memory: no shards, no slice model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ich_tfrecords import spec
from ich_tfrecords.labels.table import stratum_indices
from trainer.data import sampling, series
from trainer.data.augment import Augmentation
from trainer.data.dataset import Slices
from trainer.data.input_pipeline import EpochPlan
from trainer.data.series_feed import Blur, SeriesFeed

SPEC = spec.load("rsna_ich")
STRATA = SPEC.labels.strata
DIM = 5
AS_IT_IS = Blur(0.0, 0.0, 0.0)
NONE, EPIDURAL, SUBDURAL = (0,) * 6, (1, 1, 0, 0, 0, 0), (1, 0, 0, 0, 0, 1)  # labels of a slice
UNKNOWN, NOT_EPIDURAL = (-1,) * 6, (-1, 0, -1, -1, -1, -1)


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Vectors float16 [n, dim] and logits float32 [n, L] of slices, as `vectors.Vectors` hands them out."""

    vectors: np.ndarray
    said: np.ndarray

    @property
    def dim(self) -> int:
        return self.vectors.shape[1]

    def rows(self, numbers: Any) -> np.ndarray:
        return self.vectors[numbers]

    def logits(self, numbers: Any) -> np.ndarray:
        return self.said[numbers]


def slices_of(labels: Sequence[Sequence[tuple[int, ...]]], seed: int = 0) -> Slices:
    """The slices of series with these labels, one series a patient, about 5 mm apart; `seed`: of their order."""
    values = np.array([one for of_series in labels for one in of_series], np.int8).reshape(-1, len(SPEC.labels.names))
    whose = np.repeat(np.arange(len(labels)), [len(of_series) for of_series in labels])
    rng = np.random.default_rng(0)
    position = np.concatenate([np.zeros(0), *(5.0 * np.arange(len(one)) + 2 * rng.random(len(one)) for one in labels)])
    order = np.random.default_rng(seed).permutation(len(values))
    names = [f"{number:04d}" for number in whose[order]]
    uids = [f"ID_{number:05d}" for number in order]
    columns = {**dict.fromkeys(series.KEY, names), "position_mm": position[order], "sop_uid": uids}
    columns |= {"split": ["train"] * len(order), "slice_index": order}
    nothing = np.zeros(len(order), np.int64)
    return Slices(
        place="made up", spec=SPEC, names=("shard",), paths=("shard",), shard=nothing.astype(np.int32),
        record=np.arange(len(order), dtype=np.int32), offset=nothing, length=nothing, labels=values[order],
        split="train", random_access=True, stratum=stratum_indices(values[order], SPEC.labels),
        part=np.zeros(len(order), np.int8), study_labels=None, table=pa.table(columns),
    )  # fmt: skip


def feed_of(
    labels: Sequence[Sequence[tuple[int, ...]]], blur: Blur = AS_IT_IS, seed: int = 0, **changes: Any
) -> SeriesFeed:
    """A feed of them with two views; the first number of a vector is its row, negative in mirror images."""
    slices = slices_of(labels, seed)
    rng = np.random.default_rng(1)
    plain = rng.normal(size=(len(slices), DIM)).astype(np.float16)
    plain[:, 0] = 1 + np.arange(len(slices))
    said = rng.normal(size=(len(slices), len(SPEC.labels.names))).astype(np.float32)
    views = [Rows(plain, said), Rows(-plain, -said)]
    return SeriesFeed(slices, series.plan(slices.table), views, blur, **changes)


def plan_of(feed: SeriesFeed, policy: str = "natural", size: int = 0, **changes: Any) -> EpochPlan:
    """An epoch of the series of a feed, in batches of four."""
    explicit = changes.pop("explicit", {})
    shares = sampling.proportions(policy, feed.stratum_counts, explicit)
    size = size or sum(feed.stratum_counts.values())
    plan = EpochPlan(policy, shares, 7, 0, size, batch_size=4, quantum=1, augmentation=Augmentation(False, 0.0, 0.0))
    return dataclasses.replace(plan, **changes)
