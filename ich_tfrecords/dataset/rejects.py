"""Files that give no record: a row each, with its reason."""

from __future__ import annotations

import pyarrow as pa

from ich_tfrecords.storage.csv_text import csv_text

SCHEMA = pa.schema([("name", pa.string()), ("sop_uid", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
NONE = SCHEMA.empty_table()


def of_files(files: pa.Table, reason: str | list[str], detail: list[str]) -> pa.Table:
    """Rejects (`SCHEMA`) of files with a `name` and a `sop_uid`; `reason`: of all of them, or of each."""
    reasons = [reason] * files.num_rows if isinstance(reason, str) else reason
    columns = [files["name"], files["sop_uid"], pa.array(reasons, pa.string()), pa.array(detail, pa.string())]
    return pa.table(columns, schema=SCHEMA)


def joined(tables: list[pa.Table]) -> pa.Table:
    """All rejects of some tables, sorted by name."""
    return pa.concat_tables(tables).sort_by([("name", "ascending"), ("sop_uid", "ascending")])


def as_csv(rejects: pa.Table) -> str:
    """The text of rejects.csv."""
    return csv_text(SCHEMA.names, zip(*(column.to_pylist() for column in rejects.columns), strict=True))
