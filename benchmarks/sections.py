"""The sections of docs/benchmarks.md as Markdown, one a benchmark: what was done, the table, the picture, the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks import bench_scale, bench_tfds, bench_zip, projection
from benchmarks.bench_convert import PROMISES
from benchmarks.projection import SLICES
from benchmarks.runs import Result

PICTURES = "benchmarks"  # folder of the pictures, beside the page


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and whose others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def picture(words: str, name: str) -> str:
    """A picture of the page, with words in its place."""
    return f"![{words}]({PICTURES}/{name}.png)"


def scale(result: Result) -> str:
    """The launcher's stages against the number of slices."""
    runs, growth = result.figures["runs"], result.figures["exponents"]["seconds"]
    rows = []
    for stage in (stage for stage in next(iter(runs.values())) if stage != "start"):
        cells = [f"{run[stage]['seconds']:.1f} s, {run[stage]['peak_mb']:,.0f} MB" for run in runs.values()]
        rows.append([stage, *cells, f"{growth[stage]:.2f}" if stage in growth else ""])
    head = ["stage", *(f"{int(size):,}" for size in runs), "exponent"]
    return f"""## The launcher at scale

Everything the launcher of `beam_pipelines.convert` does around the slices, on made-up inventories in RSNA's layout and
two cores. Peaks are of the process so far. The exponent is the slope of log seconds over log slices from
{bench_scale.GROWTH_FROM:,} slices on. Promised at {bench_scale.PROMISED_SIZE:,} slices:
{bench_scale.MAX_SECONDS:g} s and {bench_scale.MAX_PEAK_MB:,.0f} MB; exponent of the sum at most
{bench_scale.MAX_EXPONENT:g}.

{table(head, rows)}

{picture("Seconds of each stage and peak memory of the launcher against the number of slices", "scale")}

{result.words}
"""


def directory(result: Result) -> str:
    """The directory of a zip of the size of Kaggle's."""
    figures = result.figures
    names = {"zipfile": "`zipfile.ZipFile`", "sources": "`sources.list_inputs`"}
    rows = [[names[reader], f"{row['seconds']:.2f}", f"{row['peak_rss_mb']:,.0f}"]
            for reader, row in figures["summary"].items()]  # fmt: skip
    return f"""## The directory of the zip

{figures["entries"]:,} entries, of which the disk holds the central directory alone. Promised: {bench_zip.MIN_RATIO:g}
times as fast as `zipfile` (measured: {figures["ratio"]:.1f}) in at most {bench_zip.MAX_RSS_MB:g} MB.

{table(["reader", "seconds", "peak MB"], rows)}

{result.words}
"""


def requests(result: Result) -> str:
    """What a read from a bucket costs the client."""
    rows = [[f"{row['bytes']:,}", f"{row['core_ms']:.2f}"] for row in result.figures["requests"]]
    return f"""## A read from a bucket

What the client computes for a read of the bytes of a header, and of a slice: the processor time of its process, with
a server on loopback in another one, without TLS.

{table(["bytes", "core-ms"], rows)}

{result.words}
"""


def processes(result: Result) -> str:
    """The Beam job against the number of processes, and bytes a slice."""
    figures, found = result.figures, result.figures["efficiency_of_two"]
    rows = [_process_row("plain files", row) for row in figures["rows"]]
    rows.append(_process_row("deflated zip", figures["zip"]))
    head = [
        "source",
        "processes",
        "slices",
        "convert, slices/s",
        "both steps, slices/s",
        "start-up, s",
        "core-ms a slice",
    ]
    sizes = [[f"{row['size_px']} px", f"{row['shards']:,.0f}", f"{row['shards'] * SLICES / 1e9:.1f}"]
             for row in figures["sizes"]]  # fmt: skip
    table_bytes = figures["sizes"][0]["table"]
    return f"""## Slices a second by number of processes

512 x 512 slices, uncompressed, in the page cache. Start-up is what both steps take for four slices and is in no other
column. Core-milliseconds a slice are what the system counted for launcher and workers together, all stages. Two
processes do {found["convert"]:.0%} of twice one in the convert step (promised: {PROMISES["beam"]:.0%}) and
{found["both"]:.0%} in both steps. More processes than this machine has cores were not measured.

{table(head, rows)}

{picture("Slices a second by number of processes; parts of the work of one slice", "processes")}

What a slice weighs in the shards (three windows; nothing is compressed), from {figures["sizes"][0]["slices"]:,} slices:

{table(["size", "bytes a slice", f"GB at {SLICES:,} slices"], sizes)}

`slices.parquet` adds {table_bytes:.0f} bytes a slice; the zipped slices of this run hold
{figures["zip_bytes_per_slice"]:,.0f} bytes each, Kaggle's {projection.ZIP_BYTES_PER_SLICE:,.0f}.

{result.words}
"""


def _process_row(source: str, row: Mapping[str, Any]) -> list[str]:
    rates = [f"{row[f'{name}_slices_per_s']:,.0f}" for name in ("convert", "both")]
    count = [str(row["processes"]), f"{row['slices']:,}"]
    return [source, *count, *rates, f"{row['both_start_s']:.1f}", f"{row['core_ms_per_slice']:.2f}"]


def tfds(result: Result) -> str:
    """The same slices through a Beam builder of TFDS."""
    names = {"tfds": "TFDS Beam builder", "convert": "`beam_pipelines.convert`"}
    slopes = result.figures["slopes"]
    rows = [[names[row["way"]], f"{row['slices']:,}", f"{row['seconds']:.1f}", f"{row['peak_bytes'] / 1e6:,.0f}",
             f"{row['output_bytes'] / 1e6:,.1f}"] for row in result.figures["rows"]]  # fmt: skip
    more = [[names[way], f"{slope['slices_per_s']:,.0f}", f"{slope['core_ms_per_slice']:.2f}",
             f"{slope['memory_bytes_per_slice'] / 1e3:,.1f}",
             f"{slope['memory_bytes_per_slice'] * SLICES / 1e9:,.1f}"] for way, slope in slopes.items()]  # fmt: skip
    return f"""## Beside a Beam builder of TensorFlow Datasets

A `tfds.core.GeneratorBasedBuilder` with a Beam pipeline, fed by this project's own reading, decoding and windowing, so
that only the engine that writes differs; images as raw bytes on both sides. The builder does less: no headers read
first, no patients, splits, strata or slice order. Each runs alone in a process, on Beam's FnApiRunner inside it.

{table(["engine", "slices", "seconds", "peak MB", "output MB"], rows)}

Between the two sizes, so that imports and start-up count for neither; the last column is the slope, carried on in a
straight line. `convert` may keep at most {bench_tfds.MOST_OF_TFDS:.0%} of what TFDS keeps a slice (measured:
{result.figures["memory_share"]:.1%}).

{
        table(
            ["engine", "slices/s", "core-ms a slice", "kB of memory a slice", f"GB of memory at {SLICES:,} slices"],
            more,
        )
    }

{picture("Peak memory and core-seconds of both engines against the number of slices", "tfds")}

{result.words}
"""


def streams(result: Result) -> str:
    """Reading against shards, strata and cores."""
    points: dict[tuple[int, int, int], dict[str, float]] = {}
    for row in result.figures["rows"]:
        points.setdefault((row["cores"], row["shards"], row["strata"]), {})[row["reader"]] = row["images_per_s"]
    rows = [[str(cores), f"{shards:,}", str(strata), f"{rates['number']:,.0f}", f"{rates['stream']:,.0f}"]
            for (cores, shards, strata), rates in sorted(points.items())]  # fmt: skip
    return f"""## Reading

Batches of 32 as the trainer gets them, 128 px, no augmentation, files in the page cache. *By number* is how local
shards are read, *by stream* how those of a bucket are. The strata are drawn alike. Training of these models is slower
than either, see [train](train.md#measured).

{table(["cores", "shards", "strata", "by number, images/s", "by stream, images/s"], rows)}

{picture("Images a second against shards, strata and cores, with either reader", "streams")}

{result.words}
"""
