"""Neighbours: which rows lie beside a slice, against a plain loop; how images are stacked, read and changed."""

from __future__ import annotations

import dataclasses
import shutil
from collections import defaultdict

import blob_dataset
import numpy as np
import odd_dataset
import pyarrow as pa
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from trainer.data import augment, input_pipeline, neighbours, sampling, series, shard_reader, warp
from trainer.data.augment import Augmentation
from trainer.data.dataset import Slices, open_dataset
from trainer.data.input_pipeline import EpochPlan, Share
from trainer.data.joined import open_datasets
from trainer.data.series import Series
from trainer.shell.problems import TrainingFailed, WrongUse

NUMBA = pytest.mark.skipif(not warp.installed(), reason="numba is not installed")
NAMES = (*series.KEY, "position_mm", "sop_uid")
SLICES = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("st"), st.integers(-2, 2)), min_size=1, max_size=30)


def planned(*lengths: int) -> Series:
    return Series(np.arange(sum(lengths)), np.cumsum([0, *lengths]))


def beside(*lengths: int, context: int) -> list[list[int]]:
    return neighbours.rows_beside(planned(*lengths), context).tolist()


def table(rows: list[tuple]) -> pa.Table:
    types = dict.fromkeys(NAMES, pa.string()) | {"position_mm": pa.float64()}
    return pa.table({name: pa.array([*column], types[name]) for name, column in zip(NAMES, zip(*rows), strict=True)})


# which rows


def test_beyond_an_end_the_last_slice_repeats():
    assert beside(4, context=1) == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]
    assert beside(2, context=2) == [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]
    assert beside(1, context=3) == [[0] * 7]
    assert beside(context=1) == []


def test_they_are_of_one_series():
    assert beside(2, 1, 2, context=1) == [[0, 0, 1], [0, 1, 1], [2, 2, 2], [3, 3, 4], [3, 4, 4]]


def test_rows_are_those_of_the_table():
    found = Series(np.array([3, 0, 2, 1]), np.array([0, 3, 4]))  # 3, 0, 2 from feet to head; 1 alone
    assert neighbours.rows_beside(found, 1).tolist() == [[3, 0, 2], [1, 1, 1], [0, 2, 2], [3, 3, 0]]


def by_a_loop(rows: list[tuple], part: list[int], context: int) -> list[list[int]]:
    of_series = defaultdict(list)
    for number, row in enumerate(rows):
        of_series[(part[number], *row[:3])].append((row[3], row[4], number))
    found: list[list[int]] = [[]] * len(rows)
    for members in of_series.values():
        numbers = [number for *_, number in sorted(members)]
        for at, number in enumerate(numbers):
            steps = range(at - context, at + context + 1)
            found[number] = [numbers[min(max(step, 0), len(numbers) - 1)] for step in steps]
    return found


@given(SLICES, st.integers(1, 4), st.data())
def test_as_a_plain_loop_has_it(drawn, context, data):
    """Ties, several data sets, any order of the table."""
    rows = [("p", study, uid, float(place), f"ID_{n:02d}") for n, (study, uid, place) in enumerate(drawn)]
    rows = data.draw(st.permutations(rows))
    part = data.draw(st.lists(st.integers(0, 1), min_size=len(rows), max_size=len(rows)))
    places = defaultdict(list)
    for number, row in enumerate(rows):
        places[(part[number], *row[:3])].append(row[3])
    given = (table(rows), np.array(part, np.int8), context, "these")
    flat = any(len(own) > 1 and len(set(own)) == 1 for own in places.values())
    if flat or all(len(own) == 1 for own in places.values()):
        with pytest.raises(WrongUse, match="have no order" if flat else "has two slices"):
            neighbours.rows_of(*given)
    else:
        assert neighbours.rows_of(*given).tolist() == by_a_loop(rows, part, context)


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([1.0, None, 3.0], "slice ID_1 has no position_mm (1 of 3 slices lack it)"),
        ([1.0, float("nan"), 3.0], "slice ID_1 has no position_mm (1 of 3 slices lack it)"),
        ([2.0, 2.0, 2.0], "series s has 3 slices at one position"),
    ],
)
def test_slices_without_a_place_are_refused(places, words):
    rows = [("p", "t", "s", place, f"ID_{number}") for number, place in enumerate(places)]
    with pytest.raises(WrongUse) as caught:
        neighbours.rows_of(table(rows), np.zeros(3, np.int8), 1, "these")
    assert str(caught.value).startswith(words)


@pytest.mark.slow
def test_single_slices_have_no_neighbours(tmp_path):
    slices = open_dataset(str(odd_dataset.make(tmp_path / "odd"))).split("train")
    with pytest.raises(WrongUse) as caught:
        slices.with_neighbours(2)
    assert str(caught.value) == (
        f"no series of split train of {tmp_path}/odd has two slices, so no slice has a neighbour, and the model sees 2 "
        "on either side (context_slices); take a model of single slices"
    )


# images


SHAPES = st.tuples(
    st.lists(st.integers(0, 3), max_size=2), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)
)


@pytest.mark.slow
@pytest.mark.parametrize("numba", [pytest.param(True, marks=NUMBA), False])
@given(shape=SHAPES, dtype=st.sampled_from([np.uint8, np.int16]), given_room=st.booleans())
def test_images_are_stacked_slice_by_slice(numba, shape, dtype, given_room):
    head, *rest = shape
    images = np.random.default_rng(0).integers(0, 256, (*head, *rest)).astype(dtype)
    room = np.empty(images.nbytes, np.uint8) if given_room else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warp, "installed", lambda: numba)
        patch.setattr(neighbours, "WORTH_COMPILING_BYTES", 0)
        found = neighbours.stacked(images, room)
    assert found.dtype == dtype
    assert room is None or not found.size or np.shares_memory(found, room)
    np.testing.assert_array_equal(found, np.concatenate([*np.moveaxis(images, -4, 0)], axis=-1))


def test_a_slice_is_in_the_middle_of_its_neighbours():
    alone = np.arange(2 * 5 * 3 * 3 * 2).reshape(2, 5, 3, 3, 2)
    np.testing.assert_array_equal(neighbours.own(neighbours.stacked(alone), 2), alone[:, 2])
    np.testing.assert_array_equal(neighbours.own(alone, 2), alone)  # seen without neighbours


@pytest.mark.parametrize(("context", "channels"), [(0, 3), (1, 9), (4, 27)])
def test_channels(context, channels):
    assert neighbours.shape((16, 16, 3), context) == (16, 16, channels)


# slices of a data set


@pytest.fixture(scope="module")
def slices(runs_of_blobs) -> Slices:
    return open_dataset(str(runs_of_blobs)).split("train")


def by_hand(slices: Slices, context: int) -> np.ndarray:
    """Images of all slices, each beside those of its series by slice_index, which conversion numbered."""
    images = np.array(slices.reader.read(np.arange(len(slices)))[0])
    columns = (slices.table[name].to_pylist() for name in ("series_uid", "slice_index", "slice_count"))
    places = [*zip(*columns, strict=True)]
    at = {(uid, index): row for row, (uid, index, _) in enumerate(places)}
    near = [
        [at[uid, min(max(index + step, 0), count - 1)] for step in range(-context, context + 1)]
        for uid, index, count in places
    ]
    return np.stack([np.concatenate([images[row] for row in rows], axis=-1) for rows in near])


@pytest.mark.slow
@pytest.mark.parametrize("context", [1, 2])
def test_slices_are_read_with_their_neighbours(slices, context):
    seen, rows = slices.with_neighbours(context), np.arange(len(slices))[::-1].reshape(2, -1)
    assert seen.image_shape == (16, 16, 3 * (2 * context + 1))
    images, labels = seen.read(rows)
    np.testing.assert_array_equal(images, by_hand(slices, context)[rows])
    np.testing.assert_array_equal(labels, slices.labels[rows])
    assert seen.with_neighbours(context) is seen
    assert slices.with_neighbours(0) is slices
    assert slices.image_shape == (16, 16, 3)


def test_a_slice_that_is_taken_away_stays_a_neighbour(slices):
    """As twins of held-out slices are: their labels are not trained on, but the series is as it is."""
    kept = np.arange(len(slices)) % 3 > 0
    some = slices.with_neighbours(1).take(kept, "some")
    assert len(some) == kept.sum()
    images, labels = some.read(np.arange(len(some)))
    np.testing.assert_array_equal(images, by_hand(slices, 1)[kept])
    np.testing.assert_array_equal(labels, slices.labels[kept])


@pytest.mark.slow
def test_every_split_and_fold_is_read_so(runs_of_blobs):
    """A series lies in one of them."""
    data = open_dataset(str(runs_of_blobs))
    for part in (data.every(), *data.fold(("train", "validation"), 1, 3)):
        images, _ = part.with_neighbours(1).read(np.arange(len(part)))
        np.testing.assert_array_equal(images, by_hand(part, 1))


def test_streams_are_refused(runs_of_blobs):
    with pytest.raises(WrongUse) as caught:
        open_dataset(str(runs_of_blobs)).split("train", stream=True).with_neighbours(1)
    assert str(caught.value) == (
        f"{runs_of_blobs}: context_slices needs the shards as files; copy them here, as training does with --cache_dir "
        "DIR"
    )


# batches


def plan_of(slices: Slices, augmentation: Augmentation, in_step: bool = False) -> EpochPlan:
    shares = sampling.proportions("balanced", slices.stratum_counts, {})
    return EpochPlan("balanced", shares, 5, 1, 96, 16, 2, augmentation, in_step=in_step)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("numba", "from_now_on"),
    [pytest.param(True, True, marks=NUMBA), pytest.param(True, False, marks=NUMBA), (False, False)],
)
def test_neighbours_are_changed_as_their_slice_is(slices, numba, from_now_on, monkeypatch):
    monkeypatch.setattr(warp, "installed", lambda: numba)
    if from_now_on:  # they are read in compiled calls
        monkeypatch.setattr(shard_reader, "WORTH_COMPILING", 0)
    monkeypatch.setattr(neighbours, "WORTH_COMPILING_BYTES", 0)
    augmentation = Augmentation(True, 30, 0.2, contrast=0.3, erase=0.5)
    seen = slices.with_neighbours(1)
    plan = plan_of(seen, augmentation)
    rows = plan.order(seen.stratum, seen.part, seen.spec.labels.strata)
    changes = augment.draw(augmentation, plan.seed, plan.epoch, plan.size, 16)
    wanted = augment.apply(by_hand(slices, 1)[rows], changes).numpy()
    found = [*input_pipeline.train_batches(seen, plan, Share.whole(2))]
    np.testing.assert_array_equal(np.concatenate([batch["image"].numpy() for batch in found]), wanted)
    assert all(batch["image"].shape == (8, 16, 16, 9) for batch in found)


@pytest.mark.slow
def test_in_the_step_as_well(slices):
    """There the batch holds the slices as they are, with their changes."""
    augmentation = Augmentation(True, 30, 0.2)
    seen = slices.with_neighbours(1)
    plan = plan_of(seen, augmentation, in_step=True)
    images = []
    for batch in input_pipeline.train_batches(seen, plan, Share.whole()):
        images.append(augment.in_step(batch["image"], batch["changes"]).numpy())
    host = input_pipeline.train_batches(seen, dataclasses.replace(plan, in_step=False), Share.whole())
    wanted = np.concatenate([batch["image"].numpy() for batch in host])
    assert np.abs(np.concatenate(images).astype(int) - wanted).max() <= 1


@pytest.mark.slow
def test_two_workers_read_the_batch_of_one(slices):
    """Several processes train in step: each reads its own part of every batch."""
    seen = slices.with_neighbours(1)
    plan = plan_of(seen, Augmentation(True, 30, 0.2))

    def images(share: Share) -> np.ndarray:
        return np.stack([batch["image"].numpy() for batch in input_pipeline.train_batches(seen, plan, share)])

    parts = [images(Share(2, first, 1)) for first in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), images(Share.whole()))


def test_evaluation_reads_every_slice_once(slices):
    seen = slices.with_neighbours(1)
    batches = [*input_pipeline.evaluation_batches(seen, 64, Share.whole())]
    kept = np.concatenate([batch["weight"].numpy() > 0 for batch in batches])
    rows, images = (np.concatenate([batch[name].numpy() for batch in batches])[kept] for name in ("row", "image"))
    assert rows.tolist() == [*range(len(slices))]
    np.testing.assert_array_equal(images, by_hand(slices, 1))


def test_a_damaged_neighbour_is_named(dataset_of_copy):
    data, victim, other = dataset_of_copy
    seen = data.split("train").with_neighbours(1)
    with pytest.raises(tf.errors.OpError) as caught:
        for _ in input_pipeline.evaluation_batches(seen, 32, Share.whole()):
            pass
    problem = input_pipeline.problem(seen, caught.value)
    assert isinstance(problem, TrainingFailed)
    assert f"record {victim}" in str(problem)
    assert "the payload fails its crc32c" in str(problem)
    with pytest.raises(TrainingFailed):
        data.split("train").with_neighbours(1).read(np.array([other]))  # a slice beside it, which is whole


@pytest.fixture
def dataset_of_copy(runs_of_blobs, tmp_path):
    """A copy with a damaged record: the data set, the number of the record, and the row of a slice beside it."""
    copied = shutil.copytree(runs_of_blobs, tmp_path / "copy")
    data = open_dataset(str(copied))
    train = data.split("train")
    row = len(train) // 2
    with open(train.paths[train.shard[row]], "r+b") as file:
        file.seek(int(train.offset[row]) + 100)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    near = train.with_neighbours(1).beside
    other = next(at for at in range(len(train)) if row in near[at] and near[at][1] != row)
    return data, int(train.record[row]), other


@pytest.mark.slow
def test_two_sets_are_opened_as_one(runs_of_blobs, tmp_path):
    """The neighbours of a slice are the same whether its set is alone or beside another one."""
    second = blob_dataset.make(tmp_path / "second", patients=9, slices_a_patient=5, seed=1, first=500)
    both = open_datasets([str(runs_of_blobs), str(second)]).split("test")
    images, _ = both.with_neighbours(1).read(np.arange(len(both)))
    alone = [open_dataset(str(place)).split("test") for place in (runs_of_blobs, second)]
    np.testing.assert_array_equal(images, np.concatenate([by_hand(part, 1) for part in alone]))
