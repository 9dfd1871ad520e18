"""The same training on one device, on two, in two processes and in parts of a batch; workers that stop or are lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import training_runs as runs

from trainer.shell import vertex, waiting
from trainer.training.run_dir import RunDir

pytestmark = pytest.mark.slow  # trains

STEPS = 20
# plain SGD, unlike Adam, shows a gradient of the wrong size; dropout would draw other masks for each device
SETTINGS = {
    "epochs": 1, "steps_per_epoch": STEPS, "steps_per_call": 1, "batch_size": 16, "eval_batch_size": 20,
    "architecture.filters": [4, 8], "architecture.dense": [16], "optimizer": "sgd", "learning_rate": 0.05,
    "flip": True, "shift": 0.1, "checkpoint_minutes": 0, "ema": 0.9,
}  # fmt: skip
CLIPPED = {"clip_norm": 0.2}
TWO_DEVICES = {"strategy": "mirrored", "replicas": 2}
NO_GPU = {"CUDA_VISIBLE_DEVICES": "-1"}
PROXY = {"http_proxy": "http://192.0.2.1:3128", "no_proxy": ""}  # TEST-NET-1 (RFC 5737): nobody answers
LOST = "train: another worker is gone ({}); start all workers again with the same command to go on\n"


@pytest.fixture(scope="module")
def one(tiny_dataset, tmp_path_factory) -> dict[str, Path]:
    """Folders of runs on one device: `plain` and `clipped`."""
    folder = tmp_path_factory.mktemp("one")
    return several(tiny_dataset, folder, {"plain": {}, "clipped": CLIPPED})


def several(data_dir: Path, folder: Path, changes: dict[str, dict[str, object]]) -> dict[str, Path]:
    """Folders of runs, by name."""
    lines = [runs.flags(data_dir, folder / name, {**SETTINGS, **more}) for name, more in changes.items()]
    run = runs.several(lines, folder / "log", **NO_GPU)
    assert run.codes == [0] * len(changes), run.err
    assert run.err == ""
    return {name: folder / name for name in changes}


def assert_same(job_dir: Path, other: Path) -> None:
    """Losses of every step and the scores of both splits agree, to what float32 sums in another order may differ."""
    assert [call["step"] for call in runs.calls(job_dir)] == list(range(1, STEPS + 1))
    np.testing.assert_allclose(runs.losses(job_dir), runs.losses(other), rtol=0, atol=1e-5)
    for found, wanted in ((history(job_dir), history(other)), (result(job_dir), result(other))):
        assert found == pytest.approx(wanted, rel=0, abs=1e-5, nan_ok=True)


def history(job_dir: Path) -> dict[str, float]:
    return RunDir(job_dir).read_history()[-1]


def result(job_dir: Path) -> dict[str, float]:
    return json.loads((job_dir / "result.json").read_text())["test"]


@pytest.mark.long
@pytest.mark.slow
def test_two_devices_train_as_one(tiny_dataset, one, tmp_path):
    two = several(tiny_dataset, tmp_path, {"plain": TWO_DEVICES, "clipped": {**CLIPPED, **TWO_DEVICES}})
    for name, folder in two.items():
        assert_same(folder, one[name])
    differ = np.abs(runs.losses(one["plain"]) - runs.losses(one["clipped"]))
    assert differ.max() > 1e-3  # clipping does something


@pytest.mark.long
def test_parts_of_a_batch_train_as_the_whole(tiny_dataset, one, tmp_path):
    parts = {"two": {"accumulate": 2}, "four": {"accumulate": 4}, "clipped": {"accumulate": 2, **CLIPPED}}
    found = several(tiny_dataset, tmp_path, parts)
    for name, folder in found.items():
        assert_same(folder, one["clipped" if name == "clipped" else "plain"])


# two processes


def pair(data_dir: Path, job_dir: Path, **changes: object) -> list[runs.Run]:
    """Two workers, the chief first; they reach each other beside the proxy of an institute."""
    line = runs.flags(data_dir, job_dir, {**SETTINGS, **changes})
    return [
        runs.Run(line, job_dir.parent / f"worker_{index}", **NO_GPU, **PROXY, **environ)
        for index, environ in enumerate(runs.two_workers())
    ]


def reached(workers: list[runs.Run], job_dir: Path, step: int) -> list[runs.Run]:
    for worker in workers:
        worker.until(lambda: runs.last_step(job_dir) >= step)
    return workers


def writers(job_dir: Path) -> set[int]:
    """Ids of the processes that wrote TensorBoard's files, which their names tell, and of the one that locked."""
    logs = {int(path.name.split(".")[-3]) for path in (job_dir / "tensorboard").iterdir()}
    return logs | {int((job_dir / "lock").read_text().split()[1])}


@pytest.mark.long
def test_two_processes_train_as_one_and_survive_a_signal_and_a_loss(tiny_dataset, one, tmp_path):
    job_dir, chiefs = tmp_path / "run", set()
    chief, other = reached(pair(tiny_dataset, job_dir), job_dir, 4)
    chiefs.add(chief.process.pid)
    other.send(signal.SIGTERM)
    assert [worker.wait() for worker in (chief, other)] == [143, 143]
    assert chief.err == other.err == "train: stopped by SIGTERM; saved; the same command goes on\n"
    stopped_at = runs.last_step(job_dir)
    assert runs.newest(job_dir).state["run"]["step"] == stopped_at < STEPS

    chief, other = reached(pair(tiny_dataset, job_dir), job_dir, stopped_at + 2)
    chiefs.add(chief.process.pid)
    other.send(signal.SIGKILL)
    assert [worker.wait() for worker in (chief, other)] == [1, -signal.SIGKILL], chief.err
    before, after = LOST.split("{}")
    assert chief.err.startswith(before)
    assert chief.err.endswith(after)
    assert chief.err.count("\n") == 1
    assert "Graph execution error" not in chief.err

    chief, other = pair(tiny_dataset, job_dir)
    assert [worker.wait() for worker in (chief, other)] == [0, 0], chief.err + other.err
    assert "goes on from step" in chief.out
    assert (chief.err, other.err, other.out) == ("", "", "")
    assert writers(job_dir) == chiefs | {chief.process.pid}
    assert_same(job_dir, one["plain"])


@pytest.mark.long
def test_a_worker_that_never_comes(tiny_dataset, tmp_path):
    """Each waits in vain, for as long as it may or until a signal; a worker without its chief does as well."""
    waits = {"limit": {"wait_minutes": 0.02}, "term": {}, "int": {}}
    clusters = {name: runs.two_workers() for name in waits}
    lines = {name: runs.flags(tiny_dataset, tmp_path / name, {**SETTINGS, **waits[name]}) for name in waits}
    lonely = {name: runs.Run(lines[name], tmp_path / f"{name}_0", **NO_GPU, **clusters[name][0]) for name in waits}
    worker = runs.Run(lines["limit"], tmp_path / "limit_1", **NO_GPU, **runs.two_workers()[1])
    for name, number in (("term", signal.SIGTERM), ("int", signal.SIGINT)):
        lonely[name].until(lambda name=name: "waiting for 2 workers" in lonely[name].out)
        lonely[name].send(number)
    assert [lonely[name].wait() for name in waits] == [1, 143, 130]
    assert worker.wait() == 1
    missing = json.loads(clusters["limit"][0]["TF_CONFIG"])["cluster"]["worker"][1]
    assert lonely["limit"].err.startswith(f"train: {missing} has not come within 0.02 minutes; start every task of TF")
    assert " (Connection refused) has not come within 0.02 minutes" in worker.err
    for name, word in (("term", "SIGTERM"), ("int", "SIGINT")):
        assert lonely[name].err == f"train: stopped by {word}; nothing was done yet; the same command goes on\n"
    for name in waits:
        assert lonely[name].err.count("\n") == 1
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["checkpoints", "lock"]
        assert list((tmp_path / name / "checkpoints").iterdir()) == []
        with RunDir(tmp_path / name).lock():  # nobody holds it any more
            pass


def test_a_worker_that_is_lost_just_before_tensorflow_connects(tiny_dataset, tmp_path):
    """It came, and is gone when TensorFlow waits for it, which holds Python's lock."""
    clusters = {name: runs.two_workers() for name in ("limit", "int")}
    chiefs = {}
    for name, environs in clusters.items():
        line = runs.flags(tiny_dataset, tmp_path / name, {**SETTINGS, "wait_minutes": 0.2})
        chiefs[name] = runs.Run(line, tmp_path / f"{name}_0", **NO_GPU, **environs[0])
    for name, environs in clusters.items():
        gone = waiting._Other(vertex.cluster(environs[1]))
        chiefs[name].until(lambda gone=gone: not gone.missing())
        gone.close()
    while chiefs["int"].process.poll() is None:
        chiefs["int"].send(signal.SIGINT)
        time.sleep(0.1)
    assert chiefs["int"].wait() in (130, -signal.SIGINT)
    assert chiefs["limit"].wait() == 1
    end = time.monotonic() + runs.TIMEOUT_S
    while not chiefs["limit"].err and time.monotonic() < end:  # said by a process of its own
        time.sleep(0.1)
    assert chiefs["limit"].err.startswith("train: another worker was lost while TensorFlow connected them; start all")
    assert chiefs["limit"].err.count("\n") == 1


def test_replicas_and_parts_agree_on_batch_norm_and_averages():
    """Two replicas, two parts on one device, and two parts on each of two replicas against four parts on one.

    Keras lets each replica keep statistics of its own, and each part move them; what is saved and scored must
    be those of all. Every part is normalised by itself, so the same parts must train to the same weights.
    """
    done = subprocess.run(
        [sys.executable, "-c", BATCH_NORM], cwd=Path(__file__).parents[3], env={**os.environ, **NO_GPU},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.endswith("agree 3\n"), done.stderr[-2000:]


BATCH_NORM = """
import numpy as np, tensorflow as tf, keras
from trainer.training import averages, hparams, optimizers, steps, strategy

rng = np.random.default_rng(0)
images, labels = rng.normal(size=(5, 8, 4, 4, 3)).astype("float32"), rng.integers(0, 2, (5, 8, 6))

def trained(replicas, parts):
    sets = {"batch_size": 8, "accumulate": parts, "deterministic": False}
    sets |= {"strategy": "mirrored", "replicas": 2} if replicas == 2 else {"strategy": "default"}
    settings = hparams.resolve("cnn", None, {"optimizer": "sgd", "learning_rate": 0.1, **sets})
    devices = strategy.prepare(settings, {})
    with devices.strategy.scope():
        first, second = keras.layers.BatchNormalization(momentum=0.9), keras.layers.BatchNormalization()
        layers = [keras.Input((4, 4, 3)), first, keras.layers.Conv2D(4, 3), second, keras.layers.Flatten()]
        model = keras.Sequential([*layers, keras.layers.Dense(6)])
        optimizer = optimizers.make(settings, False)
        optimizer.build(model.trainable_variables)
        kept = averages.Averages(model, 0.9)
    update = steps.Update(optimizer, optimizers.schedule(settings, 5), kept)
    objective = steps.Objective(np.ones(6, np.float32), 0.0, 0.0, parts, 8)
    run = steps.train_steps(model, update, model.trainable_variables, objective, devices, False)
    batches = {"image": images, "labels": labels}
    if replicas == 2:
        batches = {name: value.reshape(10, 4, *value.shape[2:]) for name, value in batches.items()}
    iterator = steps.distribute(devices, tf.data.Dataset.from_tensor_slices(batches))
    run(iterator, np.int32(0), np.int32(5), np.zeros(2, "f4"))
    for variable in [*(one.value for one in model.variables), *update.averages.variables]:
        copies = [copy.numpy() for copy in devices.strategy.experimental_local_results(variable)]
        assert len(copies) == replicas
        for copy in copies[1:]:
            np.testing.assert_array_equal(copies[0], copy)
    raw = [one.value.numpy() for one in model.variables]
    with update.shown():
        return raw + [one.value.numpy() for one in model.variables]

agree = 0
for one, other in (((2, 1), (1, 2)), ((2, 2), (1, 4))):
    found, wanted = trained(*one), trained(*other)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6, err_msg=str((one, other)))
    agree += 1
whole = trained(1, 1)
differ = lambda some, others: max(np.abs(a - b).max() for a, b in zip(some, others, strict=True))
assert differ(whole, wanted) > 1e-3  # parts are normalised by themselves
assert differ(whole[:12], whole[12:]) > 1e-3  # averages are not the weights
print("agree", agree + 1)
"""
