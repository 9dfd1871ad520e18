"""Portraits of series that nobody took: every column drawn by a seed, with as much variety as one scanner has."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from trainer.trust.portraits import BINS, PATIENT, SCHEMA, UIDS

WINDOWS, LABELS = ("brain", "subdural", "bone"), ("any", "epidural", "subdural")
AXES = 8  # of vectors


def portraits(
    count: int,
    seed: int,
    *,
    kvp: float = 120,
    kernels: tuple[str, ...] = ("H31s", "H40s"),
    shift: float = 0.0,
    vector: float = 0.0,
    prevalence: float = 0.15,
    labels: int = len(LABELS),
) -> pa.Table:
    """`count` series. `shift`: of the grey in bins; `vector`: of its first axis, in spreads."""
    rng = np.random.default_rng(seed)
    positive = rng.random((count, labels)) < prevalence
    odds = rng.normal(np.where(positive, 2.0, -3.0), 1.0)
    return pa.table(
        {
            "slices": rng.integers(28, 40, count),
            "manufacturer": ["SIEMENS"] * count,
            "kernel": [kernels[at] for at in rng.integers(0, len(kernels), count)],
            "kvp": np.full(count, kvp),
            "thickness_mm": rng.choice([4.8, 5.0], count),
            "spacing_mm": rng.uniform(0.42, 0.5, count),
            "tilt_deg": pa.nulls(count),
            "grey": _grey(rng, count, shift),
            "vector": list(rng.normal([vector, *[0.0] * (AXES - 1)], 1.0, (count, AXES))),
            "distance": rng.gamma(9.0, 0.5, count),
            "grey_distance": rng.gamma(9.0, 0.5, count),
            "probabilities": list(1 / (1 + np.exp(-odds))),
        }
    ).cast(SCHEMA)


def _grey(rng: np.random.Generator, count: int, shift: float) -> list[np.ndarray]:
    """Air, and tissue around a grey of each window, some more of it in some series."""
    bins = np.arange(BINS)
    found = []
    for tissue, place in zip(rng.uniform(0.3, 0.5, count), rng.normal(shift, 0.5, count), strict=True):
        parts = [tissue * _hill(bins, centre + place) for centre in (16, 12, 8)]
        for part in parts:
            part[0] += 1 - tissue
        found.append(np.concatenate(parts))
    return found


def _hill(bins: np.ndarray, centre: float) -> np.ndarray:
    heights = np.exp(-((bins - centre) ** 2) / 8)
    return heights / heights.sum()


def named(table: pa.Table, series_a_study: int = 1, studies_a_patient: int = 0) -> pa.Table:
    """With the columns that predict writes in front; without a patient where none has a study."""
    numbers = range(table.num_rows)
    uids = [[f"study-{at // series_a_study}" for at in numbers], [f"series-{at}" for at in numbers]]
    series = series_a_study * studies_a_patient
    whose = pa.array([at // series if series else None for at in numbers], pa.int32())
    return pa.table([*map(pa.array, uids), whose, *table.columns], names=[*UIDS, PATIENT, *table.column_names])
