import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_tfrecords.dataset import records
from trainer.data import sampling, shard_stream
from trainer.data.dataset import Slices, open_dataset
from trainer.shell.problems import WrongUse


@pytest.fixture(scope="module")
def slices(dataset: Path) -> Slices:
    """About 50 slices in shards of a few, so that a stratum has several."""
    return open_dataset(str(dataset)).split("train", stream=True)


@pytest.fixture(scope="module")
def row_of(slices) -> dict[bytes, int]:
    """Row of each payload."""
    payloads = []
    for path in slices.paths:
        with open(path, "rb") as file:
            payloads += [payload for _, payload in records.read_records(file)]
    return {payload: row for row, payload in enumerate(payloads)}


def layout(slices: Slices, shard_sizes: list[tuple[int, int]]) -> Slices:
    """Slices without files: shards of (stratum, size)."""
    sizes = [size for _, size in shard_sizes]
    shard = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    stratum = np.repeat([stratum for stratum, _ in shard_sizes], sizes).astype(np.int8)
    paths = tuple(f"shard-{number}" for number in range(len(sizes)))
    return dataclasses.replace(slices, shard=shard, stratum=stratum, paths=paths, names=paths)


def records_of(part: shard_stream.Part, sizes: np.ndarray) -> list[tuple[int, int]]:
    """(shard, record) of every record of a part, one by one."""
    places = zip(part.shards.tolist(), part.first.tolist(), part.step.tolist(), strict=True)
    return [(shard, record) for shard, first, step in places for record in range(first, sizes[shard], step)]


def natural_choices(slices: Slices, epoch: int, workers: int, worker: int, seed: int = 3) -> np.ndarray:
    size = shard_stream.natural_size(slices, workers)
    return shard_stream.own_choices(
        slices, "natural", {}, seed, epoch, size, np.arange(size // workers), (workers, worker)
    )


def rows_read(slices, row_of, choices, seed=3, epoch=0, of=(1, 0)) -> list[int]:
    read = shard_stream.training_records(slices, choices, seed, epoch, of)
    return [row_of[payload] for payload in read.as_numpy_iterator()]


@given(
    shard_sizes=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9)), min_size=1, max_size=30),
    workers=st.integers(1, 5),
)
@settings(max_examples=60)
def test_parts_are_disjoint_complete_and_even(slices, shard_sizes, workers):
    laid = layout(slices, sorted(shard_sizes))
    sizes = np.bincount(laid.shard)
    strata = laid.spec.labels.strata
    found = [shard_stream.parts(laid, workers, worker) for worker in range(workers)]
    for index, name in enumerate(strata[:-1]):
        read = [records_of(part[name], sizes) for part in found]
        assert [len(mine) for mine in read] == [part[name].slices for part in found]
        expected = [place for place in zip(laid.shard, _records(laid)) if laid.stratum[_row(laid, place)] == index]
        assert sorted(itertools.chain(*read)) == sorted((int(shard), int(record)) for shard, record in expected)
    assert all("unlabelled" not in part for part in found)


def _records(slices: Slices) -> np.ndarray:
    return np.concatenate([np.arange(size) for size in np.bincount(slices.shard)])


def _row(slices: Slices, place: tuple[int, int]) -> int:
    return int(np.searchsorted(slices.shard, place[0]) + place[1])


def test_parts_by_hand(slices):
    # five shards of `none` for two workers: 0 and 2, 1 and 3, and shard 4 record by record
    laid = layout(slices, [(5, 10), (5, 11), (5, 10), (5, 11), (5, 7)])
    one, two = (shard_stream.parts(laid, 2, worker)["none"] for worker in (0, 1))
    assert (one.shards.tolist(), one.first.tolist(), one.step.tolist()) == ([0, 2, 4], [0, 0, 0], [1, 1, 2])
    assert (two.shards.tolist(), two.first.tolist(), two.step.tolist()) == ([1, 3, 4], [0, 0, 1], [1, 1, 2])
    assert (one.slices, two.slices) == (24, 25)
    assert shard_stream.natural_size(laid, 2) == 48
    assert shard_stream.natural_size(laid, 1) == 49


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_natural_epoch_reads_every_labelled_slice_once_over_all_workers(slices, row_of, workers):
    read: list[int] = []
    for worker in range(workers):
        own = shard_stream.parts(slices, workers, worker)
        every = np.concatenate([np.full(part.slices, index) for index, part in enumerate(own.values())])
        choices = np.random.default_rng(worker).permutation(every)
        rows = rows_read(slices, row_of, choices, of=(workers, worker))
        assert slices.stratum[rows].tolist() == choices.tolist()
        read += rows
    assert sorted(read) == np.flatnonzero(slices.labelled).tolist()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_natural_choices_take_each_own_slice_once_at_most(slices, row_of, workers):
    read: list[int] = []
    for worker in range(workers):
        read += rows_read(slices, row_of, natural_choices(slices, 0, workers, worker), of=(workers, worker))
    assert len(read) == len(set(read)) == shard_stream.natural_size(slices, workers)


def test_the_order_follows_from_seed_and_epoch_alone(slices, row_of):
    choices = natural_choices(slices, 0, 1, 0)
    first = rows_read(slices, row_of, choices)
    tf.random.set_seed(99)
    assert rows_read(slices, row_of, choices) == first
    keras.utils.set_random_seed(0)
    assert rows_read(slices, row_of, choices) == first
    assert rows_read(slices, row_of, choices, epoch=1) != first
    assert rows_read(slices, row_of, choices, seed=4) != first
    assert natural_choices(slices, 1, 1, 0).tolist() != choices.tolist()


def test_streams_repeat_and_every_pass_has_each_slice_once(slices, row_of):
    rarest = min((count, name) for name, count in slices.stratum_counts.items() if count)[1]
    index, size = slices.spec.labels.strata.index(rarest), slices.stratum_counts[rarest]
    rows = rows_read(slices, row_of, np.full(3 * size + 1, index))
    passes = [rows[begin : begin + size] for begin in range(0, 3 * size, size)]
    assert all(sorted(each) == np.flatnonzero(slices.stratum == index).tolist() for each in passes)
    assert Counter(slices.stratum[rows].tolist()) == {index: 3 * size + 1}


@pytest.mark.parametrize("workers", [1, 2])
def test_other_policies_have_exact_proportions_over_all_workers(slices, row_of, workers):
    counts = slices.stratum_counts
    shares = sampling.proportions("balanced", {name: count * (count >= workers) for name, count in counts.items()}, {})
    read: list[int] = []
    for worker in range(workers):
        positions = np.arange(64)[worker::workers]
        of = (workers, worker)
        choices = shard_stream.own_choices(slices, "balanced", shares, 3, 0, 64, positions, of)
        rows = rows_read(slices, row_of, choices, of=of)
        assert slices.stratum[rows].tolist() == choices.tolist()
        read += rows
    got = Counter(slices.spec.labels.strata[stratum] for stratum in slices.stratum[read])
    assert got == {name: count for name, count in sampling.stratum_counts(shares, 64).items() if count}


def test_too_long_natural_epochs_and_too_small_strata_are_refused(slices):
    most = shard_stream.natural_size(slices, 1)
    with pytest.raises(WrongUse, match=f"can have {most:,} at most"):
        shard_stream.own_choices(slices, "natural", {}, 0, 0, most + 1, np.arange(most + 1), (1, 0))
    laid = layout(slices, [(0, 1), (5, 10)])
    with pytest.raises(WrongUse, match="stratum epidural has 1 slices in train, too few for 2 workers"):
        shard_stream.own_choices(
            laid, "balanced", {"epidural": 0.5, "none": 0.5}, 0, 0, 20, np.arange(1, 20, 2), (2, 1)
        )


def test_a_run_of_rows_comes_with_its_numbers(slices, row_of):
    total = len(slices)
    for begin, end in ((0, total), (0, 1), (total - 1, total), (3, total // 2), (total // 3, total - 2)):
        read = list(shard_stream.table_records(slices, begin, end).as_numpy_iterator())
        assert sorted(int(row) for row, _ in read) == list(range(begin, end))
        assert all(row_of[payload] == row for row, payload in read)


def test_a_message_of_tensorflow_leads_to_the_record(dataset_copy):
    slices = open_dataset(str(dataset_copy)).split("train", stream=True)
    row = len(slices) // 2
    path, offset = Path(slices.paths[slices.shard[row]]), int(slices.offset[row])
    message = f"corrupted record at {offset} [Op:IteratorGetNext]"
    assert shard_stream.problem(slices, message) is None  # nothing is damaged yet
    data = bytearray(path.read_bytes())
    data[offset + 50] ^= 4
    path.write_bytes(data)
    told = str(shard_stream.problem(slices, message))
    assert f"shard {path.name}, record {slices.record[row]} at byte {offset:,}: the payload fails its crc32c" in told
    assert shard_stream.problem(slices, "out of memory") is None
    path.write_bytes(data[: offset + 30])
    assert "the shard ends after 30 of" in str(shard_stream.problem(slices, f"truncated record at {offset}' failed"))
    path.unlink()
    assert "cannot be read" in str(shard_stream.problem(slices, message))


def test_a_shard_that_lost_records_since_it_was_opened_is_not_passed_over(dataset_copy):
    slices = open_dataset(str(dataset_copy)).split("train", stream=True)
    shard = slices.shard[int(np.flatnonzero(slices.record == slices.record.max())[0])]
    last = np.flatnonzero(slices.shard == shard)[-1]
    path = Path(slices.paths[shard])
    path.write_bytes(path.read_bytes()[: slices.offset[last]])
    for read in (
        shard_stream.table_records(slices, 0, len(slices)),
        shard_stream.training_records(slices, slices.stratum.astype(np.int64), 0, 0, (1, 0)),
    ):
        with pytest.raises(tf.errors.FailedPreconditionError, match="expected to contain"):
            list(read)
