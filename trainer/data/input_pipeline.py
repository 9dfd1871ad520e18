"""Batches of images and labels as `tf.data` datasets, for this worker's replicas out of all.

An element is the batch of one replica; elements come in the order step, replica. What a step trains on follows from
(seed, epoch, step) alone: records at random places are drawn by number (`shard_reader`), whatever the workers and
replicas; shards of a bucket come as streams (`shard_stream`), where each worker has records of its own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import tensorflow as tf

from ich_tfrecords.dataset import records
from ich_tfrecords.spec import ImageSpec
from trainer.data import augment, batches, sampling, shard_stream
from trainer.data.augment import Augmentation
from trainer.data.dataset import Slices
from trainer.data.shard_reader import advice
from trainer.shell.problems import TrainerError, TrainingFailed, WrongUse

# what TensorFlow says of a record that is whole and yet no slice, and of a shard with fewer or more records
_OF_DATA = ("Could not parse example", "could not be found", "dataset was expected to contain", "record at ")


@dataclasses.dataclass(frozen=True)
class Share:
    """This worker's replicas, `first` .. `first + count - 1`, out of all `replicas` that train in step.

    Every worker has as many as the others. Raises `WrongUse` where that cannot be.
    """

    replicas: int
    first: int
    count: int

    def __post_init__(self) -> None:
        if (
            not (0 <= self.first < self.replicas and self.count > 0)
            or self.replicas % self.count
            or self.first % self.count
        ):
            told = f"replicas {self.first} to {self.first + self.count - 1} of {self.replicas}"
            raise WrongUse(f"this worker has {told}; give every worker the same number of devices")

    @classmethod
    def whole(cls, replicas: int = 1) -> Share:
        """All replicas in one worker."""
        return cls(replicas, 0, replicas)

    @property
    def workers(self) -> int:
        """Number of workers."""
        return self.replicas // self.count

    @property
    def worker(self) -> int:
        """This worker's number, from 0."""
        return self.first // self.count


@dataclasses.dataclass(frozen=True)
class EpochPlan:
    """What one epoch trains on: `size` slices by `policy` and `shares` (`sampling`), in batches of `batch_size`.

    `quantum`: replicas times accumulation, of which every batch is a multiple. `epoch`: 0, 1, ... `of_parts`: where
    shares of several data sets are set, what of all falls to each stratum of each of them; `shares` is their sum.
    `in_step`: what happens to each slice goes with the batch as `changes` float32 [b, 15], for `augment.in_step`.
    """

    policy: str
    shares: Mapping[str, float]
    seed: int
    epoch: int
    size: int
    batch_size: int
    quantum: int
    augmentation: Augmentation
    of_parts: tuple[Mapping[str, float], ...] = ()
    in_step: bool = False

    def order(
        self, strata: npt.NDArray[np.int8], part: npt.NDArray[np.int8], names: Sequence[str]
    ) -> npt.NDArray[np.int64]:
        """int64 [size], the rows of the epoch in order, see `sampling.epoch_order`; `part` int8 [n]: as in `Slices`."""
        when = (self.seed, self.epoch, self.size)
        if not self.of_parts:
            return sampling.epoch_order(strata, names, self.policy, self.shares, *when)
        cells, names, shares = sampling.cells(strata, part, names, self.of_parts)
        return sampling.epoch_order(cells, names, sampling.EXPLICIT, shares, *when)

    def changes(self, image: ImageSpec) -> dict[str, npt.NDArray[Any]]:
        """Column `changes`, what happens to each sample of the epoch (`augment.draw`); none where nothing does."""
        if not self.augmentation.on:
            return {}
        drawn = augment.draw(self.augmentation, self.seed, self.epoch, self.size, image.size_px, image.air)
        return {"changes": drawn}

    @property
    def batches(self) -> tuple[int, int]:
        """Full batches, and slices of the short batch after them. Raises `WrongUse` (`sampling.batch_sizes`)."""
        return sampling.batch_sizes(self.size, self.batch_size, self.quantum)

    @property
    def steps(self) -> int:
        """Batches of the epoch, the short one included."""
        full, short = self.batches
        return full + bool(short)

    def positions(self, share: Share, skip_steps: int = 0) -> list[npt.NDArray[np.int64]]:
        """Positions in the epoch that this worker reads: int64 [replica batches, slices] of full batches, then short.

        A part without batches is left out.
        """
        if self.quantum % share.replicas:
            raise WrongUse(f"batches are multiples of {self.quantum}, which {share.replicas} replicas cannot share")
        full, short = self.batches
        edge, mine = full * self.batch_size, slice(share.first, share.first + share.count)
        parts = []
        for begin, end, size in ((0, edge, self.batch_size), (edge, edge + short, short)):
            if skip_steps * self.batch_size < end and size:
                every = np.arange(begin, end).reshape(-1, share.replicas, size // share.replicas)
                every = every[skip_steps if begin == 0 else 0 :, mine]
                parts.append(every.reshape(-1, size // share.replicas))
        return parts


def epoch_size(slices: Slices, share: Share) -> int:
    """Slices of a whole natural epoch: all labelled ones, or what every worker's streams can give alike."""
    if slices.random_access:
        return int(slices.labelled.sum())
    return shard_stream.natural_size(slices, share.workers)


def train_batches(slices: Slices, plan: EpochPlan, share: Share, skip_steps: int = 0) -> tf.data.Dataset:
    """Replica batches of an epoch: `image` [b, size, size, channels] and `labels` int64 [b, L].

    b is `batch_size` / replicas, less in the last short batch. `skip_steps`: leave out the first steps, as a resumed
    run does. A record that cannot be read raises a `tf.errors.OpError`, which `problem` makes plain.
    """
    if not plan.steps:
        raise WrongUse(f"an epoch of {plan.size} slices makes no batch; {plan.quantum} are the least")
    parts = plan.positions(share, skip_steps)
    columns = plan.changes(slices.spec.image)
    if slices.random_access:
        return batches.by_number(slices, {**columns, "row": _order(slices, plan)}, parts, plan.in_step)
    inputs = batches.inputs_of({**columns, "position": np.arange(plan.size)}, parts)
    both = tf.data.Dataset.zip(inputs, _stream_batches(slices, plan, share, skip_steps))
    return batches.of_records(slices, both, plan.in_step)


def _order(slices: Slices, plan: EpochPlan) -> npt.NDArray[np.int64]:
    """int64 [size], the rows of the epoch in order."""
    return plan.order(slices.stratum, slices.part, slices.spec.labels.strata)


def _stream_batches(slices: Slices, plan: EpochPlan, share: Share, skip_steps: int) -> tf.data.Dataset:
    """Serialized records [b] of each replica batch, from the streams of this worker."""
    of, worker_batch = (share.workers, share.worker), plan.batch_size // share.workers
    positions = np.concatenate([part.ravel() for part in plan.positions(share)])
    choices = shard_stream.own_choices(
        slices, plan.policy, plan.shares, plan.seed, plan.epoch, plan.size, positions, of
    )
    serialized = shard_stream.training_records(slices, choices, plan.seed, plan.epoch, of)
    steps = serialized.skip(skip_steps * worker_batch).batch(worker_batch, drop_remainder=not plan.batches[1])
    if share.count == 1:
        return steps
    return steps.flat_map(lambda step: tf.data.Dataset.from_tensor_slices(tf.reshape(step, (share.count, -1))))


def evaluation_batches(
    slices: Slices, batch_size: int, share: Share, span: tuple[int, int] | None = None
) -> tf.data.Dataset:
    """Replica batches of every slice once, unlabelled ones too; each worker has a run of rows of its own.

    `span`: of the rows from the first of these to the one before the second alone.

    `image` [b, size, size, channels], `labels` int64 [b, L], `row` int64 [b] (row of `slices`, in order unless
    they come as streams) and `weight` float32 [b]: 0 for slices that fill up the last batches. All batches have
    b = `batch_size` / replicas (rounded up) slices, and all workers as many batches.
    """
    low, high = span or (0, len(slices))
    size = -(-batch_size // share.replicas)
    begin, end = (low + (high - low) * part // share.replicas for part in (share.first, share.first + share.count))
    padded = step_count(high - low, size, share) * size * share.count
    filler = min(begin, len(slices) - 1)
    parts = [np.arange(padded).reshape(-1, size)]
    weight = (np.arange(padded) < end - begin).astype(np.float32)
    if slices.random_access:
        row = np.r_[np.arange(begin, end), np.full(padded - (end - begin), filler)]
        return batches.by_number(slices, {"row": row, "weight": weight}, parts)
    stream = shard_stream.table_records(slices, filler, filler + 1).take(1).cache().repeat()
    if end > begin:
        stream = shard_stream.table_records(slices, begin, end).concatenate(stream)
    serialized = stream.take(padded).batch(size, drop_remainder=True)
    numbered = tf.data.Dataset.zip(batches.inputs_of({"weight": weight}, parts), serialized)
    return batches.of_records(slices, numbered.map(lambda inputs, both: ({**inputs, "row": both[0]}, both[1])))


def evaluation_steps(slices: Slices, batch_size: int, share: Share) -> int:
    """Steps of `evaluation_batches`, the same for all workers."""
    return step_count(len(slices), -(-batch_size // share.replicas), share)


def step_count(slices: int, size: int, share: Share) -> int:
    """Steps over so many slices with `size` a replica."""
    most = -(-slices * share.count // share.replicas)
    return -(-most // (size * share.count))


def slices_of_step(slices: Slices, plan: EpochPlan, share: Share, step: int) -> list[str]:
    """SOP UIDs of the slices that this worker's replicas meet in a step, in order; all with `Share.whole`."""
    if slices.random_access:
        first, *_ = plan.positions(share, step)
        rows = _order(slices, plan)[first[: share.count].ravel()]
        return slices.table["sop_uid"].take(pa.array(rows)).to_pylist()
    serialized = _stream_batches(slices, plan, share, step).take(share.count)
    uids = [records.decode_batch(batch, slices.spec)["sop_uid"].numpy() for batch in serialized]
    return [uid.decode() for uid in np.concatenate(uids)]


def problem(slices: Slices, error: Exception) -> TrainerError | None:
    """The damage in `slices` behind an error of TensorFlow, or None where the error is about other things."""
    if "reader" in vars(slices) and slices.reader.problem:
        return slices.reader.problem
    message = str(getattr(error, "message", error))
    if found := shard_stream.problem(slices, message):
        return found
    if not any(words in message for words in (*_OF_DATA, *slices.paths)):
        return None
    plain = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", message.split("\n")[0]).strip()
    return TrainingFailed(f"{slices.place}: reading split {slices.split} failed: {plain}; {advice(*slices.places)}")
