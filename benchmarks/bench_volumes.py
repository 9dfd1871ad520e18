"""Slices a second and peak memory of files that hold many slices: enhanced CT and NIfTI, converted on one core.

    python benchmarks/bench_volumes.py [--slices 300] [--long 1000] [--rounds 2]

Each conversion is the work of its two steps, without the runner: indexing, which unpacks the volume into the work
directory, and the writing of every shard. Each runs in a fresh process bound to one core; the best round counts, and
the greatest peak. Promised: 100 slices/s and more, and 1.5 GB for the long volumes. Exit code 1 when that is broken.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "shared"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import volume_files
from isal import igzip

from benchmarks.peak import peak_bytes

MIN_RATE, MAX_PEAK_MB = 100.0, 1500.0
SIDE_PX = 512


def head(slices: int) -> volume_files.Hu:
    """Slices with as much noise as a scanner's, so that they are as hard to unpack."""
    rng = np.random.default_rng(0)
    one = np.tile(np.linspace(-1000, 1500, SIDE_PX), (SIDE_PX, 1))
    hu = np.empty((slices, SIDE_PX, SIDE_PX), np.int16)
    noise = rng.normal(0, 8, one.size)
    for number in range(slices):
        hu[number] = one + np.roll(noise, 997 * number).reshape(one.shape)
    hu[:, :100] = -1000
    return hu


def write_files(folder: Path, slices: int, long: int) -> dict[Path, int]:
    """The files, and how many slices each holds."""
    short, whole = head(slices), head(long)
    files = {
        folder / f"enhanced_{slices}.dcm": volume_files.written(volume_files.enhanced(short)),
        folder / f"int16_{slices}.nii.gz": igzip.compress(volume_files.nifti(short, "LAS")),
        folder / f"sagittal_{slices}.nii.gz": igzip.compress(volume_files.nifti(short, "SRA")),
        folder / f"enhanced_{long}.dcm": volume_files.written(volume_files.enhanced(whole)),
        folder / f"float32_{long}.nii.gz": igzip.compress(volume_files.nifti(whole, "LAS", "float32")),
    }
    for path, data in files.items():
        path.write_bytes(data)
    return {path: int(path.name.partition(".")[0].partition("_")[2]) for path in files}


def convert(path: str, work_dir: str, sender: Connection) -> None:
    """Index and convert one file; sends seconds, bytes and slices."""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    from ich_tfrecords import spec
    from ich_tfrecords.conversion import job, plan, steps
    from ich_tfrecords.conversion.patient_key import patient_key
    from ich_tfrecords.storage import sources

    data_spec, tally = spec.load("rsna_ich"), Counter[str]()
    listing = sources.list_inputs([path]).table
    begin, work = time.perf_counter(), job.WorkDir(Path(work_dir))
    work.create()
    job.write_listing(work, listing, [0])
    key = patient_key(data_spec.split.salt, None)
    with sources.SliceReader() as reader:
        steps.index_part(work, 0, (key, data_spec.accept), reader, tally)
        indexed = time.perf_counter()
        planned = plan.build_plan(job.joined(job.read_index(work, [0])), [], data_spec)
        for name in job.write_plan(work, planned, data_spec):
            steps.write_shard(work, name, data_spec, reader, tally)
    end = time.perf_counter()
    sender.send((indexed - begin, end - indexed, peak_bytes(), tally["written"]))


def measure(path: Path, slices: int, rounds: int) -> tuple[float, float]:
    """Slices a second, and the peak in MB, of the conversion of a file."""
    context, rates, peaks, stages = multiprocessing.get_context("spawn"), [], [], ""
    for _ in range(rounds):
        receiver, sender = context.Pipe(duplex=False)
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            process = context.Process(target=convert, args=(str(path), work, sender))
            process.start()
            sender.close()
            index_s, write_s, peak, written = receiver.recv()
            process.join()
        if written != slices:
            raise SystemExit(f"{path.name}: {written:,} of {slices:,} slices were written")
        rates.append(slices / (index_s + write_s))
        peaks.append(peak / 1e6)
        stages = f"unpack {index_s:.1f} s, write {write_s:.1f} s"
    print(f"{path.name:<24}{max(rates):>8,.0f} slices/s{max(peaks):>9,.0f} MB   {stages}", flush=True)
    return max(rates), max(peaks)


def main(argv: list[str] | None = None) -> int:
    """Print a row a file; 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300, help="of the files whose rate is promised")
    parser.add_argument("--long", type=int, default=1000, help="slices of the files whose memory is promised")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = [measure(path, slices, args.rounds) for path, slices in
                 write_files(Path(folder), args.slices, args.long).items()]  # fmt: skip
    rate, peak = min(rate for rate, _ in found), max(peak for _, peak in found)
    passed = rate >= MIN_RATE and peak <= MAX_PEAK_MB
    print(f"least {rate:,.0f} slices/s (at least {MIN_RATE:g}), most {peak:,.0f} MB (at most {MAX_PEAK_MB:,.0f})")
    print("passed" if passed else "FAILED")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
