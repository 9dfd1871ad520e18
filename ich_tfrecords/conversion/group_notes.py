"""What a conversion says of patients that belong together: lines for people, from tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords.plural import counted


def ties(headers: pa.Table, several: Sequence[Sequence[str]]) -> list[str]:
    """A line where patients are tied. `headers`: `patient_key` and `study_uid`; `several`: `splits.Groups.several`."""
    if not several:
        return []
    members = pa.array([key for group in several for key in group], pa.string())
    studies = pc.count_distinct(headers["study_uid"].filter(pc.is_in(headers["patient_key"], value_set=members)))
    found = f"{len(members):,} patient ids ({counted(studies.as_py(), 'study', 'studies')})"
    groups = counted(len(several), "group")
    return [f"{found} are tied, as a study or series bears several of them: {groups}, each in one split"]


def one_for_most(
    studies: pa.ChunkedArray, group: npt.NDArray[np.int64], split: npt.NDArray[np.int8], split_names: Sequence[str]
) -> list[str]:
    """A line where one group holds more than half of the slices of several studies, so that splits cannot be filled.

    `studies`: study UID of each slice; `group`, `split`: a number for its group and for its split, an index.
    """
    sizes = np.bincount(group)
    largest = int(sizes.argmax())
    every = pc.count_distinct(studies).as_py() if 2 * sizes[largest] > len(group) else 0
    if every < 2:
        return []
    inside = group == largest
    held = pc.count_distinct(studies.filter(pa.array(inside))).as_py()
    slices = f"{sizes[largest]:,} of {len(group):,} slices ({held:,} of {every:,} studies)"
    name = split_names[split[inside.argmax()]]
    why = "are of one PatientID, or of some that share a study or series"
    what_next = "give each person a PatientID of their own and convert again"
    return [f"{slices} {why}, so all of these are in split {name} and training will lack the others; {what_next}"]
