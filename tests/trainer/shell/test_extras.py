"""A base install has no TensorFlow: a command of the trainer says so in one line."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from trainer.shell import extras

TRAIN = ["python", "-m", "trainer.task", "--model", "cnn"]


def without(*names: str):
    there = importlib.util.find_spec
    return lambda name: None if name in names else there(name)


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (TRAIN, "task"),
        (["python", "-I", "-m", "trainer.compare"], "compare"),
        (["/venv/bin/python", "/venv/bin/ich-train"], "train"),
        (["C:\\venv\\python.exe", "C:\\venv\\ich-predict.exe"], "predict"),
        (["python", "-m", "trainer.score"], ""),
        (["python", "/venv/bin/ich-score"], ""),
        (["python", "-m", "pytest", "tests/trainer.task"], ""),
        (["python", "-c", "import trainer"], ""),
        (["python"], ""),
    ],
)
def test_who_needs_the_extra(line, command, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", without("keras", "tensorflow"))
    told = "tensorflow and keras not installed; pip install 'ich-tfrecords[train]' brings what it needs"
    assert extras.lacking(line) == (f"{command}: {told}" if command else "")


@pytest.mark.parametrize(("command", "package"), [("serve", "uvicorn"), ("listen", "pynetdicom")])
def test_a_command_with_an_extra_of_its_own_names_that(monkeypatch, command, package):
    monkeypatch.setattr(importlib.util, "find_spec", without(package))
    told = f"{command}: {package} not installed; pip install 'ich-tfrecords[{command}]' brings what it needs"
    assert extras.lacking(["python", "-m", f"trainer.{command}"]) == told
    assert extras.lacking(TRAIN) == ""


def test_nothing_is_said_where_nothing_is_missing():
    assert extras.lacking(TRAIN) == ""


@pytest.mark.slow  # starts processes
@pytest.mark.parametrize(
    "command",
    [
        "task",
        "evaluate",
        "compare",
        "audit",
        "embed",
        "classify",
        "predict",
        "serve",
        "listen",
        "monitor",
        "export",
        "submit",
    ],
)
def test_a_base_install_says_it_in_one_line(command, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util\nthere = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *more: None if name in {extras.NEEDED} else there(name, *more)\n"
    )
    environment = {"PYTHONPATH": f"{tmp_path}:{extras.__file__.partition('/trainer/')[0]}", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-m", f"trainer.{command}", "--help"], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"{command}: tensorflow and keras and matplotlib and sklearn and h5py not installed;")
