from __future__ import annotations

import errno
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords.storage import atomic
from trainer.shell.problems import TrainingFailed, WrongUse
from trainer.training import run_dir
from trainer.training.run_dir import RunDir

ROOT = Path(__file__).parents[3]
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    made.create()
    return made


def bits(row: dict) -> dict:
    return {key: value if isinstance(value, int) else struct.pack("<d", value) for key, value in row.items()}


# the folder


def test_the_parts_have_their_names(tmp_path):
    run = RunDir(tmp_path / "a" / "run")
    run.create()
    run.create()  # an existing run is opened, not refused
    assert {path.name for path in run.path.iterdir()} == {"checkpoints"}
    parts = (run.config, run.history, run.metrics, run.result, run.inputs, run.checkpoints, run.export)
    assert [part.relative_to(run.path).as_posix() for part in parts] == [
        *("config.yaml", "history.csv", "metrics.jsonl", "result.json", "inputs.png"),
        *("checkpoints", "export"),
    ]
    assert run.tensorboard == str(run.path / "tensorboard")


def test_parts_may_lie_elsewhere(tmp_path):
    run = RunDir(tmp_path / "run", tmp_path / "ck", "gs://bucket/logs", tmp_path / "model")
    run.create()
    assert (tmp_path / "ck").is_dir()
    assert list(run.path.iterdir()) == []
    assert (run.checkpoints, run.tensorboard, run.export) == (tmp_path / "ck", "gs://bucket/logs", tmp_path / "model")


def test_a_place_that_cannot_be_written_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    places = {
        tmp_path / "file": "is a file, not a folder",
        tmp_path / "file" / "run": "Not a directory",
        Path("/proc/nothing/run"): "cannot write to /proc/nothing/run",
        Path("gs://bucket/run"): "is in a bucket",
    }
    for place, text in places.items():
        with pytest.raises(WrongUse, match=text) as caught:
            RunDir(place).create()
        assert "\n" not in str(caught.value)
    with pytest.raises(WrongUse, match="is a file"):
        RunDir(tmp_path / "run", checkpoints=tmp_path / "file").create()
    assert not Path("gs:").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(WrongUse, match="Permission denied"):
        RunDir(tmp_path).create()


# the lock

HOLD = """
import sys, time
from pathlib import Path
from trainer.training.run_dir import RunDir
with RunDir(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_second_run_is_refused_with_the_first_one_s_pid_and_a_killed_one_leaves_no_lock(run):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, run.path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(WrongUse, match=f"in use by process {holder.pid} on ") as caught, run.lock():
            pass
        assert "\n" not in str(caught.value)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with run.lock(), pytest.raises(WrongUse, match=f"process {os.getpid()} on "), RunDir(run.path).lock():
        pass
    with run.lock():
        pass


def test_the_lock_goes_with_an_error_and_closes_the_log(run):
    def fail() -> None:
        with run.lock():
            run.log({"step": 1})
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with run.lock():
        assert run.metrics.read_text() == '{"step": 1}\n'


def test_the_holder_of_the_lock_clears_what_killed_writers_left(run):
    (run.path / f"history.csv.0{atomic.TEMPORARY_SUFFIX}").write_text("half")
    (run.path / f"export.0{atomic.TEMPORARY_SUFFIX}").mkdir()
    (run.path / f"export.0{atomic.TEMPORARY_SUFFIX}" / "model.keras").write_text("half")
    with run.lock():
        assert {path.name for path in run.path.iterdir()} == {"checkpoints", "lock"}


def test_a_lock_needs_a_folder(tmp_path):
    (tmp_path / "file").touch()
    refusal = f"cannot write {tmp_path}/file/run/lock: Not a directory; choose another --job_dir"
    with pytest.raises(WrongUse, match=refusal), RunDir(tmp_path / "file" / "run").lock():
        pass


# config.yaml, history.csv, result.json


def test_the_config_reads_back(run):
    assert run.read_config() is None
    run.write_config("model: cnn\nnote: blödsinn\n")
    assert run.read_config() == "model: cnn\nnote: blödsinn\n"


def test_a_part_that_cannot_be_read_is_told(run):
    run.config.mkdir()
    with pytest.raises(WrongUse, match=r"cannot read .*config.yaml"):
        run.read_config()


def test_history_text():
    rows = [
        {"epoch": 1, "loss": 0.1, "auc": NAN},
        {"epoch": np.int64(2), "loss": np.float32(0.1), "auc": np.float64(1), "late": -INF},
    ]
    text = "epoch,loss,auc,late\n1,0.1,,\n2,0.10000000149011612,1.0,-inf\n"
    assert run_dir.history_text(rows) == text


NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-(2**70), 2**70)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1, max_size=6)


@given(st.lists(NAMES, min_size=1, max_size=4, unique=True), st.data())
def test_history_reads_back_bit_for_bit(names, data):
    one_row = st.dictionaries(st.sampled_from(names), NUMBERS)
    rows = data.draw(st.lists(one_row, max_size=5).filter(lambda rows: not rows or any(rows)))
    seen = list(dict.fromkeys(name for row in rows for name in row))
    expected = [{name: row.get(name, NAN) for name in seen} for row in rows]
    for one in expected:
        one.update({name: NAN for name, value in one.items() if value != value})  # one nan for all
    assert list(map(bits, run_dir.history_rows(run_dir.history_text(rows)))) == list(map(bits, expected))


def test_history_is_replaced_as_a_whole(run):
    assert run.read_history() == []
    run.write_history([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}])
    run.write_history([{"epoch": 1, "loss": 0.5}])
    assert run.read_history() == [{"epoch": 1, "loss": 0.5}]
    run.write_history([])
    assert run.read_history() == []


@pytest.mark.parametrize("text", ["epoch,loss\n1,0.5,3\n", "epoch,loss\n1\n", "epoch\nx\n"])
def test_a_damaged_history_is_told(run, text):
    run.history.write_text(text)
    with pytest.raises(WrongUse, match=r"history.csv is damaged"):
        run.read_history()


def test_the_result_is_json_without_nan(run):
    values = {"auc": NAN, "counts": np.arange(3), "loss": np.float32(0.5), "on": np.True_, "deep": [{"x": (INF, 1)}]}
    run.write_result(values)
    assert json.loads(run.result.read_text()) == {
        **{"auc": None, "counts": [0, 1, 2], "loss": 0.5, "on": True},
        "deep": [{"x": [None, 1]}],
    }


def test_a_full_disk_is_told_and_the_old_file_stays(run, monkeypatch):
    run.write_history([{"epoch": 1}])

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingFailed, match=r"history.csv: No space left on device"):
        run.write_history([{"epoch": 1}, {"epoch": 2}])
    assert run.read_history() == [{"epoch": 1}]
    assert not list(run.path.glob("*.tmp"))


# metrics.jsonl


def test_each_line_is_there_at_once_and_an_epoch_closes_the_file(run):
    run.log({"step": 1, "loss": NAN, "names": ["a"]})
    assert run.metrics.read_text() == '{"step": 1, "loss": null, "names": ["a"]}\n'
    run.write_history([])
    run.log({"step": np.int64(2)})
    assert run.metrics.read_text().splitlines()[1:] == ['{"step": 2}']
    run.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_on_a_full_disk_is_told(run):
    run.metrics = Path("/dev/full")
    with pytest.raises(TrainingFailed, match="/dev/full: No space left"), run.lock():
        run.log({"step": 1})


def test_a_resumed_run_cuts_its_log(run):
    run.cut_log(3)  # nothing to cut
    assert not run.metrics.exists()
    for step in (1, 2, 3, 4):
        run.log({"step": step})
    run.cut_log(2)
    run.log({"step": 3, "again": 1})
    run.close()
    assert run.metrics.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "again": 1}\n'


@pytest.mark.parametrize("torn", ['{"step": 2', '{"step": 2}', '{"step": 2,\n', "\0\0\0", "5\n", '{"s": "ä'])
def test_a_torn_last_line_goes(run, torn):
    data = torn.encode()
    run.metrics.write_bytes(b'{"step": 1}\n' + (data[:-1] if torn.endswith("ä") else data))  # inside a character
    run.cut_log(9)
    assert run.metrics.read_text() == '{"step": 1}\n'


def test_lines_without_a_step_go_with_their_neighbours():
    text = '{"a": 0}\n{"step": 1}\n{"a": 1, "step": null}\n{"step": 2}\n{"a": 2}\n'
    assert run_dir.lines_until(text, 1) == '{"a": 0}\n{"step": 1}\n{"a": 1, "step": null}\n'


@given(st.lists(st.integers(0, 20)).map(sorted), st.integers(-1, 21), st.data())
def test_cutting_is_as_if_the_run_had_ended_there(steps, step, data):
    lines = [run_dir.json_text({"step": one, "text": data.draw(st.text(max_size=4))}) + "\n" for one in steps]
    expected = "".join(line for line, one in zip(lines, steps) if one <= step)
    text = "".join(lines)
    assert run_dir.lines_until(text, step) == expected
    torn = text[: len(text) - 1]
    assert run_dir.lines_until(torn, 99) == "".join(lines[:-1])
