import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from tensorflow.python.framework import config as tf_config

from ich_tfrecords.dataset import records
from trainer.data import augment, batches, sampling, warp
from trainer.data.augment import Augmentation
from trainer.data.dataset import Slices, open_dataset
from trainer.data.input_pipeline import (
    EpochPlan,
    Share,
    epoch_size,
    evaluation_batches,
    evaluation_steps,
    problem,
    slices_of_step,
    train_batches,
)
from trainer.shell.problems import TrainingFailed, WrongUse

PLAIN = Augmentation(False, 0.0, 0.0)
READERS = pytest.mark.parametrize("stream", [False, True], ids=["random", "stream"])
SHARES = pytest.mark.parametrize(
    "parts",
    [[Share.whole(2)], [Share.whole(4)], [Share(2, 0, 1), Share(2, 1, 1)], [Share(4, 0, 2), Share(4, 2, 2)]],
    ids=["1x2", "1x4", "2x1", "2x2"],
)


@pytest.fixture(scope="module")
def both(tiny_dataset: Path) -> dict[bool, Slices]:
    dataset = open_dataset(str(tiny_dataset))
    return {stream: dataset.split("train", stream=stream) for stream in (False, True)}


@pytest.fixture(scope="module")
def parsed(both) -> list[dict]:
    """Every record of the split as ich_tfrecords reads and parses it, in table order."""
    slices, values = both[False], []
    for path in slices.paths:
        with open(path, "rb") as file:
            values += [
                records.parse(payload, records.features(slices.spec)) for _, payload in records.read_records(file)
            ]
    return values


def plan_of(slices: Slices, policy: str = "natural", size: int = 0, **changes) -> EpochPlan:
    shares = sampling.proportions(policy, slices.stratum_counts, {})
    size = size or epoch_size(slices, Share.whole())
    plan = EpochPlan(policy, shares, 7, 0, size, batch_size=16, quantum=1, augmentation=PLAIN)
    return dataclasses.replace(plan, **changes)


def read(batches: tf.data.Dataset) -> list[list[tuple[bytes, tuple[int, ...]]]]:
    """(digest of the image, labels) of each slice of each batch."""
    found = []
    for batch in batches.as_numpy_iterator():
        assert batch["image"].dtype == np.uint8
        assert batch["labels"].dtype == np.int64
        pairs = zip(batch["image"], batch["labels"].tolist(), strict=True)
        found.append([(records.pixel_digest(image), tuple(labels)) for image, labels in pairs])
    return found


def flat(batches: list[list]) -> list:
    return [slice_ for batch in batches for slice_ in batch]


def expected_of(parsed: list[dict], rows) -> list[tuple[bytes, tuple[int, ...]]]:
    return [(records.pixel_digest(parsed[row]["image"]), tuple(parsed[row]["labels"].tolist())) for row in rows]


@READERS
def test_a_natural_epoch_has_every_slice_once_and_a_short_last_batch(both, parsed, stream):
    slices = both[stream]
    plan = plan_of(slices)
    batches = read(train_batches(slices, plan, Share.whole()))
    full, rest = divmod(len(slices), 16)
    assert rest
    assert [len(batch) for batch in batches] == [16] * full + [rest]
    assert len(batches) == plan.steps
    assert Counter(flat(batches)) == Counter(expected_of(parsed, np.flatnonzero(slices.labelled)))


def test_records_at_random_follow_the_epoch_order(both, parsed):
    slices = both[False]
    for policy, epoch in (("natural", 0), ("balanced", 2)):
        plan = plan_of(slices, policy, 50, epoch=epoch)
        names = slices.spec.labels.strata
        rows = sampling.epoch_order(slices.stratum, names, policy, plan.shares, plan.seed, epoch, 50)
        assert flat(read(train_batches(slices, plan, Share.whole()))) == expected_of(parsed, rows)


@READERS
@pytest.mark.parametrize("policy", ["natural", "balanced"])
def test_skipping_steps_is_dropping_them(both, policy, stream):
    plan = plan_of(both[stream], policy, 40, augmentation=Augmentation(True, 10.0, 0.1))
    whole = read(train_batches(both[stream], plan, Share.whole()))
    assert [len(batch) for batch in whole] == [16, 16, 8]
    for skipped in (1, 2, 3) if policy == "natural" else (2,):
        assert read(train_batches(both[stream], plan, Share.whole(), skipped)) == whole[skipped:]


@READERS
def test_skipping_steps_with_several_replicas_in_a_worker(both, stream):
    plan, share = plan_of(both[stream], "balanced", 40, quantum=4), Share(4, 2, 2)
    whole = read(train_batches(both[stream], plan, share))
    assert [len(batch) for batch in whole] == [4, 4, 4, 4, 2, 2]
    for skipped in (1, 2):
        assert read(train_batches(both[stream], plan, share, skipped)) == whole[2 * skipped :]


@SHARES
def test_a_step_has_the_same_slices_on_any_replicas_and_workers(both, parts):
    plan = plan_of(both[False], "balanced", 44, quantum=4, augmentation=Augmentation(True, 10.0, 0.1))
    alone = read(train_batches(both[False], plan, Share.whole()))
    workers = [read(train_batches(both[False], plan, share)) for share in parts]
    for step, batch in enumerate(alone):
        together = [
            slice_
            for share, batches in zip(parts, workers)
            for part in batches[step * share.count : (step + 1) * share.count]
            for slice_ in part
        ]
        assert together == batch


@pytest.mark.parametrize("parts", [[Share(2, 0, 1), Share(2, 1, 1)], [Share(4, 0, 2), Share(4, 2, 2)]])
def test_streams_of_workers_are_disjoint_and_have_exact_proportions(both, parsed, parts):
    slices = both[True]
    plan = plan_of(slices, size=epoch_size(slices, parts[0]), quantum=4)
    rows = flat([flat(read(train_batches(slices, plan, share))) for share in parts])
    assert len(rows) == plan.size - plan.size % 16 % 4
    assert not Counter(rows) - Counter(expected_of(parsed, range(len(parsed))))
    plan = plan_of(slices, "balanced", 48, quantum=4)
    sizes = [[len(batch) for batch in read(train_batches(slices, plan, share))] for share in parts]
    assert sizes == [[16 // share.replicas] * share.count * 3 for share in parts]


@READERS
def test_epochs_differ_and_repeat_to_the_bit(both, stream):
    plan = plan_of(both[stream], "sqrt", 32)
    first = read(train_batches(both[stream], plan, Share.whole()))
    assert read(train_batches(both[stream], plan, Share.whole())) == first
    assert read(train_batches(both[stream], dataclasses.replace(plan, epoch=1), Share.whole())) != first


@READERS
def test_augmentation_goes_by_the_position_in_the_epoch(both, stream):
    slices, how = both[stream], Augmentation(True, 15.0, 0.1)
    plan = plan_of(slices, size=40, epoch=3, quantum=2)
    moved = train_batches(slices, dataclasses.replace(plan, augmentation=how), Share(2, 1, 1)).as_numpy_iterator()
    still = train_batches(slices, plan, Share(2, 1, 1)).as_numpy_iterator()
    changes = augment.draw(how, plan.seed, plan.epoch, plan.size, slices.spec.image.size_px)
    own = [np.arange(8, 16), np.arange(24, 32), np.arange(36, 40)]
    for positions, before, after in zip(own, still, moved, strict=True):
        assert np.array_equal(augment.apply(before["image"], changes[positions]).numpy(), after["image"])
        assert np.array_equal(before["labels"], after["labels"])


@READERS
@pytest.mark.parametrize("count", [1, 5, 32, 33])
def test_evaluation_has_every_slice_once(both, parsed, stream, count):
    slices = first_rows(both[stream], count)
    for parts in ([Share.whole()], [Share(4, 0, 2), Share(4, 2, 2)]):
        seen: list[int] = []
        for share in parts:
            batches = list(evaluation_batches(slices, 8, share).as_numpy_iterator())
            assert len(batches) == evaluation_steps(slices, 8, share) * share.count
            for batch in batches:
                assert batch["image"].shape == (8 // share.replicas, 32, 32, 3)
                for image, labels, row, weight in zip(*(batch[name] for name in ("image", "labels", "row", "weight"))):
                    assert np.array_equal(image, parsed[row]["image"])
                    assert np.array_equal(labels, parsed[row]["labels"])
                    assert weight in (0, 1)
                    seen += [int(row)] * int(weight)
        assert sorted(seen) == list(range(count))
        assert stream or seen == sorted(seen)


@READERS
def test_closing_a_reader_waits_for_no_autotuning(both, stream):
    """Its thread sleeps for up to a minute, and is not woken each time its iterator goes."""
    slices = both[stream]
    batches = evaluation_batches(slices, 8, Share.whole()), train_batches(slices, plan_of(slices), Share.whole())
    for made in batches:
        for ends in (made, made.concatenate(made.take(1).repeat())):  # as it comes, and as `steps.distribute` has it
            assert ends.options().autotune.enabled is False


def first_rows(slices: Slices, count: int) -> Slices:
    """The first slices of a split."""
    names = ("shard", "record", "offset", "length", "stratum", "labels")
    kept = {name: getattr(slices, name)[:count] for name in names}
    return dataclasses.replace(slices, **kept, table=slices.table.slice(0, count))


@given(slices=st.integers(1, 300), batch_size=st.integers(1, 40), count=st.integers(1, 3), workers=st.integers(1, 4))
def test_all_workers_evaluate_as_many_batches(slices, batch_size, count, workers):
    rows = range(slices)
    shares = [Share(count * workers, worker * count, count) for worker in range(workers)]
    steps = {evaluation_steps(rows, batch_size, share) for share in shares}
    assert len(steps) == 1
    most = max(-(-slices * (share.first + count) // (count * workers)) for share in shares[:1])
    assert min(steps) * count * -(-batch_size // (count * workers)) >= most


@given(
    size=st.integers(0, 90), steps=st.integers(0, 9), workers=st.integers(1, 3), count=st.integers(1, 3), data=st.data()
)
def test_positions_against_counting_them_one_by_one(size, steps, workers, count, data):
    replicas = workers * count
    quantum = replicas * data.draw(st.integers(1, 2))
    batch_size = quantum * data.draw(st.integers(1, 4))
    plan = EpochPlan("natural", {}, 0, 0, size, batch_size, quantum, PLAIN)
    share = Share(replicas, data.draw(st.integers(0, workers - 1)) * count, count)
    usable = size - size % batch_size % quantum
    expected = []
    for begin in range(0, usable, batch_size):
        end = min(begin + batch_size, usable)
        each = (end - begin) // replicas
        mine = [list(range(begin + r * each, begin + (r + 1) * each)) for r in range(share.first, share.first + count)]
        expected.append(mine)
    parts = plan.positions(share, steps)
    assert [batch.tolist() for part in parts for batch in part] == [
        batch for step in expected[steps:] for batch in step
    ]
    assert plan.steps == len(expected)


@READERS
def test_shapes_are_static_where_there_is_no_short_batch(both, stream):
    for size, batch in ((32, 16), (40, None)):
        spec = train_batches(both[stream], plan_of(both[stream], size=size), Share.whole()).element_spec
        assert spec["image"].shape.as_list() == [batch, 32, 32, 3]
        assert spec["labels"].shape.as_list() == [batch, 6]
    spec = evaluation_batches(both[stream], 10, Share(4, 0, 2)).element_spec
    assert {name: value.shape.as_list()[0] for name, value in spec.items()} == dict.fromkeys(spec, 3)


@READERS
def test_the_same_batches_where_tensorflow_is_told_to_be_deterministic(both, stream):
    plan = plan_of(both[stream], "balanced", 48, augmentation=Augmentation(True, 5.0, 0.0))
    before = read(train_batches(both[stream], plan, Share.whole()))
    tf.config.experimental.enable_op_determinism()
    try:
        assert read(train_batches(both[stream], plan, Share.whole())) == before
    finally:
        tf_config.disable_op_determinism()


@READERS
def test_batches_inside_a_compiled_loop(both, stream):
    plan = plan_of(both[stream], size=40)

    @tf.function
    def brightness(iterator):
        total = tf.constant(0, tf.int64)
        for _ in tf.range(3):
            total += tf.reduce_sum(tf.cast(next(iterator)["image"], tf.int64))
        return total

    batches = train_batches(both[stream], plan, Share.whole())
    eager = sum(int(batch["image"].astype(np.int64).sum()) for batch in batches.as_numpy_iterator())
    assert int(brightness(iter(batches))) == eager


@READERS
def test_the_slices_of_a_step_can_be_named(both, stream):
    slices, share = both[stream], Share(4, 2, 2)
    plan = plan_of(slices, "balanced", 40, quantum=4)
    digest_of = dict(zip(slices.table["sop_uid"].to_pylist(), slices.table["pixel_digest"].to_pylist(), strict=True))
    batches = read(train_batches(slices, plan, share))
    for step in (0, 2):
        shown = [digest.hex() for digest, _ in flat(batches[2 * step : 2 * step + 2])]
        assert [digest_of[uid] for uid in slices_of_step(slices, plan, share, step)] == shown


@READERS
@pytest.mark.parametrize("kind", ["train", "evaluation"])
def test_a_damaged_record_is_named_through_tf_data(dataset_copy, stream, kind):
    slices = open_dataset(str(dataset_copy)).split("train", stream=stream)
    row = len(slices) // 2
    path, offset = Path(slices.paths[slices.shard[row]]), int(slices.offset[row])
    data = bytearray(path.read_bytes())
    data[offset + 12 + 100] ^= 8
    path.write_bytes(data)
    share = Share.whole()
    batches = train_batches(slices, plan_of(slices), share) if kind == "train" else evaluation_batches(slices, 8, share)
    with pytest.raises(tf.errors.OpError) as caught:
        list(batches)
    told = problem(slices, caught.value)
    assert isinstance(told, TrainingFailed)
    assert f"shard {path.name}, record {slices.record[row]} at byte {offset:,}: the payload fails its crc32c" in str(
        told
    )
    assert f"inspect verify {dataset_copy}" in str(told)
    assert "\n" not in str(told)


@READERS
def test_a_shard_that_vanished_is_named(dataset_copy, stream):
    slices = open_dataset(str(dataset_copy)).split("train", stream=stream)
    Path(slices.paths[2]).unlink()
    with pytest.raises(tf.errors.OpError) as caught:
        list(train_batches(slices, plan_of(slices), Share.whole()))
    told = str(problem(slices, caught.value))
    assert slices.names[2] in told
    assert "No such file" in told
    assert "{{" not in told


@READERS
def test_a_record_that_is_whole_and_no_slice(dataset_copy, stream):
    slices = open_dataset(str(dataset_copy)).split("train", stream=stream)
    path, length = Path(slices.paths[0]), int(slices.length[0])
    path.write_bytes(b"".join(records.frame(b"\0" * length)) + path.read_bytes()[length + 16 :])
    with pytest.raises(tf.errors.OpError) as caught:
        list(train_batches(slices, plan_of(slices), Share.whole()))
    words = "reading split train failed: " if stream else "record 0 at byte 0: not a tf.train.Example"
    assert words in str(problem(slices, caught.value))


@READERS
def test_errors_about_other_things_are_left_alone(both, stream):
    for error in (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"), ValueError("x")):
        assert problem(both[stream], error) is None


def test_shares():
    assert Share.whole() == Share(1, 0, 1)
    assert [(share.workers, share.worker) for share in (Share(8, 4, 2), Share.whole(3))] == [(4, 2), (1, 0)]
    for wrong in ((4, 0, 3), (4, 1, 2), (4, 4, 2), (2, 0, 0), (2, -1, 1)):
        with pytest.raises(WrongUse, match="give every worker the same number of devices"):
            Share(*wrong)


@READERS
def test_plans_that_cannot_be(both, stream):
    slices = both[stream]
    with pytest.raises(WrongUse, match="which 3 replicas cannot share"):
        train_batches(slices, plan_of(slices), Share.whole(3))
    with pytest.raises(WrongUse, match="an epoch of 3 slices makes no batch; 4 are the least"):
        train_batches(slices, plan_of(slices, size=3, quantum=4), Share.whole())
    with pytest.raises(WrongUse, match=r"an epoch of .* or|at most"):
        train_batches(slices, plan_of(slices, size=len(slices) + 1), Share.whole())


def test_unlabelled_slices_are_not_trained_on(both):
    some = both[False]
    stratum = np.where(np.arange(len(some)) < 5, some.spec.labels.strata.index("unlabelled"), some.stratum)
    some = dataclasses.replace(some, stratum=stratum.astype(np.int8))
    assert epoch_size(some, Share.whole()) == len(some) - 5
    uids = [uid for step in range(2) for uid in slices_of_step(some, plan_of(some, batch_size=64), Share.whole(), step)]
    assert not set(some.table["sop_uid"].to_pylist()[:5]) & set(uids)


@READERS
def test_changes_for_the_step_go_with_the_batch(both, stream):
    """What the step makes of them is what the host would have made."""
    plan = plan_of(both[stream], "balanced", 40, augmentation=Augmentation(True, 10.0, 0.1, erase=0.3))
    given = list(train_batches(both[stream], dataclasses.replace(plan, in_step=True), Share.whole()))
    assert [set(batch) for batch in given] == [{"image", "labels", "changes"}] * 3
    made = [augment.in_step(batch["image"], batch["changes"]).numpy() for batch in given]
    for batch, expected in zip(train_batches(both[stream], plan, Share.whole()), made, strict=True):
        assert set(batch) == {"image", "labels"}
        assert np.array_equal(batch["image"], expected)


@pytest.mark.parametrize("together", [1, 3, 100])
@pytest.mark.parametrize("compiled", [True, False], ids=["numba", "tensorflow"])
def test_batches_are_the_same_however_many_are_read_in_a_call(both, monkeypatch, together, compiled):
    if compiled:
        pytest.importorskip("numba")
    plan = plan_of(both[False], "balanced", 100, augmentation=Augmentation(True, 10.0, 0.1))
    expected = read(train_batches(both[False], plan, Share.whole()))
    monkeypatch.setattr(batches, "READ_TOGETHER", together)
    monkeypatch.setattr(warp, "installed", lambda: compiled)
    assert read(train_batches(both[False], plan, Share.whole())) == expected


def test_batches_of_great_images_are_read_one_by_one(both, monkeypatch):
    """So that memory does not grow with the images."""
    sizes = []
    monkeypatch.setattr(batches, "READ_TOGETHER", 4)
    reader = both[False].reader
    ask = reader.read
    monkeypatch.setattr(reader, "read", lambda rows, changes: sizes.append(rows.shape) or ask(rows, changes))
    list(train_batches(both[False], plan_of(both[False], "balanced", 96), Share.whole()))
    assert sorted(set(sizes)) == [(2, 16), (4, 16)]
    sizes.clear()
    monkeypatch.setattr(batches, "MOST_TOGETHER_BYTES", 16 * 32 * 32 * 3)
    list(train_batches(both[False], plan_of(both[False], "balanced", 96), Share.whole()))
    assert set(sizes) == {(1, 16)}
