"""A converted synthetic data set for benchmarks, made by the commands that users have."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def make_dataset(
    output: Path, patients: int, changes: str = "", every_label: bool = True, seed: int = 0, slices_per_study: int = 32
) -> Path:
    """`output`, converted from `patients` synthetic patients; `changes`: YAML laid over the spec rsna_ich."""
    raw = output.parent / f"{output.name}_ct"
    flags = ["--patients", str(patients), "--test_patients", "1", "--seed", str(seed)]
    flags += ["--slices_per_study", str(slices_per_study)]
    _run("ich_tfrecords.synthetic", "--output", str(raw), *flags, *(["--every_label"] if every_label else []))
    config = output.parent / f"{output.name}.yaml"
    config.write_text(f"extends: rsna_ich\n{changes}")
    labels = str(raw / "stage_2_train.csv")
    places = ["--input", str(raw / "stage_2_train"), "--labels", labels, "--output", str(output)]
    _run("beam_pipelines.convert", "--spec", str(config), *places)
    shutil.rmtree(raw)
    return output


def _run(module: str, *flags: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, *flags], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{module} ended with {done.returncode}: {done.stderr[-2000:]}")
