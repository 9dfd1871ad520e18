"""A run that is killed, stopped or damaged anywhere and started again ends with the bits of one that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import training_runs as runs

pytestmark = pytest.mark.slow  # trains

EPOCHS, STEPS = 3, 18  # an epoch
# everything that has a state; the dense layer makes checkpoints of 5 MB, which take a while to write
SETTINGS = {
    "epochs": EPOCHS, "steps_per_epoch": STEPS, "batch_size": 8, "eval_batch_size": 32, "sampling": "balanced",
    "architecture.filters": [4, 8], "architecture.dense": [640], "architecture.dropout": 0.3,
    "flip": True, "rotate_deg": 10, "shift": 0.1, "optimizer": "adamw", "weight_decay": 0.01, "clip_norm": 1,
    "ema": 0.9, "warmup_epochs": 0.5, "decay_per_epoch": 0.7, "checkpoint_minutes": 0, "steps_per_call": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tiny_dataset, tmp_path_factory) -> Path:
    """The folder of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    runs.finished(runs.flags(tiny_dataset, folder / "run", SETTINGS), folder / "log")
    return folder / "run"


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def assert_same_outcome(job_dir: Path, whole: Path) -> None:
    """Weights, optimizer, state, history, result and exported model agree to the bit."""
    one, other = runs.newest(job_dir), runs.newest(whole)
    assert one.path.name == other.path.name
    assert one.names == other.names
    differ = [name for name, a, b in zip(one.names, one.arrays, other.arrays) if a.tobytes() != b.tobytes()]
    assert differ == []
    assert one.state["run"] == other.state["run"]
    for name in ("history.csv", "result.json"):
        assert (job_dir / name).read_bytes() == (whole / name).read_bytes(), name
    assert_same_model(job_dir, whole)
    assert not list(job_dir.rglob("*.tmp"))
    steps = [entry["step"] for entry in runs.calls(job_dir)]
    assert steps == sorted(set(steps))
    assert steps[-1] == EPOCHS * STEPS


def assert_same_model(job_dir: Path, whole: Path) -> None:
    found, wanted = (keras.models.load_model(one / "export/model.keras").get_weights() for one in (job_dir, whole))
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def line(data_dir: Path, job_dir: Path, **changes: object) -> list[str]:
    return runs.flags(data_dir, job_dir, {**SETTINGS, **changes})


def started(data_dir: Path, job_dir: Path, **changes: object) -> runs.Run:
    return runs.Run(line(data_dir, job_dir, **changes), job_dir.parent / "log")


def killed_at(run: runs.Run, job_dir: Path, step: int) -> None:
    run.until(lambda: runs.last_step(job_dir) >= step)
    run.send(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL


def killed_while_it_writes(run: runs.Run, job_dir: Path, step: int) -> None:
    """Kill while a checkpoint is half written: the process is stopped first, so that it cannot end it meanwhile."""
    half = lambda: list((job_dir / "checkpoints").glob("step-*.tmp"))  # noqa: E731
    run.until(lambda: runs.last_step(job_dir) >= step)
    while True:
        run.until(lambda: bool(half()))
        with run.paused():
            if half():
                run.send(signal.SIGKILL)
                break
    assert run.wait() == -signal.SIGKILL
    assert half()


@pytest.mark.long
def test_killed_three_times_it_ends_with_the_same_bits(tiny_dataset, whole, tmp_path):
    seed = random.randrange(2**32)
    print("random seed", seed)
    draw, job_dir = random.Random(seed), tmp_path / "run"
    kills: list[Callable[..., None]] = [killed_at, killed_at, killed_while_it_writes]
    draw.shuffle(kills)
    for kill, step, grouping in zip(kills, sorted(draw.sample(range(2, 30), 3)), draw.sample([1, 2, 5, 7], 3)):
        print(kill.__name__, step, grouping)
        kill(started(tiny_dataset, job_dir, steps_per_call=grouping), job_dir, step)
    # an epoch less at first, since raising it goes on; 0: as many steps a call as a second holds
    ends = {"epochs": EPOCHS - 1, "steps_per_call": 0}, {}
    run = runs.several([line(tiny_dataset, job_dir, **changes) for changes in ends], tmp_path / "log")
    assert run.codes == [0, 0], run.err
    assert run.out.count("goes on from step") == 2
    assert_same_outcome(job_dir, whole)


@pytest.mark.long
def test_signals_save_and_the_same_command_goes_on(tiny_dataset, whole, tmp_path):
    job_dir = tmp_path / "run"
    for number, code, step in ((signal.SIGTERM, 143, 4), (signal.SIGINT, 130, 22)):
        run = started(tiny_dataset, job_dir)
        run.until(lambda step=step: runs.last_step(job_dir) >= step)
        run.send(number)
        assert run.wait() == code
        assert run.err == f"train: stopped by {number.name}; saved; the same command goes on\n"
        assert runs.newest(job_dir).state["run"]["step"] == runs.last_step(job_dir) < EPOCHS * STEPS
    assert started(tiny_dataset, job_dir).wait() == 0
    assert_same_outcome(job_dir, whole)


def test_a_cut_checkpoint_is_told_and_the_one_before_it_used(tiny_dataset, whole, copy, tmp_path):
    """After that the run has ended; repeated once more it does nothing but give the same result."""
    last = runs.newest(copy).path
    os.truncate(last, last.stat().st_size // 2)
    (copy / "result.json").unlink()
    run = runs.several([line(tiny_dataset, copy)] * 2, tmp_path / "log")
    assert run.codes == [0, 0], run.err
    told = [text for text in run.out.splitlines() if str(last) in text]
    assert len(told) == 2
    assert told[0].startswith("left aside: ")
    assert told[1] == f"goes on from step {EPOCHS * STEPS:,} (epoch {EPOCHS + 1}), saved in {last}"
    assert f"goes on from step {EPOCHS * STEPS - 3}" in run.out
    assert_same_outcome(copy, whole)


# refused, with nothing changed


def another_data_set(tiny_dataset: Path, folder: Path) -> Path:
    """The same slices under another fingerprint."""
    copied = Path(shutil.copytree(tiny_dataset, folder))
    values = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps({**values, "fingerprint": "0" * 64}))
    return copied


def test_another_run_in_the_folder_is_refused_by_name_and_kept_as_it_is(tiny_dataset, copy, tmp_path):
    other = another_data_set(tiny_dataset, tmp_path / "other")
    broken = Path(shutil.copytree(copy, tmp_path / "broken"))
    for path in (broken / "checkpoints").glob("step-*.npz"):
        os.truncate(path, 1000)
    attempts = {
        "architecture: {'filters': [4, 8], 'dense': [640], 'dropout': 0.3}, now": {"architecture.dense": [32]},
        "seed: 0, now 1": {"seed": 1},
        "learning_rate: 0.001, now 0.01": {"learning_rate": 0.01},
    }
    lines = [line(tiny_dataset, copy, **changes) for changes in attempts.values()]
    lines += [line(other, copy), line(tiny_dataset, broken)]
    before = [runs.contents(folder) for folder in (copy, broken)]
    run = runs.several(lines, tmp_path / "log")
    told = run.err.splitlines()
    assert run.codes == [2] * len(lines), run.err
    assert [runs.contents(folder) for folder in (copy, broken)] == before
    assert len(told) == len(lines)
    assert all(words in text and str(copy) in text for words, text in zip(attempts, told))
    fingerprint = json.loads((tiny_dataset / "manifest.json").read_text())["fingerprint"]
    assert f"(data set: {fingerprint[:16]}, now 0000000000000000)" in told[-2]
    assert f"none of the 3 checkpoints in {broken}/checkpoints can be read; restore one, or delete" in told[-1]
