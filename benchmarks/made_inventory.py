"""What a conversion of many slices finds on disk, without the slices: an archive's directory, labels, workers' files.

    python benchmarks/made_inventory.py input|index|shards FOLDER SLICES

`input` makes the archive and the label CSV; `index` and `shards` make what workers would have written into the
work directory `FOLDER/out` by then. Each is for a process of its own, so that its memory is nobody else's.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import bench_labels, bench_zip
from ich_tfrecords import spec
from ich_tfrecords.conversion import job, plan
from ich_tfrecords.conversion.job import WorkDir
from ich_tfrecords.conversion.sidecar_file import Sidecar
from ich_tfrecords.dataset import records, splits

ARCHIVE, LABELS, OUTPUT = "rsna.zip", "stage_2_train.csv", "out"
TRAIN = "*/stage_2_train/*"
SPEC = "rsna_ich"
SLICES_PER_SERIES = 35
BAD_FILES = 2000  # one in so many has a header that cannot be used
BAD_SHARDS = 10  # one in so many has a slice that turns out damaged
MEMBER_BYTES = 216_000
DAMAGE = "PixelData has 153,710 of 524,288 bytes (truncated)"


def make_input(folder: Path, slices: int) -> None:
    """An archive with `slices` training members, and test members in RSNA's proportion; labels of the former."""
    members = round(slices / bench_zip.TRAIN_FRACTION)
    bench_zip.write_archive(folder / ARCHIVE, members, MEMBER_BYTES, shuffled=False)
    values = label_values(slices).astype("U1").tolist()
    with (folder / LABELS).open("w", encoding="ascii") as file:
        file.write("ID,Label\n")
        for number, row in enumerate(values, members - slices):
            image = f"ID_{number:09x}"
            file.writelines(f"{image}_{name},{value}\n" for name, value in zip(bench_labels.CSV_ORDER, row))


def label_values(slices: int) -> np.ndarray:
    """0 or 1 of each slice, int8 [slices, labels], as often as in RSNA; columns in the order of its CSV."""
    values = np.random.default_rng(2019).random((slices, len(bench_labels.PREVALENCE))) < bench_labels.PREVALENCE
    return np.column_stack([values, values.any(axis=1)]).astype(np.int8)


def make_index(folder: Path, slices: int) -> None:
    """Every index part, from its part of the listing."""
    work, secret = WorkDir(folder / OUTPUT), splits.public_secret(spec.load(SPEC).split.salt)
    for number in job.missing_index(slices, ()):
        listing = pq.read_table(work.listing(number))
        begin = number * job.LISTING_ROWS
        job.write_part(work.index(number), index_rows(listing, np.arange(begin, begin + len(listing)), slices, secret))


def index_rows(listing: pa.Table, numbers: np.ndarray, slices: int, secret: bytes) -> pa.Table:
    """Index of listed members: their headers as RSNA has them, series spread over the whole archive."""
    rng = np.random.default_rng(int(numbers[0]))
    series = rng.integers(0, -(-slices // SLICES_PER_SERIES), len(numbers))
    study = series * 20 // 21  # a few have two series
    bad = numbers % BAD_FILES == 1
    made = {
        "sop_uid": [Path(name).stem for name in listing["name"].to_pylist()],
        "patient_key": [splits.patient_key(f"ID_{patient:08x}", secret) for patient in study * 5 // 6],
        "study_uid": [f"ID_{number:010x}" for number in _scattered(study)],
        "series_uid": [f"ID_{number:010x}" for number in _scattered(series + slices)],
        "position_mm": rng.uniform(-200, 200, len(numbers)).round(6),
        **dict.fromkeys(("rows", "columns"), np.full(len(numbers), 512)),
    }
    kinds = plan.HEADER_SCHEMA
    columns = {name: pa.array(values, kinds.field(name).type, mask=bad) for name, values in made.items()}
    columns["sop_uid"] = columns["sop_uid"].fill_null("")  # a header that cannot be used is null but for its UID
    columns["reason"] = pa.array(np.where(bad, "truncated", ""))
    columns["detail"] = pa.array(np.where(bad, DAMAGE, ""))
    columns["spacing_mm"] = pa.array(np.full(len(numbers), 0.488), pa.float32(), mask=bad)  # RSNA's one fact
    columns |= dict.fromkeys(plan.CHOICE_SCHEMA.names, pa.array(np.zeros(len(numbers), bool), mask=bad))
    columns |= {name: listing[name] for name in listing.column_names}
    columns["frame"] = pa.array(np.zeros(len(numbers), np.int32))
    fields = plan.INDEX_SCHEMA
    full = [columns.get(field.name, pa.nulls(len(numbers), field.type)) for field in fields]
    return pa.table(full, schema=fields)


def _scattered(numbers: np.ndarray) -> list[int]:
    """Distinct numbers of ten hexadecimal digits that look drawn at random."""
    return (numbers.astype(np.uint64) * np.uint64(0x9E3779B97F) % np.uint64(16**10)).tolist()


def make_shards(folder: Path, slices: int) -> None:
    """The sidecar of every planned shard, and a file of its length that is one hole; `slices` plays no part."""
    work, data_spec = WorkDir(folder / OUTPUT), spec.load(SPEC)
    names = sorted(path.name.removesuffix(".parquet") for path in (work.path / "plan").iterdir())
    for number, name in enumerate(names):
        shard, plan_sha256 = job.read_plan(work, name)
        sidecar = made_sidecar(shard, data_spec, bad=number % BAD_SHARDS == 1)
        with (work.output / name).open("wb") as file:
            file.truncate(sidecar.bytes)
        job.write_sidecar(work, sidecar, plan_sha256)


def made_sidecar(shard: plan.PlannedShard, data_spec: spec.DatasetSpec, bad: bool) -> Sidecar:
    """Sidecar of a planned shard with digests of nothing; its first slice is a reject when `bad`."""
    rows = list(range(int(bad), shard.slices.num_rows))
    size_bytes = records.slice_bytes(data_spec)
    sha256 = hashlib.sha256(shard.name.encode()).hexdigest()
    values = shard.slices["labels"].combine_chunks().flatten().to_numpy().reshape(-1, len(data_spec.labels.names))
    reject = {"row": 0, "reason": "truncated", "detail": DAMAGE}
    return Sidecar(
        name=shard.name,
        split=shard.split,
        stratum=shard.stratum,
        slices=len(rows),
        bytes=len(rows) * size_bytes,
        sha256=sha256,
        crc32c=sha256[:8],
        labels={name: int((values[rows, i] == 1).sum()) for i, name in enumerate(data_spec.labels.names)},
        rows=rows,
        offsets=[row * size_bytes for row in range(len(rows))],
        digests=[hashlib.blake2b(f"{sha256} {row}".encode(), digest_size=16).hexdigest() for row in rows],
        rejects=[reject] if bad else [],
    )


MAKERS = {"input": make_input, "index": make_index, "shards": make_shards}


if __name__ == "__main__":
    MAKERS[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
