"""Each extra alone: pip brings what it names into an environment that has nothing else, and its feature works there.

`make test-extras` runs it: minutes of pip each, and it needs an index that pip can reach; without one it skips and says
so.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import venv
from pathlib import Path

import pytest
from clean_environment import ROOT, checkout

from ich_tfrecords import NOT_A_DEVICE

pytestmark = [pytest.mark.slow, pytest.mark.fetches]

PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")
INSTALL_S, BEGINS_S, ENDS_S = 1200, 300, 60


class Bare:
    """An environment with an extra of this package, as a user has it after one command of pip; 3 GB while it lasts."""

    def __init__(self, folder: Path, wheel: Path, extra: str) -> None:
        self.folder = folder
        venv.create(folder / "venv", with_pip=True, symlinks=True)
        self.run(*PIP, "install", "--constraint", ROOT / "constraints.txt", f"{wheel}[{extra}]", timeout=INSTALL_S)

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder / "venv")

    def run(self, *words: object, timeout: int = 300) -> str:
        """What Python says on standard output."""
        command_line = [self.folder / "venv" / "bin" / "python", *words]
        done = subprocess.run(
            list(map(str, command_line)), cwd=self.folder, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    probe = subprocess.run(
        [sys.executable, *PIP, "download", "--no-deps", "--retries", "1", "--timeout", "15", "--dest", folder, "six"],
        capture_output=True,
    )
    if probe.returncode:
        pytest.skip("pip reaches no package index from here; extras alone are not tested")
    (folder / "source").mkdir()
    flags = ("--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder / "built")
    command_line = [sys.executable, *PIP, "wheel", *flags, checkout(folder / "source")]
    subprocess.run(list(map(str, command_line)), check=True, capture_output=True)
    [path] = (folder / "built").glob("*.whl")
    return path


def test_onnx(wheel, blob_run, tmp_path):
    code = "import onnxruntime as o; print([one.name for one in o.InferenceSession('onnx/hu.onnx').get_outputs()])"
    with Bare(tmp_path, wheel, "onnx") as bare:
        bare.run("-m", "trainer.export", "--job_dir", blob_run, "--format", "onnx", "--output", "onnx")
        assert "probabilities" in bare.run("-I", "-c", code)


def test_mlflow(wheel, tmp_path):
    with Bare(tmp_path, wheel, "mlflow") as bare:
        bare.run("-c", "from trainer.tracking import mlflow_log; mlflow_log._client('http://127.0.0.1:9')")


def test_dicom(wheel, export, synthetic_set, tmp_path):
    asked = ("--model", export.parent, "--input", synthetic_set.output / "stage_2_test", "--output", "predicted")
    with Bare(tmp_path, wheel, "dicom") as bare:
        bare.run("-m", "trainer.predict", *asked, "--dicom", "filed")
    assert list((tmp_path / "filed").rglob("report.dcm"))


@pytest.mark.parametrize("extra", ["serve", "listen"])
def test_what_waits_for_others(wheel, export, tmp_path, extra):
    """It says where it is to be found, and ends well when it is told to."""
    place = "--data" if extra == "serve" else "--spool"
    with Bare(tmp_path, wheel, extra) as bare:
        words = ("-m", f"trainer.{extra}", "--model", export.parent, "--port", "0", place, tmp_path / "kept")
        asked = [str(word) for word in (bare.folder / "venv" / "bin" / "python", *words)]
        with subprocess.Popen(asked, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            late = threading.Timer(BEGINS_S, process.kill)  # or a silent one would be waited for without an end
            late.start()
            said = []
            try:
                while not said or NOT_A_DEVICE not in said[-1]:  # the last line that it says, and flushed with it all
                    said.append(process.stdout.readline())
                    assert said[-1], said  # it ended
                process.terminate()
                process.wait(ENDS_S)
            finally:
                late.cancel()
                process.kill()
    assert "127.0.0.1:" in "".join(said)
    assert process.returncode == 0
