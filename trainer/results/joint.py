"""From the logits of a model as it was trained to natural log odds; float64, on numpy alone.

Three things move a logit away from the log odds of its label: smoothed labels, the focal loss, and a sampler that
draws some strata more often than nature. The first two are undone label by label, in closed form. The third changes
the joint distribution of the labels, so that its effect on one label depends on what the slice shows for the others.
It is undone on the joint over all combinations of kinds: that of the training labels as drawn is tilted, one factor
a label, until its marginals are the model's probabilities (iterative proportional fitting, Deming and Stephan 1940);
then each combination is divided by how much more often it was drawn; the marginals of that are the answer. Where what
a slice shows of one kind does not depend on the other kinds, this is Bayes' rule itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.results.probability import sigmoid

_Numbers = npt.NDArray[np.float64]

MOST_KINDS = 10  # 1,024 combinations; with more kinds each label is corrected alone
KIND_SWEEPS = 6  # over the kinds alone, which settle the joint where `any` tells nothing that they do not
SWEEPS = 8  # then over all labels; twice as many change the log loss by less than 0.01%
GREATEST = 30.0  # of logits before the joint; nothing that is shown can tell 1e-13 from less
GREATEST_FOCAL = 500.0  # of logits that the focal loss made; beyond 700 exp overflows
NEVER = 1e-12  # of what is drawn: a combination with no greater share counts as never drawn
LEAST = 1e-300  # of a sum of probabilities that divides
LEAST_DRAWN = 1e-100  # of a combination that was drawn, after each sweep: kinds that exclude each other, all sure, wear
# away what is left of the rest, and below 1e-308 numbers mean one thing to numpy and another to TensorFlow
SURE = 0.01  # part of a smoothed label's distance to 0 or 1 within which a logit counts by its distance alone
PRIOR_SLICES = 32.0  # that speak for kinds independent of each other, beside those that were counted
_ROWS = 4096  # at once
_ROUNDS = 50  # of expectation and maximisation over labels that are unknown


@dataclasses.dataclass(frozen=True, eq=False)
class Odds:
    """What lies between the logits of a model and natural log odds.

    `names`: the labels, `any` the one that is 1 where one of the others, the kinds, is. `smoothing`, `gamma`: of the
    loss. `natural`, `drawn`: float64 [2 ** kinds], the share of each of `combinations(names, any)` by nature and as
    sampled; both empty where there is nothing to undo, or where `shift`, float64 [L], is taken off each label alone.
    Raises ValueError for values that do not fit together.
    """

    names: tuple[str, ...]
    any: str
    smoothing: float
    gamma: float
    natural: _Numbers
    drawn: _Numbers
    shift: _Numbers

    def __post_init__(self) -> None:
        if self.any not in self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"odds: labels are {list(self.names)}; each must stand once, {self.any!r} among them")
        if not (0 <= self.smoothing < 1 and 0 <= self.gamma < np.inf):
            raise ValueError(f"odds: smoothing is {self.smoothing} and gamma {self.gamma}; use 0 or more, below 1")
        _check_sizes(self)

    @property
    def any_index(self) -> int:
        """Column of the label `any`."""
        return self.names.index(self.any)

    def log_odds(self, logits: Any) -> _Numbers:
        """float64 [n, L], natural ones; `logits` float [n, L] of the model."""
        found = unsmoothed(unfocused(np.asarray(logits, np.float64), self.gamma), self.smoothing)
        if not len(self.drawn):
            return found - self.shift
        parts = [_undrawn(self, found[at : at + _ROWS]) for at in range(0, len(found), _ROWS)]
        return np.concatenate(parts) if parts else found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which keeps every bit of a float64; `from_dict` turns them back."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in values.items()} | {
            "names": list(self.names)
        }


def from_dict(values: Any) -> Odds:
    """`Odds` of the plain values of `to_dict`. Raises ValueError where they are damaged."""
    keys = [field.name for field in dataclasses.fields(Odds)]
    if not isinstance(values, Mapping) or set(values) != set(keys):
        found = sorted(values) if isinstance(values, Mapping) else values
        raise ValueError(f"odds hold {found}; they must hold {', '.join(keys)}")
    if not isinstance(values["names"], list) or not all(isinstance(name, str) for name in values["names"]):
        raise ValueError(f"odds: names is {values['names']!r}; it must be a list of labels")
    smoothing, gamma = values["smoothing"], values["gamma"]
    if not (type(smoothing) in (int, float) and type(gamma) in (int, float)):
        raise ValueError(f"odds: smoothing and gamma are {[smoothing, gamma]}; they must be numbers")
    natural, drawn, shift = (_numbers(key, values[key]) for key in ("natural", "drawn", "shift"))
    return Odds(tuple(values["names"]), values["any"], smoothing, gamma, natural, drawn, shift)


def unchanged(names: Sequence[str], any_name: str, smoothing: float = 0.0, gamma: float = 0.0) -> Odds:
    """Odds of slices drawn by nature: only smoothing and the focal loss are undone."""
    return alone(names, any_name, np.zeros(len(names)), smoothing, gamma)


def alone(names: Sequence[str], any_name: str, shift: Any, smoothing: float = 0.0, gamma: float = 0.0) -> Odds:
    """Odds where `shift`, float [L], is taken off each label alone: an average over slices, right for none of them."""
    nothing = np.empty(0)
    return Odds(tuple(names), any_name, smoothing, gamma, nothing, nothing, np.asarray(shift, np.float64))


def fits(names: Sequence[str]) -> bool:
    """Whether the joint over all combinations of these labels is small enough to be used."""
    return len(names) - 1 <= MOST_KINDS


def combinations(names: Sequence[str], any_name: str) -> npt.NDArray[np.int8]:
    """int8 [2 ** kinds, L], every combination of kinds with its `any`; the first holds none, the last all."""
    kinds = [at for at, name in enumerate(names) if name != any_name]
    found = np.zeros((2 ** len(kinds), len(names)), np.int8)
    for place, at in enumerate(reversed(kinds)):
        found[:, at] = np.arange(len(found)) >> place & 1
    found[:, list(names).index(any_name)] = found.any(axis=1)
    return found


def coherent(values: Any, any_index: int) -> _Numbers:
    """float64 [n, L], probabilities or log odds, where no kind is above `any`: one that was is lowered to it.

    `any` is learnt and calibrated on more positive slices than any kind, so it is the one that is kept.
    """
    values = np.asarray(values, np.float64)
    return np.minimum(values, values[:, any_index : any_index + 1])


# the sampler


def estimate(
    names: Sequence[str], any_name: str, labels: Any, weight: Any, of_combination: Any
) -> tuple[_Numbers, _Numbers]:
    """Two float64 [2 ** kinds] that sum to 1: shares of `combinations(names, any_name)` by nature and as sampled.

    `labels`: integers [n, L], -1 for unknown, of slices of which each is drawn in proportion to `weight`, float [n].
    `of_combination` float [2 ** kinds]: the weight of a slice whose labels are all known, nan where its stratum has
    no slices; such a combination gets no share that was not counted. Unknown labels are filled in by expectation and
    maximisation (Dempster, Laird and Rubin 1977), as if hidden by chance. `PRIOR_SLICES` more slices stand for kinds
    that are independent given any of them, so that a combination never seen stays possible.
    """
    every = combinations(names, any_name)
    patterns, slices, sampled = _grouped(np.asarray(labels), np.asarray(weight, np.float64))
    fits = np.ones((len(patterns), len(every)))
    for at in range(len(names)):
        column = patterns[:, at : at + 1]
        fits *= (column < 0) | (column == every[:, at])
    kept = fits.any(axis=1)
    fits, patterns, slices, sampled = fits[kept], patterns[kept], slices[kept], sampled[kept]
    weights = np.asarray(of_combination, np.float64)
    prior = PRIOR_SLICES * np.where(np.isnan(weights), 0.0, _independent(every, names, any_name, patterns, slices))
    share = prior / prior.sum() if prior.any() else np.full(len(every), 1 / len(every))
    for _ in range(_ROUNDS if (patterns < 0).any() else 1):
        total = slices @ _responsible(fits, share) + prior
        share = total / total.sum()
    # the shares of the last round say what the unknown labels are, for both counts alike
    filled = _responsible(fits, share)
    natural = slices @ filled + prior
    drawn = sampled @ filled + prior * np.nan_to_num(weights)
    return natural / natural.sum(), drawn / drawn.sum()


def _grouped(labels: npt.NDArray[Any], weight: _Numbers) -> tuple[npt.NDArray[Any], _Numbers, _Numbers]:
    """Distinct rows of labels int8 [p, L], the slices of each, and the sum of their weights, both float64 [p]."""
    code = (np.clip(labels, -1, 1).astype(np.int64) + 1) @ 3 ** np.arange(labels.shape[1])
    _, first, which = np.unique(code, return_index=True, return_inverse=True)
    return labels[first], np.bincount(which).astype(np.float64), np.bincount(which, weight).astype(np.float64)


def _independent(
    every: npt.NDArray[np.int8], names: Sequence[str], any_name: str, patterns: npt.NDArray[Any], slices: _Numbers
) -> _Numbers:
    """float64 [2 ** kinds], summing to 1: kinds independent of each other where there is any, by their frequency."""
    bleeds = patterns[:, list(names).index(any_name)]
    share = np.ones(len(every))
    for at, name in enumerate(names):
        if name != any_name:
            known = slices * (bleeds == 1)
            ones, all_known = known @ (patterns[:, at] == 1), known @ (patterns[:, at] >= 0)
            part = ones / all_known if all_known else 0.0
            share *= np.where(every[:, at] == 1, part, 1 - part)
    share[0] = 0.0
    ones, zeros = slices @ (bleeds == 1), slices @ (bleeds == 0)
    # bleeds whose kinds are all unknown tell nothing of the kinds
    share *= ones / share.sum() if share.any() else 0.0
    share[0] = zeros
    return share / max(share.sum(), LEAST)


def _responsible(fits: _Numbers, share: _Numbers) -> _Numbers:
    """float64 [p, 2 ** kinds], how probable each combination is for each pattern; rows sum to 1."""
    given = fits * share
    given = np.where(given.any(axis=1, keepdims=True), given, fits)
    return given / given.sum(axis=1, keepdims=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What undoing needs besides the logits; the served graph takes it too.

    `member` float64 [2 ** kinds, L]: `combinations`. `sweeps`: the columns that the joint is fitted to, one after the
    other, `any` last of all; a label that is always or never 1 as drawn has no odds to fit. `least` float64
    [2 ** kinds]: what a sweep leaves of each. `factor` float64 [2 ** kinds]: natural by drawn, 0 where nothing was
    drawn. `outside` float64 [2 ** kinds]: the natural share of combinations of which nothing was drawn: no logit
    tells of them, so each slice holds them by their prevalence. `settled` bool [L]: labels that are 0 and 1 by nature;
    the logit of another one is left as it is.
    """

    member: _Numbers
    sweeps: list[list[int]]
    least: _Numbers
    factor: _Numbers
    outside: _Numbers
    settled: npt.NDArray[np.bool_]


def plan(odds: Odds) -> Plan:
    """The `Plan` of odds whose `drawn` is not empty."""
    member = combinations(odds.names, odds.any).astype(np.float64)
    seen = odds.drawn > NEVER

    def both(share: _Numbers) -> npt.NDArray[np.bool_]:
        return (share @ member > 0) & (share @ (1 - member) > 0)

    fitted = both(np.where(seen, odds.drawn, 0.0))
    factor = np.divide(odds.natural, odds.drawn, out=np.zeros(len(seen)), where=seen)
    outside = np.where(seen, 0.0, odds.natural)
    kinds = [at for at in range(len(odds.names)) if at != odds.any_index and fitted[at]]
    whole = [*kinds, *([odds.any_index] if fitted[odds.any_index] else [])]
    least = np.where(odds.drawn > 0, LEAST_DRAWN, 0.0)
    return Plan(member, KIND_SWEEPS * [kinds] + SWEEPS * [whole], least, factor, outside, both(odds.natural))


def _undrawn(odds: Odds, logits: _Numbers) -> _Numbers:
    """float64 [n, L], natural log odds; `logits` float64 [n, L], log odds as drawn."""
    how = plan(odds)
    shown, hidden = (sigmoid(side * np.clip(logits.T, -GREATEST, GREATEST)) for side in (1, -1))
    # [2 ** kinds, n]: whole rows are changed, six times as fast as columns
    joint = np.repeat(odds.drawn[:, None], len(logits), axis=1)
    for sweep in how.sweeps:
        for at in sweep:
            inside = how.member[:, at]
            ones, zeros = _sums(joint, inside)
            joint[inside == 1] *= shown[at] / ones
            joint[inside == 0] *= hidden[at] / zeros
        np.maximum(joint, how.least[:, None], out=joint)
    joint *= how.factor[:, None]
    joint *= (1 - how.outside.sum()) / np.maximum(joint.sum(axis=0), LEAST)
    joint += how.outside[:, None]
    ones, zeros = _sums(joint, how.member)
    return np.where(how.settled, (np.log(ones) - np.log(zeros)).T, logits)


def _sums(joint: _Numbers, member: _Numbers) -> tuple[_Numbers, _Numbers]:
    """What of `joint` [2 ** kinds, n] lies in `member` [2 ** kinds] or [2 ** kinds, L], and what does not."""
    return np.maximum(member.T @ joint, LEAST), np.maximum((1 - member).T @ joint, LEAST)


# the loss


def unfocused(logits: Any, gamma: float) -> _Numbers:
    """float64, the log odds of a label whose least focal loss without alpha is at `logits`.

    With p the probability of a logit and q = 1 - p, the loss is least where the label is 1 by
    q**(gamma - 1) * (q / p - gamma * log p) against p**(gamma - 1) * (p / q - gamma * log q)
    (Charoenphakdee et al. 2021, arXiv:2011.09172, theorem 11). `gamma` 0 changes nothing.
    """
    logits = np.asarray(logits, np.float64)
    if gamma == 0:
        return logits
    logits = np.clip(logits, -GREATEST_FOCAL, GREATEST_FOCAL)
    up, down = _focal_odds(logits, gamma), _focal_odds(-logits, gamma)
    return (gamma - 1) * logits + up - down


def _focal_odds(logits: _Numbers, gamma: float) -> _Numbers:
    """float64, log(p / q - gamma * log q) of a logit, which is log(p / q)."""
    return np.logaddexp(logits, np.log(gamma) + np.log(np.logaddexp(0, logits)))


def unsmoothed(logits: Any, smoothing: float) -> _Numbers:
    """float64, the log odds of a label that was drawn to y * (1 - smoothing) + smoothing / 2 to train `logits`.

    Exact while the probability lies above smoothing / 2 * (1 + `SURE`), and below 1 by as much. Beyond, a model is
    surer than its labels ever were: the log odds go on from there by the distance of the logits. Rising throughout.
    """
    logits = np.asarray(logits, np.float64)
    if smoothing == 0:
        return logits
    end = smooth_end(smoothing)
    held = np.clip(logits, -end, end)
    # p' - s/2 and 1 - p' - s/2, each by the probability of its side
    up, down = (sigmoid(side) - smoothing / 2 for side in (held, -held))
    return np.log(up) - np.log(down) + (logits - held)


def smooth_end(smoothing: float) -> float:
    """The logit from which on `unsmoothed` goes by distance; it does the same at its negative."""
    lowest = max(smoothing / 2 * (1 + SURE), LEAST)
    return float(np.log1p(-lowest) - np.log(lowest)) if lowest < 0.5 else 0.0


def _numbers(what: str, values: Any) -> _Numbers:
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise ValueError(f"odds: {what} is {values!r}; it must be a list of numbers")
    return np.array(values, np.float64)


def _check_sizes(odds: Odds) -> None:
    if odds.shift.shape != (len(odds.names),) or not np.isfinite(odds.shift).all():
        raise ValueError(f"odds: shift is {odds.shift.tolist()}; it must be {len(odds.names)} finite numbers")
    if not (len(odds.natural) or len(odds.drawn)):
        return
    wanted = (2 ** (len(odds.names) - 1),)
    for what in ("natural", "drawn"):
        share = getattr(odds, what)
        if share.shape != wanted or not np.isfinite(share).all() or (share < 0).any() or abs(share.sum() - 1) > 1e-6:
            raise ValueError(f"odds: {what} is {share.tolist()}; it must be {wanted[0]} shares that sum to 1")
    if (odds.natural[odds.drawn > 0] <= 0).any():
        raise ValueError("odds: a combination is drawn that does not occur by nature")
