"""The package as people install it: a wheel in a clean folder, its commands, and every file that one of them reads."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from clean_environment import ROOT, CleanEnvironment, checkout

pytestmark = pytest.mark.slow

SCRIPTS = {
    **{f"ich-{name}": f"ich_tfrecords.{name}" for name in ("inspect", "kaggle", "synthetic")},
    "ich-convert": "beam_pipelines.convert",
    "ich-train": "trainer.task",
    **{
        f"ich-{name}": f"trainer.{name}"
        for name in (
            *("evaluate", "compare", "audit", "embed", "classify", "predict", "serve", "listen", "monitor", "export"),
            *("submit", "score"),
        )
    },
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    flags = ("--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "wheel", *flags, "--wheel-dir", folder / "built", checkout(folder)]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    [path] = (folder / "built").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory) -> CleanEnvironment:
    made = CleanEnvironment(tmp_path_factory.mktemp("clean"))
    made.install(wheel)
    return made


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {
        str(path.relative_to(ROOT))
        for package in ("ich_tfrecords", "beam_pipelines", "trainer")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == wanted | {f"ich_tfrecords/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}


def test_the_house_of_the_wheel_is_the_only_one_loaded(clean):
    code = "import ich_tfrecords.spec as one, trainer.task as two; print(one.__file__, two.__file__, sep='\\n')"
    for place in clean.python("-c", code).split():
        assert Path(place).is_relative_to(clean.site)


@pytest.mark.parametrize("module", SCRIPTS.values())
def test_each_command_helps(module, clean):
    assert clean.python("-m", module, "--help").startswith(f"usage: python -m {module}")


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_is_its_command(script, clean):
    assert clean.run(script, "--help").startswith(f"usage: python -m {SCRIPTS[script]}")


def test_setup_names_these_scripts():
    named = re.findall(r'"(ich-[\w-]+)=([\w.]+?)(?:\.command)?:main"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    assert dict(named) == SCRIPTS
