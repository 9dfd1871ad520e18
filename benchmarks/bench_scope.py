"""Does predict tell what a model was never trained on: wrong alarms on other heads, refusal of each wrong kind.

    python benchmarks/bench_scope.py [--folder DIR] [--patients 240] [--size_px 64] [--held_out 100]
                                     [--output FILE.json]

Synthetic heads, a small `cnn` trained on them by the commands that a user would type; then `predict` on heads of other
patients and on wrong volumes, each with the headers of a head, so that nothing but the pixels tells: abdomen, neck, one
slice of a chest, heads with inverted grey, with the wrong intercept, and noise. Last heads of which the header alone is
wrong (a pixel spacing of 0.8 mm). A line a kind: how many studies are refused, with an exact 95% interval, and which
checks alone would have refused how many. With ICH_REAL_DICOM_DIR it also tells what the real slices there get.
`--folder` keeps everything and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from scipy import stats

from benchmarks import paired
from benchmarks.bench_series import run
from ich_tfrecords.dicom import ct_slice
from ich_tfrecords.dicom.writer import SliceFields, dicom_bytes
from trainer.trust.scope import CHECKS, NO

SIDE = 256
WRONG_STUDIES = 80  # of each kind; all of them refused is 95% or more of any such (exact interval)
SLICES_A_STUDY = 12  # of heads
WRONG_SLICES = 6  # of a wrong study
SETTINGS = (
    "--epochs 4 --batch_size 32 --set steps_per_epoch=0 --set architecture.filters=[8,16,32] "
    "--set architecture.dense=[32]"
)


def make(folder: Path, patients: int, held_out: int, size_px: int) -> None:
    """The data set and other heads, where they are not there yet."""
    raw = folder / "ct"
    if not raw.exists():
        drawn = f"--patients {patients} --test_patients {held_out} --slices_per_study {SLICES_A_STUDY}"
        run(f"ich_tfrecords.synthetic --output {raw} {drawn} --every_label --seed 11")
    changes = f"image: {{size_px: {size_px}}}\nsplit: {{weights: {{train: 2, validation: 1, test: 1}}}}\n"
    (folder / "scope.yaml").write_text(f"extends: rsna_ich\nname: scope_ich\n{changes}")
    if not (folder / "data" / "manifest.json").exists():
        where = f"--input {raw}/stage_2_train --labels {raw}/stage_2_train.csv --output {folder}/data"
        run(f"beam_pipelines.convert --spec {folder}/scope.yaml {where}")


# wrong kinds: HU of a slice, from that of a head or drawn anew

Array = np.ndarray


def inverted(hu: Array, rng: np.random.Generator, z: float) -> Array:
    """Bright is dark, around the grey of brain."""
    return 60 - hu


def shifted(hu: Array, rng: np.random.Generator, z: float) -> Array:
    """As if the intercept of -1024 were not told."""
    return hu + 1024


def noise(hu: Array, rng: np.random.Generator, z: float) -> Array:
    """Nothing at all, about as wide as tissue."""
    return rng.normal(40, 60, hu.shape)


def abdomen(hu: Array, rng: np.random.Generator, z: float) -> Array:
    """An oval of fat and muscle with liver, spleen, kidneys, bowel with gas, spine and aorta after contrast."""
    made = _body(rng, 0.47, 0.33)
    for x, y, width, height, value in (
        (-0.45, -0.1, 0.42, 0.55, 105), (0.55, 0.1, 0.25, 0.35, 110), (-0.45, 0.45, 0.16, 0.2, 180),
        (0.45, 0.45, 0.16, 0.2, 180), (0.1, -0.35, 0.35, 0.25, 25), (0.15, -0.4, 0.12, 0.1, -900),
        (0.0, 0.3, 0.07, 0.09, 220), (0.0, 0.62, 0.15, 0.22, 450),
    ):  # fmt: skip
        _put(made, rng, x, y + 0.1 * z, width, height, value, 0.47, 0.33)
    return made


def neck(hu: Array, rng: np.random.Generator, z: float) -> Array:
    """A small round of muscle with airway, jaw or larynx, vertebra and vessels."""
    made = _body(rng, 0.26, 0.28)
    for x, y, width, height, value in (
        (0.0, -0.25, 0.14, 0.16, -980), (0.0, 0.25, 0.28, 0.25, 550), (0.0, 0.3, 0.1, 0.08, 25),
        (-0.45, 0.0, 0.1, 0.1, 170), (0.45, 0.0, 0.1, 0.1, 170), (0.0, -0.65, 0.5, 0.08, 700 * (z < 0)),
    ):  # fmt: skip
        _put(made, rng, x, y, width, height, value, 0.26, 0.28)
    return made


def chest(hu: Array, rng: np.random.Generator, z: float) -> Array:
    """Lungs, heart, spine and ribs."""
    made = _body(rng, 0.46, 0.32)
    for x, y, width, height, value in (
        (-0.42, -0.05, 0.36, 0.6, -860), (0.45, -0.05, 0.34, 0.6, -860), (0.08, -0.15, 0.3, 0.35, 45),
        (0.0, 0.6, 0.14, 0.2, 400), (0.0, 0.25, 0.07, 0.1, 45),
        (-0.85, 0.0, 0.05, 0.3, 500), (0.85, 0.0, 0.05, 0.3, 500),
    ):  # fmt: skip
        _put(made, rng, x, y, width, height, value, 0.46, 0.32)
    return made


def _body(rng: np.random.Generator, half_width: float, half_height: float) -> Array:
    made = np.full((SIDE, SIDE), -1000.0)
    _put(made, rng, 0, 0, 1.0, 1.0, -100, half_width, half_height)
    _put(made, rng, 0, 0, 0.88, 0.84, 52, half_width, half_height)
    return made + rng.normal(0, 8, made.shape)


def _put(
    made: Array,
    rng: np.random.Generator,
    x: float,
    y: float,
    width: float,
    height: float,
    value: float,
    half_width: float,
    half_height: float,
) -> None:
    """An oval in a body whose halves are these parts of the picture; each a little elsewhere in every slice."""
    across, down = np.meshgrid(np.linspace(-0.5, 0.5, SIDE), np.linspace(-0.5, 0.5, SIDE))
    x, y = x + rng.normal(0, 0.02), y + rng.normal(0, 0.02)
    size = rng.uniform(0.92, 1.08)
    inside = ((across / half_width - x) / (width * size)) ** 2 + ((down / half_height - y) / (height * size)) ** 2 < 1
    made[inside] = value + rng.normal(0, 8, int(inside.sum()))


KINDS: dict[str, tuple[Callable[[Array, np.random.Generator, float], Array], int]] = {
    "abdomen": (abdomen, WRONG_SLICES),
    "neck": (neck, WRONG_SLICES),
    "chest slice": (chest, 1),
    "inverted grey": (inverted, WRONG_SLICES),
    "wrong intercept": (shifted, WRONG_SLICES),
    "noise": (noise, WRONG_SLICES),
    "spacing 0.8 mm": (lambda hu, rng, z: hu, WRONG_SLICES),
}


def write_wrong(folder: Path, heads: Path) -> None:
    """Volumes of each kind, with the headers of heads; where they are not there yet."""
    studies: dict[str, list[Path]] = {}
    for path in sorted(heads.glob("*.dcm")):
        studies.setdefault(ct_slice.read_header(path.read_bytes()).study_uid, []).append(path)
    for kind, (draw, slices) in KINDS.items():
        place = folder / kind.replace(" ", "_")
        if place.exists():
            continue
        place.mkdir(parents=True)
        rng = np.random.default_rng([5, *kind.encode()])
        for number, uid in enumerate(list(studies)[:WRONG_STUDIES]):
            for at, path in enumerate(studies[uid][:: SLICES_A_STUDY // slices][:slices]):
                found = ct_slice.read_slice(path.read_bytes())
                hu = draw(found.hu.astype(np.float64), rng, 2 * at / slices - 1)
                spacing = (0.8, 0.8) if kind == "spacing 0.8 mm" else (0.488281, 0.488281)
                fields = SliceFields(
                    sop_uid=f"ID_{number:04d}{at:05d}", study_uid=uid, series_uid=found.header.series_uid,
                    patient_id=f"ID_{number:08d}", position_mm=(0.0, 0.0, found.header.position_mm),
                    spacing_mm=spacing, intercept=0.0,
                )  # fmt: skip
                stored = np.clip(np.rint(hu), -2048, 8000).astype(np.int16)
                (place / f"{number:03d}_{at:03d}.dcm").write_bytes(dicom_bytes(stored, fields))


def judged(folder: Path, model: Path, given: Path, name: str) -> list[tuple[str, str]]:
    """(in_scope, scope_reason) of every study, as predict says."""
    output = folder / "predicted" / name
    run(f"trainer.predict --model {model} --input {given} --output {output} --pictures 0")
    with (output / "triage.csv").open(newline="") as file:
        return [(row["in_scope"], row["scope_reason"]) for row in csv.DictReader(file) if row["in_scope"]]


def told(found: list[tuple[str, str]]) -> tuple[str, list[float]]:
    """How many are refused, and by what."""
    refused = [reason for verdict, reason in found if verdict == NO]
    ends = stats.binomtest(len(refused), len(found)).proportion_ci(0.95, method="exact")
    by = Counter(
        check for reason in refused for check in CHECKS if f"{check} " in f"{reason} " or _of_header(check, reason)
    )
    words = ", ".join(f"{check} {count}" for check, count in by.items())
    values = [len(refused) / len(found), float(ends.low), float(ends.high)]
    return (
        f"{len(refused)} of {len(found)} refused ({values[1]:.3f} to {values[2]:.3f}){'; ' * bool(words)}{words}",
        values,
    )


def _of_header(check: str, reason: str) -> bool:
    return check == CHECKS[2] and "training" in reason


def main() -> int:
    """Print the figures; returns 1 where a wrong kind passes, or heads are refused too often."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, metavar="DIR")
    parser.add_argument("--patients", type=int, default=240)
    parser.add_argument("--held_out", type=int, default=100)
    parser.add_argument("--size_px", type=int, default=64)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    with paired.folder(args.folder) as folder:
        make(folder, args.patients, args.held_out, args.size_px)
        write_wrong(folder / "wrong", folder / "ct" / "stage_2_test")
        model = folder / "run"
        if not (model / "export" / "scope.npz").exists():
            run(f"trainer.task --model cnn --data_dir {folder / 'data'} --job_dir {model} {SETTINGS}")
        words, values = told(judged(folder, model, folder / "ct" / "stage_2_test", "heads"))
        found = {"heads": values}
        print(f"{'heads of others':16} {words}", flush=True)
        for kind in KINDS:
            name = kind.replace(" ", "_")
            words, found[kind] = told(judged(folder, model, folder / "wrong" / name, name))
            print(f"{kind:16} {words}", flush=True)
        for place in sorted(Path(os.environ.get("ICH_REAL_DICOM_DIR", os.devnull)).glob("*")):
            if place.is_dir():
                print(f"{place.name:16} {judged(folder, model, place, place.name)}", flush=True)
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")
    passed = [kind for kind in KINDS if found[kind][0] < 0.95]
    return int(bool(passed) or found["heads"][1] > 0.05)


if __name__ == "__main__":
    sys.exit(main())
