"""The projection of docs/benchmarks.md as Markdown: places, what is assumed of them, and the arithmetic written out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from benchmarks import bench_scale, projection
from benchmarks.projection import DATAFLOW_BATCH, SLICES, Place, Projection, Terms
from benchmarks.runs import Result
from benchmarks.sections import picture, table

SOURCES = ("zip", "folder")
LAPTOP_MB_PER_S = 500.0  # assumed: an SSD behind SATA
DATAFLOW_START_S = 2 * 240.0  # assumed: a worker boots and installs for four minutes, in each of the two steps
WORKER_MB_PER_S = 300.0  # assumed: what a machine gets out of a bucket
BUCKET_READS_PER_S = 5000.0  # a bucket's initial capacity: https://cloud.google.com/storage/docs/request-rate


def places(start_s: float) -> tuple[Place, ...]:
    """Where a conversion is projected to; `start_s`: the measured start-up of local workers, both steps."""
    dataflow = Place(
        "Dataflow, 32 vCPU",
        machines=8,
        cores=4,
        start_s=DATAFLOW_START_S,
        read_mb_per_s=WORKER_MB_PER_S,
        reads_per_s=BUCKET_READS_PER_S,
        memory_gb=15,
        disk_gb=30,
        prices=DATAFLOW_BATCH,
    )
    return (
        Place("laptop, 2 cores", 1, 2, start_s, LAPTOP_MB_PER_S),
        Place("laptop, 8 cores", 1, 8, start_s, LAPTOP_MB_PER_S),
        dataflow,
        dataclasses.replace(dataflow, name="the same, vCPU half as fast", speed=0.5),
    )


def measured_terms(results: Mapping[str, Result]) -> tuple[dict[str, Terms], float, int]:
    """Terms of each source, the start-up of local workers, and at how many slices the launcher was measured."""
    figures, runs = results["processes"].figures, results["scale"].figures["runs"]
    seconds = {int(size): run[bench_scale.SUM]["seconds"] for size, run in runs.items()}
    launcher_s, at = projection.launcher_seconds(seconds, SLICES)
    one, two = (next(row for row in figures["rows"] if row["processes"] == count) for count in (1, 2))
    rows = {"zip": figures["zip"], "folder": one}
    sizes = {"zip": projection.ZIP_BYTES_PER_SLICE, "folder": projection.RAW_BYTES_PER_SLICE}
    efficiency = min(1.0, figures["efficiency_of_two"]["both"])
    asked = {name: _request_core_s(results["requests"].figures, sizes[name]) for name in SOURCES}
    found = {
        name: projection.terms_of(row, efficiency, launcher_s, sizes[name], asked[name]) for name, row in rows.items()
    }
    return found, two["both_start_s"], at


def _request_core_s(figures: Mapping[str, Any], slice_bytes: float) -> tuple[float, float]:
    """Core-seconds of a read in each step: of a header's bytes, and of a slice's, on the line through the two."""
    (small, small_ms), (great, great_ms) = ((row["bytes"], row["core_ms"]) for row in figures["requests"])
    slice_ms = small_ms + (great_ms - small_ms) * (slice_bytes - small) / (great - small)
    return small_ms / 1000, slice_ms / 1000


def projected(results: Mapping[str, Result]) -> dict[tuple[Place, str], Projection]:
    """A projection for each place and source."""
    terms, start_s, _ = measured_terms(results)
    return {(place, name): projection.project(terms[name], place, SLICES)
            for place in places(start_s) for name in SOURCES}  # fmt: skip


def bars(results: Mapping[str, Result]) -> dict[str, dict[str, float]]:
    """Seconds of each part of each projection, for the picture."""
    return {
        f"{place.name}, {source}": {
            "start-up": found.start_s,
            "launcher": found.launcher_s,
            "index": found.index.seconds,
            "convert": found.convert.seconds,
        }
        for (place, source), found in projected(results).items()
    }


def whole(results: Mapping[str, Result]) -> str:
    """The projection for all slices, and how it comes about."""
    terms, _, at = measured_terms(results)
    rows = [_projection_row(place, source, found) for (place, source), found in projected(results).items()]
    head = ["where", "from", "start-up", "launcher", "index", "convert", "in all, minutes", "vCPU-hours", "USD"]
    scaled = "" if at == SLICES else f" (scaled from {at:,} slices)"
    measured = [
        ["index, core-ms a slice", *(f"{terms[name].index_core_s * 1000:.3f}" for name in SOURCES)],
        ["convert, core-ms a slice", *(f"{terms[name].convert_core_s * 1000:.3f}" for name in SOURCES)],
        *(
            [f"a read from a bucket in the {step} step, core-ms", *_each_ms(terms, number)]
            for number, step in enumerate(("index", "convert"))
        ),
        ["two processes against twice one", *(f"{terms[name].efficiency:.2f}" for name in SOURCES)],
        [f"launcher at {SLICES:,} slices, s{scaled}", *(f"{terms[name].launcher_s:.1f}" for name in SOURCES)],
    ]
    return f"""## Projection: {SLICES:,} slices

No such job was run. These terms were measured, see the tables below:

{table(["term", "deflated zip", "plain files"], measured)}

A step lasts as long as the slowest of what it needs: cores, bytes or (in a bucket) requests. That one is named.

{table(head, rows)}

{picture("Minutes of each part of a whole conversion at each place", "projection")}

{_arithmetic(results)}

{_ASSUMED}
"""


def _each_ms(terms: Mapping[str, Terms], step: int) -> list[str]:
    return [f"{terms[name].request_core_s[step] * 1000:.2f}" for name in SOURCES]


def _projection_row(place: Place, source: str, found: Projection) -> list[str]:
    waits = [f"{part:,.0f} s" for part in (found.start_s, found.launcher_s)]
    steps = [f"{step.seconds:,.0f} s, {step.slowest}" for step in (found.index, found.convert)]
    paid = ["", ""] if found.usd is None else [f"{found.vcpu_hours:.1f}", f"{found.usd:.2f}"]
    return [place.name, source, *waits, *steps, f"{found.total_s / 60:.1f}", *paid]


def _arithmetic(results: Mapping[str, Result]) -> str:
    """The sums behind the row of Dataflow from the zip, written out."""
    terms, prices = measured_terms(results)[0]["zip"], DATAFLOW_BATCH
    paid = [pair for pair in projected(results).items() if pair[0][0].prices and pair[0][1] == "zip"]
    (place, _), found = paid[0]
    machine = f"n1-standard-4 ({place.cores} vCPU, {place.memory_gb:g} GB, {place.disk_gb:g} GB disk)"
    power = f"({place.machines * place.cores} vCPU x {place.speed:g} x {terms.efficiency:.2f})"
    alive_s = place.start_s + found.index.seconds + found.convert.seconds
    return f"""The row *{place.name}, zip*, written out:

- index, cores: {SLICES:,} x ({terms.index_core_s:.6f} + {terms.request_core_s[0]:.6f} s of the bucket's client) /
  {power} = {found.index.cores_s:,.1f} s
- convert, cores: {SLICES:,} x ({terms.convert_core_s:.6f} + {terms.request_core_s[1]:.6f} s) / {power} =
  {found.convert.cores_s:,.1f} s
- convert, bytes: {SLICES:,} x {terms.slice_bytes:,.0f} bytes / ({place.machines} machines x
  {place.read_mb_per_s:g} MB/s) = {found.convert.bytes_s:,.1f} s
- each step, requests: {SLICES:,} / {place.reads_per_s:,.0f} a second = {found.index.requests_s:,.1f} s
- workers live {place.start_s:,.0f} + {found.index.seconds:,.1f} + {found.convert.seconds:,.1f} = {alive_s:,.1f} s
- {place.machines} {machine} for that long: {found.vcpu_hours:.2f} vCPU-hours
  x {prices.vcpu_usd} USD + {found.memory_gb_hours:.2f} GB-hours of memory x {prices.memory_gb_usd} USD +
  {found.disk_gb_hours:.2f} GB-hours of disk x {prices.disk_gb_usd:.6f} USD
- reads: {found.reads:,} / 1,000 x {prices.thousand_reads_usd} USD; together {found.usd:.2f} USD"""


_ASSUMED = f"""**Measured**: core-seconds a slice of header and pixels with all that goes with them (Beam, and the
launcher, which is thus counted twice), inflating the zip, what the client of a bucket
computes for a read (on loopback, without TLS), start-up of local workers, the launcher's stages, and two
processes against twice one.

**Scaled, not measured**: more than two cores. They are taken to be as efficient as two; workers share nothing but
what they read from and write to.

**Assumed**: a laptop's disk gives {LAPTOP_MB_PER_S:g} MB/s and its cores do not throttle. On Dataflow, workers boot and
install for {DATAFLOW_START_S / 2:g} s in each of the two steps, a machine gets {WORKER_MB_PER_S:g} MB/s, the bucket's
latency is hidden by reading ahead, and the bucket gives {BUCKET_READS_PER_S:,.0f} reads a second, which Google names as
the capacity that a bucket begins with; a vCPU is as fast as a core here (the last rows: half as fast). RSNA's slices
inflate as fast as the synthetic ones, and weigh {projection.ZIP_BYTES_PER_SLICE:,.0f} bytes in the zip and
{projection.RAW_BYTES_PER_SLICE:,} unpacked. Listing a bucket of plain files is not in the launcher's seconds.

**Not in the price**: keeping zip and data set in the bucket, writes (some hundred shards), and the Dataflow shuffle of
as many names. Prices: {DATAFLOW_BATCH.source}. List prices change: <https://cloud.google.com/dataflow/pricing>."""
