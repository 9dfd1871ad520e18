"""A portrait is what a series looks like, without a name or a number of its patient: a row of `SCHEMA`.

Headers, how its grey is shared out, where its vectors lie, how far that is from training, and what the model says.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords import pixels
from ich_tfrecords.pixels import Tensor
from ich_tfrecords.spec import HU, ImageSpec
from trainer.data import neighbours
from trainer.results import cohort

BINS = 32  # of equal width, of the grey of a window
FAR = 0.9  # a series is as far as the slice that this part of its slices is not beyond
NUMBERS, WORDS = cohort.NUMBERS, cohort.WORDS
FACTS = (*WORDS, *NUMBERS)
UIDS = ("study_uid", "series_uid")
PATIENT = "patient"  # a running number of those of a prediction
SCHEMA = pa.schema(
    [
        ("slices", pa.int32()),
        *((name, pa.string()) for name in WORDS),
        *((name, pa.float32()) for name in NUMBERS),
        *((name, pa.list_(pa.float32())) for name in ("grey", "vector")),
        *((name, pa.float32()) for name in ("distance", "grey_distance")),
        ("probabilities", pa.list_(pa.float32())),
    ]
)
PREDICTED = pa.schema([*((name, pa.string()) for name in UIDS), (PATIENT, pa.int32()), *SCHEMA])  # of series.parquet
_ALWAYS = ("slices", "distance", "grey_distance")
_NUMBERS = (pa.int32(), pa.float32())

Float32 = npt.NDArray[np.float32]


class Facts(Protocol):
    """What a header says, as `dicom.facts.SliceFacts` does; None where it is silent."""

    @property
    def manufacturer(self) -> str | None: ...
    @property
    def kernel(self) -> str | None: ...
    @property
    def kvp(self) -> float | None: ...
    @property
    def thickness_mm(self) -> float | None: ...
    @property
    def spacing_mm(self) -> float | None: ...
    @property
    def tilt_deg(self) -> float | None: ...


class Known(NamedTuple):
    """Portraits of series; `whose` int64: the patient of each, as a number; all of one count once."""

    portraits: pa.Table
    whose: npt.NDArray[np.int64]

    @property
    def many(self) -> int:
        """How many patients."""
        return len(np.unique(self.whose))


class Looks(NamedTuple):
    """What k slices look like.

    `grey` float32 [k, windows * BINS], see `shares`; `vector` float32 [k, m], whitened; `distance` and `grey_distance`
    float32 [k], how far vector and grey lie from those of training, see `measure.Measure`.
    """

    grey: Float32
    vector: Float32
    distance: Float32
    grey_distance: Float32


def fault_of(table: pa.Table, fields: Iterable[pa.Field] = SCHEMA) -> str:
    """What is wrong with portraits that were read from a file; "" where nothing is."""
    for field in fields:
        if field.name not in table.column_names:
            return f"has no column {field.name}"
        column = table[field.name]
        if column.type != field.type:
            return f"has {column.type} in column {field.name}, not {field.type}"
        lacking = field.name in _ALWAYS and column.null_count
        if lacking or (field.type in _NUMBERS and _has_infinite(column)):
            return f"lacks values in column {field.name}"
        if pa.types.is_list(field.type):
            numbers = pc.list_flatten(column)
            if column.null_count or numbers.null_count or _has_infinite(numbers):
                return f"lacks values in column {field.name}"
            if len(pc.list_value_length(column).unique()) > 1:
                return f"has lists of different lengths in column {field.name}"
    return ""


def _has_infinite(column: pa.ChunkedArray) -> bool:
    return not np.isfinite(column.drop_null().to_numpy()).all()


def grey_of(images: Tensor, image: ImageSpec) -> Float32:
    """`shares` of what is shown of slices by `image`; `images` [k, size, size, channels], perhaps with neighbours."""
    own = neighbours.own(np.asarray(images), image.shape[2])
    return shares(own if image.kind != HU else np.stack([pixels.shown(one, image) for one in own]))


def shares(images: npt.NDArray[np.uint8]) -> Float32:
    """float32 [k, windows * BINS], the part of the pixels of each window in each of `BINS` bins of its grey.

    `images` uint8 [k, size, size, windows], as `pixels.shown` gives them.
    """
    count, *sides, windows = images.shape
    of_window = np.arange(count * windows, dtype=np.int32).reshape(count, 1, windows) * BINS
    places = (images.reshape(count, -1, windows) // (256 // BINS)).astype(np.int32) + of_window
    found = np.bincount(places.ravel(), minlength=count * windows * BINS)
    return (found.reshape(count, -1) / max(1, int(np.prod(sides)))).astype(np.float32)


class Gathered:
    """Slices as they come, in any order, to portraits of their series; memory: about 1 kB a series, 8 bytes a slice."""

    def __init__(self) -> None:
        self._series: dict[Hashable, _Series] = {}

    def __len__(self) -> int:
        return len(self._series)

    @property
    def keys(self) -> list[Hashable]:
        """Of the rows of `table`."""
        return [*self._series]

    def take(self, keys: Sequence[Hashable], facts: Sequence[Facts | None], looks: Looks, said: Any) -> None:
        """k more slices: the series that each is of, its header, its looks, and probabilities float [k, L]."""
        for at, (key, told) in enumerate(zip(keys, facts, strict=True)):
            found = self._series.get(key)
            if found is None:
                found = self._series[key] = _Series(looks, np.asarray(said))
            found.take(told, looks, np.asarray(said), at)

    def table(self) -> pa.Table:
        """A row of `SCHEMA` a series, in the order in which they were met."""
        rows = [one.row() for one in self._series.values()]
        return pa.Table.from_pylist(rows, SCHEMA)

    def named(self) -> pa.Table:
        """`table` with the columns `UIDS` in front, where the keys are those two."""
        uids = [[key[at] for key in self._series] for at in (0, 1)]  # type: ignore[index]
        found = self.table()
        names = [*UIDS, *SCHEMA.names]
        return pa.table([*(pa.array(some, pa.string()) for some in uids), *found.columns], names=names)


class _Series:
    """One series as far as it came."""

    def __init__(self, looks: Looks, said: npt.NDArray[Any]) -> None:
        self._slices = 0
        self._grey, self._vector = (np.zeros(part.shape[1]) for part in (looks.grey, looks.vector))
        self._said = np.full(said.shape[1], -np.inf)
        self._far: tuple[list[float], list[float]] = ([], [])
        self._words: dict[str, Counter[str]] = {name: Counter() for name in WORDS}
        self._numbers: dict[str, Counter[float]] = {name: Counter() for name in NUMBERS}

    def take(self, facts: Facts | None, looks: Looks, said: npt.NDArray[Any], at: int) -> None:
        self._slices += 1
        self._grey += looks.grey[at]
        self._vector += looks.vector[at]
        np.maximum(self._said, said[at], out=self._said)
        for kept, part in zip(self._far, (looks.distance, looks.grey_distance)):
            kept.append(float(part[at]))
        for counted in (self._words, self._numbers) if facts is not None else ():
            for name, counter in counted.items():
                if (value := getattr(facts, name)) is not None:
                    counter[value] += 1

    def row(self) -> dict[str, Any]:
        words = {name: _commonest(counter) for name, counter in self._words.items()}
        numbers = {name: _commonest(counter) for name, counter in self._numbers.items()}
        distance, grey_distance = map(far, self._far)
        return {
            "slices": self._slices,
            **words,
            **numbers,
            "grey": (self._grey / self._slices).astype(np.float32),
            "vector": (self._vector / self._slices).astype(np.float32),
            "distance": distance,
            "grey_distance": grey_distance,
            "probabilities": self._said.astype(np.float32),
        }


def _commonest(counter: Counter[Any]) -> Any:
    """The value that most slices tell, the least of equally many; None where none does."""
    return min(counter, key=lambda value: (-counter[value], value)) if counter else None


def far(distances: Sequence[float]) -> float:
    """How far a series of slices at these `distances` is: one strange slice of many makes none strange."""
    return sorted(distances)[math.ceil(FAR * len(distances)) - 1]
