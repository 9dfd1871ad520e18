"""The metadata of a data-set directory: what a shard holds, and the manifest that makes a directory a data set.

`manifest.json` is written last. Whoever finds one has a whole data set; it is the authority on windows,
labels and counts for training and serving.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords import __version__
from ich_tfrecords.dataset import splits, studies
from ich_tfrecords.spec import DatasetSpec, SpecError, from_dict, to_dict
from ich_tfrecords.storage.bucket_path import AnyPath

FORMAT = 1
MANIFEST = "manifest.json"
SLICES = "slices.parquet"
REJECTS = "rejects.csv"
CARD = "README.md"
SUM = "manifest_sha256"


class DatasetError(ValueError):
    """A directory that is no data set, or one of another format; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A converted data set: its spec, where it came from, its shards, splits, rejects and metadata files.

    `shards`: one mapping a shard (name, split, stratum, slices, bytes, sha256, crc32c, labels). `splits`:
    slices, patients, studies, labels and strata of each, and `study_labels` where the set has `studies.parquet`.
    `files`: sha256 of each metadata file. `fingerprint`: sha256 over the spec and every shard's sha256; it names the
    data set. `groups`: the sorted keys of patients that a study or series ties together, seen in a record or not; the
    split is that of the first key. The file has no such field where nobody is tied. `further_slices`: how many slices
    the files of the input hold beyond one each; the file has no such field where there are none.
    """

    spec: DatasetSpec
    fingerprint: str
    made_from: dict[str, Any]
    splits: dict[str, dict[str, Any]]
    shards: list[dict[str, Any]]
    rejects: dict[str, int]
    not_drawn: int
    labels_unused: int
    files: dict[str, str]
    groups: list[list[str]]
    further_slices: int = 0

    @property
    def slices(self) -> int:
        """Number of records in all shards."""
        return sum(shard["slices"] for shard in self.shards)


def read(directory: AnyPath) -> Manifest:
    """Manifest of a data-set directory. Raises `DatasetError`."""
    path = directory / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DatasetError(
            f"{directory} holds no {MANIFEST}, so it is no data set (or its conversion has not ended; "
            f"run the same convert command again)"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DatasetError(f"{path} has format {_get(values, 'format')!r}; this version reads format {FORMAT}")
    values.setdefault("groups", [])
    values.setdefault("further_slices", 0)
    try:
        _check(values, _FIELDS, "the manifest")
        values["spec"] = from_dict(values["spec"], f"{path}: spec")
        _check_names(values)
        _check_entries(values, values["spec"].labels.names)
    except (_Damage, SpecError) as error:
        raise DatasetError(f"{path} is damaged: {error}; restore it or convert again") from error
    return Manifest(**{field.name: values[field.name] for field in dataclasses.fields(Manifest)})


def _get(values: Any, key: str) -> Any:
    return values.get(key) if isinstance(values, dict) else None


class _Damage(ValueError):
    """A field of the manifest that is absent or of a wrong kind."""


_FIELDS: dict[str, type] = {"spec": dict, "fingerprint": str, "made_from": dict, "splits": dict, "shards": list}
_FIELDS |= {
    "rejects": dict,
    "not_drawn": int,
    "labels_unused": int,
    "files": dict,
    "groups": list,
    "further_slices": int,
}
_SHARD: dict[str, type] = {
    "name": str,
    "split": str,
    "stratum": str,
    "slices": int,
    "bytes": int,
    "sha256": str,
    "crc32c": str,
}
_SPLIT: dict[str, type] = dict.fromkeys(("shards", "slices", "bytes", "series", "studies", "patients"), int)
_COUNTS: dict[str, type] = dict.fromkeys(("positive", "negative", "unknown"), int)
_KINDS: dict[type, str] = {str: "a text", int: "a count", dict: "an object", list: "a list"}


def _check_entries(values: Mapping[str, Any], labels: Sequence[str]) -> None:
    """Check what stands inside the fields. Raises `_Damage`."""
    for number, shard in enumerate(values["shards"]):
        _check(shard, {**_SHARD, "labels": dict}, f"shard {number}")
        _check(shard["labels"], dict.fromkeys(labels, int), f"labels of shard {number}")
    for name, split in values["splits"].items():
        _check(split, {**_SPLIT, "labels": dict, "strata": dict}, f"split {name}")
        _check(split["labels"], dict.fromkeys(labels, dict), f"labels of split {name}")
        for label in labels:
            _check(split["labels"][label], _COUNTS, f"{label} of split {name}")
        _check(split["strata"], dict.fromkeys(split["strata"], int), f"strata of split {name}")
    _check(values["rejects"], dict.fromkeys(values["rejects"], int), "rejects")
    _check(values["files"], dict.fromkeys(values["files"], str), "files")
    for number, group in enumerate(values["groups"]):
        if not isinstance(group, list) or not group or not all(isinstance(key, str) for key in group):
            raise _Damage(f"group {number} is {str(group)[:40]!r}, not a list of patient keys")


def _check_names(values: Mapping[str, Any]) -> None:
    """Check what becomes part of a path. Raises `_Damage`."""
    if not re.fullmatch(r"[0-9a-f]{64}", values["fingerprint"]):
        raise _Damage(f"fingerprint is {values['fingerprint'][:40]!r}, not 64 hexadecimal digits")
    strange = values["splits"].keys() - values["spec"].split.weights.keys()
    if strange:
        raise _Damage(f"the spec has no split {min(strange)[:40]!r}")
    for name in values["files"]:
        if not re.fullmatch(r"[A-Za-z][\w.-]*", name, re.ASCII):
            raise _Damage(f"files names {name[:40]!r}, no plain file name")
    for number, shard in enumerate(values["shards"]):
        _check(shard, _SHARD, f"shard {number}")
        if not re.fullmatch(r"[a-z][\w.-]*", shard["name"], re.ASCII):
            raise _Damage(f"name of shard {number} is {shard['name'][:40]!r}, no plain file name")


def _check(values: Any, kinds: Mapping[str, type], place: str) -> None:
    """Check that an object holds the keys of `kinds`, each of its kind. Raises `_Damage`."""
    if not isinstance(values, dict):
        raise _Damage(f"{place} is {type(values).__name__}, not {_KINDS[dict]}")
    for key, kind in kinds.items():
        if key not in values:
            raise _Damage(f"{place} has no {key}")
        value = values[key]
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            raise _Damage(f"{key} of {place} is {str(value)[:40]!r}, not {_KINDS[kind]}")


def read_json(directory: AnyPath) -> dict[str, Any]:
    """The fields of a manifest as they stand in its file, unchecked; for a manifest that `read` takes."""
    values: dict[str, Any] = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    return values


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a manifest with `manifest_sha256`, the sha256 over all others, made anew."""
    rest = {key: value for key, value in values.items() if key != SUM}
    return {**rest, SUM: hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def as_dict(manifest: Manifest) -> dict[str, Any]:
    """The fields of a manifest's file, sealed."""
    fields = {field.name: getattr(manifest, field.name) for field in dataclasses.fields(Manifest)}
    for name in ("groups", "further_slices"):
        if not fields[name]:
            del fields[name]
    head = {"format": FORMAT, "generator": f"ich_tfrecords {__version__}"}
    return sealed({**head, **fields, "spec": to_dict(manifest.spec)})


def fingerprint(spec: DatasetSpec, shards: Sequence[Mapping[str, Any]]) -> str:
    """sha256 that names a data set: over its spec and the name and sha256 of each shard."""
    facts = {"spec": to_dict(spec), "shards": [[shard["name"], shard["sha256"]] for shard in shards]}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def shard_entry(facts: object) -> dict[str, Any]:
    """What the manifest holds of a shard, taken from an object with these attributes."""
    return {name: getattr(facts, name) for name in (*_SHARD, "labels")}


def split_entries(
    spec: DatasetSpec, slices: pa.Table, shards: Sequence[Mapping[str, Any]], of_studies: pa.Table | None = None
) -> dict[str, Any]:
    """Counts of each split, from the tables of slices and studies and the shard entries, as the manifest holds them."""
    return {name: _split_entry(spec, slices, shards, of_studies, name) for name in splits.split_names(spec.split)}


def _split_entry(
    spec: DatasetSpec, slices: pa.Table, shards: Sequence[Mapping[str, Any]], of_studies: pa.Table | None, name: str
) -> dict[str, Any]:
    rows = slices.filter(pc.equal(slices["split"], name))
    strata = Counter(rows["stratum"].to_pylist())
    entry = {
        "shards": sum(shard["split"] == name for shard in shards),
        "slices": rows.num_rows,
        "bytes": sum(shard["bytes"] for shard in shards if shard["split"] == name),
        "series": pc.count_distinct(pc.binary_join_element_wise(rows["study_uid"], rows["series_uid"], "/")).as_py(),
        "studies": pc.count_distinct(rows["study_uid"]).as_py(),
        "patients": pc.count_distinct(rows["patient_key"]).as_py(),
        "labels": {label: _label_counts(rows[label]) for label in spec.labels.names},
        "strata": {stratum: strata[stratum] for stratum in spec.labels.strata if strata[stratum]},
    }
    if of_studies is not None:
        entry[studies.COUNTS] = studies.counts(of_studies, rows, spec.labels)
    return entry


def _label_counts(column: pa.ChunkedArray) -> dict[str, int]:
    values = column.to_numpy()
    return {name: int((values == code).sum()) for name, code in (("positive", 1), ("negative", 0), ("unknown", -1))}
