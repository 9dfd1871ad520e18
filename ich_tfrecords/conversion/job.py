"""The work directory of an unfinished conversion, `.work` inside the output: what resumes, and what refuses to mix."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ich_tfrecords import __version__
from ich_tfrecords.conversion import sidecar_file
from ich_tfrecords.conversion.plan import FACTS_SCHEMA, INDEX_SCHEMA, Plan, PlannedShard, planned_shards
from ich_tfrecords.conversion.sidecar_file import Sidecar
from ich_tfrecords.dataset import manifest
from ich_tfrecords.spec import DatasetSpec, differences, from_dict, to_dict
from ich_tfrecords.storage import atomic, buckets
from ich_tfrecords.storage.bucket_lock import BucketLock
from ich_tfrecords.storage.bucket_path import AnyPath, BucketPath
from ich_tfrecords.storage.file_lock import FileLock, Held

WORK = ".work"
_AT_ONCE = 256  # parts in memory
LISTING_ROWS = 512  # slices in one element of the index step
TRANSIENT = frozenset(
    ("unreadable_file", "changed", "bad_local_header", "no_nibabel")
)  # a rerun looks again: a share may be back


class JobError(ValueError):
    """An output directory that cannot take this conversion; the message says what differs and what to do."""


@dataclasses.dataclass(frozen=True)
class Identity:
    """What decides the bytes of a data set: the spec, the input, the labels and the patient key."""

    spec: DatasetSpec
    made_from: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class WorkDir:
    """Paths of one conversion. Safe to send to workers; every file inside appears whole or not at all."""

    output: AnyPath

    @property
    def path(self) -> AnyPath:
        """The folder itself."""
        return self.output / WORK

    def listing(self, number: int) -> AnyPath:
        """Part of the listing that one index element reads."""
        return self.path / "listing" / f"{number:06d}.parquet"

    def index(self, number: int) -> AnyPath:
        """Part of the index that one index element writes."""
        return self.path / "index" / f"{number:06d}.parquet"

    def plan(self, shard: str) -> AnyPath:
        """Plan of one shard."""
        return self.path / "plan" / f"{shard}.parquet"

    def sidecar(self, shard: str) -> AnyPath:
        """Sidecar of one finished shard."""
        return self.path / "sidecars" / f"{shard}.json"

    def volume(self, version: int) -> AnyPath:
        """HU of the slices of one volume, which an index element writes and shards read."""
        return self.path / "volumes" / f"{version:016x}.hu"

    @property
    def temporary(self) -> AnyPath:
        """Where shards grow."""
        return self.path / "growing"

    def create(self) -> None:
        """Make the folders."""
        for name in ("listing", "index", "volumes", "plan", "sidecars", "growing"):
            (self.path / name).mkdir(parents=True, exist_ok=True)


Lock = FileLock | BucketLock


def claim(output: AnyPath) -> Lock:
    """Lock `output` for this process, making it where it is missing; returns the lock, held until it is closed.

    Raises `JobError` when another process holds it, and when the folder holds files that are none of ours.
    """
    strangers = [entry.name for entry in output.iterdir() if entry.name != WORK] if output.is_dir() else []
    if strangers and not (output / manifest.MANIFEST).exists() and not (output / WORK / "job.json").exists():
        raise JobError(f"{output} holds other files (such as {min(strangers)}); name a new or empty folder as --output")
    path = output / WORK / "lock"
    try:
        return FileLock(path) if isinstance(path, Path) else BucketLock(path)
    except Held as error:
        holder = str(error) or "its process is not known"
        raise JobError(f"another conversion is writing to {output} ({holder}); wait for it, or stop it") from error
    except buckets.NoAnswer:
        raise
    except OSError as error:
        raise JobError(f"cannot write to --output {output}: {error.strerror}") from error


def check_identity(work: WorkDir, identity: Identity) -> None:
    """Raise `JobError` when `work` holds an unfinished conversion of something else; else note what this one is."""
    path = work.path / "job.json"
    facts = {"software": __version__, "spec": to_dict(identity.spec), "made_from": identity.made_from}
    if path.exists():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            before = Identity(from_dict(old["spec"]), old["made_from"])
            software = old["software"]
        except (ValueError, KeyError, TypeError) as error:
            raise JobError(f"{path} is damaged ({error}); {_WAYS_OUT}") from error
        refuse_difference(work.output, before, identity)
        if software != __version__:
            raise JobError(f"{work.output} was begun by version {software}, this is {__version__}; {_WAYS_OUT}")
        return
    work.create()
    atomic.write_bytes(path, json.dumps(facts, indent=1).encode())


def refuse_difference(output: AnyPath, old: Identity, new: Identity) -> None:
    """Raise `JobError` naming every difference between what `output` holds and what is asked for now."""
    found = [f"spec {line}" for line in differences(old.spec, new.spec)]
    for key in sorted(old.made_from.keys() | new.made_from.keys()):
        before, now = old.made_from.get(key), new.made_from.get(key)
        if before != now:
            found.append(f"{key}: {_describe(before)}, now {_describe(now)}")
    if found:
        raise JobError(f"{output} was made from something else; {'; '.join(found)}; {_WAYS_OUT}")


_WAYS_OUT = "give another --output, or delete that folder to begin anew"


def _describe(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    return " ".join(f"{key} {item[:12] if isinstance(item, str) else f'{item:,}'}" for key, item in value.items())


def begin_index(work: WorkDir, listing: pa.Table) -> dict[int, pa.Table]:
    """The parts of the index that an earlier run left for good, by number; the listing of the others is written.

    A part with a problem that may have passed is dropped, so that its files are read again.
    """
    _forget_moved(work, listing)
    parts = read_index(work, missing_index(listing.num_rows, {}))
    forget_transient(work, parts)
    _forget_lost(work, parts)
    write_listing(work, listing, missing_index(listing.num_rows, parts))
    return parts


def _forget_moved(work: WorkDir, listing: pa.Table) -> None:
    """Throw the listing and the index away where the files lie elsewhere than when the interrupted run read them.

    Where they lie (container, offset) is no part of a data set's identity.
    """
    places = hashlib.sha256()
    for name in ("container", "offset", "method", "stored_bytes"):
        for chunk in listing[name].cast(pa.string()).chunks:
            places.update("\n".join(chunk.to_pylist()).encode())
    told = work.path / "places"
    if not told.exists() or told.read_bytes() != places.hexdigest().encode():
        for folder in ("listing", "index", "volumes"):
            _remove_all(work.path / folder)
        work.create()
        atomic.write_bytes(told, places.hexdigest().encode())


def forget_transient(work: WorkDir, parts: dict[int, pa.Table]) -> None:
    """Drop the index parts that hold a problem which may have passed."""
    for number in [number for number, part in parts.items() if not TRANSIENT.isdisjoint(part["reason"].to_pylist())]:
        del parts[number]
        work.index(number).unlink()


def _forget_lost(work: WorkDir, parts: dict[int, pa.Table]) -> None:
    """Drop the index parts of which the HU of a volume are no longer there, or not all of them."""
    frames = {number: part.filter(pc.greater(part["frame"], 0)) for number, part in parts.items()}
    frames = {number: part.filter(pc.equal(part["reason"], "")) for number, part in frames.items() if part.num_rows}
    there = contents(work.volume(0).parent) if frames else {}
    for number, part in frames.items():
        ends = zip(part["version"].to_pylist(), part["offset"].to_pylist(), part["size_bytes"].to_pylist())
        if any(there.get(work.volume(version).name, _NOTHING).size_bytes < at + size for version, at, size in ends):
            del parts[number]
            work.index(number).unlink()


def write_listing(work: WorkDir, listing: pa.Table, numbers: Sequence[int]) -> None:
    """Write the parts of the listing that the index elements of these numbers read."""
    whole = {number for number, _ in _whole(work.listing, numbers)}
    lacking = [number for number in numbers if number not in whole]
    for begin in range(0, len(lacking), _AT_ONCE):
        tables = [
            (work.listing(number), listing.slice(number * LISTING_ROWS, LISTING_ROWS))
            for number in lacking[begin : begin + _AT_ONCE]
        ]
        _write_parts(tables)


def _remove_all(folder: AnyPath) -> None:
    if isinstance(folder, BucketPath):
        folder.remove_all()
    elif folder.exists():
        shutil.rmtree(folder)


def write_part(path: AnyPath, table: pa.Table) -> None:
    """Put a part of the listing or the index in place, then the sha256 that it counts as whole by."""
    _write_parts([(path, table)])


def _write_parts(tables: Sequence[tuple[AnyPath, pa.Table]]) -> None:
    # dictionaries and statistics of so few rows would cost more time and room than their values
    plain = {"use_dictionary": False, "write_statistics": False}
    contents = [(path, atomic.table_bytes(table, **plain)) for path, table in tables]
    atomic.write_many(contents)
    atomic.write_many([(_sum_path(path), hashlib.sha256(data).hexdigest().encode()) for path, data in contents])


def _sum_path(path: AnyPath) -> AnyPath:
    return path.with_suffix(".sha256")


def _whole(path: Callable[[int], AnyPath], numbers: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each part that is there with the bytes that were written; `path`: where a part lies."""
    there = contents(path(0).parent)
    found = [number for number in numbers if path(number).name in there]
    for begin in range(0, len(found), _AT_ONCE):
        some = found[begin : begin + _AT_ONCE]
        paths = [path(number) for number in some]
        parts = zip(some, atomic.read_many(paths), atomic.read_many([*map(_sum_path, paths)]), strict=True)
        for number, data, told in parts:
            if data is not None and hashlib.sha256(data).hexdigest().encode() == told:
                yield number, data


def missing_index(files: int, parts: Container[int]) -> list[int]:
    """Numbers of the index parts of a listing of `files` that are not among `parts`."""
    return [number for number in range(-(-files // LISTING_ROWS)) if number not in parts]


def indexed(work: WorkDir) -> int:
    """How many index parts are written, whole or not: for progress."""
    return sum(name.endswith(".parquet") for name in contents(work.path / "index"))


def read_index(work: WorkDir, numbers: Sequence[int]) -> dict[int, pa.Table]:
    """Those parts of the index (`INDEX_SCHEMA`) that are whole, by number; one with other columns is an older one's."""
    # a part's few rows are not worth the threads and the data-set layer of `read_table`
    files = ((number, pq.ParquetFile(pa.BufferReader(data))) for number, data in _whole(work.index, numbers))
    return {
        number: file.read(columns=INDEX_SCHEMA.names, use_threads=False)
        for number, file in files
        if file.schema_arrow.names == INDEX_SCHEMA.names
    }


def joined(parts: dict[int, pa.Table]) -> pa.Table:
    """The whole index. Its parts are taken out of `parts`, for nobody else needs the memory."""
    return pa.concat_tables([parts.pop(number) for number in sorted(parts)]).unify_dictionaries()


def write_plan(work: WorkDir, plan: Plan, spec: DatasetSpec) -> list[str]:
    """Write each shard's plan; returns the names of the shards to convert, whose old sidecars are gone.

    A shard is done when its sidecar bears the digest of its plan, the file has the length and the crc32c it tells,
    and none of its rejects may have passed.
    """
    shards = list(planned_shards(plan, spec))
    plans = [(work.plan(shard.name), _plan_bytes(shard)) for shard in shards]
    atomic.write_many(plans)
    told = _sidecars(work, [shard.name for shard in shards])
    there = contents(work.output)
    pending = []
    for shard, sidecar, (_, data) in zip(shards, told, plans, strict=True):
        done = sidecar is not None and _is_done(sidecar, hashlib.sha256(data).hexdigest(), there.get(shard.name))
        if sidecar is None or not done or not _is_intact(work.output / shard.name, sidecar[0]):
            work.sidecar(shard.name).unlink(missing_ok=True)
            pending.append(shard.name)
    return pending


def _is_done(sidecar: tuple[Sidecar, str], plan_sha256: str, there: Content | None) -> bool:
    told, sha256 = sidecar
    transient = any(reject["reason"] in TRANSIENT for reject in told.rejects)
    return sha256 == plan_sha256 and _is_as_told(there, told) and not transient


def _is_intact(path: AnyPath, told: Sidecar) -> bool:
    """Whether a finished shard still has its crc32c; a bucket has told that of its own."""
    return isinstance(path, BucketPath) or atomic.file_crc32c(path) == told.crc32c


class Content(NamedTuple):
    """What a folder tells of a file without reading it; only a bucket knows the crc32c."""

    size_bytes: int
    crc32c: str = ""


_NOTHING = Content(-1)


def contents(folder: AnyPath) -> dict[str, Content]:
    """What is right in a folder, by name; nothing when it is not there."""
    if isinstance(folder, BucketPath):
        return {name: Content(stored.size_bytes, f"{stored.crc32c:08x}") for name, stored in folder.stored().items()}
    found = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # renamed away at this moment
                found[entry.name] = Content(entry.stat().st_size)
    return found


def changed_shards(output: AnyPath, shards: Iterable[Sidecar]) -> list[str]:
    """Names of the shards that are not what was written: by length, and in a bucket by crc32c too."""
    there = contents(output)
    return [shard.name for shard in shards if not _is_as_told(there.get(shard.name), shard)]


def _is_as_told(there: Content | None, told: Sidecar) -> bool:
    return there is not None and there.size_bytes == told.bytes and there.crc32c in ("", told.crc32c)


_OF_LAUNCHER = ["split", "stratum", "shard", "shard_count", *FACTS_SCHEMA.names]  # columns that no worker reads


def _plan_bytes(shard: PlannedShard) -> bytes:
    metadata = {b"split": shard.split.encode(), b"stratum": shard.stratum.encode()}
    metadata[b"slices"] = str(shard.slices.num_rows).encode()  # the rows below are repeats
    table = pa.concat_tables([shard.slices, shard.repeats]).drop_columns(_OF_LAUNCHER)
    return atomic.table_bytes(table.replace_schema_metadata(metadata))


def read_plan(work: WorkDir, name: str) -> tuple[PlannedShard, str]:
    """Plan of one shard and the sha256 of its file."""
    data = work.plan(name).read_bytes()
    table = pq.read_table(pa.BufferReader(data))
    metadata = table.schema.metadata
    slices = int(metadata[b"slices"])
    parts = (table.slice(0, slices), table.slice(slices))
    shard = PlannedShard(name, metadata[b"split"].decode(), metadata[b"stratum"].decode(), *parts)
    return shard, hashlib.sha256(data).hexdigest()


def write_sidecar(work: WorkDir, sidecar: Sidecar, plan_sha256: str) -> None:
    """Put the sidecar of a finished shard in place; the shard counts as done from then on."""
    atomic.write_bytes(work.sidecar(sidecar.name), sidecar_file.as_bytes(sidecar, plan_sha256))


def sidecars(work: WorkDir, names: Sequence[str]) -> Iterator[tuple[str, Sidecar]]:
    """Name and sidecar of each finished shard among `names`: one that bears the digest of the plan that stands there.

    A worker of an earlier run may still put a shard in place, made after another plan.
    """
    plans = atomic.read_many([work.plan(name) for name in names])
    for name, found, plan in zip(names, _sidecars(work, names), plans, strict=True):
        if found is not None and plan is not None and found[1] == hashlib.sha256(plan).hexdigest():
            yield name, found[0]


def _sidecars(work: WorkDir, names: Sequence[str]) -> list[tuple[Sidecar, str] | None]:
    return [sidecar_file.parse(data) for data in atomic.read_many([work.sidecar(name) for name in names])]


def sweep(work: WorkDir) -> None:
    """Remove the temporary files that a killed run left; its orphans may still take one away themselves."""
    for stale in [*work.temporary.iterdir(), *work.output.glob(atomic.TEMPORARY_GLOB)]:
        stale.unlink(missing_ok=True)


def clear(work: WorkDir) -> None:
    """Remove the work directory.

    A share may keep it until the lock inside is closed (NFS: the file lives on as `.nfs...`), which then removes it.
    """
    try:
        _remove_all(work.path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EBUSY):
            raise
