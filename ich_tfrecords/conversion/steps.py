"""The work of one Beam element: the index of some files, and the writing of one shard."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ich_tfrecords import pixels
from ich_tfrecords.conversion import job, volume_file
from ich_tfrecords.conversion.job import WorkDir
from ich_tfrecords.conversion.patient_key import PatientKey
from ich_tfrecords.conversion.plan import (
    CHOICE_SCHEMA,
    FACTS_SCHEMA,
    FRAME_SCHEMA,
    HEADER_SCHEMA,
    INDEX_SCHEMA,
    PROBLEM_SCHEMA,
    PlannedShard,
)
from ich_tfrecords.conversion.sidecar_file import Sidecar
from ich_tfrecords.dataset import records, repeats, splits
from ich_tfrecords.dataset.records import IDS
from ich_tfrecords.dicom import codestream, ct_slice, facts, jpeg_compiled
from ich_tfrecords.dicom.header import HoldsFrames, SliceHeader
from ich_tfrecords.problems import Problem
from ich_tfrecords.spec import DatasetSpec
from ich_tfrecords.storage import atomic, sources
from ich_tfrecords.storage.slice_reader import RANGE
from ich_tfrecords.storage.sources import SliceRef
from ich_tfrecords.volumes.reader import FrameReader

Accept = tuple[str, ...]
Files = list[tuple[int, SliceRef]]  # of one slice, by their numbers in its shard
# Where each slice of a file lies from now on, and its header. Raises `Problem`.
Keep = Callable[[SliceRef, FrameReader], Iterable[tuple[SliceRef, SliceHeader | Problem]]]
_Row = tuple[dict[str, Any], tuple[Any, ...]]
_MOST_ROWS = 4096
_JPEG_LOSSLESS = "jpeg_lossless"  # slices, in the tally

_NO_HEADER = dict.fromkeys(HEADER_SCHEMA.names) | {"sop_uid": ""}
_ROW_SCHEMA = pa.unify_schemas([sources.LISTING_SCHEMA, FRAME_SCHEMA, HEADER_SCHEMA, PROBLEM_SCHEMA])
_TOLD = pa.unify_schemas([FACTS_SCHEMA, CHOICE_SCHEMA])  # in the order of `SliceFacts`, and whether it is derived
_NOTHING_TOLD = (None,) * len(_TOLD)


def index_part(
    work: WorkDir, number: int, how: tuple[PatientKey, Accept], reader: sources.SliceReader, tally: Counter[str]
) -> None:
    """Index one part of the listing in `work` and write it there. Raises `OSError` when that cannot be written.

    `how`: the patient key, and which slices count (`DatasetSpec.accept`).
    """
    key, accept = how
    listing = atomic.read_table(work.listing(number)).cast(sources.LISTING_SCHEMA)
    keep = functools.partial(volume_file.write, work)
    job.write_part(work.index(number), index_slices(listing, key.secret(), reader, tally, (accept, keep)))


def write_shard(work: WorkDir, name: str, spec: DatasetSpec, reader: sources.SliceReader, tally: Counter[str]) -> None:
    """Convert one planned shard: records under a temporary name, rename, then the sidecar.

    Raises `OSError` when it cannot be written.
    """
    shard, plan_sha256 = job.read_plan(work, name)
    with atomic.replacing(work.output / name, work.temporary) as file:
        sidecar = convert_shard(work, shard, spec, reader, file, tally)
    atomic.sync_folder(work.output)
    job.write_sidecar(work, sidecar, plan_sha256)


def index_slices(
    listing: pa.Table, secret: bytes, reader: sources.SliceReader, tally: Counter[str], how: tuple[Accept, Keep]
) -> pa.Table:
    """Index (`INDEX_SCHEMA`) of listed files: header fields where they can be used, else a typed problem.

    `secret` keys the hash that stands for the patient id, which goes no further than this function. `how`: which slices
    count (`DatasetSpec.accept`), and what deals with a file of many slices. `tally` counts `indexed`, `index_us`,
    `jpeg_lossless` and `rejected_<reason>`.
    """
    begin = time.perf_counter_ns()
    refs, tables, rows = list(sources.refs(listing)), [], []
    reader.expect(refs, ct_slice.HEAD_BYTES)
    accept, keep = how
    with FrameReader(reader, accept) as frames:
        for ref in refs:
            rows += _index_rows(ref, frames, secret, keep, tally)
            if len(rows) >= _MOST_ROWS:  # of dicts, which take ten times the memory
                tables.append(_index_table(rows, tally))
                rows = []
    tables.append(_index_table(rows, tally))
    tally["index_us"] += (time.perf_counter_ns() - begin) // 1000
    return pa.concat_tables(tables).unify_dictionaries() if len(tables) > 1 else tables[0]


def prepare_decoding(tally: Counter[str]) -> str:
    """Why the slices that were indexed will be decoded slowly; "" where they will not.

    What JPEG Lossless needs is compiled here, once, so that the workers on this machine find it done.
    """
    if tally[_JPEG_LOSSLESS]:
        jpeg_compiled.forms()
    return jpeg_compiled.note()


def _index_table(rows: list[_Row], tally: Counter[str]) -> pa.Table:
    tally["indexed"] += len(rows)
    tally.update(f"rejected_{row['reason']}" for row, _ in rows if row["reason"])
    index = pa.Table.from_pylist([row for row, _ in rows], _ROW_SCHEMA)
    # column by column: a slice's facts would cost as much as a dict as all the rest
    columns = zip(*(told for _, told in rows), strict=True) if rows else [()] * len(_TOLD)
    for name, values in zip(_TOLD.names, columns, strict=True):
        index = index.append_column(_TOLD.field(name), pa.array(values, _TOLD.field(name).type))
    return index.select(INDEX_SCHEMA.names)


def _index_rows(ref: SliceRef, frames: FrameReader, secret: bytes, keep: Keep, tally: Counter[str]) -> list[_Row]:
    try:
        header = frames.header(ref)
        if header.transfer_syntax in codestream.JPEG_LOSSLESS:
            tally[_JPEG_LOSSLESS] += 1
        return [_row(ref, header, secret)]
    except HoldsFrames:
        pass
    except Problem as problem:
        return [_row(ref, problem, secret)]
    try:
        kept = list(keep(ref, frames))
    except Problem as problem:
        return [_row(ref, problem, secret)]
    rows = [_row(one, found, secret) for one, found in kept]
    reasons = {row["reason"] for row, _ in rows}
    # what is wrong with every slice in one way is wrong with the file
    return rows if len(reasons) > 1 or "" in reasons else [(rows[0][0] | ref._asdict(), rows[0][1])]


def unopened(ref: SliceRef, frames: FrameReader) -> Iterator[tuple[SliceRef, SliceHeader | Problem]]:
    """A `Keep` for those who want to know of a file only whether it may hold slices: one row, as of a slice."""
    yield ref, Problem("", "")


def _row(ref: SliceRef, found: SliceHeader | Problem, secret: bytes) -> _Row:
    """The columns of `_ROW_SCHEMA`, and those of `_TOLD`."""
    if not isinstance(found, Problem) and not found.patient_id:
        found = ct_slice.missing_id("PatientID")  # a slice of nobody belongs to no split
    if isinstance(found, Problem):
        return ref._asdict() | _NO_HEADER | {"reason": found.reason, "detail": found.detail}, _NOTHING_TOLD
    fields = found._asdict()
    fields["patient_key"] = splits.patient_key(found.patient_id, secret)
    row = {name: fields[name] for name in HEADER_SCHEMA.names} | {"reason": "", "detail": ""}
    return ref._asdict() | row, (*facts.of(found.facts), found.derived)


def convert_shard(
    work: WorkDir,
    shard: PlannedShard,
    spec: DatasetSpec,
    reader: sources.SliceReader,
    file: BinaryIO,
    tally: Counter[str],
) -> Sidecar:
    """Write the records of a planned shard to `file`, one slice in memory at a time; returns its sidecar.

    Files that turn out damaged stand in the sidecar with their reason. Of several files of a slice the first good one
    gives the record and the others are copies; where their HU differ, none of them is used. `tally` counts
    `read written read_bytes written_bytes rejected_<reason>` and the microseconds of each stage.
    """
    table = records.features(spec)
    writer = records.ShardWriter(file)
    rows, offsets, digests, rejects = [], [], [], []
    slices = _files(work, shard)
    reader.expect(ref for files in slices for _, ref in files)
    for row, (files, meta) in enumerate(zip(slices, _metadata(shard.slices), strict=True)):
        image, unused = _image(files, meta["sop_uid"], spec, reader, tally)
        rejects += unused
        if image is None:
            continue
        begin = time.perf_counter_ns()
        digest = records.pixel_digest(image)
        payload = records.encode(_record(image, digest, meta), table)
        offsets.append(writer.write(payload))
        rows.append(row)
        digests.append(digest.hex())
        tally["encode_us"] += (time.perf_counter_ns() - begin) // 1000
    tally.update(f"rejected_{reject['reason']}" for reject in rejects)
    tally["written"] += len(rows)
    tally["written_bytes"] += writer.size_bytes
    positives = np.asarray(shard.slices["labels"].take(pa.array(rows, pa.int64())).to_pylist(), np.int64)
    counts = {name: int((positives[:, i] == 1).sum()) if rows else 0 for i, name in enumerate(spec.labels.names)}
    return Sidecar(
        name=shard.name,
        split=shard.split,
        stratum=shard.stratum,
        slices=len(rows),
        bytes=writer.size_bytes,
        sha256=writer.sha256(),
        crc32c=writer.crc32c(),
        labels=counts,
        rows=rows,
        offsets=offsets,
        digests=digests,
        rejects=rejects,
    )


def _files(work: WorkDir, shard: PlannedShard) -> list[Files]:
    """The files of each slice, the planned one first; what was a slice of a volume lies in `work` by now."""
    parts = (shard.slices, shard.repeats)
    planned, repeated = ([volume_file.place(work, ref) for ref in sources.refs(rows)] for rows in parts)
    files: list[Files] = [[(row, ref)] for row, ref in enumerate(planned)]
    for number, (row, ref) in enumerate(zip(shard.repeats["row"].to_pylist(), repeated), len(files)):
        files[row].append((number, ref))
    return files


def _image(
    files: Files, sop_uid: str, spec: DatasetSpec, reader: sources.SliceReader, tally: Counter[str]
) -> tuple[Any, list[dict[str, Any]]]:
    """The image of a slice, None where it has none, and the rejects among its files."""
    image, hu, differ, good, rejects = None, None, False, [], []
    for number, ref in files:
        try:
            found = _hu(ref, sop_uid, spec.accept, reader, tally)
        except Problem as problem:
            rejects.append(_reject(number, problem.reason, problem.detail))
            continue
        good.append(number)
        if hu is None:
            begin = time.perf_counter_ns()
            image = pixels.image_of(found, spec.image)
            tally["window_us"] += (time.perf_counter_ns() - begin) // 1000
            hu = found.copy() if len(files) > 1 else found  # the next file is read into the same memory
        elif not np.array_equal(hu, found):
            differ = True
    if differ:
        detail = repeats.conflict_detail(sop_uid, len(good), ["pixels"])
        return None, rejects + [_reject(number, repeats.CONFLICT, detail) for number in good]
    return image, rejects + [_reject(number, repeats.COPY, repeats.copy_detail(sop_uid)) for number in good[1:]]


def _reject(number: int, reason: str, detail: str) -> dict[str, Any]:
    return {"row": number, "reason": reason, "detail": detail}


def _hu(
    ref: SliceRef, sop_uid: str, accept: Accept, reader: sources.SliceReader, tally: Counter[str]
) -> npt.NDArray[np.int16]:
    """HU of a file, perhaps in the memory of the reader. Raises `Problem`."""
    begin = time.perf_counter_ns()
    data = reader.read(ref)
    was_read = time.perf_counter_ns()
    tally["read"] += 1
    tally["read_bytes"] += ref.stored_bytes
    if ref.method == RANGE:
        hu = volume_file.hu_of(data)
        tally["read_us"] += (was_read - begin) // 1000
        return hu
    ct = ct_slice.read_slice(data, accept)
    if ct.header.sop_uid != sop_uid:
        raise sources.UnreadableSource("changed", f"the file now holds slice {ct.header.sop_uid}, not {sop_uid}")
    tally["read_us"] += (was_read - begin) // 1000
    tally["decode_us"] += (time.perf_counter_ns() - was_read) // 1000
    return ct.hu


def _metadata(slices: pa.Table) -> list[dict[str, Any]]:
    return slices.select([*IDS, "position_mm", "slice_index", "slice_count", "labels"]).to_pylist()


def _record(image: Any, digest: bytes, meta: dict[str, Any]) -> dict[str, Any]:
    texts = {name: meta[name].encode() for name in IDS}
    return meta | texts | {"image": image, "pixel_digest": digest}
