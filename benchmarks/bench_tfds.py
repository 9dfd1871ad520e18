"""The same slices to TFRecords by a Beam builder of TensorFlow Datasets and by `beam_pipelines.convert`.

    python benchmarks/bench_tfds.py [--output FILE.json] [--sizes 1000,4000] [--rounds 3] [--quick]

Only the engine that writes differs: the TFDS builder reads, decodes and windows each slice with this project's own
functions, keeps the same features and encodes images as raw bytes. It does less: it reads no headers first, knows
no patients, splits, strata or slice order. Both run on Beam's FnApiRunner inside one process, each in a child
process of its own, in turns. Slices/s and bytes a slice are slopes between the sizes, so that imports and start-up
count for neither.

Exit code 1 when the peak memory of `convert` grows by more than a tenth of what that of TFDS grows a slice.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks import timed_job
from benchmarks.bench_convert import many_names
from benchmarks.timed_job import Job
from ich_tfrecords.synthetic import rsna_layout

SIZES, QUICK_SIZES = (1000, 4000), (100, 300)
MOST_OF_TFDS = 0.1


def build_with_tfds(folder: str, output: str) -> None:
    """Make the data set of every slice in a folder with a Beam builder of TFDS, in this process."""
    import apache_beam as beam
    import tensorflow_datasets as tfds  # type: ignore[import-untyped]
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    from ich_tfrecords import pixels, spec
    from ich_tfrecords.dataset import records
    from ich_tfrecords.dicom import ct_slice
    from ich_tfrecords.storage import sources

    data_spec = spec.load("rsna_ich")

    def example(ref: sources.SliceRef) -> tuple[str, dict[str, Any]]:
        with contextlib.closing(sources.SliceReader()) as reader:
            ct = ct_slice.read_slice(reader.read(ref))
        image = pixels.image_of(ct.hu, data_spec.image)
        header = ct.header
        labels = np.full(len(data_spec.labels.names), -1)
        values = {"image": image, "labels": labels, "patient_key": header.patient_id}
        values |= {name: getattr(header, name) for name in ("sop_uid", "study_uid", "series_uid")}
        values |= {"position_mm": header.position_mm, "slice_index": 0, "slice_count": 0}
        return header.sop_uid, values | {"pixel_digest": records.pixel_digest(image)}

    class RsnaIch(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {feature.name: _tfds_feature(tfds, feature) for feature in records.features(data_spec)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            refs = list(sources.refs(sources.list_inputs([folder]).table))
            return beam.Create(refs) | beam.Reshuffle() | beam.Map(example)

    config = tfds.download.DownloadConfig(
        beam_runner=FnApiRunner(), beam_options=PipelineOptions([]), try_download_gcs=False
    )
    RsnaIch(data_dir=output).download_and_prepare(download_config=config)


def _tfds_feature(tfds: Any, feature: Any) -> Any:
    """The TFDS feature that stores what a feature of the record table stores."""
    if feature.dtype == "string":
        return tfds.features.Text()
    encoding = tfds.features.Encoding.BYTES if feature.dtype == "uint8" else tfds.features.Encoding.NONE
    return tfds.features.Tensor(shape=feature.shape, dtype=np.dtype(feature.dtype).type, encoding=encoding)


def with_tfds(folder: Path, output: Path) -> Job:
    """The TFDS builder in a fresh process."""
    return timed_job.run([sys.executable, __file__, "--build", str(folder), str(output)])


def with_convert(folder: Path, output: Path) -> Job:
    """The conversion of this project in a fresh process."""
    return timed_job.convert(folder, output, "--runner", "DirectRunner", "--direct_num_workers", "1")


WAYS: dict[str, Callable[[Path, Path], Job]] = {"tfds": with_tfds, "convert": with_convert}


def bench(work: Path, sizes: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """Seconds, core-seconds, peak and output bytes of each way at each size."""
    rsna_layout.generate(work / "ct", patients=3, test_patients=0, slices_per_study=24)
    timed_job.run([sys.executable, "-c", "import apache_beam, tensorflow, tensorflow_datasets"])  # from disk once
    rows = []
    for size in sizes:
        place = work / str(size)
        place.mkdir()
        folder = many_names(work / "ct" / "stage_2_train", place, size)
        jobs: dict[str, list[Job]] = {way: [] for way in WAYS}
        for number in range(rounds):
            for way, run in WAYS.items():
                jobs[way].append(run(folder, place / f"{way}_{number}"))
        rows += [{"way": way, "slices": size, **figures_of(jobs[way], place / f"{way}_0")} for way in WAYS]
    return rows


def figures_of(jobs: list[Job], output: Path) -> dict[str, float]:
    """Figures of the rounds of one way at one size."""
    files = (path for path in output.rglob("*.tfrecord-*") if path.is_file())
    return {
        "seconds": min(job.wall_s for job in jobs),
        "core_s": min(job.cpu_s for job in jobs),
        "peak_bytes": statistics.median(job.peak_bytes for job in jobs),
        "output_bytes": sum(path.stat().st_size for path in files),
    }


def slopes(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Slices/s, core-milliseconds and bytes of memory a slice of each way, from its smallest to its largest size."""
    found = {}
    for way in WAYS:
        first, *_, last = [row for row in rows if row["way"] == way]
        more = last["slices"] - first["slices"]
        found[way] = {
            "slices_per_s": more / (last["seconds"] - first["seconds"]),
            "core_ms_per_slice": (last["core_s"] - first["core_s"]) / more * 1000,
            "memory_bytes_per_slice": (last["peak_bytes"] - first["peak_bytes"]) / more,
        }
    return found


def main() -> int:
    """Run, print, and say whether the promise holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--sizes", type=_sizes, default=SIZES, metavar="N,...", help="slices, at least two sizes")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the turns (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round of 100 and 300 slices, to see that it runs")
    parser.add_argument("--build", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="pydicom")
    if args.build:
        build_with_tfds(*args.build)
        return 0
    if not find_spec("tensorflow_datasets"):
        print("bench_tfds: tensorflow-datasets is not installed; it is in the extra test, for Python 3.11 or newer")
        return 2
    with tempfile.TemporaryDirectory() as name:
        sizes, rounds = (QUICK_SIZES, 1) if args.quick else (args.sizes, args.rounds)
        rows = bench(Path(name), sizes, rounds)
    found = slopes(rows)
    share = found["convert"]["memory_bytes_per_slice"] / found["tfds"]["memory_bytes_per_slice"]
    show(rows, found, share)
    if args.output:
        args.output.write_text(json.dumps({"rows": rows, "slopes": found, "memory_share": share}, indent=1) + "\n")
    return int(share > MOST_OF_TFDS)


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(sorted({int(part) for part in text.split(",")}))
    if len(sizes) < 2:
        raise argparse.ArgumentTypeError(f"{text} is one size; slopes need two")
    return sizes


def show(rows: list[dict[str, Any]], found: dict[str, dict[str, float]], share: float) -> None:
    """Print the tables."""
    print(f"{'way':<10}{'slices':>8}{'seconds':>9}{'core-s':>9}{'peak MB':>9}{'output MB':>11}")
    for row in rows:
        print(f"{row['way']:<10}{row['slices']:>8,}{row['seconds']:>9.1f}{row['core_s']:>9.1f}", end="")
        print(f"{row['peak_bytes'] / 1e6:>9,.0f}{row['output_bytes'] / 1e6:>11,.1f}")
    for way, slope in found.items():
        print(
            f"{way}: {slope['slices_per_s']:,.0f} slices/s, {slope['core_ms_per_slice']:.2f} core-ms a slice, ", end=""
        )
        print(f"{slope['memory_bytes_per_slice'] / 1e3:,.1f} kB of memory a slice")
    print(f"convert keeps {share:.1%} of what TFDS keeps (promised: at most {MOST_OF_TFDS:.0%})")


if __name__ == "__main__":
    sys.exit(main())
