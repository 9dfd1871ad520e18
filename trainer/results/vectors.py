"""What a slice model makes of each slice, on disk: its vector, and its logits beside; read by number, never whole.

    RUN/vectors/<split>[-flip][-<data set>]/
        part-00000.npy ...   a row a slice: vector float16 [dim], logits float32 [L]; `PART_SLICES` rows, the last fewer
        index.json           what they are of, and the sha256 of each part that is whole

Slices stand in the order of their records: shards by name, then the record's number, as `Dataset.split` has them. A
part is put in place whole and counts once the index names it; vectors are whole when it names all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ich_tfrecords.plural import counted
from ich_tfrecords.storage import atomic
from trainer.data.dataset import Dataset, Slices
from trainer.results import evaluated
from trainer.shell.problems import WorkFailed, WrongUse

FOLDER, INDEX = "vectors", "index.json"
FORMAT = 1
PART_SLICES = 4096  # whole batches, so that none holds slices of two parts
SPARE_BYTES = 10**8  # of the disk, for whatever else is written meanwhile

Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Source:
    """Whose vectors: of the model in the run `run`, named in messages as `job_dir`, over the data set `place`.

    `weights`: sha256 of the model file. `dataset`, `trained_on`: fingerprints of the data set, and of the one that the
    run was trained on. `mirrored`: of the left-right mirror image of each slice.
    """

    run: Path
    job_dir: str
    place: str
    weights: str
    dataset: str
    trained_on: str
    mirrored: bool = False

    def folder(self, split: str) -> Path:
        """Where the vectors of a split lie."""
        other = "" if self.dataset == self.trained_on else self.dataset
        return self.run / FOLDER / evaluated.name_of(split, self.mirrored, other)

    def facts(self, split: str) -> dict[str, Any]:
        """What the index of a split says of it, whatever its size."""
        whose = {"weights": self.weights, "dataset": self.dataset, "split": split, "mirrored": self.mirrored}
        return {"format": FORMAT, **whose}

    def command(self, split: str) -> str:
        """The command that makes the vectors of a split."""
        words = ["python", "-m", "trainer.embed", "--job_dir", self.job_dir, "--data_dir", self.place, "--split", split]
        return shlex.join(words + ["--flip"] * self.mirrored)


class Store:
    """The vectors of one split while they are made: which parts are `missing`, and how a part is put in place.

    `dim`: of a vector; `labels`: of the logits. Opening it reads and checks what is there, and changes nothing.
    """

    def __init__(self, source: Source, split: str, slices: int, dim: int, labels: Sequence[str]) -> None:
        self.folder = source.folder(split)
        self.slices, self.dim = slices, dim
        self._names = _names(slices, PART_SLICES)
        self.dtype = _row(dim, len(labels))
        sizes = {"slices": slices, "part_slices": PART_SLICES, "dim": dim, "labels": list(labels)}
        self._facts = source.facts(split) | sizes
        found = _read_index(self.folder)
        self._changed = found is not None and _facts(found) != self._facts
        named = {} if found is None or self._changed else found["parts"]
        self._parts = {name: named[name] for name in self._names if _is_whole(self.folder / name, named)}
        self._damaged = len(named) - len(self._parts)

    @property
    def missing(self) -> list[int]:
        """Numbers of the parts that are still to be made."""
        return [number for number, name in enumerate(self._names) if name not in self._parts]

    @property
    def missing_runs(self) -> list[list[int]]:
        """The same, those that follow each other together."""
        runs: list[list[int]] = []
        for number in self.missing:
            if runs and runs[-1][-1] == number - 1:
                runs[-1].append(number)
            else:
                runs.append([number])
        return runs

    @property
    def present_slices(self) -> int:
        """Slices of the parts that are there."""
        return self.slices - sum(end - begin for begin, end in map(self.span, self.missing))

    def span(self, number: int) -> tuple[int, int]:
        """First row of a part, and the one behind its last."""
        return number * PART_SLICES, min((number + 1) * PART_SLICES, self.slices)

    def notes(self) -> list[str]:
        """What of the things that were there is made anew, and why."""
        if self._changed:
            return [f"{self.folder} holds vectors of other weights or another data set; all are made anew"]
        return [f"{self.folder}: {counted(self._damaged, 'part')} damaged or lost; made anew"] * bool(self._damaged)

    def begin(self) -> None:
        """Make the folder ready: what stays there is whole, of these weights and of this data set. Raises `OSError`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_index()  # before anything goes: it names no part that may be gone
        for path in {*self.folder.glob("part-*"), *self.folder.glob(atomic.TEMPORARY_GLOB)}:
            if path.name not in self._parts:
                path.unlink()

    def put(self, number: int, rows: npt.NDArray[Any]) -> None:
        """Put a part (`dtype` [slices of its span]) in place, whole or not at all. Raises `OSError`."""
        name, data = self._names[number], _npy(rows)
        atomic.write_bytes(self.folder / name, data)
        self._parts[name] = hashlib.sha256(data).hexdigest()
        self._write_index()

    def _write_index(self) -> None:
        text = json.dumps({**self._facts, "parts": dict(sorted(self._parts.items()))}, indent=1) + "\n"
        atomic.write_bytes(self.folder / INDEX, text.encode())


def require_room(stores: Sequence[Store]) -> None:
    """Raises `WrongUse` where the disk does not take what these stores lack; all of them lie on one disk."""
    slices = sum(store.slices - store.present_slices for store in stores)
    needed = sum((store.slices - store.present_slices) * store.dtype.itemsize for store in stores)
    place = next(path for path in stores[0].folder.parents if path.exists())
    free = shutil.disk_usage(place).free
    if needed and free < needed + SPARE_BYTES:
        raise WrongUse(
            f"{place} has {free / 1e6:,.0f} MB free, and the vectors of {counted(slices, 'slice')} take "
            f"{needed / 1e6:,.0f} MB, with {SPARE_BYTES / 1e6:,.0f} MB to spare; make room, or name fewer with --split"
        )


class Part:
    """The rows of a file, read by their numbers. Not mapped: what the system keeps of it is nobody's memory."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError`, and ValueError for another file than `Store` writes."""
        self._path, self._file = path, path.open("rb")  # closed with the object
        if np.lib.format.read_magic(self._file) != (1, 0):
            raise ValueError(f"{path} is no file of vectors")
        (self._rows,), _, self.dtype = np.lib.format.read_array_header_1_0(self._file)
        self._begin = self._file.tell()

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, numbers: Int64) -> npt.NDArray[Any]:
        """`dtype` [b], the rows at `numbers` int64 [b]. Raises `WorkFailed` where the file has become shorter."""
        found, size = np.empty(len(numbers), self.dtype), self.dtype.itemsize
        buffers = found.view(np.uint8).reshape(len(found), size)
        for buffer, number in zip(buffers, numbers.tolist()):
            if os.preadv(self._file.fileno(), [buffer.data], self._begin + number * size) != size:
                raise WorkFailed(f"{self._path} has changed while it was read; run it again")
        return found


class Vectors:
    """Vectors and logits of slices by the numbers of their rows.

    `dim`: of a vector.
    """

    def __init__(self, parts: Sequence[Part | npt.NDArray[Any]], at: Int64) -> None:
        """`parts`: rows as in `Store`, one part after the other. `at` int64 [n]: where among them each slice stands."""
        self._parts = parts
        self._begins = np.cumsum([0, *map(len, parts)])[:-1]
        self._at = at
        self.dim: int = parts[0].dtype["vector"].shape[0]

    def __len__(self) -> int:
        return len(self._at)

    def rows(self, numbers: Int64) -> npt.NDArray[np.float16]:
        """float16 [b, dim], the vectors of the slices at `numbers` int64 [b], any of them in any order."""
        return self._gathered("vector", numbers)

    def logits(self, numbers: Int64) -> npt.NDArray[np.float32]:
        """float32 [b, L], the logits of the slice model for the same; for a blend, never to learn from."""
        return self._gathered("logits", numbers)

    def _gathered(self, field: str, numbers: Int64) -> npt.NDArray[Any]:
        at = self._at[numbers]
        which = np.searchsorted(self._begins, at, side="right") - 1
        kind = self._parts[0].dtype[field]
        out = np.empty((len(at), *kind.shape), kind.base)
        for number in np.unique(which):
            mine = which == number
            out[mine] = self._parts[number][at[mine] - self._begins[number]][field]
        return out


def read(sources: Sequence[Source], data: Dataset, slices: Slices) -> Vectors:
    """The vectors of `slices`, a split or fold of `data`: their row is the number.

    `sources`: of each of `data.parts`. Raises `WrongUse` with the command that makes them, where they lack, are of
    other weights or another data set, or do not have the bytes that were written.
    """
    parts: list[Part] = []
    begins: dict[str, int] = {}  # path of a shard -> where among the parts its first record stands
    at = 0
    for number, (source, one) in enumerate(zip(sources, data.parts, strict=True)):
        mine = slices.table["split"].filter(pa.array(slices.part == number))
        for split in sorted(mine.unique().to_pylist()):
            sizes = {shard["name"]: shard["slices"] for shard in one.manifest.shards if shard["split"] == split}
            parts += _split_parts(source, split, sum(sizes.values()))
            for name in sorted(sizes):
                begins[f"{one.place.rstrip('/')}/{name}"] = at
                at += sizes[name]
    first = np.array([begins.get(path, 0) for path in slices.paths], np.int64)
    return Vectors(parts, first[slices.shard] + slices.record)


def _split_parts(source: Source, split: str, slices: int) -> list[Part]:
    folder, advice = source.folder(split), f"make them with: {source.command(split)}"
    found = _read_index(folder)
    if found is None:
        raise WrongUse(f"{folder} holds no vectors; {advice}")
    if wrong := [key for key, value in source.facts(split).items() if found.get(key) != value]:
        raise WrongUse(f"the vectors in {folder} are of other {' and '.join(wrong)}; {advice}")
    names = _names(slices, found["part_slices"])
    if lacking := [name for name in names if name not in found["parts"]]:
        done = len(names) - len(lacking)
        raise WrongUse(f"{folder} holds {done} of {counted(len(names), 'part')} of the vectors; {advice}")
    for name in names:
        if not _is_whole(folder / name, found["parts"]):
            raise WrongUse(f"{folder / name} does not have the bytes that were written; {advice}")
    return [Part(folder / name) for name in names]


def require_finite(rows: npt.NDArray[Any], sop_uids: Sequence[str]) -> None:
    """Raises `WorkFailed` that names the first slice with a vector or logits that are not finite numbers."""
    bad = ~(np.isfinite(rows["vector"]).all(1) & np.isfinite(rows["logits"]).all(1))
    if bad.any():
        row = int(np.argmax(bad))
        what = "a vector with values that float16 cannot hold (65,504 at most)"
        if not np.isfinite(rows["logits"][row]).all():
            what = "logits that are not finite"
        raise WorkFailed(f"slice {sop_uids[row]}: the model gives {what}; the model is broken, train again")


def _row(dim: int, labels: int) -> np.dtype[Any]:
    return np.dtype([("vector", np.float16, (dim,)), ("logits", np.float32, (labels,))])


def _names(slices: int, part_slices: int) -> list[str]:
    return [f"part-{number:05d}.npy" for number in range(-(-slices // part_slices))]


def _npy(rows: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, rows, allow_pickle=False)
    return buffer.getvalue()


def _read_index(folder: Path) -> dict[str, Any] | None:
    """The index of a folder; None where there is none, or none that can be read."""
    try:
        found: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        good = isinstance(found["parts"], dict) and found["part_slices"] > 0 and found["slices"] >= 0
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if good else None


def _facts(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "parts"}


def _is_whole(path: Path, parts: dict[str, str]) -> bool:
    """Whether a part is there with the bytes that the index says."""
    try:
        return path.name in parts and hashlib.sha256(path.read_bytes()).hexdigest() == parts[path.name]
    except FileNotFoundError:
        return False
