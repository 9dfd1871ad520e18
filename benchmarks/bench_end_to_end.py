"""Memory of the second stage of the series model: it goes with the series computed at once, not with those of a step.

    python benchmarks/bench_end_to_end.py [--series 8] [--size_px 128] [--slices 32] [--output FILE.json]

A step of that many made-up series of that many slices, slice model (the `cnn`) and context together: in 1 and 2 parts,
series by series, and so with activations computed twice. Each in a process of its own; the most memory that it held,
beside one that has made the models and taken no step. Exit code 1 where series by series takes more than half of what
one part takes. Small slices need many series: what a step takes whatever its size is 300 to 400 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.made_dataset import ROOT
from benchmarks.peak import peak_bytes

LABELS, MOST_PART = 6, 0.5
NO_STEP, WHOLE, SINGLY = "no step", "1 part", "series by series"


def ways(series: int) -> dict[str, tuple[int, bool]]:
    """Name -> parts of a step, whether activations are computed twice."""
    twice = f"{SINGLY}, computed twice"
    return {
        NO_STEP: (0, False),
        WHOLE: (1, False),
        "2 parts": (2, False),
        SINGLY: (series, False),
        twice: (series, True),
    }


def step(series: int, size_px: int, slices: int, parts: int, recompute: bool) -> int:
    """Most bytes of this process after a step in so many parts; 0: none is taken."""
    import tensorflow as tf

    from trainer.data.series_feed import Blur
    from trainer.models import context, model_file, networks
    from trainer.series.end_to_end import BothObjective, EndToEnd
    from trainer.training import assembly, hparams, steps, strategy

    settings = hparams.resolve("series", "series_end_to_end", {"batch_size": series, "accumulate": max(parts, 1)})
    devices = strategy.prepare(settings, {})
    encoder = networks.build("cnn", (size_px, size_px, 3), LABELS, "none", {})
    network = context.build(model_file.vector_dim(encoder), LABELS, settings.architecture, "float32")
    model = EndToEnd(encoder, network, Blur(0.02, 0.05, 0.0), recompute, False)
    update = assembly.update_of(settings, model, devices, 10)
    objective = BothObjective(np.ones(LABELS, np.float32), 0.0, 0.0, max(parts, 1), series, 0.25, 0.1, 0.5)
    run = steps.train_steps(model, update, model.trainable_variables, objective, devices, False)
    if not parts:
        return peak_bytes()
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.integers(0, 256, (series, slices, size_px, size_px, 3), np.uint8),
        "labels": rng.integers(0, 2, (series, slices, LABELS)),
        "place": rng.random((series, slices, 3), np.float32),
        "mask": np.ones((series, slices), bool),
        "seed": np.stack([np.zeros(series, np.int64), np.arange(series)], 1),
        "study": np.full((series, LABELS), -1),
        "share": np.ones(series, np.float32),
    }
    iterator = iter(tf.data.Dataset.from_tensors(batch).repeat())
    run(iterator, np.int32(0), np.int32(2), np.zeros(2, np.float32))
    return peak_bytes()


def main() -> int:
    """Print the figures; returns 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=8)
    parser.add_argument("--size_px", type=int, default=128)
    parser.add_argument("--slices", type=int, default=32)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    peaks = {}
    for way, (parts, recompute) in ways(args.series).items():
        call = f"step({args.series}, {args.size_px}, {args.slices}, {parts}, {recompute})"
        program = f"from benchmarks.bench_end_to_end import step; print({call})"
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
        peaks[way] = int(done.stdout.splitlines()[-1])
    base = peaks.pop(NO_STEP)
    for way, peak in peaks.items():
        print(f"{way:<32} {(peak - base) / 1e6:8,.0f} MB above {base / 1e6:,.0f}")
    part = (peaks[SINGLY] - base) / (peaks[WHOLE] - base)
    print(f"{SINGLY} / {WHOLE} {part:.2f}   promised {MOST_PART:.2f} at most")
    if args.output:
        args.output.write_text(json.dumps({"base": base, "peaks": peaks}, indent=1) + "\n")
    return int(part > MOST_PART)


if __name__ == "__main__":
    sys.exit(main())
