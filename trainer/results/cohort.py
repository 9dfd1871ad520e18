"""What the slices of a cohort are like: how many, how made, how often positive; to see how another one differs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

WORDS, NUMBERS = ("manufacturer", "kernel"), ("kvp", "thickness_mm", "spacing_mm", "tilt_deg")
FACTS = ("manufacturer", "model", "kernel", *NUMBERS, "slice_count")  # columns of `slices.parquet` to group by
_MOST = 4  # words told


def told(
    table: pa.Table, names: tuple[str, ...], labels: npt.NDArray[Any], study_labels: npt.NDArray[Any]
) -> dict[str, Any]:
    """Plain values for JSON. `table`: a row a slice; `labels` [n, L] of slices, `study_labels` [m, L], -1 for unknown.

    `words`: fact -> share of slices by value, the commonest first; `numbers`: fact -> the values that a tenth, half and
    nine tenths of the slices stay below. Facts that no slice tells are left out.
    """
    return {
        "slices": table.num_rows,
        "studies": len(study_labels),
        "prevalence": {name: _share(labels[:, at]) for at, name in enumerate(names)},
        "study_prevalence": {name: _share(study_labels[:, at]) for at, name in enumerate(names)},
        "words": {name: _words(table[name]) for name in WORDS if _has(table, name)},
        "numbers": {name: _tenths(table[name]) for name in ("slice_count", *NUMBERS) if _has(table, name)},
    }


def _has(table: pa.Table, name: str) -> bool:
    return name in table.column_names and table[name].null_count < table.num_rows


def _share(labels: npt.NDArray[Any]) -> float | None:
    known = labels[labels >= 0]
    return float((known == 1).mean()) if len(known) else None


def _words(column: pa.ChunkedArray) -> dict[str, float]:
    counts = pc.value_counts(column.drop_null()).to_pylist()
    ranked = sorted(counts, key=lambda one: (-one["counts"], one["values"]))[:_MOST]
    return {one["values"]: one["counts"] / len(column) for one in ranked}


def _tenths(column: pa.ChunkedArray) -> list[float]:
    values = column.drop_null().to_numpy().astype(np.float64)
    return [float(value) for value in np.quantile(values, (0.1, 0.5, 0.9), method="inverted_cdf")]
