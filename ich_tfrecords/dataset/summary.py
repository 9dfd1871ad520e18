"""Numbers about a data set: totals, shares, labels together, series, identical images, rejects."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords.dataset.manifest import DatasetError, Manifest
from ich_tfrecords.storage.bucket_path import AnyPath


@dataclasses.dataclass(frozen=True)
class Share:
    """`count` of `total`."""

    count: int
    total: int

    @property
    def part(self) -> float:
        """From 0 to 1; 0 when there is no total."""
        return self.count / self.total if self.total else 0.0

    @property
    def percent(self) -> str:
        """The part in percent, or `-` when there is no total."""
        return percent(self.part) if self.total else "-"

    @property
    def text(self) -> str:
        """`76 of 382 (19.9%)`."""
        return f"{self.count:,} of {self.total:,} ({self.percent})" if self.total else "none known"


def percent(part: float) -> str:
    """A part of one in percent, to three digits: `0.41%`, `5.52%`, `19.9%`; only nothing is 0%, only all is 100%."""
    if part in (0, 1):
        return f"{part:.0%}"
    if part < 0.0001:
        return "<0.01%"
    return f"{100 * part:.2f}%" if part < 0.1 else f"{min(100 * part, 99.9):.1f}%"


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Groups of slices with identical pixels.

    `groups`, `slices`: how many groups, and slices in them. `across_patients`, `across_splits`: groups with more
    than one patient or split. `conflicting`: groups whose labels differ. `examples`: rows of the slice table of
    some groups, those that cross splits first.
    """

    groups: int
    slices: int
    across_patients: int
    across_splits: int
    conflicting: int
    examples: list[list[dict[str, Any]]]


def cooccurrence(rows: pa.Table, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Slices positive for both labels, int64 [labels, labels]; the diagonal counts each label."""
    positive = np.stack([rows[name].to_numpy() == 1 for name in names]).astype(np.int64)
    return positive @ positive.T


def series_sizes(rows: pa.Table) -> list[int]:
    """Number of records of each series, ascending."""
    sizes = rows.group_by(["study_uid", "series_uid"]).aggregate([("sop_uid", "count")])
    return sorted(sizes["sop_uid_count"].to_pylist())


def find_duplicates(rows: pa.Table, names: Sequence[str], most: int) -> Duplicates:
    """Identical images by pixel digest; `names` are the labels, `most` the number of example groups."""
    texts = [pc.cast(rows[name], pa.string()) for name in names]
    table = rows.append_column("labels_text", pc.binary_join_element_wise(*texts, " "))
    distinct = ("patient_key", "split", "labels_text")
    wanted = [("sop_uid", "count"), *((name, "count_distinct") for name in distinct)]
    groups = table.group_by("pixel_digest").aggregate(wanted)
    groups = groups.filter(pc.greater(groups["sop_uid_count"], 1))
    several = {name: pc.greater(groups[f"{name}_count_distinct"], 1) for name in distinct}
    order = [("split_count_distinct", "descending"), ("sop_uid_count", "descending"), ("pixel_digest", "ascending")]
    first = groups.take(pc.sort_indices(groups, order))["pixel_digest"][:most].to_pylist()
    return Duplicates(
        groups=groups.num_rows,
        slices=int(groups["sop_uid_count"].to_numpy().sum()),
        across_patients=int(several["patient_key"].to_numpy().sum()),
        across_splits=int(several["split"].to_numpy().sum()),
        conflicting=int(several["labels_text"].to_numpy().sum()),
        examples=[rows.filter(pc.equal(rows["pixel_digest"], digest))[:_MAX_MEMBERS].to_pylist() for digest in first],
    )


_MAX_MEMBERS = 1000  # of an example group: thousands of empty slices may look alike


def reject_examples(path: AnyPath, most: int) -> dict[str, list[dict[str, str]]]:
    """The first `most` rows of each reason in a rejects.csv. Raises `DatasetError`."""
    found: dict[str, list[dict[str, str]]] = {}
    try:
        with io.TextIOWrapper(path.open("rb"), encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                examples = found.setdefault(row["reason"], [])
                if len(examples) < most:
                    examples.append(row)
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise DatasetError(f"cannot read {path}: {error}; the data set is not whole, copy it again") from error
    return found


def totals(manifest: Manifest) -> dict[str, int]:
    """Sums over the splits: shards, slices, bytes, series, studies, patients (each stands in one split)."""
    names = ("shards", "slices", "bytes", "series", "studies", "patients")
    return {name: sum(values[name] for values in manifest.splits.values()) for name in names}


def megabytes(size_bytes: int) -> str:
    """`24.6 MB`, `36.9 GB`."""
    return f"{size_bytes / 1e9:,.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:,.1f} MB"


def prevalence(counts: Mapping[str, int]) -> Share:
    """Positive slices among those with a known label; `counts` as in the manifest."""
    return Share(counts["positive"], counts["positive"] + counts["negative"])


def total_counts(manifest: Manifest, label: str) -> dict[str, int]:
    """Positive, negative and unknown slices of a label in all splits."""
    every = [values["labels"][label] for values in manifest.splits.values()]
    return {kind: sum(counts[kind] for counts in every) for kind in ("positive", "negative", "unknown")}


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested mappings as one, the keys joined by spaces: `{"input files": 3}`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{above} {key}".strip()
        found |= flat(value, name) if isinstance(value, Mapping) else {name: value}
    return found


def plain(value: object) -> str:
    """A fact in words: numbers with commas, `none` for nothing."""
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
