"""`scope.npz`, beside a model: its `Scope`. One function writes it, one reads it."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ich_tfrecords.storage import atomic
from trainer.shell.problems import WrongUse
from trainer.trust import measure
from trainer.trust.portraits import Known, fault_of
from trainer.trust.scope import Scope

NAME = "scope.npz"
FORMAT = 1


def write(folder: Path, scope: Scope) -> Path:
    """Path of the file, put into a folder whole or not at all. Raises `OSError`."""
    head = json.dumps({"format": FORMAT, "weights": scope.weights}).encode()
    parts: dict[str, Any] = {"head": np.frombuffer(head, np.uint8)}
    for name, known in (("training", scope.training), ("validation", scope.validation)):
        parts |= {name: _bytes(known.portraits), f"{name}_patients": known.whose}
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
        with np.load(path) as file:
            head = json.loads(bytes(file["head"]))
            if head["format"] != FORMAT:
                raise ValueError(f"this version reads format {FORMAT}")
            if head["weights"] != weights:
                return None
            arrays = dict(file)
        if not all(map(_is_finite, arrays.values())):
            raise ValueError("its numbers are none")
        measures = (measure.of_arrays(arrays, "vectors"), measure.of_arrays(arrays, "grey"))
        return Scope(weights, *measures, _known(arrays, "training"), _known(arrays, "validation"))
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


def _known(arrays: Mapping[str, Any], name: str) -> Known:
    table = pq.read_table(pa.BufferReader(arrays[name].tobytes()))
    if fault := fault_of(table):
        raise ValueError(f"it {fault}")
    whose = np.asarray(arrays[f"{name}_patients"], np.int64)
    if whose.shape != (len(table),):
        raise ValueError("its parts have different sizes")
    return Known(table, whose)
