"""Do the five folds of a cross-validation judge better together, and do they disagree where they err.

    python benchmarks/bench_folds.py [--folder DIR] [--patients 240] [--size_px 48] [--seeds 3] [--output FILE.json]

Synthetic studies with noise, converted once; for each seed five `cnn` runs, `--folds 5 --fold 0` to `--fold 4`, each
evaluated on the test split that none of them saw, by the commands that a user would type. A line a seed, each figure
with its 95% interval over patients:
- the log loss of the mean of the folds, as `predict --model RUN0 --model RUN1 ...` forms it, less the mean of the
  folds' own log losses, and less that of the best single fold, chosen afterwards and so a little kind to it;
- AUC of the spread of the folds (`panel.spread`) for "the mean is on the wrong side of 0.5", over slices and labels;
  0.5 is chance. Beside it that of how near the mean is to 0.5, which one model tells as well.
`--as_they_are` leaves out the noise. `--folder` keeps everything and goes on where it stopped. Exit code 1 where an
interval of the first or third figure holds 0 or 0.5.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import numpy.typing as npt
import pydicom
from sklearn.metrics import roc_auc_score

from benchmarks import paired
from benchmarks.bench_odds_runs import RESAMPLES, interval
from benchmarks.bench_series import losses, run, told
from trainer.prediction import panel
from trainer.results import evaluated, predictions
from trainer.results.predictions import Predictions

FOLDS = 5
SETTINGS = "--epochs 8 --set flip=true --set rotate_deg=5 --set shift=0.05 --set schedule=cosine"
NOISE_HU = 12

Numbers = npt.NDArray[np.float64]


def make(folder: Path, patients: int, size_px: int, as_they_are: bool) -> None:
    """The data set, where it is not there yet."""
    raw, spec = folder / "ct", folder / "small.yaml"
    if not (folder / "drawn").exists():
        drawn = f"--patients {patients} --slices_per_study 16 --positive_fraction 0.6 --every_label --seed 12"
        run(f"ich_tfrecords.synthetic --output {raw} {drawn}")
        for number, path in enumerate([] if as_they_are else sorted((raw / "stage_2_train").glob("*.dcm"))):
            _noisier(path, np.random.default_rng(number))
        (folder / "drawn").touch()
    spec.write_text(f"extends: rsna_ich\nname: small\nimage: {{size_px: {size_px}}}\n")
    if not (folder / "set" / "manifest.json").exists():
        where = f"--input {raw}/stage_2_train --labels {raw}/stage_2_train.csv --output {folder}/set"
        run(f"beam_pipelines.convert --spec {spec} {where}")


def _noisier(path: Path, rng: np.random.Generator) -> None:
    """Noise that the small image still shows: blocks of 16 x 16 pixels."""
    file = pydicom.dcmread(path)
    blocks = rng.normal(0, NOISE_HU, (file.Rows // 16, file.Columns // 16))
    noisy = file.pixel_array + np.kron(blocks, np.ones((16, 16)))
    floor = np.iinfo(file.pixel_array.dtype).min
    file.PixelData = np.clip(np.rint(noisy), floor, None).astype(file.pixel_array.dtype).tobytes()
    file.save_as(path)


def together(folder: Path, seed: int) -> tuple[Predictions, Numbers]:
    """What is known of the test slices, and what each fold says of them, float64 [n, folds, L]."""
    said = []
    for fold in range(FOLDS):
        settings = f"--data_dir {folder / 'set'} --seed {seed} --folds {FOLDS} --fold {fold} {SETTINGS}"
        job_dir = paired.trained(folder / f"seed{seed}-fold{fold}", settings)
        said.append(predictions.read(evaluated.folder(job_dir, "test") / evaluated.PREDICTIONS))
    ids = said[0].ids["sop_uid"]
    assert all(one.ids["sop_uid"].equals(ids) for one in said)
    return said[0], np.stack([one.probabilities for one in said], axis=1)


def compared(known: Predictions, opinions: Numbers) -> dict[str, list[float]]:
    """Figure -> value, low, high."""
    mean = opinions.mean(axis=1)
    of_mean = _losses(known, mean)
    of_folds = np.stack([_losses(known, opinions[:, fold]) for fold in range(FOLDS)], axis=1)
    best = of_folds[:, of_folds.mean(0).argmin()]
    spread = np.stack([panel.spread(one) for one in opinions])
    wrong = (mean >= 0.5) != (known.labels == 1)
    return {
        "less a fold": _interval(of_mean - of_folds.mean(1), known.patients),
        "less the best fold": _interval(of_mean - best, known.patients),
        "spread": _area(wrong, spread, known.patients),
        "nearness to 0.5": _area(wrong, -abs(mean - 0.5), known.patients),
        "loss": [float(of_mean.mean())],
        "losses": of_folds.mean(0).tolist(),
    }


def _losses(known: Predictions, probabilities: Numbers) -> Numbers:
    """float64 [n], the competition's log loss of each slice."""
    return losses(dataclasses.replace(known, probabilities=probabilities)).sum(1)


def _interval(difference: Numbers, patients: npt.NDArray[np.int64]) -> list[float]:
    return [float(difference.mean()), *interval(difference, patients)]


def _area(wrong: npt.NDArray[np.bool_], score: Numbers, patients: npt.NDArray[np.int64]) -> list[float]:
    """AUC of `score` [n, L] for `wrong` [n, L], with its 95% interval by resampling whole patients."""
    rng, count = np.random.default_rng(0), int(patients.max()) + 1
    rows = [np.flatnonzero(patients == one) for one in range(count)]
    drawn = []
    for _ in range(RESAMPLES // 5):
        some = np.concatenate([rows[one] for one in rng.integers(0, count, count)])
        drawn.append(roc_auc_score(wrong[some].ravel(), score[some].ravel()))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return [float(roc_auc_score(wrong.ravel(), score.ravel())), float(low), float(high)]


def main() -> int:
    """Print the figures; returns 1 where together is not better, or disagreement tells nothing."""
    args = paired.parser(str(__doc__), patients=240, size_px=48).parse_args()
    found = {}
    with paired.folder(args.folder) as folder:
        make(folder, args.patients, args.size_px, args.as_they_are)
        for seed in range(args.seeds):
            known, opinions = together(folder, seed)
            found[seed] = one = compared(known, opinions)
            areas = ", ".join(f"{name} {one[name][0]:.3f} ({one[name][1]:.3f} to {one[name][2]:.3f})"
                              for name in ("spread", "nearness to 0.5"))  # fmt: skip
            print(
                f"seed {seed}: folds {', '.join(f'{loss:.4f}' for loss in one['losses'])}, together "
                f"{one['loss'][0]:.4f}; less the folds' mean {told(one['less a fold'])}, less the best "
                f"{told(one['less the best fold'])}; AUC for errors: {areas}",
                flush=True,
            )
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(one["less a fold"][2] >= 0 or one["spread"][1] <= 0.5 for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
