"""What requests cost that take their time: listing a bucket, and reading slices from it, against a loopback server.

    python benchmarks/bench_bucket.py [--objects 20000] [--page_s 0.5] [--slices 100] [--request_s 0.05]

The server of the tests waits before each answer. Listing: one page after the other against several ranges of names
at once. Reading: each slice asked for when it is needed against `SliceReader.expect`. The server works in this process
and on one request at a time, so the first ratio is less than a real bucket's. Exit code 1: below 2.5, or below 4.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "shared"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bucket_server import BucketServer

from ich_tfrecords.storage import bucket_ranges, buckets, sources
from ich_tfrecords.storage.slice_reader import SliceReader

MIN_LISTING, MIN_READING = 2.5, 4.0
SLICE = bytes(range(256)) * 800  # 200 kB, a member of the Kaggle archive


def fill(server: BucketServer, objects: int) -> str:
    """A bucket with so many empty objects in names like RSNA's, put there behind the API: uploads would take long."""
    bucket = server.bucket()
    first = f"t/{_name(0)}"
    buckets.write(bucket, first, b"")
    stored = server._api._storage.objects[bucket]
    stored.update({f"t/{_name(i)}": {**stored[first], "name": f"t/{_name(i)}"} for i in range(objects)})
    return bucket


def _name(number: int) -> str:
    return f"ID_{hashlib.sha256(str(number).encode()).hexdigest()[:9]}.dcm"


def slowed(server: BucketServer, seconds: float, call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call takes when each request waits, and what it returns."""
    server.clear()
    server.fail(how="slow", times=None, seconds=seconds)
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def keys(listed: Callable[..., Any], bucket: Any) -> set[str]:
    """Names below t/, by one way to list."""
    return {row.key for row in listed(bucket, "t/")}


def list_both(server: BucketServer, objects: int, page_s: float) -> float:
    """Print a row for each way to list; how many times faster ranges are."""
    bucket, seconds = fill(server, objects), {}
    ways = {"one page after the other": buckets.listed, "ranges of names at once": bucket_ranges.listed}
    for way, listed in ways.items():
        seconds[way], found = slowed(server, page_s, functools.partial(keys, listed, bucket))
        _print(way, f"{len(found):,} objects", seconds[way], f"{len(found) / seconds[way]:,.0f}/s", server)
    return _ratio(seconds)


def read_both(server: BucketServer, slices: int, request_s: float) -> float:
    """Print a row for each way to read; how many times faster reading ahead is."""
    bucket, seconds = server.bucket(), {}
    buckets.write_many([(bucket, f"t/{_name(i)}", SLICE) for i in range(slices)])
    rows = list(sources.refs(sources.list_inputs([f"gs://{bucket}/t"]).table))

    def read(ahead: bool) -> int:
        with SliceReader() as reader:
            if ahead:
                reader.expect(rows)
            return sum(len(reader.read(row)) for row in rows)

    for way, ahead in {"read": False, "expect, then read": True}.items():
        seconds[way], _ = slowed(server, request_s, functools.partial(read, ahead))
        _print(way, f"{slices:,} slices", seconds[way], f"{slices / seconds[way]:,.0f}/s", server)
    return _ratio(seconds)


def _print(way: str, what: str, seconds: float, rate: str, server: BucketServer) -> None:
    requests = f"{len(server.requests):,} requests, {server.most_in_flight} at once"
    print(f"{way:<26}{what:>16}{seconds:>9.2f} s{rate:>12}   {requests}", flush=True)


def _ratio(seconds: dict[str, float]) -> float:
    before, after = seconds.values()
    return before / after


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=20_000)
    parser.add_argument("--page_s", type=float, default=0.5, help="each page of a listing waits so long")
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--request_s", type=float, default=0.05, help="each read waits so long")
    args = parser.parse_args(argv)
    with BucketServer() as server:
        os.environ.update(server.environment)
        listing = list_both(server, args.objects, args.page_s)
        reading = read_both(server, args.slices, args.request_s)
    passed = listing >= MIN_LISTING and reading >= MIN_READING
    print(f"ratio: listing {listing:.1f} (at least {MIN_LISTING:g}), reading {reading:.1f} (at least {MIN_READING:g})")
    print("passed" if passed else "FAILED")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
