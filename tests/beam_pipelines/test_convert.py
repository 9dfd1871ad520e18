"""The whole conversion, command line to data set."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from apache_beam.utils import interactive_utils

from ich_tfrecords import inspect, pixels
from ich_tfrecords.conversion import job, plan
from ich_tfrecords.dataset import manifest, records
from ich_tfrecords.dataset.verify import verify
from ich_tfrecords.dicom.ct_slice import read_slice
from ich_tfrecords.storage import atomic
from ich_tfrecords.synthetic import rsna_layout


def sha256s(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def shards_of(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in sha256s(folder).items() if ".tfrecord" in name}


def rejects(folder: Path) -> dict[str, str]:
    with (folder / manifest.REJECTS).open(newline="") as file:
        return {row["name"]: row["reason"] for row in csv.DictReader(file)}


def flags(synthetic_set, output: Path, *more: object) -> list[object]:
    folder = synthetic_set.output
    return ["--input", folder / "stage_2_train", "--labels", folder / "stage_2_train.csv", "--output", output, *more]


@pytest.fixture
def small_set(tmp_path: Path, synthetic_set) -> Path:
    """Twelve labelled slices to break, with their labels.csv."""
    folder = tmp_path / "small"
    folder.mkdir()
    files = sorted((synthetic_set.output / "stage_2_train").iterdir())[:12]
    for path in files:
        shutil.copy2(path, folder)
    stems = {path.stem for path in files}
    lines = (synthetic_set.output / "stage_2_train.csv").read_text().splitlines()
    kept = [line for line in lines if line == "ID,Label" or line.rsplit("_", 1)[0] in stems]
    (folder / "labels.csv").write_text("\n".join(kept) + "\n")
    return folder


def test_a_data_set_holds_every_slice_with_its_labels_and_pixels(dataset, synthetic_set, rsna_spec):
    done = manifest.read(dataset)
    made = {s.sop_uid: s for s in synthetic_set.slices if s.split == "train"}
    table = {row["sop_uid"]: row for row in pq.read_table(dataset / manifest.SLICES).to_pylist()}
    assert set(table) == set(made)
    assert done.slices == len(made)
    order = [rsna_layout.RSNA_LABELS.index(name) for name in rsna_spec.labels.names]
    for shard in done.shards:
        with (dataset / shard["name"]).open("rb") as file:
            for offset, payload in records.read_records(file):
                values = records.parse(payload, records.features(done.spec))
                uid = values["sop_uid"].decode()
                path = synthetic_set.output / "stage_2_train" / f"{uid}.dcm"
                image = pixels.image_of(read_slice(path.read_bytes()).hu, done.spec.image)
                assert (values["image"] == image).all()
                assert values["labels"].tolist() == [made[uid].labels[i] for i in order]
                assert table[uid]["offset"] == offset
                assert made[uid].patient_id.encode() not in payload
    assert verify(dataset).problems == []


def test_slices_cropped_to_the_head(small_set, tmp_path, convert, capsys):
    (tmp_path / "head.yaml").write_text("extends: rsna_ich\nname: heads\nimage: {crop: head}\n")
    more = ("--spec", tmp_path / "head.yaml", "--output", tmp_path / "out")
    assert convert("--input", small_set, "--labels", small_set / "labels.csv", *more) == 0
    done, changed = manifest.read(tmp_path / "out"), 0
    whole = dataclasses.replace(done.spec.image, crop="none")
    for shard in done.shards:
        with (tmp_path / "out" / shard["name"]).open("rb") as file:
            for _, payload in records.read_records(file):
                values = records.parse(payload, records.features(done.spec))
                hu = read_slice((small_set / f"{values['sop_uid'].decode()}.dcm").read_bytes()).hu
                np.testing.assert_array_equal(values["image"], pixels.image_of(hu, done.spec.image))
                changed += not np.array_equal(values["image"], pixels.image_of(hu, whole))
    assert changed > done.slices / 2
    assert verify(tmp_path / "out").problems == []
    capsys.readouterr()
    assert inspect.main(["info", str(tmp_path / "out")]) == 0
    assert "the square around the head" in capsys.readouterr().out


def test_the_summary_tells_what_was_done(synthetic_set, tmp_path, convert, capfd):
    assert convert(*flags(synthetic_set, tmp_path / "out")) == 0
    out, err = capfd.readouterr()
    count = sum(s.split == "train" for s in synthetic_set.slices)
    assert f"{count:,} slices in" in out
    assert f"wrote    {count:,} records" in out
    assert "unusable none" in out
    assert "ms a slice in one worker: read" in out
    assert f"convert [########################] {count:,}/{count:,} slices" in err
    assert "arning" not in err
    assert not (tmp_path / "out" / ".work").exists()


def test_a_second_run_writes_nothing(dataset, synthetic_set, convert, capsys):
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in dataset.iterdir()}
    assert convert(*flags(synthetic_set, dataset)) == 0
    assert "complete already" in capsys.readouterr().out
    assert before == {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in dataset.iterdir()}


def test_folder_and_zip_give_the_same_shards(dataset, synthetic_zip, tmp_path, convert):
    """Labels come out of the zip too."""
    output = tmp_path / "zipped"
    labels = "stage_2_train.csv"
    assert (
        convert("--input", synthetic_zip, "--include", "*/stage_2_train/*", "--labels", labels, "--output", output) == 0
    )
    assert shards_of(output) == shards_of(dataset)


def test_a_mixed_zip_without_include_says_which_flag_helps(synthetic_zip, tmp_path, convert, capsys):
    flags = ("--input", synthetic_zip, "--labels", "stage_2_train.csv", "--output", tmp_path / "out")
    assert convert(*flags) == 2
    assert "--include '*/stage_2_train/*'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_defects_are_named_or_repaired(defective_set, tmp_path, convert, capsys):
    output = tmp_path / "out"
    assert convert(*flags(defective_set, output, "--max_reject_fraction", "0.2")) == 0
    expected = {"truncated": "truncated", "empty_file": "empty_file", "text_file": "not_dicom", "no_labels": "no_label"}
    files = {defect.file: expected[defect.name] for defect in defective_set.defects if defect.name in expected}
    assert rejects(output) == files
    assert "unusable 1 empty_file, 1 not_dicom, 1 truncated" in capsys.readouterr().out
    checked = verify(output)
    assert checked.problems == []
    assert any("1 images stand under several patients" in note for note in checked.notes)


def test_too_many_rejects_commit_nothing(defective_set, tmp_path, convert, capsys):
    output = tmp_path / "out"
    assert convert(*flags(defective_set, output, "--max_reject_fraction", "0.02")) == 1
    err = capsys.readouterr().err
    assert "more than --max_reject_fraction 0.02 allows" in err
    assert "nothing was committed" in err
    with pytest.raises(manifest.DatasetError, match=r"holds no manifest\.json"):
        verify(output)
    # the same command with a greater limit goes on where that one stopped
    assert convert(*flags(defective_set, output, "--max_reject_fraction", "0.2")) == 0


def test_an_interrupted_run_resumes_and_keeps_finished_shards(dataset, synthetic_set, tmp_path, convert, monkeypatch):
    output = tmp_path / "out"
    names = []
    real_write = atomic.replacing

    def stop_after_three(path, *args):
        if ".tfrecord" in path.name and path.parent == output:
            names.append(path.name)
            if len(names) > 3:
                raise KeyboardInterrupt
        return real_write(path, *args)

    monkeypatch.setattr(atomic, "replacing", stop_after_three)
    assert convert(*flags(synthetic_set, output)) in (1, 130)
    monkeypatch.setattr(atomic, "replacing", real_write)
    finished = [name for name in names[:3] if (output / name).exists()]
    assert len(finished) == 3
    before = {name: (output / name).stat().st_ino for name in finished}
    assert convert(*flags(synthetic_set, output)) == 0
    assert before == {name: (output / name).stat().st_ino for name in finished}
    assert sha256s(output) == sha256s(dataset)


def test_each_index_part_is_read_once(synthetic_set, tmp_path, convert, monkeypatch):
    """By the run that has them made, and by one that goes on, which needs no listing either."""
    monkeypatch.setattr(job, "LISTING_ROWS", 10)
    output, real, read = tmp_path / "out", atomic.read_many, Counter()

    def counting(paths):
        read.update(str(path.relative_to(output / job.WORK)) for path in paths)
        return real(paths)

    monkeypatch.setattr(atomic, "read_many", counting)
    every = dict.fromkeys(
        (f"index/00000{number}.{suffix}" for number in range(6) for suffix in ("parquet", "sha256")), 1
    )
    with monkeypatch.context() as patch:
        patch.setattr(plan, "build_plan", _interrupted)
        for _ in range(2):
            read.clear()
            assert convert(*flags(synthetic_set, output)) == 130
            assert read == every
    (output / job.WORK / "index" / "000003.parquet").write_bytes(b"damaged")
    read.clear()
    assert convert(*flags(synthetic_set, output)) == 0
    again = {"index/000003.parquet", "index/000003.sha256"}  # as it was, and as it was made again
    assert {name: times for name, times in read.items() if name.startswith("index")} == {
        name: 2 if name in again else 1 for name in every
    }
    assert {name for name in read if name.startswith("listing")} == {"listing/000003.parquet", "listing/000003.sha256"}


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_changed_spec_refuses_to_mix(dataset, synthetic_set, convert, tmp_path, capsys):
    path = tmp_path / "s.yaml"
    path.write_text("extends: rsna_ich\nimage: {size_px: 64}\n")
    assert convert(*flags(synthetic_set, dataset, "--spec", path)) == 2
    assert "spec image.size_px: 128, now 64" in capsys.readouterr().err
    assert convert(*flags(synthetic_set, dataset, "--subset", "train=5")) == 2
    assert "spec split.subset.train: None, now 5" in capsys.readouterr().err


def test_changed_labels_and_input_refuse_to_mix(small_set, tmp_path, convert, capsys):
    command = ("--input", small_set, "--labels", small_set / "labels.csv", "--output", tmp_path / "out")
    assert convert(*command) == 0
    labels = (small_set / "labels.csv").read_text()
    (small_set / "labels.csv").write_text(labels + "ID_ffffffff0_any,0\n")
    assert convert(*command) == 2
    assert "labels: sha256" in capsys.readouterr().err
    (small_set / "labels.csv").write_text(labels)
    first = min(small_set.glob("*.dcm"))
    os.utime(first, ns=(1, 1))
    assert convert(*command) == 2
    assert "input: files 12" in capsys.readouterr().err
    first.unlink()
    assert convert(*command) == 2
    assert "now files 11" in capsys.readouterr().err


def test_an_unfinished_directory_refuses_another_job(small_set, tmp_path, convert, capsys):
    (small_set / "bad.dcm").write_bytes(b"")
    command = ("--input", small_set, "--labels", "none", "--output", tmp_path / "out")
    assert convert(*command) == 1
    assert convert(*command, "--spec", "unlabelled", "--max_reject_fraction", 1) == 2
    assert "spec name: rsna_ich, now unlabelled_ich" in capsys.readouterr().err


def test_the_patient_key_file_keys_the_hash_and_is_private(small_set, tmp_path, convert, capfd):
    key = tmp_path / "key"
    command = ("--input", small_set, "--labels", "none", "--patient_key_file", key)
    assert convert(*command, "--output", tmp_path / "a") == 0
    assert convert(*command, "--output", tmp_path / "b") == 0
    assert convert("--input", small_set, "--labels", "none", "--output", tmp_path / "c") == 0
    assert key.stat().st_mode & 0o777 == 0o600
    assert shards_of(tmp_path / "a") == shards_of(tmp_path / "b") != shards_of(tmp_path / "c")
    secret = key.read_text().strip()
    assert secret not in "".join(capfd.readouterr())
    for path in (tmp_path / "a").iterdir():
        assert secret.encode() not in path.read_bytes()
    key.write_text("short")
    assert convert(*command, "--output", tmp_path / "d") == 2


def test_patient_ids_stay_inside(synthetic_set, dataset):
    ids = {made.patient_id.encode() for made in synthetic_set.slices}
    for path in dataset.iterdir():
        data = path.read_bytes()
        assert not any(patient in data for patient in ids), path.name


def test_work_files_hold_no_patient_id_either(defective_set, tmp_path, convert):
    assert convert(*flags(defective_set, tmp_path / "out", "--max_reject_fraction", 0.02)) == 1
    ids = {made.patient_id.encode() for made in defective_set.slices}
    files = list((tmp_path / "out" / ".work").rglob("*.parquet"))
    assert files
    for path in files:
        text = str(pq.read_table(path).to_pydict()).encode()
        assert not any(patient in text for patient in ids), path


def test_unlabelled_slices_convert_into_one_split(small_set, tmp_path, convert):
    assert convert("--input", small_set, "--labels", "none", "--spec", "unlabelled", "--output", tmp_path / "o") == 0
    done = manifest.read(tmp_path / "o")
    assert list(done.splits) == ["test"]
    assert done.splits["test"]["labels"]["any"] == {"positive": 0, "negative": 0, "unknown": 12}
    assert done.splits["test"]["strata"] == {"unlabelled": 12}


def test_the_subset_flag_draws(synthetic_set, tmp_path, convert):
    assert convert(*flags(synthetic_set, tmp_path / "o", "--subset", "train=9")) == 0
    done = manifest.read(tmp_path / "o")
    assert done.splits["train"]["slices"] == 9
    assert done.not_drawn > 0
    assert done.spec.split.subset == {"train": 9}


@pytest.mark.real
def test_real_slices(real_dicom_dir, tmp_path, convert):
    output = tmp_path / "o"
    more = ("--labels", "none", "--output", output, "--max_reject_fraction", 0.5)
    assert convert("--input", real_dicom_dir, *more) == 0
    rows = pq.read_table(output / manifest.SLICES).to_pylist()
    studies: dict[str, list[dict]] = {}
    for row in rows:
        studies.setdefault(row["study_uid"], []).append(row)
    assert sorted(map(len, studies.values())) == [1, 28]
    head = max(studies.values(), key=len)
    assert [row["slice_index"] for row in head] == list(range(28))
    assert [row["position_mm"] for row in head] == sorted(row["position_mm"] for row in head)
    found = {Path(name).name: reason for name, reason in rejects(output).items()}
    assert (
        found.items()
        >= {
            "DICOMDIR": "no_pixel_data",
            "philips_localizer_256x512": "localizer",
            "philips_rgb_results_512x650": "color",
            "philips_survey_secondary_256x512": "derived_secondary",
        }.items()
    )
    assert verify(output).problems == []


def test_the_manifest_is_plain_and_complete(dataset):
    values = json.loads((dataset / manifest.MANIFEST).read_text())
    assert values["format"] == 1
    of_others = {"README.md", "croissant.json", "dataset_info.json", "features.json"}
    assert set(values["files"]) == {*of_others, "rejects.csv", "slices.parquet"}
    assert {shard["name"] for shard in values["shards"]} == {path.name for path in dataset.glob("*.tfrecord*")}
    assert sum(split["slices"] for split in values["splits"].values()) == sum(s["slices"] for s in values["shards"])


def interrupted(convert, monkeypatch, after: int, *command: object) -> None:
    """Run `command` until `after` shards are written."""
    real_write, written = atomic.replacing, []

    def stopping(path, *args):
        if ".tfrecord" in path.name and path.parent.name != "plan" and path.suffix != ".json":
            written.append(path)
            if len(written) > after:
                raise KeyboardInterrupt
        return real_write(path, *args)

    monkeypatch.setattr(atomic, "replacing", stopping)
    assert convert(*command) in (1, 130)
    monkeypatch.setattr(atomic, "replacing", real_write)


def test_a_moved_input_resumes_at_its_new_place(small_set, tmp_path, convert, monkeypatch):
    """The old listing would send the workers to a folder that is gone, and good slices to rejects.csv."""
    command = ("--labels", "none", "--output", tmp_path / "out")
    interrupted(convert, monkeypatch, 3, "--input", small_set, *command)
    moved = small_set.rename(tmp_path / "moved")
    assert convert("--input", moved, *command) == 0
    assert manifest.read(tmp_path / "out").slices == 12
    assert rejects(tmp_path / "out") == {}


def test_a_file_that_can_be_read_again_is_read_again(small_set, tmp_path, convert, monkeypatch):
    command = ("--input", small_set, "--labels", "none", "--output", tmp_path / "out")
    first = min(small_set.glob("*.dcm")).name
    real_open = os.open

    def refusing(path, *args, **kwargs):
        if str(path).endswith(first):
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refusing)
    assert convert(*command) == 1
    monkeypatch.setattr(os, "open", real_open)
    assert convert(*command) == 0
    assert rejects(tmp_path / "out") == {}


def test_a_job_that_finished_while_we_waited_is_not_overwritten(small_set, tmp_path, convert, monkeypatch, capsys):
    from ich_tfrecords.conversion import job

    output, real_claim = tmp_path / "out", job.claim
    other = tmp_path / "other"
    shutil.copytree(small_set, other)
    min(other.glob("*.dcm")).unlink()

    def slow_claim(folder):
        monkeypatch.setattr(job, "claim", real_claim)
        assert convert("--input", other, "--labels", "none", "--output", output) == 0
        return real_claim(folder)

    monkeypatch.setattr(job, "claim", slow_claim)
    assert convert("--input", small_set, "--labels", "none", "--output", output) == 2
    assert "was made from something else" in capsys.readouterr().err
    assert manifest.read(output).slices == 11
    assert verify(output).problems == []


def test_a_finished_set_that_lost_a_shard_says_so(dataset_copy, synthetic_set, convert, capsys):
    min(dataset_copy.glob("*.tfrecord*")).unlink()
    assert convert(*flags(synthetic_set, dataset_copy)) == 2
    assert "is damaged: rsna_ich-" in capsys.readouterr().err


def test_labels_are_found_in_a_zip_that_a_glob_names(synthetic_zip, tmp_path, convert):
    glob = synthetic_zip.parent / "*.zip"
    include = ("--include", "*/stage_2_train/*")
    assert convert("--input", glob, *include, "--labels", "stage_2_train.csv", "--output", tmp_path / "o") == 0


def test_damaged_work_files(small_set, tmp_path, convert, monkeypatch, capsys):
    command = ("--input", small_set, "--labels", "none", "--output", tmp_path / "out")
    interrupted(convert, monkeypatch, 3, *command)
    sidecar = min((tmp_path / "out" / ".work" / "sidecars").iterdir())
    sidecar.write_text("{}")
    state = (tmp_path / "out" / ".work" / "job.json").read_text()
    (tmp_path / "out" / ".work" / "job.json").write_text("")
    assert convert(*command) == 2
    assert "job.json is damaged" in capsys.readouterr().err
    (tmp_path / "out" / ".work" / "job.json").write_text(state)
    assert convert(*command) == 0
    assert verify(tmp_path / "out").problems == []


def test_an_include_that_drops_a_whole_input_is_refused(small_set, tmp_path, convert, capsys):
    other = tmp_path / "stage"
    (other / "wanted").mkdir(parents=True)
    shutil.copy2(min(small_set.glob("*.dcm")), other / "wanted")
    both = ("--input", small_set, "--input", other, "--include", "*/wanted/*")
    assert convert(*both, "--labels", "none", "--output", tmp_path / "out") == 2
    assert f"matches none of the slices in {small_set}" in capsys.readouterr().err


def test_in_a_notebook_it_converts_as_in_a_terminal(synthetic_set, tmp_path, convert, monkeypatch):
    """There Beam would name its steps after cells, and import for it what fails beside pandas 3."""
    monkeypatch.setattr(interactive_utils, "is_in_ipython", in_a_notebook := lambda: True)
    flags = ("--labels", "none", "--spec", "unlabelled", "--output", tmp_path / "out")
    assert convert("--input", synthetic_set.output / "stage_2_test", *flags) == 0
    assert interactive_utils.is_in_ipython is in_a_notebook
