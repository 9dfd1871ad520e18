"""`scope.npz`, beside a model: its `Scope`. One function writes it, one reads it."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ich_tfrecords.storage import atomic
from trainer.shell.problems import WrongUse
from trainer.trust import measure
from trainer.trust.portraits import fault_of
from trainer.trust.scope import Scope

NAME = "scope.npz"
FORMAT = 1
SPLITS = ("training", "validation")


def write(folder: Path, scope: Scope) -> Path:
    """Path of the file, put into a folder whole or not at all. Raises `OSError`."""
    head = json.dumps({"format": FORMAT, "weights": scope.weights}).encode()
    parts: dict[str, Any] = {"head": np.frombuffer(head, np.uint8)}
    for name in SPLITS:
        parts |= {name: _bytes(getattr(scope, name)), f"{name}_patients": getattr(scope, f"{name}_patients")}
    parts |= {**scope.vectors.to_arrays("vectors"), **scope.grey.to_arrays("grey")}
    file = io.BytesIO()
    np.savez(file, **parts)
    atomic.write_bytes(folder / NAME, file.getvalue())
    return folder / NAME


def read(folder: Path, weights: str) -> Scope | None:
    """The scope of the model in a folder, whose file has the sha256 `weights`; None where there is none of it.

    Raises `WrongUse` where it is damaged.
    """
    path = folder / NAME
    try:
        with np.load(path) as arrays:
            head = json.loads(bytes(arrays["head"]))
            if head["format"] != FORMAT:
                raise ValueError(f"this version reads format {FORMAT}")
            if head["weights"] != weights:
                return None
            measures = (measure.of_arrays(arrays, "vectors"), measure.of_arrays(arrays, "grey"))
            tables = [_table(arrays[name]) for name in SPLITS]
            patients = [np.asarray(arrays[f"{name}_patients"], np.int64) for name in SPLITS]
            if [len(part) for part in patients] != [len(part) for part in tables]:
                raise ValueError("its parts have different sizes")
            if any(part.ndim != 1 for part in patients) or not all(_is_finite(arrays[name]) for name in arrays.files):
                raise ValueError("its numbers are none")
            return Scope(weights, *measures, *tables, *patients)
    except FileNotFoundError:
        return None
    except _DAMAGE as error:
        reason = " ".join(str(error).split())
        raise WrongUse(f"cannot use {path} ({reason}); remove it, and nothing is said of scope") from error


# what zipfile, numpy and pyarrow raise of a file that somebody cut or changed
_DAMAGE = (
    *(OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, NotImplementedError, RuntimeError),
    *(pa.ArrowException, zipfile.BadZipFile, zlib.error),
)


def _is_finite(values: np.ndarray) -> bool:
    return not np.issubdtype(values.dtype, np.floating) or bool(np.isfinite(values).all())


def _bytes(table: pa.Table) -> np.ndarray:
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return np.frombuffer(file.getvalue(), np.uint8)


def _table(data: np.ndarray) -> pa.Table:
    table = pq.read_table(pa.BufferReader(data.tobytes()))
    if fault := fault_of(table):
        raise ValueError(f"it {fault}")
    return table
