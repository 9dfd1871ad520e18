"""Files that give no record: a row each, with its reason."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords.storage.csv_text import csv_text

SCHEMA = pa.schema([("name", pa.string()), ("sop_uid", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
NONE = SCHEMA.empty_table()


def of_files(files: pa.Table, reason: str | list[str], detail: list[str]) -> pa.Table:
    """Rejects (`SCHEMA`) of files with a `name` and a `sop_uid`; `reason`: of all of them, or of each."""
    names = named(files)["name"]
    reasons = [reason] * files.num_rows if isinstance(reason, str) else reason
    columns = [names, files["sop_uid"], pa.array(reasons, pa.string()), pa.array(detail, pa.string())]
    return pa.table(columns, schema=SCHEMA)


def named(files: pa.Table) -> pa.Table:
    """The table without its column `frame`; a slice of a file that holds many is called `file#frame`."""
    if "frame" not in files.column_names:
        return files
    frame = pc.fill_null(files["frame"], 0)
    files = files.drop_columns("frame")
    if not pc.any(pc.greater(frame, 0)).as_py():
        return files
    called = pc.binary_join_element_wise(files["name"], frame.cast(pa.string()), "#")
    name = pc.if_else(pc.greater(frame, 0), called, files["name"])
    return files.set_column(files.column_names.index("name"), "name", name)


def joined(tables: list[pa.Table]) -> pa.Table:
    """All rejects of some tables, sorted by name."""
    return pa.concat_tables(tables).sort_by([("name", "ascending"), ("sop_uid", "ascending")])


def as_csv(rejects: pa.Table) -> str:
    """The text of rejects.csv."""
    return csv_text(SCHEMA.names, zip(*(column.to_pylist() for column in rejects.columns), strict=True))
