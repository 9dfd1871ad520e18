"""What a checkpoint of a run holds, which files stay, and whose checkpoints are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import keras
import numpy as np
import pytest

from trainer.shell.problems import WrongUse
from trainer.training import checkpoints, hparams
from trainer.training.saver import Saver, best_name
from trainer.training.state import State
from trainer.training.steps import SUMS

SETTINGS = dataclasses.asdict(hparams.resolve("cnn", None, {}))


def variables(*values: float) -> list[keras.Variable]:
    return [keras.Variable(np.full(2, value, np.float32), name=f"v{index}") for index, value in enumerate(values)]


def made(folder: Path, chief: bool = True, keep: int = 2, fingerprint: str = "a" * 64, **changes: object) -> Saver:
    identity = {"settings": {**SETTINGS, **changes}, "fingerprint": fingerprint}
    return Saver(folder / "checkpoints", variables(1, 2), variables(3), identity, keep, chief)


def at(step: int, best: int | None = None) -> State:
    state = State()
    state.add(np.full((step, len(SUMS)), 0.1))
    state.best = {} if best is None else {"value": 0.5, "epoch": 1, "step": best}
    return state


def names(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix(".npz") for path in (folder / "checkpoints").iterdir())


def told(saver: Saver) -> tuple[State | None, list[str]]:
    lines: list[str] = []
    return saver.resume(lines.append), lines


def test_it_resumes_with_variables_and_state(tmp_path):
    made(tmp_path).save(at(7))
    saver = made(tmp_path)
    for variable in (*saver.model, *saver.update):
        variable.assign(variable * 0)
    state, lines = told(saver)
    assert state.to_dict() == at(7).to_dict()
    assert [float(one[0]) for one in (*saver.model, *saver.update)] == [1, 2, 3]
    assert lines == [f"goes on from step 7 (epoch 1), saved in {tmp_path}/checkpoints/step-000000007.npz"]


def test_nothing_to_resume(tmp_path):
    assert told(made(tmp_path)) == (None, [])


def test_the_newest_and_the_best_stay(tmp_path):
    saver = made(tmp_path)
    for step in range(1, 6):
        state = at(step, best=2)
        if step == 2:
            saver.save_best(state)
        saver.save(state)
    assert names(tmp_path) == ["best-000000002", "step-000000004", "step-000000005"]


def test_the_best_before_stays_until_a_checkpoint_knows_the_new_one(tmp_path):
    """A run killed in between goes on from a checkpoint that names the old best."""
    saver = made(tmp_path)
    saver.save_best(at(2, best=2))
    saver.save(at(2, best=2))
    saver.save_best(at(4, best=4))
    assert {"best-000000002", "best-000000004"} <= set(names(tmp_path))
    saver.save(at(4, best=4))
    assert "best-000000002" not in names(tmp_path)


def test_the_best_weights_are_the_models_alone(tmp_path):
    saver = made(tmp_path)
    saver.save_best(at(2, best=2))
    saver.model[0].assign([9, 9])
    saver.load_best(at(5, best=2))
    assert saver.model[0].numpy().tolist() == [1, 1]
    assert len(checkpoints.load(tmp_path / "checkpoints/best-000000002.npz").arrays) == 2


def test_without_validation_the_newest_are_the_best():
    assert best_name(at(5)) == "best-000000005"
    assert best_name(at(5, best=3)) == "best-000000003"


def test_only_the_chief_writes(tmp_path):
    saver = made(tmp_path, chief=False)
    saver.save(at(1))
    saver.save_best(at(1))
    assert not (tmp_path / "checkpoints").exists()
    made(tmp_path).save(at(3))
    assert told(saver)[0].step == 3  # the others read


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "seed: 0, now 1"),
        ({"learning_rate": 1e-4, "batch_size": 64}, "batch_size: 32, now 64; learning_rate: 0.001, now 0.0001"),
        ({"fingerprint": "b" * 64}, f"data set: {'a' * 16}, now {'b' * 16}"),
        ({"architecture": {"dense": [8]}}, "now {'dense': [8]}"),
    ],
)
def test_another_run_is_refused_by_name_before_anything_is_assigned(tmp_path, changes, words):
    made(tmp_path).save(at(3))
    saver = made(tmp_path, **changes)
    saver.model[0].assign([7, 7])
    with pytest.raises(WrongUse) as error:
        told(saver)
    assert words in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
    assert saver.model[0].numpy().tolist() == [7, 7]


def test_what_only_says_how_long_and_where_may_change(tmp_path):
    made(tmp_path).save(at(3))
    free = {
        "epochs": 99,
        "patience": 3,
        "strategy": "mirrored",
        "steps_per_call": 9,
        "checkpoint_minutes": 1,
        "keep": 1,
    }
    assert told(made(tmp_path, **free))[0].step == 3


def test_a_broken_newest_is_left_aside_and_only_broken_ones_are_refused(tmp_path):
    saver = made(tmp_path)
    for step in (3, 4):
        saver.save(at(step))
    (tmp_path / "checkpoints/step-000000004.npz").write_bytes(b"torn")
    state, lines = told(saver)
    assert state.step == 3
    assert len(lines) == 2
    assert "step-000000004.npz" in lines[0]
    (tmp_path / "checkpoints/step-000000003.npz").write_bytes(b"")
    with pytest.raises(WrongUse, match=r"none of the 2 checkpoints in .* can be read; restore one, or delete them"):
        told(saver)


def test_averages_that_an_earlier_version_kept_are_refused(tmp_path):
    """Keras named them so; they can neither be put right nor be left out without a word."""
    kept = keras.Variable(np.ones(2, np.float32), name="logits_kernel_average")
    earlier = dataclasses.replace(made(tmp_path), update=[*variables(3), kept])
    earlier.save(at(7))
    with pytest.raises(WrongUse) as raised:
        made(tmp_path).resume(lambda line: None)
    assert str(raised.value) == (
        f"{tmp_path}/checkpoints/step-000000007.npz: its averaged weights (ema) are of an earlier version, which "
        "averaged them wrongly; train anew in another --job_dir; what that run has exported can still be used"
    )
