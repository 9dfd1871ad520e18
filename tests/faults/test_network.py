"""Faults of the network and of Cloud Storage while a conversion reads from and writes to buckets."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ich_tfrecords.dataset import manifest
from ich_tfrecords.storage import bucket_lock, buckets
from ich_tfrecords.storage.bucket_path import any_path

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bucket(bucket_server, synthetic_set) -> str:
    """A bucket with the synthetic slices, for reading."""
    name = bucket_server.bucket()
    there = bucket_server.client().bucket(name)
    for path in (synthetic_set.output / "stage_2_train").iterdir():
        there.blob(f"raw/{path.name}").upload_from_filename(path)
    there.blob("labels.csv").upload_from_filename(synthetic_set.output / "stage_2_train.csv")
    return name


@pytest.fixture
def output(gcs) -> str:
    return f"gs://{gcs.bucket()}/out"


def command(bucket: str, output: str) -> tuple[str, ...]:
    return ("--input", f"gs://{bucket}/raw", "--labels", f"gs://{bucket}/labels.csv", "--output", output)


def sha256s(place: str | Path) -> dict[str, str]:
    files = [path for path in any_path(str(place)).iterdir() if path.name != manifest.MANIFEST]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("seed", [1, 2])
def test_faults_at_random(bucket, output, gcs, dataset, convert, seed):
    """One request in eight ends in a 503, a reset or a short body."""
    gcs.random_faults(0.125, seed)
    assert convert(*command(bucket, output)) == 0
    assert {"503", "reset", "short"} <= gcs.injected.keys()
    gcs.clear()
    assert sha256s(output) == sha256s(dataset)


@pytest.mark.parametrize(
    ("match", "how"),
    [
        (r"GET .*/o\?", "503"),  # a listing
        (r"GET .*alt=media.* raw/", "short"),
        (r"GET .*alt=media.* raw/", "reset_body"),
        (r"GET .*alt=media.* raw/", "corrupt"),  # the crc32c of the listing tells
        (r"GET .*alt=media.*/index/\d+\.parquet", "corrupt"),
        (r"POST .*/upload/", "503"),
        (r"POST .*/upload/", "429"),
        (r"POST .*/upload/", "lost_answer"),
        (r"DELETE", "lost_answer"),
    ],
)
def test_a_fault_that_passes(bucket, output, gcs, dataset, convert, match, how):
    fault = gcs.fail(match, how=how, times=2, after=int("/index/" not in match))  # its one part is read once
    assert convert(*command(bucket, output)) == 0
    assert gcs.injected[how] == 2, fault
    gcs.clear()
    assert sha256s(output) == sha256s(dataset)
    assert not any_path(f"{output}/.work").exists()


@pytest.mark.parametrize(
    ("match", "stage"),
    [
        (r"GET .*/o\?.*prefix=raw", "the listing"),
        (r"GET .*alt=media.* labels\.csv", "the labels"),
        (r"GET .*alt=media.* raw/", "reading slices"),
        (r"POST .*/upload/.* out/\.work/listing", "the listing's parts"),
        (r"POST .*/upload/.* out/\.work/index", "the index"),
        (r"POST .*/upload/.* out/\.work/plan", "the plan"),
        (r"POST .*/upload/.* out/[a-z_]*-train\.tfrecord", "a shard"),
        (r"POST .*/upload/.* out/\.work/sidecars", "a sidecar"),
        (r"POST .*/upload/.* out/slices\.parquet", "the slice table"),
        (r"POST .*/upload/.* out/manifest\.json", "the manifest"),
    ],
)
def test_a_service_that_is_gone_is_one_line_and_the_same_command_goes_on(
    bucket, output, gcs, dataset, convert, capsys, monkeypatch, match, stage
):
    monkeypatch.setattr(buckets, "RETRY_S", 0.3)
    gcs.fail(match, how="503", times=None)
    code = convert(*command(bucket, output))
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert code in (1, 2), stage
    assert said.startswith("convert: "), said
    assert "503" in said, said
    assert sum(gcs.injected.values()), stage
    gcs.clear()
    assert not any_path(f"{output}/{manifest.MANIFEST}").exists()
    assert convert(*command(bucket, output)) == 0
    assert sha256s(output) == sha256s(dataset)


def test_a_killed_launcher_leaves_a_lock_that_is_taken_over(bucket, output, gcs, dataset, convert, capsys, monkeypatch):
    run = [sys.executable, "-m", "beam_pipelines.convert", *command(bucket, output)]
    gcs.fail(r"POST .*/upload/.* out/.*\.tfrecord", how="slow", times=None, after=5, seconds=0.5)
    with subprocess.Popen(run, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not any(".tfrecord-" in seen.name for seen in gcs.requests):
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    gcs.clear()
    assert convert(*command(bucket, output)) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"(process {process.pid} on " in said
    assert "last sign of life" in said
    monkeypatch.setattr(bucket_lock, "STALE_S", 0.0)
    assert convert(*command(bucket, output)) == 0
    assert sha256s(output) == sha256s(dataset)
