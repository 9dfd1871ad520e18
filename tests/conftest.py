"""Fixtures, from small to large.

rsna_spec            the packaged spec
synthetic_set        a synthetic RSNA folder: 10 patients, every label, no defects   (session)
synthetic_zip        the same slices as a Kaggle zip                                 (session)
defective_set        a synthetic folder with one of each RSNA defect                 (session)
dataset              `synthetic_set` converted; read only                            (session)
dataset_copy         a copy of it to damage
tiny_dataset         32 px, 40 patients, every stratum in each split, few shards; read only   (session)
blobs                16 px, 120 patients, noisy discs that can be learned in seconds; read only      (session)
blob_run             a cnn trained on them, balanced; read only                                      (session)
blob_run_copy        a copy of it to damage, or to evaluate
runs_of_blobs        like `blobs`, but bleeds go through three slices and discs of one slice are none (session)
series_run           a series model of a small cnn trained on them; its slice run lies beside it, `slice_run` (session)
real_dicom_dir       real CT files, or a skip
convert              the command line in this process: convert(*flags) -> exit code
lose_numba           lose_numba() -> from now on numba is not installed
incapable            a file system that cannot do these: incapable(flock=errno.ENOLCK)
bucket_server        Cloud Storage on loopback, with faults on demand                (session)
gcs                  it, without faults, as the place where gs:// leads
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from ich_tfrecords import spec
from ich_tfrecords.dicom import jpeg_compiled
from ich_tfrecords.storage import file_system
from ich_tfrecords.synthetic.rsna_layout import Summary, generate

if TYPE_CHECKING:
    from bucket_server import BucketServer

FOLDERS = Path(__file__).parent
SLOW_FOLDERS = tuple(FOLDERS / name for name in ("faults", "beam_pipelines", "benchmarks", "tfio"))
SLOW_FIXTURES = {"convert", "blob_run", "blob_run_copy", "series_run"}
STARTS = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system"})
_quick: list[str] = []  # the test that runs, where it is not slow


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What converts or trains by its fixtures, and whole folders, need no mark of their own."""
    for item in items:
        by_fixture = SLOW_FIXTURES & set(getattr(item, "fixturenames", ()))
        if by_fixture or any(item.path.is_relative_to(folder) for folder in SLOW_FOLDERS):
            item.add_marker("slow")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test that starts a process has to be marked."""
    _quick[:] = [] if item.get_closest_marker("slow") else [item.nodeid]
    try:
        return (yield)
    finally:
        _quick.clear()


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event in STARTS and _quick:
        raise AssertionError(f"{_quick[0]} starts {arguments[:2]}; mark it slow")


sys.addaudithook(_watch)

# a deadline would be a promise about the machine
hypothesis.settings.register_profile("any_machine", deadline=None)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=8)  # of `make check`
hypothesis.settings.load_profile("any_machine")


@pytest.fixture(scope="session")
def rsna_spec() -> spec.DatasetSpec:
    return spec.load("rsna_ich")


def _generate(folder: Path, **options) -> Summary:
    return generate(folder, patients=10, test_patients=2, slices_per_study=6, every_label=True, seed=3, **options)


@pytest.fixture(scope="session")
def synthetic_set(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return _generate(tmp_path_factory.mktemp("synthetic"))


@pytest.fixture(scope="session")
def synthetic_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return next(_generate(tmp_path_factory.mktemp("zipped"), zip_archive=True).output.glob("*.zip"))


@pytest.fixture(scope="session")
def defective_set(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return _generate(tmp_path_factory.mktemp("defective"), defects=True)


@pytest.fixture(scope="session")
def convert():
    from beam_pipelines.convert import main

    def run(*flags: object) -> int:
        return main([str(flag) for flag in flags])

    return run


@pytest.fixture(scope="session")
def dataset(synthetic_set: Summary, tmp_path_factory: pytest.TempPathFactory, convert) -> Path:
    output = tmp_path_factory.mktemp("converted") / "rsna_ich"
    folder = synthetic_set.output
    labels = folder / "stage_2_train.csv"
    assert convert("--input", folder / "stage_2_train", "--labels", labels, "--output", output) == 0
    return output


@pytest.fixture
def lose_numba(monkeypatch: pytest.MonkeyPatch):
    """Once called, numba is not installed, and nothing was decoded yet, in this process."""

    def lose() -> None:
        monkeypatch.setitem(sys.modules, "numba", None)
        jpeg_compiled.forms.cache_clear()

    yield lose
    jpeg_compiled.forms.cache_clear()


@pytest.fixture
def incapable(monkeypatch: pytest.MonkeyPatch):
    """Every call of these fails with that errno, in this process: `flock`, `sync_file`, `sync_folder`."""
    real = os.fsync

    def make(flock: int = 0, sync_file: int = 0, sync_folder: int = 0) -> None:
        def failing_lock(*_: object) -> None:
            raise OSError(flock, os.strerror(flock))

        def failing_sync(file: int) -> None:
            if number := sync_folder if stat.S_ISDIR(os.fstat(file).st_mode) else sync_file:
                raise OSError(number, os.strerror(number))
            real(file)

        if flock:
            monkeypatch.setattr(fcntl, "flock", failing_lock)
        monkeypatch.setattr(os, "fsync", failing_sync)
        file_system.told.clear()

    return make


@pytest.fixture
def dataset_copy(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "copy"))


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory, convert) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    options = {"patients": 40, "test_patients": 1, "slices_per_study": 6, "positive_fraction": 0.8}
    made = generate(folder / "ct", **options, every_label=True, seed=5)
    changes = "image: {size_px: 32}\nshards: {min_shards: 1}\nsplit: {weights: {train: 2, validation: 1, test: 1}}\n"
    (folder / "tiny.yaml").write_text(f"extends: rsna_ich\nname: tiny_ich\n{changes}")
    labels, output = made.output / "stage_2_train.csv", folder / "tiny_ich"
    flags = ("--spec", folder / "tiny.yaml", "--input", made.output / "stage_2_train", "--labels", labels)
    assert convert(*flags, "--output", output) == 0
    shutil.rmtree(made.output)
    return output


@pytest.fixture(scope="session")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import blob_dataset

    return blob_dataset.make(tmp_path_factory.mktemp("blobs") / "blobs", patients=120)


@pytest.fixture(scope="session")
def blob_run(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from small_runs import train

    run = tmp_path_factory.mktemp("runs") / "blob_run"
    small = {"architecture__filters": [8, 16], "architecture__dense": [32]}
    whole = {"epochs": 6, "steps_per_epoch": 0, "steps_per_call": 0, "batch_size": 32}
    assert train(blobs, run, sampling="balanced", **small, **whole) == 0
    return run


@pytest.fixture
def blob_run_copy(blob_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(blob_run, tmp_path / "blob_run"))


@pytest.fixture(scope="session")
def runs_of_blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import blob_dataset

    made = tmp_path_factory.mktemp("blobs") / "in_runs"
    return blob_dataset.make(made, patients=120, seed=5, draw=blob_dataset.in_runs)


@pytest.fixture(scope="session")
def series_run(runs_of_blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from small_runs import train

    folder = tmp_path_factory.mktemp("runs")
    small = {"architecture__filters": [8, 16], "architecture__dense": [32], "steps_per_call": 0}
    assert train(runs_of_blobs, folder / "slice_run", epochs=6, steps_per_epoch=0, batch_size=32, **small) == 0
    of_series = {"architecture__width": 64, "architecture__units": 32, "architecture__layers": 1, "steps_per_call": 0}
    more = {"epochs": 40, "steps_per_epoch": 0, "batch_size": 8, "learning_rate": 0.005, "accumulate": 1}
    run, given = folder / "series_run", ["--slice_run", str(folder / "slice_run")]
    assert train(runs_of_blobs, run, *given, model="series", **of_series, **more) == 0
    return run


@pytest.fixture(scope="session")
def real_dicom_dir() -> Path:
    place = os.environ.get("ICH_REAL_DICOM_DIR")
    if not place:
        pytest.skip("set ICH_REAL_DICOM_DIR to a folder of real CT files")
    return Path(place)


@pytest.fixture(scope="session")
def bucket_server() -> Iterator[BucketServer]:
    pytest.importorskip("gcp_storage_emulator.server", reason="gcp-storage-emulator is not installed")
    from bucket_server import BucketServer

    with BucketServer() as server:
        yield server


@pytest.fixture
def gcs(bucket_server: BucketServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[BucketServer]:
    from ich_tfrecords.storage import buckets

    monkeypatch.setattr(buckets, "RETRY_S", 20.0)
    bucket_server.clear()
    for name, value in bucket_server.environment.items():
        monkeypatch.setenv(name, value)
    buckets._client()  # it tells of the emulator, once
    yield bucket_server
    bucket_server.clear()
