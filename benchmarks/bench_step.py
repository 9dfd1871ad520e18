"""What the training loop costs beside the bare train step of the same Keras model, and how memory grows with steps.

    python benchmarks/bench_step.py [--output FILE.json] [--rounds 7] [--steps 30] [--skip_memory]
    python benchmarks/bench_step.py --allocator [--output FILE.json] [--rounds 3] [--steps 30]

Bare: a `tf.function` with GradientTape and `optimizer.apply` on one batch of 32 noise slices (128x128x3) that stays
in memory, the same cnn, loss and Adam. Ours: the compiled steps of the loop on the same batch (the program alone),
and the whole loop on a data set on disk: balanced sampling, reading, parsing, several steps a call, sums, log lines,
display. The ways take turns; a figure is the least over the rounds of seconds a step, since other work can only
add to it. Then the peak RSS of a process after 100 steps and after 2,000 (a smaller cnn, so that this takes a
minute). Exit code 1 when the loop costs over 3% more than the bare step, or the peak grows by over 5%.

With --allocator nothing but this: the compiled steps in processes whose glibc keeps freed memory and in processes as
they are, in turns, each with oneDNN, which keeps memory itself, and without (docs/decisions/0036-allocator.md).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import keras
import numpy as np
import tensorflow as tf

from benchmarks.made_dataset import make_dataset
from benchmarks.peak import peak_bytes
from trainer.data.dataset import open_dataset
from trainer.shell.display import Display
from trainer.tracking.log import NoLog
from trainer.training import assembly, hparams, losses, optimizers, steps, strategy
from trainer.training.loop import Doors, Loop
from trainer.training.run_dir import RunDir
from trainer.training.saver import Saver
from trainer.training.scalars import Scalars

MOST_LOOP, MOST_GROWTH = 1.03, 1.05
KEEPS = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
ALLOCATORS = {  # name -> variables of a process
    "oneDNN": {},
    "oneDNN, memory kept": KEEPS,
    "no oneDNN": {"TF_ENABLE_ONEDNN_OPTS": "0"},
    "no oneDNN, memory kept": {"TF_ENABLE_ONEDNN_OPTS": "0"} | KEEPS,
}


def bare_step(network: Any) -> Callable[[Any, Any], Any]:
    """The train step as one writes it by hand."""
    weights = tf.constant(network.objective.label_weights)
    optimizer = keras.optimizers.Adam(1e-3)
    variables = network.model.trainable_variables
    optimizer.build(variables)

    @tf.function
    def step(images: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            total, weight = losses.loss_sums(labels, network.model(images, training=True), weights, 0.0, 0.0)
            loss = total / weight
        optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)
        return loss

    return step


class TimedLoop(Loop):
    """The loop, with one epoch as the thing to time."""

    def train_epoch(self) -> None:
        """Train as in `fit`, without validation and checkpoint."""
        self.state.step_in_epoch = 0
        self._train_epoch()


def make_loop(folder: Path, settings: hparams.HParams) -> TimedLoop:
    """A loop as `trainer.training.session` makes it."""
    data = open_dataset(str(folder / "set"), note=lambda text: None)
    devices = strategy.prepare(settings, {})
    slices = assembly.splits(data, settings)
    fed = assembly.data_of(settings, slices, devices)
    network = assembly.network(settings, data, devices, fed.plan.steps)
    run_dir = RunDir(folder / "run")
    run_dir.create()
    saver = Saver(run_dir.checkpoints, network.model.variables, network.update.state, {}, 3, True)
    display = Display(io.StringIO(), settings.epochs, fed.plan.steps, settings.batch_size)
    doors = Doors(run_dir, Scalars(run_dir.tensorboard), NoLog(), display, lambda: False)
    return TimedLoop(settings, fed, network, devices, saver, doors)


def ways(folder: Path, count: int) -> dict[str, Callable[[], None]]:
    """Name -> a function that takes `count` steps."""
    sets = {"epochs": 1000, "steps_per_epoch": count, "validation_split": "", "test_split": "", "deterministic": False}
    loop = make_loop(folder, hparams.resolve("cnn", None, sets))
    batch = {
        "image": tf.constant(np.random.default_rng(0).integers(0, 256, (32, 128, 128, 3), np.uint8)),
        "labels": tf.constant(np.random.default_rng(1).integers(0, 2, (32, 6))),
    }
    step = bare_step(loop.network)
    own, variables = loop.network, loop.network.model.trainable_variables
    update = dataclasses.replace(own.update, optimizer=optimizers.make(loop.settings, float16=False))
    update.optimizer.build(variables)
    program = steps.train_steps(own.model, update, variables, own.objective, loop.devices, jit_compile=False)
    iterator = iter(tf.data.Dataset.from_tensors(batch).repeat())

    def bare() -> None:
        for _ in range(count):
            loss = step(batch["image"], batch["labels"])
        float(loss)

    def compiled() -> None:
        program(iterator, np.array(0, np.int32), np.array(count, np.int32), np.zeros(2, np.float32))[0].numpy()

    return {"bare step": bare, "compiled steps": compiled, "whole loop": loop.train_epoch}


def seconds(way: Callable[[], None]) -> float:
    """Wall time of one turn."""
    begin = time.perf_counter()
    way()
    return time.perf_counter() - begin


def peak_mb(folder: Path, count: int) -> float:
    """Peak RSS in MB of a process that trains `count` steps through the command line's own code."""
    code = f"from benchmarks.bench_step import train; train({str(folder)!r}, {count})"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def train(folder: str, count: int) -> None:
    """Train `count` steps of a small cnn and print the peak RSS in MB."""
    from trainer import task

    with tempfile.TemporaryDirectory() as run, contextlib.redirect_stdout(io.StringIO()):
        flags = ["--set", "architecture.filters=[8, 8]", "--set", "architecture.dense=[16]", "--epochs", "1"]
        flags += ["--set", "validation_split=", "--set", "test_split=", "--steps_per_epoch", str(count)]
        assert task.main(["--model", "cnn", "--data_dir", f"{folder}/set", "--job_dir", run, *flags]) == 0
    print(peak_bytes() / 1e6)


def take_steps(folder: str, count: int) -> None:
    """Take `count` compiled steps, warm; print ms a step, of them in the kernel, page faults a step, and peak MB."""
    way = ways(Path(folder), count)["compiled steps"]
    way()
    before = resource.getrusage(resource.RUSAGE_SELF)
    wall = seconds(way)
    after = resource.getrusage(resource.RUSAGE_SELF)
    in_kernel, faults = after.ru_stime - before.ru_stime, after.ru_minflt - before.ru_minflt
    print(1e3 * wall / count, 1e3 * in_kernel / count, faults / count, peak_bytes() / 1e6)


def allocators(folder: Path, rounds: int, count: int) -> dict[str, list[float]]:
    """What `take_steps` prints, the least of each over the rounds, by the name of the allocator."""
    code = f"from benchmarks.bench_step import take_steps; take_steps({str(folder)!r}, {count})"
    found: dict[str, list[list[float]]] = {name: [] for name in ALLOCATORS}
    for _ in range(rounds):
        for name, environ in ALLOCATORS.items():
            root, own = Path(__file__).parent.parent, {**os.environ, **environ}
            command = [sys.executable, "-c", code]
            done = subprocess.run(command, cwd=root, env=own, capture_output=True, text=True, check=True)
            found[name].append([float(word) for word in done.stdout.split()[-4:]])
    return {name: [min(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}


def tell_allocators(found: dict[str, list[float]]) -> None:
    """Print what `allocators` found."""
    for name, (wall, in_kernel, faults, peak) in found.items():
        print(
            f"{name:24} {wall:8.1f} ms a step, {in_kernel:.1f} in the kernel, {faults:,.0f} faults, peak {peak:,.0f} MB"
        )


def main() -> int:
    """Print the tables; returns 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--skip_memory", action="store_true")
    parser.add_argument("--allocator", action="store_true", help="only what it brings that memory is kept")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_dataset(folder / "set", patients=40)
        result: dict[str, Any]
        if args.allocator:
            result = allocators(folder, args.rounds, args.steps)
            tell_allocators(result)
            if args.output:
                args.output.write_text(json.dumps(result, indent=1) + "\n")
            return 0
        found = ways(folder, args.steps)
        for way in found.values():
            way()
        turns = [{name: seconds(way) / args.steps for name, way in found.items()} for _ in range(args.rounds)]
        result = {name: min(turn[name] for turn in turns) for name in found}
        result["ratio"] = result["whole loop"] / result["bare step"]
        for name in found:
            print(f"{name:16} {1e3 * result[name]:8.1f} ms a step, {32 / result[name]:6.0f} images/s")
        print(f"the loop costs {100 * (result['ratio'] - 1):+.1f}% beside the bare step (promised: at most +3%)")
        broken = result["ratio"] > MOST_LOOP
        if not args.skip_memory:
            peaks = {str(count): peak_mb(folder, count) for count in (100, 2000)}
            growth = peaks["2000"] / peaks["100"]
            print(
                f"peak RSS after 100 steps {peaks['100']:,.0f} MB, after 2,000 {peaks['2000']:,.0f} MB: x{growth:.3f}"
            )
            result |= {"peak_mb": peaks, "growth": growth}
            broken = broken or growth > MOST_GROWTH
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
