"""Requests to Cloud Storage against a real server that fails on demand."""

from __future__ import annotations

import os
import re
import socket
from pathlib import PurePosixPath

import pytest

pytest.importorskip("google.cloud.storage", reason="google-cloud-storage is not installed")

from ich_tfrecords.storage import buckets

DATA = os.urandom(100_000)
PASSING = ["503", "429", "reset", "lost_answer"]
OF_DOWNLOADS = [*PASSING, "short", "reset_body"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(buckets, "FIRST_PAUSE_S", 0.005)


@pytest.fixture
def bucket(gcs) -> str:
    return gcs.bucket()


def test_what_is_written_is_read(bucket):
    stored = buckets.write(bucket, "a b/#?%.\u00e9", DATA)
    assert stored == buckets.stat(bucket, "a b/#?%.\u00e9") == next(buckets.listed(bucket, "a"))
    assert stored.size_bytes == len(DATA)
    assert stored.updated_s > 1e9
    assert buckets.read(bucket, stored.key) == DATA
    buckets.delete(bucket, stored.key, stored.generation)
    with pytest.raises(FileNotFoundError) as caught:
        buckets.read(bucket, stored.key)
    assert caught.value.filename == f"gs://{bucket}/{stored.key}"


def test_ranges(bucket):
    generation = buckets.write(bucket, "a", DATA).generation
    assert buckets.read_range(bucket, "a", 10, 20) == DATA[10:30]
    assert buckets.read_range(bucket, "a", len(DATA) - 5, 20, generation) == DATA[-5:]
    assert buckets.read_range(bucket, "a", len(DATA), 20) == b""
    assert buckets.read_range(bucket, "a", 0, 0) == b""
    buckets.write(bucket, "a", b"new")
    with pytest.raises(FileNotFoundError):
        buckets.read_range(bucket, "a", 0, 3, generation)


def test_another_generation_is_moved(bucket):
    stored = buckets.write(bucket, "a", b"1", 0)
    for call in (
        lambda: buckets.write(bucket, "a", b"2", 0),
        lambda: buckets.write(bucket, "a", b"2", stored.generation + 1),
        lambda: buckets.delete(bucket, "a", stored.generation + 1),
    ):
        with pytest.raises(buckets.Moved, match="changed meanwhile"):
            call()
    assert buckets.read(bucket, "a") == b"1"
    assert buckets.write(bucket, "a", b"2", stored.generation).generation != stored.generation


@pytest.mark.parametrize("how", [*OF_DOWNLOADS, "corrupt"])
def test_a_download_that_fails_in_passing_is_made_again(gcs, bucket, how):
    buckets.write_many([(bucket, "a", DATA), (bucket, "b", b"b")])
    gcs.fail("alt=media", how=how, times=2)
    assert buckets.read(bucket, "a") == DATA
    gcs.fail("alt=media", how=how, times=2)
    assert buckets.read_many([(bucket, "a"), (bucket, "none"), (bucket, "b")]) == [DATA, None, b"b"]
    assert gcs.injected == {how: 4}


@pytest.mark.parametrize("how", OF_DOWNLOADS)
def test_a_range_that_fails_in_passing_is_fetched_again(gcs, bucket, how):
    buckets.write(bucket, "a", DATA)
    gcs.fail("alt=media", how=how, times=2)
    assert buckets.read_range(bucket, "a", 5, 5000) == DATA[5:5005]
    assert gcs.injected == {how: 2}


def test_what_came_in_two_pieces_is_checked_too(gcs, bucket):
    """The library goes on where a download broke off, and checks nothing of what it then has."""
    buckets.write(bucket, "a", DATA)
    gcs.fail("alt=media", how="short")
    gcs.fail("alt=media", how="corrupt")
    assert buckets.read(bucket, "a") == DATA
    assert gcs.injected == {"short": 1, "corrupt": 1}


@pytest.mark.parametrize("how", PASSING)
def test_other_requests_are_made_again(gcs, bucket, how):
    gcs.fail(how=how, times=1)
    buckets.write(bucket, "a", DATA)
    gcs.fail(how=how, times=2)
    assert buckets.stat(bucket, "a").size_bytes == len(DATA)
    gcs.fail(how=how, times=2)
    assert [stored.key for stored in buckets.listed(bucket, "")] == ["a"]
    gcs.fail(how=how, times=1)
    buckets.write_many([(bucket, "b", b"b")])
    gcs.fail(how=how, times=1)
    buckets.delete(bucket, "a")  # carried out and not answered: its repetition finds nothing, and that is well
    assert gcs.injected == {how: 7}
    with pytest.raises(FileNotFoundError):
        buckets.delete(bucket, "a")


CALLS = {
    "read": lambda bucket: buckets.read(bucket, "k"),
    "read_range": lambda bucket: buckets.read_range(bucket, "k", 0, 5),
    "write": lambda bucket: buckets.write(bucket, "k", b"x"),
    "stat": lambda bucket: buckets.stat(bucket, "k"),
    "delete": lambda bucket: buckets.delete(bucket, "k"),
    "listed": lambda bucket: list(buckets.listed(bucket, "k")),
    "page": lambda bucket: buckets.page(bucket, "k"),
    "holds_any": lambda bucket: buckets.holds_any(bucket, "k"),
    "folder": lambda bucket: buckets.folder(bucket, "k"),
    "read_many": lambda bucket: buckets.read_many([(bucket, "k")]),
    "write_many": lambda bucket: buckets.write_many([(bucket, "k", b"x")]),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("how", "kind"), [("503", OSError), ("reset", OSError), ("403", PermissionError)])
def test_what_fails_for_good_is_an_error_that_names_the_object(gcs, bucket, monkeypatch, name, how, kind):
    monkeypatch.setattr(buckets, "RETRY_S", 0.05)
    gcs.fail(how=how, times=None)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        CALLS[name](bucket)
    assert isinstance(caught.value, kind)
    assert not isinstance(caught.value, FileNotFoundError)
    assert caught.value.filename == f"gs://{bucket}/k"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(CALLS.keys() - {"read_many"}))
def test_a_bucket_that_is_not_there(gcs, name):
    with pytest.raises(FileNotFoundError, match="gs://no-such-bucket/k"):
        CALLS[name]("no-such-bucket")


def test_damage_for_good_is_an_error(gcs, bucket, monkeypatch):
    monkeypatch.setattr(buckets, "RETRY_S", 0.05)
    buckets.write(bucket, "a", DATA)
    gcs.fail("alt=media", how="corrupt", times=None)
    for call in (lambda: buckets.read(bucket, "a"), lambda: buckets.read_many([(bucket, "a")])):
        with pytest.raises(OSError, match=re.escape(f"gs://{bucket}/a")):
            call()


@pytest.mark.parametrize("content", [None, "no json", "{}"])
def test_without_a_login_one_error_says_how_to_get_one(monkeypatch, tmp_path, content):
    path = tmp_path / "key.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("went to the network"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("went to the network"))
    buckets._made_client.cache_clear()
    with pytest.raises(PermissionError, match="gcloud auth application-default login") as caught:
        buckets.read("some-bucket", "k")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("STORAGE_EMULATOR_HOST", "localhost:1", "is no address; write http://HOST:PORT, or unset it"),
        ("REQUESTS_CA_BUNDLE", "/nowhere", "no such file of certificates; unset it, or name one"),
        ("CURL_CA_BUNDLE", "/nowhere", "no such file of certificates; unset it, or name one"),
    ],
)
def test_a_setting_that_no_request_survives_is_named(name, value, words, monkeypatch):
    for other in ("STORAGE_EMULATOR_HOST", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    buckets._made_client.cache_clear()
    with pytest.raises(OSError, match=re.escape(f"{name}={value}")) as caught:
        buckets.read("some-bucket", "k")
    assert words in caught.value.strerror


def test_an_emulator_is_told_once(gcs, bucket, capsys):
    buckets._made_client.cache_clear()
    buckets.write_many([(bucket, "a", b"x")])
    assert buckets.read(bucket, "a") == b"x"
    assert capsys.readouterr().err == f"gs:// leads to STORAGE_EMULATOR_HOST={gcs.url}, not to Cloud Storage\n"


@pytest.mark.slow
def test_pages_and_folders(gcs, bucket):
    buckets.write_many([(bucket, f"f/{number:04d}", b"") for number in range(1005)])
    buckets.write_many([(bucket, f"f/in/{name}", b"") for name in "ab"])
    gcs.clear()
    keys = [stored.key for stored in buckets.listed(bucket, "f/")]
    assert keys == sorted(keys)
    assert len(keys) == 1007
    assert gcs.pages == [1000, 7]
    rows, more = buckets.page(bucket, "f/", "f/0003", "f/0007")
    assert ([PurePosixPath(row.key).name for row in rows], more) == (["0003", "0004", "0005", "0006"], False)
    assert buckets.page(bucket, "f/")[1]
    assert [row.key for row in buckets.listed(bucket, "f/", "f/1004", "f/in/b")] == ["f/1004", "f/in/a"]
    objects, folders = buckets.folder(bucket, "f/")
    assert (len(objects), folders) == (1005, ["f/in/"])
    assert buckets.holds_any(bucket, "f/in/")
    assert not buckets.holds_any(bucket, "g")


@pytest.mark.slow
def test_many_are_moved_at_once_and_no_more(gcs, bucket):
    items = [(bucket, f"{number:03d}", b"%d" % number) for number in range(100)]
    gcs.fail(how="slow", times=40, seconds=0.2)
    buckets.write_many(items)
    places = [(bucket, key) for _, key, _ in items]
    assert buckets.read_many(places) == [data for *_, data in items]
    assert 16 < gcs.most_in_flight <= buckets.IN_FLIGHT
    assert buckets.read_many([]) == []
    buckets.write_many([])


@pytest.mark.slow
def test_many_survive_faults_by_chance(gcs, bucket):
    gcs.random_faults(0.2, seed=1)
    items = [(bucket, f"{number:03d}", DATA[:number]) for number in range(60)]
    buckets.write_many(items)
    assert buckets.read_many([(bucket, key) for _, key, _ in items]) == [data for *_, data in items]
    assert sum(gcs.injected.values()) > 5


def test_each_keeps_the_order():
    assert buckets.each(lambda number: number * 2, range(100)) == list(range(0, 200, 2))
