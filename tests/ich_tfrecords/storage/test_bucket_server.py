"""The test server for Cloud Storage, seen through the real google-cloud-storage client."""

from __future__ import annotations

import http.client
import io
import os
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("gcp_storage_emulator.server", reason="gcp-storage-emulator is not installed")
storage = pytest.importorskip("google.cloud.storage", reason="google-cloud-storage is not installed")
requests = pytest.importorskip("requests", reason="google-cloud-storage brings it")

from bucket_requests import multipart  # noqa: E402
from bucket_server import BucketServer  # noqa: E402
from google.api_core import exceptions  # noqa: E402
from google.cloud.storage import transfer_manager  # noqa: E402
from google.cloud.storage.exceptions import DataCorruption  # noqa: E402
from google.cloud.storage.retry import DEFAULT_RETRY  # noqa: E402

QUICK = DEFAULT_RETRY.with_delay(initial=0.005, maximum=0.02).with_timeout(20.0)
CHUNK = 256 * 1024
LEFT = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)


@pytest.fixture(scope="module")
def whole_server() -> Iterator[BucketServer]:
    with BucketServer() as server:
        yield server


@pytest.fixture
def server(whole_server: BucketServer, monkeypatch: pytest.MonkeyPatch) -> BucketServer:
    whole_server.clear()
    for name, value in whole_server.environment.items():
        monkeypatch.setenv(name, value)
    return whole_server


@pytest.fixture(scope="module")
def client(whole_server: BucketServer) -> Any:
    return whole_server.client()


@pytest.fixture
def bucket(server: BucketServer, client: Any) -> Any:
    return client.bucket(server.bucket())


def put(bucket: Any, name: str, data: bytes = b"abc", **options: Any) -> Any:
    blob = bucket.blob(name)
    blob.upload_from_string(data, retry=options.pop("retry", None), **options)
    return blob


def put_resumable(bucket: Any, name: str, data: bytes, **options: Any) -> Any:
    """A resumable upload in chunks: what the client does where it does not know the size."""
    blob = bucket.blob(name, chunk_size=CHUNK)
    blob.upload_from_file(io.BytesIO(data), **options)
    return blob


def names(client: Any, bucket: Any, **options: Any) -> list[str]:
    return [blob.name for blob in client.list_blobs(bucket, **options)]


def test_the_environment_leads_here(server):
    with_env = storage.Client.create_anonymous_client().bucket(server.bucket())
    put(with_env, "a")
    assert with_env.blob("a").download_as_bytes() == b"abc"
    assert server.kinds == {"upload": 1, "media": 1}


# uploads


ODD = [
    b"",
    b"\0",
    b"\r",
    b"\n",
    b"a\rb\nc\r\nd\r\n",
    b"\r\n\r\n--\r\n",
    b"--===============0==\r\n--===============0==--\r\n",
    b"From me\n.\n..\r\n=3D=0A=\r\n",
    bytes(range(256)) * 5,
]


@pytest.mark.parametrize("data", ODD, ids=lambda data: repr(data[:12]))
@pytest.mark.parametrize("how", [put, put_resumable])
def test_bytes_survive(server, bucket, data, how):
    blob = how(bucket, "odd", data, content_type="application/x-odd")
    assert (blob.size, blob.content_type) == (len(data), "application/x-odd")
    assert bucket.blob("odd").download_as_bytes() == data
    assert server.kinds["upload"] == (how is put)


@pytest.mark.parametrize("size", [5 * CHUNK + 17, 4 * CHUNK])
def test_chunks_survive(server, bucket, size):
    data = os.urandom(size)
    put_resumable(bucket, "long", data)
    assert bucket.blob("long").download_as_bytes() == data
    assert server.kinds["chunk"] >= size // CHUNK


def test_a_long_upload_is_resumable(server, bucket):
    data = os.urandom(9 << 20)
    put(bucket, "long", data)
    assert bucket.blob("long").download_as_bytes() == data
    assert server.kinds == {"start": 1, "chunk": 1, "media": 1}


def test_a_multipart_body_may_hold_its_own_boundary_or_have_bare_line_feeds():
    for line in (b"\r\n", b"\n"):
        data = b"\r\n--mark\r\nx\n--mark\n\r"
        parts = [
            b"--mark",
            b"Content-Type: application/json",
            b"",
            b'{"name": "a"}',
            b"--mark",
            b"Content-Type: a/b",
            b"",
        ]
        body = line.join([*parts, data, b"--mark--", b""])
        assert multipart('multipart/related; boundary="mark"', body) == ({"name": "a"}, data, "a/b")


def test_metadata_and_checksums_of_an_upload(bucket):
    blob = bucket.blob("a")
    blob.metadata = {"slices": "7"}
    blob.upload_from_string(b"abc", if_generation_match=0, retry=None)
    there = bucket.get_blob("a")
    assert (there.metadata, there.crc32c, there.metageneration) == ({"slices": "7"}, "Nks/tw==", 1)
    blob.crc32c = "AAAAAA=="
    with pytest.raises(exceptions.BadRequest):
        blob.upload_from_string(b"abd", retry=None, checksum=None)
    assert bucket.blob("a").download_as_bytes() == b"abc"


# listings


@pytest.mark.slow
def test_a_listing_comes_sorted_in_pages(server, client, bucket):
    wanted = sorted((f"{number:04d}" for number in range(1003)), key=str.encode)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: put(bucket, name, b""), reversed(wanted)))
    assert names(client, bucket) == wanted
    assert names(client, bucket, page_size=5000) == wanted
    assert server.pages == [1000, 3, 1000, 3]
    assert len(names(client, bucket, max_results=7)) == 7
    assert names(client, bucket, start_offset="0998", end_offset="1001", page_size=2) == ["0998", "0999", "1000"]


def test_names_are_ordered_by_their_bytes(client, bucket):
    odd = ["a", "a/", "a//b", "a/b", "a b", "é", "\uffff", "\U0001f600", "Z", "a%2Fb", "a/../b", "/a"]
    for name in odd:
        put(bucket, name, name.encode())
    assert names(client, bucket, page_size=1) == sorted(odd, key=str.encode)
    assert {name: bucket.blob(name).download_as_bytes().decode() for name in odd} == {name: name for name in odd}


def test_prefixes_and_fields(server, client, bucket):
    for name in ("set/a", "set/b/1", "set/b/2", "set/c/1", "set/d", "other"):
        put(bucket, name)
    found = client.list_blobs(bucket, prefix="set/", delimiter="/", page_size=2)
    assert [blob.name for blob in found] == ["set/a", "set/d"]
    assert found.prefixes == {"set/b/", "set/c/"}
    assert server.pages == [2, 2]
    (blob,) = client.list_blobs(bucket, prefix="other", fields="items(name,size),nextPageToken")
    assert (blob.name, blob.size, blob.crc32c) == ("other", 3, None)
    # without its token the client takes the first page for the whole
    assert len(names(client, bucket, page_size=2, fields="items/name")) == 2


def test_a_listing_refuses_what_it_lacks(client, bucket):
    with pytest.raises(exceptions.MethodNotImplemented, match="versions=true"):
        names(client, bucket, versions=True, retry=None)
    with pytest.raises(exceptions.NotFound):
        names(client, client.bucket("no-such-bucket"), retry=None)


# preconditions, generations, ranges


def test_generation_0_is_no_object(bucket):
    blob = put(bucket, "a", if_generation_match=0)
    with pytest.raises(exceptions.PreconditionFailed):
        put(bucket, "a", b"other", if_generation_match=0)
    with pytest.raises(exceptions.PreconditionFailed):
        put(bucket, "b", if_generation_match=blob.generation)
    assert bucket.blob("a").download_as_bytes() == b"abc"


def test_a_resumable_upload_checks_at_its_start_and_at_its_end(server, bucket):
    def start(name: str) -> tuple[http.client.HTTPConnection, str]:
        path = f"/upload/storage/v1/b/{bucket.name}/o?uploadType=resumable&name={name}&ifGenerationMatch=0"
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
        connection.request("POST", path)
        answer = connection.getresponse()
        answer.read()
        place = urllib.parse.urlsplit(answer.headers["Location"] or "")
        return connection, f"{place.path}?{place.query}" if place.path else str(answer.status)

    connection, place = start("a")
    put(bucket, "a")
    connection.request("PUT", place, b"late", {"Content-Range": "bytes 0-3/4"})
    assert connection.getresponse().status == 412
    connection.close()
    connection, status = start("a")
    connection.close()
    assert status == "412"
    assert bucket.blob("a").download_as_bytes() == b"abc"


def test_one_of_many_creators_wins(bucket):
    def create(number: int) -> bool:
        try:
            put(bucket, "lock", str(number).encode(), if_generation_match=0)
        except exceptions.PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(24)))
    assert won.count(True) == 1
    assert bucket.blob("lock").download_as_bytes() == str(won.index(True)).encode()


def test_preconditions_of_delete_get_and_copy(bucket):
    blob = put(bucket, "a")
    other = blob.generation + 1
    for call in (
        lambda: bucket.blob("a").delete(if_generation_match=other, retry=None),
        lambda: bucket.blob("a").delete(if_metageneration_match=2, retry=None),
        lambda: bucket.blob("a").reload(if_generation_match=other, retry=None),
        lambda: bucket.blob("a").download_as_bytes(if_generation_match=other, retry=None),
        lambda: bucket.copy_blob(blob, bucket, "b", if_generation_match=other, retry=None),
        lambda: bucket.copy_blob(blob, bucket, "b", if_source_generation_match=other, retry=None),
        lambda: bucket.copy_blob(blob, bucket, "a", if_generation_match=0, retry=None),
        lambda: bucket.blob("a").rewrite(blob, if_generation_match=0, retry=None),
        lambda: put(bucket, "a", if_generation_not_match=blob.generation),
    ):
        with pytest.raises(exceptions.PreconditionFailed):
            call()
    with pytest.raises(exceptions.NotModified):
        bucket.blob("a").reload(if_generation_not_match=blob.generation, retry=None)
    assert bucket.get_blob("b") is None
    bucket.copy_blob(blob, bucket, "b", if_generation_match=0, if_source_generation_match=blob.generation)
    assert bucket.get_blob("b").crc32c == bucket.get_blob("a").crc32c
    assert bucket.blob("c").rewrite(blob, if_generation_match=0) == (None, 3, 3)
    bucket.blob("a").delete(if_generation_match=blob.generation)
    with pytest.raises(exceptions.NotFound, match="No such object"):
        bucket.blob("a").delete(retry=None)


def test_a_rewrite_may_take_more_calls_than_one(server, bucket):
    blob, copy = put(bucket, "a", b"abcdef"), bucket.blob("b")
    server.rewrite_in(3)
    token, seen = None, []
    while not seen or token:
        token, done, size = copy.rewrite(blob, token=token, if_generation_match=0, retry=None)
        seen.append((done, size, bucket.get_blob("b") is not None))
    assert seen == [(2, 6, False), (4, 6, False), (6, 6, True)]


def test_a_generation_that_is_gone_is_not_found(bucket):
    old = put(bucket, "a").generation
    new = put(bucket, "a", b"new").generation
    assert new > old
    assert bucket.blob("a", generation=new).download_as_bytes() == b"new"
    for call in ("reload", "download_as_bytes", "delete"):
        with pytest.raises(exceptions.NotFound):
            getattr(bucket.blob("a", generation=old), call)(retry=None)
    with pytest.raises(exceptions.NotFound):
        bucket.copy_blob(bucket.blob("a"), bucket, "b", source_generation=old, retry=None)


def test_ranges(server, bucket):
    data = bytes(range(100))
    blob = put(bucket, "a", data)
    assert blob.download_as_bytes(start=10, end=19) == data[10:20]
    assert blob.download_as_bytes(start=90) == data[90:]
    assert blob.download_as_bytes(start=90, end=500) == data[90:]
    assert blob.download_as_bytes(start=-7) == data[-7:]
    assert blob.download_as_bytes(start=-700) == data
    with pytest.raises(exceptions.RequestRangeNotSatisfiable):
        blob.download_as_bytes(start=100, retry=None)
    assert [seen.range for seen in server.requests[1:3]] == ["bytes=10-19", "bytes=90-"]


def test_the_transfer_manager(server, bucket, tmp_path):
    data = {f"set/{number}": os.urandom(1000 + number) for number in range(12)}
    for name, content in data.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    options = {"worker_type": transfer_manager.THREAD, "max_workers": 4}
    sent = transfer_manager.upload_many_from_filenames(bucket, list(data), source_directory=tmp_path, **options)
    assert sent == [None] * 12
    home = tmp_path / "home"
    transfer_manager.download_many_to_path(bucket, list(data), destination_directory=home, **options)
    assert {name: (home / name).read_bytes() for name in data} == data
    blob = put(bucket, "long", DATA)
    transfer_manager.download_chunks_concurrently(blob, home / "long", chunk_size=100_000, **options)
    assert (home / "long").read_bytes() == DATA
    assert sum(seen.range is not None for seen in server.requests) == 8
    with blob.open("rb", chunk_size=100_000) as file:
        file.seek(150_000)
        assert file.read(300_000) == DATA[150_000:450_000]


# faults


FAULTS = {
    "503": exceptions.ServiceUnavailable,
    "429": exceptions.TooManyRequests,
    "reset": LEFT,
    "reset_body": LEFT,
    "short": LEFT,
    "corrupt": DataCorruption,
    "lost_answer": LEFT,
}
DATA = bytes(range(256)) * 3000


@pytest.mark.parametrize("how", FAULTS)
def test_a_download_without_retry_sees_the_fault(server, bucket, how):
    put(bucket, "a", DATA)
    server.fail(r"GET .*alt=media", how=how)
    with pytest.raises(FAULTS[how]):
        bucket.blob("a").download_as_bytes(retry=None)
    assert bucket.blob("a").download_as_bytes(retry=None) == DATA
    assert server.injected == {how: 1}


def test_a_part_that_is_corrupt_passes_the_client(server, bucket):
    """It checks whole downloads alone: whoever reads a range has to check what it holds."""
    put(bucket, "a", DATA)
    server.fail(r"GET .*alt=media", how="corrupt")
    part = bucket.blob("a").download_as_bytes(start=1000, end=1999)
    assert sum(one != other for one, other in zip(part, DATA[1000:2000], strict=True)) == 1


@pytest.mark.parametrize("how", sorted(set(FAULTS) - {"corrupt"}))
def test_a_download_with_retry_overcomes_it(server, bucket, how):
    put(bucket, "a", DATA)
    server.fail(r"GET .*alt=media", how=how, times=2)
    assert bucket.blob("a").download_as_bytes(retry=QUICK) == DATA
    assert server.injected == {how: 2}


@pytest.mark.parametrize("how", sorted(set(FAULTS) - {"corrupt"}))
@pytest.mark.parametrize(
    ("upload", "line", "after"), [(put, "POST", 0), (put_resumable, "POST", 0), (put_resumable, "PUT", 1)]
)
def test_an_upload_with_retry_overcomes_it(server, bucket, how, upload, line, after):
    server.fail(f"{line} /upload", how=how, times=2, after=after)
    upload(bucket, "a", DATA, retry=QUICK)
    assert bucket.blob("a").download_as_bytes() == DATA
    assert server.injected == {how: 2}


def test_an_upload_whose_answer_is_lost_was_carried_out(server, bucket):
    server.fail("POST /upload", how="lost_answer")
    with pytest.raises(LEFT):
        put(bucket, "a", if_generation_match=0)
    assert bucket.blob("a").download_as_bytes() == b"abc"
    server.fail("POST /upload", how="reset")
    with pytest.raises(LEFT):
        put(bucket, "b")
    assert bucket.get_blob("b") is None
    # a retry finds what the first try made
    server.fail("POST /upload", how="lost_answer")
    with pytest.raises(exceptions.PreconditionFailed):
        put(bucket, "c", if_generation_match=0, retry=QUICK)
    assert server.injected == {"lost_answer": 2, "reset": 1}


def test_listings_fail_too(server, client, bucket):
    for name in "abc":
        put(bucket, name)
    server.fail(r"GET .*/o\?.*pageToken", how="short", times=2)
    assert names(client, bucket, page_size=1, retry=QUICK) == ["a", "b", "c"]
    server.fail(r"GET .*/o\?", how="404", times=None)
    for _ in range(3):
        with pytest.raises(exceptions.NotFound):
            names(client, bucket)
    assert server.injected == {"short": 2, "404": 3}


def test_which_requests_a_fault_befalls(server, bucket):
    put(bucket, "a")
    server.fail(lambda line: line.endswith("alt=media a"), times=1, after=2)
    seen = []
    for _ in range(4):
        try:
            seen.append(bucket.blob("a").download_as_bytes(retry=None))
        except exceptions.ServiceUnavailable:
            seen.append(None)
    assert seen == [b"abc", b"abc", None, b"abc"]
    server.fail(times=None)
    server.clear()
    assert bucket.blob("a").download_as_bytes(retry=None) == b"abc"
    assert (server.faults, server.injected, len(server.requests)) == ([], Counter(), 1)
    with pytest.raises(ValueError, match="how='flood': one of 403"):
        server.fail(how="flood")


def wait_for_slow(server: BucketServer, count: int) -> None:
    for _ in range(6000):
        if server.injected["slow"] >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"{server.injected['slow']} of {count} requests came")


def test_most_in_flight(server, bucket):
    server.fail("POST /upload", how="slow", times=3, seconds=600)
    with ThreadPoolExecutor(3) as pool:
        made = pool.map(lambda name: put(bucket, name).name, "abcdef")
        wait_for_slow(server, 3)
        assert server.most_in_flight == 3
        server.clear()
        assert list(made) == list("abcdef")
    assert 1 <= server.most_in_flight <= 3


def test_slow_answers_hold_up_only_themselves(server, bucket):
    put(bucket, "a")
    server.fail("alt=media", how="slow", seconds=600)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(bucket.blob("a").download_as_bytes)
        wait_for_slow(server, 1)
        assert bucket.blob("a").download_as_bytes() == b"abc"
        assert not slow.done()
        server.clear()
        assert slow.result() == b"abc"


def test_a_client_may_leave_before_a_slow_answer(server, bucket):
    put(bucket, "a")
    server.fail("alt=media", how="slow", seconds=600)
    with pytest.raises(requests.Timeout):
        bucket.blob("a").download_as_bytes(retry=None, timeout=0.1)
    server.clear()
    assert bucket.blob("a").download_as_bytes() == b"abc"


def test_many_deletes_in_a_batch(server, client, bucket):
    for name in "abc":
        put(bucket, name)
    with client.batch():
        bucket.blob("a").delete()
        bucket.blob("c").delete()
    assert names(client, bucket) == ["b"]
    assert bucket.blob("b").exists()
    assert not bucket.blob("a").exists()
    assert server.kinds["batch"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_faults_by_chance_are_retried_away(server, client, bucket, seed):
    server.random_faults(0.2, seed)
    for number in range(40):
        put(bucket, f"{number:02d}", DATA[: number * 100], retry=QUICK)
        assert bucket.blob(f"{number:02d}").download_as_bytes(retry=QUICK) == DATA[: number * 100]
    assert len(names(client, bucket, page_size=5, retry=QUICK)) == 40
    assert set(server.injected) == {"503", "reset", "short"}
    assert 5 < sum(server.injected.values()) < 60


def test_what_was_asked(server, client, bucket):
    put(bucket, "a/b")
    bucket.blob("a/b").download_as_bytes()
    bucket.copy_blob(bucket.blob("a/b"), bucket, "c")
    names(client, bucket)
    bucket.blob("c").delete()
    asked = [(seen.method, seen.kind, seen.name) for seen in server.requests]
    rest = [("POST", "copy", "c"), ("GET", "list", ""), ("DELETE", "delete", "c")]
    assert asked == [("POST", "upload", "a/b"), ("GET", "media", "a/b"), *rest]
    assert {seen.bucket for seen in server.requests} == {bucket.name}
