"""An environment that has this package installed, and nothing of the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]


def checkout(folder: Path) -> Path:
    """A copy of what the package is built from: building leaves files behind, and other tests run beside this one."""
    for name in ("ich_tfrecords", "beam_pipelines", "trainer", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


class CleanEnvironment:
    """A clean environment, into which pip installs.

    It sees this environment's dependencies through a .pth file, since fetching Beam would take minutes and a network. A
    folder named there adds its packages, but its own .pth files, an editable install's among them, do not count.
    pip and setuptools come the same way.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder, symlinks=True)
        places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (self.site / "dependencies.pth").write_text("\n".join(places))

    @property
    def site(self) -> Path:
        """Where packages are installed."""
        return next((self.folder / "lib").glob("python*/site-packages"))

    def install(self, archive: Path) -> None:
        """Install a wheel or a source archive, and nothing that it needs."""
        flags = ("--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", "--no-warn-script-location")
        self.python("-m", "pip", "install", "--quiet", "--disable-pip-version-check", *flags, archive)

    def python(self, *arguments: object) -> str:
        """What Python says on standard output, isolated: no PYTHONPATH, no folder of the script."""
        return self.run("python", "-I", *arguments)

    def run(self, program: str, *arguments: object) -> str:
        """What a program of the environment says on standard output."""
        words = [self.folder / "bin" / program, *arguments]
        done = subprocess.run([*map(str, words)], cwd=self.folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout
