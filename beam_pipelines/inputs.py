"""What the command reads before any work is planned: the spec, the patient key, the listing's facts, the labels."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import io
import os
import secrets
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ich_tfrecords import spec
from ich_tfrecords.command_line import WrongUse
from ich_tfrecords.conversion import patient_key as patient_keys
from ich_tfrecords.conversion import plan, steps
from ich_tfrecords.conversion.patient_key import PatientKey
from ich_tfrecords.dataset import splits
from ich_tfrecords.labels import join
from ich_tfrecords.labels.csv_file import MAY_MISS
from ich_tfrecords.labels.fixes import Fixes, read_fixes
from ich_tfrecords.labels.table import LabelTable, read_labels
from ich_tfrecords.storage import folder_walk, sources
from ich_tfrecords.storage.bucket_path import AnyPath, any_path, is_bucket

LOOKED_AT = 64  # files without a label, before any work: enough to tell another set from a few localizers


def data_spec(args: argparse.Namespace) -> spec.DatasetSpec:
    """Spec of `--spec` with the draw of `--subset`."""
    loaded = spec.load(args.spec)
    if args.subset is None:
        return loaded
    try:
        parts = [(name, int(count)) for name, count in (part.split("=") for part in args.subset.split(","))]
    except ValueError as error:
        raise WrongUse(f"--subset {args.subset}: write SPLIT=N,SPLIT=N, such as train=50000,test=5000") from error
    subset = dict(parts)
    if len(subset) < len(parts):
        raise WrongUse(f"--subset {args.subset}: names a split twice")
    return dataclasses.replace(loaded, split=dataclasses.replace(loaded.split, subset=subset))


def check_places(args: argparse.Namespace, far: bool) -> None:
    """Refuse what workers elsewhere (`far`) cannot see. Raises `WrongUse`."""
    if not far:
        return
    places = {"--input": args.input, "--output": [args.output], "--patient_key_file": [args.patient_key_file]}
    for flag, values in places.items():
        for value in values:
            if value is not None and not is_bucket(str(value)):
                raise WrongUse(
                    f"{flag} {value}: the workers of --runner {args.runner} see gs:// only; copy it to a bucket"
                )


def patient_key(args: argparse.Namespace, salt: str) -> tuple[PatientKey, str]:
    """The key of the patient hash and a line about it: from a file (made when missing), or from the public salt."""
    path: AnyPath | None = args.patient_key_file
    note = ""
    if isinstance(path, Path):
        path = path.absolute()  # workers may run in another folder
        note = _made_key(args, path)
    try:
        return patient_keys.patient_key(salt, path), note
    except ValueError as error:
        raise WrongUse(str(error)) from error
    except FileNotFoundError as error:
        raise WrongUse(
            f"--patient_key_file {path}: no such object; make one of 32 random bytes in hexadecimal"
        ) from error


def _made_key(args: argparse.Namespace, path: Path) -> str:
    """Make a key file that is missing; a line that says so."""
    folders = [Path(place).resolve() for place in args.input if not is_bucket(place) and Path(place).is_dir()]
    if any(path.resolve().is_relative_to(folder) for folder in folders):
        raise WrongUse(f"--patient_key_file {path} lies in an input folder; keep the key away from the slices")
    if path.exists():
        return ""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32) + "\n")
        open_to_others = stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077
    made = f"made the patient key {path}; keep it, a later conversion needs it to give patients the same keys"
    if open_to_others:
        made += "; others may read it, since its file system keeps no mode 0600: move it to one that does"
    return made


def input_facts(listing: sources.Listing) -> dict[str, Any]:
    """What names the input in the manifest: how many files, how many bytes, and the digest of the listing."""
    sizes = listing.table["size_bytes"].to_numpy()
    return {"files": len(sizes), "bytes": int(sizes.sum()), "sha256": sources.listing_digest(listing.table)}


NO_LABELS = "none"


def labels_given(
    given: Sequence[str], may_miss: bool, listing: sources.Listing, label_spec: spec.LabelSpec, key: PatientKey
) -> tuple[list[LabelTable], dict[str, Any] | None]:
    """The tables of all `given` as `--labels`, and what names the contents of their files; nothing and None for `none`.

    Each is a path or an object, else a member of one of the listed zips. Raises `LabelError`, `WrongUse`, `OSError`.
    """
    if NO_LABELS in given:
        if len(given) > 1 or may_miss:
            raise WrongUse(f"--labels {NO_LABELS} goes without other label files and without {MAY_MISS}")
        return [], None
    secret = key.secret()
    read = functools.partial(
        _labels_of,
        listing=listing,
        label_spec=label_spec,
        patient_key=lambda patient_id: splits.patient_key(patient_id, secret),
        may_miss=may_miss,
    )
    tables, digests = zip(*map(read, given), strict=True)
    facts: dict[str, Any] = {"sha256": digests[0]}
    if len(digests) > 1:
        facts = {"files": len(digests), "sha256": hashlib.sha256("\n".join(digests).encode()).hexdigest()}
    return list(tables), facts | ({"may_miss": True} if may_miss else {})


def label_fixes(args: argparse.Namespace, label_spec: spec.LabelSpec) -> Fixes | None:
    """The corrections of `--label_fixes`. Raises `LabelError`, `WrongUse`, `OSError`."""
    if args.label_fixes is None:
        return None
    if NO_LABELS in args.labels:
        raise WrongUse(f"--label_fixes corrects labels, and --labels {NO_LABELS} gives none; name the label files too")
    path = args.label_fixes
    try:
        data = path.read_bytes() if isinstance(path, Path) else _object_bytes(str(path), "--label_fixes")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise WrongUse(f"--label_fixes {path}: {(error.strerror or 'no such file').lower()}; check the path") from error
    return read_fixes(data, str(path), label_spec)


def _labels_of(
    name: str,
    listing: sources.Listing,
    label_spec: spec.LabelSpec,
    patient_key: Callable[[str], str],
    may_miss: bool,
) -> tuple[LabelTable, str]:
    """The table of one label file and the sha256 of its content."""
    path = folder_walk.as_written(Path(name))
    if not is_bucket(name) and path.exists():
        table = read_labels(path, label_spec, None, patient_key, may_miss)
        with path.open("rb") as file:
            return table, _sha256(file)
    data, shown = (_object_bytes(name, "--labels"), name) if is_bucket(name) else _zipped_labels(name, listing)
    table = read_labels(io.BytesIO(data), label_spec, shown, patient_key, may_miss)
    return table, _sha256(io.BytesIO(data))


def _object_bytes(name: str, flag: str) -> bytes:
    try:
        return any_path(name).read_bytes()
    except (ValueError, FileNotFoundError) as error:
        raise WrongUse(f"{flag} {name}: no such object; check the name") from error


def _zipped_labels(name: str, listing: sources.Listing) -> tuple[bytes, str]:
    found, why = [], "no such file"
    for archive in sources.archives(listing.table):
        try:
            found.append((sources.read_member(archive, name), f"{archive}: {name}"))
        except sources.SourceError as error:
            why = str(error)
    if len(found) > 1:
        raise WrongUse(f"--labels {name}: stands in {' and in '.join(shown for _, shown in found)}; give one path")
    if not found:
        raise WrongUse(f"--labels {name}: {why}; write its path, or none for slices without labels")
    return found[0]


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def check_stems(listing: sources.Listing, tables: Sequence[LabelTable], limit: float, accept: tuple[str, ...]) -> None:
    """Where files are named after their slice, as RSNA's are, missing labels show before any file is read."""
    if len(tables) != 1 or not tables[0].of_slices:
        return
    table = tables[0]
    stems = join.stems(listing.table["name"])
    known = join.known_ids(stems, table)
    lacking = np.flatnonzero(~known)
    if not known.any() or len(lacking) <= limit * len(known):
        return
    looked_at, slices = _slices_among(listing.table, lacking, accept)
    if len(lacking) * len(slices) <= limit * len(known) * looked_at:
        return
    first = int(slices[0])
    name, why = listing.table["name"][first].as_py(), join.no_row([stems[first].as_py()], table.ids.to_pylist())
    raise WrongUse(
        f"{len(lacking):,} of {len(known):,} files have no label in {table.name} (first: {name!r}; {why}); choose the "
        f"labelled ones with --include, such as --include '*/stage_2_train/*', or raise --max_reject_fraction"
    )


def _slices_among(
    listing: pa.Table, rows: npt.NDArray[np.int64], accept: tuple[str, ...]
) -> tuple[int, npt.NDArray[np.int64]]:
    """How many of some rows of a listing were looked at, evenly spread, and which of those should be slices.

    A localizer needs no label, and only its header tells it from a slice.
    """
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), LOOKED_AT)).astype(np.int64)]
    with sources.SliceReader() as reader:
        index = steps.index_slices(listing.take(pa.array(some)), b"", reader, Counter(), (accept, steps.unopened))
    return len(some), some[~plan.by_nature(index)]
