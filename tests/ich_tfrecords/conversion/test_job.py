from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys

import pytest

from ich_tfrecords import spec
from ich_tfrecords.conversion import job
from ich_tfrecords.conversion.job import Identity, WorkDir
from ich_tfrecords.conversion.sidecar_file import Sidecar

SIDECAR = Sidecar("s", "train", "none", 1, 10, "00", "11", {"any": 0}, [0], [0], ["ff"], [])


def identity(rsna_spec, **made_from) -> Identity:
    return Identity(rsna_spec, {"input": {"files": 2, "bytes": 10, "sha256": "a" * 64}, "labels": None} | made_from)


def test_the_same_job_resumes_and_another_is_refused(tmp_path, rsna_spec):
    work = WorkDir(tmp_path)
    job.check_identity(work, identity(rsna_spec))
    job.check_identity(work, identity(rsna_spec))
    other = identity(rsna_spec, labels={"sha256": "b" * 64})
    with pytest.raises(job.JobError, match="labels: None, now sha256 bbbbbbbbbbbb"):
        job.check_identity(work, other)
    thesis = dataclasses.replace(identity(rsna_spec), spec=spec.load("thesis_subset"))
    with pytest.raises(job.JobError, match=r"spec split\.subset\.train: None, now 42500"):
        job.check_identity(work, thesis)


def test_another_version_is_refused(tmp_path, rsna_spec, monkeypatch):
    job.check_identity(WorkDir(tmp_path), identity(rsna_spec))
    monkeypatch.setattr(job, "__version__", "99.0.0")
    with pytest.raises(job.JobError, match=r"was begun by version .*, this is 99\.0\.0"):
        job.check_identity(WorkDir(tmp_path), identity(rsna_spec))


@pytest.mark.slow
def test_the_lock_goes_with_its_process(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from ich_tfrecords.conversion import job; "
        "job.claim(Path(sys.argv[1])); print('locked', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(job.JobError, match="another conversion is writing"):
            job.claim(tmp_path / "out")
        process.kill()
    job.claim(tmp_path / "out").close()


def test_a_sidecar_comes_back(tmp_path):
    work = WorkDir(tmp_path)
    work.create()
    work.plan("s").write_bytes(b"plan")
    digest = hashlib.sha256(b"plan").hexdigest()
    assert dict(job.sidecars(work, ["s"])) == {}
    job.write_sidecar(work, SIDECAR, digest)
    assert dict(job.sidecars(work, ["s", "t"])) == {"s": SIDECAR}


def test_the_sidecar_of_another_plan_does_not_count(tmp_path):
    """A worker of an earlier run may end late; what it wrote has other slices at the same rows."""
    work = WorkDir(tmp_path)
    work.create()
    work.plan("s").write_bytes(b"the plan of now")
    job.write_sidecar(work, SIDECAR, hashlib.sha256(b"an older plan").hexdigest())
    assert dict(job.sidecars(work, ["s"])) == {}


def test_contents_of_a_folder(tmp_path):
    assert job.contents(tmp_path / "no") == {}
    (tmp_path / "a").write_bytes(b"123")
    assert job.contents(tmp_path) == {"a": job.Content(3)}


def test_a_shard_of_another_length_is_changed(tmp_path):
    told = dataclasses.replace(SIDECAR, name="s", bytes=3)
    assert job.changed_shards(tmp_path, [told]) == ["s"]
    (tmp_path / "s").write_bytes(b"123")
    assert job.changed_shards(tmp_path, [told]) == []
    (tmp_path / "s").write_bytes(b"1234")
    assert job.changed_shards(tmp_path, [told]) == ["s"]
