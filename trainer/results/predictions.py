"""What a model says of the slices of a split, beside what is known of them: the table `predictions.parquet`."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ich_tfrecords.dataset import splits
from ich_tfrecords.storage import atomic
from trainer.shell.problems import WorkFailed, WrongUse

IDS = ("sop_uid", "study_uid", "series_uid", "patient_key", "slice_index", "position_mm")
_META = b"ich"


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """One row a slice.

    `names`: the labels, `any` the one that stands for all. `ids`: the columns `IDS`. `labels` int8 [n, L]: 1, 0
    or -1 where unknown. `logits` float32 [n, L], as the model gives them; `probabilities` float64 [n, L],
    calibrated. `study_labels` int8 [n, L]: what is known of the study of each slice as a whole, -1 where nothing is;
    None where nothing is known of any. Raises `WorkFailed` that names the first slice with a value that is not finite.
    """

    names: tuple[str, ...]
    any: str
    ids: pa.Table
    labels: npt.NDArray[np.int8]
    logits: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float64]
    study_labels: npt.NDArray[np.int8] | None = None

    def __post_init__(self) -> None:
        bad = ~(np.isfinite(self.logits) & np.isfinite(self.probabilities))
        if bad.any():
            row, label = np.argwhere(bad)[0]
            raise WorkFailed(
                f"slice {self.ids['sop_uid'][row].as_py()}: {self.names[label]} has logit {self.logits[row, label]} "
                f"and probability {self.probabilities[row, label]}; the model or its calibration is broken, train again"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def any_index(self) -> int:
        """Column of the label `any`."""
        return self.names.index(self.any)

    @functools.cached_property
    def patients(self) -> npt.NDArray[np.int64]:
        """int64 [n], a number for each patient, see `patients_of`."""
        return patients_of(self.ids)

    @functools.cached_property
    def studies(self) -> npt.NDArray[np.int64]:
        """int64 [n], a number for each study, see `studies_of`."""
        return studies_of(self.ids)

    def take(self, rows: npt.NDArray[Any]) -> Predictions:
        """These rows alone, in that order; a mask or numbers."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        of_study = None if self.study_labels is None else self.study_labels[rows]
        parts = (self.labels[rows], self.logits[rows], self.probabilities[rows], of_study)
        return Predictions(self.names, self.any, self.ids.take(pa.array(rows)), *parts)

    def write(self, path: Path) -> None:
        """Put the table at `path`, whole or not at all. Raises `OSError`."""
        columns = {name: self.ids[name] for name in IDS}
        told: dict[str, npt.NDArray[Any]] = {"label": self.labels, "logit": self.logits}
        told["probability"] = self.probabilities
        if self.study_labels is not None:
            told["study_label"] = self.study_labels
        for what, values in told.items():
            columns |= {f"{what}_{name}": values[:, at] for at, name in enumerate(self.names)}
        meta = {_META: json.dumps({"names": self.names, "any": self.any}).encode()}
        atomic.write_table(path, pa.table(columns).replace_schema_metadata(meta))


def read(path: Path) -> Predictions:
    """The table at `path`. Raises `WrongUse` where it is missing, damaged or of something else."""
    try:
        table = pq.read_table(path, memory_map=False)
        meta = json.loads((table.schema.metadata or {})[_META])
        names = tuple(meta["names"])
        labels, logits, shown = (_matrix(table, what, names) for what in ("label", "logit", "probability"))
        of_study = _matrix(table, "study_label", names) if f"study_label_{names[0]}" in table.column_names else None
        return Predictions(names, meta["any"], table.select(list(IDS)), labels, logits, shown, of_study)
    except FileNotFoundError as error:
        raise WrongUse(f"there is no {path}; make it with python -m trainer.evaluate") from error
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise WrongUse(f"{path} is damaged or no table of predictions ({reason}); evaluate again") from error


def patients_of(ids: pa.Table) -> npt.NDArray[np.int64]:
    """int64 [n], a number for each patient, in the order of the sorted keys; who shares a study is one patient.

    `ids`: the columns `IDS`. Two keys in one study or series are two ids of one person (`splits.groups`), so they are
    drawn together.
    """
    return np.unique(splits.groups(ids).of_row, return_inverse=True)[1].astype(np.int64)


def _matrix(table: pa.Table, what: str, names: tuple[str, ...]) -> npt.NDArray[Any]:
    return np.stack([table[f"{what}_{name}"].to_numpy() for name in names], axis=1)


def studies_of(ids: pa.Table) -> npt.NDArray[np.int64]:
    """int64 [n], a number for each study, in the order of the sorted UIDs; `ids` has the column study_uid."""
    uids = np.asarray(ids["study_uid"].to_pylist(), object).astype(str)
    return np.unique(uids, return_inverse=True)[1].astype(np.int64)
