"""What other projects left in the environment: taken away by a table, and no command's result goes by it."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from doors import DOORS, PROXY
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords import environment

ROOT = Path(__file__).parents[2]
LOCAL = "localhost,127.0.0.1,::1"
WORKERS = ("--direct_num_workers", "2", "--direct_running_mode", "multi_processing")


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, {}),
        ({"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1", "TF_CONFIG": "{}"}, {}),
        ({"MPLBACKEND": "module://ipykernel"}, {"MPLBACKEND": None}),
        ({"API_ENDPOINT_OVERRIDE": "http://a", "API_KEY": "b"}, {"API_ENDPOINT_OVERRIDE": None}),
        ({"MPLCONFIGDIR": "/x", "XPANDAS_A": "1", "PANDAS_": "1"}, {}),
        ({"PANDAS_FUTURE": "1", "SKLEARN_SEED": "x"}, {"PANDAS_FUTURE": None, "SKLEARN_SEED": None}),
        ({"NUMBA_CACHE_DIR": "/tmp/x", "NUMBA_DISABLE_JIT": "1"}, {"NUMBA_CACHE_DIR": None, "NUMBA_DISABLE_JIT": None}),
        ({"PYTHONWARNINGS": "default"}, {}),
        ({"PYTHONWARNINGS": "ignore, e::UserWarning"}, {"PYTHONWARNINGS": None}),
        ({"http_proxy": PROXY}, {"no_grpc_proxy": LOCAL}),
        ({"http_proxy": ""}, {}),
        ({"HTTP_PROXY": PROXY}, {}),  # gRPC reads the small one alone
        ({"grpc_proxy": PROXY, "no_proxy": "a.b,localhost"}, {"no_grpc_proxy": "a.b,localhost,127.0.0.1,::1"}),
        ({"https_proxy": PROXY, "no_proxy": "a", "no_grpc_proxy": "b"}, {"no_grpc_proxy": f"b,{LOCAL}"}),
    ],
)
def test_changes(environ, wanted):
    assert environment.changes(environ) == wanted


names = st.sampled_from([*DOORS, "no_grpc_proxy", "grpc_proxy", "PATH", "TF_CONFIG"])


@given(st.dictionaries(names, st.text("abc,:.=0", max_size=8)))
def test_once_changed_nothing_is_left_to_change(environ):
    wanted = environment.changes(environ)
    assert all(value is not None or name in environ for name, value in wanted.items())
    environment.apply(environ, wanted)
    assert set(environment.changes(environ)) <= {"no_grpc_proxy"}
    again = dict(environ)
    environment.apply(again, environment.changes(environ))
    assert again == environ


@pytest.mark.parametrize(
    ("options", "found"),
    [([], False), ([""], False), (["error"], True), (["default", "err:x:UserWarning"], True), (["always"], False)],
)
def test_options_that_make_errors(options, found):
    assert environment.makes_errors(options) is found


def test_a_user_without_a_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert environment.expanded("~/a") == tmp_path / "a"
    assert environment.expanded("~nobody-of-this-name/a") == Path("~nobody-of-this-name/a")
    assert environment.expanded(Path("a")) == Path("a")


def python(*command: object, **environ: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own; `environ` is added to the environment."""
    line = [sys.executable, *map(str, command)]
    return subprocess.run(line, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, timeout=300)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


@pytest.mark.slow
@pytest.mark.long
def test_a_conversion_by_workers_goes_by_none_of_them(synthetic_set, dataset, tmp_path):
    """A proxy made it wait without end, for workers talk to the launcher through gRPC."""
    folder, output = synthetic_set.output, tmp_path / "rsna_ich"
    flags = ("--input", folder / "stage_2_train", "--labels", folder / "stage_2_train.csv", "--output", output)
    done = python("-m", "beam_pipelines.convert", *flags, *WORKERS, **DOORS)
    assert done.returncode == 0, done.stderr
    assert "rror" not in done.stderr
    assert "arning" not in done.stderr
    assert digests(output) == digests(dataset)


@pytest.mark.slow
def test_the_library_commands_go_by_none_of_them(dataset, tmp_path):
    plain = python("-m", "ich_tfrecords.inspect", "info", dataset)
    told = python("-m", "ich_tfrecords.inspect", "info", dataset, **DOORS)
    assert (told.returncode, told.stdout, told.stderr) == (0, plain.stdout, "")
    made = ("--patients", 2, "--test_patients", 1, "--slices_per_study", 2)
    for name, more in (("plain", {}), ("told", DOORS)):
        done = python("-m", "ich_tfrecords.synthetic", "--output", tmp_path / name, *made, **more)
        assert done.returncode == 0
        assert re.fullmatch(r"draw \[#+\] 6/6 slices, .* in all\n", done.stderr)
    assert digests(tmp_path / "plain") == digests(tmp_path / "told")


@pytest.mark.slow
def test_beam_without_its_texts_is_refused_in_one_line():
    done = python("-m", "beam_pipelines.convert", "--help", PYTHONOPTIMIZE="2")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "convert: PYTHONOPTIMIZE=2 (or -OO) takes texts away that Apache Beam needs; unset it\n"


@pytest.mark.slow
def test_a_locale_that_cannot_name_the_files_is_blamed_itself(tmp_path):
    (tmp_path / "Müller").mkdir()
    (tmp_path / "Müller" / "a.dcm").write_bytes(b"x")
    legacy = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    flags = ("--input", tmp_path, "--labels", "none", "--output", tmp_path / "out")
    done = python("-m", "beam_pipelines.convert", *flags, **legacy)
    assert done.returncode == 2
    assert done.stderr.startswith(f"convert: {tmp_path}: Python reads the file name 'M")
    assert done.stderr.endswith("as ascii, by PYTHONUTF8 or the locale; set PYTHONUTF8=1\n")
    assert done.stderr.count("\n") == 1
