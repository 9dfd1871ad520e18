"""Conversion from and to Cloud Storage, end to end against a server on loopback."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_runs import train

from ich_tfrecords import inspect
from ich_tfrecords.conversion import job, plan
from ich_tfrecords.dataset import manifest
from ich_tfrecords.storage import buckets
from ich_tfrecords.storage.bucket_path import BucketPath, any_path

TWO_PROCESSES = ("--direct_num_workers", "2", "--direct_running_mode", "multi_processing")


def upload(gcs, bucket: str, prefix: str, *paths: Path) -> None:
    there = gcs.client().bucket(bucket)
    for path in paths:
        there.blob(f"{prefix}{path.name}").upload_from_filename(path)


@pytest.fixture
def bucket(gcs) -> str:
    return gcs.bucket()


@pytest.fixture
def raw(gcs, bucket, synthetic_set) -> str:
    """The synthetic folder in a bucket: `raw/stage_2_train/*.dcm` and `raw/labels.csv`."""
    folder = synthetic_set.output
    upload(gcs, bucket, "raw/stage_2_train/", *(folder / "stage_2_train").iterdir())
    gcs.client().bucket(bucket).blob("raw/labels.csv").upload_from_filename(folder / "stage_2_train.csv")
    gcs.clear()
    return f"gs://{bucket}/raw"


def from_bucket(raw: str, output: object) -> tuple[object, ...]:
    return ("--input", f"{raw}/stage_2_train", "--labels", f"{raw}/labels.csv", "--output", output)


def sha256s(place: str | Path) -> dict[str, str]:
    """sha256 of each file right in a folder but the manifest, which tells where the bytes came from."""
    files = any_path(str(place)).iterdir()
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.name != manifest.MANIFEST
    }


def one_line(capsys) -> str:
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("convert: ")
    return line


def test_a_folder_to_a_bucket(dataset, synthetic_set, bucket, convert):
    folder, output = synthetic_set.output, f"gs://{bucket}/out"
    where = ("--input", folder / "stage_2_train", "--labels", folder / "stage_2_train.csv")
    assert convert(*where, "--output", output) == 0
    assert sha256s(output) == sha256s(dataset)
    assert (any_path(output) / manifest.MANIFEST).read_bytes() == (dataset / manifest.MANIFEST).read_bytes()
    assert not any_path(f"{output}/{job.WORK}").exists()


def test_labels_of_two_levels_in_a_bucket(dataset, raw, gcs, bucket, convert, tmp_path):
    """A second file beside the slices' labels, which says of one series what they say already."""
    rows = pq.read_table(dataset / manifest.SLICES).to_pylist()
    names = manifest.read(dataset).spec.labels.names
    uid = rows[0]["series_uid"]
    values = [max(row[name] for row in rows if row["series_uid"] == uid) for name in names]
    series = tmp_path / "series.csv"
    series.write_text(f"series_uid;{';'.join(names)}\n{uid};{';'.join(map(str, values))}\n")
    upload(gcs, bucket, "raw/", series)
    output = f"gs://{bucket}/out"
    assert convert(*from_bucket(raw, output), "--labels", f"{raw}/series.csv") == 0
    assert inspect.main(["verify", output]) == 0
    shards = {name: sha256 for name, sha256 in sha256s(dataset).items() if ".tfrecord" in name}
    assert sha256s(output).items() >= shards.items()
    studies = pq.read_table(pa.BufferReader((any_path(output) / "studies.parquet").read_bytes()))
    assert studies["study_uid"].to_pylist() == sorted({row["study_uid"] for row in rows})
    assert all(-1 not in studies[name].to_pylist() for name in names)  # all of their slices are known


@pytest.mark.parametrize("more", [(), TWO_PROCESSES], ids=["one process", "two processes"])
def test_a_bucket_to_a_bucket(dataset, raw, bucket, convert, more):
    output = f"gs://{bucket}/deep/folder/out"
    assert convert(*from_bucket(raw, output), *more) == 0
    assert sha256s(output) == sha256s(dataset)
    assert manifest.read(any_path(output)).fingerprint == manifest.read(dataset).fingerprint


def test_a_glob_in_a_bucket_to_a_folder(dataset, raw, tmp_path, convert):
    where = ("--input", f"{raw}/stage_2_*/*.dcm", "--labels", f"{raw}/labels.csv")
    assert convert(*where, "--output", tmp_path / "out") == 0
    assert sha256s(tmp_path / "out") == sha256s(dataset)


def test_a_zip_in_a_bucket_to_a_bucket(gcs, dataset, bucket, synthetic_zip, convert):
    upload(gcs, bucket, "", synthetic_zip)
    gcs.clear()
    where = ("--input", f"gs://{bucket}/{synthetic_zip.name}", "--include", "*/stage_2_train/*")
    assert convert(*where, "--labels", "stage_2_train.csv", "--output", f"gs://{bucket}/out") == 0
    assert sha256s(f"gs://{bucket}/out") == sha256s(dataset)
    fetched = [seen for seen in gcs.requests if seen.name == synthetic_zip.name and seen.kind == "media"]
    assert fetched
    assert all(seen.range for seen in fetched), "the archive is read in ranges, never as a whole"
    assert gcs.most_in_flight > 4, "many ranges are under way at a time"


def test_the_same_command_says_that_all_is_there(raw, bucket, gcs, convert, capsys):
    output = f"gs://{bucket}/out"
    assert convert(*from_bucket(raw, output)) == 0
    gcs.clear()
    assert convert(*from_bucket(raw, output)) == 0
    assert "is complete already; nothing was written" in capsys.readouterr().out
    assert {seen.method for seen in gcs.requests} == {"GET"}


def test_each_index_part_is_asked_for_once(raw, bucket, gcs, convert, monkeypatch, dataset):
    """By the run that has them made, and by one that goes on; nobody asks for what cannot be there."""
    monkeypatch.setattr(job, "LISTING_ROWS", 10)
    output = f"gs://{bucket}/out"

    def asked() -> dict[str, Counter[str]]:
        fetched = [seen.name for seen in gcs.requests if seen.kind == "media" and f"/{job.WORK}/" in seen.name]
        return {kind: Counter(name for name in fetched if f"/{kind}/" in name) for kind in ("index", "listing")}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    every = dict.fromkeys(
        (f"out/.work/index/00000{number}.{suffix}" for number in range(6) for suffix in ("parquet", "sha256")), 1
    )
    with monkeypatch.context() as patch:
        patch.setattr(plan, "build_plan", interrupted)
        gcs.clear()
        assert convert(*from_bucket(raw, output)) == 130
        listing = {f"out/.work/listing/00000{number}.parquet": 1 for number in range(6)}  # by the workers
        assert asked() == {"index": every, "listing": listing}
    gcs.clear()
    assert convert(*from_bucket(raw, output)) == 0
    assert asked() == {"index": every, "listing": {}}
    assert sha256s(output) == sha256s(dataset)


def test_other_files_in_the_output_are_refused(raw, gcs, bucket, convert, capsys, dataset):
    upload(gcs, bucket, "out/", dataset / "README.md")
    assert convert(*from_bucket(raw, f"gs://{bucket}/out")) == 2
    assert "holds other files (such as README.md)" in one_line(capsys)


def test_a_bucket_that_is_not_there(raw, convert, capsys):
    assert convert(*from_bucket(raw, "gs://no-such-bucket/out")) == 2
    assert "cannot write to --output gs://no-such-bucket/out: no such object or bucket" in one_line(capsys)
    assert convert("--input", "gs://no-such-bucket/raw", "--labels", "none", "--output", "gs://no-such-bucket/out") == 2
    assert "gs://no-such-bucket/raw: there is no such object and none below it" in one_line(capsys)
    assert convert("--input", f"{raw}/stage_2_train", "--labels", f"{raw}/no.csv", "--output", "gs://other/out") == 2
    assert f"--labels {raw}/no.csv: no such object" in one_line(capsys)


def test_no_access_is_one_line(tmp_path, monkeypatch, convert, capsys):
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    assert convert("--input", "gs://bucket/raw", "--labels", "none", "--output", tmp_path / "out") == 2
    assert "log in with: gcloud auth application-default login" in one_line(capsys)


def test_an_object_that_changes_after_the_listing_is_a_row(raw, gcs, bucket, convert, monkeypatch):
    """Its generation is not the listed one any more: nobody gets half of two contents."""
    victim = next(gcs.client().list_blobs(bucket, prefix="raw/stage_2_train/"))
    write_listing = job.write_listing

    def then_change(*given):
        write_listing(*given)
        victim.upload_from_string(victim.download_as_bytes())

    monkeypatch.setattr(job, "write_listing", then_change)
    output = f"gs://{bucket}/out"
    assert convert(*from_bucket(raw, output), "--max_reject_fraction", "0.1") == 0
    assert manifest.read(any_path(output)).rejects == {"changed": 1}


def test_a_shard_that_changed_in_the_bucket_is_not_committed(dataset, raw, bucket, convert, monkeypatch, capsys):
    """Its length is right; the crc32c that the bucket keeps tells."""
    output = f"gs://{bucket}/out"
    sidecars = job.sidecars

    def flip_a_bit_first(work, names):
        path = work.output / names[0]
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
        return sidecars(work, names)

    with monkeypatch.context() as patched:
        patched.setattr(job, "sidecars", flip_a_bit_first)
        assert convert(*from_bucket(raw, output)) == 1
    assert "1 shard is not what its worker wrote" in one_line(capsys)
    assert not (any_path(output) / manifest.MANIFEST).exists()
    assert convert(*from_bucket(raw, output)) == 0
    assert sha256s(output) == sha256s(dataset)


def test_two_conversions_into_one_folder_of_a_bucket(raw, bucket, convert, capsys):
    output = any_path(f"gs://{bucket}/out")
    with contextlib.closing(job.claim(output)):
        assert convert(*from_bucket(raw, output)) == 2
        assert "another conversion is writing to gs://" in one_line(capsys)
    assert convert(*from_bucket(raw, output)) == 0


def test_a_patient_key_in_a_bucket(raw, bucket, convert, synthetic_set, tmp_path, capsys):
    folder = synthetic_set.output
    (tmp_path / "key").write_text("0123456789abcdef0123456789abcdef\n")
    key = any_path(f"gs://{bucket}/private/key")
    assert isinstance(key, BucketPath)
    assert convert(*from_bucket(raw, f"gs://{bucket}/out"), "--patient_key_file", key) == 2
    assert f"--patient_key_file {key}: no such object" in one_line(capsys)
    key.write_bytes((tmp_path / "key").read_bytes())
    assert convert(*from_bucket(raw, f"gs://{bucket}/out"), "--patient_key_file", key) == 0
    where = (
        "--input",
        folder / "stage_2_train",
        "--labels",
        folder / "stage_2_train.csv",
        "--output",
        tmp_path / "out",
    )
    assert convert(*where, "--patient_key_file", tmp_path / "key") == 0
    assert sha256s(f"gs://{bucket}/out") == sha256s(tmp_path / "out")


@pytest.fixture
def there(gcs, bucket, dataset) -> str:
    """The converted data set in a bucket."""
    upload(gcs, bucket, "set/", *dataset.iterdir())
    return f"gs://{bucket}/set"


def test_inspect_looks_into_a_bucket(there, dataset, tmp_path, capsys):
    def said(command: str, place: object, *more: object) -> str:
        assert inspect.main([command, str(place), *map(str, more)]) == 0
        return capsys.readouterr().out

    assert said("info", there, "--json") == said("info", dataset, "--json")
    assert said("verify", there) == said("verify", dataset).replace(str(dataset), there)
    for name, place in (("far", there), ("near", dataset)):
        said("show", place, "--output", tmp_path / f"{name}.png")
        said("report", place, "--output", tmp_path / name)
        said("export", place, "--output", tmp_path / f"{name}_png", "--split", "test")
    assert (tmp_path / "far.png").read_bytes() == (tmp_path / "near.png").read_bytes()
    assert (tmp_path / "far" / "index.html").read_bytes() == (tmp_path / "near" / "index.html").read_bytes()
    far, near = (sorted((tmp_path / name).rglob("*.png")) for name in ("far_png", "near_png"))
    assert [path.read_bytes() for path in far] == [path.read_bytes() for path in near]


def test_verify_names_damage_in_a_bucket(there, capsys):
    place = any_path(there)
    shard = next(place.glob("*.tfrecord-*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    (place / "rejects.csv").unlink()
    assert inspect.main(["verify", there]) == 1
    said = capsys.readouterr().err
    assert f"inspect: {shard.name}: record " in said
    assert "inspect: rejects.csv: is missing" in said


def test_verify_does_not_call_an_outage_damage(there, gcs, monkeypatch, capsys):
    monkeypatch.setattr(buckets, "RETRY_S", 0.3)
    gcs.fail(r"GET .*alt=media.* set/.*\.tfrecord", how="503", times=None)
    assert inspect.main(["verify", there]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "no answer from Cloud Storage: 503 Service Unavailable" in said[0]


def test_what_is_written_here_is_not_sent_elsewhere(there, dataset, capsys):
    for command in ("report", "export", "show"):
        assert inspect.main([command, str(dataset), "--output", "gs://bucket/page"]) == 2
        assert "a place on this machine is needed here" in capsys.readouterr().err


def test_a_failure_names_no_file_below_the_input(raw, bucket, gcs, convert, monkeypatch, capsys):
    """File names may tell of patients, and the words of a failure go to logs and consoles."""
    monkeypatch.setattr(buckets, "RETRY_S", 0.3)
    gcs.fail(r"GET .*alt=media.* raw/stage_2_train/", how="reset", times=None)
    assert convert(*from_bucket(raw, f"gs://{bucket}/out")) == 1
    assert ".dcm" not in one_line(capsys)


def test_training_from_a_bucket(gcs, bucket, tiny_dataset, tmp_path):
    upload(gcs, bucket, "tiny/", *tiny_dataset.iterdir())
    assert train(f"gs://{bucket}/tiny", tmp_path / "far", "--cache_dir", str(tmp_path / "cache")) == 0  # type: ignore[arg-type]
    assert train(tiny_dataset, tmp_path / "near") == 0
    far, near = ((tmp_path / name / "history.csv").read_text() for name in ("far", "near"))
    header, *rows = far.splitlines()
    timeless = [i for i, name in enumerate(header.split(",")) if "loss" in name]
    assert timeless
    others = near.splitlines()[1:]
    assert [[row.split(",")[i] for i in timeless] for row in rows] == [
        [row.split(",")[i] for i in timeless] for row in others
    ]
