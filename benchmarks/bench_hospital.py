"""Do study labels of a second hospital help there: series runs with and without them, on its held-out patients.

    python benchmarks/bench_hospital.py [--folder DIR] [--patients N] [--elsewhere N] [--seeds 3] [--output FILE.json]

The first data set is RSNA-like (`synthetic --context`), every slice labelled; the second is of `synthetic --hospital
--context`: another thickness, tilt, noise and kernel, four series a study of which `--series best` takes one, and
labels of studies alone. For each seed a `cnn` on the first, then two series models on its vectors: of the first set
alone, and of both. Both judge the studies of the second set's test split, everything by the commands that a user would
type. A line a seed: log loss of the studies, and the paired 95% interval of the difference over patients.
`--folder` keeps everything and goes on where it stopped. Exit code 1 where an interval holds 0, or where a series of
the wrong kind was converted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import numpy.typing as npt

from benchmarks.bench_odds_runs import interval
from benchmarks.bench_series import SERIES, SLICES, run, told
from benchmarks.made_dataset import ROOT
from trainer.data.dataset import open_dataset
from trainer.results.probability import ANY_WEIGHT, log_losses

KERNEL = "H31S"  # of the plain series of the second hospital
BOTH = ""  # settings of the run on both sets beside those of the first


def make(folder: Path, patients: int, elsewhere: int, size_px: int) -> None:
    """The two data sets, where they are not there yet."""
    _convert(folder, "first", f"--patients {patients}", "rsna_ich", size_px, "stage_2_train.csv", "stage_2_train", "")
    _convert(
        folder, "second", f"--hospital --patients {elsewhere} --test_patients 0", "hospital", size_px,
        "studies.csv", "ct", "--series best --labels_may_miss",
    )  # fmt: skip


def _convert(
    folder: Path, name: str, drawn: str, spec: str, size_px: int, labels: str, slices: str, flags: str
) -> None:
    made, converted = folder / f"{name}_ct", folder / name
    seed = 3 if name == "first" else 4
    if not made.exists():
        how = "--slices_per_study 20 --positive_fraction 0.7 --every_label --context"
        run(f"ich_tfrecords.synthetic --output {made} {drawn} {how} --seed {seed}")
    if (converted / "manifest.json").exists():
        return
    text = (ROOT / "configs" / "rsna_ich.yaml").read_text().replace("size_px: 128", f"size_px: {size_px}")
    (folder / "rsna_ich.yaml").write_text(text)
    where = f"--input {made}/{slices} --labels {made}/{labels} --output {converted}"
    run(f"beam_pipelines.convert --spec {folder}/rsna_ich.yaml {where} {flags}")


def wrong_series(folder: Path) -> int:
    """Converted series of the second hospital that are not the plain one."""
    slices = open_dataset(str(folder / "second")).slices
    kernels = slices.group_by("series_uid").aggregate([("kernel", "min")])["kernel_min"].to_pylist()
    studies = len(slices["study_uid"].unique())
    return sum(kernel != KERNEL for kernel in kernels) + abs(len(kernels) - studies)


def train(folder: Path, seed: int) -> dict[str, Path]:
    """The runs of a seed: on slices, and the series runs on the first set and on both."""
    slices, common = folder / f"slices{seed}", f"--seed {seed}"
    first, second = f"--data_dir {folder}/first", f"--data_dir {folder}/second"
    run(f"trainer.task --model cnn --job_dir {slices} {first} {common} {SLICES}")
    made = {}
    for name, sets in (("first", first), ("both", f"{first} {second} {BOTH}")):
        made[name] = folder / f"{name}{seed}"
        run(f"trainer.task --model series --slice_run {slices} --job_dir {made[name]} {sets} {common} {SERIES}")
        if not list(made[name].glob("evaluation/test-*/report.html")):
            run(f"trainer.evaluate --job_dir {made[name]} {second}")
    return made


def judged(folder: Path, job_dir: Path) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], float]:
    """float64 [S], weighted log loss of each study of the second set's test split; its patient; AUC of `any`."""
    from sklearn.metrics import roc_auc_score

    from trainer.shell import quiet

    quiet.import_tensorflow()

    from trainer.models import model_file
    from trainer.results import study_level
    from trainer.series import judging

    data, home = open_dataset(str(folder / "second")), job_dir / "export"
    about = model_file.read_about(home)
    found = judging.judge_of(home, about, data, False)(data.split("test"), 64, lambda done, total: None)
    labels, _, patients = study_level.studies(found.slices)
    said = found.ways[judging.BLEND][0]
    weights = np.array([ANY_WEIGHT if name == found.slices.any else 1.0 for name in found.slices.names])
    losses = (log_losses(labels == 1, said) * weights / weights.sum()).sum(1)
    at = found.slices.names.index(found.slices.any)
    return losses, patients, float(roc_auc_score(labels[:, at], said[:, at]))


def lines(found: dict[int, dict[str, Any]]) -> Iterator[str]:
    """What was found, as a Markdown table."""
    yield "| seed | log loss, first alone | log loss, both | difference (95% interval) | AUC of any, first | both |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for seed, one in found.items():
        yield (
            f"| {seed} | {one['first']:.4f} | {one['both']:.4f} | {told(one['difference'])} | {one['auc'][0]:.3f} | "
            f"{one['auc'][1]:.3f} |"
        )


def main() -> int:
    """Print the figures; returns 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, metavar="DIR")
    parser.add_argument("--patients", type=int, default=220)
    parser.add_argument("--elsewhere", type=int, default=500, help="patients of the second hospital")
    parser.add_argument("--size_px", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = (args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, args.patients, args.elsewhere, args.size_px)
        wrong, found = wrong_series(folder), {}
        print(f"{wrong} series of the wrong kind", file=sys.stderr, flush=True)
        for seed in range(args.seeds):
            runs = train(folder, seed)
            plain, patients, plain_auc = judged(folder, runs["first"])
            both, _, auc = judged(folder, runs["both"])
            low, high = interval(both - plain, patients)
            found[seed] = {
                "first": plain.mean(),
                "both": both.mean(),
                "difference": [(both - plain).mean(), low, high],
                "auc": [plain_auc, auc],
                "studies": len(plain),
            }
            print(f"seed {seed}: {told(found[seed]['difference'])}", file=sys.stderr, flush=True)
    print("\n".join(lines(found)))
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")
    return int(wrong > 0 or any(one["difference"][2] >= 0 for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
