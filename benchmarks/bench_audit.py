"""Does the label audit find wrong labels, and does a model train better on what it corrects.

    python benchmarks/bench_audit.py [--folder DIR] [--patients 150] [--size_px 32] [--seeds 3] [--output FILE.json]

Synthetic studies. Of the labels of the five kinds 2% are turned round at random, and `any` follows; both sets are
converted. The folds of a cross-validation on the wrong set are trained and audited by the commands that a user would
type, and `label_fixes.csv` goes into a third conversion as it is: nobody looks, which is the least that the audit can
do. Then for each seed one `cnn` on the wrong set and one on the corrected, both evaluated on the right labels of the
test split. Printed: what part of all wrong labels stands in the first 4% of the list, how many corrections are right,
and a line a seed: log loss of both and the paired 95% interval of the difference over patients. `--folder` keeps
everything and goes on where it stopped. Exit code 1 where less than half is found, or an interval holds 0.
`--as_they_are` turns nothing round: what the audit costs where every label is right.
"""

from __future__ import annotations

import csv
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks import paired
from benchmarks.bench_series import SLICES, run
from ich_tfrecords.dataset import manifest
from trainer.results import evaluated

FOLDS, WRONG, FIRST = 3, 0.02, 0.04


def make(folder: Path, patients: int, size_px: int, as_they_are: bool) -> None:
    """The slices, the labels right and wrong, and the data sets of both."""
    raw, spec = folder / "ct", folder / "small.yaml"
    if not (folder / "drawn").exists():
        drawn = f"--patients {patients} --slices_per_study 16 --positive_fraction 0.7 --every_label --seed 7"
        run(f"ich_tfrecords.synthetic --output {raw} {drawn}")
        (folder / "drawn").touch()
    spec.write_text(f"extends: rsna_ich\nname: audited\nimage: {{size_px: {size_px}}}\n")
    turn(raw / "stage_2_train.csv", folder / "wrong.csv", 0.0 if as_they_are else WRONG)
    convert(folder, "right", raw / "stage_2_train.csv")
    convert(folder, "wrong", folder / "wrong.csv")


def turn(source: Path, target: Path, share: float) -> None:
    """Turn a share of the labels of kinds round; `any` follows."""
    draw, of_slice = random.Random(0), dict[str, dict[str, int]]()
    with source.open(newline="") as file:
        for row in csv.DictReader(file):
            uid, _, label = row["ID"].rpartition("_")
            of_slice.setdefault(uid, {})[label] = int(row["Label"])
    with target.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ID", "Label"])
        for uid, labels in of_slice.items():
            kinds = {name: value ^ (draw.random() < share) for name, value in labels.items() if name != "any"}
            rows.writerows([f"{uid}_{name}", int(value)] for name, value in kinds.items())
            rows.writerow([f"{uid}_any", int(any(kinds.values()))])


def convert(folder: Path, name: str, labels: Path, more: str = "") -> None:
    """A data set, where it is not there yet."""
    if not (folder / name / "manifest.json").exists():
        where = f"--input {folder}/ct/stage_2_train --labels {labels} {more} --output {folder}/{name}"
        run(f"beam_pipelines.convert --spec {folder}/small.yaml {where}")


def audit(folder: Path) -> None:
    """The folds on the wrong labels, the audit, and the set that it corrects."""
    runs = [folder / f"fold{fold}" for fold in range(FOLDS)]
    for fold, job_dir in enumerate(runs):
        where = f"--data_dir {folder}/wrong --job_dir {job_dir} --folds {FOLDS} --fold {fold}"
        run(f"trainer.task --model cnn {where} {SLICES}")
    run(f"trainer.audit {' '.join(map(str, runs))} --output {folder}/audit")
    convert(folder, "corrected", folder / "wrong.csv", f"--label_fixes {folder}/audit/label_fixes.csv")


def found(folder: Path) -> dict[str, float]:
    """What the list is worth, by the right labels; of slices that were audited."""
    right, wrong, fixed = (table(folder / name) for name in ("right", "wrong", "corrected"))
    names = manifest.read(folder / "wrong").spec.labels.names
    truth, given, now = (np.stack([one[name].to_numpy() for name in names], 1) for one in (right, wrong, fixed))
    row = {uid: at for at, uid in enumerate(wrong["sop_uid"].to_pylist())}
    turned, changed = truth != given, now != given
    with (folder / "audit" / "audit.csv").open(newline="") as file:
        listed = [(row[line["sop_uid"]], names.index(line["label"])) for line in csv.DictReader(file)]
    first = listed[: int(FIRST * turned.size)]
    hits = sum(bool(turned[place]) for place in first)
    return {
        "labels": turned.size,
        "wrong": int(turned.sum()),
        "wrong among kinds": float(turned[:, [name != "any" for name in names]].mean()),
        "listed": len(listed),
        "found in the first 4%": hits / max(1, int(turned.sum())),
        "corrected": int(changed.sum()),
        "corrected rightly": int((changed & turned).sum()),
        "wrong after": int((truth != now).sum()),
    }


def table(dataset: Path) -> pa.Table:
    """The slices of the two splits that folds are drawn of, by SOP UID."""
    slices = pq.read_table(dataset / "slices.parquet")
    return slices.filter(pc.is_in(slices["split"], pa.array(["train", "validation"]))).sort_by("sop_uid")


def trained(folder: Path, name: str, seed: int) -> Path:
    """A run on a data set, evaluated on the right labels of the test split."""
    job_dir = folder / f"{name}{seed}"
    run(f"trainer.task --model cnn --job_dir {job_dir} --data_dir {folder / name} --seed {seed} {SLICES}")
    if not (evaluated.folder(job_dir, evaluation(folder)) / evaluated.PAGE).exists():
        run(f"trainer.evaluate --job_dir {job_dir} --data_dir {folder / 'right'}")
    return job_dir


def evaluation(folder: Path) -> str:
    """Name of the evaluation on the right labels."""
    return evaluated.name_of("test", False, manifest.read(folder / "right").fingerprint)


def main() -> int:
    """Print the figures; returns 1 where a promise is broken."""
    args = paired.parser(str(__doc__), patients=150, size_px=32).parse_args()
    with paired.folder(args.folder) as folder:
        make(folder, args.patients, args.size_px, args.as_they_are)
        audit(folder)
        worth = found(folder)
        print(", ".join(f"{name} {value:.3g}" for name, value in worth.items()), flush=True)

        def arms(seed: int) -> dict[str, Path]:
            return {name: trained(folder, name, seed) for name in ("wrong", "corrected")}

        broken = paired.compared(args.seeds, arms, args.output, evaluation(folder))
        return int(broken or (worth["found in the first 4%"] < 0.5 and not args.as_they_are))


if __name__ == "__main__":
    sys.exit(main())
