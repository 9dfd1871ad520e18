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

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pydicom

from benchmarks import paired
from benchmarks.bench_series import SLICES, run
from trainer.models import model_file, windows

SLOPE, ABOVE_HU = 0.4, 250


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
    parser = paired.parser(str(__doc__), patients=400, size_px=48)
    parser.add_argument("--form", default=windows.SIGMOID, choices=windows.FORMS)
    args = parser.parse_args()
    with paired.folder(args.folder) as folder:
        make(folder, args.patients, args.size_px, args.as_they_are)

        def arms(seed: int) -> dict[str, Path]:
            settings = f"--data_dir {folder / 'hu'} --seed {seed} {SLICES}"
            more = f"--set windows={windows.LEARNED} --set window_form={args.form}"
            fixed = paired.trained(folder / f"fixed{seed}", settings)
            learned = paired.trained(folder / f"{args.form}{seed}", f"{settings} {more}")
            print(windows.told(model_file.read_about(learned / "export").facts["windows"]), flush=True)
            return {"fixed": fixed, "learned": learned}

        return paired.compared(args.seeds, arms, args.output)


if __name__ == "__main__":
    sys.exit(main())
