"""One holder at a time, and none for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("google.cloud.storage", reason="google-cloud-storage is not installed")

from ich_tfrecords.storage import bucket_lock, buckets
from ich_tfrecords.storage.bucket_lock import BucketLock
from ich_tfrecords.storage.bucket_path import BucketPath
from ich_tfrecords.storage.file_lock import Held


@pytest.fixture
def path(gcs, monkeypatch) -> BucketPath:
    monkeypatch.setattr(buckets, "FIRST_PAUSE_S", 0.005)
    return BucketPath(gcs.bucket(), "out") / ".work" / "lock"


@pytest.fixture
def stale(monkeypatch) -> None:
    """Every lock is as old as that of a process which is gone."""
    monkeypatch.setattr(bucket_lock, "STALE_S", -1e9)


def until(holds: Callable[[], object]) -> None:
    for _ in range(2000):
        if holds():
            return
        time.sleep(0.005)
    raise AssertionError("it never came")


def test_a_second_is_refused_and_told_by_whom(path):
    lock = BucketLock(path)
    with pytest.raises(Held, match=r"process \d+ on .*, last sign of life \d+ s ago"):
        BucketLock(path)
    lock.require()
    lock.close()
    assert not path.parent.exists()  # nor is a clock left
    BucketLock(path).close()


def test_the_lock_of_a_process_that_is_gone_is_taken_over(path, monkeypatch):
    path.write_bytes(b"process 1 on a machine that is gone\n")
    with pytest.raises(Held, match="process 1 on a machine that is gone, last"):
        BucketLock(path)
    monkeypatch.setattr(bucket_lock, "STALE_S", 0.05)
    time.sleep(0.06)
    lock = BucketLock(path)
    assert b"gone" not in path.read_bytes()
    lock.close()


def test_who_was_taken_over_learns_it(path, stale, monkeypatch):
    monkeypatch.setattr(bucket_lock, "BEAT_S", 0.01)
    first = BucketLock(path)
    for _ in range(100):  # the first beats meanwhile, and may win
        try:
            second = BucketLock(path)
            break
        except Held:
            continue
    until(lambda: not first._beats.is_alive())
    with pytest.raises(Held, match=r"process \d+ on .*, which took over while this process stood still"):
        first.require()
    first.close()
    second.require()
    assert path.exists()  # the first has not removed what is no longer its own
    second.close()
    assert not path.exists()


def test_one_of_many_takers_of_a_stale_lock_wins(path, monkeypatch):
    path.write_bytes(b"process 1\n")
    together = threading.Barrier(4)

    def late(_: BucketLock) -> float:
        together.wait(20)  # all have seen the stale lock, none has replaced it
        return 1e12

    monkeypatch.setattr(BucketLock, "_clock_s", late)

    def take(_: int) -> BucketLock | None:
        try:
            return BucketLock(path)
        except Held:
            return None

    with ThreadPoolExecutor(4) as pool:
        locks = [lock for lock in pool.map(take, range(4)) if lock]
    assert len(locks) == 1
    locks[0].require()
    locks[0].close()


def test_a_lost_answer_is_no_refusal(gcs, path, monkeypatch):
    gcs.fail("POST /upload", how="lost_answer")
    monkeypatch.setattr(bucket_lock, "BEAT_S", 0.01)
    lock = BucketLock(path)
    gcs.fail("POST /upload", how="lost_answer", times=3)
    before = lock._generation
    until(lambda: gcs.injected["lost_answer"] == 4 and lock._generation != before)
    lock.require()
    gcs.fail("DELETE", how="lost_answer")
    lock.close()
    assert not path.exists()


@pytest.mark.parametrize("retry_s", [120.0, 0.01])
def test_the_heart_beats_on_after_an_outage(gcs, path, monkeypatch, retry_s):
    monkeypatch.setattr(buckets, "RETRY_S", retry_s)
    monkeypatch.setattr(bucket_lock, "BEAT_S", 0.01)
    lock = BucketLock(path)
    fault = gcs.fail("POST /upload", how="503", times=4)
    until(lambda: fault.times == 0)
    before = lock._generation
    until(lambda: lock._generation != before)
    lock.require()
    lock.close()
    assert not path.exists()


def test_a_lock_that_was_swept_away_is_lost(path, monkeypatch):
    monkeypatch.setattr(bucket_lock, "BEAT_S", 0.01)
    lock = BucketLock(path)
    while not lock._lost:  # a beat under way may put it back once
        path.unlink(missing_ok=True)
    with pytest.raises(Held, match="its process is not known"):
        lock.require()
    lock.close()


def test_a_bucket_that_refuses_is_an_error(gcs, path):
    gcs.fail("POST /upload", how="403")
    with pytest.raises(PermissionError):
        BucketLock(path)
