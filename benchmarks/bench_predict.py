"""How long a prediction takes, what streaming and series cost, and whether memory grows with slices.

    python benchmarks/bench_predict.py [--output FILE.json] [--rounds 5] [--slices 1000] [--skip_memory]
    python benchmarks/bench_predict.py --jpeg_lossless [--output FILE.json] [--rounds 5] [--slices 200]

The cnn of configs/cnn.yaml with untrained weights, and synthetic slices of 512x512, each file with ids of its own, 32
a series. One slice: from the bytes of a DICOM file in memory to calibrated probabilities, warm. Stream: the command
itself over a folder, from the first file to the last row (`seconds` of run.json), beside reading, decoding and
windowing the same files alone in one thread, and beside the model alone on their images in batches of 32. Series: the
command with a series model of that cnn and the context of configs/series.yaml, which looks at every head first. These
take turns; a figure is the least over the rounds, since other work can only add to it. Memory: the peak RSS of both
commands at 1,000 and at 8,000 slices (of 64x64, since memory per slice is the question).

With --jpeg_lossless nothing but this: the stream over the same slices packed as JPEG Lossless, with numba and without.

Exit code 1 when one slice takes over 50 ms (median), when the stream falls below 70% of the slower of decoding and
model, when the series model falls below 85% of the slice model's stream, or when a peak grows by over 5%; with
--jpeg_lossless when the stream is less than 5 times as fast with numba, or a probability differs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import keras
import numpy as np

from benchmarks.made_jpeg import pack
from benchmarks.peak import peak_bytes
from ich_tfrecords import pixels, spec
from ich_tfrecords.dicom import ct_slice, jpeg_compiled
from ich_tfrecords.dicom.writer import SliceFields, dicom_bytes
from ich_tfrecords.storage import sources
from ich_tfrecords.synthetic.rsna_layout import generate
from ich_tfrecords.volumes.reader import FrameReader
from trainer import predict
from trainer.models import context, model_file, networks
from trainer.models.model_file import About
from trainer.prediction import slice_stream
from trainer.results import calibration, joint
from trainer.results.blend import Blend, Mix
from trainer.training import hparams

MOST_MS, LEAST_STREAM, LEAST_SERIES, MOST_GROWTH, LEAST_NUMBA = 50.0, 0.70, 0.85, 1.05, 5.0
BATCH = 32
A_STUDY = 32  # slices
SLICE, SERIES = "slice", "series"  # folders of the models
ROOT = Path(__file__).resolve().parent.parent


def make_export(folder: Path) -> About:
    """An export of the cnn as configs/cnn.yaml has it."""
    data_spec, settings = spec.load("rsna_ich"), hparams.resolve("cnn", None, {})
    names = data_spec.labels.names
    keras.utils.set_random_seed(0)
    model = networks.build("cnn", data_spec.image.shape, len(names), "none", settings.architecture)
    fitted = calibration.unfitted(names, np.zeros(len(names)), "made for a benchmark")
    even, facts = {name: {"even": 0.5} for name in names}, {"parameters": model.count_params(), "epoch": 0, "step": 0}
    about = About(data_spec, "0" * 64, {"model": "cnn"}, fitted, even, even, facts)
    model_file.write(folder, model, about)
    return about


def make_series_export(folder: Path, of_slices: About) -> None:
    """A series model of the cnn in `SLICE` beside it, and the context as configs/series.yaml has it, half of each."""
    names, any_name = of_slices.spec.labels.names, of_slices.spec.labels.any
    slice_model = model_file.load_model(folder.parent / SLICE, of_slices)
    dim = model_file.vector_dim(slice_model)
    model = context.build(dim, len(names), hparams.resolve("series", None, {}).architecture)
    fitted, odds = of_slices.calibration, joint.unchanged(names, any_name)
    half = Mix(fitted, fitted, np.full(len(names), 0.5))
    mix = Blend(odds, odds, half, half, fitted, of_slices.study_thresholds)
    facts = {**of_slices.facts, "slice_model": "cnn", "vector_dim": dim}
    about = dataclasses.replace(of_slices, settings={"model": "series"}, facts=facts, odds=odds, blend=mix)
    model_file.write(folder, model, about, folder.parent / SLICE)


def make_slices(folder: Path, count: int) -> None:
    """`count` files of 512x512 from a few dozen synthetic slices, with ids of their own, `A_STUDY` a series."""
    drawn = generate(folder / "drawn", patients=2, test_patients=1, slices_per_study=A_STUDY, seed=0)
    paths = {one.sop_uid: drawn.output / "stage_2_train" / f"{one.sop_uid}.dcm" for one in drawn.slices}
    files = [path.read_bytes() for path in paths.values() if path.is_file()]
    headers = [ct_slice.read_header(data) for data in files]
    order = sorted(range(len(files)), key=lambda at: (headers[at].series_uid, headers[at].position_mm))
    (folder / "ct").mkdir()
    for number in range(count):
        at = order[number % len(order)]
        data, (sop_uid, _, *series) = files[at], headers[at][:4]
        for old, new in ((sop_uid, number), *((uid, number // A_STUDY) for uid in series)):
            data = data.replace(old.encode(), f"ID_{new:0{len(old) - 3}x}".encode())
        (folder / "ct" / f"ID_{number:09x}.dcm").write_bytes(data)


def make_small_slices(folder: Path, count: int) -> None:
    """`count` files of 64x64, `A_STUDY` a study."""
    folder.mkdir()
    stored = np.random.default_rng(0).integers(0, 2000, (64, 64)).astype(np.int16)
    for number in range(count):
        study = f"ID_{number // A_STUDY:010x}"
        ids: dict[str, Any] = {
            "sop_uid": f"ID_{number:09x}",
            "patient_id": study,
            "study_uid": study,
            "series_uid": study,
        }
        fields = SliceFields(**ids, position_mm=(0.0, 0.0, float(number % A_STUDY)))
        (folder / f"ID_{number:09x}.dcm").write_bytes(dicom_bytes(stored, fields))


def one_slice_ms(export: Path, about: About, data: bytes, rounds: int) -> float:
    """Median milliseconds from the bytes of a file to probabilities."""
    score = model_file.scorer(model_file.load_model(export, about))
    took = []
    for _ in range(rounds):
        begin = time.perf_counter()
        image = pixels.image_of(ct_slice.read_slice(data).hu, about.spec.image)
        about.probabilities(score(image[None]))
        took.append(time.perf_counter() - begin)
    return 1000 * float(np.median(took[rounds // 10 :]))


def ways(work: Path, about: About) -> dict[str, Callable[[], float]]:
    """Name -> a function that gives the seconds of one turn over every slice of the folder."""
    table = sources.list_inputs([str(work / "ct")]).table
    score = model_file.scorer(model_file.load_model(work / SLICE, about))
    images = np.concatenate([batch.images for batch in slice_stream.batches(table, about.spec, BATCH)])

    def decode() -> None:
        with sources.SliceReader() as reader, FrameReader(reader) as frames:
            for ref in sources.refs(table):
                slice_stream.read_image(ref, frames, about.spec.image)

    def model() -> None:
        for begin in range(0, len(images), BATCH):
            score(images[begin : begin + BATCH])

    streams = {"stream": lambda: stream(work, SLICE), "series": lambda: stream(work, SERIES)}
    return {"decode alone": timed(decode), "model alone": timed(model), **streams}


def stream(work: Path, export: str, name: str = "out") -> float:
    """Seconds of the command over the folder of slices."""
    output = work / name
    places = ["--model", str(work / export), "--input", str(work / "ct"), "--output", str(output)]
    with contextlib.redirect_stdout(io.StringIO()):
        code = predict.main([*places, "--pictures", "0", "--batch_size", str(BATCH)])
    if code:
        raise RuntimeError(f"predict ended with {code}")
    return float(json.loads((output / "run.json").read_text())["seconds"])


def timed(work: Callable[[], None]) -> Callable[[], float]:
    """`work` as a function that gives its seconds."""

    def run() -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    return run


def peak_mb(export: Path, folder: Path, output: Path) -> float:
    """Peak RSS in MB of a process that runs the command."""
    code = f"from benchmarks.bench_predict import run_here; run_here({str(export)!r}, {str(folder)!r}, {str(output)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def run_here(export: str, folder: str, output: str) -> None:
    """Run the command and print the peak RSS in MB."""
    code = predict.main(["--model", export, "--input", folder, "--output", output, "--pictures", "0"])
    if code:
        raise RuntimeError(f"predict ended with {code}")
    print(peak_bytes() / 2**20)


def measure(work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Every figure, by name."""
    about = make_export(work / SLICE)
    make_series_export(work / SERIES, about)
    make_slices(work, args.slices)
    data = next((work / "ct").glob("*.dcm")).read_bytes()
    figures: dict[str, Any] = {"one_slice_ms": one_slice_ms(work / SLICE, about, data, 200)}
    turns = ways(work, about)
    seconds = {name: [turn()] for name, turn in turns.items()}
    for _ in range(args.rounds - 1):
        for name, turn in turns.items():
            seconds[name].append(turn())
    figures["slices_per_s"] = {name: args.slices / min(took) for name, took in seconds.items()}
    rates = figures["slices_per_s"]
    figures["stream_share"] = rates["stream"] / min(rates["decode alone"], rates["model alone"])
    figures["series_share"] = rates["series"] / rates["stream"]
    if not args.skip_memory:
        figures["peak_mb"] = {}
        for count in (1000, 8000):
            make_small_slices(work / f"small_{count}", count)
            for export in (SLICE, SERIES):
                peak = peak_mb(work / export, work / f"small_{count}", work / f"small_{export}_{count}")
                figures["peak_mb"][f"{count} slices, {export} model"] = peak
        small, small_series, large, large_series = figures["peak_mb"].values()
        figures["growth"] = max(large / small, large_series / small_series)
    return figures


def measure_jpeg_lossless(work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Slices a second with numba and without, and how many times as fast that is."""
    make_export(work / SLICE)
    make_slices(work, args.slices)
    for path in (work / "ct").iterdir():
        pack(path, path)

    def plainly() -> float:
        with mock.patch.object(jpeg_compiled, "forms", return_value=jpeg_compiled.ABSENT):
            return stream(work, SLICE, "plain")

    turns = {"numba": lambda: stream(work, SLICE, "numba"), "numpy alone": plainly}
    turns["numba"]()  # loads what is compiled
    seconds = [{name: turn() for name, turn in turns.items()} for _ in range(args.rounds)]
    rates = {name: args.slices / min(took[name] for took in seconds) for name in turns}
    same = (work / "numba" / "predictions.csv").read_bytes() == (work / "plain" / "predictions.csv").read_bytes()
    return {"slices_per_s": rates, "ratio": rates["numba"] / rates["numpy alone"], "same": same}


def tell_jpeg_lossless(figures: dict[str, Any]) -> bool:
    """Print the figures; returns whether the promise is kept."""
    rates = figures["slices_per_s"]
    print("JPEG Lossless, stream: " + ", ".join(f"{name} {rate:,.0f} slices/s" for name, rate in rates.items()))
    print(f"x{figures['ratio']:.1f}   promised at least x{LEAST_NUMBA:g}")
    print("the same probabilities" if figures["same"] else "other probabilities")
    return figures["same"] and figures["ratio"] >= LEAST_NUMBA


def main() -> int:
    """Run, print, and say whether the promises hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slices", type=int, default=1000)
    parser.add_argument("--skip_memory", action="store_true")
    parser.add_argument("--jpeg_lossless", action="store_true", help="only the stream over packed slices")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures = (measure_jpeg_lossless if args.jpeg_lossless else measure)(Path(name), args)
    if args.output:
        args.output.write_text(json.dumps(figures, indent=1) + "\n")
    if args.jpeg_lossless:
        return int(not tell_jpeg_lossless(figures))
    print(f"one slice, DICOM bytes to probabilities: {figures['one_slice_ms']:.1f} ms   promised at most {MOST_MS:.0f}")
    print(", ".join(f"{name} {rate:,.0f} slices/s" for name, rate in figures["slices_per_s"].items()))
    share = figures["stream_share"]
    print(f"stream: {share:.0%} of the slower of decode and model   promised at least {LEAST_STREAM:.0%}")
    of_series = figures["series_share"]
    print(f"series: {of_series:.0%} of the slice model's stream   promised at least {LEAST_SERIES:.0%}")
    for title, peak in figures.get("peak_mb", {}).items():
        print(f"peak RSS, {title}: {peak:,.0f} MB")
    growth = figures.get("growth", 1.0)
    if not args.skip_memory:
        print(f"growth x{growth:.3f}   promised at most x{MOST_GROWTH}")
    slow = figures["one_slice_ms"] > MOST_MS or share < LEAST_STREAM or of_series < LEAST_SERIES
    return int(slow or growth > MOST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
