"""The form and the loss of the RSNA 2019 Intracranial Hemorrhage Detection competition (Kaggle, "Evaluation")."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from ich_tfrecords import spec
from ich_tfrecords.labels.csv_file import CsvFile, LabelError, open_csv, shorten
from ich_tfrecords.spec import LabelSpec
from trainer.results.probability import competition_weights, log_losses
from trainer.shell.problems import WrongUse

COLUMNS = ("ID", "Label")

_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")


def label_spec() -> LabelSpec:
    """The labels of the competition, as the packaged spec of its data has them."""
    return spec.load("rsna_ich").labels


def order(names: Sequence[str], any_name: str) -> tuple[str, ...]:
    """The labels in the order of the competition's files: as in the spec, but `any_name` last."""
    return (*(name for name in names if name != any_name), any_name)


def loss(labels: Any, probabilities: Any, names: Sequence[str], any_name: str) -> float:
    """Mean over the images of the weighted mean over the labels of their log losses, `any_name` twice; float64.

    `labels`: integers [n, L], 1 or 0; `probabilities` float [n, L]; L in the order of `names`. Raises `WrongUse`
    where there is no image, or a label that is not known.
    """
    labels = np.asarray(labels)
    if not labels.size:
        raise WrongUse("no image to score; the competition's loss is a mean over at least one")
    if not np.isin(labels, (0, 1)).all():
        raise WrongUse("a label to score on is neither 0 nor 1; the competition knows every label, leave out the image")
    weights = competition_weights(names, any_name)
    return float(np.average(log_losses(labels == 1, probabilities), axis=1, weights=weights).mean())


def submission_text(sop_uids: Sequence[str], names: Sequence[str], any_name: str, probabilities: Any) -> str:
    """The file to submit: `ID,Label`, then `<sop_uid>_<label>,<probability>` for each label of each image.

    `probabilities` [n, L] in the order of `names`. The images keep their order, the labels take that of `order`;
    each number is the shortest that reads back as the same float64. Raises `WrongUse` for no image, an image that
    comes twice, an id that CSV would need quotes for, and a probability outside of [0, 1].
    """
    _check_ids(sop_uids)
    values = np.asarray(probabilities, np.float64)
    bad = ~((values >= 0) & (values <= 1))
    if bad.any():
        row, label = np.argwhere(bad)[0]
        raise WrongUse(f"{sop_uids[row]}: {names[label]} has probability {values[row, label]}, outside of 0 to 1")
    columns = order(names, any_name)
    rows = values[:, [list(names).index(name) for name in columns]].tolist()
    lines = [f"{uid}_{name},{value!r}" for uid, row in zip(sop_uids, rows) for name, value in zip(columns, row)]
    return "\n".join([",".join(COLUMNS), *lines, ""])


def _check_ids(sop_uids: Sequence[str]) -> None:
    if not len(sop_uids):
        raise WrongUse("no slice to submit; choose a data set or splits that have some")
    seen: set[str] = set()
    for uid in sop_uids:
        if not _PLAIN_ID.fullmatch(uid):
            raise WrongUse(f"slice id {shorten(uid)} cannot stand in a submission; only letters, digits, _ . - can")
        if uid in seen:
            raise WrongUse(f"slice {uid} is there twice, and the competition takes each once; mend the data set")
        seen.add(uid)


def read_submission(path: Path) -> tuple[pa.Array, npt.NDArray[np.float64]]:
    """Keys `<image>_<label>` (large_string [r], each once) and probabilities float64 [r] of a submission's rows.

    Plain or gzipped, in any order. Raises `WrongUse` that names the line for a number outside of [0, 1], a key
    that comes twice and a row that is none; also for another header and a file that cannot be read.
    """
    if not path.is_file():
        raise WrongUse(f"{path}: no such file; python -m trainer.submit writes one")
    try:
        file = open_csv(path)
        return _checked(file, _table(file))
    except LabelError as error:
        raise WrongUse(str(error)) from error


def _table(file: CsvFile) -> pa.Table:
    """The columns ID (large_string) and Label (float64), at least one row."""
    if tuple(file.header) != COLUMNS:
        raise LabelError(f"{file.name}: header is {shorten(','.join(file.header))}; it must be {','.join(COLUMNS)}")
    types = dict(zip(COLUMNS, (pa.large_string(), pa.float64())))
    options = pa_csv.ConvertOptions(column_types=types, null_values=[])
    try:
        table = pa_csv.read_csv(pa.BufferReader(file.data), convert_options=options)
    except pa.ArrowInvalid as error:
        raise _parse_error(file, error) from error
    if not len(table):
        raise LabelError(f"{file.name}: has a header and no rows; was it cut off?")
    return table


def _parse_error(file: CsvFile, error: pa.ArrowInvalid) -> LabelError:
    """The first row that is wrong, found by reading again slowly, in place of the parser's message."""
    for line, fields in file.rows():
        if len(fields) != len(COLUMNS):
            return LabelError(f"{file.name}, line {line:,}: {shorten(','.join(fields))} is not {','.join(COLUMNS)}")
        try:
            float(fields[1])
        except ValueError:
            return LabelError(f"{file.name}, line {line:,}: Label is {shorten(fields[1])}; it must be a number")
    return LabelError(f"{file.name}: cannot be read as CSV: {' '.join(str(error).split())}; write it anew")


def _checked(file: CsvFile, table: pa.Table) -> tuple[pa.Array, npt.NDArray[np.float64]]:
    keys, values = table[COLUMNS[0]].combine_chunks(), table[COLUMNS[1]].to_numpy()
    bad = ~((values >= 0) & (values <= 1))
    if bad.any():
        row = int(bad.argmax())
        told = "no number" if math.isnan(values[row]) else "outside of 0 to 1"
        raise file.error_at(row, f"{shorten(keys[row].as_py())} has probability {values[row]}, which is {told}")
    codes = keys.dictionary_encode().indices.to_numpy()
    # codes count up in order of appearance, so that the first repeat falls back
    repeats = codes <= np.r_[-1, np.maximum.accumulate(codes)[:-1]]
    if repeats.any():
        row = int(repeats.argmax())
        raise file.error_at(row, f"{shorten(keys[row].as_py())} comes a second time; each row must be there once")
    return keys, values


def rows_of(keys: pa.Array, ids: pa.Array, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """int64 [n, L], the row of `keys` for each label of each image of `ids`; -1 where there is none."""
    text = pa.large_string()
    ends = [(pa.scalar(name, text), pa.scalar("_", text)) for name in names]
    wanted = pa.chunked_array([pc.binary_join_element_wise(ids.cast(text), *end) for end in ends])
    found = pc.index_in(wanted.combine_chunks(), value_set=keys)
    return pc.fill_null(found, -1).to_numpy().astype(np.int64).reshape(len(names), len(ids)).T
