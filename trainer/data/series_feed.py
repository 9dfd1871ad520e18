"""Batches of whole series for a network that sees a slice among its neighbours: vectors, places, mask and labels.

A sample is a series; what a step trains on follows from (seed, epoch, step) alone, as in `input_pipeline`. Series of a
batch are padded to the longest of them, and what pads counts nowhere.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import tensorflow as tf

from ich_tfrecords.labels.table import stratum_indices
from ich_tfrecords.spec import UNLABELLED
from trainer.data import batches, input_pipeline, sampling, series
from trainer.data.dataset import Slices
from trainer.data.input_pipeline import EpochPlan, Share
from trainer.data.series import Series

Int64 = npt.NDArray[np.int64]
COIN = 1 << 63  # half of all words are below

INPUTS = ("vectors", "place", "mask")  # of the network


class Rows(Protocol):
    """Vectors and logits of slices by the numbers of their rows, such as `vectors.Vectors`."""

    dim: int

    def rows(self, numbers: Int64) -> npt.NDArray[np.float16]: ...

    def logits(self, numbers: Int64) -> npt.NDArray[np.float32]: ...


@dataclasses.dataclass(frozen=True)
class Blur:
    """How vectors are changed while training: noise in deviations of a vector's numbers, and parts left out.

    `dropout`: of a vector's numbers. `slice_dropout`: of the slices of a series, which lie there as a gap.
    """

    noise: float
    dropout: float
    slice_dropout: float


@dataclasses.dataclass(frozen=True, eq=False)
class SeriesFeed:
    """A `Feed` whose samples are the series of a split.

    `series`: the plan of `slices`. `views`: vectors of the slices, and of their mirror images where those are drawn.
    `length`: what every series is padded to; 0: to the longest of its batch.
    """

    slices: Slices
    series: Series
    views: Sequence[Rows]
    blur: Blur
    length: int = 0
    samples: str = "series"

    @property
    def slices_a_sample(self) -> float:
        return len(self.slices) / len(self.series)

    @functools.cached_property
    def labels(self) -> npt.NDArray[np.int8]:
        """int8 [k, L]: of the study as a whole, else 1 where a slice is positive, 0 where all are negative, else -1."""
        ordered, starts = self.slices.labels[self.series.rows], self.series.offsets[:-1]
        most, least = (extreme.reduceat(ordered, starts, axis=0) for extreme in (np.maximum, np.minimum))
        found = np.where(most == 1, most, least)
        return np.where(self.study >= 0, self.study, found).astype(np.int8)

    @functools.cached_property
    def study(self) -> npt.NDArray[np.int8]:
        """int8 [k, L]: what is known of the study as a whole; -1 too where a positive one has several series here.

        Such a study may bleed in any of them: it is the same head, but a series need not show all of it.
        """
        if self.slices.study_labels is None:
            return np.full((len(self.series), len(self.slices.spec.labels.names)), -1, np.int8)
        first = self.series.rows[self.series.offsets[:-1]]
        found = self.slices.study_labels[first]
        uids = self.slices.table["study_uid"].take(pa.array(first)).to_pylist()
        times = Counter(uids)
        several = np.array([times[uid] > 1 for uid in uids], bool)
        return np.where(several[:, None] & (found == 1), -1, found).astype(np.int8)

    @functools.cached_property
    def strata(self) -> npt.NDArray[np.int8]:
        """int8 [k]: index into `spec.labels.strata`, by the rarest label of the series; `unlabelled` knows nothing."""
        labels = self.slices.spec.labels
        found = stratum_indices(np.maximum(self.labels, 0), labels)
        known = (self.slices.labels[self.series.rows] >= 0).any(axis=1)
        known = np.maximum.reduceat(known, self.series.offsets[:-1])
        lost = ~(known | (self.labels >= 0).any(axis=1))
        return np.where(lost, labels.strata.index(UNLABELLED), found).astype(np.int8)

    @functools.cached_property
    def part(self) -> npt.NDArray[np.int8]:
        """int8 [k]: which of `Dataset.parts` a series is of."""
        return self.slices.part[self.series.rows[self.series.offsets[:-1]]]

    def counts_of_parts(self, parts: int) -> list[Mapping[str, int]]:
        return sampling.counts_of_parts(self.strata, self.part, self.slices.spec.labels.strata, parts)

    @property
    def stratum_counts(self) -> Mapping[str, int]:
        return sampling.counted(self.strata, self.slices.spec.labels.strata)

    def epoch_size(self, share: Share) -> int:
        return sum(self.stratum_counts.values())

    def train_batches(self, plan: EpochPlan, share: Share, skip_steps: int = 0) -> Any:
        """Replica batches of an epoch: `INPUTS`, `labels` int64 [b, T, L], -1 behind the mask, `study` int64 [b, L],
        `share` float32 [b].

        `share`: what a series counts in the loss, the inverse of how often its stratum is drawn beside nature, so that
        log odds stay those of nature however series are drawn.
        """
        numbers = self._order(plan)
        chosen: dict[str, npt.NDArray[Any]] = {
            "series": numbers,
            "position": np.arange(len(numbers)),
            "study": self.study[numbers].astype(np.int64),
            "share": self._shares(plan)[numbers],
        }
        # each batch by the lengths of its series, so that its parts are padded little
        lengths = self.series.lengths[numbers]
        parts = [
            np.take_along_axis(part, np.argsort(lengths[part], axis=1, kind="stable"), axis=1)
            for part in plan.positions(share, skip_steps)
        ]
        inputs = batches.inputs_of({**chosen, **self._more(plan)}, parts)
        found = self._gathered(inputs, functools.partial(self._drawn, plan))
        blur = functools.partial(self._blurred, plan)
        return batches.read_ahead(found.map(blur, num_parallel_calls=2, deterministic=True))

    def evaluation_batches(self, batch_size: int, share: Share) -> Any:
        """Replica batches of every series once: `INPUTS`, and `labels`, `row` int64 and `weight` float32 [b, T] ..."""
        size = -(-batch_size // share.replicas)
        begin, end = (len(self.series) * part // share.replicas for part in (share.first, share.first + share.count))
        padded = self.evaluation_steps(batch_size, share) * size * share.count
        numbers = np.r_[np.arange(begin, end), np.full(padded - (end - begin), -1)]
        inputs = batches.inputs_of({"series": numbers}, [np.arange(padded).reshape(-1, size)])
        return batches.read_ahead(self._gathered(inputs, self._whole))

    def evaluation_steps(self, batch_size: int, share: Share) -> int:
        return input_pipeline.step_count(len(self.series), -(-batch_size // share.replicas), share)

    def slices_of_step(self, plan: EpochPlan, share: Share, step: int) -> list[str]:
        first, *_ = plan.positions(Share.whole(), step)
        numbers = self._order(plan)[first[0]]
        rows = np.concatenate([self.series[number] for number in numbers])
        return self.slices.table["sop_uid"].take(pa.array(rows)).to_pylist()

    def _order(self, plan: EpochPlan) -> Int64:
        return plan.order(self.strata, self.part, self.slices.spec.labels.strata)

    def _shares(self, plan: EpochPlan) -> npt.NDArray[np.float32]:
        """float32 [k], mean 1 over the series as they are drawn; of each data set where those have shares."""
        names = self.slices.spec.labels.strata
        if not plan.of_parts:
            return _levelled(plan.shares, self.stratum_counts, names)[self.strata]
        counts = self.counts_of_parts(len(plan.of_parts))
        levelled = [
            _levelled(shares, of_part, names, sum(shares.values())) for shares, of_part in zip(plan.of_parts, counts)
        ]
        return np.stack(levelled)[self.part, self.strata]

    # what a batch holds

    def _more(self, plan: EpochPlan) -> dict[str, npt.NDArray[Any]]:
        """What else `_blurred` takes of each position of the epoch."""
        return {}

    @property
    def _shown(self) -> tuple[str, Any, tuple[int, ...]]:
        """Name, dtype and last dimensions of what is shown of a slice."""
        return "vectors", tf.float16, (self.views[0].dim,)

    def _show(self, rows: Int64, mirrored: bool) -> npt.NDArray[Any]:
        return self.views[int(mirrored)].rows(rows)

    def _gathered(self, inputs: Any, read: Any) -> Any:
        """Batches `inputs` of columns with `series`, and what `read` makes of the columns: names and arrays."""
        names, dtypes, tails = zip(*self._fields)

        def gather(columns: dict[str, Any]) -> dict[str, Any]:
            given = [columns[name] for name in sorted(columns)]
            found = tf.numpy_function(lambda *values: read(**dict(zip(sorted(columns), values))), given, dtypes, False)
            batch = columns["series"].shape
            shaped = [tf.ensure_shape(one, [*batch, self.length or None, *tail]) for one, tail in zip(found, tails)]
            return {**columns, **dict(zip(names, shaped))}

        # in one thread: several would wait for Python's lock
        return inputs.map(gather, num_parallel_calls=1, deterministic=True)

    @property
    def _fields(self) -> list[tuple[str, Any, tuple[int, ...]]]:
        """Name, dtype and last dimensions of what a batch holds of its slices, behind [b, T]."""
        labels = len(self.slices.spec.labels.names)
        numbers = [("row", tf.int64, ()), ("weight", tf.float32, ()), ("labels", tf.int64, (labels,))]
        inputs = [self._shown, ("place", tf.float32, (3,)), ("mask", tf.bool, ())]
        return [*inputs, *numbers]

    def _whole(self, series: Int64) -> list[npt.NDArray[Any]]:
        """A batch of the series of these numbers; -1 is none, and pads."""
        return self._padded([self.series[number] if number >= 0 else np.empty(0, np.int64) for number in series], None)

    def _drawn(self, plan: EpochPlan, series: Int64, position: Int64, **columns: Any) -> list[npt.NDArray[Any]]:
        """A batch for training: slices left out by `blur`, and half of the series mirrored where the plan flips."""
        rows = [self._kept(plan, self.series[number], at) for number, at in zip(series, position)]
        if not plan.augmentation.flip:
            return self._padded(rows, None)
        words = sampling.random_words(f"mirror:{plan.epoch}", plan.seed, 0, plan.size)
        return self._padded(rows, words[position] < COIN)

    def _kept(self, plan: EpochPlan, rows: Int64, position: int) -> Int64:
        """The rows of a series that `slice_dropout` leaves in the epoch, one at least."""
        if not self.blur.slice_dropout:
            return rows
        words = sampling.random_words(f"slices:{plan.epoch}:{position}", plan.seed, 0, len(rows))
        kept = words >= int(self.blur.slice_dropout * 2**64)
        return rows[kept] if kept.any() else rows[:1]

    def _padded(self, parts: Sequence[Int64], mirrored: npt.NDArray[np.bool_] | None) -> list[npt.NDArray[Any]]:
        """Arrays in the order of `_fields` of the rows of each series."""
        longest = self.length or max(1, *map(len, parts))
        made = [np.zeros((len(parts), longest, *tail), dtype.as_numpy_dtype) for _, dtype, tail in self._fields]
        shown, places, mask, row, weight, labels = made
        labels -= 1
        for at, rows in enumerate(parts):
            if not len(rows):
                continue
            filled = (at, slice(len(rows)))
            shown[filled] = self._show(rows, mirrored is not None and bool(mirrored[at]))
            places[filled] = series.place(self._position_mm[rows])
            mask[filled], row[filled], weight[filled] = True, rows, 1.0
            labels[filled] = self.slices.labels[rows]
        return made

    @functools.cached_property
    def _position_mm(self) -> npt.NDArray[np.float64]:
        return self.slices.table["position_mm"].to_numpy()

    def _blurred(self, plan: EpochPlan, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch for training: its vectors `blurred`."""
        vectors = tf.cast(batch["vectors"], tf.float32)
        vectors = tf.cast(blurred(vectors, seeds(plan, batch["position"]), self.blur), tf.float16)
        kept = {name: batch[name] for name in ("place", "mask", "labels", "study", "share")}
        return {"vectors": tf.ensure_shape(vectors, batch["vectors"].shape), **kept}


def _levelled(
    shares: Mapping[str, float], counts: Mapping[str, int], names: Sequence[str], whole: float = 1.0
) -> npt.NDArray[np.float32]:
    """float32 [strata], what a series of each counts so that all do alike, mean 1 as they are drawn by `shares`.

    `whole`: the sum of the shares.
    """
    drawn, every = sampling.weights(shares, counts), sum(counts.values())
    return np.array([whole / (drawn[name] * every) if drawn.get(name) else 0.0 for name in names], np.float32)


def seeds(plan: EpochPlan, position: Any) -> Any:
    """int64 [b, 2], of what is random in the series at `position` int64 [b] of an epoch."""
    of_epoch = tf.fill(tf.shape(position), tf.constant(plan.seed * 100_003 + plan.epoch, tf.int64))
    return tf.stack([of_epoch, 2 * position], 1)


def blurred(vectors: Any, seeds: Any, blur: Blur) -> Any:
    """float32 [b, T, dim]: `vectors` with noise, and with some numbers set to 0; a tensor operation.

    What happens to a series follows from its row of `seeds` int64 [b, 2], whatever it is padded to.
    """
    if not (blur.noise or blur.dropout):
        return vectors

    def one(given: tuple[Any, Any]) -> Any:
        vector, seed = given
        deviation = tf.math.reduce_std(vector, -1, keepdims=True)
        moved = vector + blur.noise * deviation * tf.random.stateless_normal(tf.shape(vector), seed)
        stays = tf.random.stateless_uniform(tf.shape(vector), seed + [0, 1]) >= blur.dropout
        return tf.where(stays, moved, 0.0)

    return tf.map_fn(one, (vectors, seeds), fn_output_signature=tf.float32)
