"""The column that says which slices are alike: a fact of `slices.parquet`, or one of a CSV file beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa

from trainer.shell.problems import WrongUse, hint

KEYS = ("sop_uid", "series_uid", "study_uid", "patient_key")  # a CSV names its rows by the first it has


def values(table: pa.Table, asked: str, facts: Collection[str]) -> list[Any]:
    """The value of each slice of `table`, None where nothing is known.

    `asked`: one of `facts`, or FILE:COLUMN of a CSV with one of `KEYS`. Raises `WrongUse`.
    """
    file, colon, column = asked.rpartition(":")
    if colon and file:
        return _of_file(table, Path(file), column)
    present = [name for name in facts if name in table.column_names]
    if asked not in present:
        raise WrongUse(f"--by {asked} is no fact of this data set; {hint(asked, present)}, or give FILE.csv:COLUMN")
    found = table[asked]
    if found.null_count == len(found):
        raise WrongUse(f"--by {asked}: no slice of these tells it; give another column, or FILE.csv:COLUMN")
    return [round(value, 4) if isinstance(value, float) else value for value in found.to_pylist()]


def _of_file(table: pa.Table, file: Path, column: str) -> list[Any]:
    head, rows = _read(file)
    if column not in head:
        raise WrongUse(f"--by {file}:{column}: the file has no column {column!r}; {hint(column, head)}")
    key = next((name for name in KEYS if name in head), None)
    if key is None:
        raise WrongUse(f"--by {file}:{column}: the file has no column that tells its rows; it needs {', '.join(KEYS)}")
    found: dict[str, str] = {}
    for row in rows:
        name, value = row[head.index(key)].strip(), row[head.index(column)].strip()
        if found.setdefault(name, value) != value:
            raise WrongUse(f"--by {file}:{column}: {key} {name!r} has {found[name]!r} and {value!r}; leave one")
    own = table[key].to_pylist()
    if not found.keys() & set(own):
        raise WrongUse(f"--by {file}:{column}: no {key} of the file is among those evaluated, {own[0]!r} for one")
    texts = [found.get(name) or None for name in own]
    numbers = [_number(text) for text in texts]
    known = any(text is not None for text in texts)
    return numbers if known and all((a is None) == (b is None) for a, b in zip(texts, numbers)) else texts


def _read(file: Path) -> tuple[list[str], list[list[str]]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise WrongUse(f"--by {file}: cannot be read as text ({error}); give a CSV file in UTF-8") from error
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if len(rows) < 2:
        raise WrongUse(f"--by {file}: holds no header with rows below; give a CSV file")
    head = [name.strip() for name in rows[0]]
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(head):
            raise WrongUse(f"--by {file}: row {number:,} has {len(row)} columns, the header {len(head)}")
    return head, rows[1:]


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
