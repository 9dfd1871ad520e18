"""Files with one SOP UID: which may be copies of a slice, and which certainly are not.

A copy would give the record that the first file gives: the same ids, the same place and the same HU. What the headers
tell apart is settled here; HU are compared by whoever reads the files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

COPY = "duplicate_slice"
CONFLICT = "uid_conflict"
SAME = {  # what the headers of copies share, and how it is called
    "patient_key": "patients",
    "study_uid": "studies",
    "series_uid": "series",
    "position_mm": "positions",
    "rows": "sizes",
    "columns": "sizes",
}

Bools = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]


def copy_detail(sop_uid: str) -> str:
    """What rejects.csv says of a copy."""
    return f"SOPInstanceUID {sop_uid} stands in an earlier file too"


def unread_detail(sop_uid: str) -> str:
    """What a run says of what may be a copy before it has read any pixels."""
    return f"{copy_detail(sop_uid)}; pixels were not compared yet"


def not_compared_detail(sop_uid: str) -> str:
    """What it says of a file with the header of a slice that gives no record itself, so that nobody read their HU."""
    return f"{copy_detail(sop_uid)}; pixels were not compared, as that one gives no record"


def conflict_detail(sop_uid: str, files: int, differ: Sequence[str]) -> str:
    """What it says of each of several files that are not one slice; `differ`: in what, in the words of `SAME`."""
    return f"SOPInstanceUID {sop_uid} stands in {files:,} files with different {', '.join(differ)}, so it names none"


def repeated(sop_uids: pa.ChunkedArray) -> Bools:
    """bool [n]: True for each of the sorted UIDs that stands before too."""
    uids, again = sop_uids.combine_chunks(), np.zeros(len(sop_uids), bool)
    again[1:] = pc.equal(uids.slice(1), uids.slice(0, max(len(uids) - 1, 0))).to_numpy(zero_copy_only=False)
    return again


def conflicts(headers: pa.Table, again: Bools) -> tuple[Bools, list[str]]:
    """Which files bear the SOP UID of a file with another header, bool [n], and the detail of each of those, in order.

    `headers`: `sop_uid` and the columns of `SAME`, sorted by SOP UID; `again`: `repeated` of it.
    """
    number = np.cumsum(~again) - 1  # of the slice, as its UID says
    first = np.flatnonzero(~again)[number]
    rows = np.flatnonzero(again)  # the first files of a UID need no look
    later, earlier = (headers.take(pa.array(at)) for at in (rows, first[rows]))
    differs = {name: np.zeros(len(again), bool) for name in SAME.values()}
    for column, name in SAME.items():
        unequal = pc.not_equal(later[column], earlier[column]).to_numpy()
        differs[name][first[rows[unequal]]] = True
    conflicting = np.logical_or.reduce(list(differs.values()))[first]
    return conflicting, _details(headers, first, np.flatnonzero(conflicting), differs)


def _details(headers: pa.Table, first: Int64, rows: Int64, differs: dict[str, Bools]) -> list[str]:
    files = np.bincount(first, minlength=1)
    uids = headers["sop_uid"].take(pa.array(rows)).to_pylist()
    return [
        conflict_detail(uid, int(files[at]), [name for name, found in differs.items() if found[at]])
        for uid, at in zip(uids, first[rows].tolist(), strict=True)
    ]
