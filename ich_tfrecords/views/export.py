"""A data set as 8-bit PNG files and one table of labels a split, for tools that read no TFRecords.

The pixels are exact: a PNG holds the bytes of the record. The data set streams through, a few slices in memory.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import os
import string
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from ich_tfrecords import pixels
from ich_tfrecords.dataset import records
from ich_tfrecords.dataset.manifest import Manifest
from ich_tfrecords.spec import DatasetSpec
from ich_tfrecords.storage import atomic
from ich_tfrecords.storage.bucket_path import AnyPath
from ich_tfrecords.views import montage

_MAX_STEM_CHARS = 180
_BATCH, _THREADS = 64, 4
_PLAIN = frozenset(string.ascii_letters + string.digits + "_-.")


class ExportError(ValueError):
    """An output folder that cannot take the export, or a split that the data set does not have."""


def export(
    directory: AnyPath, manifest: Manifest, output: Path, splits: Sequence[str], progress: Callable[[int, int], None]
) -> int:
    """Write `output/<split>/*.png` and, after them, `output/labels_<split>.csv`; returns the number of PNG files.

    A table stands beside the pictures of a split only when they are all there. `progress` is called with the
    slices done and to do. Raises `ExportError`, `DatasetError`, `DamagedSlice`, `OSError`.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError(f"{output} is not an empty folder; name a new one as --output")
    rows = montage.slice_rows(directory, manifest.spec)
    total = sum(manifest.splits[name]["slices"] for name in splits)
    slices = files = 0
    for split in splits:
        folder = output / split
        folder.mkdir(parents=True)
        for written in _write_pictures(_split_records(directory, manifest, split), folder, manifest.spec):
            slices += written
            progress(slices, total)
        files += _count_pictures(folder, manifest, split)
        write_labels(output / f"labels_{split}.csv", montage.of_splits(rows, [split]), manifest.spec)
    return files


def _write_pictures(values: Iterator[dict[str, Any]], folder: Path, spec: DatasetSpec) -> Iterator[int]:
    """Write the PNG files of each record; yields the number of slices done with each batch."""

    def write(record: dict[str, Any]) -> None:
        for name, image in pictures(record["sop_uid"].decode(), pixels.shown(record["image"], spec.image), spec):
            atomic.write_bytes(folder / name, montage.png_bytes(image))

    # threads, because the wait for the disk is most of the time
    with ThreadPoolExecutor(_THREADS) as pool:
        while batch := list(itertools.islice(values, _BATCH)):
            for _ in pool.map(write, batch):
                pass
            yield len(batch)


def _count_pictures(folder: Path, manifest: Manifest, split: str) -> int:
    """Number of PNG files in the folder of a split. Raises `ExportError` when some are lost."""
    atomic.sync_folder(folder)
    with os.scandir(folder) as entries:
        found = sum(1 for _ in entries)
    expected = manifest.splits[split]["slices"] * len(file_names("", manifest.spec))
    if found != expected:
        raise ExportError(
            f"{folder} holds {found:,} of {expected:,} PNG files: this file system takes some names for one; "
            f"export to one that tells upper from lower case"
        )
    return found


def _split_records(directory: AnyPath, manifest: Manifest, split: str) -> Iterator[dict[str, Any]]:
    """Values of each record of a split, shard after shard. Raises `DamagedSlice`."""
    table = records.features(manifest.spec)
    for shard in manifest.shards:
        if shard["split"] != split:
            continue
        path = montage.shard_path(directory, shard["name"])
        found = 0
        try:
            with path.open("rb") as file:
                for _, payload in records.read_records(file):
                    yield records.parse(payload, table)
                    found += 1
        except (ValueError, FileNotFoundError) as error:
            raise montage.DamagedSlice(f"{path}: {error}; {montage.VERIFY}") from error
        if found != shard["slices"]:
            raise montage.DamagedSlice(f"{path} holds {found:,} of {shard['slices']:,} records; {montage.VERIFY}")


def pictures(sop_uid: str, image: montage.Uint8, spec: DatasetSpec) -> list[tuple[str, Image.Image]]:
    """Name and picture of each PNG of a slice: RGB for three windows, else one in grey a window."""
    names = file_names(sop_uid, spec)
    if len(names) < len(spec.image.windows):
        return [(names[0], Image.fromarray(image))]
    return [(name, Image.fromarray(image[..., channel].copy())) for channel, name in enumerate(names)]


def file_names(sop_uid: str, spec: DatasetSpec) -> list[str]:
    """PNG names of a slice: `ID_x.png` for three windows or one, else `ID_x.brain.png` and so on.

    A window's name holds no dot, so no name of one slice is that of another.
    """
    stem = safe_stem(sop_uid)
    if len(spec.image.windows) in (1, 3):
        return [f"{stem}.png"]
    return [f"{stem}.{window.name}.png" for window in spec.image.windows]


def safe_stem(sop_uid: str) -> str:
    """A file name without folders for any text: letters, digits and `_-.` stay, other bytes become `%2F`.

    Different texts give different names. A name never begins with a dot or a dash, nor with what a spreadsheet
    takes for a formula. One of more than 180 characters keeps its begin and gets a `~` and its hash.
    """
    text = "".join(character if character in _PLAIN else _escaped(character) for character in sop_uid)
    if text[:1] in ("", ".", "-"):
        text = _escaped(text[:1]) + text[1:] if text else "%"
    if len(text) <= _MAX_STEM_CHARS:
        return text
    digest = hashlib.blake2b(sop_uid.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return f"{text[: _MAX_STEM_CHARS - 33]}~{digest}"


def _escaped(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode(errors="surrogatepass"))


def write_labels(path: Path, rows: pa.Table, spec: DatasetSpec) -> None:
    """Write the table of one split: `filename` and the labels in spec order, one line a PNG; -1 is unknown."""
    names = spec.labels.names
    with atomic.replacing(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["filename", *names])
        for batch in rows.select(["sop_uid", *names]).to_batches(max_chunksize=4096):
            for row in batch.to_pylist():
                labels = [row[name] for name in names]
                writer.writerows([file_name, *labels] for file_name in file_names(row["sop_uid"], spec))
        text.detach()
