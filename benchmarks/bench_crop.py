"""Does a crop to the head help: one cnn on whole slices, one on the square around the head, of small heads off centre.

    python benchmarks/bench_crop.py [--folder DIR] [--patients 160] [--size_px 64] [--seeds 3] [--output FILE.json]

Synthetic studies, in the slices of which the head is made smaller and moved: each patient has a scale of 0.5 to 0.8 and
a place of his own, as where the field of view was not set to the head. Converted twice, with `image.crop: none` and
`head`; for each seed a `cnn` on both, evaluated on the test split by the commands that a user would type. A line a
seed: log loss of both, and the paired 95% interval of the difference over patients. With `--as_they_are` the heads stay
as they were drawn, which fill most of the slice. `--folder` keeps everything and goes on where it stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pydicom

from benchmarks import paired
from benchmarks.bench_series import SLICES, run
from ich_tfrecords import pixels
from ich_tfrecords.dicom import ct_slice

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
    sums = pixels.box_sums(hu.astype(np.int32), small, 1 << 15)
    moved[row : row + small, column : column + small] = np.rint(sums / side**2).astype(np.int16)
    stored = (moved.astype(np.int64) - int(file.RescaleIntercept)).clip(-32768, 65535)
    file.PixelData = stored.astype(np.int16 if file.PixelRepresentation else np.uint16).tobytes()
    file.save_as(path)


def main() -> int:
    """Print the figures; returns 1 where cropping does not help in every seed."""
    args = paired.parser(str(__doc__), patients=160, size_px=64).parse_args()
    with paired.folder(args.folder) as folder:
        make(folder, args.patients, args.size_px, args.as_they_are)

        def arms(seed: int) -> dict[str, Path]:
            names = {"whole": "none", "head": "head"}
            settings = {name: f"--data_dir {folder / crop} --seed {seed} {SLICES}" for name, crop in names.items()}
            return {name: paired.trained(folder / f"{names[name]}{seed}", settings[name]) for name in names}

        return paired.compared(args.seeds, arms, args.output)


if __name__ == "__main__":
    sys.exit(main())
