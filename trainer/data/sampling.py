"""Which slices an epoch shows, how often and in what order: pure functions of numbers, on numpy alone.

Rows are rows of a split's table; a stratum is an int8 index into `LabelSpec.strata`. Each stratum is an endless
stream of passes over its rows, shuffled anew each pass. An epoch takes the next rows of each stream, as many as
its share asks for, and mixes them. Where an epoch begins in a stream follows from its number, so nothing depends
on earlier epochs having run: a resumed run and every worker see the same order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ich_tfrecords.spec import UNLABELLED
from trainer.shell.problems import WrongUse, hint

NATURAL = "natural"
EXPLICIT = "explicit"

_WEIGHTS: Mapping[str, Callable[[int], float]] = {
    NATURAL: float,
    "balanced": lambda slices: float(slices > 0),
    "sqrt": math.sqrt,
}
POLICIES = (*_WEIGHTS, EXPLICIT)

_WORDS_A_BLOCK = 4  # Philox 4x64 gives four words for each value of its counter
_GREATEST_DENOMINATOR = 10**9


def proportions(policy: str, counts: Mapping[str, int], explicit: Mapping[str, float]) -> dict[str, float]:
    """Share of each stratum in the sampled slices, summing to 1, in the order of `counts`.

    `counts`: slices of each stratum; `unlabelled` is never sampled and gets no share. `natural` keeps the
    proportions of `counts`, `balanced` makes the strata that have slices equal, `sqrt` goes by the square root of
    the slices, `explicit` normalises the given shares (a stratum left out gets 0). Raises `WrongUse` for an
    unknown policy, for shares that cannot be used, and where no slice is labelled.
    """
    _check_policy(policy)
    counts = {name: slices for name, slices in counts.items() if name != UNLABELLED}
    if not any(counts.values()):
        raise WrongUse(f"no labelled slices to sample: {counts}; choose a split or a data set with labels")
    if policy == EXPLICIT:
        _check_explicit(counts, explicit)
        weights = {name: float(explicit.get(name, 0)) for name in counts}
    elif explicit:
        raise WrongUse(f"shares {dict(explicit)} need the sampling policy {EXPLICIT!r}, which is {policy!r}")
    else:
        weights = {name: _WEIGHTS[policy](slices) for name, slices in counts.items()}
    total = math.fsum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def counted(strata: npt.NDArray[np.int8], names: Sequence[str]) -> dict[str, int]:
    """How many of each stratum there are but `unlabelled`, in the order of `names`; `strata`: index into those."""
    counts = np.bincount(strata, minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True) if name != UNLABELLED}


def counts_of_parts(
    strata: npt.NDArray[np.int8], part: npt.NDArray[np.int8], names: Sequence[str], parts: int
) -> list[Mapping[str, int]]:
    """`counted` of the rows of each of `parts` data sets; `part` int8 [n]: which one each row is of."""
    return [counted(strata[part == number], names) for number in range(parts)]


def stratum_counts(shares: Mapping[str, float], size: int) -> dict[str, int]:
    """Slices of each stratum in an epoch of `size`, whole numbers that sum to it (method of largest remainders).

    `shares`: not negative, summing to 1. Equal remainders go to the stratum that comes first in `shares`.
    """
    # 0.1 and 0.7 are not those numbers in binary; the nearest short fraction is, so that ties are ties
    exact = {name: Fraction(share).limit_denominator(_GREATEST_DENOMINATOR) for name, share in shares.items()}
    total = sum(exact.values())
    quotas = {name: share * size / total for name, share in exact.items()}
    counts = {name: math.floor(quota) for name, quota in quotas.items()}
    missing = size - sum(counts.values())
    # sorted() keeps the order of equal remainders
    for name in sorted(counts, key=lambda name: counts[name] - quotas[name])[:missing]:
        counts[name] += 1
    return counts


def epoch_order(
    strata: npt.NDArray[np.int8] | npt.NDArray[np.int64],
    names: Sequence[str],
    policy: str,
    shares: Mapping[str, float],
    seed: int,
    epoch: int,
    size: int,
) -> npt.NDArray[np.int64]:
    """int64 [size], the rows of the table in the order in which training meets them in that epoch.

    `strata`: int8 [n], index into `names`; `shares`: as `proportions` gives them; `epoch`: 0, 1, ...
    `natural` is one stream of all rows whose stratum has a share: each exactly once an epoch when `size` is their
    number; with a smaller `size` the next epoch goes on where this one ended, and an epoch that spans two passes
    may show a slice of the first again in the second. The other policies take exactly `stratum_counts` rows of
    each stratum's stream. Unlabelled rows never occur. The same arguments give the same bits on every machine.
    Raises `WrongUse` where a share falls to a stratum without slices, or where `natural` has fewer than `size`.
    """
    _check_policy(policy)
    shares = {name: 0.0 if name == UNLABELLED else shares.get(name, 0.0) for name in names}
    if policy == NATURAL:
        return _natural_order(strata, shares, seed, epoch, size)
    counts = stratum_counts(shares, size)
    choices = choice_sequence(list(counts.values()), seed, epoch)
    order = np.empty(size, np.int64)
    for index, (name, count) in enumerate(counts.items()):
        rows = np.flatnonzero(strata == index)
        if count and not len(rows):
            raise WrongUse(f"stratum {name} has share {shares[name]:g} and no slices; leave it out of the shares")
        order[choices == index] = _stream(rows, f"rows:{name}", seed, epoch * count, count)
    return order


def cells(
    strata: npt.NDArray[np.int8],
    part: npt.NDArray[np.int8],
    names: Sequence[str],
    of_parts: Sequence[Mapping[str, float]],
) -> tuple[npt.NDArray[np.int64], list[str], dict[str, float]]:
    """Strata of each of several data sets as strata of their own: int64 [n] index into the names, names, and shares.

    `part` int8 [n]: which data set each row is of; `of_parts`: what of all falls to the strata of each.
    """
    found = strata.astype(np.int64) + len(names) * part.astype(np.int64)
    named = [f"{number} {name}" for number in range(len(of_parts)) for name in names]
    shares = {f"{number} {name}": share for number, one in enumerate(of_parts) for name, share in one.items()}
    return found, named, shares


def choice_sequence(counts: Sequence[int], seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """int64 [sum of `counts`], which stratum gives the next slice: index i exactly `counts[i]` times, mixed."""
    size = sum(counts)
    return _stream(np.repeat(np.arange(len(counts)), counts), "choices", seed, epoch * size, size)


def batch_sizes(size: int, batch_size: int, quantum: int) -> tuple[int, int]:
    """Full batches of an epoch of `size` slices, and the slices of the short batch after them (0: there is none).

    The short batch is cut to a multiple of `quantum` (replicas times accumulation), so that every replica gets as
    many slices as the others. Raises `WrongUse` where `batch_size` itself is no such multiple.
    """
    if batch_size <= 0 or batch_size % quantum:
        raise WrongUse(
            f"batch size is {batch_size}; replicas times accumulation is {quantum}: use a multiple of that, "
            f"such as {max(1, round(batch_size / quantum)) * quantum}"
        )
    full, rest = divmod(size, batch_size)
    return full, rest - rest % quantum


def weights(shares: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """How often a slice of each stratum that has slices is drawn, beside the others: its share a slice."""
    return {name: shares.get(name, 0.0) / slices for name, slices in counts.items() if slices}


def is_natural(shares: Mapping[str, float], counts: Mapping[str, int]) -> bool:
    """Whether every slice is drawn as often as any other, whatever the policy is called."""
    found = list(weights(shares, counts).values())
    return math.isclose(min(found), max(found), rel_tol=1e-9)


def log_odds_shift(
    positives: Mapping[str, npt.NDArray[np.int64]],
    negatives: Mapping[str, npt.NDArray[np.int64]],
    shares: Mapping[str, float],
) -> npt.NDArray[np.float64]:
    """float64 [L], what sampling by `shares` adds to each label's log odds: logit(p sampled) - logit(p natural).

    `positives`, `negatives`: stratum -> int64 [L], slices of it with the label known to be 1 or 0. A slice of
    stratum s weighs share_s / slices_s when sampled and 1 by nature; p is the weighted part of the known labels
    that is 1. Take the shift from a logit to undo the sampling (King and Zeng 2001, prior correction): on average
    over slices, since the other labels matter too (`results.joint`). A label that is always 0 or always 1, sampled
    or by nature, gets 0. A stratum without a share still counts for what is natural.
    """
    used = [name for name in positives if name != UNLABELLED]
    ones = np.array([positives[name] for name in used], np.float64)
    zeros = np.array([negatives[name] for name in used], np.float64)
    # the label that put a slice into its stratum is known, whatever else is not, so the most known are all
    slices = (ones + zeros).max(axis=1)
    share = np.array([shares.get(name, 0.0) for name in used])
    weight = np.divide(share, slices, out=np.zeros(len(used)), where=slices > 0)
    odds = np.stack([weight @ ones, weight @ zeros, ones.sum(axis=0), zeros.sum(axis=0)])
    defined = (odds > 0).all(axis=0)
    logs = np.log(np.where(defined, odds, 1.0))
    return (logs[0] - logs[1]) - (logs[2] - logs[3])


def random_words(purpose: str, seed: int, first: int, count: int) -> npt.NDArray[np.uint64]:
    """uint64 [count], uniform words `first`, `first` + 1, ... of the sequence that (`purpose`, `seed`) names.

    Raw words of Philox 4x64-10 (Salmon et al. 2011): the algorithm fixes them, whereas the methods of
    `np.random.Generator` may change with the version of numpy.
    """
    key = int.from_bytes(hashlib.blake2b(f"{purpose}:{seed}".encode(), digest_size=16).digest(), "little")
    block, skipped = divmod(first, _WORDS_A_BLOCK)
    return np.random.Philox(counter=block, key=key).random_raw(skipped + count)[skipped:]


def _check_policy(policy: str) -> None:
    if policy not in POLICIES:
        raise WrongUse(f"sampling policy {policy!r} is unknown; {hint(policy, POLICIES)}")


def _check_explicit(counts: Mapping[str, int], explicit: Mapping[str, float]) -> None:
    for name, share in explicit.items():
        if name == UNLABELLED:
            raise WrongUse(f"stratum {name!r} is never sampled; leave it out of the shares")
        if name not in counts:
            raise WrongUse(f"stratum {name!r} of the shares is unknown; {hint(name, list(counts))}")
        if not (math.isfinite(share) and share >= 0):
            raise WrongUse(f"share of stratum {name} is {share}; use a number of 0 or more")
        if share > 0 and not counts[name]:
            raise WrongUse(f"stratum {name} has share {share:g} and no slices; leave it out of the shares")
    if not any(explicit.values()):
        raise WrongUse(f"sampling policy {EXPLICIT!r} has shares {dict(explicit)}; give one stratum more than 0")


def _natural_order(
    strata: npt.NDArray[np.int8] | npt.NDArray[np.int64], shares: Mapping[str, float], seed: int, epoch: int, size: int
) -> npt.NDArray[np.int64]:
    rows = np.flatnonzero(np.array([share > 0 for share in shares.values()])[strata])
    if size > len(rows):
        raise WrongUse(
            f"an epoch of {size:,} slices needs more than the {len(rows):,} labelled ones, and policy {NATURAL!r} "
            f"shows each once a pass; ask for {len(rows):,} or choose another policy"
        )
    return _stream(rows, NATURAL, seed, epoch * size, size)


def _stream(rows: npt.NDArray[np.int64], name: str, seed: int, first: int, count: int) -> npt.NDArray[np.int64]:
    """int64 [count], `rows` at places `first`, `first` + 1, ... of endless passes over them, each pass shuffled."""
    if not count:
        return np.empty(0, np.int64)
    first_pass, skipped = divmod(first, len(rows))
    passes = -(-(skipped + count) // len(rows))
    # a row's place in a pass is the rank of its random word; all passes at once, since rare strata have thousands
    words = random_words(f"sampling:{name}", seed, first_pass * len(rows), passes * len(rows))
    ranks = words.reshape(passes, len(rows)).argsort(axis=1, kind="stable")
    return rows[ranks.ravel()[skipped : skipped + count]]
