"""Same input, spec and seed -> the same bytes, whatever the workers and however often it was killed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


def sha256s(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def command(synthetic_set, output: Path, *more: str) -> list[str]:
    folder = synthetic_set.output
    flags = ["--input", folder / "stage_2_train", "--labels", folder / "stage_2_train.csv", "--output", output, *more]
    return [sys.executable, "-m", "beam_pipelines.convert", *map(str, flags)]


SDK_WORKER = ["-m", "apache_beam.runners.worker.sdk_worker_main"]
TWO_PROCESSES = ("--direct_num_workers", "2", "--direct_running_mode", "multi_processing")


def test_two_processes_give_the_same_bytes_and_stay_light(dataset, synthetic_set, tmp_path):
    """The runner is named DirectRunner here, which must neither fetch nor start anything else."""
    output, seen = tmp_path / "out", tmp_path / "seen"
    seen.mkdir()
    # sitecustomize runs at the start of every worker and notes at its end what the worker has loaded
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, pathlib, sys\n"
        f"folder = pathlib.Path({str(seen)!r})\n"
        "def note():\n"
        "    half = folder / f'{os.getpid()}.half'\n"
        "    half.write_text(' '.join(sys.orig_argv) + '\\n' + ' '.join(sys.modules))\n"
        "    half.replace(folder / str(os.getpid()))\n"  # a worker may outlive the run and write while notes are read
        "import threading\n"
        "def watch():\n"
        "    import time\n"
        "    while True:\n"
        "        time.sleep(0.2)\n"
        "        note()\n"
        "threading.Thread(target=watch, daemon=True).start()\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    run = command(synthetic_set, output, "--runner", "DirectRunner", *TWO_PROCESSES)
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert sha256s(output) == sha256s(dataset)
    assert "rism" not in done.stderr
    assert "WARNING" not in done.stderr
    assert "INFO" not in done.stderr
    notes = [path.read_text() for path in seen.iterdir() if not path.suffix]
    workers = [note for note in notes if "sdk_worker_main" in note.splitlines()[0]]
    converting = [note for note in workers if "ich_tfrecords.conversion" in note]
    assert len(converting) >= 2
    for note in converting:
        assert not {"tensorflow", "cv2", "keras", "jinja2"} & set(note.splitlines()[1].split())


def test_five_kills_and_restarts_give_the_same_bytes(dataset, synthetic_set, tmp_path):
    output = tmp_path / "out"
    seed = random.randrange(1 << 30)
    moments = random.Random(seed)
    kills = 0
    for _ in range(40):
        process = subprocess.Popen(
            command(synthetic_set, output), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if kills < 5:
            _wait_for(_begun(output, process), 60)
            time.sleep(moments.uniform(0, 0.7))
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        _, error = process.communicate(timeout=120)
        if process.returncode == 0:
            assert sha256s(output) == sha256s(dataset), seed
            if kills == 5:
                return
            shutil.rmtree(output)  # it ended before the kill came: begin again
            continue
        assert process.returncode == -signal.SIGKILL, (seed, error)
    pytest.fail(f"five kills and a finished run did not happen in 40 attempts (seed {seed})")


def _begun(output: Path, process: subprocess.Popen):
    return lambda: (output / ".work" / "job.json").exists() or process.poll() is not None


def _wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)


def _workers(process: subprocess.Popen) -> list[psutil.Process]:
    """The two worker processes of a run, once both are there; other children, of an import, come before."""
    workers: list[psutil.Process] = []

    def started() -> bool:
        family = psutil.Process(process.pid).children(recursive=True)
        with contextlib.suppress(psutil.Error):  # one that has just ended
            workers[:] = [child for child in family if child.cmdline()[1:] == SDK_WORKER]
        return len(workers) == 2 or process.poll() is not None

    _wait_for(started, 60)
    return workers


@pytest.mark.parametrize("moment", ["index", "growing", "sidecars"])
def test_a_kill_at_a_known_moment_resumes(dataset, synthetic_set, tmp_path, moment):
    """Killed as soon as the first file of a step is there."""
    output = tmp_path / "out"
    process = subprocess.Popen(command(synthetic_set, output), cwd=ROOT, stderr=subprocess.DEVNULL)
    folder = output / ".work" / moment
    _wait_for(lambda: (folder.is_dir() and any(folder.iterdir())) or process.poll() is not None, 60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command(synthetic_set, output), cwd=ROOT, check=True, capture_output=True, timeout=120)
    assert sha256s(output) == sha256s(dataset)


def test_a_killed_worker_ends_the_run_with_one_line_and_the_next_run_finishes(dataset, synthetic_set, tmp_path):
    """Beam's local runner would wait for the dead process for ever."""
    output = tmp_path / "out"
    run = command(synthetic_set, output, *TWO_PROCESSES)
    process = subprocess.Popen(run, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    workers = _workers(process)
    time.sleep(0.5)
    workers[0].kill()
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1, error
    assert "Worker subprocess exited with return code" in error.strip().splitlines()[-1]
    assert "Traceback" not in error
    assert not [worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]
    subprocess.run(command(synthetic_set, output), cwd=ROOT, check=True, capture_output=True, timeout=120)
    assert sha256s(output) == sha256s(dataset)


def test_an_interrupt_ends_workers_too_and_says_how_to_go_on(synthetic_set, tmp_path):
    output = tmp_path / "out"
    run = command(synthetic_set, output, *TWO_PROCESSES)
    process = subprocess.Popen(run, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    _workers(process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error.strip().splitlines()[-1].endswith("interrupted; the same command goes on where this one stopped")
    assert "Traceback" not in error
    assert not psutil.wait_procs(children, timeout=10)[1]
