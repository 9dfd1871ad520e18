"""`croissant.json` describes what lies beside it: the tables column by column with their digests, and the shards."""

from __future__ import annotations

import fnmatch
import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ich_tfrecords.dataset import croissant, manifest, studies, verify
from ich_tfrecords.dataset.croissant import CROISSANT
from ich_tfrecords.labels.studies import Studies

TYPES = {"string": "sc:Text", "int8": "sc:Integer", "int32": "sc:Integer", "int64": "sc:Integer"}
TYPES |= {"float": "sc:Float", "double": "sc:Float"}


@pytest.fixture(scope="module")
def described(dataset) -> dict:
    return json.loads((dataset / CROISSANT).read_text())


def by_id(entries: list[dict]) -> dict[str, dict]:
    assert len({entry["@id"] for entry in entries}) == len(entries)
    return {entry["@id"]: entry for entry in entries}


def test_it_says_which_data_set_it_is_and_makes_nothing_up(described):
    assert described["@type"] == "sc:Dataset"
    assert described["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert (described["name"], described["version"]) == ("rsna_ich", "1.0.0")
    assert "Not a medical device" in described["description"]
    assert not {"license", "creator", "url", "datePublished"} & set(described)


def test_the_table_is_the_file_beside_it(dataset, described):
    file = by_id(described["distribution"])["slices.parquet"]
    content = (dataset / file["contentUrl"]).read_bytes()
    assert file["sha256"] == hashlib.sha256(content).hexdigest()
    assert file["contentSize"] == f"{len(content)} B"


def test_the_file_set_holds_the_shards_and_nothing_else(dataset, described):
    [pattern] = [entry["includes"] for entry in described["distribution"] if entry["@type"] == "cr:FileSet"]
    there = {path.name for path in dataset.iterdir()}
    assert set(fnmatch.filter(there, pattern)) == {shard["name"] for shard in manifest.read(dataset).shards}


def test_every_column_has_its_type_and_says_what_it_is(dataset, described):
    schema = pq.read_schema(dataset / "slices.parquet")
    records = by_id(described["recordSet"])["slices"]
    assert records["key"] == {"@id": "slices/sop_uid"}
    assert [field["name"] for field in records["field"]] == schema.names
    for field, column in zip(records["field"], schema, strict=True):
        assert field["@id"] == f"slices/{column.name}"
        assert field["dataType"] == TYPES[str(column.type)]
        assert field["source"] == {"fileObject": {"@id": "slices.parquet"}, "extract": {"column": column.name}}
        assert field["description"]


def test_the_splits_are_named_and_referred_to(dataset, described):
    of_splits = by_id(described["recordSet"])["splits"]
    assert of_splits["dataType"] == "cr:Split"
    assert {row["splits/name"] for row in of_splits["data"]} == set(manifest.read(dataset).splits)
    [split] = [field for field in by_id(described["recordSet"])["slices"]["field"] if field["name"] == "split"]
    assert split["references"] == {"field": of_splits["key"]}


def test_labels_of_studies_are_a_second_table(rsna_spec):
    labels = rsna_spec.labels
    one = np.array([[1, 0, 1, 0, 0, 0]], np.int8)
    found = Studies(pa.array(["1.2"]), one, np.array([3], np.int8), 2 * one)
    slices = pa.table({"sop_uid": ["1.2.3"], "split": ["train"]})
    of_studies = studies.table(found, labels)
    files = {"slices.parquet": b"a", "studies.parquet": b"bc"}
    made = croissant.croissant(rsna_spec, slices, of_studies, files)
    assert by_id(made["distribution"])["studies.parquet"]["sha256"] == hashlib.sha256(b"bc").hexdigest()
    records = by_id(made["recordSet"])["studies"]
    assert [field["name"] for field in records["field"]] == of_studies.column_names
    told = {field["name"]: field["description"] for field in records["field"]}
    assert told["any_votes"] == "number of readers who said 1 of any"
    assert {field["dataType"] for field in records["field"][1:]} == {"sc:Integer"}


def test_a_column_that_nobody_described_is_a_bug(rsna_spec):
    with pytest.raises(KeyError):
        croissant.told("age", rsna_spec)
    with pytest.raises(TypeError):
        croissant.data_type(pa.binary())


def test_a_set_of_before_has_none_and_is_whole(dataset_copy):
    values = manifest.read_json(dataset_copy)
    del values["files"][CROISSANT]
    (dataset_copy / manifest.MANIFEST).write_text(json.dumps(manifest.sealed(values)))
    (dataset_copy / CROISSANT).unlink()
    assert verify.verify(dataset_copy).problems == []
