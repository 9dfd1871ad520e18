"""Which patients belong together, in which split, which slices a subset draws; the hash that stands for a patient."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords.spec import SplitSpec

KEY_HEX_DIGITS = 32
TIES = ("study_uid", "series_uid")  # what slices of one patient may share and slices of two may not

Int64 = npt.NDArray[np.int64]


class SubsetError(ValueError):
    """A subset asks for more slices than a split holds."""


def patient_key(patient_id: str, secret: bytes) -> str:
    """Keyed hash of a patient id, 32 hexadecimal digits (blake2b, 128 bits; RFC 7693).

    `secret`: up to 64 bytes. Who does not know it cannot test a guessed patient id against the key.
    """
    return hashlib.blake2b(patient_id.encode(), digest_size=KEY_HEX_DIGITS // 2, key=secret).hexdigest()


def public_secret(salt: str) -> bytes:
    """The secret of data whose patient ids are pseudonyms already: derived from the salt in the spec."""
    return hashlib.blake2b(salt.encode(), digest_size=32).digest()


def hash64(seed: str, words: Iterable[str]) -> npt.NDArray[np.uint64]:
    """One uniform uint64 a word, the same on every machine and in every order of the words."""
    keyed = hashlib.blake2b(digest_size=8, key=hashlib.blake2b(seed.encode(), digest_size=32).digest())

    def digest(word: str) -> bytes:
        hasher = keyed.copy()  # the key fills a block of its own, which is hashed once
        hasher.update(word.encode())
        return hasher.digest()

    return np.frombuffer(b"".join(map(digest, words)), "<u8")


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
    """Patients that belong together, since one study or series bears the keys of several of them.

    `keys`: the distinct patient keys, sorted. `patient` int64 [n]: index into `keys` of each row. `first` int64 [P]:
    index of the smallest key of each patient's group, which is its own where nobody is tied to it.
    """

    keys: pa.Array
    patient: Int64
    first: Int64

    @property
    def of_row(self) -> Int64:
        """int64 [n]: a number for each group, in the order of their smallest keys, though not all numbers occur."""
        return self.first[self.patient]

    def __len__(self) -> int:
        return len(np.unique(self.first))

    def several(self) -> list[list[str]]:
        """The sorted keys of each group of several patients, in the order of their smallest keys."""
        (tied,) = np.nonzero(np.bincount(self.first, minlength=len(self.first))[self.first] > 1)
        found: dict[int, list[str]] = {}
        for first, key in zip(self.first[tied].tolist(), self.keys.take(pa.array(tied)).to_pylist(), strict=True):
            found.setdefault(first, []).append(key)
        return [found[first] for first in sorted(found)]


def groups(rows: pa.Table, known: Iterable[Sequence[str]] = ()) -> Groups:
    """Groups of the patients of `rows`, which has the columns `patient_key` and `TIES`; their order does not matter.

    Two patients are tied where a study or a series bears the keys of both, and so are all whom a chain of ties
    connects. `known`: groups found before (`Groups.several`), in slices that need not be among the rows; the first
    key of each then stands for the others.
    """
    keys, patient = sorted_codes(_first_keys(rows["patient_key"], list(known)))
    parent = list(range(len(keys)))
    for name in TIES:
        for one, other in _tied(patient, rows[name], len(keys)):
            _unite(parent, one, other)
    return Groups(keys, patient, np.array([_root(parent, at) for at in range(len(parent))], np.int64))


def _first_keys(patients: pa.ChunkedArray, known: Sequence[Sequence[str]]) -> pa.ChunkedArray:
    if not known:
        return patients
    members = pa.array([key for group in known for key in group], pa.string())
    firsts = pa.array([group[0] for group in known for _ in group], pa.string())
    return pc.coalesce(firsts.take(pc.index_in(patients, value_set=members)), patients)


def sorted_codes(column: pa.ChunkedArray) -> tuple[pa.Array, Int64]:
    """The distinct values, sorted, and the index of each row's."""
    encoded = column.dictionary_encode().combine_chunks()
    order = pc.sort_indices(encoded.dictionary)
    rank = np.empty(len(order), np.int64)
    rank[order.to_numpy()] = np.arange(len(order))
    return encoded.dictionary.take(order), rank[encoded.indices.to_numpy()]


def _tied(patient: Int64, uids: pa.ChunkedArray, patients: int) -> list[tuple[int, int]]:
    """Pairs of patients that share a UID: each with the smallest that bears that UID too."""
    code = uids.dictionary_encode().combine_chunks().indices.to_numpy()
    least = np.full(code.max(initial=-1) + 1, patients, np.int64)
    np.minimum.at(least, code, patient)
    other = least[code]
    pairs = np.unique((patient * patients + other)[other != patient])
    return [divmod(pair, patients) for pair in pairs.tolist()]


def _root(parent: list[int], at: int) -> int:
    """The smallest of the set that `at` is in; the way there is halved for those who come after (Tarjan 1984)."""
    while parent[at] != at:
        parent[at] = parent[parent[at]]
        at = parent[at]
    return at


def _unite(parent: list[int], one: int, other: int) -> None:
    low, high = sorted((_root(parent, one), _root(parent, other)))
    parent[high] = low


def split_of(patient_keys: Sequence[str], split: SplitSpec) -> npt.NDArray[np.int8]:
    """Index into `split_names(split)` for each patient key.

    The hash of (salt, key) falls into a range as wide as the split's weight, so a patient keeps its
    split whatever other data come or go.
    """
    total = sum(split.weights.values())
    edges = np.cumsum([split.weights[name] for name in split_names(split)])
    # the upper 32 bits times the total stay below 2**64: a whole-number draw from 0 to total - 1
    draw = ((hash64(f"split:{split.salt}", patient_keys) >> np.uint64(32)) * np.uint64(total)) >> np.uint64(32)
    return np.searchsorted(edges, draw.astype(np.int64), side="right").astype(np.int8)


def fold_of(patient_keys: Iterable[str], salt: str, folds: int) -> npt.NDArray[np.int64]:
    """Fold 0 to `folds` - 1 of each patient key, about as many patients in each; `salt` as in `SplitSpec`."""
    return (hash64(f"fold:{salt}", patient_keys) % np.uint64(folds)).astype(np.int64)


def split_names(split: SplitSpec) -> tuple[str, ...]:
    """Split names in the one order that counts: alphabetical."""
    return tuple(sorted(split.weights))


def draw_subset(splits: npt.NDArray[np.int8], order: npt.NDArray[np.uint64], split: SplitSpec) -> npt.NDArray[np.bool_]:
    """True for the slices that the subset keeps: of each split named there, the first ones in `order`.

    `splits`: index into `split_names` for each slice; `order`: its seeded hash, so that a greater
    subset holds every smaller one. Raises `SubsetError` when a split holds fewer than asked for.
    """
    kept = np.ones(len(splits), bool)
    for index, name in enumerate(split_names(split)):
        if name not in split.subset:
            continue
        members = np.flatnonzero(splits == index)
        wanted = split.subset[name]
        if wanted > len(members):
            raise SubsetError(
                f"the subset asks for {wanted:,} {name} slices; that split holds {len(members):,}, so go on with "
                f"--subset {name}={len(members)}, or with more data"
            )
        kept[members[np.argsort(order[members], kind="stable")[wanted:]]] = False
    return kept
