import dataclasses
import os
import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import blob_dataset
import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords import spec
from ich_tfrecords.dataset import records
from trainer.data import augment, gather, shard_reader, warp
from trainer.data.augment import Augmentation
from trainer.data.dataset import Slices, open_dataset
from trainer.data.shard_reader import ShardReader, damage_of
from trainer.shell.problems import TrainingFailed


@pytest.fixture(autouse=True, params=["one by one", "compiled"])
def way(request, monkeypatch) -> None:
    """Every test here is run with either way of reading."""
    if request.param == "compiled":
        pytest.importorskip("numba")
        assert gather.compiled() is not None
        monkeypatch.setattr(shard_reader, "WORTH_COMPILING", 0)


@pytest.fixture(scope="module")
def slices(tiny_dataset: Path) -> Slices:
    return open_dataset(str(tiny_dataset)).split("train")


@pytest.fixture(scope="module", params=["hu", "five windows"])
def other_slices(request, tmp_path_factory: pytest.TempPathFactory) -> Slices:
    """HU, or more channels than one word holds."""
    small = blob_dataset.small_spec()
    windows = [dataclasses.replace(small.image.windows[number % 3], name=f"window_{number}") for number in range(5)]
    more = {"kind": spec.HU} if request.param == "hu" else {"windows": tuple(windows)}
    other = dataclasses.replace(small, image=dataclasses.replace(small.image, **more))
    with mock.patch.object(blob_dataset, "small_spec", return_value=other):
        made = blob_dataset.make(tmp_path_factory.mktemp("other") / "set", patients=12)
    return open_dataset(str(made)).split("train")


def plain(slices: Slices) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of the split in table order, as ich_tfrecords reads and parses shards."""
    values, table = [], records.features(slices.spec)
    for path in slices.paths:
        with open(path, "rb") as file:
            values += [records.parse(payload, table) for _, payload in records.read_records(file)]
    return np.stack([value["image"] for value in values]), np.stack([value["labels"] for value in values])


def same(read: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray], rows: np.ndarray) -> bool:
    assert [array.dtype for array in read] == [np.uint8, np.int64]
    return all(np.array_equal(got, want[rows]) for got, want in zip(read, expected, strict=True))


def test_any_rows_in_any_order(slices, monkeypatch):
    expected, reader = plain(slices), ShardReader(slices)
    reader.read(np.arange(len(slices)))
    monkeypatch.setattr(records, "parse", None)  # one record of each length is parsed, the others are not
    for rows in (np.arange(len(slices)), np.random.default_rng(0).integers(0, len(slices), 200), np.arange(0)):
        assert same(reader.read(rows), expected, rows)


def test_the_compiler_is_asked_once_many_were_read(slices, monkeypatch):
    expected, reader, rows = plain(slices), ShardReader(slices), np.arange(20)
    calls = []
    monkeypatch.setattr(shard_reader, "WORTH_COMPILING", 50)
    ask = gather.compiled
    monkeypatch.setattr(gather, "compiled", lambda changed: calls.append(changed) or ask(changed))
    for _ in range(5):
        assert same(reader.read(rows), expected, rows)
    assert calls == [None, None]


@pytest.mark.parametrize("lacks", ["numba", "the function of C", "its values"])
def test_without_a_compiler_records_are_read_one_by_one(slices, monkeypatch, lacks):
    expected, reader, rows = plain(slices), ShardReader(slices), np.arange(20)
    reader.read(rows)
    monkeypatch.setattr(shard_reader, "WORTH_COMPILING", 0)
    monkeypatch.setattr(gather, "compiled", gather.compiled.__wrapped__)
    if lacks == "numba":
        monkeypatch.setattr(warp, "installed", lambda: False)
    elif lacks == "its values":
        monkeypatch.setattr(gather, "_KNOWN_CRC32C", 1)
    else:
        monkeypatch.setitem(sys.modules, "google_crc32c._crc32c", None)
        monkeypatch.delattr(google_crc32c, "_crc32c", raising=False)
    assert gather.compiled() is None
    assert same(reader.read(rows), expected, rows)


def drawn(slices: Slices, count: int, air: int = 0) -> np.ndarray:
    how = Augmentation(True, 30, 0.2, contrast=0.3, erase=0.3)
    return augment.draw(how, 1, 0, count, slices.spec.image.size_px, air)


def test_records_are_changed_as_they_are_read(slices):
    pytest.importorskip("numba")
    (images, labels), reader = plain(slices), ShardReader(slices)
    for rows in (np.arange(len(slices)), np.random.default_rng(0).integers(0, len(slices), 200), np.arange(0)):
        changes = drawn(slices, len(rows))
        wanted = augment.apply(images[rows], changes).numpy()
        read = reader.read(rows, changes)
        assert same(read, (wanted, labels[rows]), np.arange(len(rows)))
        assert same(reader.read(rows), (images, labels), rows)


def test_records_of_other_kinds_are_changed_as_they_are_read(other_slices):
    pytest.importorskip("numba")
    reader, rows = ShardReader(other_slices), np.arange(len(other_slices))
    images, _ = reader.read(rows)
    changes = drawn(other_slices, len(rows), other_slices.spec.image.air)
    read, _ = reader.read(rows, changes)
    assert read.dtype == other_slices.spec.image.dtype
    assert (read == augment.apply(images, changes).numpy()).all()


def test_there_is_a_change_for_each_slice(slices):
    with pytest.raises(ValueError, match="3 changes for 4 slices"):
        ShardReader(slices).read(np.arange(4), drawn(slices, 3))


def test_threads_that_begin_at_once_change_as_one_does(slices):
    pytest.importorskip("numba")
    reader, changes = ShardReader(slices), drawn(slices, len(slices))
    wanted = augment.apply(plain(slices)[0], changes).numpy()
    with ThreadPoolExecutor(4) as pool:
        for found, _ in pool.map(lambda _: reader.read(np.arange(len(slices)), changes), range(8)):
            assert (found == wanted).all()


def test_the_memory_of_a_batch_is_used_again_only_when_nobody_holds_it(slices):
    expected, reader = plain(slices), ShardReader(slices)
    held = [reader.read(np.arange(number, number + 4)) for number in range(6)]
    places = [images.ctypes.data for images, _ in held]
    assert len(set(places)) == 6
    assert all(place % 64 == 0 for place in places)
    for number, batch in enumerate(held):
        assert same(batch, expected, np.arange(number, number + 4))
    del batch
    part = held.pop()[0][1:2]  # a view keeps the whole
    assert reader.read(np.arange(4))[0].ctypes.data not in places
    del part
    again, _ = reader.read(np.arange(3))
    assert again.ctypes.data == places[5]


def test_records_that_are_laid_out_otherwise_are_parsed(slices, tmp_path):
    expected, table = plain(slices), records.features(slices.spec)
    values = dict.fromkeys([feature.name for feature in table if feature.dtype == "string"], b"x" * 20_000)
    values |= {"labels": expected[1][0].tolist(), "position_mm": 1.0, "slice_index": 0, "slice_count": 1}
    # texts so long that the length of the message takes one byte more
    long = records.encode({**values, "image": expected[0][0]}, table)
    fields = records._EXAMPLE.FromString(long).features.feature
    unordered = b""
    for name in sorted(fields, reverse=True):
        entry = records._EXAMPLE()
        entry.features.feature[name].CopyFrom(fields[name])
        unordered += entry.SerializeToString()
    texts = {name: b"x" for name, value in values.items() if isinstance(value, bytes)}
    usual = [records.encode({**values, **texts, "image": image}, table) for image in expected[0][1:4]]
    payloads = [usual[0], long, unordered, usual[1], unordered, usual[2]]
    images = expected[0][[1, 0, 0, 2, 0, 3]]
    path = tmp_path / "shard"
    path.write_bytes(b"".join(b"".join(records.frame(payload)) for payload in payloads))
    several = {name: getattr(slices, name)[[0] * 6] for name in ("shard", "record", "stratum", "labels")}
    lengths = np.array([len(payload) for payload in payloads])
    offsets = np.concatenate([[0], np.cumsum(lengths + 16)[:-1]])
    some = dataclasses.replace(slices, **several, offset=offsets, length=lengths, paths=(str(path),))
    rows, reader = np.array([1, 0, 3, 2, 4, 5]), ShardReader(some)
    for _ in range(2):
        read, labels = reader.read(rows)
        assert (read == images[rows]).all()
        assert (labels == expected[1][0]).all()
    if warp.installed():
        changes = drawn(slices, 6)
        assert (reader.read(rows, changes)[0] == augment.apply(images[rows], changes).numpy()).all()


def test_many_threads_read_at_once(slices):
    expected, reader = plain(slices), ShardReader(slices)
    orders = [np.random.default_rng(seed).permutation(len(slices)) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        for rows, read in zip(orders, pool.map(reader.read, orders), strict=True):
            assert same(read, expected, rows)


@pytest.mark.parametrize("kept", [0, 1])
def test_shards_beyond_the_limit_of_open_files_are_read_all_the_same(slices, monkeypatch, kept):
    reader = ShardReader(slices)
    monkeypatch.setattr(shard_reader, "_may_keep_another", lambda: len(reader._files) < kept)
    rows = np.arange(len(slices))
    assert same(reader.read(rows), plain(slices), rows)
    assert len(reader._files) == kept


@pytest.mark.parametrize(
    ("soft", "hard", "held", "raised_to", "may"),
    [
        (1024, 4096, 767, None, True),
        (1024, 4096, 768, 1281, True),  # raised, with room for the next ones
        (1024, 1100, 768, 1100, True),
        (1100, 1100, 843, None, True),
        (1100, 1100, 844, None, False),  # as far as it goes, and the rest not kept open
        (64, 64, 0, None, False),
        (1024, resource.RLIM_INFINITY, 5000, 5513, True),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 10**6, None, True),
    ],
)
def test_the_limit_of_open_files(monkeypatch, soft, hard, held, raised_to, may):
    calls = []
    monkeypatch.setattr(shard_reader, "_shards", range(held))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: calls.append(limits))
    assert shard_reader._may_keep_another() is may
    assert calls == ([] if raised_to is None else [(raised_to, hard)])


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_shard_is_open_once_however_many_read_it_and_closed_behind_the_last(dataset_copy):
    slices = open_dataset(str(dataset_copy)).split("train")
    rows = np.arange(len(slices))
    one, two = ShardReader(slices), ShardReader(slices.take(rows % 2 == 0, "half"))
    one.read(rows)
    before = open_files()
    read = two.read(np.arange(len(rows[::2])))
    assert open_files() == before
    used = len(one._files)
    del one
    assert open_files() >= before - used + len(two._files)
    assert same(two.read(np.arange(len(rows[::2]))), read, np.arange(len(rows[::2])))
    held = len(two._files)
    before = open_files()
    del two
    assert open_files() == before - held


def test_a_shard_that_was_written_anew_is_read_anew(dataset_copy):
    """Under the name of one that is still open."""
    slices = open_dataset(str(dataset_copy)).split("train")
    reader = ShardReader(slices)
    reader.read(np.arange(len(slices)))
    for path in map(Path, slices.paths):
        aside = path.with_name("aside")
        aside.write_bytes(bytes(path.stat().st_size))
        aside.replace(path)
    with pytest.raises(TrainingFailed):
        ShardReader(slices).read(np.arange(1))


def damaged(dataset_copy: Path, change) -> tuple[Slices, int]:
    """The train split with `change(bytes, offset, length)` done to the shard of a row, and that row."""
    slices = open_dataset(str(dataset_copy)).split("train")
    row = int(np.flatnonzero(slices.record == slices.record.max())[0])
    path = Path(slices.paths[slices.shard[row]])
    data = bytearray(path.read_bytes())
    path.write_bytes(change(data, int(slices.offset[row]), int(slices.length[row])))
    return slices, row


def flipped(data: bytearray, place: int) -> bytearray:
    data[place] ^= 1
    return data


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data, offset, length: flipped(data, offset), "the length field fails its crc32c"),
        (lambda data, offset, length: flipped(data, offset + 9), "the length field fails its crc32c"),
        (lambda data, offset, length: flipped(data, offset + 12 + length // 2), "the payload fails its crc32c"),
        (lambda data, offset, length: flipped(data, offset + 12 + length + 3), "the payload fails its crc32c"),
        (lambda data, offset, length: data[: offset + 100], "the shard ends after 100 of "),
        (lambda data, offset, length: data[:offset], "the shard ends after 0 of "),
        (
            lambda data, offset, length: data[:offset] + b"".join(records.frame(b"x" * (length + 5))),
            "bytes, the slice ",
        ),
    ],
)
def test_a_damaged_record_is_named(dataset_copy, change, words):
    slices, row = damaged(dataset_copy, change)
    with pytest.raises(TrainingFailed) as caught:
        slices.reader.read(np.array([row]))
    message = str(caught.value)
    name, offset = slices.names[slices.shard[row]], slices.offset[row]
    assert f"shard {name}, record {slices.record[row]} at byte {offset:,}: " in message
    assert words in message
    assert f"python -m ich_tfrecords.inspect verify {dataset_copy}" in message
    assert slices.reader.problem is caught.value


def test_the_first_problem_is_kept_and_whole_records_are_still_read(dataset_copy):
    slices, row = damaged(dataset_copy, lambda data, offset, length: flipped(data, offset + 20))
    with pytest.raises(TrainingFailed):
        slices.reader.read(np.array([row]))
    first = slices.reader.problem
    with pytest.raises(TrainingFailed):
        slices.reader.read(np.array([row]))
    assert slices.reader.problem is first
    others = np.delete(np.arange(len(slices)), row)
    assert len(slices.reader.read(others)[0]) == len(others)


def test_a_shard_that_vanishes_is_named(dataset_copy):
    slices = open_dataset(str(dataset_copy)).split("train")
    Path(slices.paths[0]).unlink()
    with pytest.raises(TrainingFailed, match=f"shard {slices.names[0]}, record 0 at byte 0: cannot be read: "):
        slices.reader.read(np.array([0]))


def test_a_disk_that_fails_is_named(dataset_copy):
    slices = open_dataset(str(dataset_copy)).split("train")
    slices.reader.read(np.arange(len(slices)))  # its lengths are known
    shard = int(slices.shard[-1])
    slices.reader._files[shard] = shard_reader._Shard(os.open("/", os.O_RDONLY))
    with pytest.raises(TrainingFailed, match=f"{slices.names[shard]}, record 0 at byte 0: cannot be read: .*directory"):
        slices.reader.read(np.arange(len(slices)))


@given(payload=st.binary(max_size=40), place=st.integers(0, 55), bit=st.integers(0, 7))
def test_no_flipped_bit_gets_through(payload, place, bit):
    framed = bytearray(b"".join(records.frame(payload)))
    assert damage_of(bytes(framed), len(payload)) == ""
    if place < len(framed):
        framed[place] ^= 1 << bit
        assert damage_of(bytes(framed), len(payload)) != ""
        assert damage_of(np.frombuffer(framed, np.uint8), len(payload)) != ""


def test_a_bucket_gets_other_advice(slices):
    there = dataclasses.replace(slices, paths=tuple(f"gs://bucket/set/{name}" for name in slices.names))
    assert "on a copy of it" in str(shard_reader.record_problem(there, 0, "the payload fails its crc32c"))
