"""Do learned windows help where the data set's windows show nothing: one cnn with fixed windows, one that learns them.

    python benchmarks/bench_windows.py [--folder DIR] [--patients 400] [--size_px 48] [--seeds 3] [--output FILE.json]

Synthetic studies, in which HU are made 0.4 * HU + 250: brain at 262, bleeds 8 to 20 HU above it, so that all of it lies
above the three windows, which end at 80, 180 and 230 HU. Converted once with `image.kind: hu`; for each seed a `cnn`
with the windows of the data set, fixed, and one with `windows: learned`, both evaluated on the test split by the
commands that a user would type. A line a seed: log loss of both, the paired 95% interval of the difference over
patients, and where the windows went. `--form`: sigmoid, which shows a little of what lies beyond its ends, or clipped.
With `--as_they_are` HU stay as they were drawn: what learning brings, or costs, where the windows are right.
`--folder` keeps everything and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pydicom

from benchmarks.bench_odds_runs import interval
from benchmarks.bench_series import SLICES, losses, run, told
from trainer.models import model_file, windows
from trainer.results import evaluated, predictions

SLOPE, ABOVE_HU = 0.4, 250
KINDS = {"fixed": "", "learned": windows.LEARNED}


def make(folder: Path, patients: int, size_px: int, as_they_are: bool) -> None:
    """The data set, where it is not there yet."""
    raw, spec = folder / "ct", folder / "hu.yaml"
    if not (folder / "drawn").exists():
        drawn = f"--patients {patients} --slices_per_study 16 --positive_fraction 0.7 --every_label --seed 6"
        run(f"ich_tfrecords.synthetic --output {raw} {drawn}")
        for path in [] if as_they_are else sorted((raw / "stage_2_train").glob("*.dcm")):
            _move(path)
        (folder / "drawn").touch()
    spec.write_text(f"extends: rsna_hu\nname: moved_hu\nimage: {{size_px: {size_px}}}\n")
    if not (folder / "hu" / "manifest.json").exists():
        where = f"--input {raw}/stage_2_train --labels {raw}/stage_2_train.csv --output {folder}/hu"
        run(f"beam_pipelines.convert --spec {spec} {where}")


def _move(path: Path) -> None:
    """Less contrast, and all of it higher up."""
    file = pydicom.dcmread(path)
    intercept = SLOPE * float(file.RescaleIntercept) + ABOVE_HU
    file.RescaleSlope, file.RescaleIntercept = f"{SLOPE * float(file.RescaleSlope):g}", f"{intercept:g}"
    file.save_as(path)


def main() -> int:
    """Print the figures; returns 1 where learning does not help in every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, metavar="DIR")
    parser.add_argument("--patients", type=int, default=400)
    parser.add_argument("--size_px", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--form", default=windows.SIGMOID, choices=windows.FORMS)
    parser.add_argument("--as_they_are", action="store_true")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    found = {}
    with contextlib.ExitStack() as stack:
        folder = (args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, args.patients, args.size_px, args.as_they_are)
        for seed in range(args.seeds):
            said = []
            for kind, word in KINDS.items():
                form = args.form if word else windows.CLIPPED
                job_dir = folder / f"{kind}-{form}{seed}"
                more = f"--set windows={word} --set window_form={form}" if word else ""
                where = f"--job_dir {job_dir} --data_dir {folder}/hu --seed {seed}"
                run(f"trainer.task --model cnn {where} {SLICES} {more}")
                if not (job_dir / "evaluation" / "test" / "report.html").exists():
                    run(f"trainer.evaluate --job_dir {job_dir}")
                said.append(predictions.read(evaluated.folder(job_dir, "test") / evaluated.PREDICTIONS))
            fixed, learned = (losses(one).sum(1)[np.argsort(one.ids["sop_uid"].to_pylist())] for one in said)
            patients = said[0].patients[np.argsort(said[0].ids["sop_uid"].to_pylist())]
            difference = learned - fixed
            found[seed] = [difference.mean(), *interval(difference, patients)]
            print(
                f"seed {seed}: fixed {fixed.mean():.4f}, learned {learned.mean():.4f}, {told(found[seed])}", flush=True
            )
            print(f"  {windows.told(model_file.read_about(job_dir / 'export').facts['windows'])}", flush=True)
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(high >= 0 for _, _, high in found.values()))


if __name__ == "__main__":
    sys.exit(main())
