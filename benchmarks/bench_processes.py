"""The Beam job against the number of processes, where its core-seconds go, and what a slice weighs in the data set.

    python benchmarks/bench_processes.py [--output FILE.json] [--slices 8000] [--rounds 3] [--quick]

1. Slices/s of the convert step, and of index and convert together, with 1, 2, 4, ... processes up to the cores of the
   machine (one process: inside the launcher), from plain files, and in one process from a deflated zip. Start-up is
   what the same steps take for four slices; it is told apart. Core-milliseconds a slice are those of launcher and
   workers together, start-up apart; beside them stands what the workers' own clocks say (wall time: an upper bound).
   Each job runs several times and the fastest counts.
2. Bytes a slice in the shards at 64, 128 and 224 px, and in slices.parquet.

Exit code 1 when two processes do less than 70% of twice one process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import timed_job
from benchmarks.bench_convert import PROMISES, many_names
from benchmarks.timed_job import Job
from ich_tfrecords import spec
from ich_tfrecords.dataset import manifest, records
from ich_tfrecords.synthetic import rsna_layout

FEW, ZIPPED = 4, 2000  # slices of the start-up and of the zip
PATIENTS, SLICES_PER_STUDY = 30, 24  # of the data sets whose bytes are counted; no two slices are alike
SIZES_PX = (64, 128, 224)


class TooBusy(Exception):
    """Other work on the machine hides what is measured; the message says where."""


def process_counts(cores: int) -> list[int]:
    """1, 2, 4, ... and the number of cores itself; 2 on a single core too, since that is what is promised of."""
    return sorted({1, 2, cores, *(2**power for power in range(1, 10) if 2**power <= cores)})


def runner_flags(processes: int) -> list[str]:
    """Flags of one process (this one), or of so many workers."""
    if processes == 1:
        return ["--direct_num_workers", "1", "--runner", "DirectRunner"]
    return ["--direct_num_workers", str(processes), "--direct_running_mode", "multi_processing"]


def curve_row(processes: int, slices: int, start: Job, whole: Job) -> dict[str, Any]:
    """Rates and core-seconds of a job of `slices`, with those of the job of `FEW` slices taken off.

    Raises `TooBusy` when the few took longer than all.
    """
    row: dict[str, Any] = {"processes": processes, "slices": slices}
    for name, steps in (("convert", ["convert"]), ("both", ["index", "convert"])):
        start_s, whole_s = (sum(job.stage_s[step] for step in steps) for job in (start, whole))
        if whole_s <= start_s:
            raise TooBusy(f"{name} took {start_s:g} s for {FEW} slices, {whole_s:g} s for {slices:,}")
        row |= {f"{name}_start_s": start_s, f"{name}_slices_per_s": (slices - FEW) / (whole_s - start_s)}
    row["start_core_s"] = start.cpu_s
    row["core_ms_per_slice"] = (whole.cpu_s - start.cpu_s) / (slices - FEW) * 1000
    row["peak_bytes"] = whole.peak_bytes
    row["worker_ms"] = whole.worker_ms
    return row


def fastest(source: Path, output: Path, processes: int, rounds: int) -> Job:
    """The fastest of several conversions; nothing of them stays on the disk."""
    jobs = []
    for _ in range(rounds):
        jobs.append(timed_job.convert(source, output, *runner_flags(processes)))
        shutil.rmtree(output)
    return min(jobs, key=lambda job: job.wall_s)


def few_of(folder: Path, made: Path) -> Path:
    """A folder with hard links to the first `FEW` slices."""
    made.mkdir()
    for path in sorted(folder.iterdir())[:FEW]:
        os.link(path, made / path.name)
    return made


def zip_of(folder: Path, path: Path, count: int) -> Path:
    """The first `count` slices deflated as Kaggle's are."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir())[:count]:
            archive.write(file, file.name)
    return path


def bench_sizes(folder: Path, work: Path) -> list[dict[str, float]]:
    """Bytes a slice in the shards at each size, from a conversion, beside what `records.slice_bytes` plans with."""
    rows: list[dict[str, float]] = []
    for size_px in SIZES_PX:
        config, output = work / f"{size_px}.yaml", work / f"px_{size_px}"
        config.write_text(f"extends: rsna_ich\nimage: {{size_px: {size_px}}}\n")
        timed_job.convert(folder, output, "--spec", str(config))
        made = manifest.read(output)
        shards = sum(shard["bytes"] for shard in made.shards) / made.slices
        table = (output / "slices.parquet").stat().st_size / made.slices
        planned = records.slice_bytes(spec.load(str(config)))
        rows.append({"size_px": size_px, "slices": made.slices, "shards": shards, "planned": planned, "table": table})
    return rows


def bench(work: Path, slices: int, zipped: int, rounds: int, cores: int) -> dict[str, Any]:
    """All figures."""
    rsna_layout.generate(work / "ct", patients=PATIENTS, test_patients=0, slices_per_study=SLICES_PER_STUDY)
    made = work / "ct" / "stage_2_train"
    sizes = bench_sizes(made, work)
    folder = many_names(made, work, slices)
    few = few_of(folder, work / "few")
    rows: list[dict[str, Any]] = []
    starts: dict[int, Job] = {}
    for count in process_counts(cores):
        starts[count] = fastest(few, work / "out", count, rounds)
        rows.append(curve_row(count, slices, starts[count], fastest(folder, work / "out", count, rounds)))
    archive = zip_of(folder, work / "slices.zip", zipped)
    return {
        "rows": rows,
        "zip": curve_row(1, zipped, starts[1], fastest(archive, work / "out", 1, rounds)),
        "zip_bytes_per_slice": archive.stat().st_size / zipped,
        "sizes": sizes,
    }


def efficiency_of_two(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Rate of two processes against twice that of one: of the convert step, and of both steps."""
    one, two = (next(row for row in rows if row["processes"] == count) for count in (1, 2))
    return {name: two[f"{name}_slices_per_s"] / (2 * one[f"{name}_slices_per_s"]) for name in ("convert", "both")}


def show(figures: dict[str, Any]) -> None:
    """Print the tables."""
    print(f"{'processes':>9}{'both/s':>10}{'convert/s':>11}{'start-up s':>12}{'core-ms a slice':>17}", end="")
    print("  workers' clocks, ms a slice")
    for row in [*figures["rows"], figures["zip"]]:
        print(f"{row['processes']:>9}{row['both_slices_per_s']:>10,.0f}{row['convert_slices_per_s']:>11,.0f}", end="")
        print(f"{row['both_start_s']:>12.1f}{row['core_ms_per_slice']:>17.2f}  ", end="")
        print(", ".join(f"{name} {value:.2f}" for name, value in row["worker_ms"].items()))
    print(f"(the last line from a zip of {figures['zip_bytes_per_slice']:,.0f} bytes a slice)")
    for row in figures["sizes"]:
        print(f"{row['size_px']} px: {row['shards']:,.0f} bytes a slice in the shards, {row['table']:.0f} in the table")


def main() -> int:
    """Run, print, and say whether the promise holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--slices", type=int, default=8000, help="of the Beam job (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each job (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round of 1,500 slices, to see that it runs")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="pydicom")
    with tempfile.TemporaryDirectory() as name:
        slices, zipped = (1500, 500) if args.quick else (args.slices, min(ZIPPED, args.slices))
        rounds = 1 if args.quick else args.rounds
        try:
            figures = bench(Path(name), slices, zipped, rounds, len(os.sched_getaffinity(0)))
        except TooBusy as error:
            print(f"bench_processes: {error}; run it again when the machine is idle", file=sys.stderr)
            return 1
    figures["efficiency_of_two"] = efficiency_of_two(figures["rows"])
    show(figures)
    found = figures["efficiency_of_two"]["convert"]
    print(f"two processes do {found:.0%} of twice one in the convert step (promised: {PROMISES['beam']:.0%})")
    if args.output:
        args.output.write_text(json.dumps(figures, indent=1) + "\n")
    return int(found < PROMISES["beam"])


if __name__ == "__main__":
    sys.exit(main())
