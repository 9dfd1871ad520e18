"""Seconds and peak memory of the launcher's own work at 10,000 to 2,000,000 slices: list, index, plan, commit.

    python benchmarks/bench_scale.py [--sizes 10000,100000,762131,2000000] [--rounds 2] [--output FILE.json]

Everything that the launcher of `beam_pipelines.convert` does around the slices, with the project's own functions,
each size in a fresh process that may use two cores:

list    `sources.list_inputs` of a zip archive that is nothing but its directory (RSNA's layout, the training
        slices chosen with --include), and the listing's digest
labels  a label CSV of six rows a slice, and whether the slices are in it
index   bookkeeping: what is missing, the listing cut into parts, the index parts read
plan    `plan.build_plan`, and a plan file a shard
commit  the sidecars read, rejects.csv, slices.parquet, the manifest, and the work directory removed

What workers write in between (index parts, shards, sidecars) is made by other processes off the clock. CPU seconds
are those of all threads. Peaks are of the process so far, its imports included (`start`).

Exit code 1: at 762,131 slices the stages together take more than 120 s or 2 GB, or from 100,000 slices on the
seconds grow faster than the slices to the power of 1.1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import made_inventory
from benchmarks.peak import peak_bytes

SIZES = (10_000, 100_000, 762_131, 2_000_000)
PROMISED_SIZE, MAX_SECONDS, MAX_PEAK_MB = 762_131, 120.0, 2000.0
GROWTH_FROM, MAX_EXPONENT = 100_000, 1.1
CORES = 2
SUM = "sum"
Figures = dict[str, dict[str, float]]


class Meter:
    """Wall and CPU seconds of each stage, summed over its pieces, and the peak so far in MB."""

    def __init__(self) -> None:
        self.figures: Figures = {"start": {"seconds": 0.0, "cpu_seconds": 0.0, "peak_mb": peak_bytes() / 1e6}}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        yield
        entry = self.figures.setdefault(name, {"seconds": 0.0, "cpu_seconds": 0.0})
        entry["seconds"] += time.perf_counter() - wall_s
        entry["cpu_seconds"] += time.process_time() - cpu_s
        entry["peak_mb"] = peak_bytes() / 1e6


def measure(folder: Path, slices: int) -> Figures:
    """Figures of each stage in this process; `folder` holds the input."""
    from beam_pipelines import inputs  # the launcher, for what its imports weigh
    from ich_tfrecords import spec
    from ich_tfrecords.conversion import commit, job, patient_key, plan
    from ich_tfrecords.storage import sources

    pa.set_memory_pool(pa.system_memory_pool())  # as `convert.main` does
    data_spec, work = spec.load(made_inventory.SPEC), job.WorkDir(folder / made_inventory.OUTPUT)
    key = patient_key.patient_key(data_spec.split.salt, file=None)
    meter = Meter()
    with meter.stage("list"):
        listing = sources.list_inputs([str(folder / made_inventory.ARCHIVE)], [made_inventory.TRAIN])
        input_facts = inputs.input_facts(listing)
    with meter.stage("labels"):
        given = [str(folder / made_inventory.LABELS)]
        labels, label_facts = inputs.labels_given(given, False, listing, data_spec.labels, key)
        inputs.check_stems(listing, labels, 0.01, data_spec.accept)
    made_from = {"input": input_facts, "labels": label_facts, "patient_key": {"check": key.check}}
    with meter.stage("index"):
        lock = job.claim(work.output)
        job.check_identity(work, job.Identity(data_spec, made_from))
        parts = job.begin_index(work, listing.table)
        del listing
        missing = job.missing_index(slices, parts)
    others_make("index", folder, slices)
    with meter.stage("index"):
        parts |= job.read_index(work, missing)
        if not missing or job.missing_index(slices, parts):
            raise SystemExit("the index was there before its time, or is not there after it")
    with meter.stage("plan"):
        planned = plan.build_plan(job.joined(parts), labels, data_spec)
        plan.top_reasons(planned.rejects)
        job.write_plan(work, planned, data_spec)
    others_make("shards", folder, slices)
    with meter.stage("commit"):
        names = [shard.name for shard in plan.planned_shards(planned, data_spec)]
        sidecars = dict(job.sidecars(work, names))
        if changed := job.changed_shards(work.output, sidecars.values()):
            raise SystemExit(f"{changed[0]} is not as long as its sidecar tells")
        lost = commit.all_rejects(data_spec, planned, sidecars)
        done = commit.commit(work.output, data_spec, planned, sidecars, lost, made_from, lambda: None)
        job.clear(work)
    lock.close()
    check(done, slices)
    return meter.figures


def check(done: Any, slices: int) -> None:
    """Stop when not every slice became a record or a reject: then this measured something else."""
    rejects = sum(done.rejects.values())
    if done.slices + rejects != slices or not rejects:
        raise SystemExit(f"{done.slices:,} records and {rejects:,} rejects of {slices:,} slices")


def others_make(what: str, folder: Path, slices: int) -> None:
    """Have a process of its own make the input, or what workers write."""
    subprocess.run([sys.executable, made_inventory.__file__, what, str(folder), str(slices)], check=True)


def measure_size(slices: int, rounds: int) -> Figures:
    """Best seconds and largest peak of each stage over some fresh processes, and the sum of the stages."""
    with tempfile.TemporaryDirectory() as name:
        others_make("input", Path(name), slices)
        runs = [in_fresh_process(Path(name), slices) for _ in range(rounds)]
    figures = {stage: _best([run[stage] for run in runs]) for stage in runs[0]}
    total = {key: sum(stage[key] for stage in figures.values()) for key in ("seconds", "cpu_seconds")}
    return figures | {SUM: {**total, "peak_mb": max(stage["peak_mb"] for stage in figures.values())}}


def _best(rows: list[dict[str, float]]) -> dict[str, float]:
    least = {key: min(row[key] for row in rows) for key in ("seconds", "cpu_seconds")}
    return {**least, "peak_mb": max(row["peak_mb"] for row in rows)}


def in_fresh_process(folder: Path, slices: int) -> Figures:
    """Figures of one run over the input in `folder`; what it writes is removed."""
    command = [sys.executable, __file__, "--child", str(folder), "--sizes", str(slices)]
    figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    shutil.rmtree(folder / made_inventory.OUTPUT)
    return figures


def exponents(runs: dict[int, Figures], key: str) -> dict[str, float]:
    """Slope of log seconds over log slices of each stage and the sum, least squares from `GROWTH_FROM` slices on."""
    sizes = sorted(size for size in runs if size >= GROWTH_FROM)
    if len(sizes) < 2:
        return {}
    stages = [stage for stage in runs[sizes[0]] if stage != "start"]
    seconds = {stage: [runs[size][stage][key] for size in sizes] for stage in stages}
    return {stage: float(np.polyfit(np.log(sizes), np.log(seconds[stage]), 1)[0]) for stage in stages}


def verdicts(runs: dict[int, Figures], growth: dict[str, float]) -> list[tuple[str, bool]]:
    """What was promised of the sizes that ran: a line, and whether it holds."""
    found = []
    if PROMISED_SIZE in runs:
        total = runs[PROMISED_SIZE][SUM]
        line = f"{PROMISED_SIZE:,} slices: {total['seconds']:.1f} s (at most {MAX_SECONDS:g}), "
        line += f"{total['peak_mb']:,.0f} MB (at most {MAX_PEAK_MB:,.0f})"
        found.append((line, total["seconds"] <= MAX_SECONDS and total["peak_mb"] <= MAX_PEAK_MB))
    if growth:
        line = f"growth from {GROWTH_FROM:,} slices on: exponent {growth[SUM]:.2f} (at most {MAX_EXPONENT:g})"
        found.append((line, growth[SUM] <= MAX_EXPONENT))
    return found


def show(size: int, figures: Figures) -> None:
    """Print the lines of one size, a stage each."""
    for stage, row in figures.items():
        print(
            f"{size:>10,} {stage:<8}{row['seconds']:>10.2f}{row['cpu_seconds']:>10.2f}{row['peak_mb']:>10,.0f}",
            flush=True,
        )


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=_sizes, default=SIZES, metavar="N,...", help="slices of each run")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each size; the best seconds of a stage count")
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.child:
        print(json.dumps(measure(args.child, args.sizes[0])))
        return 0
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # inherited by what is started from here
    runs: dict[int, Figures] = {}
    print(f"{'slices':>10} {'stage':<8}{'seconds':>10}{'CPU s':>10}{'peak MB':>10}")
    for size in args.sizes:
        runs[size] = measure_size(size, args.rounds)
        show(size, runs[size])
    growth = {key: exponents(runs, key) for key in ("seconds", "cpu_seconds")}
    for stage, exponent in growth["seconds"].items():
        print(f"{'exponent':>10} {stage:<8}{exponent:>10.2f}{growth['cpu_seconds'][stage]:>10.2f}")
    found = verdicts(runs, growth["seconds"])
    for line, holds in found:
        print(f"{line}: {'passed' if holds else 'FAILED'}")
    if args.output:
        figures = {"rounds": args.rounds, "runs": runs, "exponents": growth, "passed": all(holds for _, holds in found)}
        args.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return int(not all(holds for _, holds in found))


if __name__ == "__main__":
    sys.exit(main())
