"""Dataflow without Dataflow: templates staged in a bucket, and their work done by the code that was staged there.

The bucket is `bucket_server` on loopback. `staged_worker.py` stands in for a worker: it runs in an environment that
holds the staged package, and takes function and elements from the job graph.
"""

from __future__ import annotations

import base64
import bz2
import contextlib
import io
import json
import re
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bucket_server import BucketServer
from clean_environment import ROOT, CleanEnvironment, checkout
from dataflow_service import DataflowService

from ich_tfrecords.conversion import job, steps
from ich_tfrecords.conversion.job import WorkDir
from ich_tfrecords.conversion.patient_key import patient_key
from ich_tfrecords.storage import sources
from ich_tfrecords.storage.bucket_path import BucketPath
from ich_tfrecords.synthetic import rsna_layout

pytest.importorskip("google.cloud.dataflow", reason="Beam's part for Google Cloud is not installed")

from apache_beam.options.pipeline_options import GoogleCloudOptions, SetupOptions
from apache_beam.portability.api import beam_runner_api_pb2

from beam_pipelines import launch

SECRET = "9f86d081884c7d659a2feaa0c55ad015"
ENGINE = ("--runner", "DataflowRunner", "--project", "project-x", "--region", "europe-west4", "--no_auth")
PART_SLICES = 20  # of the 60 slices, so that the index has three parts


class Cloud:
    """A bucket with the input, what was staged there, and an environment with the staged package.

    `local` is the same conversion on this machine.
    """

    def __init__(self, server: BucketServer, folder: Path, convert: Any) -> None:
        self.server, self.folder, self._convert = server, folder, convert
        self.name = server.bucket()
        self.bucket = server.client().bucket(self.name)
        made = rsna_layout.generate(folder / "ct", patients=10, slices_per_study=6, every_label=True, seed=3)
        self.slices = sorted((made.output / "stage_2_train").iterdir())
        self.labels = made.output / "stage_2_train.csv"
        self.spec = folder / "small.yaml"
        self.spec.write_text("extends: rsna_ich\nname: small_ich\nimage: {size_px: 32}\nshards: {min_shards: 1}\n")
        self.key = folder / "patient.key"
        self.key.write_text(SECRET)
        self.local = folder / "local"
        here = ("--labels", self.labels, "--patient_key_file", self.key, "--output", self.local)
        assert convert("--spec", self.spec, "--input", made.output / "stage_2_train", *here) == 0
        self._upload()
        self.setup_file = checkout(folder / "checkout") / "setup.py"

    def _upload(self) -> None:
        for path in self.slices:
            self.bucket.blob(f"raw/{path.name}").upload_from_filename(path)
        self.bucket.blob("labels.csv").upload_from_filename(self.labels)
        self.bucket.blob("secret/patient.key").upload_from_filename(self.key)

    def at(self, key: str) -> str:
        return f"gs://{self.name}/{key}"

    @property
    def work(self) -> WorkDir:
        return WorkDir(BucketPath(self.name, "out"))

    def flags(self, output: str = "out") -> list[object]:
        places = ("--input", self.at("raw"), "--labels", self.at("labels.csv"), "--output", self.at(output))
        return ["--spec", self.spec, *places, "--patient_key_file", self.at("secret/patient.key")]

    def stage(self) -> int:
        """The command, asked for a template."""
        beam = ("--temp_location", self.at("beam"), "--template_location", self.at("templates/ich"))
        return self._convert(*self.flags(), *ENGINE, *beam, "--setup_file", self.setup_file)

    def staged(self) -> dict[str, bytes]:
        """What the last `stage` left, by the last part of its name; the next one begins from nothing."""
        found = [*self.bucket.list_blobs(prefix="beam/"), *self.bucket.list_blobs(prefix="templates/")]
        files = {blob.name.rpartition("/")[2]: blob.download_as_bytes() for blob in found}
        for blob in found:
            blob.delete()
        return files

    def written(self, prefix: str) -> dict[str, tuple[int, bytes]]:
        """Generation and bytes of the objects below a prefix."""
        found = self.bucket.list_blobs(prefix=prefix)
        return {blob.name[len(prefix) :]: (blob.generation, blob.download_as_bytes()) for blob in found}


class Worker:
    """A clean environment with the staged package."""

    def __init__(self, folder: Path, package: bytes) -> None:
        self._clean = CleanEnvironment(folder)
        archive = folder / "workflow.tar.gz"
        archive.write_bytes(package)
        self._clean.install(archive)

    def run(self, graph: bytes, *what: str) -> None:
        path = self._clean.folder / "pipeline.pb"
        path.write_bytes(graph)
        loaded = self._clean.python(Path(__file__).parent / "staged_worker.py", path, *what).split()
        assert len(loaded) == 2
        assert all(Path(place).is_relative_to(self._clean.folder) for place in loaded), loaded
        assert not any(Path(place).is_relative_to(ROOT) for place in loaded), loaded


@pytest.fixture(scope="module")
def bucket_environment():
    """A server; Beam does not search for credentials, which would take half a minute."""
    from apache_beam.internal.gcp import auth

    with BucketServer() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in (server.environment | {"NO_GCE_CHECK": "true"}).items():
            patch.setenv(name, value)
        patch.setattr(auth._Credentials, "_credentials_init", True)
        yield server


@pytest.fixture(scope="module")
def cloud(bucket_environment, tmp_path_factory, convert) -> Cloud:
    return Cloud(bucket_environment, tmp_path_factory.mktemp("cloud"), convert)


def readable(graph: bytes) -> bytes:
    """A job graph with its functions unpacked: Beam compresses them and writes them as base64."""
    pipeline = beam_runner_api_pb2.Pipeline.FromString(graph)
    texts = [graph]
    for node in pipeline.components.transforms.values():
        if node.spec.urn == "beam:transform:pardo:v1":
            payload = beam_runner_api_pb2.ParDoPayload.FromString(node.spec.payload)
            texts.append(bz2.decompress(base64.b64decode(payload.do_fn.payload)))
    return b"\n".join(texts)


def unpacked(package: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        members = [archive.extractfile(member) for member in archive if member.isfile()]
        return b"\n".join(member.read() for member in members if member is not None)


def check_no_data(cloud: Cloud, staged: dict[str, bytes], place: bytes) -> None:
    """Neither pixels nor labels (each begins with the id of its slice) nor the secret is staged; `place` is."""
    texts = {name: data for name, data in staged.items() if not name.endswith((".pb", ".gz"))}
    texts["graph"] = readable(staged["pipeline.pb"])
    texts["package"] = unpacked(staged["workflow.tar.gz"])
    data = [path.read_bytes() for path in cloud.slices]
    pixels = [whole[at : at + 32] for whole in data for at in range(len(whole) // 4, len(whole), len(whole) // 8)]
    pixels = [piece for piece in pixels if len(set(piece)) > 8]  # air is the same everywhere
    assert pixels
    names = [path.stem.encode() for path in cloud.slices]
    secrets = [SECRET.encode(), bytes.fromhex(SECRET), base64.b64encode(SECRET.encode())]
    for name, text in texts.items():
        assert not [piece for piece in [*pixels, *names, *secrets] if piece in text], name
    assert place in texts["graph"]


@pytest.mark.long
def test_templates_step_by_step(cloud, tmp_path, monkeypatch, capsys):
    """Each call stages what is left to do; staged code does it; the last call commits the bytes of a local run."""
    monkeypatch.setattr(job, "LISTING_ROWS", PART_SLICES)
    assert cloud.stage() == 0
    said = capsys.readouterr()
    name = re.search(r"gcloud dataflow jobs run (\S+-index) ", said.out)[1]
    start = f"--gcs-location {cloud.at('templates/ich-index')} --region europe-west4 --project project-x"
    assert f"start it: gcloud dataflow jobs run {name} {start}\n" in said.out
    assert "run the same command again: it goes on" in said.out
    assert said.err.splitlines()[-1].endswith("rows give the labels of 60 images")  # no tool's chatter, no progress
    assert not cloud.written("out/.work/index/")
    assert not cloud.written("out/.work/lock"), "the lock is held while the command runs, and no longer"

    staged = cloud.staged()
    check_template(cloud, staged, "ich-index", name)
    check_no_data(cloud, staged, b"secret/patient.key")
    worker = Worker(tmp_path / "worker", staged["workflow.tar.gz"])
    worker.run(staged["pipeline.pb"], "element", "IndexPart", "1")
    part = cloud.written("out/.work/index/")
    assert {name: data for name, (_, data) in part.items()} == indexed_here(cloud, 1)

    assert cloud.stage() == 0
    worker.run(cloud.staged()["pipeline.pb"], "graph")
    index = cloud.written("out/.work/index/")
    assert sorted(index) == [f"{number:06d}.{kind}" for number in range(3) for kind in ("parquet", "sha256")]
    assert {name: index[name] for name in part} == part, "a part that stood there is not written again"

    assert cloud.stage() == 0
    staged = cloud.staged()
    check_template(cloud, staged, "ich-convert", name.replace("-index", "-convert"))
    check_no_data(cloud, staged, b"small_ich")
    shards = {path.name: path.read_bytes() for path in cloud.local.glob("*.tfrecord-*")}
    first = max(shards, key=lambda name: len(shards[name]))
    worker.run(staged["pipeline.pb"], "element", "WriteShard", json.dumps(first))
    assert {name for name in cloud.written("out/") if "tfrecord" in name and not name.startswith(".work")} == {first}
    assert cloud.written("out/")[first][1] == shards[first]
    begun = cloud.written("out/")[first]

    assert cloud.stage() == 0
    assert f"1 shard with {len_of(cloud, first)} slices was written before" in capsys.readouterr().err
    worker.run(cloud.staged()["pipeline.pb"], "graph")
    assert cloud.written("out/")[first] == begun

    assert cloud.stage() == 0
    assert "60 slices in" in capsys.readouterr().out
    assert not cloud.staged(), "nothing is left to stage"
    assert same_as_local(cloud, "out")


def check_template(cloud: Cloud, staged: dict[str, bytes], template: str, job_name: str) -> None:
    """The template names the job, the region's worker pool, the package and the graph that stand beside it."""
    facts = json.loads(staged[template])
    options = facts["environment"]["sdkPipelineOptions"]["options"]
    [pool] = facts["environment"]["workerPools"]
    assert facts["name"] == options["job_name"] == job_name
    assert facts["type"] == "JOB_TYPE_BATCH"
    assert {package["name"] for package in pool["packages"]} >= {"workflow.tar.gz"}
    assert options["pipelineUrl"].startswith(cloud.at("beam/"))
    assert options["save_main_session"] is False
    assert pool["sdkHarnessContainerImages"][0]["useSingleCorePerContainer"] is True
    assert set(staged) == {template, "pipeline.pb", "workflow.tar.gz", "submission_environment_dependencies.txt"}


def indexed_here(cloud: Cloud, number: int) -> dict[str, bytes]:
    """The files of an index part of the same listing, made by the code of this process in another folder."""
    other = WorkDir(BucketPath(cloud.name, "other"))
    other.listing(number).write_bytes(cloud.work.listing(number).read_bytes())
    key = patient_key("", BucketPath(cloud.name, "secret/patient.key"))
    with sources.SliceReader() as reader:
        steps.index_part(other, number, (key, ("original",)), reader, Counter())
    return {name: data for name, (_, data) in cloud.written("other/.work/index/").items()}


def len_of(cloud: Cloud, shard: str) -> int:
    shards = json.loads((cloud.local / "manifest.json").read_text())["shards"]
    [count] = [entry["slices"] for entry in shards if entry["name"] == shard]
    return count


@pytest.fixture
def service(cloud, monkeypatch, tmp_path):
    """Dataflow's API on loopback, and a launcher that asks it without pauses and leaves its logs in `tmp_path`."""
    from apache_beam.runners.dataflow import dataflow_runner

    impatient = SimpleNamespace(sleep=lambda _: time.sleep(0.01), time=time.time)
    monkeypatch.setattr(dataflow_runner, "time", impatient)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with DataflowService() as made:
        yield made


def by_jobs(cloud: Cloud, service: DataflowService, output: str) -> list[object]:
    """Flags of a conversion by two jobs; no package is built for them."""
    quick = ("--sdk_container_image", "r.example/ich:1", "--experiments=disable_logging_submission_environment")
    beam = ("--temp_location", cloud.at("beam"), "--job_name", "night")
    return [*cloud.flags(output), *ENGINE, *beam, *quick, *service.flags]


def same_as_local(cloud: Cloud, output: str) -> bool:
    found = {name: data for name, (_, data) in cloud.written(f"{output}/").items()}
    expected = {path.name: path.read_bytes() for path in cloud.local.iterdir()}
    differ = [name for name in found if found[name] != expected.get(name)]
    return found.keys() == expected.keys() and differ in ([], ["manifest.json"])


def test_two_jobs_one_after_the_other(cloud, service, convert, capsys):
    assert convert(*by_jobs(cloud, service, "jobs")) == 0
    said = capsys.readouterr()
    assert service.jobs == ["night-index", "night-convert"]
    assert "read     60 headers, 60 slices" in said.out, "counters come back"
    place = "https://console.cloud.google.com/dataflow/jobs/europe-west4/job-1?project=project-x"
    assert f"Dataflow job night-index ({place})\n" in said.err
    assert same_as_local(cloud, "jobs")


def test_counters_that_cannot_be_asked_for_are_left_out(cloud, service, convert, capsys):
    service.refuse("metrics")
    assert convert(*by_jobs(cloud, service, "uncounted")) == 0
    said = capsys.readouterr().out
    assert "seconds  list" in said
    assert "headers" not in said
    assert same_as_local(cloud, "uncounted")


@pytest.mark.parametrize(
    ("state", "message", "words"),
    [
        ("JOB_STATE_FAILED", "Traceback\nOSError: the disk is full", "ended as FAILED: OSError: the disk is full; "),
        ("JOB_STATE_CANCELLED", "", "ended as CANCELLED: without a message; "),
    ],
)
def test_a_job_that_ends_early_is_one_line_and_the_next_command_goes_on(
    state, message, words, cloud, service, convert, capsys
):
    service.end_next(state, message)
    flags = by_jobs(cloud, service, state.lower())
    assert convert(*flags) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("convert: Beam stopped: Dataflow job night-index (https://")
    assert words in line
    assert service.jobs == ["night-index"]
    assert convert(*flags) == 0
    assert same_as_local(cloud, state.lower())


def test_an_interrupt_cancels_the_job(cloud, service, convert, monkeypatch, capsys):
    from apache_beam.runners.dataflow import dataflow_runner

    def interrupted(_: float) -> None:
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        time.sleep(0.01)

    monkeypatch.setattr(dataflow_runner.time, "sleep", interrupted)
    service.end_next("JOB_STATE_RUNNING")
    assert convert(*by_jobs(cloud, service, "interrupted")) == 130
    assert service.cancelled == ["job-1"]
    *_, told, last = capsys.readouterr().err.splitlines()
    assert told == "Dataflow job night-index is being cancelled"
    assert "the same command goes on" in last
    assert not cloud.written("interrupted/.work/lock")


def test_a_job_that_cannot_be_cancelled_is_told_with_the_command_for_it(cloud, service, convert, monkeypatch, capsys):
    from apache_beam.runners.dataflow.dataflow_runner import DataflowPipelineResult

    def interrupted(*_: object) -> None:
        service.refuse("job")
        raise KeyboardInterrupt

    monkeypatch.setattr(DataflowPipelineResult, "wait_until_finish", interrupted)
    service.end_next("JOB_STATE_RUNNING")
    assert convert(*by_jobs(cloud, service, "runs-on")) == 130
    by_hand = "gcloud dataflow jobs cancel job-1 --region europe-west4 --project project-x"
    assert f"still runs and costs; cancel it with: {by_hand}\n" in capsys.readouterr().err


def test_a_job_out_of_sight_may_still_run(cloud, service, convert, capsys):
    service.end_next("JOB_STATE_RUNNING")
    service.refuse("job")
    assert convert(*by_jobs(cloud, service, "lost")) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "lost sight of Dataflow job night-index (https://" in line
    assert "may still run; when it has ended, run the same command again" in line


@pytest.mark.parametrize("flag", ["--temp_location", "--staging_location", "--template_location"])
def test_a_place_in_no_bucket_is_refused_at_once(flag, cloud, service, convert, capsys):
    assert convert(*by_jobs(cloud, service, "nowhere"), flag, "gs://not-there/beam") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{flag} gs://not-there/beam: there is no bucket not-there" in line
    assert not service.jobs
    assert not cloud.written("nowhere/")


COMPLETE = {"--project": "project-x", "--region": "r", "--temp_location": "gs://b-b/tmp", "--setup_file": "setup.py"}
INCOMPLETE = [
    ({"--project": None}, "--project is missing"),
    ({"--region": None}, "--region is missing"),
    ({"--temp_location": None}, "--temp_location is missing"),
    ({"--temp_location": "/tmp/beam"}, "--temp_location /tmp/beam: write gs://BUCKET/FOLDER"),
    ({"--temp_location": "gs://b-b"}, "--temp_location gs://b-b: write gs://BUCKET/FOLDER"),
    ({"--temp_location": "gs://B_/tmp"}, "--temp_location gs://B_/tmp: write gs://BUCKET/FOLDER"),
    ({"--staging_location": "here"}, "--staging_location here: write gs://BUCKET/FOLDER"),
    ({"--template_location": "t.json"}, "--template_location t.json: write gs://BUCKET/NAME"),
    ({"--template_location": "gs://b-b/t/"}, "--template_location gs://b-b/t/: write gs://BUCKET/NAME"),
    ({"--setup_file": None}, "the workers lack this package; add --setup_file ./setup.py, or --sdk_container_image"),
    ({"--setup_file": "no/setup.py"}, "--setup_file no/setup.py: no such file"),
    ({"--setup_file": "README.md"}, "--setup_file README.md: no such file; name the setup.py of this package"),
    ({"--job_name": "Not A Name"}, "Invalid job_name (Not A Name)"),
    ({"--template_location": "gs://b-b/out/t"}, "--template_location gs://b-b/out/t lies in --output gs://b-b/out"),
    ({"--staging_location": "gs://b-b/out/a", "--temp_location": "gs://B/t"}, "--temp_location gs://B/t: write"),
    ({"--temp_location": "gs://b-b/out"}, "--temp_location gs://b-b/out lies in --output gs://b-b/out"),
]


def _bucket(server: BucketServer, name: str) -> None:
    with contextlib.suppress(ValueError):  # made before
        server.bucket(name)


def flags_of(changes: dict[str, str | None]) -> list[str]:
    return [part for flag, value in (COMPLETE | changes).items() if value for part in (flag, value)]


@pytest.mark.parametrize(("changes", "words"), INCOMPLETE, ids=lambda part: str(part)[:40])
def test_incomplete_flags_are_refused_before_any_work(changes, words, bucket_environment, convert, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    where = ("--input", "gs://b-b/in", "--labels", "none", "--output", "gs://b-b/out")
    _bucket(bucket_environment, "b-b")
    bucket_environment.clear()
    assert convert(*where, "--runner", "DataflowRunner", "--no_auth", *flags_of(changes)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words in line
    assert {seen.kind for seen in bucket_environment.requests} <= {"bucket", "list"}


def test_an_image_with_the_package_needs_no_setup_file(bucket_environment, monkeypatch):
    flags = flags_of({"--setup_file": None, "--sdk_container_image": "r.example/ich:1"})
    options = launch.beam_options("DataflowRunner", [*flags, "--no_auth"])
    assert options.view_as(SetupOptions).save_main_session is False


def test_without_beams_google_part_there_is_one_line(convert, monkeypatch, capsys):
    monkeypatch.delattr("apache_beam.runners.dataflow.internal.apiclient")
    monkeypatch.setitem(sys.modules, "apache_beam.runners.dataflow.internal.apiclient", None)
    where = ("--input", "gs://b-b/in", "--labels", "none", "--output", "gs://b-b/out")
    assert convert(*where, "--runner", "DataflowRunner", *flags_of({})) == 2
    assert "pip install 'apache-beam[gcp]'" in capsys.readouterr().err


def test_templates_need_dataflow(convert, tmp_path, capsys):
    where = ("--input", tmp_path, "--labels", "none", "--output", tmp_path / "out")
    assert convert(*where, "--template_location", "gs://b-b/t") == 2
    assert "--template_location needs --runner DataflowRunner" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "output", "name"),
    [
        (["--job_name=mine"], "gs://b-b/rsna", "mine-index"),
        ([], "gs://b-b/sets/RSNA_ich 2", r"ich-rsna-ich-2-[0-9a-f]{8}-index"),
        ([], "gs://b-b", r"ich-[0-9a-f]{8}-index"),
        ([], f"gs://b-b/{'long' * 30}", rf"ich-{'long' * 10}-[0-9a-f]{{8}}-index"),
    ],
)
def test_jobs_bear_the_name_of_their_step_and_output(given, output, name, bucket_environment, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = launch.beam_options("DataflowRunner", [*flags_of({}), *given, "--no_auth"])
    bucket, _, key = output.removeprefix("gs://").partition("/")
    names = [
        launch.step_options(options, "index", BucketPath(bucket, key)).view_as(GoogleCloudOptions).job_name
        for _ in range(2)
    ]
    assert re.fullmatch(name, names[0])
    assert names[0] == names[1], "the same output gives the same name, which Dataflow lets run once"
