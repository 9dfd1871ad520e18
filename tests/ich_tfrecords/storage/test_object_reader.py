"""Reading ahead in buckets, and slices that are read so."""

from __future__ import annotations

import threading
import time
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("google.cloud.storage", reason="google-cloud-storage is not installed")

from ich_tfrecords.storage import buckets, object_reader, sources
from ich_tfrecords.storage.object_reader import AHEAD, ObjectReader, Wanted
from ich_tfrecords.storage.sources import SliceReader, SliceRef, UnreadableSource

DATA = bytes(range(256)) * 200


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(buckets, "FIRST_PAUSE_S", 0.005)


@pytest.fixture
def place(gcs) -> str:
    bucket = gcs.bucket()
    buckets.write(bucket, "a", DATA)
    gcs.clear()
    return f"gs://{bucket}/a"


@pytest.fixture
def reader():
    reader = ObjectReader()
    yield reader
    reader.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]


def pieces(place: str, count: int, size_bytes: int = 100) -> list[Wanted]:
    return [Wanted(place, None, number * size_bytes, size_bytes) for number in range(count)]


def content(wanted: Wanted) -> bytes:
    return DATA[wanted.start : wanted.start + wanted.size_bytes]


@pytest.mark.slow
def test_what_is_announced_is_fetched_ahead_but_not_too_far(gcs, reader, place):
    wanted = pieces(place, 60)
    gcs.fail("alt=media", how="slow", times=AHEAD, seconds=600)
    reader.expect(wanted)
    for _ in range(4000):
        if gcs.injected["slow"] == AHEAD:
            break
        time.sleep(0.005)
    assert gcs.most_in_flight == len(gcs.requests) == AHEAD
    gcs.clear()
    assert [reader.fetch(one) for one in wanted] == [content(one) for one in wanted]
    assert len(gcs.requests) == 60 - AHEAD
    assert gcs.most_in_flight <= AHEAD


def test_no_more_bytes_than_allowed_are_under_way(gcs, reader, place, monkeypatch):
    monkeypatch.setattr(object_reader, "AHEAD_BYTES", 250)
    asked: list[Wanted] = []

    def expected():
        for one in [*pieces(place, 6), Wanted(place, None, 0, 1000), *pieces(place, 2)]:
            asked.append(one)
            yield one

    reader.expect(expected())
    assert len(reader._asked) == 2
    assert len(asked) == 3  # one more is known, and held back
    for one in list(pieces(place, 6)):
        assert reader.fetch(one) == content(one)
    assert reader.fetch(asked[6]) == DATA[:1000]  # larger than allowed: alone
    assert [reader.fetch(one) for one in pieces(place, 2)] == [content(one) for one in pieces(place, 2)]
    assert len(gcs.requests) == 9


def test_skipped_and_unannounced_ranges(gcs, reader, place):
    wanted = pieces(place, 30)
    reader.expect(wanted)
    assert [reader.fetch(one) for one in wanted[5::7]] == [content(one) for one in wanted[5::7]]
    other = Wanted(place, None, 7, 3)
    assert reader.fetch(other) == DATA[7:10]
    assert reader.fetch(wanted[0]) == content(wanted[0])
    reader.expect(wanted[3:4])
    assert reader.fetch(wanted[3]) == content(wanted[3])


def test_an_error_comes_up_where_its_range_is_asked_for(gcs, reader, place):
    good = pieces(place, 4)
    bad = Wanted(f"{place}-none", None, 0, 5)
    reader.expect([good[0], bad, good[1]])
    assert reader.fetch(good[0]) == content(good[0])
    with pytest.raises(FileNotFoundError):
        reader.fetch(bad)
    assert reader.fetch(good[1]) == content(good[1])
    reader.expect([bad, good[2]])
    assert reader.fetch(good[2]) == content(good[2])  # nobody asked for the other


@pytest.mark.slow
def test_random_faults_change_nothing(gcs, reader, place):
    gcs.random_faults(0.2, seed=2)
    wanted = pieces(place, 100)
    reader.expect(wanted)
    assert [reader.fetch(one) for one in wanted] == [content(one) for one in wanted]
    assert sum(gcs.injected.values()) > 5


# slices


SLICES = {f"s/{number}.dcm": bytes([number]) * (300 * number) + DATA[: 40 * number] for number in range(1, 8)}


@pytest.fixture
def rows(gcs, tmp_path) -> dict[str, tuple[list[SliceRef], list[SliceRef]]]:
    """Far and near rows of the same slices: as objects, stored and deflated in a zip."""
    bucket = gcs.bucket()
    folder = tmp_path / "in"
    for name, data in SLICES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    buckets.write_many([(bucket, f"in/{name}", data) for name, data in SLICES.items()])
    pairs = {"objects": (f"gs://{bucket}/in", folder)}
    for kind, method in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        path = tmp_path / f"{kind}.zip"
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in SLICES.items():
                archive.writestr(name, data)
        buckets.write(bucket, path.name, path.read_bytes())
        pairs[kind] = (f"gs://{bucket}/{path.name}", path)
    gcs.clear()
    return {kind: (listed(far), listed(near)) for kind, (far, near) in pairs.items()}


def listed(place: str | Path) -> list[SliceRef]:
    return list(sources.refs(sources.list_inputs([str(place)]).table))


KINDS = pytest.mark.parametrize("kind", ["objects", "stored", "deflated"])


@KINDS
@pytest.mark.parametrize("rate", [0.0, 0.15])
def test_slices_are_those_of_a_folder(gcs, rows, kind, rate):
    far, near = rows[kind]
    assert [(row.name, row.size_bytes) for row in far] == [(row.name, row.size_bytes) for row in near]
    gcs.random_faults(rate, seed=3)
    with SliceReader() as one, SliceReader() as other:
        for head_bytes in (0, 1, 500, 10_000):
            one.expect(far, head_bytes)
            for row, same in zip(far, near, strict=True):
                assert one.read_head(row, head_bytes) == other.read_head(same, head_bytes)
        one.expect(far)
        assert [bytes(one.read(row)) for row in far] == [bytes(other.read(row)) for row in near]


@KINDS
def test_a_slice_takes_one_request(gcs, rows, kind):
    far, _ = rows[kind]
    gcs.clear()
    with SliceReader() as reader:
        reader.expect(far)
        for row in far:
            reader.read(row)
        reader.expect(far, 200)
        for row in far:
            reader.read_head(row, 200)
    assert len(gcs.requests) == 2 * len(far)


@KINDS
def test_damaged_bytes_are_fetched_again(gcs, rows, kind):
    far, _ = rows[kind]
    gcs.fail("alt=media", how="corrupt", times=2)
    with SliceReader() as reader:
        assert bytes(reader.read(far[3])) == SLICES[far[3].name]
        gcs.fail("alt=media", how="corrupt", times=None)
        with pytest.raises(UnreadableSource) as caught:
            reader.read(far[3])
    assert caught.value.reason in ("crc_mismatch", "inflate_failed", "size_mismatch")
    assert kind == "deflated" or caught.value.reason == "crc_mismatch"
    assert gcs.injected == {"corrupt": 5}


@KINDS
def test_a_service_that_fails_for_good_is_no_fault_of_the_slice(gcs, rows, kind, monkeypatch):
    monkeypatch.setattr(buckets, "RETRY_S", 0.05)
    far, _ = rows[kind]
    gcs.fail(how="503", times=None)
    with SliceReader() as reader:
        reader.expect(far)
        for call in (lambda: reader.read(far[0]), lambda: reader.read_head(far[0], 10)):
            with pytest.raises(OSError, match="gs://"):
                call()


@KINDS
@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_what_changed_since_the_listing_is_told(rows, kind, change):
    far, _ = rows[kind]
    place = far[0].container + (f"/{far[0].name}" if kind == "objects" else "")
    bucket, _, key = place.removeprefix("gs://").partition("/")
    if change == "removed":
        buckets.delete(bucket, key)
    else:
        buckets.write(bucket, key, b"PK")
    with SliceReader() as reader:
        for call in (lambda: reader.read(far[0]), lambda: reader.read_head(far[0], 10)):
            with pytest.raises(UnreadableSource) as caught:
                call()
            assert caught.value.reason in ("changed", "bad_local_header")
            assert kind != "objects" or caught.value.reason == "changed"


def test_sizes_are_capped_before_anything_is_fetched(gcs, rows):
    far, _ = rows["objects"]
    gcs.clear()
    with SliceReader(max_bytes=100) as reader:
        reader.expect(far)
        with pytest.raises(UnreadableSource) as caught:
            reader.read(far[0])
    assert caught.value.reason == "too_large"
    assert not gcs.requests
