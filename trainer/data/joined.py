"""Several converted data sets as one: each keeps its shards, its splits and its labels, and its own vectors."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords import spec as specs
from ich_tfrecords.dataset import splits
from ich_tfrecords.dataset.manifest import Manifest
from ich_tfrecords.plural import counted
from trainer.data.dataset import Dataset, Slices, open_dataset
from trainer.shell.problems import WrongUse


@dataclasses.dataclass(frozen=True, eq=False)
class Joined(Dataset):
    """The data sets `of`, one after the other, as one."""

    of: tuple[Dataset, ...]

    @property
    def parts(self) -> tuple[Dataset, ...]:
        return self.of

    def _joined(self, names: Sequence[str], called: str, random_access: bool) -> Slices:
        for name in names:
            self.require_slices(name)
        found = []
        for number, part in enumerate(self.of):
            if there := [name for name in names if part.has(name)]:
                found.append((number, part._joined(there, called, random_access)))
        return _concatenated(self, found)


def open_datasets(places: Sequence[str], cache_dir: Path | None = None, note: Callable[[str], None] = print) -> Dataset:
    """The data set at the one place, or those at several as one, see `open_dataset`. Raises `WrongUse`.

    `cache_dir`: shards of buckets are copied there; of several data sets those that lie in folders stay where they are.
    """
    if len(places) == 1:
        return open_dataset(places[0], cache_dir, note)
    cloudy = [place.startswith("gs://") for place in places]
    if not any(cloudy):
        cloudy = [True] * len(places)  # so that a `cache_dir` without a use is refused
    return join([open_dataset(place, cache_dir if far else None, note) for place, far in zip(places, cloudy)])


def join(parts: Sequence[Dataset]) -> Joined:
    """Two data sets or more as one.

    Raises `WrongUse` where windows or labels differ, a slice stands in two of them, or a patient is in one split here
    and in another there.
    """
    first = parts[0]
    for other in parts[1:]:
        _require_alike(first, other)
    places = " and ".join(part.place for part in parts)
    slices = pa.concat_tables([_numbered(part, n) for n, part in enumerate(parts)], promote_options="default")
    _require_apart(slices, [part.place for part in parts])
    studies = [part.studies for part in parts if part.studies is not None]
    return Joined(
        place=places,
        manifest=_manifest(parts),
        local=all(part.local for part in parts),
        slices=slices.drop_columns([_PART]),
        studies=pa.concat_tables(studies, promote_options="default") if studies else None,
        sizes={},
        of=tuple(parts),
    )


_PART = "data_set"


def _numbered(part: Dataset, number: int) -> pa.Table:
    return part.slices.append_column(_PART, pa.array(np.full(len(part.slices), number, np.int16)))


def _require_alike(first: Dataset, other: Dataset) -> None:
    if differs := specs.sample_differences(first.manifest.spec, other.manifest.spec):
        raise WrongUse(
            f"{other.place} is defined otherwise than {first.place} ({'; '.join(differs)}), so one model cannot learn "
            "from both; convert one of them again with the spec of the other"
        )


def _require_apart(slices: pa.Table, places: Sequence[str]) -> None:
    """Raises `WrongUse` for a slice that stands in two data sets, and for a patient who is in two splits over them."""
    twice = slices.group_by("sop_uid").aggregate([(_PART, "count"), (_PART, "min"), (_PART, "max")])
    twice = twice.filter(pc.greater(twice[f"{_PART}_count"], 1))
    if len(twice):
        row = twice.slice(0, 1).to_pylist()[0]
        one, other = places[row[f"{_PART}_min"]], places[row[f"{_PART}_max"]]
        raise WrongUse(
            f"slice {row['sop_uid']} stands in {one} and in {other} ({counted(len(twice), 'slice', 'slices')} in all); "
            "name each data set once, and such as have no slice in common"
        )
    ties = pa.table({"group": splits.groups(slices).of_row, "split": slices["split"], _PART: slices[_PART]})
    torn = ties.group_by("group").aggregate([("split", "count_distinct")])
    torn = torn.filter(pc.greater(torn["split_count_distinct"], 1))
    if len(torn):
        rows = pc.equal(ties["group"], torn["group"][0])
        where = sorted({(places[row[_PART]], row["split"]) for row in ties.filter(rows).to_pylist()})
        told = " and ".join(f"{split} of {place}" for place, split in where)
        raise WrongUse(
            f"patient {slices['patient_key'].filter(rows)[0].as_py()}, with all whom a study or series ties to it, is "
            f"in {told} ({len(torn):,} such patients), so what is held out would be trained on; convert one of them "
            "again with the same split salt and shares, which put a patient into one split everywhere"
        )


def _manifest(parts: Sequence[Dataset]) -> Manifest:
    """What is true of all of them together; shards are named by their places."""
    manifests = [part.manifest for part in parts]
    filled = [(name, entry["slices"]) for one in manifests for name, entry in one.splits.items()]
    names = list(dict.fromkeys(name for name, _ in filled))
    shards = [
        {**shard, "name": f"{part.place.rstrip('/')}/{shard['name']}"}
        for part in parts
        for shard in part.manifest.shards
    ]
    rejects: dict[str, int] = {}
    for reason, number in itertools.chain.from_iterable(one.rejects.items() for one in manifests):
        rejects[reason] = rejects.get(reason, 0) + number
    spec = manifests[0].spec
    return Manifest(
        spec=dataclasses.replace(spec, name="_and_".join(dict.fromkeys(one.spec.name for one in manifests))),
        fingerprint=hashlib.sha256("".join(one.fingerprint for one in manifests).encode()).hexdigest(),
        made_from={"data_sets": [one.fingerprint for one in manifests]},
        splits={name: {"slices": sum(slices for key, slices in filled if key == name)} for name in names},
        shards=shards,
        rejects=rejects,
        not_drawn=sum(one.not_drawn for one in manifests),
        labels_unused=sum(one.labels_unused for one in manifests),
        files={},
        groups=[group for one in manifests for group in one.groups],
        further_slices=sum(one.further_slices for one in manifests),
    )


def _concatenated(data: Joined, found: Sequence[tuple[int, Slices]]) -> Slices:
    """The slices of some data sets, each with its number, one after the other."""
    every = [slices for _, slices in found]
    begins = np.cumsum([0, *(len(slices.names) for slices in every)])
    return dataclasses.replace(
        every[0],
        place=data.place,
        names=tuple(f"{one.place.rstrip('/')}/{name}" for one in every for name in one.names),
        paths=tuple(path for one in every for path in one.paths),
        spec=data.manifest.spec,
        shard=np.concatenate([one.shard + begin for one, begin in zip(every, begins)]).astype(np.int32),
        table=pa.concat_tables([one.table for one in every], promote_options="default").combine_chunks(),
        part=np.concatenate([np.full(len(one), number, np.int8) for number, one in found]),
        study_labels=_study_labels(every),
        record=np.concatenate([one.record for one in every]),
        offset=np.concatenate([one.offset for one in every]),
        length=np.concatenate([one.length for one in every]),
        stratum=np.concatenate([one.stratum for one in every]),
        labels=np.concatenate([one.labels for one in every]),
    )


def _study_labels(every: Sequence[Slices]) -> npt.NDArray[np.int8] | None:
    if all(slices.study_labels is None for slices in every):
        return None
    unknown = [np.full_like(slices.labels, -1, np.int8) for slices in every]
    return np.concatenate([lack if one.study_labels is None else one.study_labels for one, lack in zip(every, unknown)])
