"""What converting so many slices takes and costs, from measured terms: arithmetic alone, nothing is timed here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

SLICES = 762_131
STEPS = 2  # index and convert are a Beam job each, and each starts its workers
ZIP_BYTES_PER_SLICE = 180e9 / 874_035  # of the Kaggle archive, by its published size and number of files
RAW_BYTES_PER_SLICE = 525_000  # 512 x 512 x 2 and a header


@dataclasses.dataclass(frozen=True)
class Prices:
    """USD an hour of a vCPU, of a GB of memory and of a GB of disk, USD of 1,000 reads, and where they come from."""

    vcpu_usd: float
    memory_gb_usd: float
    disk_gb_usd: float
    thousand_reads_usd: float
    source: str


# list prices change: look at https://cloud.google.com/dataflow/pricing before you rely on them
DATAFLOW_BATCH = Prices(
    0.056, 0.003557, 0.000054, 0.0004,
    "list prices of Dataflow batch workers and of Cloud Storage class B operations, us-central1, November 2026",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Terms:
    """What was measured: core-seconds a slice of both steps in one process, and seconds of the launcher.

    `efficiency`: rate of many processes against as many times that of one. `slice_bytes`: what the convert step reads
    for a slice, by the published sizes of the data set. `request_core_s`: core-seconds that the client of a bucket
    spends on a read, in the index step and in the convert step.
    """

    index_core_s: float
    convert_core_s: float
    efficiency: float
    launcher_s: float
    slice_bytes: float
    request_core_s: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where it runs. `start_s`: seconds until workers work, both steps together. `speed`: of a core, ours being 1.

    `read_mb_per_s`, `memory_gb` and `disk_gb` are those of one machine, `reads_per_s` of all together; `prices` is
    None where nobody sends a bill.
    """

    name: str
    machines: int
    cores: int
    start_s: float
    read_mb_per_s: float
    reads_per_s: float = math.inf
    speed: float = 1.0
    memory_gb: float = 0.0
    disk_gb: float = 0.0
    prices: Prices | None = None

    @property
    def in_bucket(self) -> bool:
        """Whether slices come from a bucket, by a request each."""
        return math.isfinite(self.reads_per_s)


@dataclasses.dataclass(frozen=True)
class Step:
    """Seconds that a step of the workers takes for each thing it needs: the slowest decides."""

    cores_s: float
    bytes_s: float
    requests_s: float

    @property
    def seconds(self) -> float:
        """How long the step takes; reading is ahead of the work."""
        return max(self.cores_s, self.bytes_s, self.requests_s)

    @property
    def slowest(self) -> str:
        """What decides."""
        needs = {"cores": self.cores_s, "reading": self.bytes_s, "requests": self.requests_s}
        return max(needs, key=needs.__getitem__)


@dataclasses.dataclass(frozen=True)
class Projection:
    """The parts of a conversion, hours of what is paid for, and the price in USD (None where nobody sends a bill)."""

    start_s: float
    launcher_s: float
    index: Step
    convert: Step
    vcpu_hours: float
    memory_gb_hours: float
    disk_gb_hours: float
    reads: int
    usd: float | None

    @property
    def total_s(self) -> float:
        """Seconds from start to end; the parts follow one another."""
        return self.start_s + self.launcher_s + self.index.seconds + self.convert.seconds


def project(terms: Terms, place: Place, slices: int) -> Projection:
    """A conversion of `slices` at a place; each step reads once a slice.

    Workers are paid for while they start and while a step runs; the launcher's own stages run on the machine of who
    starts the job.
    """
    asked = terms.request_core_s if place.in_bucket else (0.0, 0.0)
    index = step(terms.index_core_s + asked[0], 0.0, terms.efficiency, place, slices)
    convert = step(terms.convert_core_s + asked[1], terms.slice_bytes, terms.efficiency, place, slices)
    hours = place.machines * (place.start_s + index.seconds + convert.seconds) / 3600
    paid = (hours * place.cores, hours * place.memory_gb, hours * place.disk_gb)
    reads = STEPS * slices
    usd = price(*paid, reads, place.prices) if place.prices else None
    return Projection(place.start_s, terms.launcher_s, index, convert, *paid, reads=reads, usd=usd)


def step(core_s: float, slice_bytes: float, efficiency: float, place: Place, slices: int) -> Step:
    """A step that needs so many core-seconds and bytes and one read for each of `slices`."""
    return Step(
        cores_s=slices * core_s / (place.machines * place.cores * place.speed * efficiency),
        bytes_s=slices * slice_bytes / (place.machines * place.read_mb_per_s * 1e6),
        requests_s=slices / place.reads_per_s,
    )


def price(vcpu_hours: float, memory_gb_hours: float, disk_gb_hours: float, reads: int, prices: Prices) -> float:
    """USD of hours of vCPU, GB of memory and GB of disk, and of reads."""
    rented = vcpu_hours * prices.vcpu_usd + memory_gb_hours * prices.memory_gb_usd + disk_gb_hours * prices.disk_gb_usd
    return rented + reads / 1000 * prices.thousand_reads_usd


def terms_of(
    row: Mapping[str, Any],
    efficiency: float,
    launcher_s: float,
    slice_bytes: float,
    request_core_s: tuple[float, float],
) -> Terms:
    """Terms from a row of bench_processes.

    Its core-time a slice is what the system counted of launcher and workers; the index gets the share that the
    workers' own clocks give it.
    """
    clocks = row["worker_ms"]
    share = clocks["header"] / sum(clocks.values())
    core_s = row["core_ms_per_slice"] / 1000
    return Terms(core_s * share, core_s * (1 - share), efficiency, launcher_s, slice_bytes, request_core_s)


def launcher_seconds(seconds: Mapping[int, float], slices: int) -> tuple[float, int]:
    """Seconds of the launcher's stages at `slices`, and at how many they were measured.

    `seconds`: slices -> seconds. Where that number was not measured, those of the greatest are scaled in proportion.
    """
    measured = slices if slices in seconds else max(seconds)
    return seconds[measured] * slices / measured, measured
