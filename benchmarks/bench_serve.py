"""The server under load: 50 uploads from 10 clients at once, while somebody looks at the list.

    python benchmarks/bench_serve.py [--output FILE.json] [--uploads 50] [--clients 10] [--slices 16]

`python -m trainer.serve` with the cnn of configs/cnn.yaml and untrained weights. Each upload is a zip with a study of
its own, of synthetic slices of 512x512. The clients send them one after the other, each as fast as it is answered, and
then wait until all are done; a reader of its own asks for the list every 50 ms for as long as that takes. Then every
upload must hold its own study, with the probabilities that `trainer.predict` gives the same slices.

Exit code 1 when an answer is wrong or the server refuses, when the median list request takes over 100 ms while
predictions run, or when the memory of the server or of its model grows by over 10% from a fifth of the uploads to all.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx
import psutil

from benchmarks.bench_predict import A_STUDY, ROOT, SLICE, make_export, make_slices
from trainer import predict

MOST_MS, MOST_GROWTH = 100.0, 1.10
LOOK_EVERY_S = 0.05
OWN = {"X-ICH": "1"}
Json = dict[str, Any]


def archives(folder: Path, slices: int) -> list[bytes]:
    """A zip of `slices` slices of each study of `make_slices`."""
    paths = sorted(folder.iterdir())
    return [archive(paths[begin : begin + slices]) for begin in range(0, len(paths), A_STUDY)]


def archive(paths: list[Path]) -> bytes:
    """A zip of files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for path in paths:
            made.write(path, path.name)
    return out.getvalue()


@contextlib.contextmanager
def serving(export: Path, data: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Address and process of a server; it has to end well."""
    command = [sys.executable, "-m", "trainer.serve", "--model", export, "--data", data, "--port", "0"]
    with subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            yield server.stdout.readline().split()[0], psutil.Process(server.pid)
        finally:
            server.send_signal(signal.SIGTERM)
    if server.returncode:
        raise RuntimeError(f"the server ended with {server.returncode}")


class Watch:
    """Looks at the list and at the memory until it is stopped."""

    def __init__(self, address: str, server: psutil.Process) -> None:
        self.list_ms: list[float] = []
        self.rss_mb: list[tuple[int, float, float]] = []  # uploads done, MB of the server, and of its model
        self._address, self._server = address, server
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _look(self) -> None:
        model = max(self._server.children(recursive=True), key=lambda one: one.memory_info().rss)
        with httpx.Client(base_url=self._address, timeout=60) as client:
            while not self._stopping.wait(LOOK_EVERY_S):
                begin = time.perf_counter()
                studies = client.get("/api/studies").json()["studies"]
                if any(one["state"] == "working" for one in studies):
                    self.list_ms.append(1000 * (time.perf_counter() - begin))
                done = sum(one["state"] == "done" for one in studies)
                self.rss_mb.append((done, *(one.memory_info().rss / 2**20 for one in (self._server, model))))


def send_all(address: str, made: list[bytes], clients: int) -> list[str]:
    """The ids of the uploads, in order."""

    def send(data: bytes) -> str:
        with httpx.Client(base_url=address, timeout=600, headers=OWN) as client:
            answer = client.post("/api/studies", files={"files": ("study.zip", data)})
            answer.raise_for_status()
            return answer.json()["id"]

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(send, made))


def wait(address: str) -> None:
    """Return once all are done."""
    with httpx.Client(base_url=address, timeout=60) as client:
        while any(one["state"] not in ("done", "failed") for one in client.get("/api/studies").json()["studies"]):
            time.sleep(0.5)


def fetch(address: str, ids: list[str]) -> list[Json]:
    """Every upload with its series."""
    with httpx.Client(base_url=address, timeout=60) as client:
        return [client.get(f"/api/studies/{upload}").json() for upload in ids]


def wrong(found: list[Json], expected: list[list[float]]) -> int:
    """How many uploads are not answered right; `expected`: of each, probabilities of any hemorrhage, from feet to head.

    Each holds one study of its own.
    """
    said = [[one["probabilities"][0] for series in upload["series"] for one in series["slices"]] for upload in found]
    studies = {one["study_uid"] for upload in found for one in upload["studies"]}
    different = sum(one != other for one, other in zip(said, expected, strict=True))
    return different + len(found) - len(studies)


def predicted(work: Path, made: list[bytes]) -> list[list[float]]:
    """What the command says of each upload, alone: probabilities of any hemorrhage, from feet to head."""
    for number, data in enumerate(made):
        (work / f"{number:04d}.zip").write_bytes(data)
    inputs = [part for path in sorted(work.glob("*.zip")) for part in ("--input", str(path))]
    output = work / "predicted"
    with contextlib.redirect_stdout(io.StringIO()):
        if code := predict.main(["--model", str(work / SLICE), "--output", str(output), "--pictures", "0", *inputs]):
            raise RuntimeError(f"predict ended with {code}")
    with (output / "predictions.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: (int(row["input"]), float(row["position_mm"])))
    return [[float(row["any"]) for row in of] for _, of in itertools.groupby(rows, key=lambda row: int(row["input"]))]


def measure(work: Path, args: argparse.Namespace) -> Json:
    """Every figure, by name."""
    make_export(work / SLICE)
    make_slices(work, args.uploads * A_STUDY)
    made = archives(work / "ct", args.slices)
    expected = predicted(work, made)
    with serving(work / SLICE, work / "spool") as (address, server):
        with Watch(address, server) as watch:
            begin = time.perf_counter()
            ids = send_all(address, made, args.clients)
            sent_s = time.perf_counter() - begin
            wait(address)
            seconds = time.perf_counter() - begin
        found = fetch(address, ids)
    growth, peaks = grown(watch.rss_mb, args.uploads)
    return {
        "sent_mb": sum(map(len, made)) / 2**20,
        "sent_s": sent_s,
        "seconds": seconds,
        "wrong": wrong(found, expected),
        "list_ms": {
            "median": statistics.median(watch.list_ms),
            "95%": statistics.quantiles(watch.list_ms, n=20)[-1],
            "requests": len(watch.list_ms),
        },
        "rss_mb": peaks,
        "growth": growth,
    }


def grown(rss_mb: list[tuple[int, float, float]], uploads: int) -> tuple[float, Json]:
    """The greatest growth from the peak up to a fifth of the uploads to the peak of all, and the peaks in MB."""
    peaks: Json = {}
    for at, name in ((1, "server"), (2, "model")):
        early = max(one[at] for one in rss_mb if one[0] <= uploads // 5)
        peaks[name] = {"early": early, "all": max(one[at] for one in rss_mb)}
    return max(one["all"] / one["early"] for one in peaks.values()), peaks


def tell(figures: Json, args: argparse.Namespace) -> bool:
    """Print the figures; returns whether the promises are kept."""
    print(f"{args.uploads} uploads of {args.slices} slices from {args.clients} clients, {figures['sent_mb']:,.0f} MB:")
    print(f"all sent after {figures['sent_s']:.1f} s, all done after {figures['seconds']:.1f} s")
    print(f"{figures['wrong']} answered wrong   promised 0")
    ms = figures["list_ms"]
    print(
        f"the list while predictions run, of {ms['requests']:,} requests: median {ms['median']:.0f} ms, "
        f"95% {ms['95%']:.0f} ms   promised a median of at most {MOST_MS:.0f}"
    )
    for name, one in figures["rss_mb"].items():
        print(f"RSS of the {name}: {one['early']:,.0f} MB at a fifth, {one['all']:,.0f} MB at all")
    print(f"growth x{figures['growth']:.3f}   promised at most x{MOST_GROWTH}")
    return figures["wrong"] == 0 and ms["median"] <= MOST_MS and figures["growth"] <= MOST_GROWTH


def main() -> int:
    """Run, print, and say whether the promises hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--uploads", type=int, default=50)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--slices", type=int, default=16)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures = measure(Path(name), args)
    if args.output:
        args.output.write_text(json.dumps(figures, indent=1) + "\n")
    return int(not tell(figures, args))


if __name__ == "__main__":
    sys.exit(main())
