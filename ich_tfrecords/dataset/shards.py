"""The shard of each slice and its place there, the names of shards, and the order of slices in a series."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ich_tfrecords.dataset.splits import hash64
from ich_tfrecords.spec import ShardSpec

if TYPE_CHECKING:
    import pandas as pd

Int64 = npt.NDArray[np.int64]


def shard_name(dataset: str, split: str, index: int, count: int) -> str:
    """File name of a shard, as TensorFlow Datasets reads it: `rsna_ich-train.tfrecord-00003-of-00276`."""
    return f"{dataset}-{split}.tfrecord-{index:05d}-of-{count:05d}"


def slice_order(series: Int64, position_mm: npt.NDArray[np.float64], sop_rank: Int64) -> tuple[Int64, Int64]:
    """`slice_index` and `slice_count` of each slice: its place in its series from feet to head, from 0.

    `series`: a number for each series; `sop_rank` breaks ties of position. Shapes [n].
    """
    by_place = np.lexsort((sop_rank, position_mm, series))
    ordered = series[by_place]
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.zeros(0, np.int64)
    counts = np.diff(np.r_[begins, len(ordered)])
    index, count = np.empty_like(series), np.empty_like(series)
    index[by_place] = np.arange(len(series)) - np.repeat(begins, counts)
    count[by_place] = np.repeat(counts, counts)
    return index, count


def slices_per_shard(slices: int, slice_bytes: int, shards: ShardSpec) -> int:
    """Slices in a full shard of a split with `slices`: by size, and few enough to make `min_shards`."""
    by_size = max(1, shards.target_bytes // slice_bytes)
    return max(1, min(by_size, -(-slices // shards.min_shards)))


def assign_shards(
    splits: npt.NDArray[np.int8],
    strata: npt.NDArray[np.int8],
    order: npt.NDArray[np.uint64],
    slice_bytes: int,
    shards: ShardSpec,
) -> pd.DataFrame:
    """Shard of each slice: columns `shard` and `shard_count` (within its split) and `row` (within its shard).

    `splits`, `strata`: a number for each slice; `order`: its seeded hash. A shard holds one stratum of
    one split. The slices of a stratum lie in the order of the hash, in shards that differ by one slice
    at most; the shards of a split are numbered across strata by a seeded hash, so that nobody who reads
    them in turn meets the strata in turn.
    """
    import pandas as pd  # here, for most commands read shards and never assign them

    shard, count, row = (np.zeros(len(splits), np.int32) for _ in range(3))
    for split in np.unique(splits):
        in_split = np.flatnonzero(splits == split)
        full = slices_per_shard(len(in_split), slice_bytes, shards)
        chunks = _chunks(in_split, strata, order, full)
        seats = hash64(f"shards:{shards.seed}:{split}", [f"{stratum}:{part}" for stratum, part, _ in chunks])
        for number, chunk in enumerate(np.argsort(seats, kind="stable")):
            members = chunks[chunk][2]
            shard[members], count[members], row[members] = number, len(chunks), np.arange(len(members))
    return pd.DataFrame({"shard": shard, "shard_count": count, "row": row})


def _chunks(
    in_split: Int64, strata: npt.NDArray[np.int8], order: npt.NDArray[np.uint64], full: int
) -> list[tuple[int, int, Int64]]:
    """(stratum, part, members) for each shard-to-be of one split."""
    chunks = []
    for stratum in np.unique(strata[in_split]):
        members = in_split[strata[in_split] == stratum]
        members = members[np.argsort(order[members], kind="stable")]
        parts = np.array_split(members, -(-len(members) // full))
        chunks += [(int(stratum), part, rows) for part, rows in enumerate(parts)]
    return chunks
