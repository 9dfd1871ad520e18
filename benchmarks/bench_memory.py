"""Memory and planning at scale: peak RSS of launcher and workers from 4,000 to 16,000 slices, and a 762,131-slice plan.

    python benchmarks/bench_memory.py [--output FILE.json] [--small 4000] [--large 16000] [--inventory 762131]

The slices are hard links to a few synthetic files, each with a SOP UID of its own patched in (small files:
64x64, since memory per slice is the question, and the cost of a pixel is bench_convert's). The job runs with two
worker processes; a thread reads the peak RSS (VmHWM) of every process of the job. Exit code 1 when the peak of
the launcher or of the largest worker grows by 10% or more, or the plan takes over 60 s or 2 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.peak import peak_bytes
from ich_tfrecords import spec
from ich_tfrecords.conversion import job, plan
from ich_tfrecords.conversion.job import WorkDir
from ich_tfrecords.dicom.writer import SliceFields, dicom_bytes
from ich_tfrecords.labels.table import LabelTable


def make_slices(folder: Path, count: int, side_px: int) -> None:
    """`count` slices of 500 patients with 32 slices a series."""
    folder.mkdir()
    stored = np.random.default_rng(0).integers(0, 2000, (side_px, side_px)).astype(np.int16)
    for number in range(count):
        fields = SliceFields(
            sop_uid=f"ID_{number:09x}",
            patient_id=f"ID_{number // 32 % 500:08x}",
            study_uid=f"ID_{number // 32:010x}",
            series_uid=f"ID_{number // 32:010x}",
            position_mm=(0.0, 0.0, float(number % 32)),
        )
        (folder / f"ID_{number:09x}.dcm").write_bytes(dicom_bytes(stored, fields))


def peaks(command: list[str]) -> dict[str, float]:
    """Peak RSS in MB of the launcher and of the largest worker process of a command."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen: dict[int, float] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            try:
                family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for member in family:
                seen[member.pid] = max(seen.get(member.pid, 0.0), peak_bytes(member.pid) / 2**20)
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    ended.set()
    watcher.join()
    if code != 0:
        raise SystemExit(f"the conversion failed with exit code {code}: {' '.join(command)}")
    launcher = seen.pop(process.pid)
    return {"launcher": launcher, "worker": max(seen.values(), default=0.0)}


def bench_growth(work: Path, counts: tuple[int, int], side_px: int) -> dict[str, dict[str, float]]:
    """Peaks for each number of slices."""
    found = {}
    for count in counts:
        make_slices(work / f"in_{count}", count, side_px)
        command = [sys.executable, "-m", "beam_pipelines.convert", "--input", work / f"in_{count}", "--labels", "none"]
        command += ["--output", work / f"out_{count}"]
        command += ["--direct_num_workers", "2", "--direct_running_mode", "multi_processing"]
        found[f"{count} slices"] = peaks(list(map(str, command)))
    return found


def inventory(count: int) -> tuple[pa.Table, LabelTable]:
    """Index and labels of `count` made-up slices in RSNA proportions: 17,079 patients, 34 slices a series."""
    number = np.arange(count)
    uids = [f"ID_{value:09x}" for value in np.random.default_rng(0).permutation(count)]
    series = pa.array([f"ID_{value:010x}" for value in number // 34])
    columns = {
        "container": pa.array(["/data/rsna.zip"] * count, pa.string()).dictionary_encode(),
        "name": pa.array([f"rsna-intracranial-hemorrhage-detection/stage_2_train/{uid}.dcm" for uid in uids]),
        "offset": pa.array(number * 216_000),
        "method": pa.array(np.full(count, 8, np.int8)),
        "stored_bytes": pa.array(np.full(count, 216_000)),
        "size_bytes": pa.array(np.full(count, 525_314)),
        "crc32": pa.array(number),
        "version": pa.array(np.full(count, -1)),
        "sop_uid": pa.array(uids),
        "patient_key": pa.array([f"{value:032x}" for value in number // 34 % 17_079]),
        "study_uid": series,
        "series_uid": series,
        "position_mm": pa.array((number % 34) * 5.0),
        "reason": pa.array([""] * count),
        "detail": pa.array([""] * count),
    }
    names = plan.INDEX_SCHEMA.names
    full = [columns.get(name, pa.nulls(count, plan.INDEX_SCHEMA.field(name).type)) for name in names]
    values = np.zeros((count, 6), np.int8)
    share = np.random.default_rng(1).random(count)
    for label, (low, high) in enumerate(((0, 0.004), (0.004, 0.05), (0.05, 0.08), (0.08, 0.11), (0.11, 0.144)), 1):
        values[:, label] = (share >= low) & (share < high)
    values[:, 0] = values[:, 1:].max(axis=1)
    order = np.argsort(uids)
    table = LabelTable("made up", pa.array(np.array(uids)[order]), values[order], {}, {}, (), "sop_uid")
    return pa.table(full, schema=plan.INDEX_SCHEMA), table


def bench_plan(count: int) -> dict[str, float]:
    """Seconds and peak MB of planning, in a fresh process that makes the inventory first."""
    code = f"import benchmarks.bench_memory as b; b.plan_here({count})"
    root = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, check=True, capture_output=True)
    return json.loads(done.stdout)


def plan_here(count: int) -> None:
    """Plan an inventory, write the plan files, and print the figures as JSON."""
    index, labels = inventory(count)
    data_spec = spec.load("rsna_ich")
    with tempfile.TemporaryDirectory() as name:
        work = WorkDir(Path(name))
        work.create()
        begin = time.perf_counter()
        made = plan.build_plan(index, [labels], data_spec)
        planned = time.perf_counter()
        shards = len(job.write_plan(work, made, data_spec))
        end = time.perf_counter()
    peak = peak_bytes() / 2**20
    print(json.dumps({"plan_s": planned - begin, "write_s": end - planned, "peak_mb": peak, "shards": shards}))


def main() -> int:
    """Run, print, and say whether the promises hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--small", type=int, default=4000)
    parser.add_argument("--large", type=int, default=16_000)
    parser.add_argument("--side_px", type=int, default=64, help="rows and columns of the slices (default: %(default)s)")
    parser.add_argument("--inventory", type=int, default=762_131, help="slices to plan (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        growth = bench_growth(Path(name), (args.small, args.large), args.side_px)
    small, large = growth.values()
    ratios = {who: large[who] / small[who] for who in small}
    planning = bench_plan(args.inventory)
    for title, values in growth.items():
        print(f"peak RSS, {title}: " + ", ".join(f"{who} {mb:,.0f} MB" for who, mb in values.items()))
    print("growth: " + ", ".join(f"{who} x{ratio:.3f}" for who, ratio in ratios.items()) + "   promised below x1.1")
    print(f"plan of {args.inventory:,} slices: " + ", ".join(f"{key} {value:,.1f}" for key, value in planning.items()))
    if args.output:
        figures = {"peak_mb": growth, "growth": ratios, "plan": planning}
        args.output.write_text(json.dumps(figures, indent=1) + "\n")
    slow = planning["plan_s"] + planning["write_s"] > 60 or planning["peak_mb"] > 2048
    return int(max(ratios.values()) >= 1.1 or slow)


if __name__ == "__main__":
    sys.exit(main())
