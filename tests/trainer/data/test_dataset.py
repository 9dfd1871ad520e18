import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ich_tfrecords.dataset import records, splits
from trainer.data.dataset import Dataset, Slices, open_dataset
from trainer.shell.problems import WrongUse


@pytest.fixture(scope="module")
def opened(tiny_dataset: Path) -> Dataset:
    return open_dataset(str(tiny_dataset))


def shard_of(folder: Path, split: str = "train") -> Path:
    return sorted(folder.glob(f"*-{split}.tfrecord-*"))[1]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_columns_say_what_the_shards_hold(opened, split):
    slices = opened.split(split)
    table = records.features(slices.spec)
    row = 0
    for number, path in enumerate(slices.paths):
        with open(path, "rb") as file:
            for record, (offset, payload) in enumerate(records.read_records(file)):
                values = records.parse(payload, table)
                assert (slices.shard[row], slices.record[row]) == (number, record)
                assert (slices.offset[row], slices.length[row]) == (offset, len(payload))
                assert slices.labels[row].tolist() == values["labels"].tolist()
                assert slices.table["sop_uid"][row].as_py() == values["sop_uid"].decode()
                assert slices.spec.labels.strata[slices.stratum[row]] == slices.table["stratum"][row].as_py()
                row += 1
    assert row == len(slices) == opened.manifest.splits[split]["slices"]
    assert slices.split == split
    assert slices.names == tuple(Path(path).name for path in slices.paths)


def test_columns_have_their_types(opened):
    slices = opened.split("train")
    types = {name: getattr(slices, name).dtype for name in ("shard", "record", "offset", "length", "stratum", "labels")}
    expected = {"shard": "int32", "record": "int32", "offset": "int64", "length": "int64", "stratum": "int8"}
    assert types == {**expected, "labels": "int8"}
    assert slices.labels.shape == (len(slices), 6)


def test_strata_are_counted_without_the_unlabelled(opened):
    slices = opened.split("train")
    counted = Counter(slices.table["stratum"].to_pylist())
    assert slices.stratum_counts == {name: counted[name] for name in slices.spec.labels.strata[:-1]}
    unlabelled = np.array([0, 5, 6, 6], np.int8)
    some = dataclasses.replace(slices, stratum=unlabelled)
    assert some.labelled.tolist() == [True, True, False, False]
    assert sum(some.stratum_counts.values()) == 2


def test_local_shards_are_read_in_any_order_unless_streams_are_asked_for(opened):
    assert opened.split("train").random_access
    assert not opened.split("train", stream=True).random_access


def test_a_reader_belongs_to_its_slices(opened):
    slices = opened.split("train")
    assert slices.reader is slices.reader
    assert slices.reader is not opened.split("train").reader


def test_a_folder_without_manifest_says_how_to_convert(tmp_path):
    with pytest.raises(WrongUse) as caught:
        open_dataset(str(tmp_path))
    assert "holds no manifest.json" in str(caught.value)
    assert f"python -m beam_pipelines.convert --input ... --labels ... --output {tmp_path}" in str(caught.value)
    with pytest.raises(WrongUse, match="holds no manifest"):
        open_dataset(str(tmp_path / "nowhere"))


def test_a_damaged_manifest_is_wrong_use(dataset_copy):
    (dataset_copy / "manifest.json").write_text('{"format": 1, "spec": {}}')
    with pytest.raises(WrongUse, match="damaged"):
        open_dataset(str(dataset_copy))


def test_an_unknown_split_names_those_with_slices(opened):
    with pytest.raises(WrongUse, match=r"'tarin' is not a split; the splits with slices are .*train"):
        opened.split("tarin")


def test_a_split_without_slices(opened):
    empty = {**opened.manifest.splits["test"], "slices": 0}
    manifest = dataclasses.replace(opened.manifest, splits={**opened.manifest.splits, "test": empty})
    with pytest.raises(WrongUse, match="'test' has no slices; the splits with slices are ") as caught:
        dataclasses.replace(opened, manifest=manifest).split("test")
    assert "test" not in str(caught.value).split("are ")[1]


def test_a_missing_shard_is_named_and_other_splits_open(dataset_copy):
    shard = shard_of(dataset_copy)
    shard.unlink()
    opened = open_dataset(str(dataset_copy))
    with pytest.raises(WrongUse, match=f"shard {shard.name} is missing; .*inspect verify {dataset_copy}"):
        opened.split("train")
    assert isinstance(opened.split("validation"), Slices)


def test_a_shortened_shard_is_named_with_both_sizes(dataset_copy):
    shard = shard_of(dataset_copy)
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    told = f"shard {shard.name} has {len(data) - 1:,} bytes, the manifest says {len(data):,}; .*inspect verify"
    with pytest.raises(WrongUse, match=told):
        open_dataset(str(dataset_copy)).split("train")


def test_a_changed_slice_table_is_refused(dataset_copy):
    path = dataset_copy / "slices.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(WrongUse, match=r"the sha256 of slices.parquet is not the one in manifest.json"):
        open_dataset(str(dataset_copy))
    path.unlink()
    with pytest.raises(WrongUse, match="cannot read the data set"):
        open_dataset(str(dataset_copy))


def test_a_stratum_that_the_labels_do_not_know_is_refused(opened):
    named = [name.replace("subdural", "subgaleal") for name in opened.slices["stratum"].to_pylist()]
    place = opened.slices.schema.get_field_index("stratum")
    strange = dataclasses.replace(opened, slices=opened.slices.set_column(place, "stratum", [named]))
    with pytest.raises(WrongUse, match=r"stratum 'subgaleal' is not known to manifest.json"):
        strange.split("train")


def test_a_manifest_of_another_format_is_wrong_use(dataset_copy):
    path = dataset_copy / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(WrongUse, match="format 99"):
        open_dataset(str(dataset_copy))


# folds


def test_the_folds_hold_every_patient_out_once(opened):
    pool = {uid for name in ("train", "validation") for uid in opened.split(name).table["sop_uid"].to_pylist()}
    seen: list[str] = []
    for fold in range(3):
        train, held = opened.fold(("train", "validation"), fold, 3)
        ids = [set(part.table["sop_uid"].to_pylist()) for part in (train, held)]
        assert ids[0] | ids[1] == pool
        assert not set(train.table["patient_key"].to_pylist()) & set(held.table["patient_key"].to_pylist())
        assert (train.split, held.split) == (f"all but fold {fold} of 3", f"fold {fold} of 3")
        seen += held.table["sop_uid"].to_pylist()
    assert sorted(seen) == sorted(pool)


def tied(opened: Dataset, share: int) -> Dataset:
    """The data set with one study for the first `share` patients of the pool."""
    keys = sorted(set(opened.slices.filter(pc.not_equal(opened.slices["split"], "test"))["patient_key"].to_pylist()))
    some = pc.is_in(opened.slices["patient_key"], value_set=pa.array(keys[:share]))
    study = pc.if_else(some, "one", opened.slices["study_uid"])
    at = opened.slices.schema.get_field_index("study_uid")
    return dataclasses.replace(opened, slices=opened.slices.set_column(at, "study_uid", study))


def test_patients_of_one_study_share_a_fold(opened):
    torn = tied(opened, 5)
    pools = [torn.fold(("train", "validation"), fold, 5) for fold in range(5)]
    assert len({fold for fold, (_, held) in enumerate(pools) if "one" in held.table["study_uid"].to_pylist()}) == 1
    for train, held in pools:
        assert not set(train.table["study_uid"].to_pylist()) & set(held.table["study_uid"].to_pylist())
        own = splits.fold_of(held.table["patient_key"].to_pylist(), opened.manifest.spec.split.salt, 5)
        alone = np.array(held.table["study_uid"].to_pylist()) != "one"
        assert len(set(own[alone].tolist())) == 1  # nobody else has moved


def test_the_groups_of_the_manifest_share_a_fold_though_no_record_ties_them(opened):
    keys = sorted(set(opened.split("train").table["patient_key"].to_pylist()))
    groups = [["0", *keys[:4]]]  # the first key has no record
    known = dataclasses.replace(opened, manifest=dataclasses.replace(opened.manifest, groups=groups))
    found = [
        fold
        for fold in range(5)
        if set(keys[:4]) & set(known.fold(("train", "validation"), fold, 5)[1].table["patient_key"].to_pylist())
    ]
    assert found == splits.fold_of(["0"], opened.manifest.spec.split.salt, 5).tolist()


def test_the_records_of_a_fold_are_read_from_their_places(opened):
    """A fold leaves rows out, and the length of a record must not reach over them."""
    _, held = opened.fold(("train", "validation"), 1, 3)
    images, labels = held.reader.read(np.arange(len(held)))
    assert images.shape == (len(held), 32, 32, 3)
    np.testing.assert_array_equal(labels, held.labels)


def test_folds_without_patients_are_refused(opened):
    with pytest.raises(WrongUse, match=r"fold 0 of 1 holds all of the 31 patients of train and validation"):
        opened.fold(("train", "validation"), 0, 1)
    with pytest.raises(WrongUse, match=r"holds none of the"):
        [opened.fold(("train", "validation"), fold, 500) for fold in range(500)]


def test_folds_need_files(opened):
    with pytest.raises(
        WrongUse, match=r"folds need the shards as files; .* with --cache_dir DIR, and name that folder"
    ):
        dataclasses.replace(opened, local=False).fold(("train", "validation"), 0, 5)


def test_a_fold_of_an_unknown_split(opened):
    with pytest.raises(WrongUse, match="'dev' is not a split; the splits with slices are"):
        opened.fold(("train", "dev"), 0, 5)
