from __future__ import annotations

import hashlib
import itertools
import json

import pyarrow.parquet as pq
import pytest

from ich_tfrecords import card, manifest, tfds


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


@pytest.mark.parametrize(
    ("text", "cell"),
    [("=1+1", "'=1+1"), ("+1", "'+1"), ("-1", "'-1"), ("@x", "'@x"), ("\tx", "'\tx"), ("a=1", "a=1"), ("", "")],
)
def test_formula_cells_in_rejects(text, cell):
    row = {"name": text, "sop_uid": "u", "reason": "r", "detail": 'says "x", twice'}
    lines = manifest.rejects_csv([row]).split("\n")
    assert lines[0] == "name,sop_uid,reason,detail"
    assert lines[1] == f'{cell},u,r,"says ""x"", twice"'


def test_the_card_tells_splits_windows_and_limits(dataset):
    done = manifest.read(dataset)
    text = (dataset / manifest.CARD).read_text()
    assert text == card.card(done)
    assert "brain 40/80, subdural 80/200, bone 40/380" in text
    train = done.splits["train"]
    assert f"| train | {train['slices']} | {train['patients']} | {train['studies']} |" in text
    assert done.fingerprint in text
    assert "Not a medical device" in text


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
