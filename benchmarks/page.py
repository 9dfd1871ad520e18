"""docs/benchmarks.md and its pictures, from the figures of the benchmarks.

    python benchmarks/page.py --run            run every benchmark, then write the page
    python benchmarks/page.py --run tfds       run one anew
    python benchmarks/page.py                  write the page from the figures of earlier runs

Figures lie in benchmarks/results (not in git), one JSON file a benchmark, and beside it what it was measured on.
Exit codes: 0 done, 1 a benchmark missed its promise (the page is written and says so) or failed, 2 figures missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import bench_scale, bench_streams, plots, projection_section, runs, sections
from benchmarks.made_dataset import ROOT
from benchmarks.runs import Result
from ich_tfrecords.storage import atomic

INTRODUCTION = """# Benchmarks

Written by `python benchmarks/page.py` from the figures of the programs in `benchmarks/`; with `--run` it makes all of
them anew. Under each table stand command, date and machine. All slices are synthetic. Times vary with the machine and
with what else runs on it; a promise is a limit that the program itself checks.
"""


def pictures(results: Mapping[str, Result]) -> dict[str, bytes]:
    """PNG files of the page by name."""
    figures = {name: result.figures for name, result in results.items()}
    sizes = {int(size): run for size, run in figures["scale"]["runs"].items()}
    return {
        "scale": plots.scale(sizes, bench_scale.PROMISED_SIZE, bench_scale.MAX_SECONDS, bench_scale.MAX_PEAK_MB),
        "processes": plots.processes(figures["processes"]["rows"], figures["processes"]["zip"]),
        "tfds": plots.tfds(figures["tfds"]["rows"]),
        "streams": plots.streams(figures["streams"]["rows"], bench_streams.BASE),
        "projection": plots.projections(projection_section.bars(results)),
    }


def page(results: Mapping[str, Result]) -> str:
    """The whole page as Markdown."""
    parts = [
        INTRODUCTION,
        projection_section.whole(results),
        sections.processes(results["processes"]),
        sections.tfds(results["tfds"]),
        sections.scale(results["scale"]),
        sections.directory(results["zip"]),
        sections.requests(results["requests"]),
        sections.streams(results["streams"]),
    ]
    return "\n".join(parts)


def write(results: Mapping[str, Result], docs: Path) -> None:
    """Put the pictures, then the page, into `docs`."""
    (docs / sections.PICTURES).mkdir(parents=True, exist_ok=True)
    for name, data in pictures(results).items():
        atomic.write_bytes(docs / sections.PICTURES / f"{name}.png", data)
    atomic.write_bytes(docs / "benchmarks.md", page(results).encode())


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for, write the page; returns the exit code."""
    args = _parse(argv)
    kept = True
    try:
        for name in [] if args.run is None else args.run or runs.NAMES:
            kept = runs.run(name, args.results, args.quick) and kept
    except runs.ResultError as error:
        print(f"page: {error}", file=sys.stderr)
        return 1
    try:
        write(runs.load(args.results), args.docs)
    except runs.ResultError as error:
        print(f"page: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.docs / 'benchmarks.md'}")
    return int(not kept)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", nargs="*", choices=runs.NAMES, metavar="NAME", help=f"run these first: {', '.join(runs.NAMES)}"
    )
    parser.add_argument("--quick", action="store_true", help="run small, to see that it works")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", metavar="DIR")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
