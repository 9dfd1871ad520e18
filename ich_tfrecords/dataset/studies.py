"""`studies.parquet`: a row a study with its labels, where labels of more than slices were given."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords.labels.studies import Studies
from ich_tfrecords.spec import LabelSpec

STUDIES = "studies.parquet"
KEY = "study_uid"
READERS = "readers"
VOTES = "_votes"  # behind a label, in the name of a column
COUNTS = "study_labels"  # of a split, in the manifest


def table(found: Studies, labels: LabelSpec) -> pa.Table:
    """Columns `study_uid`, one int8 a label (1, 0, -1 unknown); then, where readers are known, `readers` and
    `<label>_votes`, int8: how many judged the study, and how many of them said 1; null where nobody tells."""
    columns = {KEY: found.uids.cast(pa.string())}
    columns |= {name: pa.array(found.values[:, i]) for i, name in enumerate(labels.names)}
    if found.readers is not None and found.votes is not None:
        lacking = found.readers < 0
        columns[READERS] = pa.array(found.readers, mask=lacking)
        columns |= {f"{name}{VOTES}": pa.array(found.votes[:, i], mask=lacking) for i, name in enumerate(labels.names)}
    return pa.table(columns)


def of_slices(studies: pa.Table, slices: pa.Table) -> pa.Table:
    """The studies that have a slice, in their order, in one chunk."""
    kept = pc.is_in(studies[KEY], value_set=pc.unique(slices[KEY]))
    return studies.filter(kept).combine_chunks()


def problems(studies: pa.Table, slices: pa.Table, labels: LabelSpec) -> Iterator[str]:
    """What contradicts `slices.parquet`, or the order and the values that are promised."""
    lacking = [name for name in (KEY, *labels.names) if name not in studies.column_names]
    if lacking:
        yield f"{STUDIES}: no column {lacking[0]}"
        return
    uids = pc.unique(slices[KEY])
    expected = uids.take(pc.sort_indices(uids)).to_pylist()
    if studies[KEY].to_pylist() != expected:
        yield f"{STUDIES}: its studies are not those of the slices, each once and sorted"
        return
    study = pc.index_in(slices[KEY], value_set=pa.array(expected, pa.string())).to_numpy()
    for name in labels.names:
        values, told = studies[name].to_numpy(), slices[name].to_numpy()
        wrong = ~np.isin(values, (-1, 0, 1)) | _contradicted(values, study, told)
        if wrong.any():
            first = expected[int(wrong.argmax())]
            yield f"{STUDIES}: {name} does not fit the slices in {int(wrong.sum()):,} studies (first: {first})"


def _contradicted(
    values: npt.NDArray[np.integer], study: npt.NDArray[np.integer], told: npt.NDArray[np.integer]
) -> npt.NDArray[np.bool_]:
    """bool [studies]: a slice is 1 and the study is not, or the study is 0 and one of its slices is not."""
    positive = np.bincount(study[told == 1], minlength=len(values)) > 0
    other = np.bincount(study[told != 0], minlength=len(values)) > 0
    return (positive & (values != 1)) | ((values == 0) & other)


def counts(studies: pa.Table, slices: pa.Table, labels: LabelSpec) -> dict[str, dict[str, int]]:
    """Of each label, how many of the studies of some slices are positive, negative, unknown."""
    there = of_slices(studies, slices)
    values = {name: there[name].to_numpy() for name in labels.names}
    codes = (("positive", 1), ("negative", 0), ("unknown", -1))
    return {name: {word: int((column == code).sum()) for word, code in codes} for name, column in values.items()}
