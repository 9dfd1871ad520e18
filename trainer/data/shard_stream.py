"""Records of shards as streams, for buckets where reading one record at a time would cost a request each.

Each stratum is a stream of its own shards, several of them read in turn, in an order that follows from (seed,
epoch, stratum, pass); a sequence of choices says which stratum gives the next slice. Workers read different
records: of a stratum with k shards worker w of n has the shards w, w + n, ... of the first k // n * n, and the
records w, w + n, ... of each shard left over.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from ich_tfrecords.dataset import records
from trainer.data import sampling
from trainer.data.dataset import Slices
from trainer.data.shard_reader import FRAME_BYTES, damage_of, record_problem
from trainer.shell.problems import TrainerError, WrongUse

OPEN_SHARDS = 4  # read in turn in each stratum: enough requests in flight for a bucket, few enough for memory
BUFFER_BYTES = 1 << 20  # read ahead in each open shard
SHUFFLED_BYTES = 16 << 20  # held back in each stratum; inside a shard the slices lie in random order as it is
SHUFFLED_SLICES = 1024  # and never more than this, so that an epoch of small images starts soon

Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A worker's part of one stratum: records `first`, `first + step`, ... of each of `shards`, `slices` in all.

    `shards` (indexes into the paths), `first`, `step`: int64 [k].
    """

    shards: Int64
    first: Int64
    step: Int64
    slices: int


def parts(slices: Slices, workers: int, worker: int) -> dict[str, Part]:
    """This worker's part of each labelled stratum, in stratum order; over all workers every record once."""
    sizes = np.bincount(slices.shard, minlength=len(slices.paths))
    stratum_of = np.full(len(sizes), -1)
    stratum_of[slices.shard] = slices.stratum
    found = {}
    for name in slices.stratum_counts:
        shards = np.flatnonzero(stratum_of == slices.spec.labels.strata.index(name))
        dealt = len(shards) // workers * workers
        whole, shared = shards[worker:dealt:workers], shards[dealt:]
        count = sizes[whole].sum() + np.maximum(0, -((worker - sizes[shared]) // workers)).sum()
        first = np.repeat([0, worker], [len(whole), len(shared)])
        step = np.repeat([1, workers], [len(whole), len(shared)])
        found[name] = Part(np.concatenate([whole, shared]), first, step, int(count))
    return found


def natural_size(slices: Slices, workers: int) -> int:
    """Slices that `workers` read in a natural epoch, as many in each: what the smallest part allows, times workers."""
    return workers * min(_total(parts(slices, workers, worker)) for worker in range(workers))


def _total(found: Mapping[str, Part]) -> int:
    return sum(part.slices for part in found.values())


def own_choices(
    slices: Slices,
    policy: str,
    shares: Mapping[str, float],
    seed: int,
    epoch: int,
    size: int,
    positions: Int64,
    of: tuple[int, int],
) -> Int64:
    """int64 [k], the stratum (index into the strata) of each slice that this worker takes, at `positions` of the epoch.

    `of`: the number of workers and this worker's. `natural`: a permutation of the worker's own slices, each at most
    once. Other policies: its places in a sequence that holds exactly `sampling.stratum_counts` over all workers.
    Raises `WrongUse` where the worker has too few slices.
    """
    names = slices.spec.labels.strata
    found = parts(slices, *of)
    if policy == sampling.NATURAL:
        if len(positions) > _total(found):
            limit = natural_size(slices, of[0])
            raise WrongUse(
                f"{slices.place}: a natural epoch of {size:,} slices from streams can have {limit:,} at most"
            )
        counts = [found[name].slices if name in found else 0 for name in names]
        return sampling.choice_sequence(counts, seed, epoch)[: len(positions)]
    counts_of = sampling.stratum_counts({name: shares.get(name, 0.0) for name in names}, size)
    choices = sampling.choice_sequence(list(counts_of.values()), seed, epoch)[positions]
    for index in np.unique(choices):
        if not found[names[index]].slices:
            have = f"stratum {names[index]} has {slices.stratum_counts[names[index]]} slices in {slices.split}"
            raise WrongUse(f"{slices.place}: {have}, too few for {of[0]} workers; leave it out of the shares")
    return choices


def training_records(slices: Slices, choices: Int64, seed: int, epoch: int, of: tuple[int, int]) -> tf.data.Dataset:
    """Serialized records, one a slice: the next of stratum `choices[i]` each time, for worker `of[1]` of `of[0]`."""
    names = slices.spec.labels.strata
    found = parts(slices, *of)
    present, which = np.unique(choices, return_inverse=True)
    wanted = np.bincount(which, minlength=len(present))
    streams = [
        _stratum_stream(slices, found[names[index]], f"{names[index]}:{epoch}", seed, int(count))
        for index, count in zip(present, wanted, strict=True)
    ]
    order = tf.data.Dataset.from_tensor_slices(which.astype(np.int64))
    mixed = tf.data.Dataset.choose_from_datasets(streams, order, stop_on_empty_dataset=True)
    return mixed.apply(tf.data.experimental.assert_cardinality(len(choices)))


def _stratum_stream(slices: Slices, part: Part, name: str, seed: int, count: int) -> tf.data.Dataset:
    """As many passes over a part as `count` records take, each in an order of its own."""
    passes, shards = -(-count // part.slices), len(part.shards)
    words = sampling.random_words(f"stream:{name}", seed, 0, passes * (shards + 1)).reshape(passes, shards + 1)
    order = words[:, :shards].argsort(axis=1, kind="stable")
    paths = np.array(slices.paths)[part.shards]
    columns = (paths[order], part.first[order], part.step[order], (words[:, shards] >> np.uint64(1)).astype(np.int64))
    held = max(1, min(SHUFFLED_SLICES, SHUFFLED_BYTES // records.slice_bytes(slices.spec), part.slices))

    def one_pass(paths: Any, first: Any, step: Any, shuffle_seed: Any) -> tf.data.Dataset:
        # the seed of this function's graph alone: the caller's global seed must not change the order
        tf.random.set_seed(1)
        places = tf.data.Dataset.from_tensor_slices((paths, first, step))
        read = places.interleave(_records_of, OPEN_SHARDS, num_parallel_calls=OPEN_SHARDS, deterministic=True)
        return read.shuffle(held, seed=shuffle_seed)

    return tf.data.Dataset.from_tensor_slices(columns).flat_map(one_pass).prefetch(4)


def _records_of(path: Any, first: Any, step: Any) -> tf.data.Dataset:
    return tf.data.TFRecordDataset(path, buffer_size=BUFFER_BYTES).shard(step, first)


def table_records(slices: Slices, begin: int, end: int) -> tf.data.Dataset:
    """Rows `begin` .. `end - 1` of the split, each once, as (row int64, serialized record); several shards in turn."""
    shards = np.unique(slices.shard[begin:end]).astype(np.int64)
    starts, stops = (np.searchsorted(slices.shard, shards, side) for side in ("left", "right"))
    from_row, to_row = np.maximum(starts, begin), np.minimum(stops, end)
    columns = (np.array(slices.paths)[shards], from_row - starts, from_row, to_row)

    def numbered(path: Any, skipped: Any, first: Any, stop: Any) -> tf.data.Dataset:
        read = tf.data.TFRecordDataset(path, buffer_size=BUFFER_BYTES).skip(skipped)
        return tf.data.Dataset.zip(tf.data.Dataset.range(first, stop), read)

    places = tf.data.Dataset.from_tensor_slices(columns)
    read = places.interleave(numbered, OPEN_SHARDS, num_parallel_calls=OPEN_SHARDS, deterministic=True)
    return read.apply(tf.data.experimental.assert_cardinality(end - begin))


def problem(slices: Slices, message: str) -> TrainerError | None:
    """The damaged record that a message of TensorFlow speaks of, or None: it tells the offset, but not the shard."""
    told = re.search(r"(?:corrupted|truncated) record at (\d+)", message)
    if not told:
        return None
    # of a damaged payload it tells the first byte of the payload, 12 after that of the record
    for row in np.flatnonzero(np.isin(slices.offset, [int(told[1]), int(told[1]) - 12])).tolist():
        length, offset = int(slices.length[row]), int(slices.offset[row])
        try:
            with tf.io.gfile.GFile(slices.paths[slices.shard[row]], "rb") as file:
                file.seek(offset)
                framed = file.read(length + FRAME_BYTES)
        except tf.errors.OpError as error:
            return record_problem(slices, row, f"cannot be read: {error.message}")
        if damage := damage_of(framed, length):
            return record_problem(slices, row, damage)
    return None
