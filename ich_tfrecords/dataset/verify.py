"""Every promise of a data-set directory, checked against its bytes."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords.dataset import manifest, records, splits, studies, tfds
from ich_tfrecords.dataset.manifest import Manifest
from ich_tfrecords.storage import atomic
from ich_tfrecords.storage.bucket_path import AnyPath, BucketPath

BLOCK_BYTES = 1 << 20
_AGAIN = "convert again"


@dataclasses.dataclass(frozen=True)
class Verification:
    """`problems`: broken promises, each naming the shard and record. `notes`: facts worth knowing.

    `shards`, `slices`: how many were read whole.
    """

    problems: list[str]
    notes: list[str]
    shards: int
    slices: int


def verify(directory: AnyPath, on_shard: Callable[[int, int], None] | None = None) -> Verification:
    """Check everything; `on_shard(done, total)` is called after each shard. Raises `manifest.DatasetError`.

    Checked: the sha256 of every file and of the manifest, the framing and checksum of every record, that it
    parses, its ids, labels, place and pixel digest against `slices.parquet`, all counts, that no stranger lies
    among the shards, that patients who belong together stand in one split, and which pixels occur more than once.
    """
    done = manifest.read(directory)
    problems = list(_file_problems(directory, done))
    if problems and any(manifest.SLICES in problem for problem in problems):
        return Verification(problems, [], 0, 0)
    slices = atomic.read_table(directory / manifest.SLICES)
    of_studies = _studies(directory, done, problems)
    wrong = [] if of_studies is None else list(studies.problems(of_studies, slices, done.spec.labels))
    problems += [*wrong, *_count_problems(done, slices, None if wrong else of_studies)]
    problems += _reject_problems(directory, done)
    problems += _patient_problems(done, slices)
    problems += _stranger_problems(directory, done)
    read = 0
    for number, shard in enumerate(done.shards, 1):
        read += _check_shard(directory, shard, slices, done, problems)
        if on_shard:
            on_shard(number, len(done.shards))
    return Verification(problems, [*_group_notes(done), *_duplicate_notes(slices)], len(done.shards), read)


def _file_problems(directory: AnyPath, done: Manifest) -> Iterator[str]:
    for name in (manifest.SLICES, manifest.REJECTS, tfds.INFO, tfds.FEATURES):
        if name not in done.files:
            yield f"{manifest.MANIFEST}: no sha256 of {name}"
    if studies.STUDIES not in done.files and any(studies.COUNTS in split for split in done.splits.values()):
        yield f"{manifest.MANIFEST}: no sha256 of {studies.STUDIES}"
    for name, sha256 in done.files.items():
        path = directory / name
        if not path.is_file():
            yield f"{name}: is missing"
        elif hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            yield f"{name}: its sha256 is not the one in {manifest.MANIFEST}"
    if manifest.fingerprint(done.spec, done.shards) != done.fingerprint:
        yield f"{manifest.MANIFEST}: the fingerprint does not fit the spec and the shards"
    values = manifest.read_json(directory)
    if values.get(manifest.SUM) != manifest.sealed(values)[manifest.SUM]:
        yield f"{manifest.MANIFEST}: its {manifest.SUM} does not fit its other fields; it was edited"


def _reject_problems(directory: AnyPath, done: Manifest) -> Iterator[str]:
    """Every file of the input, and every slice in a file of many, is there, stands in rejects.csv, or was not drawn."""
    path = directory / manifest.REJECTS
    if path.is_file():
        try:
            rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8", "replace"), newline="")))
        except csv.Error as error:
            yield f"{manifest.REJECTS}: is no table: {error}"
        else:
            if Counter(row.get("reason") for row in rows) != done.rejects:
                yield f"{manifest.MANIFEST}: the counts of rejects do not fit {manifest.REJECTS}"
    source = done.made_from.get("input")
    files = source.get("files") if isinstance(source, dict) else None
    told = done.slices + sum(done.rejects.values()) + done.not_drawn
    if files is not None and files + done.further_slices != told:
        parts = "slices, rejects and slices outside the subset"
        many = f" with {done.further_slices:,} further slices" if done.further_slices else ""
        yield f"{manifest.MANIFEST}: the input had {files} files{many}, but {parts} are {told:,}"


def _studies(directory: AnyPath, done: Manifest, problems: list[str]) -> pa.Table | None:
    """`studies.parquet`, where the set has one and it is what was written."""
    if studies.STUDIES not in done.files or any(studies.STUDIES in problem for problem in problems):
        return None
    return atomic.read_table(directory / studies.STUDIES)


def _count_problems(done: Manifest, slices: pa.Table, of_studies: pa.Table | None) -> Iterator[str]:
    if slices.num_rows != done.slices:
        yield f"{manifest.SLICES}: {slices.num_rows:,} rows, but the shards hold {done.slices:,} slices"
    if pc.count_distinct(slices["sop_uid"]).as_py() != slices.num_rows:
        yield f"{manifest.SLICES}: a SOP UID stands in it twice"
    unread = {studies.COUNTS} if of_studies is None else set()
    for name, counted in manifest.split_entries(done.spec, slices, done.shards, of_studies).items():
        told = done.splits.get(name)
        if told is None or counted != {key: value for key, value in told.items() if key not in unread}:
            yield f"{manifest.MANIFEST}: the counts of split {name} do not fit {manifest.SLICES}"


def _patient_problems(done: Manifest, slices: pa.Table) -> Iterator[str]:
    """A patient, a study and a series each stand in one split: that of the patient's group."""
    groups = splits.groups(slices, done.groups)
    names = splits.split_names(done.spec.split)
    of_key = splits.split_of(groups.keys.to_pylist(), done.spec.split)
    expected = pa.array(names).take(pa.array(of_key[groups.of_row]))
    table = slices.select(["patient_key", "split"]).append_column("expected", expected)
    wrong = table.filter(pc.not_equal(table["split"], table["expected"])).sort_by("patient_key")
    if wrong.num_rows:
        patients = pc.count_distinct(wrong["patient_key"]).as_py()
        first = "{patient_key} in {split}, its group says {expected}".format(**wrong.slice(0, 1).to_pylist()[0])
        yield f"{manifest.SLICES}: patients outside the split of their group: {patients:,} (first: {first}); {_AGAIN}"
    for name in ("patient_key", *splits.TIES):
        yield from _torn(slices, name)


def _torn(slices: pa.Table, name: str) -> Iterator[str]:
    """A line where values of the column `name` stand in several splits."""
    pairs = slices.select([name, "split"]).group_by([name, "split"]).aggregate([])
    found = pairs.group_by(name).aggregate([("split", "count"), ("split", "list")])
    torn = found.filter(pc.greater(found["split_count"], 1)).sort_by(name)
    if torn.num_rows:
        first = f"{torn[name][0].as_py()} in {' and '.join(sorted(torn['split_list'][0].as_py()))}"
        yield f"{manifest.SLICES}: values of {name} in several splits: {torn.num_rows:,} (first: {first}); {_AGAIN}"


def _stranger_problems(directory: AnyPath, done: Manifest) -> Iterator[str]:
    known = {shard["name"] for shard in done.shards}
    for name in sorted(path.name for path in directory.glob("*.tfrecord*")):
        if name not in known:
            yield f"{name}: is no shard of this data set"


def _check_shard(
    directory: AnyPath, shard: Mapping[str, Any], slices: pa.Table, done: Manifest, problems: list[str]
) -> int:
    """Append the problems of one shard; returns the number of good records."""
    path = directory / shard["name"]
    try:
        with _opened(path) as file:
            whole = _digest_problem(file, shard)
            file.seek(0)
            rows = slices.filter(pc.equal(slices["shard"], shard["name"]))
            rows = rows.take(pc.sort_indices(rows["row"])).to_pylist()
            good = _check_records(file, shard, rows, done, problems)
    except OSError as error:
        if isinstance(path, BucketPath) and not isinstance(error, FileNotFoundError):
            raise  # no answer, or no access: that says nothing of the shard
        problems.append(f"{shard['name']}: {error.strerror or error}")
        return 0
    # a damaged record is named first: it says more than the sum over the file
    problems += [f"{shard['name']}: {whole}"] if whole else []
    return good


def _opened(path: AnyPath) -> BinaryIO:
    """The file, or a copy of the object in memory: it is read twice, and paid for once."""
    return io.BytesIO(path.read_bytes()) if isinstance(path, BucketPath) else path.open("rb")


def _digest_problem(file: BinaryIO, shard: Mapping[str, Any]) -> str:
    sha256, crc32c, size = hashlib.sha256(), 0, 0
    while block := file.read(BLOCK_BYTES):
        sha256.update(block)
        crc32c = google_crc32c.extend(crc32c, block)
        size += len(block)
    if size != shard["bytes"]:
        return f"{size:,} bytes, not {shard['bytes']:,}"
    if sha256.hexdigest() != shard["sha256"]:
        return f"its sha256 is not the one in {manifest.MANIFEST}"
    if f"{crc32c:08x}" != shard["crc32c"]:
        return f"its crc32c is not the one in {manifest.MANIFEST}"
    return ""


def _check_records(
    file: BinaryIO, shard: Mapping[str, Any], rows: list[dict[str, Any]], done: Manifest, problems: list[str]
) -> int:
    table, name, good, count = records.features(done.spec), shard["name"], 0, 0
    positives = dict.fromkeys(done.spec.labels.names, 0)
    try:
        for count, (offset, payload) in enumerate(records.read_records(file), 1):
            row = rows[count - 1] if count <= len(rows) else None
            wrong = _record_problem(offset, payload, row, shard, done, table, positives)
            if wrong:
                problems.append(f"{name}: record {count - 1} at byte {offset:,}: {wrong}")
            else:
                good += 1
    except records.DamagedRecord as error:
        problems.append(f"{name}: {error}")
        return good
    if not count == len(rows) == shard["slices"]:
        told = f"{manifest.SLICES} has {len(rows):,}, the manifest {shard['slices']:,}"
        problems.append(f"{name}: {count:,} records; {told}")
    if positives != shard["labels"]:
        problems.append(f"{name}: positive labels are {positives}, the manifest says {shard['labels']}")
    return good


def _record_problem(
    offset: int,
    payload: bytes,
    row: dict[str, Any] | None,
    shard: Mapping[str, Any],
    done: Manifest,
    table: tuple[records.Feature, ...],
    positives: dict[str, int],
) -> str:
    """What is wrong with a record; empty when nothing is. Adds its positive labels to `positives`."""
    try:
        values = records.parse(payload, table)
    except ValueError as error:
        return str(error)
    if row is None:
        return f"slice {_text(values['sop_uid'])} is not in {manifest.SLICES}"
    labels = dict(zip(done.spec.labels.names, values["labels"].tolist(), strict=True))
    for name, value in labels.items():
        positives[name] += value == 1
    told: dict[str, Any] = {name: _text(values[name]) for name in ("sop_uid", "study_uid", "series_uid", "patient_key")}
    told |= {name: int(values[name]) for name in ("slice_index", "slice_count")} | labels
    told |= {"pixel_digest": values["pixel_digest"].hex(), "offset": offset}
    told |= {"split": shard["split"], "stratum": shard["stratum"]}
    wrong = [f"{name} {value!r}, not {row[name]!r}" for name, value in told.items() if row[name] != value]
    if np.float32(row["position_mm"]) != np.float32(values["position_mm"]):
        wrong.append(f"position_mm {values['position_mm']}, not {row['position_mm']}")
    if records.pixel_digest(values["image"]) != values["pixel_digest"]:
        wrong.append("the pixels do not fit their digest")
    return "; ".join(wrong)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _group_notes(done: Manifest) -> list[str]:
    ids = sum(map(len, done.groups))
    told = f"patient ids that share a study or series stand in one split: {ids:,} of them, groups: {len(done.groups):,}"
    return [told] if done.groups else []


def _duplicate_notes(slices: pa.Table) -> list[str]:
    """Identical pixels under several patients or in several splits, which a split by patient cannot part."""
    groups: dict[str, set[tuple[str, str]]] = defaultdict(set)
    columns = [slices[name].to_pylist() for name in ("pixel_digest", "patient_key", "split")]
    for digest, patient, split in zip(*columns, strict=True):
        groups[digest].add((patient, split))
    shared = [group for group in groups.values() if len({patient for patient, _ in group}) > 1]
    crossing = [group for group in shared if len({split for _, split in group}) > 1]
    if not shared:
        return ["no two patients share identical pixels"]
    facts = f"{len(shared):,} images stand under several patients with identical pixels"
    return [f"{facts}, {len(crossing):,} of them in several splits"]
