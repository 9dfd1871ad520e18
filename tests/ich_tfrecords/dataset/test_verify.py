"""What `verify` must find: every test damages one thing in a copy of a good data set."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dicom_files import dicom_file, head_slice, slice_elements

from ich_tfrecords.dataset import manifest, records, splits
from ich_tfrecords.dataset.verify import verify


def first_shard(folder: Path) -> Path:
    return min(folder.glob("*.tfrecord*"))


def problems(folder: Path) -> str:
    found = verify(folder).problems
    assert found, "the damage went unnoticed"
    return "\n".join(found)


def rewrite_manifest(folder: Path, change) -> None:
    path = folder / manifest.MANIFEST
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(manifest.sealed(values)))


def rewrite_slices(folder: Path, change) -> None:
    """Change slices.parquet and let the manifest agree with it."""
    path = folder / manifest.SLICES
    rows = pq.read_table(path)
    changed = rows.to_pylist()
    change(changed)
    pq.write_table(pa.Table.from_pylist(changed, rows.schema), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    rewrite_manifest(folder, lambda values: values["files"].update({manifest.SLICES: digest}))


def test_a_good_data_set_passes(dataset):
    done = verify(dataset)
    assert done.problems == []
    assert (done.shards, done.slices) == (len(manifest.read(dataset).shards), manifest.read(dataset).slices)


def test_progress_is_told(dataset):
    calls: list[tuple[int, int]] = []
    verify(dataset, lambda number, total: calls.append((number, total)))
    count = len(manifest.read(dataset).shards)
    assert calls == [(number, count) for number in range(1, count + 1)]


@pytest.mark.parametrize("place", [0, 9, 40, 30_000, -2])
def test_a_flipped_bit_names_shard_and_record(dataset_copy, place):
    path = first_shard(dataset_copy)
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)
    found = problems(dataset_copy)
    assert f"{path.name}: record " in found
    assert "its sha256 is not the one in manifest.json" in found


def test_a_shortened_and_a_missing_shard(dataset_copy):
    path = first_shard(dataset_copy)
    path.write_bytes(path.read_bytes()[:-10])
    assert f"{path.name}: record " in problems(dataset_copy)
    path.unlink()
    assert f"{path.name}: No such file" in problems(dataset_copy)


def test_a_shard_cut_between_records(dataset_copy):
    done = manifest.read(dataset_copy)
    shard = max(done.shards, key=lambda entry: entry["slices"])
    path = dataset_copy / shard["name"]
    with path.open("rb") as file:
        offsets = [offset for offset, _ in records.read_records(file)]
    path.write_bytes(path.read_bytes()[: offsets[-1]])
    assert f"{shard['slices'] - 1} records; slices.parquet has {shard['slices']}" in problems(dataset_copy)


def test_two_swapped_records(dataset_copy):
    done = manifest.read(dataset_copy)
    shard = max(done.shards, key=lambda entry: entry["slices"])
    path = dataset_copy / shard["name"]
    with path.open("rb") as file:
        payloads = [payload for _, payload in records.read_records(file)]
    payloads[0], payloads[1] = payloads[1], payloads[0]
    path.write_bytes(b"".join(b"".join(records.frame(payload)) for payload in payloads))
    assert f"{shard['name']}: record 0 at byte 0: sop_uid" in problems(dataset_copy)


def test_pixels_that_do_not_fit_their_digest(dataset_copy):
    path = first_shard(dataset_copy)
    spec = manifest.read(dataset_copy).spec
    with path.open("rb") as file:
        payloads = [payload for _, payload in records.read_records(file)]
    values = records.parse(payloads[0], records.features(spec))
    values["image"] = values["image"] ^ 1
    payloads[0] = records.encode(values, records.features(spec))
    path.write_bytes(b"".join(b"".join(records.frame(payload)) for payload in payloads))
    assert "the pixels do not fit their digest" in problems(dataset_copy)


@pytest.mark.parametrize(
    "name", ["slices.parquet", "rejects.csv", "dataset_info.json", "features.json", "README.md", "croissant.json"]
)
def test_changed_and_missing_metadata(dataset_copy, name):
    path = dataset_copy / name
    path.write_bytes(path.read_bytes() + b" ")
    assert f"{name}: its sha256 is not the one in manifest.json" in problems(dataset_copy)
    path.unlink()
    assert f"{name}: is missing" in problems(dataset_copy)


def test_a_changed_label_in_the_table(dataset_copy):
    def flip(rows):
        rows[0]["subdural"] = 1 - rows[0]["subdural"]

    rewrite_slices(dataset_copy, flip)
    found = problems(dataset_copy)
    assert "subdural " in found
    assert "the counts of split" in found


def test_a_patient_in_a_foreign_split(dataset_copy):
    def move(rows):
        rows[0]["split"] = "test" if rows[0]["split"] != "test" else "train"

    rewrite_slices(dataset_copy, move)
    found = problems(dataset_copy)
    told = r"patients outside the split of their group: 1 \(first: \w+ in \w+, its group says \w+\); convert again"
    assert re.search(told, found)
    assert re.search(r"values of patient_key in several splits: 1 \(first: \w+ in \w+ and \w+\); convert again", found)


@pytest.fixture
def merged(tmp_path, convert) -> Path:
    """Eight studies, each under two patient ids (a merge in the archive), converted."""
    for study in range(8):
        for number in range(2):
            ids = {
                "PatientID": f"p{study}{number}",
                "StudyInstanceUID": f"1.{study}",
                "SeriesInstanceUID": f"2.{study}",
            }
            values = {name: value.encode() for name, value in ids.items()}
            elements = slice_elements(head_slice(), SOPInstanceUID=f"3.{study}.{number}".encode(), **values)
            (tmp_path / "in").mkdir(exist_ok=True)
            (tmp_path / "in" / f"{study}{number}.dcm").write_bytes(dicom_file(elements))
    assert convert("--input", tmp_path / "in", "--labels", "none", "--output", tmp_path / "out") == 0
    return tmp_path / "out"


def by_study(rows: list[dict]) -> dict[str, set[str]]:
    """The splits of each study."""
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row["study_uid"], set()).add(row["split"])
    return found


def test_patients_that_share_a_study_stand_in_one_split(merged):
    rows = pq.read_table(merged / manifest.SLICES).to_pylist()
    assert [len(found) for found in by_study(rows).values()] == [1] * 8
    done = manifest.read(merged)
    assert sorted(map(len, done.groups)) == [2] * 8
    own = splits.split_of([row["patient_key"] for row in rows], done.spec.split).tolist()
    assert {"test", "train"} <= {row["split"] for row in rows}
    assert [splits.split_names(done.spec.split)[split] for split in own] != [row["split"] for row in rows]
    assert verify(merged).problems == []
    assert "patient ids that share a study or series stand in one split: 16 of them, groups: 8" in verify(merged).notes


def test_a_torn_study_is_damage_in_a_set_of_an_older_version(merged):
    """Such a set has no groups in its manifest, and each patient in the split of its own key."""

    def tear(rows):
        names = splits.split_names(manifest.read(merged).spec.split)
        for row in rows:
            row["split"] = names[splits.split_of([row["patient_key"]], manifest.read(merged).spec.split)[0]]

    rewrite_slices(merged, tear)
    rewrite_manifest(merged, lambda values: values.pop("groups"))
    found = problems(merged)
    assert re.search(r"values of study_uid in several splits: \d \(first: 1.\d in \w+ and \w+\); convert again", found)
    assert "values of series_uid in several splits" in found
    rows = pq.read_table(merged / manifest.SLICES).to_pylist()
    split_of = {row["patient_key"]: row["split"] for row in rows}
    heads = {study: min(row["patient_key"] for row in rows if row["study_uid"] == study) for study in by_study(rows)}
    torn = [row for row in rows if row["split"] != split_of[heads[row["study_uid"]]]]
    first = min(row["patient_key"] for row in torn)
    (line,) = [line for line in found.splitlines() if "its group says" in line]
    assert f"patients outside the split of their group: {len(torn)} (first: {first} in {split_of[first]}, " in line


def test_a_tie_that_no_record_shows_any_more_is_known_from_the_manifest(merged):
    """The slices that tie two patients may have turned out damaged, or lie outside the subset."""
    keys = {key for group in manifest.read(merged).groups for key in group[:1]}

    def untie(rows):
        for row in rows:
            if row["patient_key"] in keys:
                row["study_uid"], row["series_uid"] = f"9{row['study_uid']}", f"9{row['series_uid']}"

    rewrite_slices(merged, untie)
    lines = problems(merged).splitlines()
    assert [line for line in lines if ".tfrecord" not in line and "the counts of split" not in line] == []
    rewrite_manifest(merged, lambda values: values.pop("groups"))
    assert "its group says" in problems(merged)


def test_a_stranger_among_the_shards(dataset_copy):
    (dataset_copy / "rsna_ich-train.tfrecord-99999-of-00100").write_bytes(b"")
    assert "is no shard of this data set" in problems(dataset_copy)


def test_a_changed_spec_breaks_the_fingerprint(dataset_copy):
    rewrite_manifest(dataset_copy, lambda values: values["spec"]["image"]["windows"][0].update(level_hu=41))
    assert "the fingerprint does not fit" in problems(dataset_copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values.update(not_drawn=values["not_drawn"] + 3), "files, but slices, rejects and"),
        (lambda values: values["made_from"]["input"].update(files=1), "the input had 1 files"),
        (lambda values: values.update(rejects={"truncated": 1}), "the counts of rejects do not fit rejects.csv"),
    ],
)
def test_counts_that_do_not_add_up(dataset_copy, change, words):
    rewrite_manifest(dataset_copy, change)
    assert words in problems(dataset_copy)


def test_a_set_that_does_not_tell_its_input_passes(dataset_copy):
    rewrite_manifest(dataset_copy, lambda values: values.update(made_from={}))
    assert verify(dataset_copy).problems == []


def test_rejects_are_counted_by_reason(defective_set, tmp_path, convert):
    folder, output = defective_set.output, tmp_path / "o"
    flags = ("--labels", folder / "stage_2_train.csv", "--max_reject_fraction", 1)
    assert convert("--input", folder / "stage_2_train", "--output", output, *flags) == 0
    assert manifest.read(output).rejects
    assert verify(output).problems == []


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["made_from"].update(note="elsewhere"),
        lambda values: values.update(labels_unused=values["labels_unused"] + 1),
        lambda values: values.update(generator="another"),
        lambda values: values.pop("manifest_sha256"),
        lambda values: values.update(more=1),
    ],
)
def test_any_edit_of_the_manifest_shows(dataset_copy, change):
    path = dataset_copy / manifest.MANIFEST
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    assert "its manifest_sha256 does not fit" in problems(dataset_copy)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "holds no manifest.json, so it is no data set"),
        ("{", "cannot read"),
        ("[]", "has format None; this version reads format 1"),
        ('{"format": 2}', "has format 2"),
        ('{"format": 1, "spec": {}}', "is damaged|missing key"),
    ],
)
def test_no_manifest_no_data_set(dataset_copy, text, words):
    path = dataset_copy / manifest.MANIFEST
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(manifest.DatasetError, match=words):
        verify(dataset_copy)
