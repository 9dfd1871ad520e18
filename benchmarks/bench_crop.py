"""Does a crop to the head help: one cnn on whole slices, one on the square around the head, of small heads off centre.

    python benchmarks/bench_crop.py [--folder DIR] [--patients 160] [--size_px 64] [--seeds 3] [--output FILE.json]

Synthetic studies, in the slices of which the head is made smaller and moved: each patient has a scale of 0.5 to 0.8 and
a place of his own, as where the field of view was not set to the head. Converted twice, with `image.crop: none` and
`head`; for each seed a `cnn` on both, evaluated on the test split by the commands that a user would type. A line a
seed: log loss of both, and the paired 95% interval of the difference over patients. With `--as_they_are` the heads stay
as they were drawn, which fill most of the slice. `--folder` keeps everything and goes on where it stopped.
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
from ich_tfrecords import pixels
from ich_tfrecords.dicom import ct_slice
from trainer.results import evaluated, predictions

CROPS = ("none", "head")
SCALE = (0.5, 0.8)


def make(folder: Path, patients: int, size_px: int, as_they_are: bool) -> None:
    """The two data sets, where they are not there yet."""
    raw = folder / "ct"
    if not (folder / "moved").exists():
        drawn = f"--patients {patients} --slices_per_study 16 --positive_fraction 0.7 --every_label --seed 6"
        if not raw.exists():
            run(f"ich_tfrecords.synthetic --output {raw} {drawn}")
        if not as_they_are:
            for path in sorted((raw / "stage_2_train").glob("*.dcm")):
                _move(path)
        (folder / "moved").touch()
    for crop in CROPS:
        spec = folder / f"{crop}.yaml"
        spec.write_text(f"extends: rsna_ich\nname: crop_{crop}\nimage: {{size_px: {size_px}, crop: {crop}}}\n")
        if not (folder / crop / "manifest.json").exists():
            where = f"--input {raw}/stage_2_train --labels {raw}/stage_2_train.csv --output {folder}/{crop}"
            run(f"beam_pipelines.convert --spec {spec} {where}")


def _move(path: Path) -> None:
    """Make the head of a slice smaller and put it elsewhere, the same way for all slices of a patient."""
    hu = ct_slice.read_slice(path.read_bytes()).hu
    file = pydicom.dcmread(path)
    rng = np.random.default_rng([int.from_bytes(file.PatientID.encode()[-6:], "big")])
    side = len(hu)
    small = int(side * rng.uniform(*SCALE))
    row, column = rng.integers(0, side - small + 1, 2)
    moved = np.full((side, side), pixels.AIR_HU, np.int16)
    sums = pixels.box_sums(hu.astype(np.int64), small)
    moved[row : row + small, column : column + small] = np.rint(sums / side**2).astype(np.int16)
    stored = (moved.astype(np.int64) - int(file.RescaleIntercept)).clip(-32768, 65535)
    file.PixelData = stored.astype(np.int16 if file.PixelRepresentation else np.uint16).tobytes()
    file.save_as(path)


def main() -> int:
    """Print the figures; returns 1 where cropping does not help in every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, metavar="DIR")
    parser.add_argument("--patients", type=int, default=160)
    parser.add_argument("--size_px", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
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
            for crop in CROPS:
                job_dir = folder / f"{crop}{seed}"
                run(f"trainer.task --model cnn --job_dir {job_dir} --data_dir {folder / crop} --seed {seed} {SLICES}")
                if not (job_dir / "evaluation" / "test" / "report.html").exists():
                    run(f"trainer.evaluate --job_dir {job_dir}")
                said.append(predictions.read(evaluated.folder(job_dir, "test") / evaluated.PREDICTIONS))
            plain, cropped = (losses(one).sum(1)[np.argsort(one.ids["sop_uid"].to_pylist())] for one in said)
            patients = said[0].patients[np.argsort(said[0].ids["sop_uid"].to_pylist())]
            difference = cropped - plain
            found[seed] = [difference.mean(), *interval(difference, patients)]
            print(f"seed {seed}: whole {plain.mean():.4f}, head {cropped.mean():.4f}, {told(found[seed])}", flush=True)
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(high >= 0 for _, _, high in found.values()))


if __name__ == "__main__":
    sys.exit(main())
