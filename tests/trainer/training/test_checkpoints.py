"""Checkpoints: bit for bit, whole or not there, and the way back when one is broken."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import tracemalloc
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ich_tfrecords.storage import atomic
from trainer.shell.problems import TrainerError, TrainingFailed, WrongUse
from trainer.training import checkpoints
from trainer.training.checkpoints import Checkpoint, DamagedCheckpoint, step_name

ARRAYS = [
    np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    np.array([1.5, -0.0, np.nan, np.inf], ml_dtypes.bfloat16),
    np.array([4000000001, 7], np.uint32),
    np.array(3, np.int64),
    np.array(True),
    np.zeros((0, 5), np.float16),
    np.array(0.125, ml_dtypes.bfloat16),
    np.asfortranarray(np.random.default_rng(0).normal(size=(3, 4))),
    np.arange(20, dtype=np.int32)[::2],
]
NAMES = [f"layer/{index}" for index in range(len(ARRAYS))]
STATE = {"step": 123, "best": -math.inf, "loss": 0.1 + 0.2, "history": [{"epoch": 1}], "ü": None}


def save(folder: Path, name: str = "step-000000123", arrays=ARRAYS, state=STATE) -> Path:
    return checkpoints.save(folder, name, arrays, NAMES[: len(arrays)], state)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def assert_same_bits(found, expected) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert type(one) is np.ndarray
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()


def test_a_round_trip_keeps_every_bit(tmp_path):
    path = save(tmp_path / "deeper" / "checkpoints")
    assert path == tmp_path / "deeper" / "checkpoints" / "step-000000123.npz"
    found = checkpoints.load(path)
    assert_same_bits(found.arrays, ARRAYS)
    assert (found.names, found.state, found.path) == (NAMES, STATE, path)
    assert names_in(path.parent) == {path.name}


DTYPES = st.sampled_from(["float32", "float16", "float64", "int64", "uint32", "bool", "uint8"])
DRAWN = DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=3)))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(DRAWN, max_size=4), st.dictionaries(st.text(), st.floats(allow_nan=False) | st.integers()))
def test_any_arrays_and_state_round_trip(tmp_path_factory, arrays, state):
    folder = tmp_path_factory.mktemp("drawn")
    names = [f"é {index}" for index in range(len(arrays))]
    found = checkpoints.load(checkpoints.save(folder, "best-auc", arrays, names, state))
    assert_same_bits(found.arrays, arrays)
    assert (found.names, found.state) == (names, state)


def test_numpy_opens_the_file(tmp_path):
    with np.load(save(tmp_path), allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["arrays/00000"], ARRAYS[0])
        assert archive["arrays/00001"].dtype == np.uint16  # the .npy format has no bfloat16: its bits
        assert json.loads(archive["state.json"])["state"]["step"] == 123


def test_the_same_values_give_the_same_bytes(tmp_path):
    assert save(tmp_path / "a").read_bytes() == save(tmp_path / "b").read_bytes()


def test_names_must_be_as_many_as_arrays(tmp_path):
    with pytest.raises(ValueError, match="1 names for 2 arrays"):
        checkpoints.save(tmp_path, "best", ARRAYS[:2], NAMES[:1], {})


def test_objects_are_neither_written_nor_read(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        save(tmp_path, arrays=[np.array([{}], object)])
    assert names_in(tmp_path) == set()


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    return save(tmp_path_factory.mktemp("good")).read_bytes()


@pytest.mark.slow
def test_every_truncation_is_found(good, tmp_path):
    path = tmp_path / "cut.npz"
    for length in [*range(0, 300), *range(300, len(good), 7), len(good) - 1]:
        path.write_bytes(good[:length])
        with pytest.raises(DamagedCheckpoint, match=f"cut.npz: its {length:,} bytes do not end in their own sha256"):
            checkpoints.load(path)


@pytest.mark.slow
def test_every_flipped_byte_is_found(good, tmp_path):
    """Headers, names, times, values, directory and digest: all of them."""
    path = tmp_path / "flipped.npz"
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
        with pytest.raises(DamagedCheckpoint):
            checkpoints.load(path)


def signed(data: bytes) -> bytes:
    """The data with the digest it should end in, so that the next check is reached."""
    out = io.BytesIO()
    signing = checkpoints._Signing(out)
    signing.write(data + b"0" * 64)
    signing.finish()
    return out.getvalue()


def test_other_files_are_no_checkpoints(tmp_path, good):
    path = tmp_path / "odd.npz"
    np.savez(path, a=np.zeros(3))
    plain = path.read_bytes()
    newer = good[:-64].replace(b'"format": 1', b'"format": 2')  # breaks a crc32 too, which is met first
    for data in (plain, signed(plain), signed(b""), signed(newer), good + b"\n", b"\0" * 5000):
        path.write_bytes(data)
        with pytest.raises(DamagedCheckpoint, match=r"odd\.npz: ") as caught:
            checkpoints.load(path)
        assert "\n" not in str(caught.value)


def test_a_format_of_the_future_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_FORMAT", 2)
    path = save(tmp_path)
    monkeypatch.undo()
    with pytest.raises(DamagedCheckpoint, match="its format is 2 and this version knows 1"):
        checkpoints.load(path)


def test_no_file_and_no_permission_to_read(tmp_path, monkeypatch):
    with pytest.raises(WrongUse, match=r"step-1.npz: there is no such checkpoint"):
        checkpoints.load(tmp_path / "step-1.npz")
    (tmp_path / "step-2.npz").mkdir()
    with pytest.raises(DamagedCheckpoint, match=r"step-2.npz: cannot be read, Is a directory"):
        checkpoints.load(tmp_path / "step-2.npz")
    assert (DamagedCheckpoint.exit_code, issubclass(DamagedCheckpoint, TrainerError)) == (2, True)


@pytest.mark.parametrize("fits", [0, 100, 1000])
def test_a_full_disk_leaves_the_earlier_ones_whole(tmp_path, monkeypatch, fits):
    earlier = [save(tmp_path, "step-000000100"), save(tmp_path)]
    before = [path.read_bytes() for path in earlier]
    written = 0

    class Full(io.FileIO):
        def write(self, data):
            nonlocal written
            written += len(data)
            if written > fits:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    monkeypatch.setattr(Path, "open", lambda path, mode: Full(path, mode))
    # the file that is written again is the one at stake
    with pytest.raises(TrainingFailed, match=r"step-000000123.npz: cannot be written, No space left") as caught:
        save(tmp_path)
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert [path.read_bytes() for path in earlier] == before
    assert names_in(tmp_path) == {path.name for path in earlier}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_that_is_full_only_when_flushed(tmp_path, monkeypatch):
    """The buffer takes the bytes, and the error comes with fsync or close."""
    real_open = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: real_open(Path("/dev/full"), mode))
    with pytest.raises(TrainingFailed, match="No space left on device"):
        save(tmp_path, arrays=[])
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("place", ["open", "replace", "mkdir"])
def test_no_permission_is_one_line(tmp_path, monkeypatch, place):
    def refusing(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, place, refusing)
    with pytest.raises(TrainingFailed, match=r"step-000000123.npz: cannot be written, Permission denied"):
        save(tmp_path)
    monkeypatch.undo()
    assert names_in(tmp_path) == set()


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(TrainingFailed, match="File exists"):
        save(tmp_path / "run")
    with pytest.raises(WrongUse, match="run: cannot be listed, Not a directory"):
        checkpoints.newest(tmp_path / "run", print)


def test_an_unreadable_folder_is_not_an_empty_one(tmp_path, monkeypatch):
    save(tmp_path)

    def refusing(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refusing)
    with pytest.raises(WrongUse, match="cannot be listed, Permission denied"):
        checkpoints.newest(tmp_path, print)


@pytest.mark.slow
def test_writing_holds_no_second_copy(tmp_path):
    arrays = [np.ones(16 << 20, np.uint8) for _ in range(6)]
    tracemalloc.start()
    try:
        path = checkpoints.save(tmp_path, "best", arrays, NAMES[:6], {})
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 56 << 20  # the chunks in flight of one array, not six arrays
    assert_same_bits(checkpoints.load(path).arrays, arrays)


def test_step_names_sort_as_steps():
    assert step_name(123) == "step-000000123"
    assert sorted([step_name(1000), step_name(99)]) == [step_name(99), step_name(1000)]


def test_newest_falls_back_over_the_broken_ones(tmp_path):
    for step in (7, 80, 9, 999_999_999, 10**9):  # ten digits sort as numbers, not as text
        save(tmp_path, step_name(step), state={"step": step})
    save(tmp_path, "best-auc", state={"step": 5000})
    (tmp_path / "step-abc.npz").write_bytes(b"not ours")
    (tmp_path / "step-2000000000.npz.12ab.tmp").write_bytes(b"half")
    lines: list[str] = []
    assert checkpoints.newest(tmp_path, lines.append).state == {"step": 10**9}
    assert lines == []
    for step in (999_999_999, 10**9):
        path = tmp_path / f"{step_name(step)}.npz"
        path.write_bytes(path.read_bytes()[:-1])
    assert checkpoints.newest(tmp_path, lines.append).state == {"step": 80}
    assert ["step-1000000000" in lines[0], "step-999999999" in lines[1], len(lines)] == [True, True, 2]
    assert not any("\n" in line for line in lines)
    assert len(list(tmp_path.iterdir())) == 8  # left aside, not deleted


def test_newest_of_nothing(tmp_path):
    lines: list[str] = []
    assert checkpoints.newest(tmp_path / "absent", lines.append) is None
    assert checkpoints.newest(tmp_path, lines.append) is None
    assert lines == []
    (tmp_path / "step-000000001.npz").write_bytes(b"")
    assert checkpoints.newest(tmp_path, lines.append) is None
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("keep", "also", "left"),
    [
        (2, (), {"step-000000030", "step-000000040"}),
        (9, ("best-b",), {"step-000000010", "step-000000020", "step-000000030", "step-000000040", "best-b"}),
        (1, {"step-000000010", "best-a"}, {"step-000000040", "step-000000010", "best-a"}),
        (0, (), set()),
    ],
)
def test_prune_keeps_what_it_must(tmp_path, keep, also, left):
    for name in (step_name(10), step_name(20), step_name(30), step_name(40), "best-a", "best-b"):
        save(tmp_path, name, arrays=[])
    others = {"history.csv", "config.yaml", "step-x.npz", "history.csv.0f.tmp"}
    for name in (*others, f"step-000000050.npz.{'0f' * 16}.tmp", f"best-a.npz.{'a1' * 16}.tmp"):
        (tmp_path / name).write_text("half")
    checkpoints.prune(tmp_path, keep, also)
    assert names_in(tmp_path) == others | {f"{name}.npz" for name in left}


def test_prune_clears_what_a_killed_writer_left(tmp_path, monkeypatch):
    """The real temporary name, so that a change of `atomic` cannot leave them lying."""
    monkeypatch.setattr(Path, "unlink", lambda *args, **kwargs: None)  # as if killed before
    monkeypatch.setattr(Path, "replace", lambda *args: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(TrainingFailed):
        save(tmp_path)
    monkeypatch.undo()
    [left] = tmp_path.iterdir()
    assert left.suffix == atomic.TEMPORARY_SUFFIX
    checkpoints.prune(tmp_path, 3, ())
    assert list(tmp_path.iterdir()) == []


def test_prune_tells_what_it_cannot_delete(tmp_path, monkeypatch):
    checkpoints.prune(tmp_path / "absent", 1, ())
    save(tmp_path, arrays=[])

    def refusing(path, missing_ok):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refusing)
    with pytest.raises(TrainingFailed, match=r"step-000000123.npz: cannot be deleted, Permission denied"):
        checkpoints.prune(tmp_path, 0, ())


def model_and_optimizer() -> list:
    keras.utils.clear_session()
    layers = [keras.layers.Dense(3, name="dense"), keras.layers.Dropout(0.5, seed=1), keras.layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((4,)), *layers], name="model")
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    for index, weight in enumerate(model.trainable_variables):
        weight.assign(keras.ops.ones_like(weight) * (index + 0.1))
    return [*model.variables, *optimizer.variables]


@pytest.mark.slow
def test_keras_variables_round_trip(tmp_path):
    variables = model_and_optimizer()
    before = checkpoints.values(variables)
    names = checkpoints.names(variables)
    assert len(set(names)) == len(names)
    path = checkpoints.save(tmp_path, "best", before, names, {})
    for variable in variables:
        variable.assign(keras.ops.ones_like(variable) * 5)
    assert not any((array == 5).all() for array in before)  # copies, not views
    fresh = model_and_optimizer()
    checkpoints.assign(fresh, checkpoints.load(path))
    assert_same_bits(checkpoints.values(fresh), before)


def tf_variables() -> list[tf.Variable]:
    made = [
        tf.Variable([[1.0, 2.0]], name="kernel"),
        tf.Variable([1.5, -2.5], dtype=tf.bfloat16, name="half"),
        tf.Variable(tf.constant([4000000001, 3], tf.uint32), name="seed"),
    ]
    return [*made, tf.Variable(7, dtype=tf.int64, name="step"), tf.Variable(True, name="done")]


def test_tf_variables_round_trip(tmp_path):
    variables = tf_variables()
    before = checkpoints.values(variables)
    assert [array.dtype.name for array in before] == ["float32", "bfloat16", "uint32", "int64", "bool"]
    path = checkpoints.save(tmp_path, "best", before, checkpoints.names(variables), {})
    variables[0].assign_add([[1.0, 1.0]])
    assert before[0].tolist() == [[1, 2]]
    variables[1].assign([0, 0])
    checkpoints.assign(variables, checkpoints.load(path))
    assert_same_bits(checkpoints.values(variables), before)


def changed(at: int, name: str | None = None, array: np.ndarray | None = None) -> Checkpoint:
    variables = tf_variables()
    names, arrays = checkpoints.names(variables), checkpoints.values(variables)
    arrays[0] += 1
    names[at] = name or names[at]
    arrays[at] = arrays[at] if array is None else array
    return Checkpoint(arrays, names, {}, Path("runs/a/step-1.npz"))


WHOLE = changed(0)
OTHERS = {
    "shape": (changed(1, array=np.zeros(3, ml_dtypes.bfloat16)), "variable 1 is 'half:0' bfloat16[3]"),
    "dtype": (changed(2, array=np.zeros(2, np.int32)), "variable 2 is 'seed:0' int32[2]"),
    "name": (changed(3, name="steps:0"), "variable 3 is 'steps:0' int64[], of 5, and the model and optimizer"),
    "fewer": (
        Checkpoint(WHOLE.arrays[:4], WHOLE.names[:4], {}, WHOLE.path),
        "variable 4 is nothing more, of 4, and the model and optimizer built here have 'done:0' bool[], of 5",
    ),
    "more": (
        Checkpoint([*WHOLE.arrays, np.zeros(1)], [*WHOLE.names, "ema"], {}, WHOLE.path),
        "variable 5 is 'ema' float64[1], of 6, and the model and optimizer built here have nothing more, of 5",
    ),
}


@pytest.mark.parametrize("difference", OTHERS)
def test_another_models_checkpoint_is_refused_whole(difference):
    checkpoint, words = OTHERS[difference]
    variables = tf_variables()
    with pytest.raises(WrongUse) as caught:
        checkpoints.assign(variables, checkpoint)
    assert f"step-1.npz: {words}" in str(caught.value)
    assert_same_bits(checkpoints.values(variables), checkpoints.values(tf_variables()))
