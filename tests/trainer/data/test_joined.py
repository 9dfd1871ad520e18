"""Several data sets as one: whose slices they are, what is read of them, and which sets do not go together."""

from __future__ import annotations

import dataclasses
import json
import shutil

import blob_dataset
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data import joined, sampling
from trainer.data.augment import Augmentation
from trainer.data.dataset import open_dataset
from trainer.data.input_pipeline import EpochPlan
from trainer.data.joined import join, open_datasets
from trainer.shell.problems import TrainingFailed, WrongUse

STRATA = ("none", "epidural", "unlabelled")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Two data sets, of the second one the studies alone are known."""
    folder = tmp_path_factory.mktemp("two")
    first = blob_dataset.make(folder / "first", patients=12, slices_a_patient=4)
    source = blob_dataset.make(folder / "source", patients=9, slices_a_patient=3, seed=1, first=500)
    return [str(first), str(blob_dataset.second_hospital(folder / "second", source))]


@pytest.fixture(scope="module")
def both(places):
    return open_datasets(places)


def test_one_place_is_that_data_set(places):
    assert open_datasets(places[:1]).parts[0].place == places[0]


def test_they_are_one_after_the_other(both, places):
    """Rows, labels and pixels as each set gives them by itself."""
    parts = [open_dataset(place) for place in places]
    assert [part.place for part in both.parts] == places
    assert both.place == " and ".join(places)
    assert both.manifest.slices == sum(part.manifest.slices for part in parts) == 12 * 4 + 9 * 3
    for name in ("train", "validation", "test"):
        slices, alone = both.split(name), [part.split(name) for part in parts]
        assert slices.part.tolist() == [0] * len(alone[0]) + [1] * len(alone[1])
        uids = [uid for part in alone for uid in part.table["sop_uid"].to_pylist()]
        assert slices.table["sop_uid"].to_pylist() == uids
        images, labels = slices.reader.read(np.arange(len(slices)))
        expected = [part.reader.read(np.arange(len(part))) for part in alone]
        np.testing.assert_array_equal(images, np.concatenate([image for image, _ in expected]))
        np.testing.assert_array_equal(labels, np.concatenate([label for _, label in expected]))
        known = slices.study_labels
        assert (known[slices.part == 0] == -1).all()
        np.testing.assert_array_equal(known[slices.part == 1], alone[1].study_labels)
    assert len(both.every()) == both.manifest.slices


def test_its_name_follows_from_its_parts(both, places):
    assert both.manifest.spec.name == "blobs"
    assert both.manifest.fingerprint not in {part.manifest.fingerprint for part in both.parts}
    assert open_datasets(places).manifest.fingerprint == both.manifest.fingerprint
    assert open_datasets(places[::-1]).manifest.fingerprint != both.manifest.fingerprint


def test_a_fold_takes_patients_of_both(both):
    trained, held = both.fold(("train", "validation", "test"), 0, 2)
    assert set(trained.part.tolist()) == set(held.part.tolist()) == {0, 1}
    keys = [set(part.table["patient_key"].to_pylist()) for part in (trained, held)]
    assert not keys[0] & keys[1]


def test_a_split_that_one_of_them_lacks(places, tmp_path):
    folder = blob_dataset.make(tmp_path / "one", patients=1, slices_a_patient=2, first=900)
    (name,) = (name for name, entry in open_dataset(str(folder)).manifest.splits.items() if entry["slices"])
    data = open_datasets([places[0], str(folder)])
    other = next(split for split in ("train", "validation", "test") if split != name)
    assert set(data.split(other).part.tolist()) == {0}
    assert set(data.split(name).part.tolist()) == {0, 1}
    with pytest.raises(WrongUse, match="'other' is not a split"):
        data.split("other")


def test_a_damaged_record_is_named_with_its_set(places, tmp_path):
    copy = shutil.copytree(places[1], tmp_path / "damaged")
    data = open_datasets([places[0], str(copy)])
    slices = data.split("train")
    shard = next(path for path in slices.paths if "damaged" in path)
    with open(shard, "r+b") as file:
        file.seek(60)
        file.write(b"\xff" * 4)
    with pytest.raises(TrainingFailed, match=r"^[^ ]*/damaged: shard blobs-train.*verify [^ ]*/damaged$"):
        slices.reader.read(np.arange(len(slices)))


# what does not go together


def test_the_same_set_twice(places):
    with pytest.raises(WrongUse, match=r"slice ID_\d+ stands in .*first and in .*first \(48 slices in all\)"):
        open_datasets([places[0], places[0]])


def test_other_windows(places, tmp_path):
    copy = shutil.copytree(places[1], tmp_path / "other")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["spec"]["image"]["windows"][0]["width_hu"] = 90
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        WrongUse, match=r"other is defined otherwise .*image.windows: .*90.*; convert one of them again"
    ):
        open_datasets([places[0], str(copy)])


@pytest.mark.parametrize("tie", ["patient_key", "study_uid"])
def test_a_patient_in_two_splits(places, tie):
    first, second = (open_dataset(place) for place in places)
    theirs = first.split("train").table[tie][0].as_py()
    rows = second.slices.to_pydict()
    held = rows["split"].index("test")
    study = rows["study_uid"][held]
    rows[tie] = [theirs if uid == study else value for uid, value in zip(rows["study_uid"], rows[tie])]
    changed = dataclasses.replace(second, slices=second.slices.from_pydict(rows, schema=second.slices.schema))
    with pytest.raises(WrongUse, match=r"train of .*first and test of .*second \(1 such patients\)"):
        join([first, changed])


def test_a_copy_for_folders_alone_is_refused(places, tmp_path):
    with pytest.raises(WrongUse, match=r"--cache_dir .* is for buckets"):
        open_datasets(places, tmp_path)


def test_columns_that_one_of_them_lacks_are_empty_there(places):
    first, second = (open_dataset(place) for place in places)
    less = dataclasses.replace(first, slices=first.slices.drop_columns(["kvp"]))
    table = join([less, second]).split("train").table
    assert table["kvp"].null_count >= len(less.split("train"))
    assert "kvp" in pq.read_schema(f"{places[1]}/slices.parquet").names


# drawing by shares of the sets


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=60), st.integers(0, 30))
def test_each_set_gets_its_share_in_each_stratum(rows, epoch):
    strata, part = (np.array(column, np.int8) for column in zip(*rows))
    counts = sampling.counts_of_parts(strata, part, STRATA, 2)
    expected = [{name: sum(s == at and p == number for s, p in rows) for at, name in enumerate(STRATA[:2])}
                for number in (0, 1)]  # fmt: skip
    assert counts == expected
    if not all(sum(one.values()) for one in counts):
        return
    of_parts = tuple(
        {name: share * inside for name, inside in sampling.proportions("balanced", one, {}).items()}
        for share, one in zip((0.25, 0.75), counts)
    )
    shares = {name: sum(one[name] for one in of_parts) for name in STRATA[:2]}
    plan = EpochPlan("balanced", shares, 1, epoch, 40, 4, 1, Augmentation(False, 0.0, 0.0), of_parts)
    order = plan.order(strata, part, STRATA)
    assert (part[order] == 0).sum() == 10
    assert (strata[order] != 2).all()
    for number, one in enumerate(of_parts):
        for at, name in enumerate(STRATA[:2]):
            drawn = ((part[order] == number) & (strata[order] == at)).sum()
            assert abs(drawn - 40 * one[name]) <= 1


def test_without_shares_the_order_is_that_of_before():
    strata, part = np.array([0, 1, 0, 0, 1, 2], np.int8), np.array([0, 0, 1, 1, 1, 1], np.int8)
    plan = EpochPlan("natural", {"none": 0.6, "epidural": 0.4}, 1, 2, 5, 1, 1, Augmentation(False, 0.0, 0.0))
    expected = sampling.epoch_order(strata, STRATA, "natural", plan.shares, 1, 2, 5)
    assert plan.order(strata, part, STRATA).tolist() == expected.tolist()


def test_the_module_has_no_name_of_a_column_in_slices_parquet(places):
    """`join` numbers the sets in a column of its own, which must not be one of the table."""
    assert joined._PART not in pq.read_schema(f"{places[0]}/slices.parquet").names
