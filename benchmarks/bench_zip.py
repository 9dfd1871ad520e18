"""Listing a zip archive of the RSNA data's size: `sources.list_inputs` against `zipfile.ZipFile`.

    python benchmarks/bench_zip.py [--entries 874035] [--member_bytes 216000] [--output FILE.json]

Makes an archive that is nothing but a zip64 central directory behind a hole: names like Kaggle's and, with
the default member size, offsets up to 180 GB, of which the disk holds the directory only. Both readers run
in fresh processes in turns. Exit code 1: ours is less than 4 times as fast, or needs more than 250 MB.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.peak import peak_bytes

FOLDER = "rsna-intracranial-hemorrhage-detection"
TRAIN_FRACTION = 752_803 / 874_035
MIN_RATIO, MAX_RSS_MB = 4.0, 250.0
_ENTRY = struct.Struct("<I4B4H3I5H2I")
_END64 = struct.Struct("<IQ2H2I4Q")
_LOCATOR = struct.Struct("<IIQI")
_END = struct.Struct("<I4H2IH")
_MAX32 = 0xFFFFFFFF


def write_archive(path: Path, entries: int, member_bytes: int, shuffled: bool) -> None:
    """A zip64 archive of `entries` members whose bytes are a hole in the file."""
    pitch_bytes = member_bytes + 100
    with path.open("wb") as file:
        start = file.seek(entries * pitch_bytes)
        for index, name in enumerate(names(entries, shuffled)):
            file.write(entry(name, index * pitch_bytes, member_bytes))
        size_bytes = file.tell() - start
        file.write(_END64.pack(0x06064B50, 44, 45, 45, 0, 0, entries, entries, size_bytes, start))
        file.write(_LOCATOR.pack(0x07064B50, 0, start + size_bytes, 1))
        file.write(_END.pack(0x06054B50, 0, 0, 0xFFFF, 0xFFFF, _MAX32, _MAX32, 0))


def names(entries: int, shuffled: bool) -> Iterator[bytes]:
    """Member names as in the Kaggle archive: test slices, then training slices, hexadecimal and sorted."""
    test = entries - round(entries * TRAIN_FRACTION)
    order = list(range(entries))
    if shuffled:
        random.Random(0).shuffle(order)
    for index in order:
        part = "test" if index < test else "train"
        yield f"{FOLDER}/stage_2_{part}/ID_{index:09x}.dcm".encode()


def entry(name: bytes, offset: int, member_bytes: int) -> bytes:
    """One entry of the central directory; a zip64 extra only where the offset needs it, as writers do."""
    far = offset >= _MAX32
    extra = struct.pack("<2HQ", 1, 8, offset) if far else b""
    fields = (0x02014B50, 45, 3, 45, 0, 0, 0, 0, 0x21, offset & _MAX32, member_bytes, member_bytes)
    lengths = (len(name), len(extra), 0, 0, 0, 0, _MAX32 if far else offset)
    return _ENTRY.pack(*fields, *lengths) + name + extra


def zipfile_reader() -> Callable[[str], int]:
    import zipfile

    def members(path: str) -> int:
        with zipfile.ZipFile(path) as archive:
            return len(archive.infolist())

    return members


def sources_reader() -> Callable[[str], int]:
    from ich_tfrecords.storage import sources

    return lambda path: len(sources.list_inputs([path]).table)


READERS: dict[str, Callable[[], Callable[[str], int]]] = {"zipfile": zipfile_reader, "sources": sources_reader}


def measure(reader: str, path: str) -> dict[str, float]:
    """Seconds (imports aside), members, and the peak memory of this process in MB."""
    call = READERS[reader]()
    start = time.perf_counter()
    members = call(path)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "members": members, "peak_rss_mb": peak_bytes() / 1e6}


def in_fresh_process(reader: str, path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", reader, "--archive", str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def summarise(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Median seconds, largest peak and members a reader."""
    return {
        reader: {
            "seconds": statistics.median(run["seconds"] for run in results),
            "peak_rss_mb": max(run["peak_rss_mb"] for run in results),
            "members": results[0]["members"],
        }
        for reader, results in runs.items()
    }


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=874_035)
    parser.add_argument("--member_bytes", type=int, default=216_000, help="stored size of each member")
    parser.add_argument("--shuffled", action="store_true", help="store the members in no order")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    parser.add_argument("--child", choices=list(READERS), help=argparse.SUPPRESS)
    parser.add_argument("--archive", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.child:
        print(json.dumps(measure(args.child, args.archive)))
        return 0
    runs: dict[str, list[dict[str, float]]] = {reader: [] for reader in READERS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "archive.zip"
        write_archive(path, args.entries, args.member_bytes, args.shuffled)
        for _ in range(args.runs):
            for reader, results in runs.items():
                results.append(in_fresh_process(reader, path))
    return report(args, runs)


def report(args: argparse.Namespace, runs: dict[str, list[dict[str, float]]]) -> int:
    """Print the table, write the JSON; the exit code."""
    summary = summarise(runs)
    ratio = summary["zipfile"]["seconds"] / summary["sources"]["seconds"]
    print(f"{'reader':<10}{'seconds':>10}{'peak MB':>10}{'members':>12}")
    for reader, row in summary.items():
        print(f"{reader:<10}{row['seconds']:>10.2f}{row['peak_rss_mb']:>10.0f}{row['members']:>12,}")
    peak_mb = summary["sources"]["peak_rss_mb"]
    passed = ratio >= MIN_RATIO and peak_mb <= MAX_RSS_MB
    print(f"ratio {ratio:.1f} (at least {MIN_RATIO:g}), peak {peak_mb:.0f} MB (at most {MAX_RSS_MB:g})", end=": ")
    print("passed" if passed else "FAILED")
    if args.output:
        figures = {"entries": args.entries, "member_bytes": args.member_bytes, "shuffled": args.shuffled}
        figures |= {"ratio": ratio, "passed": passed, "summary": summary, "runs": runs}
        args.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
