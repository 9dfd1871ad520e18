"""The last step of a conversion: the metadata of its data set, and last of all the manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords.conversion.plan import FACTS_SCHEMA, Plan, PlannedShard, planned_shards
from ich_tfrecords.conversion.sidecar_file import Sidecar
from ich_tfrecords.dataset import card, croissant, manifest, rejects, studies, tfds
from ich_tfrecords.dataset.croissant import CROISSANT
from ich_tfrecords.dataset.manifest import CARD, MANIFEST, REJECTS, SLICES, Manifest
from ich_tfrecords.dataset.records import IDS
from ich_tfrecords.spec import DatasetSpec
from ich_tfrecords.storage import atomic
from ich_tfrecords.storage.bucket_path import AnyPath


def commit(
    directory: AnyPath,
    spec: DatasetSpec,
    plan: Plan,
    sidecars: Mapping[str, Sidecar],
    lost: pa.Table,
    made_from: Any,
    last_check: Callable[[], None],
) -> Manifest:
    """Write the metadata of a finished conversion into `directory`, the manifest last; returns it.

    `sidecars`: one for each planned shard, by name; `lost`: `all_rejects` of them. `made_from`: what the input was.
    `last_check` is called before the manifest is written, and raises when it must not be.
    """
    slices = slice_table(spec, plan, sidecars)
    of_studies = None if plan.studies is None else studies.of_slices(plan.studies, slices)
    shards = [manifest.shard_entry(sidecars[shard.name]) for shard in planned_shards(plan, spec)]
    done = Manifest(
        spec=spec,
        fingerprint=manifest.fingerprint(spec, shards),
        made_from=made_from,
        splits=manifest.split_entries(spec, slices, shards, of_studies),
        shards=shards,
        rejects=dict(sorted(Counter(lost["reason"].to_pylist()).items())),
        not_drawn=plan.not_drawn,
        labels_unused=plan.labels_unused,
        files={},
        groups=plan.groups,
        further_slices=plan.indexed - made_from["input"]["files"],
    )
    contents = {
        REJECTS: rejects.as_csv(lost).encode(),
        tfds.INFO: _json(tfds.info(done.spec, done.splits, done.shards)),
        tfds.FEATURES: _json(tfds.features(spec)),
        CARD: card.card(done).encode(),
    }
    tables = {SLICES: slices} | ({} if of_studies is None else {studies.STUDIES: of_studies})
    contents |= {name: atomic.table_bytes(table) for name, table in tables.items()}
    contents[CROISSANT] = _json(croissant.croissant(spec, slices, of_studies, contents))
    for name, content in contents.items():
        atomic.write_bytes(directory / name, content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(contents.items())}
    done = dataclasses.replace(done, files=digests)
    last_check()
    atomic.write_bytes(directory / MANIFEST, _json(manifest.as_dict(done)))
    atomic.sync_folder(directory)
    return done


def _json(values: Any) -> bytes:
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


def slice_table(spec: DatasetSpec, plan: Plan, sidecars: Mapping[str, Sidecar]) -> pa.Table:
    """One row a record: ids, split, stratum, place in its series, labels, shard, row, offset, digest, and the facts.

    Sorted by split, study, series and slice index, which is the spatial order.
    """
    parts = [_shard_slices(shard, sidecars[shard.name], spec) for shard in planned_shards(plan, spec)]
    table = pa.concat_tables(parts)
    keys = ["split", "study_uid", "series_uid", "slice_index", "sop_uid"]
    # in one chunk, or each comparison would look for its rows among the chunks of every shard
    order = pc.sort_indices(table.select(keys).combine_chunks(), [(name, "ascending") for name in keys])
    table = table.unify_dictionaries().take(order)
    for at, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):  # what readers find is text
            table = table.set_column(at, field.name, table[at].cast(pa.string()))
    return table


def _shard_slices(shard: PlannedShard, sidecar: Sidecar, spec: DatasetSpec) -> pa.Table:
    rows = shard.slices.take(pa.array(sidecar.rows, pa.int64()))
    values = rows["labels"].combine_chunks().flatten().to_numpy().reshape(-1, len(spec.labels.names))
    same = {"split": shard.split, "stratum": shard.stratum, "shard": shard.name}
    columns = {name: rows[name] for name in (*IDS, "position_mm", "slice_index", "slice_count")}
    columns |= {name: pa.repeat(value, rows.num_rows) for name, value in same.items()}
    columns |= {name: pa.array(values[:, i]) for i, name in enumerate(spec.labels.names)}
    columns["row"] = pa.array(np.arange(rows.num_rows, dtype=np.int32))
    columns["offset"] = pa.array(sidecar.offsets, pa.int64())
    columns["pixel_digest"] = pa.array(sidecar.digests, pa.string())
    columns |= {name: rows[name] for name in FACTS_SCHEMA.names}
    return pa.table(columns)


def all_rejects(spec: DatasetSpec, plan: Plan, sidecars: Mapping[str, Sidecar]) -> pa.Table:
    """Every file that gave no record (`rejects.SCHEMA`), sorted by name."""
    tables = [plan.rejects]
    for shard in planned_shards(plan, spec):
        told = sidecars[shard.name].rejects
        files = pa.concat_tables([shard.slices, shard.repeats]).select(["name", "sop_uid", "frame"])
        lost = files.take(pa.array([reject["row"] for reject in told], pa.int64()))
        tables.append(rejects.of_files(lost, *([reject[key] for reject in told] for key in ("reason", "detail"))))
    return rejects.joined(tables)
