"""Each network of keras.applications on the whole way: built, trained, resumed, saved, exported, explained.

    python benchmarks/bench_backbones.py [--output FILE.json] [--only NAME ...] [--steps 8] [--batch_size 4]

Synthetic head CT at 128 px with nine windows and `stem: repeat`; weights from scratch, for none can be downloaded where
this is tested. Each network has a process of its own, in which it

- is built with 3, 1 and 9 windows, under the same weight names each time
- trains two epochs, and the second once more from the checkpoint between them: both must end with the same bits
- is saved and read, exported as a SavedModel (which must say what the Keras model says), asked for vectors and maps
- is compared with the scaling and the weights file that Keras itself has for it

A row a network: parameters without head, features, batch norm, cells of a map, seconds a step (the least of the second
epoch, tracing left out), the mean loss of both epochs, and what did not agree. Exit code 1 where anything did not.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest.mock
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import keras
import numpy as np
import tensorflow as tf

from benchmarks.made_dataset import make_dataset
from trainer.data.dataset import Dataset, open_dataset
from trainer.models import backbones, explain, model_file, networks
from trainer.models.applications import APPLICATIONS, CAFFE
from trainer.serving import saved_model
from trainer.shell.display import Display
from trainer.tracking.log import NoLog
from trainer.training import assembly, checkpoints, ending, fitting, hparams, strategy
from trainer.training.loop import Doors, Loop
from trainer.training.run_dir import RunDir
from trainer.training.saver import Saver
from trainer.training.scalars import Scalars
from trainer.training.strategy import Devices

SIZE_PX = 128
WINDOWS = [(40, 80), (80, 200), (600, 2800), (30, 40), (60, 120), (300, 1500), (35, 60), (50, 150), (500, 2000)]
NEAR = 2e-5  # between two programs of one network, in probabilities


def made_set(folder: Path, slices: int) -> Path:
    """A converted data set of nine windows, whose `slices` for training are seen anew each epoch."""
    windows = [f"{{name: w{at}, level_hu: {level}, width_hu: {width}}}" for at, (level, width) in enumerate(WINDOWS)]
    changes = f"image: {{size_px: {SIZE_PX}, windows: [{', '.join(windows)}]}}\n"
    changes += f"split: {{subset: {{train: {slices}}}}}\n"
    return make_dataset(folder / "set", patients=6, changes=changes, slices_per_study=16)


def settings_of(name: str, args: argparse.Namespace) -> hparams.HParams:
    """Two short epochs from scratch; all windows into the first convolution."""
    sets = {
        "weights": "none", "stem": "repeat", "epochs": 2, "steps_per_epoch": args.steps, "batch_size": args.batch_size,
        "steps_per_call": 1, "learning_rate": 0.0003, "sampling": "natural", "validation_split": "", "test_split": "",
        "absent_labels": True, "precision": "float32", "checkpoint_minutes": 100,
    }  # fmt: skip
    return hparams.resolve(name, None, sets)


def trained(folder: Path, settings: hparams.HParams, data: Dataset, devices: Devices) -> Loop:
    """A run in `folder`, to its end."""
    keras.utils.set_random_seed(settings.seed)
    slices = assembly.splits(data, settings)
    fed = assembly.data_of(settings, slices, devices)
    network = assembly.network(settings, data, devices, fed.plan.steps)
    run_dir = RunDir(folder)
    run_dir.create()
    identity = {"settings": dataclasses.asdict(settings), "fingerprint": data.manifest.fingerprint}
    saver = Saver(run_dir.checkpoints, network.model.variables, network.update.state, identity, 3, True)
    display = Display(io.StringIO(), settings.epochs, fed.plan.steps, settings.batch_size)
    loop = Loop(
        settings, fed, network, devices, saver, Doors(run_dir, Scalars(str(folder / "tb")), NoLog(), display, _never)
    )
    loop.fit()
    return loop


def _never() -> bool:
    return False


def resumes(loop: Loop, steps: int) -> bool:
    """Whether the second epoch, begun again from the checkpoint before it, ends with the bits that it ended with."""
    folder = loop.doors.run_dir.checkpoints
    ended = checkpoints.load(folder / f"{checkpoints.step_name(2 * steps)}.npz")
    for newer in (ended.path, *folder.glob("best-*")):
        newer.unlink()
    loop.fit()
    again = checkpoints.load(ended.path)
    return ended.names == again.names and all(a.tobytes() == b.tobytes() for a, b in zip(ended.arrays, again.arrays))


def of(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The row of a network."""
    data = open_dataset(args.data, note=lambda text: None)
    settings = settings_of(name, args)
    devices = strategy.prepare(settings, {})
    wrong: list[str] = []
    made = functools.cache(backbones.make)  # by the channels it takes: to build is most of the time
    with unittest.mock.patch.object(backbones, "make", made):
        built(name, wrong)
        keras_own(name, wrong)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        loop = trained(folder / "run", settings, data, devices)
        losses = [float(row["loss"]) for row in loop.state.rows]
        if not losses[1] < losses[0]:
            wrong.append("falls")
        if not resumes(loop, args.steps):
            wrong.append("resumes")
        model = loop.network.model
        served(folder, loop, data, wrong)
        log = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    part = part_of(model)
    maps = explain.explainer(model)(_images(2), 0)
    if maps.shape != (2, SIZE_PX, SIZE_PX) or not np.isfinite(maps).all():
        wrong.append("explains")
    rates = [entry["images_per_s"] for entry in log if entry.get("epoch") == 2 and "images_per_s" in entry]
    return {
        "name": name,
        "parameters": made(name, (SIZE_PX, SIZE_PX, 3)).count_params(),
        "features": int(part.output.shape[-1]),
        "batch_norm": any(isinstance(layer, keras.layers.BatchNormalization) for layer in part.layers),
        "cells": int(explain._split(model)[0].output.shape[1]),
        "step_s": args.batch_size / max(rates),
        "losses": losses,
        "wrong": wrong,
    }


def part_of(model: keras.Model) -> keras.Model:
    """The application part."""
    part = backbones.backbone(model)
    assert part is not None
    return part


def built(name: str, wrong: list[str]) -> None:
    """It takes 3, 1 and 9 windows either way, and its weights have the same names each time."""
    of_stem = {}
    for windows, stem in ((3, "adapter"), (3, "repeat"), (1, "adapter"), (9, "adapter"), (9, "repeat")):
        model = networks.build(name, (SIZE_PX, SIZE_PX, windows), 6, "none", {"dropout": 0.1}, stem)
        if model.output_shape != (None, 6):
            wrong.append(f"builds with {windows}")
        of_stem[windows, stem] = [weight.path for weight in part_of(model).weights]
    if len(set(map(tuple, of_stem.values()))) > 1:
        wrong.append("names")


def served(folder: Path, loop: Loop, data: Dataset, wrong: list[str]) -> None:
    """Saved, read, exported: all say the same; and vectors are of the layer of the logits."""
    images = _images(5)
    model = loop.network.model
    decided = fitting.unfitted(loop.data.labels, "a benchmark")
    about = ending.about_of(loop, data, loop.state, decided)
    model_file.write(folder / "export", model, about)
    loaded = model_file.load_model(folder / "export", about)
    logits = model_file.scorer(model)(images)
    if (model_file.scorer(loaded)(images) != logits).any():
        wrong.append("saves")
    vectors, _ = model_file.embedder(loaded)(images)
    if vectors.shape != (5, model.get_layer("logits").kernel.shape[0]) or not np.isfinite(vectors).all():
        wrong.append("embeds")
    saved_model.write(folder / "saved", loaded, about)
    signatures = tf.saved_model.load(str(folder / "saved")).signatures
    hu = np.random.default_rng(3).integers(-1000, 1500, (3, 200, 180), np.int16)
    seen = signatures["image"](hu=tf.constant(hu))["image"].numpy()
    said = signatures["hu"](hu=tf.constant(hu))["probabilities"].numpy()
    if np.abs(said - about.probabilities(model_file.scorer(model)(seen))).max() > NEAR:
        wrong.append("exports")


def keras_own(name: str, wrong: list[str]) -> None:
    """Scaling and weights file are those that Keras has for the network."""
    application = APPLICATIONS[name]
    function = getattr(keras.applications, application.function)
    size = 224 if name == "mobilenetv2" else SIZE_PX  # Keras has other weights of it for other sizes
    own_files = {
        "keras.src.utils.file_utils.get_file": unittest.mock.Mock(return_value=""),
        "keras.Model.load_weights": unittest.mock.Mock(),
    }
    with contextlib.ExitStack() as stack:
        get_file, _ = (stack.enter_context(unittest.mock.patch(place, new)) for place, new in own_files.items())
        own = function(include_top=False, weights="imagenet", input_shape=(size, size, 3))
    (_, address), more = get_file.call_args
    if (address, more.get("file_hash") or "") != (application.weights_url, application.digest):
        wrong.append(f"weights file {address} {more}")
    ours = networks.build(name, (size, size, 3), 6, "none", {})
    for mine, theirs in zip(part_of(ours).weights, own.weights, strict=True):
        mine.assign(theirs)
    images = np.random.default_rng(5).integers(0, 256, (1, size, size, 3), np.uint8)
    given = images.astype(np.float32)[..., :: -1 if application.scaling is CAFFE else 1]  # a window has no colour
    found = keras.Model(ours.input, ours.get_layer("mean").input)(images, training=False).numpy()
    wanted = own(sys.modules[function.__module__].preprocess_input(given), training=False).numpy()
    if np.abs(found - wanted).max() > 1e-3 * np.abs(wanted).max():
        wrong.append("scaling")


def _images(count: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (count, SIZE_PX, SIZE_PX, len(WINDOWS)), np.uint8)


def in_process(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """`of` in a process of its own."""
    command = [sys.executable, __file__, "--row", name, "--data", args.data]
    command += ["--steps", str(args.steps), "--batch_size", str(args.batch_size)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"name": name, "wrong": [done.stderr.strip().splitlines()[-1]]}
    return json.loads(done.stdout.splitlines()[-1])


def line(row: dict[str, Any]) -> str:
    """Of a Markdown table."""
    wrong = ", ".join(row["wrong"]) or "all agree"
    if "losses" not in row:
        return f"| `{row['name']}` | {wrong} |"
    losses = " -> ".join(f"{loss:.3f}" for loss in row["losses"])
    norm = "yes" if row["batch_norm"] else "no"
    figures = f"{row['parameters']:,} | {row['features']:,} | {norm} | {row['cells']} | {row['step_s']:.2f} | {losses}"
    return f"| `{row['name']}` | {figures} | {wrong} |"


def main() -> int:
    """Print the table; returns 1 where something did not agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--only", nargs="+", default=list(APPLICATIONS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(of(args.row, args)))
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        args.data = str(made_set(Path(temporary), args.steps * args.batch_size))
        print("| network | parameters | features | batch norm | cells | s a step | loss | |")
        print("|---|---:|---:|---|---:|---:|---|---|")
        for name in args.only:
            begin = time.perf_counter()
            rows.append(in_process(name, args))
            print(line(rows[-1]), flush=True)
            rows[-1]["seconds"] = time.perf_counter() - begin
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n")
    return int(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
