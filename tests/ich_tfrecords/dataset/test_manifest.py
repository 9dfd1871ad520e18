from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ich_tfrecords.conversion import commit, plan
from ich_tfrecords.conversion.sidecar_file import Sidecar
from ich_tfrecords.dataset import card, manifest, records, tfds


def test_the_manifest_returns_what_was_committed(dataset, rsna_spec):
    done = manifest.read(dataset)
    assert done.spec == rsna_spec
    assert done.fingerprint == manifest.fingerprint(done.spec, done.shards)
    assert done.slices == pq.read_table(dataset / manifest.SLICES).num_rows
    for name, digest in done.files.items():
        assert hashlib.sha256((dataset / name).read_bytes()).hexdigest() == digest


def test_the_fingerprint_follows_spec_and_shards(dataset):
    done = manifest.read(dataset)
    other = [{**shard, "sha256": "0" * 64} for shard in done.shards]
    assert manifest.fingerprint(done.spec, other) != done.fingerprint


def test_slices_stand_in_spatial_order(dataset):
    rows = pq.read_table(dataset / manifest.SLICES).to_pylist()
    keys = [(row["split"], row["study_uid"], row["series_uid"], row["slice_index"]) for row in rows]
    assert keys == sorted(keys)
    for before, after in itertools.pairwise(rows):
        if before["series_uid"] == after["series_uid"] and before["split"] == after["split"]:
            assert before["position_mm"] <= after["position_mm"]


def made_index(slices: int) -> pa.Table:
    """Index of slices that lie in no order, in series of about four."""
    rows = []
    for number in range(slices):
        series = number * 7 % (slices // 4)
        facts = {"container": "in", "name": f"{number}.dcm", "sop_uid": f"s{number * 37 % slices}", "reason": ""}
        facts |= {"patient_key": f"p{series % 53 % 29}", "study_uid": f"u{series % 53}", "series_uid": f"e{series}"}
        rows.append(facts | {"position_mm": float(number * 11 % 17), "rows": 8, "columns": 8})
    return pa.Table.from_pylist(rows, plan.INDEX_SCHEMA)


def made_sidecar(shard: plan.PlannedShard) -> Sidecar:
    """Sidecar of a shard whose every third slice gave no record."""
    rows = [row for row in range(shard.slices.num_rows) if row % 3]
    offsets, digests = [row * 10 for row in rows], [f"{shard.name} {row}" for row in rows]
    return Sidecar(shard.name, shard.split, shard.stratum, len(rows), 9, "00", "11", {}, rows, offsets, digests, [])


def test_the_slice_table_against_plain_sorting(rsna_spec):
    planned = plan.build_plan(made_index(400), [], rsna_spec)
    shards = list(plan.planned_shards(planned, rsna_spec))
    sidecars = {shard.name: made_sidecar(shard) for shard in shards}
    expected = []
    for shard in shards:
        for place, row in enumerate(sidecars[shard.name].rows):
            slice_ = shard.slices.slice(row, 1).to_pylist()[0]
            ids = {name: slice_[name] for name in (*records.IDS, "position_mm", "slice_index", "slice_count")}
            told = {"split": shard.split, "stratum": shard.stratum, "shard": shard.name}
            told |= dict(zip(rsna_spec.labels.names, slice_["labels"], strict=True))
            told |= {name: slice_[name] for name in plan.FACTS_SCHEMA.names}
            expected.append(ids | told | {"row": place, "offset": row * 10, "pixel_digest": f"{shard.name} {row}"})
    keys = ("split", "study_uid", "series_uid", "slice_index", "sop_uid")
    expected.sort(key=lambda slice_: [slice_[key] for key in keys])
    assert len(shards) > 20
    assert commit.slice_table(rsna_spec, planned, sidecars).to_pylist() == expected


def test_the_card_tells_splits_windows_and_limits(dataset):
    done = manifest.read(dataset)
    text = (dataset / manifest.CARD).read_text()
    assert text == card.card(done)
    assert "brain 40/80, subdural 80/200, bone 40/380" in text
    train = done.splits["train"]
    assert f"| train | {train['slices']} | {train['patients']} | {train['studies']} |" in text
    assert done.fingerprint in text
    assert "Not a medical device" in text


@pytest.mark.parametrize(
    ("filled", "sample"),
    [(("train", "test"), "train"), (("test",), "test"), (("validation",), "validation"), ((), "train")],
)
def test_the_card_samples_a_split_with_slices_and_names_the_empty_ones(dataset, filled, sample):
    done = manifest.read(dataset)
    splits = {name: {**values, "slices": int(name in filled)} for name, values in done.splits.items()}
    changed = dataclasses.replace(done, splits=splits)
    text, empty = card.card(changed), ", ".join(name for name in splits if name not in filled)
    assert f'as_dataset(split="{sample}")' in text
    assert f"No slices fell into: {empty}." in text
    assert f"  no slices fell into: {empty}\n" in card.describe(dataset, changed) + "\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values.update(shards=None), "shards of the manifest is 'None', not a list"),
        (lambda values: values.update(shards=[1]), "shard 0 is int, not an object"),
        *[
            (lambda values, key=key: values["shards"][0].pop(key), f"shard 0 has no {key}")
            for key in ("name", "split", "stratum", "slices", "bytes", "sha256", "crc32c", "labels")
        ],
        (lambda values: values["shards"][0].update(bytes="9"), "bytes of shard 0 is '9', not a count"),
        (lambda values: values["shards"][0].update(slices=-1), "slices of shard 0 is '-1', not a count"),
        (lambda values: values["shards"][0]["labels"].clear(), "labels of shard 0 has no any"),
        (lambda values: values.update(splits=[]), "splits of the manifest is '[]', not an object"),
        (lambda values: values["splits"]["train"].pop("patients"), "split train has no patients"),
        (lambda values: values["splits"]["train"]["labels"].update(any=0), "any of labels of split train is '0'"),
        (lambda values: values["splits"].update(train=None), "split train is NoneType, not an object"),
        (lambda values: values.update(files=None), "files of the manifest is 'None', not an object"),
        (lambda values: values["files"].update(x=1), "x of files is '1', not a text"),
        (lambda values: values.update(made_from=None), "made_from of the manifest is 'None'"),
        (lambda values: values.update(rejects={"truncated": True}), "truncated of rejects is 'True', not a count"),
        (lambda values: values.update(not_drawn=1.5), "not_drawn of the manifest is '1.5', not a count"),
        (lambda values: values.update(spec=None), "spec of the manifest is 'None'"),
        (lambda values: values.pop("fingerprint"), "the manifest has no fingerprint"),
    ],
)
def test_a_damaged_manifest_says_where(dataset_copy, change, words):
    values = manifest.read_json(dataset_copy)
    change(values)
    (dataset_copy / manifest.MANIFEST).write_text(json.dumps(manifest.sealed(values)))
    with pytest.raises(manifest.DatasetError) as caught:
        manifest.read(dataset_copy)
    assert f"is damaged: {words}" in str(caught.value)
    assert str(caught.value).endswith("; restore it or convert again")


def test_the_seal_covers_every_field_but_itself(dataset):
    values = manifest.read_json(dataset)
    assert values == manifest.sealed(values) == manifest.sealed({**values, manifest.SUM: "0"})
    for key in values.keys() - {manifest.SUM}:
        assert manifest.sealed({**values, key: "other"})[manifest.SUM] != values[manifest.SUM]


def test_a_split_without_slices_is_not_told_to_tfds(dataset):
    done = manifest.read(dataset)
    empty = {**done.splits, "nobody": {"shards": 0, "bytes": 0, "slices": 0}}
    names = [split["name"] for split in tfds.info(done.spec, empty, done.shards)["splits"]]
    assert "nobody" not in names
    assert "train" in names


def test_json_files_are_what_the_functions_say(dataset, rsna_spec):
    done = manifest.read(dataset)
    assert json.loads((dataset / tfds.INFO).read_text()) == tfds.info(done.spec, done.splits, done.shards)
    assert json.loads((dataset / tfds.FEATURES).read_text()) == tfds.features(rsna_spec)


def test_groups_are_written_where_there_are_some(dataset_copy):
    path = dataset_copy / manifest.MANIFEST
    values = json.loads(path.read_text())
    assert "groups" not in values
    assert manifest.read(dataset_copy).groups == []
    path.write_text(json.dumps({**values, "groups": [["a", "b"]]}))
    assert manifest.read(dataset_copy).groups == [["a", "b"]]


@pytest.mark.parametrize("groups", [["ab"], [[]], [["a", 1]], [None]])
def test_damaged_groups_are_named(dataset_copy, groups):
    path = dataset_copy / manifest.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "groups": groups}))
    with pytest.raises(manifest.DatasetError, match=r"group 0 is .*, not a list of patient keys; restore it"):
        manifest.read(dataset_copy)


def test_rejects_name_slices_and_the_files_that_repeat_them(rsna_spec):
    rows = made_index(8).to_pylist()
    index = pa.Table.from_pylist([*rows, rows[2] | {"name": "copy/2.dcm"}], plan.INDEX_SCHEMA)
    planned = plan.build_plan(index, [], rsna_spec)
    sidecars = {}
    for shard in plan.planned_shards(planned, rsna_spec):
        numbers = range(shard.slices.num_rows, shard.slices.num_rows + shard.repeats.num_rows)
        rejects = [{"row": number, "reason": "duplicate_slice", "detail": "x"} for number in numbers]
        sidecars[shard.name] = dataclasses.replace(made_sidecar(shard), rejects=rejects)
    told = {"name": "copy/2.dcm", "sop_uid": rows[2]["sop_uid"], "reason": "duplicate_slice", "detail": "x"}
    assert commit.all_rejects(rsna_spec, planned, sidecars).to_pylist() == [told]
