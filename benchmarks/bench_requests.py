"""What a read from a bucket costs the client: processor time of this process alone, the server in another one.

    python benchmarks/bench_requests.py [--output FILE.json] [--reads 400] [--rounds 3] [--quick]

Ranges of the length of a header and of a slice, `object_reader.AHEAD` of them in flight, as a worker asks for them.
Loopback and no TLS: encryption comes on top. The least of the rounds counts. It promises nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ich_tfrecords.dicom import ct_slice
from ich_tfrecords.storage import buckets
from ich_tfrecords.storage.object_reader import AHEAD, ObjectReader, Wanted

ROOT = Path(__file__).resolve().parent.parent
SLICE_BYTES = 526_000  # 512 x 512 x 2 and a header
_SERVE = """
import sys
sys.path[:0] = {paths!r}
from bucket_server import BucketServer
with BucketServer() as server:
    print(server.url, server.bucket(), flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The name of an empty bucket of a loopback server in a process of its own, where gs:// leads meanwhile."""
    code = _SERVE.format(paths=[str(ROOT), str(ROOT / "tests" / "shared")])
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url, bucket = process.stdout.readline().split()
        os.environ |= {"STORAGE_EMULATOR_HOST": url, "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA": "true"}
        yield bucket
        process.stdin.close()


def core_ms(place: str, size_bytes: int, reads: int) -> float:
    """Processor milliseconds of this process for one read of so many bytes."""
    reader = ObjectReader()
    wanted = [Wanted(place, None, number, size_bytes) for number in range(reads)]
    begin = time.process_time()
    reader.expect(wanted)
    for one in wanted:
        if len(reader.fetch(one)) != size_bytes:
            raise SystemExit(f"a read of {size_bytes:,} bytes brought others")
    spent = time.process_time() - begin
    reader.close()
    return spent / reads * 1000


def measure(reads: int, rounds: int) -> list[dict[str, float]]:
    """Bytes and core-milliseconds of a read, the least of the rounds."""
    with server() as bucket:
        buckets.write(bucket, "slices", bytes(SLICE_BYTES + reads))
        place = f"gs://{bucket}/slices"
        core_ms(place, ct_slice.HEAD_BYTES, AHEAD)  # imports and connections
        return [
            {"bytes": size, "core_ms": min(core_ms(place, size, reads) for _ in range(rounds))}
            for size in (ct_slice.HEAD_BYTES, SLICE_BYTES)
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, keep the figures; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--reads", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few reads, one round")
    args = parser.parse_args(argv)
    rows = measure(50 if args.quick else args.reads, 1 if args.quick else args.rounds)
    print(f"{'bytes':>10}{'core-ms':>10}")
    for row in rows:
        print(f"{row['bytes']:>10,}{row['core_ms']:>10.2f}")
    if args.output:
        args.output.write_text(json.dumps({"requests": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
