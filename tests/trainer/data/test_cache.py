import dataclasses
import os
import time
from pathlib import Path

import numpy as np
import pytest

from ich_tfrecords.storage import buckets
from trainer.data import cache
from trainer.data.dataset import open_dataset
from trainer.shell.problems import WrongUse


@pytest.fixture
def bucket(gcs):
    """An empty bucket of its own."""
    return gcs.client().bucket(gcs.bucket())


@pytest.fixture
def place(bucket, tiny_dataset) -> str:
    """The tiny data set in a bucket."""
    for path in tiny_dataset.iterdir():
        bucket.blob(f"sets/tiny/{path.name}").upload_from_string(path.read_bytes())
    return f"gs://{bucket.name}/sets/tiny"


def damage(bucket, name: str) -> None:
    blob = bucket.blob(f"sets/tiny/{name}")
    data = bytearray(blob.download_as_bytes())
    data[len(data) // 2] ^= 1
    blob.upload_from_string(bytes(data))


def copied(place: str, folder: Path) -> tuple[Path, list[str]]:
    notes: list[str] = []
    return Path(open_dataset(place, folder, notes.append).place), notes


def test_metadata_alone_opens_a_bucket(place, tiny_dataset):
    there, here = open_dataset(place + "/"), open_dataset(str(tiny_dataset))
    assert there.manifest == here.manifest
    assert not there.local
    one, other = there.split("train"), here.split("train")
    assert not one.random_access
    assert one.paths == tuple(f"{place}/{name}" for name in other.names)
    assert one.table.equals(other.table)
    assert np.array_equal(one.length, other.length)


def test_a_copy_is_whole_and_local(place, tiny_dataset, tmp_path):
    home, notes = copied(place, tmp_path)
    assert home.parent == tmp_path
    shards = sorted(path.name for path in tiny_dataset.glob("*.tfrecord-*"))
    assert sorted(path.name for path in home.iterdir()) == sorted([*shards, "manifest.json", "slices.parquet"])
    assert all((home / name).read_bytes() == (tiny_dataset / name).read_bytes() for name in shards)
    assert open_dataset(str(home)).split("train").random_access
    assert notes[-1] == f"copied {len(shards)} shards, kept 0 that were there"


def test_good_copies_are_kept_and_bad_ones_made_again(place, tmp_path):
    home, _ = copied(place, tmp_path)
    first, second, third, *rest = sorted(home.glob("*.tfrecord-*"))
    whole = {path: path.read_bytes() for path in (first, second, third)}
    first.write_bytes(whole[first][:-1])
    second.write_bytes(b"\0" + whole[second][1:])
    third.unlink()
    times = {path: path.stat().st_mtime_ns for path in rest}
    _, notes = copied(place, tmp_path)
    assert notes[-1] == f"copied 3 shards, kept {len(rest)} that were there"
    assert all(path.read_bytes() == data for path, data in whole.items())
    assert times == {path: path.stat().st_mtime_ns for path in rest}


def test_a_copy_that_was_cut_off_goes_on(place, tmp_path, monkeypatch):
    plain, calls = cache._download, []

    def fails_at_the_third(blob, path, shard):
        calls.append(path.name)
        if len(calls) == 3:
            raise OSError("No space left on device")
        plain(blob, path, shard)

    monkeypatch.setattr(cache, "_download", fails_at_the_third)
    dataset = open_dataset(place)
    metadata = {name: cache.fetch(place, name, "") for name in ("manifest.json", "slices.parquet")}
    with pytest.raises(WrongUse, match=r"cannot fetch .*: No space left on device; run the same command again"):
        cache.copy(place, tmp_path, dataset.manifest, metadata, lambda line: None, workers=1)
    assert not (tmp_path / "manifest.json").exists()
    assert not list(tmp_path.glob("*.tmp"))
    monkeypatch.setattr(cache, "_download", plain)
    notes: list[str] = []
    cache.copy(place, tmp_path, dataset.manifest, metadata, notes.append)
    kept = int(notes[-1].split("kept ")[1].split()[0])
    assert kept >= 2
    assert open_dataset(str(tmp_path)).local


def test_a_wrong_checksum_is_tried_again_and_then_named(place, bucket, tmp_path, tiny_dataset):
    name = sorted(path.name for path in tiny_dataset.glob("*.tfrecord-*"))[2]
    damage(bucket, name)
    notes: list[str] = []
    with pytest.raises(WrongUse, match=f"shard {name} has crc32c .*, the manifest says .*, 3 times; upload it again"):
        open_dataset(place, tmp_path, notes.append)
    assert [line for line in notes if name in line][-1].endswith("(try 3 of 3)")
    assert not list(tmp_path.rglob(name))
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_checksum_that_is_right_the_second_time_is_enough(place, bucket, tmp_path, monkeypatch, tiny_dataset):
    name = sorted(path.name for path in tiny_dataset.glob("*.tfrecord-*"))[2]
    plain, seen = cache._download, []

    def wrong_once(blob, path, shard):
        wrong = dict(shard, crc32c="00000000") if path.name == name and not seen else shard
        seen.extend([name] if path.name == name else [])
        plain(blob, path, wrong)

    monkeypatch.setattr(cache, "_download", wrong_once)
    home, notes = copied(place, tmp_path)
    assert (home / name).read_bytes() == (tiny_dataset / name).read_bytes()
    assert sum(name in line for line in notes) == 1


def test_a_shard_of_another_size_is_named(place, bucket, tmp_path, tiny_dataset):
    name = sorted(path.name for path in tiny_dataset.glob("*-train.tfrecord-*"))[0]
    bucket.blob(f"sets/tiny/{name}").upload_from_string(b"short")
    with pytest.raises(WrongUse, match=f"shard {name} has 5 bytes, the manifest says "):
        open_dataset(place, tmp_path, lambda line: None)
    with pytest.raises(WrongUse, match=f"shard {name} has 5 bytes, the manifest says .*on a copy of it"):
        open_dataset(place).split("train")


def test_a_bucket_without_data_set_says_how_to_convert(bucket):
    place = f"gs://{bucket.name}/nothing"
    with pytest.raises(WrongUse, match=rf"holds no manifest.json, .*beam_pipelines.convert .*--output {place}"):
        open_dataset(place)


def test_no_bucket_and_no_server(monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    with pytest.raises(WrongUse, match="names no bucket"):
        open_dataset("gs://")
    monkeypatch.setattr(buckets, "RETRY_S", 0.5)
    with pytest.raises(WrongUse, match=r"gs://none/p: cannot fetch manifest.json: "):
        open_dataset("gs://none/p")


def test_a_folder_that_cannot_be_written_is_named(place, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WrongUse, match=r"cannot keep a copy in .*name another folder"):
        open_dataset(place, tmp_path / "file", lambda line: None)


def test_leftovers_of_killed_copies_go_and_those_at_work_stay(tmp_path):
    old, new = (tmp_path / f"{name}.{'0' * 32}.tmp" for name in "ab")
    for path in (old, new):
        path.write_bytes(b"part")
    os.utime(old, (time.time() - 2 * cache.STALE_S,) * 2)
    cache._remove_stale(tmp_path)
    assert not old.exists()
    assert new.exists()


def test_two_data_sets_do_not_share_a_copy(place, tmp_path):
    dataset = open_dataset(place)
    home, _ = copied(place, tmp_path)
    other = dataclasses.replace(dataset.manifest, fingerprint="f" * 64)
    assert home.name != f"{other.spec.name}-{other.fingerprint[:16]}"
    assert home.name.endswith(dataset.manifest.fingerprint[:16])


def test_faults_of_the_network_leave_a_whole_copy(place, gcs, tmp_path, tiny_dataset):
    gcs.random_faults(0.2, seed=3)
    home, _ = copied(place, tmp_path)
    assert sum(gcs.injected.values()) > 5
    assert all(path.read_bytes() == (tiny_dataset / path.name).read_bytes() for path in home.iterdir())


def test_a_copy_bears_the_metadata_that_its_shards_were_checked_against(place, gcs, bucket, tmp_path, tiny_dataset):
    """A set converted anew meanwhile has shards of the same names and lengths; half of each would be no set."""
    metadata = {name: cache.fetch(place, name, "") for name in ("manifest.json", "slices.parquet")}
    done = open_dataset(place).manifest
    for name in metadata:
        bucket.blob(f"sets/tiny/{name}").upload_from_string(b"of another conversion")
    cache.copy(place, tmp_path, done, metadata, lambda line: None)
    assert {name: (tmp_path / name).read_bytes() for name in metadata} == metadata
