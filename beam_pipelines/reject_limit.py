"""How many slices may be lost: what is held against `--max_reject_fraction`, and what is not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from beam_pipelines.launch import ConversionFailed
from ich_tfrecords import problems
from ich_tfrecords.conversion import plan
from ich_tfrecords.plural import counted


def by_nature(rejects: pa.Table) -> str:
    """A line about the files that never were slices; "" where there are none."""
    never = rejects.filter(pa.array(plan.by_nature(rejects)))
    if not never.num_rows:
        return ""
    reasons = plan.top_reasons(never, len(problems.BY_NATURE))
    files = counted(never.num_rows, "file is no axial CT slice", "files are no axial CT slices")
    return f"{files}, which is no fault of the input: {reasons}"


def check(rejects: pa.Table, found: int, limit: float) -> None:
    """Raise `ConversionFailed` when more than `limit` of what should be slices is lost.

    `found`: how many slices and other files there are.
    """
    never = plan.by_nature(rejects) | np.isin(rejects["reason"].to_pylist(), [*problems.NOT_WANTED])
    lost, slices = rejects.filter(pa.array(~never)), found - int(never.sum())
    if lost.num_rows > limit * slices:
        raise ConversionFailed(
            f"{lost.num_rows:,} of {slices:,} slices ({lost.num_rows / slices:.1%}) give no record, more than "
            f"--max_reject_fraction {limit:g} allows: {plan.top_reasons(lost)}; "
            "nothing was committed; mend those files, or raise --max_reject_fraction"
        )
