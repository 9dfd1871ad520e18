"""Which split a patient belongs to, which slices a subset draws, and the keyed hash that stands for a patient."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from ich_tfrecords.spec import SplitSpec

KEY_HEX_DIGITS = 32


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
    key = hashlib.blake2b(seed.encode(), digest_size=32).digest()
    digests = b"".join(hashlib.blake2b(word.encode(), digest_size=8, key=key).digest() for word in words)
    return np.frombuffer(digests, "<u8")


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
