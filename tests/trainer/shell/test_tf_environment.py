"""What decides about TensorFlow's numbers from outside is left aside and told; what is not there is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import training_runs as runs
from doors import DOORS
from hypothesis import given
from hypothesis import strategies as st

from trainer.shell import tf_environment
from trainer.shell.problems import WrongUse

ROOT = Path(__file__).parents[3]
ASIDE = "left aside, since numbers would depend on it: "
BACKEND = {"KERAS_BACKEND": "tensorflow"}
DECIDING = {  # those with which training gave other bits, or ended in a traceback or an abort
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "TF_SET_ONEDNN_FPMATH_MODE": "BF16",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "TF_XLA_FLAGS": "--junk",
    "XLA_FLAGS": "--junk",
    "TF_FUNCTION_JIT_COMPILE_DEFAULT": "true",
    "KERAS_BACKEND": "jax",
    "KERAS_MAX_EPOCHS": "junk",
    "NVIDIA_TF32_OVERRIDE": "0",
}


@pytest.mark.parametrize(
    ("environ", "changes", "aside"),
    [
        ({}, {}, ""),
        ({"PATH": "/bin", "TF_CPP_MIN_LOG_LEVEL": "0", "OMP_NUM_THREADS": "2", "TF_VAR_zone": "a"}, {}, ""),
        ({"KERAS_HOME": "/k", "TF_USE_LEGACY_KERAS": "1", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}, {}, ""),
        ({"KERAS_BACKEND": "tensorflow"}, {}, ""),
        ({"KERAS_BACKEND": "torch"}, {}, "KERAS_BACKEND=torch"),
        ({"TF_ENABLE_ONEDNN_OPTS": "0"}, {"TF_ENABLE_ONEDNN_OPTS": None}, "TF_ENABLE_ONEDNN_OPTS=0"),
        ({"TF_ENABLE_ONEDNN_OPTS": ""}, {"TF_ENABLE_ONEDNN_OPTS": None}, ""),
        (
            {"NVIDIA_TF32_OVERRIDE": "0", "TF_DETERMINISTIC_OPS": "1"},
            {"NVIDIA_TF32_OVERRIDE": None, "TF_DETERMINISTIC_OPS": None},
            "NVIDIA_TF32_OVERRIDE=0, TF_DETERMINISTIC_OPS=1",
        ),
        ({"XLA_FLAGS": "--xla_gpu_cuda_data_dir=/c"}, {"XLA_FLAGS": "--xla_gpu_cuda_data_dir=/c"}, ""),
        (
            {"XLA_FLAGS": "--a=1 --xla_gpu_cuda_data_dir=/c"},
            {"XLA_FLAGS": "--xla_gpu_cuda_data_dir=/c"},
            "XLA_FLAGS=--a=1 --xla_gpu_cuda_data_dir=/c",
        ),
        ({"TF_XLA_FLAGS": "x" * 99}, {"TF_XLA_FLAGS": None}, f"TF_XLA_FLAGS={'x' * 60}..."),
    ],
)
def test_what_is_left_aside(environ, changes, aside):
    assert tf_environment.decide(environ, 0) == (BACKEND | changes, [f"{ASIDE}{aside}"] if aside else [])


@pytest.mark.parametrize(("value", "told"), [("3", True), ("0", False), ("", False), ("junk", False), ("-1", False)])
def test_a_number_of_threads_stays_and_is_told(value, told):
    changes, notes = tf_environment.decide({"TF_NUM_INTRAOP_THREADS": value}, 0)
    assert changes == BACKEND
    assert bool(notes) is told


@pytest.mark.parametrize(
    ("visible", "gpus", "absent"),
    [
        ("", 2, None), ("0", 2, None), ("1,0", 2, None), ("-1", 2, None), ("NoDevFiles", 2, None),
        ("GPU-8932f937", 2, None), ("2", 2, "2"), ("0, 7", 2, "7"), ("7", 0, None),
    ],
)  # fmt: skip
def test_a_gpu_that_is_not_there_is_refused(visible, gpus, absent):
    if absent is None:
        assert tf_environment.decide({"CUDA_VISIBLE_DEVICES": visible}, gpus).notes == []
        return
    with pytest.raises(WrongUse, match=f"CUDA_VISIBLE_DEVICES={visible} names GPU {absent}, and this machine has 2"):
        tf_environment.decide({"CUDA_VISIBLE_DEVICES": visible}, gpus)


def test_a_device_plugin_that_is_not_there_is_refused(tmp_path):
    name = "TF_PLUGGABLE_DEVICE_LIBRARY_PATH"
    assert tf_environment.decide({name: str(tmp_path)}, 0).notes == []
    with pytest.raises(WrongUse, match=f"{name}=/nowhere: no such file or folder; unset it"):
        tf_environment.decide({name: "/nowhere"}, 0)


names = st.sampled_from([*DECIDING, "KERAS_HOME", "PATH", "TF_CONFIG"])


@given(st.dictionaries(names, st.text("abc-= ", max_size=8)))
def test_after_the_changes_nothing_is_left_to_tell(environ):
    changes, _ = tf_environment.decide(environ, 0)
    after = {name: value for name, value in {**environ, **changes}.items() if value is not None}
    assert tf_environment.decide(after, 0) == (BACKEND | {k: v for k, v in changes.items() if v is not None}, [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, None),
        ("{", None),
        ("[1]", None),
        ("\xff", None),
        (
            '{"floatx": "float32", "epsilon": 1e-07, "backend": "tensorflow", "image_data_format": "channels_last"}',
            None,
        ),
        ('{"image_data_format": "channels_first"}', 'image_data_format "channels_first"'),
        ('{"floatx": "float16", "epsilon": 0.001, "own": 1}', 'floatx "float16", epsilon 0.001'),
    ],
)
def test_what_a_keras_json_says_otherwise(text, words, tmp_path):
    path = tmp_path / "keras.json"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    expected = [] if words is None else [f"{path} is {ASIDE}{words}"]
    assert tf_environment.keras_notes(path) == expected


@pytest.mark.parametrize("chosen", ["", "/k"])
def test_where_keras_looks(chosen, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    wanted = Path(chosen or tmp_path / ".keras") / "keras.json"
    assert tf_environment.keras_json({"KERAS_HOME": chosen}) == wanted


@pytest.mark.slow
def test_the_names_are_those_that_tensorflow_reads():
    """A name that the installed TensorFlow does not know would be told for nothing."""
    import tensorflow as tf

    folder = Path(tf.__file__).parent
    known = {name for name in DECIDING if name.startswith("TF_")}
    found: set[str] = set()
    for path in (
        *folder.glob("libtensorflow_*.so*"),
        folder / "python/eager/polymorphic_function/polymorphic_function.py",
    ):
        found |= set(re.findall("|".join(known), path.read_bytes().decode("latin-1")))
    assert found == known


@pytest.fixture(scope="module")
def settings() -> dict[str, object]:
    small = {"architecture.filters": [4, 4], "architecture.dense": [8], "batch_size": 16, "steps_per_call": 1}
    return {**small, "epochs": 1, "steps_per_epoch": 3, "deterministic": True}


def home(folder: Path) -> Path:
    """A home whose files turn Keras and matplotlib upside down."""
    for place in (folder / ".keras", folder / ".config/matplotlib"):
        place.mkdir(parents=True)
    (folder / ".keras/keras.json").write_text('{"image_data_format": "channels_first", "floatx": "float16"}')
    (folder / ".config/matplotlib/matplotlibrc").write_text("backend: nonsense\nno such: key\ntext.usetex: True\n")
    return folder


@pytest.mark.slow
@pytest.mark.long
def test_training_and_evaluation_go_by_none_of_them(tiny_dataset, settings, tmp_path):
    """The bits of a run, and the numbers and figures of its evaluation, with every door open and with none."""
    plain, told = tmp_path / "plain", tmp_path / "told"
    quiet = {"CUDA_VISIBLE_DEVICES": "-1"}
    meant = {"TF_USE_LEGACY_KERAS": "1", "TF_NUM_INTEROP_THREADS": "1"}  # read, and of no weight
    hostile = {
        **DOORS,
        **DECIDING,
        **meant,
        **quiet,
        "HOME": str(home(tmp_path / "home")),
        "MPLCONFIGDIR": "/proc/nowhere",
    }
    runs.finished(runs.flags(tiny_dataset, plain, settings), tmp_path / "a", **quiet)
    run = runs.finished(runs.flags(tiny_dataset, told, settings), tmp_path / "b", **hostile)
    assert_told(run.err, tmp_path / "home")
    assert (told / "history.csv").read_bytes() == (plain / "history.csv").read_bytes()
    assert (told / "result.json").read_bytes() == (plain / "result.json").read_bytes()
    seen = [evaluated(told, tmp_path / name, more) for name, more in (("c", quiet), ("d", hostile))]
    assert seen[0][0] == ""
    assert_told(seen[1][0], tmp_path / "home")
    assert seen[0][1] == seen[1][1]
    assert not (tmp_path / "home/.keras/models").exists()


def assert_told(err: str, folder: Path) -> None:
    """Two lines: one about all variables, one about the file."""
    lines = err.splitlines()
    assert len(lines) == 2, err
    assert lines[0].startswith(ASIDE)
    assert all(f"{name}={value}" in lines[0] for name, value in DECIDING.items())
    assert lines[1].startswith(f"{folder}/.keras/keras.json is {ASIDE}")


def evaluated(job_dir: Path, output: Path, environ: dict[str, str]) -> tuple[str, dict]:
    """What an evaluation says on stderr, and its numbers."""
    line = [sys.executable, "-m", "trainer.evaluate", "--job_dir", job_dir, "--resamples", "100", "--output", output]
    alone = {key: value for key, value in os.environ.items() if key != "TF_CONFIG"}
    done = subprocess.run(line, cwd=ROOT, env={**alone, **environ}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((output / "metrics.json").read_text())
    return done.stderr, found["measures"]
