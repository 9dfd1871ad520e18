"""CSV text that a spreadsheet can open without running what stands in it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A head line and rows, lines ended by a newline; texts as `safe_cell` makes them, numbers as they print."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(map(safe_cell, row) for row in rows)
    return out.getvalue()


def safe_cell(value: object) -> object:
    """`value` itself, or with a leading quote where it is a text that a spreadsheet would run as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
