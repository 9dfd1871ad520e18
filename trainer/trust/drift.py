"""What of headers, grey, vectors and probabilities has moved since training, from tables of portraits.

Headers and grey are compared with the series of training. Vectors and probabilities are compared with those of
validation, for a network knows its training slices by heart. Each thing gets its separation and a p-value, see
`permutation`; p-values are corrected for the number of things (Holm), so where nothing has moved at all, one thing or
more is called moved with a chance of at most `ALPHA`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ich_tfrecords.plural import counted
from trainer.shell.problems import WrongUse
from trainer.trust import permutation
from trainer.trust.permutation import Apart, Deals, Floats, Ints
from trainer.trust.portraits import BINS, NUMBERS, PATIENT, WORDS, Known

ALPHA = 0.05  # the chance that anything is called moved where nothing is
FEWEST = 20  # patients now, and of a reference, of fewer of which nothing is said
DRAWS = 1999  # deals by chance: the least p-value is 1 in 2,000, which a correction for 100 things leaves below ALPHA
MOST = 2000  # patients of each side that are compared; more are drawn from by the seed
HEADER, GREY, VECTORS, PROBABILITY = "header", "grey", "vectors", "probability"
CAUSES = (HEADER, GREY, VECTORS, PROBABILITY)  # a scanner's setting moves its grey, that the vectors, and so on
TRAINING, VALIDATION, NOW = "training", "validation", "now"
UNTOLD = "not told"
MOST_WORDS = 12  # told of a header
_FINEST = 1e-4  # that a probability is told from 0 and from 1
_BINS = 24  # of what is drawn
_DIGITS = 5  # of header numbers, beyond which two files write the same value otherwise


class Moved(NamedTuple):
    """A thing that may have moved. `facts`: plain values that say how, by what kind of thing it is.

    `key`: of which column or window or label; `corrected`: the p-value, corrected for the number of things.
    """

    kind: str
    key: str
    against: str
    apart: Apart
    facts: Mapping[str, Any]
    corrected: float = 1.0

    @property
    def is_moved(self) -> bool:
        """Whether chance does not explain it."""
        return self.corrected <= ALPHA

    @property
    def _rank(self) -> tuple[Any, ...]:
        """Tenths are as fine as few series tell: of things about equally far, the cause comes first."""
        effect = self.apart.effect
        if not self.is_moved:
            return True, -effect, self.apart.p, self.key
        return False, -round(effect, 1), CAUSES.index(self.kind), -effect, self.key


class Drift(NamedTuple):
    """`things`: the moved ones first, by effect; `unjudged`: what could not be compared -> why.

    `series` and `patients`: how many of each reference and of `NOW`.
    """

    things: list[Moved]
    unjudged: Mapping[str, str]
    series: Mapping[str, int]
    patients: Mapping[str, int]

    @property
    def moved(self) -> list[Moved]:
        """The things that chance does not explain."""
        return [thing for thing in self.things if thing.is_moved]

    @property
    def seen_from(self) -> float:
        """About how far apart a thing has to be to be called moved, with so many patients."""
        fewest = min(self.patients[one.against] for one in self.things)
        sides = [min(MOST, many) for many in (self.patients[NOW], fewest)]
        least = -math.log(ALPHA / (2 * len(self.things))) / 2  # the limit of Kolmogorov and Smirnov, of one term
        return min(1.0, math.sqrt(least * sum(1 / many for many in sides)))


class Sides(NamedTuple):
    """Portraits of a kind of reference, and of now."""

    name: str
    before: pa.Table
    now: pa.Table
    deals: Deals


def compare(
    references: Mapping[str, Known],
    portraits: pa.Table,
    windows: Sequence[str],
    labels: Sequence[str],
    without: Mapping[str, str],
    seed: int = 0,
) -> Drift:
    """What has moved. `references`: of `TRAINING` and of `VALIDATION`; `portraits`: of now, as predict writes them.

    `windows` and `labels`: names, in the order of the lists. `without`: kinds not to be judged, and why. Raises
    `WrongUse` where there are fewer than `FEWEST` patients now, or nothing that can be judged.
    """
    now = Known(portraits, whose(portraits))
    if now.many < FEWEST:
        there = counted(now.many, "patient")
        raise WrongUse(f"{there} with a prediction; to say what moved, {FEWEST} are needed")
    sides = {name: _sides(name, before, now, seed) for name, before in references.items() if before.many >= FEWEST}
    unjudged = {
        kind: without.get(kind) or _too_few(name, references[name].many)
        for kind, name in _AGAINST.items()
        if kind in without or name not in sides
    }
    if len(unjudged) == len(CAUSES):
        raise WrongUse("; ".join(dict.fromkeys(unjudged.values())))
    things: list[Moved] = []
    for kind, name in _AGAINST.items():
        if kind not in unjudged:
            things += _of_kind(kind, sides[name], windows, labels, unjudged)
    corrected = permutation.holm(np.array([one.apart.p for one in things]))
    ranked = sorted((one._replace(corrected=float(p)) for one, p in zip(things, corrected)), key=lambda one: one._rank)
    every = {**references, NOW: now}
    series = {name: len(known.portraits) for name, known in every.items()}
    return Drift(ranked, unjudged, series, {name: known.many for name, known in every.items()})


_AGAINST = {HEADER: TRAINING, GREY: TRAINING, VECTORS: VALIDATION, PROBABILITY: VALIDATION}


def _too_few(name: str, there: int) -> str:
    return f"the run kept series of {counted(there, f'{name} patient')}; {FEWEST} are needed"


def whose(now: pa.Table) -> Ints:
    """Which patient each row is of, as a number; where no patient is named a study counts as one, or a series.

    One patient for everything is none: so de-identified folders have it.
    """
    patients, studies = now[PATIENT].to_pylist(), now["study_uid"].to_pylist()
    if len({*patients}) == 1:
        patients = [None] * len(now)
    rows = zip(patients, studies)
    names = [("study", study or at) if patient is None else patient for at, (patient, study) in enumerate(rows)]
    places: dict[Any, int] = {}
    return np.array([places.setdefault(name, len(places)) for name in names], np.int64)


def _sides(name: str, before: Known, now: Known, seed: int) -> Sides:
    before, now = (_bounded(known, seed) for known in (before, now))
    return Sides(name, before.portraits, now.portraits, Deals(before.whose, now.whose, seed, DRAWS))


def _bounded(known: Known, seed: int) -> Known:
    """At most `MOST` patients, with all their series."""
    numbers = np.unique(known.whose)
    if len(numbers) <= MOST:
        return known
    rows = np.flatnonzero(np.isin(known.whose, np.random.default_rng(seed).permutation(numbers)[:MOST]))
    return Known(known.portraits.take(rows), known.whose[rows])


# each kind of thing


def _of_kind(
    kind: str, sides: Sides, windows: Sequence[str], labels: Sequence[str], unjudged: dict[str, str]
) -> list[Moved]:
    """Its things; what of them training does not tell is added to `unjudged`."""
    if kind == HEADER:
        return _headers(sides, unjudged)
    if kind == GREY:
        return _grey(sides, windows)
    return _vectors(sides) if kind == VECTORS else _probabilities(sides, labels)


def _headers(sides: Sides, unjudged: dict[str, str]) -> list[Moved]:
    found = []
    for key in ("slices", *NUMBERS, *WORDS):
        if sides.before[key].null_count == sides.before.num_rows:
            unjudged[key] = "no series of training tells it"
        elif key in WORDS:
            found.append(_words(sides, key))
        else:
            before, now = (_rounded(_column(table, key)) for table in (sides.before, sides.now))
            apart = sides.deals.apart(permutation.of_numbers(np.concatenate([before, now])))
            found.append(Moved(HEADER, key, sides.name, apart, _of_numbers(before, now)))
    return found


def _words(sides: Sides, key: str) -> Moved:
    before, now = ([word or UNTOLD for word in table[key].to_pylist()] for table in (sides.before, sides.now))
    known = {word: at for at, word in enumerate(sorted({*before, *now}))}
    apart = sides.deals.apart(permutation.of_words(np.array([known[word] for word in (*before, *now)])))
    new = set(now) - set(before)
    shares = {word: [_share(before, word), _share(now, word)] for word in known}
    told = dict(sorted(shares.items(), key=lambda one: (-abs(one[1][1] - one[1][0]), one[0]))[:MOST_WORDS])
    facts = {
        "words": told,
        "more_words": len(shares) - len(told),
        "unseen": sum(word in new for word in now) / len(now),
    }
    return Moved(HEADER, key, sides.name, apart, facts)


def _grey(sides: Sides, windows: Sequence[str]) -> list[Moved]:
    """Each window: where its grey lies, as parts of pixels up to each bin, which a shift moves all alike."""
    found = []
    before, now = (_rows(table, "grey").reshape(table.num_rows, -1, BINS) for table in (sides.before, sides.now))
    for at, name in enumerate(windows):
        up_to = np.cumsum(np.concatenate([before[:, at], now[:, at]]), axis=1)
        means = [part[:, at].mean(axis=0) for part in (before, now)]
        grey = [float(mean @ (np.arange(BINS) + 0.5) / BINS) for mean in means]
        area = float(np.abs(np.cumsum(means[1] - means[0])).sum() / BINS)
        facts = {"mean": grey, "area": area, "shares": [mean.tolist() for mean in means]}
        found.append(Moved(GREY, name, sides.name, sides.deals.apart(permutation.of_rows(up_to)), facts))
    return found


def _vectors(sides: Sides) -> list[Moved]:
    before, now = (_rows(table, "vector") for table in (sides.before, sides.now))
    both = np.concatenate([before, now])
    scores = sides.deals.direction(both)
    facts = {"spreads": _between(before, now), **_bins(scores[: len(before)], scores[len(before) :])}
    vector = Moved(VECTORS, "vector", sides.name, sides.deals.apart(permutation.of_rows(both)), facts)
    far = [_column(table, "distance") for table in (sides.before, sides.now)]
    apart = sides.deals.apart(permutation.of_numbers(np.concatenate(far)))
    return [vector, Moved(VECTORS, "distance", sides.name, apart, _of_numbers(*far))]


def _between(before: Floats, now: Floats) -> float:
    """How far the means lie apart, in spreads of before, less what so few series give by chance."""
    spread = np.maximum(before.std(axis=0, ddof=1), 1e-6)
    squared = (((now.mean(axis=0) - before.mean(axis=0)) / spread) ** 2).sum()
    by_chance = (now.var(axis=0, ddof=1) / spread**2).sum() / len(now) + before.shape[1] / len(before)
    return float(np.sqrt(max(0.0, squared - by_chance)))


def _probabilities(sides: Sides, labels: Sequence[str]) -> list[Moved]:
    """Tested by the area between both on the scale of log odds: where a bleed is rare, a change hides from the rest."""
    found = []
    before, now = (_rows(table, "probabilities") for table in (sides.before, sides.now))
    for at, name in enumerate(labels):
        both = np.clip(np.concatenate([before[:, at], now[:, at]]), _FINEST, 1 - _FINEST)
        odds = np.log(both / (1 - both))
        apart = sides.deals.apart(permutation.of_numbers(odds), permutation.area(odds))
        means = [float(part[:, at].mean()) for part in (before, now)]
        facts = {"mean": means, **_bins(before[:, at], now[:, at], (0.0, 1.0))}
        found.append(Moved(PROBABILITY, name, sides.name, apart, facts))
    return found


# facts of a thing, and values out of a table


def _of_numbers(before: Floats, now: Floats) -> dict[str, Any]:
    """Means, and their difference in spreads of before, None where all there are one value; tenths; untold shares."""
    known = [part[~np.isnan(part)] for part in (before, now)]
    tenths = [[float(value) for value in np.quantile(part, (0.1, 0.5, 0.9))] if len(part) else None for part in known]
    means = [float(part.mean()) if len(part) else None for part in known]
    spread = float(known[0].std())
    gap = None if means[0] is None or means[1] is None else means[1] - means[0]
    untold = [float(np.isnan(part).mean()) for part in (before, now)]
    spreads = None if gap is None or spread <= abs(known[0]).max() * 1e-6 else gap / spread
    return {"mean": means, "tenths": tenths, "spreads": spreads, "untold": untold, **_bins(known[0], known[1])}


def _bins(before: Floats, now: Floats, ends: tuple[float, float] | None = None) -> dict[str, Any]:
    """Edges, and the share of each side in each bin."""
    both = np.concatenate([before, now])
    beyond = 0.03 * float(np.ptp(both)) or 0.5
    low, high = ends or (float(both.min()) - beyond, float(both.max()) + beyond)
    edges = np.linspace(low, high, _BINS + 1)
    counts = [np.histogram(part, edges)[0] / max(1, len(part)) for part in (before, now)]
    return {"edges": edges.tolist(), "shares": [shares.tolist() for shares in counts]}


def _share(words: Sequence[str], word: str) -> float:
    return words.count(word) / len(words)


def _column(table: pa.Table, key: str) -> Floats:
    """float64 [n], nan for null."""
    return np.asarray(table[key].to_numpy(zero_copy_only=False), np.float64)


def _rounded(values: Floats) -> Floats:
    """To `_DIGITS` digits."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 10.0 ** (_DIGITS - 1 - np.floor(np.log10(np.abs(values))))
        return np.where(values == 0, 0.0, np.round(values * scale) / scale)


def _rows(table: pa.Table, key: str) -> Floats:
    """float64 [n, k] of a column of lists."""
    column: npt.NDArray[Any] = table[key].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return column.reshape(table.num_rows, -1).astype(np.float64)
