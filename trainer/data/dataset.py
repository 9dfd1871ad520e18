"""A converted data set opened for training: its manifest, and the slices of a split as columns.

`manifest.json` is the authority on labels, windows and counts; `slices.parquet` says where each record lies.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ich_tfrecords import environment
from ich_tfrecords.dataset import manifest as manifests
from ich_tfrecords.dataset import splits
from ich_tfrecords.dataset.manifest import MANIFEST, SLICES, Manifest
from ich_tfrecords.dataset.studies import STUDIES
from ich_tfrecords.spec import UNLABELLED
from trainer.data import cache, neighbours, sampling
from trainer.data.shard_reader import FRAME_BYTES, Located, ShardReader, advice
from trainer.shell.problems import WrongUse


@dataclasses.dataclass(frozen=True, eq=False)
class Slices(Located):
    """One split, a row for each slice.

    `random_access`: its records are read one by one in any order (`shard_reader`), else as streams of shards
    (`shard_stream`). `stratum` int8 [n]: index into `spec.labels.strata`. `part` int8 [n]: which of `Dataset.parts` it
    is of. `study_labels` int8 [n, L]: what is known of the study of each slice as a whole, -1 where nothing is; None
    where the data set has no such labels. `table`: ids, place in the series and the rest of `slices.parquet`. `whole`:
    where slices are read with neighbours, the split that these are taken from, and `beside` int64 [n, m]: rows there of
    each and its neighbours, see `neighbours.rows_beside`.
    """

    split: str
    random_access: bool
    stratum: npt.NDArray[np.int8]
    part: npt.NDArray[np.int8]
    study_labels: npt.NDArray[np.int8] | None
    table: pa.Table
    whole: Slices | None = None
    beside: npt.NDArray[np.int64] | None = None

    @functools.cached_property
    def reader(self) -> ShardReader:
        """The one reader of these shards, so that whoever meets a failed batch can ask it for the reason.

        It reads single slices, by their rows in `whole` where that is.
        """
        return ShardReader(self.whole or self)

    def read(
        self, rows: npt.NDArray[np.int64], changes: npt.NDArray[np.float32] | None = None
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Images [..., *image_shape] and labels int64 [..., L] of the slices at `rows` [...].

        `changes` float32 [n, 15]: what happens to each slice and to its neighbours, see `augment`; it needs numba.
        Raises `TrainingFailed` for a record that cannot be read.
        """
        if self.beside is None:
            return self.reader.read(rows, changes)
        changes = None if changes is None else changes.repeat(self.beside.shape[1], axis=0)
        images, _ = self.reader.read(self.beside[rows], changes)
        room = self.reader.room(self.beside.shape[1] * rows.size)
        return neighbours.stacked(images, room), self.labels[rows].astype(np.int64)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Rows, columns and channels of what is read of a slice."""
        context = 0 if self.beside is None else self.beside.shape[1] // 2
        return neighbours.shape(self.spec.image.shape, context)

    def with_neighbours(self, context: int) -> Slices:
        """The same slices, each read with `context` neighbours on either side; as they are where they are read so.

        To be called before some are taken, which stay neighbours of the others. Raises `WrongUse`.
        """
        if not context or self.beside is not None:
            return self
        if not self.random_access:
            raise WrongUse(
                f"{self.place}: context_slices needs the shards as files; copy them here, as training does with "
                "--cache_dir DIR"
            )
        what = f"split {self.split} of {self.place}"
        rows = neighbours.rows_of(self.table, self.part, context, what)
        return dataclasses.replace(self, whole=self, beside=rows)

    def take(self, rows: npt.NDArray[np.bool_], split: str) -> Slices:
        """The slices where `rows` bool [n] is True, in the same order, under the name `split`."""
        parts = {name: getattr(self, name)[rows] for name in _COLUMNS}
        for name in ("study_labels", "beside"):
            if (column := getattr(self, name)) is not None:
                parts[name] = column[rows]
        return dataclasses.replace(self, split=split, table=self.table.filter(pa.array(rows)), **parts)

    @property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """bool [n]: False for the slices of the stratum `unlabelled`, which training never reads."""
        return self.stratum != self.spec.labels.strata.index(UNLABELLED)

    @property
    def known(self) -> bool:
        """Whether any label is known, of a slice or of a study."""
        whole = self.study_labels is not None and bool((self.study_labels >= 0).any())
        return whole or bool(self.labelled.any())

    @property
    def stratum_counts(self) -> dict[str, int]:
        """Slices of each stratum, `unlabelled` left out, in stratum order."""
        return sampling.counted(self.stratum, self.spec.labels.strata)


def splits_of(every: Iterable[Slices]) -> list[str]:
    """Names of the splits of the data set that these slices are of, sorted; a fold is of several."""
    return sorted({name for slices in every for name in slices.table["split"].unique().to_pylist()})


EVERY = "all"  # all splits as one
_COLUMNS = ("shard", "record", "offset", "length", "stratum", "part", "labels")


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set at `place`: its manifest, all its slices, and whether its shards are local files.

    `studies`: the labels of whole studies (`studies.parquet`: `study_uid`, a column a label, and more), None where
    there are none. `sizes`: bytes of each file that lies there, by name.
    """

    place: str
    manifest: Manifest
    local: bool
    slices: pa.Table
    studies: pa.Table | None
    sizes: dict[str, int]

    @property
    def parts(self) -> tuple[Dataset, ...]:
        """The data sets that this one is put together of: itself, or those of a `joined.Joined`."""
        return (self,)

    def split(self, name: str, stream: bool = False) -> Slices:
        """The slices of a split. Raises `WrongUse` for an unknown or empty split, a shard lost or of another size.

        `stream`: read local shards as streams too, as the shards of a bucket always are.
        """
        return self._joined([name], name, self.local and not stream)

    def named(self, names: Sequence[str]) -> list[Slices]:
        """The slices of the named splits, each once, or of all that have some. Raises `WrongUse`."""
        return [self.split(name) for name in dict.fromkeys(names or self._filled())]

    def those_of(self, names: Sequence[str]) -> list[Slices]:
        """The slices of those of the named splits that have some here. Raises `WrongUse` as `split` does."""
        return [self.split(name) for name in names if self.has(name)]

    def has(self, name: str) -> bool:
        """Whether there is a split of that name with slices."""
        return bool(self.manifest.splits.get(name, {}).get("slices"))

    def every(self) -> Slices:
        """The slices of all splits as one. Raises `WrongUse`."""
        return self._joined(self._filled(), EVERY, self.local)

    def _filled(self) -> list[str]:
        """Splits that have slices. Raises `WrongUse` where none has."""
        filled = [name for name, entry in self.manifest.splits.items() if entry["slices"]]
        if not filled:
            raise WrongUse(f"{self.place} holds no slices; convert some first")
        return filled

    def fold(self, names: Sequence[str], fold: int, folds: int) -> tuple[Slices, Slices]:
        """The slices of these splits to train on, and those of the patients of `fold`, 0 to `folds` - 1, held out.

        A patient's fold follows from its key, or the first key of its group (`splits.groups`), whatever its split is.
        Raises `WrongUse`, also where the data set is
        not at hand as files, and where one side is empty.
        """
        if not self.local:
            raise WrongUse(
                f"{self.place}: folds need the shards as files; copy them here, trainer.task with --cache_dir DIR, and "
                "name that folder with --data_dir"
            )
        pool = self._joined(names, " and ".join(names), random_access=True)
        groups = splits.groups(pool.table, self.manifest.groups)
        held = (splits.fold_of(groups.keys.to_pylist(), self.manifest.spec.split.salt, folds) == fold)[groups.of_row]
        if held.all() or not held.any():
            raise WrongUse(
                f"{self.place}: fold {fold} of {folds} holds {'all' if held.any() else 'none'} of the {len(groups)} "
                f"patients of {pool.split}; take fewer folds, or more data"
            )
        return pool.take(~held, f"all but fold {fold} of {folds}"), pool.take(held, f"fold {fold} of {folds}")

    def require_slices(self, name: str, way_on: str = "") -> None:
        """Raises `WrongUse` for an unknown or empty split, with `way_on` at its end."""
        filled = [key for key, entry in self.manifest.splits.items() if entry["slices"]]
        if name not in filled:
            what = "has no slices" if name in self.manifest.splits else "is not a split"
            known = f"the splits with slices are {', '.join(filled) or 'none'}"
            raise WrongUse("; ".join(filter(None, (f"{self.place}: {name!r} {what}", known, way_on))))

    def _joined(self, names: Sequence[str], called: str, random_access: bool) -> Slices:
        for name in names:
            self.require_slices(name)
        shards = sorted((shard for shard in self.manifest.shards if shard["split"] in names), key=lambda s: s["name"])
        self._check_sizes({shard["name"]: shard["bytes"] for shard in shards if shard["slices"]})
        rows = self.slices.filter(pc.is_in(self.slices["split"], value_set=pa.array(list(names), pa.string())))
        return self._slices(called, rows, {shard["name"]: shard["bytes"] for shard in shards}, random_access)

    def _check_sizes(self, expected: dict[str, int]) -> None:
        for name, size in expected.items():
            if name not in self.sizes:
                raise WrongUse(f"{self.place}: shard {name} is missing; {advice(self.place)}")
            if self.sizes[name] != size:
                found = f"has {self.sizes[name]:,} bytes, the manifest says {size:,}"
                raise WrongUse(f"{self.place}: shard {name} {found}; {advice(self.place)}")

    def _slices(self, split: str, rows: pa.Table, shard_bytes: dict[str, int], random_access: bool) -> Slices:
        table = rows.take(pc.sort_indices(rows, [("shard", "ascending"), ("row", "ascending")])).combine_chunks()
        spec, names = self.manifest.spec, tuple(shard_bytes)
        shard = _codes(table["shard"], names, f"{self.place}/{SLICES}: shard").astype(np.int32)
        offset = table["offset"].to_numpy()
        ends = np.r_[offset[1:], 0]
        last = np.r_[shard[1:] != shard[:-1], True]
        ends[last] = np.array(list(shard_bytes.values()))[shard[last]]
        root = self.place.rstrip("/")
        return Slices(
            place=self.place,
            split=split,
            random_access=random_access,
            spec=spec,
            names=names,
            paths=tuple(f"{root}/{name}" for name in names),
            shard=shard,
            record=table["row"].to_numpy(),
            offset=offset,
            length=ends - offset - FRAME_BYTES,
            stratum=_codes(table["stratum"], spec.labels.strata, f"{self.place}/{SLICES}: stratum").astype(np.int8),
            part=np.zeros(len(table), np.int8),
            labels=np.stack([table[label].to_numpy() for label in spec.labels.names], axis=1),
            study_labels=self._study_labels(table["study_uid"]),
            table=table,
        )

    def _study_labels(self, uids: pa.ChunkedArray) -> npt.NDArray[np.int8] | None:
        if self.studies is None:
            return None
        at = pc.index_in(uids, value_set=self.studies["study_uid"].combine_chunks())
        found = [self.studies[name].take(at).fill_null(-1).to_numpy() for name in self.manifest.spec.labels.names]
        return np.stack(found, axis=1).astype(np.int8)


def _codes(column: pa.ChunkedArray, words: tuple[str, ...], where: str) -> npt.NDArray[np.int64]:
    """Index of each value into `words`. Raises `WrongUse` for a value that is not among them."""
    codes = pc.index_in(column, value_set=pa.array(words, pa.string()))
    if codes.null_count:
        value = column.filter(codes.is_null())[0].as_py()
        raise WrongUse(f"{where} {value!r} is not known to {MANIFEST}; restore the data set or convert again")
    return codes.to_numpy().astype(np.int64)


def open_dataset(place: str, cache_dir: Path | None = None, note: Callable[[str], None] = print) -> Dataset:
    """The data set in a folder or at `gs://bucket/prefix`. Raises `WrongUse`.

    With `cache_dir` the shards of a bucket are copied there first, and the data set is a local one from then on.
    Without, the metadata alone is fetched, and the shards are read as streams. `note` is told what is copied.
    """
    if not place.startswith("gs://"):
        if cache_dir is not None:
            raise WrongUse(f"--cache_dir {cache_dir} is for buckets, and {place} is a folder; leave it out")
        return _local(environment.expanded(place))
    with tempfile.TemporaryDirectory(prefix="ich_metadata_") as name:
        folder = Path(name)
        metadata = {file: cache.fetch(place, file, _how_to_convert(place)) for file in (MANIFEST, SLICES)}
        (folder / MANIFEST).write_bytes(metadata[MANIFEST])
        done = _manifest(folder, place)
        if STUDIES in done.files:
            metadata[STUDIES] = cache.fetch(place, STUDIES, _how_to_convert(place))
        tables = _tables(metadata, done, place)
    if cache_dir is None:
        return Dataset(place, done, False, *tables, cache.sizes(place))
    home = environment.expanded(cache_dir) / f"{done.spec.name}-{done.fingerprint[:16]}"
    cache.copy(place, home, done, metadata, note)
    return _local(home)


def _local(folder: Path) -> Dataset:
    done = _manifest(folder, str(folder))
    names = [SLICES, *[STUDIES] * (STUDIES in done.files)]
    try:
        contents = {name: (folder / name).read_bytes() for name in names}
        sizes = {entry.name: entry.stat().st_size for entry in folder.iterdir() if entry.is_file()}
    except OSError as error:
        raise WrongUse(f"{folder}: cannot read the data set: {error}; restore it or convert again") from error
    return Dataset(str(folder), done, True, *_tables(contents, done, str(folder)), sizes)


def _manifest(folder: Path, place: str) -> Manifest:
    """The manifest in `folder`, which messages call `place`."""
    if not (folder / MANIFEST).is_file():
        raise WrongUse(f"{place} holds no {MANIFEST}, so it is no converted data set; {_how_to_convert(place)}")
    try:
        return manifests.read(folder)
    except manifests.DatasetError as error:
        advice = "" if "; " in str(error) else "; restore it or convert again"
        raise WrongUse(str(error).replace(str(folder), place) + advice) from error


def _how_to_convert(place: str) -> str:
    command = f"python -m beam_pipelines.convert --input ... --labels ... --output {place}"
    return f"make one, or end a conversion that was cut off, with: {command}"


def _tables(contents: dict[str, bytes], done: Manifest, place: str) -> tuple[pa.Table, pa.Table | None]:
    """The slices, and the studies where they have labels of their own."""
    studies = _table(STUDIES, contents[STUDIES], done, place) if STUDIES in contents else None
    return _table(SLICES, contents[SLICES], done, place), studies


def _table(name: str, data: bytes, done: Manifest, place: str) -> pa.Table:
    """A table, its sha256 checked against the manifest."""
    if hashlib.sha256(data).hexdigest() != done.files.get(name):
        raise WrongUse(f"{place}: the sha256 of {name} is not the one in {MANIFEST}; {advice(place)}")
    return pq.read_table(io.BytesIO(data))
