"""Checkpoints: every variable and the state of the training loop in one file that is whole or is not there.

A checkpoint is an uncompressed .npz: `state.json` and `arrays/00000.npy` and so on, a valid zip archive that
`numpy.load` opens. Its archive comment, and so the end of the file, is the sha256 of all bytes before it:
the zip's own crc32 covers the members, but not the headers, where a flipped bit could move or rename them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import keras
import numpy as np
import tensorflow as tf

from ich_tfrecords.storage import atomic
from trainer.shell.problems import TrainingFailed, WrongUse

SUFFIX = ".npz"
_FORMAT = 1
_STATE = "state.json"
_DIGEST_BYTES = 64  # hexadecimal
_READ_BYTES = 1 << 20
_HALF_WRITTEN = rf".+\.npz\.[0-9a-f]+\{atomic.TEMPORARY_SUFFIX}"


class DamagedCheckpoint(WrongUse):
    """A checkpoint that cannot be read, or not as it was written."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What `save` was given, bit for bit, and the file it was read from."""

    arrays: list[np.ndarray]
    names: list[str]
    state: dict[str, Any]
    path: Path


def step_name(step: int) -> str:
    """The name of the checkpoint after `step` steps, such as step-000000123; sorts by the step."""
    return f"step-{step:09d}"


def save(
    directory: Path, name: str, arrays: Sequence[np.ndarray], names: Sequence[str], state: Mapping[str, Any]
) -> Path:
    """The path `<directory>/<name>.npz`, written whole; the same arguments give the same bytes.

    `names`: one for each array. `state`: values that JSON knows, nan and infinities among them. Arrays are
    streamed into the file, without a second copy of them all. Raises `TrainingFailed` when it cannot be
    written; a file that had the name before is then still whole, and nothing else is left behind.
    """
    if len(names) != len(arrays):
        raise ValueError(f"{len(names)} names for {len(arrays)} arrays")
    path = directory / f"{name}{SUFFIX}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path) as file:
            _write(file, arrays, names, state)
        atomic.sync_folder(directory)
    except OSError as error:
        size_bytes = sum(array.nbytes for array in arrays)
        raise TrainingFailed(
            f"{path}: cannot be written, {_reason(error)}; it needs {size_bytes:,} bytes and the right to write; "
            "earlier checkpoints are whole, the same command resumes from them"
        ) from error
    return path


def _write(file: BinaryIO, arrays: Sequence[np.ndarray], names: Sequence[str], state: Mapping[str, Any]) -> None:
    about = {"format": _FORMAT, "names": list(names), "dtypes": [array.dtype.name for array in arrays]}
    signing = _Signing(file)
    # zipfile asks for write and flush alone where a file cannot seek
    with zipfile.ZipFile(cast(BinaryIO, signing), "w") as archive:
        archive.comment = b"0" * _DIGEST_BYTES
        archive.writestr(zipfile.ZipInfo(_STATE), json.dumps({**about, "state": state}))
        for index, array in enumerate(arrays):
            with archive.open(zipfile.ZipInfo(_member(index)), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _plain(array), allow_pickle=False)
    signing.finish()


class _Signing:
    """A file to write to, which puts the sha256 of all bytes before them in place of the last 64."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._held = b""

    def write(self, data: bytes) -> int:
        """The number of bytes taken; the last 64 of all so far are held back."""
        passing = max(0, len(self._held) + len(data) - _DIGEST_BYTES)
        old, new = self._held[:passing], memoryview(data)[: max(0, passing - len(self._held))]
        for part in (old, new):
            self._file.write(part)
            self._digest.update(part)
        self._held = self._held[len(old) :] + data[len(new) :]
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def finish(self) -> None:
        self._file.write(self._digest.hexdigest().encode())


def _member(index: int) -> str:
    return f"arrays/{index:05d}.npy"


def _plain(array: np.ndarray) -> np.ndarray:
    """The array, or its bits as unsigned integers where the .npy format has no name for its dtype (bfloat16)."""
    return array if array.dtype.isbuiltin != 2 else array.view(f"u{array.dtype.itemsize}")


def load(path: Path) -> Checkpoint:
    """What `save` put into the file. Raises `DamagedCheckpoint`, and `WrongUse` where there is no such file."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            _check_digest(path, file)
            return _read(path, file)
    except FileNotFoundError as error:
        raise WrongUse(f"{path}: there is no such checkpoint; name an existing {SUFFIX} file") from error
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DamagedCheckpoint(f"{path}: cannot be read, {_reason(error)}; use another checkpoint") from error


def _check_digest(path: Path, file: BinaryIO) -> None:
    size_bytes = file.seek(0, 2)
    left = size_bytes - _DIGEST_BYTES
    file.seek(0)
    digest = hashlib.sha256()
    while left > 0 and (data := file.read(min(left, _READ_BYTES))):
        digest.update(data)
        left -= len(data)
    if file.read() != digest.hexdigest().encode():
        raise DamagedCheckpoint(
            f"{path}: its {size_bytes:,} bytes do not end in their own sha256, so it is cut short, damaged or not "
            "a checkpoint; use another one"
        )


def _read(path: Path, file: BinaryIO) -> Checkpoint:
    with zipfile.ZipFile(file) as archive:
        about = json.loads(archive.read(_STATE))
        if about["format"] != _FORMAT:
            raise ValueError(f"its format is {about['format']!r} and this version knows {_FORMAT}")
        arrays = [_read_array(archive, index, dtype) for index, dtype in enumerate(about["dtypes"])]
    return Checkpoint(arrays, about["names"], about["state"], path)


def _read_array(archive: zipfile.ZipFile, index: int, dtype: str) -> np.ndarray:
    with archive.open(_member(index)) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
    return array if array.dtype.name == dtype else array.view(tf.as_dtype(dtype).as_numpy_dtype)


def newest(directory: Path, note: Callable[[str], object]) -> Checkpoint | None:
    """The readable `step-*.npz` of the highest step, or None; `note` gets a line for each broken one above it.

    Raises `WrongUse` when the folder cannot be listed; one that is not there has none.
    """
    for path in _by_step(directory):
        try:
            return load(path)
        except DamagedCheckpoint as error:
            note(f"left aside: {error}")
    return None


def prune(directory: Path, keep: int, also: Collection[str]) -> None:
    """Delete all `step-*.npz` but the `keep` of the highest steps, all `best-*.npz`, and what killed writers left.

    What `also` names (as given to `save`) stays. Give it the one just saved: after a resume below broken
    checkpoints it is not among the highest. Only one process may write there meanwhile. `TrainingFailed`
    when one cannot be deleted.
    """
    best = [path for path in _files(directory) if re.fullmatch(r"best-.*\.npz", path.name)]
    surplus = [path for path in [*_by_step(directory)[keep:], *best] if path.name.removesuffix(SUFFIX) not in also]
    half_written = [path for path in _files(directory) if re.fullmatch(_HALF_WRITTEN, path.name)]
    for path in [*surplus, *half_written]:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise TrainingFailed(f"{path}: cannot be deleted, {_reason(error)}; delete it by hand") from error


def _by_step(directory: Path) -> list[Path]:
    """Paths of the `step-*.npz`, the highest step first."""
    found = [(re.fullmatch(r"step-(\d+)\.npz", path.name), path) for path in _files(directory)]
    numbered = [(int(match[1]), path) for match, path in found if match]
    return [path for _, path in sorted(numbered, reverse=True)]


def _files(directory: Path) -> list[Path]:
    """What lies in a folder, nothing where there is none; `glob` would show an unreadable one as empty too."""
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise WrongUse(f"{directory}: cannot be listed, {_reason(error)}; name a folder that you may read") from error


def values(variables: Sequence[Any]) -> list[np.ndarray]:
    """Copies of what the variables (`tf.Variable` or `keras.Variable`) hold, dtypes kept."""
    return [np.array(_tensor(variable).numpy()) for variable in variables]


def names(variables: Sequence[Any]) -> list[str]:
    """What tells the variables apart: the path of a `keras.Variable`, the name of a `tf.Variable`."""
    return [getattr(variable, "path", None) or variable.name for variable in variables]


def assign(variables: Sequence[Any], checkpoint: Checkpoint) -> None:
    """Give the variables the checkpoint's values, bit for bit; all of them, or none.

    Raises `WrongUse` naming the first that differs in name, shape or dtype, or that one side does not have.
    """
    found = [_signature(name, value) for name, value in zip(names(variables), variables)]
    saved = [_signature(name, array) for name, array in zip(checkpoint.names, checkpoint.arrays)]
    for index, (here, there) in enumerate(itertools.zip_longest(found, saved, fillvalue="nothing more")):
        if here != there:
            raise WrongUse(
                f"{checkpoint.path}: variable {index} is {there}, of {len(saved)}, and the model and optimizer "
                f"built here have {here}, of {len(found)}; use the settings it was trained with, or another run"
            )
    for variable, array in zip(variables, checkpoint.arrays):
        _tensor(variable).assign(array)


def _tensor(variable: Any) -> Any:
    """The `tf.Variable`: under a strategy some of Keras's own variables can be read in no other way."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def _signature(name: str, value: Any) -> str:
    """Name, dtype and shape in words: of a variable or an array."""
    return f"{name!r} {tf.as_dtype(value.dtype).name}{list(value.shape)}"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
