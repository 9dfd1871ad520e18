"""Dask as the engine: the same graph on a cluster of two workers gives the same bytes as one process here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ich_tfrecords.conversion import job

distributed = pytest.importorskip("distributed", reason="Dask is not installed")


@pytest.fixture(scope="module")
def cluster():
    workers = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "host": "127.0.0.1"}
    with distributed.LocalCluster(**workers, dashboard_address=None) as made:
        yield made


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_workers_give_the_bytes_of_one_process(cluster, synthetic_set, dataset, tmp_path, convert, capsys):
    folder, output = synthetic_set.output, tmp_path / "out"
    labels = folder / "stage_2_train.csv"
    where = ("--input", folder / "stage_2_train", "--labels", labels, "--output", output)
    engine = ("--runner", "DaskRunner", "--dask_client_address", cluster.scheduler_address)
    assert convert(*where, *engine) == 0
    assert files(output) == files(dataset)
    assert "seconds  list" in capsys.readouterr().out


def test_elements_are_handed_out_one_by_one_unless_flags_say_otherwise():
    from apache_beam.runners.dask.dask_runner import DaskOptions

    from beam_pipelines import launch

    def parts(*flags: str) -> tuple[int | None, int | None]:
        options = launch.beam_options("DaskRunner", flags)
        launch._part_for_dask(options, 30)
        found = options.view_as(DaskOptions)
        return found.npartitions, found.partition_size

    assert parts() == (30, None)
    assert parts("--dask_npartitions=4") == (4, None)
    assert parts("--dask_partition_size=5") == (None, 5)


def test_without_dask_there_is_one_line(convert, synthetic_set, tmp_path, monkeypatch, capsys):
    from apache_beam.runners.dask import dask_runner

    monkeypatch.setattr(dask_runner, "ddist", {})
    folder = synthetic_set.output / "stage_2_train"
    flags = ("--input", folder, "--labels", "none", "--output", tmp_path / "out", "--runner", "DaskRunner")
    assert convert(*flags) == 2
    assert "needs Dask; install it with: pip install" in capsys.readouterr().err


def test_shards_that_cannot_be_written_are_told(cluster, synthetic_set, tmp_path, convert, capsys, monkeypatch):
    """Dask brings no counters back, so the launcher looks at what is there; the rest is written all the same."""
    write_plan, output = job.write_plan, tmp_path / "out"

    def and_a_folder_in_the_way(work, *given):
        names = write_plan(work, *given)
        (work.output / names[0]).mkdir()  # nothing can be renamed onto a folder
        return names

    monkeypatch.setattr(job, "write_plan", and_a_folder_in_the_way)
    engine = ("--runner", "DaskRunner", "--dask_client_address", cluster.scheduler_address)
    where = ("--input", synthetic_set.output / "stage_2_train", "--labels", "none", "--spec", "unlabelled")
    assert convert(*where, "--output", output, *engine) == 1
    [lost] = [path for path in output.glob("*.tfrecord-*") if path.is_dir()]
    assert f"1 shard is not written (first: {lost.name}); run the command again" in capsys.readouterr().err
    monkeypatch.undo()
    lost.rmdir()
    assert convert(*where, "--output", output, *engine) == 0
    assert convert(*where, "--output", tmp_path / "plain") == 0
    assert files(output) == files(tmp_path / "plain")


def test_a_broken_file_of_settings_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("distributed: [")
    flags = ("--runner", "DaskRunner", "--input", tmp_path, "--labels", "none", "--output", tmp_path / "out")
    line = [sys.executable, "-m", "beam_pipelines.convert", *map(str, flags)]
    environ = {**os.environ, "DASK_CONFIG": str(tmp_path)}
    root = Path(__file__).parents[2]
    done = subprocess.run(line, cwd=root, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"convert: --runner DaskRunner: A dask config file at '{tmp_path}/mine.yaml' is malf")
    assert done.stderr.endswith("; mend that file, or set DASK_CONFIG to another\n")
