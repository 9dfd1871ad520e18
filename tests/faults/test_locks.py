"""Two launchers on one output, and what a dead one leaves."""

from __future__ import annotations

import subprocess
import sys

import pytest
from faulty_runs import PausedRun, flags, only_line, sha256s

from ich_tfrecords.conversion import job


def test_the_second_launcher_refuses_and_the_first_one_finishes(dataset, synthetic_set, tmp_path, convert, capsys):
    output = tmp_path / "out"
    command = flags(synthetic_set.output, output)
    with PausedRun(tmp_path / "pauses", command, "index") as run:
        run.reached("index")
        before = sha256s(output)
        assert convert(*command) == 2
        assert f"another conversion is writing to {output}" in only_line(capsys.readouterr().err)
        assert sha256s(output) == before
        run.go_on("index")
        code, error = run.ended()
    assert code == 0, error
    assert sha256s(output) == sha256s(dataset)


def test_the_refusal_names_the_first(tmp_path):
    code = (
        "import sys; from pathlib import Path; from ich_tfrecords.conversion import job; "
        "job.claim(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(job.JobError, match=f"process {process.pid}"):
            job.claim(tmp_path / "out")
        process.kill()


@pytest.mark.parametrize("left", ["", "4194304", "not a number"])
def test_the_lock_file_of_a_dead_process_holds_nobody_up(unfinished_copy, finishes, left):
    """The kernel drops the lock with its process; the file and what stands in it mean nothing."""
    (unfinished_copy / ".work" / "lock").write_text(left)
    finishes(unfinished_copy)
