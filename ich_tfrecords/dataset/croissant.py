"""`croissant.json`: the data set as Croissant 1.0 describes one (MLCommons, JSON-LD), for catalogues and its readers.

Its tables are described column by column, its shards as a set of files; `features.json` says what a record holds. It
names no licence, author or address, since nobody told them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ich_tfrecords import NOT_A_DEVICE
from ich_tfrecords.dataset import studies, tfds
from ich_tfrecords.dataset.manifest import SLICES
from ich_tfrecords.dataset.splits import split_names
from ich_tfrecords.spec import DatasetSpec

CROISSANT = "croissant.json"
VERSION = "http://mlcommons.org/croissant/1.0"
PARQUET = "application/x-parquet"
TFRECORD = "https://www.tensorflow.org/tutorials/load_data/tfrecord"  # it has no media type; a page instead
SPLITS = "splits"
# as the standard gives it; its readers compare
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
COLUMNS = {  # of either table, besides the labels and what readers said of them
    "sop_uid": "SOP Instance UID of the slice",
    "study_uid": "Study Instance UID",
    "series_uid": "Series Instance UID",
    "patient_key": "keyed hash of the patient id",
    "position_mm": "where the slice lies along the normal of its series, in mm",
    "slice_index": "place of the slice in its series, from 0, in the order of position_mm",
    "slice_count": "number of slices of the series",
    "split": "split that the slice belongs to; patients stand in one only",
    "stratum": "rarest label that is positive; shards hold one stratum each",
    "shard": "file that holds the record of the slice",
    "row": "number of the record in its shard, from 0",
    "offset": "where the record begins in its shard, in bytes",
    "pixel_digest": "128-bit blake2b of the image tensor, in hexadecimal",
    "manufacturer": "maker of the scanner",
    "model": "model of the scanner",
    "kernel": "convolution kernel",
    "kvp": "tube voltage in kV",
    "thickness_mm": "thickness of the slice in mm",
    "spacing_mm": "distance between rows of pixels in mm",
    "tilt_deg": "tilt of the gantry in degrees",
    studies.READERS: "number of readers who judged the study",
}


def croissant(spec: DatasetSpec, slices: pa.Table, of_studies: pa.Table | None, files: Mapping[str, bytes]) -> Any:
    """What `croissant.json` holds, ready for JSON.

    `slices`, `of_studies`: the tables of `slices.parquet` and, where the set has one, of `studies.parquet`; `files`:
    the bytes of both files by name.
    """
    tables = {SLICES: slices} | ({} if of_studies is None else {studies.STUDIES: of_studies})
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": VERSION,
        "name": spec.name,
        "version": spec.version,
        "description": f"{tfds.description(spec)} {NOT_A_DEVICE}",
        "keywords": ["computed tomography", "head", "intracranial hemorrhage", *spec.labels.names],
        "isLiveDataset": False,
        "distribution": [*(_file(name, files[name]) for name in tables), _shards(spec)],
        "recordSet": [_splits(spec), *(_records(name, table, spec) for name, table in tables.items())],
    }


def _file(name: str, content: bytes) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{len(content)} B",
        "encodingFormat": PARQUET,
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def _shards(spec: DatasetSpec) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": "shards",
        "name": "shards",
        "description": f"TFRecords of tf.train.Example: {tfds.FEATURES} names the features, manifest.json has a sha256 "
        "of each file",
        "encodingFormat": TFRECORD,
        "includes": f"{spec.name}-*.tfrecord-*",
    }


def _splits(spec: DatasetSpec) -> dict[str, Any]:
    name = f"{SPLITS}/name"
    return {
        "@type": "cr:RecordSet",
        "@id": SPLITS,
        "name": SPLITS,
        "dataType": "cr:Split",
        "key": {"@id": name},
        "field": [{"@type": "cr:Field", "@id": name, "name": "name", "dataType": "sc:Text"}],
        "data": [{name: split} for split in split_names(spec.split)],
    }


def _records(file: str, table: pa.Table, spec: DatasetSpec) -> dict[str, Any]:
    """A record set of all columns of a table; its first column names the row."""
    name = file.removesuffix(".parquet")
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "key": {"@id": f"{name}/{table.column_names[0]}"},
        "field": [_field(name, file, column, spec) for column in table.schema],
    }


def _field(record_set: str, file: str, column: pa.Field, spec: DatasetSpec) -> dict[str, Any]:
    found: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"{record_set}/{column.name}",
        "name": column.name,
        "description": told(column.name, spec),
        "dataType": data_type(column.type),
        "source": {"fileObject": {"@id": file}, "extract": {"column": column.name}},
    }
    return found | ({"references": {"field": {"@id": f"{SPLITS}/name"}}} if column.name == "split" else {})


def told(column: str, spec: DatasetSpec) -> str:
    """What a column of either table says, in words. Raises KeyError for one that the data set does not have."""
    if column in spec.labels.names:
        return f"label {column}: 1, 0, or -1 for unknown"
    label, votes, rest = column.partition(studies.VOTES)
    if votes and not rest and label in spec.labels.names:
        return f"number of readers who said 1 of {label}"
    return COLUMNS[column]


def data_type(of: pa.DataType) -> str:
    """The type of a column in the words of schema.org. Raises TypeError for what no table has."""
    if pa.types.is_string(of):
        return "sc:Text"
    if pa.types.is_integer(of):
        return "sc:Integer"
    if pa.types.is_floating(of):
        return "sc:Float"
    raise TypeError(f"no column has the type {of}")
