"""Seconds and peak memory of `read_labels` beside plain pandas, on a label CSV of the size of RSNA stage 2.

    python benchmarks/bench_labels.py --output labels.json

Each reading runs in a fresh process, the two ways take turns, and the best round of each counts. Exits 1 when
`read_labels` is less than `--min_ratio` times as fast or its process passes `--max_rss_mb`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.peak import peak_bytes

Reader = Callable[[str], tuple[Any, np.ndarray]]

STAGE_2_ROWS = 4_516_842
DUPLICATE_IMAGES = 4
CSV_ORDER = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
PREVALENCE = (0.0041, 0.0483, 0.0352, 0.0476, 0.0630)  # stage 1, in CSV_ORDER


def main(argv: list[str] | None = None) -> int:
    """Print a table, write JSON if asked; 1 when a limit is missed."""
    args = _arguments(argv)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stage_2_train.csv"
        rows = write_csv(path, args.rows, args.shuffle)
        result = measure(path, rows, args.rounds)
    result |= {"shuffled": args.shuffle, "min_ratio": args.min_ratio, "max_rss_mb": args.max_rss_mb}
    result["passed"] = bool(result["ratio"] >= args.min_ratio and result["peak_rss_mb"] <= args.max_rss_mb)
    print(table(result))
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if result["passed"] else 1


def write_csv(path: Path, rows: int, shuffle: bool) -> int:
    """Rows written: six an image in RSNA order, the last four images being repeats of the first ones."""
    rng = np.random.default_rng(2019)
    images = max(rows // 6 - DUPLICATE_IMAGES, DUPLICATE_IMAGES)
    ids = np.char.mod("ID_%09x", rng.choice(16**9, images, replace=False))
    values = rng.random((images, len(PREVALENCE))) < PREVALENCE
    values = np.column_stack([values, values.any(axis=1)]).astype(int)
    order = np.concatenate([np.arange(images), np.arange(DUPLICATE_IMAGES)])
    lines = [f"{ids[i]}_{label},{values[i, k]}\n" for i in order for k, label in enumerate(CSV_ORDER)]
    if shuffle:
        lines = [lines[i] for i in rng.permutation(len(lines))]
    with path.open("w", encoding="ascii") as file:
        file.write("ID,Label\n")
        file.writelines(lines)
    return len(lines)


def measure(path: Path, rows: int, rounds: int) -> dict:
    """Best seconds and largest peak RSS of both ways, and whether they gave the same table."""
    runs: dict[str, list[dict]] = {way: [] for way in _READERS}
    for _ in range(rounds):
        for way, done in runs.items():
            done.append(_in_fresh_process(way, path))
    digests = {run["digest"] for done in runs.values() for run in done}
    if len(digests) != 1:
        raise SystemExit(f"the two ways disagree on the labels of {path}: digests {sorted(digests)}")
    ours, plain = (min(run["seconds"] for run in runs[way]) for way in runs)
    return {
        "rows": rows,
        "ratio": plain / ours,
        "peak_rss_mb": max(run["peak_rss_mb"] for run in runs["read_labels"]),
        "runs": runs,
        "machine": {"python": platform.python_version(), "cores": multiprocessing.cpu_count()},
    }


def table(result: dict) -> str:
    """Text table of a result of `measure`."""
    lines = [f"{result['rows']:,} rows", f"{'way':<14}{'seconds':>20}{'peak RSS':>12}"]
    for way, done in result["runs"].items():
        seconds = " ".join(f"{run['seconds']:.2f}" for run in done)
        lines.append(f"{way:<14}{seconds:>20}{max(run['peak_rss_mb'] for run in done):>9.0f} MB")
    limits = f"at least {result['min_ratio']:g} times, at most {result['max_rss_mb']:,.0f} MB"
    verdict = "passed" if result["passed"] else "FAILED"
    return "\n".join([*lines, f"{result['ratio']:.1f} times as fast as plain pandas; {verdict} ({limits})"])


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=STAGE_2_ROWS, help="rows of the CSV (default: stage 2)")
    parser.add_argument("--rounds", type=int, default=2, help="readings of each way")
    parser.add_argument("--shuffle", action="store_true", help="rows in random order, not six an image")
    parser.add_argument("--min_ratio", type=float, default=3.0)
    parser.add_argument("--max_rss_mb", type=float, default=1500.0)
    parser.add_argument("--output", help="JSON file to write")
    return parser.parse_args(argv)


def _in_fresh_process(way: str, path: Path) -> dict:
    """One reading in a new interpreter: a forked one would inherit the parent's memory."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_read_and_send, args=(way, str(path), sender))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError as error:
        raise SystemExit(f"reading {path} with {way} failed; see its message above") from error
    finally:
        child.join()


def _read_and_send(way: str, path: str, sender: Connection) -> None:
    read = _READERS[way]()
    start = time.perf_counter()
    ids, values = read(path)
    seconds = time.perf_counter() - start
    sender.send({"seconds": seconds, "peak_rss_mb": peak_bytes() / 1e6, "digest": _digest(ids.tolist(), values)})


def _ours() -> Reader:
    import pandas  # noqa: F401  (pyarrow would import it on the clock)

    from ich_tfrecords import spec
    from ich_tfrecords.labels.table import read_labels

    label_spec = spec.load("rsna_ich").labels
    columns = [label_spec.names.index(name) for name in CSV_ORDER]

    def read(path: str) -> tuple[Any, np.ndarray]:
        table = read_labels(path, label_spec)
        return table.ids, table.values[:, columns]

    return read


def _plain_pandas() -> Reader:
    import pandas as pd

    def read(path: str) -> tuple[Any, np.ndarray]:
        frame = pd.read_csv(path).drop_duplicates()
        parts = frame["ID"].str.rpartition("_")
        frame["image"], frame["label"] = parts[0], parts[2]
        wide = frame.pivot(index="image", columns="label", values="Label")[list(CSV_ORDER)]
        return wide.index, wide.to_numpy(np.int8)

    return read


# each imports what it needs in the child process, before the clock starts
_READERS = {"read_labels": _ours, "pandas": _plain_pandas}


def _digest(ids: list[str], values: np.ndarray) -> str:
    hasher = hashlib.sha256("\n".join(ids).encode())
    hasher.update(np.ascontiguousarray(values, np.int8).tobytes())
    return hasher.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
