"""Sampling: proportions, exact counts, the order of an epoch, and what sampling does to the odds."""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_tfrecords.labels.table import stratum_indices
from trainer.data import sampling
from trainer.shell.problems import WrongUse

NAMES = ("epidural", "intraventricular", "subarachnoid", "intraparenchymal", "subdural", "none", "unlabelled")
RARE_AND_NONE = {"epidural": 1, "subdural": 4, "none": 95}

some_counts = st.lists(st.integers(0, 40), min_size=6, max_size=6).filter(any).map(lambda n: dict(zip(NAMES, n)))
# no deadlines: the time of an example is the machine's affair
unhurried = settings(deadline=None)
skewed = st.sampled_from(["balanced", "sqrt"])


def strata_of(counts: dict[str, int], unlabelled: int = 3) -> np.ndarray:
    """int8 strata with these many rows each, mixed."""
    strata = np.repeat(np.arange(7, dtype=np.int8), [*(counts.get(name, 0) for name in NAMES[:6]), unlabelled])
    return np.random.default_rng(len(strata)).permutation(strata)


def order_of(strata: np.ndarray, policy: str, size: int, epoch: int = 0, seed: int = 1, **explicit: float):
    counts = {name: int((strata == index).sum()) for index, name in enumerate(NAMES[:6])}
    shares = sampling.proportions(policy, counts, explicit)
    return sampling.epoch_order(strata, NAMES, policy, shares, seed, epoch, size)


# proportions


@pytest.mark.parametrize(
    ("policy", "explicit", "expected"),
    [
        ("natural", {}, {"epidural": 0.01, "subdural": 0.04, "none": 0.95}),
        ("balanced", {}, {"epidural": 1 / 3, "subdural": 1 / 3, "none": 1 / 3}),
        ("sqrt", {}, {"epidural": 0.078451, "subdural": 0.156902, "none": 0.764647}),
        ("explicit", {"epidural": 3, "none": 1}, {"epidural": 0.75, "subdural": 0, "none": 0.25}),
        ("explicit", {"none": 0.2}, {"epidural": 0, "subdural": 0, "none": 1}),
    ],
)
def test_each_policy_has_its_proportions(policy, explicit, expected):
    assert sampling.proportions(policy, RARE_AND_NONE, explicit) == pytest.approx(expected, abs=1e-6)


@unhurried
@given(counts=some_counts, policy=st.sampled_from(["natural", "balanced", "sqrt"]))
def test_shares_sum_to_one_and_empty_strata_get_none(counts, policy):
    shares = sampling.proportions(policy, counts, {})
    assert math.fsum(shares.values()) == pytest.approx(1, abs=1e-12)
    assert list(shares) == list(counts)
    assert all((shares[name] > 0) == (counts[name] > 0) for name in counts)


def test_unlabelled_slices_get_no_share():
    assert sampling.proportions("natural", {"none": 1, "unlabelled": 9}, {}) == {"none": 1.0}


@pytest.mark.parametrize(
    ("policy", "explicit", "words"),
    [
        ("balansed", {}, "'balansed' is unknown; did you mean 'balanced'"),
        ("x", {}, "known are natural, balanced, sqrt, explicit"),
        ("balanced", {"none": 1}, "need the sampling policy 'explicit', which is 'balanced'"),
        ("explicit", {}, "give one stratum more than 0"),
        ("explicit", {"none": 0}, "give one stratum more than 0"),
        ("explicit", {"none": -0.5}, "share of stratum none is -0.5"),
        ("explicit", {"none": math.nan}, "share of stratum none is nan"),
        ("explicit", {"none": math.inf}, "share of stratum none is inf"),
        ("explicit", {"subdurl": 1}, "'subdurl' of the shares is unknown; did you mean 'subdural'"),
        ("explicit", {"sah": 1, "none": 1}, "stratum sah has share 1 and no slices"),
        ("explicit", {"unlabelled": 1}, "'unlabelled' is never sampled"),
    ],
)
def test_shares_that_cannot_be_used_are_refused(policy, explicit, words):
    with pytest.raises(WrongUse, match=words):
        sampling.proportions(policy, {**RARE_AND_NONE, "sah": 0}, explicit)


@pytest.mark.parametrize("counts", [{}, {"none": 0}, {"unlabelled": 7}])
def test_without_labelled_slices_nothing_can_be_sampled(counts):
    with pytest.raises(WrongUse, match="no labelled slices"):
        sampling.proportions("natural", counts, {})


# exact counts


@pytest.mark.parametrize(
    ("shares", "size", "expected"),
    [
        ({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, 10, [4, 3, 3]),  # a tie goes to the first
        ({"a": 0.7, "b": 0.2, "c": 0.1}, 5, [4, 1, 0]),  # 3.5, 1, 0.5: a tie, though not in binary
        ({"a": 0.1, "b": 0.2, "c": 0.7}, 5, [1, 1, 3]),
        ({"a": 0.0, "b": 1.0}, 7, [0, 7]),
        ({"a": 0.5, "b": 0.5}, 0, [0, 0]),
    ],
)
def test_counts_are_the_largest_remainders(shares, size, expected):
    assert list(sampling.stratum_counts(shares, size).values()) == expected


@unhurried
@given(counts=some_counts, policy=st.sampled_from(["natural", "balanced", "sqrt"]), size=st.integers(0, 10**6))
def test_counts_sum_to_the_size_and_stay_within_one_of_the_share(counts, policy, size):
    shares = sampling.proportions(policy, counts, {})
    found = sampling.stratum_counts(shares, size)
    assert sum(found.values()) == size
    assert all(abs(found[name] - Fraction(shares[name]) * size) < 1.001 for name in shares)
    assert all(found[name] == 0 for name in shares if shares[name] == 0)


@unhurried
@given(counts=st.lists(st.integers(1, 10**6), min_size=1, max_size=6).map(lambda n: dict(zip(NAMES, n))))
def test_natural_shares_of_everything_give_everything(counts):
    shares = sampling.proportions("natural", counts, {})
    assert sampling.stratum_counts(shares, sum(counts.values())) == counts


# the order of an epoch


@unhurried
@given(counts=some_counts, epoch=st.integers(0, 5))
def test_natural_shows_each_labelled_slice_exactly_once(counts, epoch):
    strata = strata_of(counts)
    order = order_of(strata, "natural", sum(counts.values()), epoch)
    assert order.dtype == np.int64
    assert sorted(order) == list(np.flatnonzero(strata != 6))


@unhurried
@given(counts=some_counts, policy=skewed, epoch=st.integers(0, 5), size=st.integers(0, 300))
def test_other_policies_meet_their_counts_and_never_show_the_unlabelled(counts, policy, epoch, size):
    strata = strata_of(counts)
    order = order_of(strata, policy, size, epoch)
    wanted = sampling.stratum_counts(sampling.proportions(policy, counts, {}), size)
    shown = np.bincount(strata[order], minlength=7)
    assert list(shown) == [*wanted.values(), 0]


@unhurried
@given(counts=some_counts, policy=skewed, size=st.integers(1, 60), epochs=st.integers(1, 8))
def test_each_stratum_goes_through_whole_passes_across_epochs(counts, policy, size, epochs):
    """Whatever the epoch's size: no row of a stratum comes a second time before each came once."""
    strata = strata_of(counts)
    shown = np.concatenate([order_of(strata, policy, size, epoch) for epoch in range(epochs)])
    for index in range(6):
        rows = np.flatnonzero(strata == index)
        stream = shown[strata[shown] == index]
        for start in range(0, len(stream), max(len(rows), 1)):
            one_pass = stream[start : start + len(rows)]
            assert len(set(one_pass)) == len(one_pass)
        times = Counter(stream.tolist())
        assert not len(rows) or max(times[row] for row in rows) - min(times[row] for row in rows) <= 1


@unhurried
@given(counts=some_counts, part=st.floats(0.1, 1), epochs=st.integers(2, 8))
def test_natural_goes_on_in_the_next_epoch_where_the_last_one_ended(counts, part, epochs):
    strata, labelled = strata_of(counts), sum(counts.values())
    size = max(1, int(labelled * part))
    shown = np.concatenate([order_of(strata, "natural", size, epoch) for epoch in range(epochs)])
    for start in range(0, len(shown), labelled):
        one_pass = shown[start : start + labelled]
        assert len(set(one_pass)) == len(one_pass)


def test_the_order_is_frozen():
    """Who relies on it: a resumed run skips to its step and must meet the batches it would have met."""
    strata = np.array([5, 5, 0, 5, 6, 4, 5, 4, 5, 5], np.int8)
    assert order_of(strata, "natural", 9, epoch=0, seed=7).tolist() == [0, 7, 8, 5, 3, 2, 6, 1, 9]
    assert order_of(strata, "natural", 6, epoch=1, seed=7).tolist() == [6, 1, 9, 6, 5, 9]
    assert order_of(strata, "balanced", 9, epoch=0, seed=7).tolist() == [5, 2, 7, 9, 7, 2, 0, 3, 2]
    assert order_of(strata, "balanced", 9, epoch=2, seed=7).tolist() == [6, 5, 0, 3, 2, 7, 2, 5, 2]


@pytest.mark.parametrize("policy", ["natural", "balanced", "sqrt"])
def test_epochs_and_seeds_differ_and_repeat(policy):
    strata = strata_of({"epidural": 20, "none": 100})
    orders = {(seed, epoch): order_of(strata, policy, 120, epoch, seed) for seed in (1, 2) for epoch in (0, 1, 2)}
    assert len({order.tobytes() for order in orders.values()}) == 6
    assert all((order_of(strata, policy, 120, epoch, seed) == order).all() for (seed, epoch), order in orders.items())


def test_explicit_shares_leave_the_other_strata_out():
    strata = strata_of({"epidural": 5, "subdural": 5, "none": 50})
    order = order_of(strata, "explicit", 40, epidural=1, none=3)
    assert np.bincount(strata[order], minlength=7).tolist() == [10, 0, 0, 0, 0, 30, 0]


def test_places_in_the_mix_are_even():
    """Each tenth of an epoch holds about its part of the rare stratum."""
    strata = strata_of({"epidural": 50, "none": 5000})
    rare = strata[order_of(strata, "balanced", 10_000)] == 0
    assert rare.reshape(10, 1000).sum(axis=1).tolist() == pytest.approx([500] * 10, abs=80)


@pytest.mark.parametrize(
    ("policy", "shares", "size", "words"),
    [
        ("natural", {"none": 1.0}, 5, "5 slices needs more than the 4 labelled ones"),
        ("balanced", {"none": 0.5, "epidural": 0.5}, 4, "stratum epidural has share 0.5 and no slices"),
        ("sqr", {"none": 1.0}, 4, "did you mean 'sqrt'"),
    ],
)
def test_orders_that_cannot_be_made_are_refused(policy, shares, size, words):
    strata = np.array([5, 5, 5, 5, 6], np.int8)
    with pytest.raises(WrongUse, match=words):
        sampling.epoch_order(strata, NAMES, policy, shares, 0, 0, size)


def test_a_real_sized_epoch_shows_the_rarest_stratum_in_modest_memory():
    """752,803 slices in proportions like those of RSNA 2019."""
    total = 752_803
    parts = {"epidural": 0.004, "intraventricular": 0.035, "subarachnoid": 0.045}
    counts = {name: int(part * total) for name, part in {**parts, "intraparenchymal": 0.03, "subdural": 0.045}.items()}
    counts["none"] = total - sum(counts.values())
    strata = strata_of(counts, unlabelled=0)
    tracemalloc.start()
    order = order_of(strata, "balanced", 700_000, epoch=4)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (strata[order] == 0).sum() >= 700_000 / 7
    assert peak_bytes < 64 * 2**20


def test_a_stratum_of_one_slice_repeats_it():
    strata = strata_of({"epidural": 1, "none": 1000})
    order = order_of(strata, "balanced", 2000, epoch=3)
    assert (strata[order] == 0).sum() == 1000


# choices, batches, random words


@unhurried
@given(counts=st.lists(st.integers(0, 30), min_size=1, max_size=6), epoch=st.integers(0, 4))
def test_the_choice_sequence_has_exact_counts(counts, epoch):
    choices = sampling.choice_sequence(counts, 3, epoch)
    assert np.bincount(choices, minlength=len(counts)).tolist() == counts


@pytest.mark.parametrize(
    ("size", "batch_size", "quantum", "expected"),
    [
        (64, 32, 8, (2, 0)),
        (70, 32, 1, (2, 6)),
        (70, 32, 4, (2, 4)),
        (67, 32, 4, (2, 0)),
        (3, 8, 2, (0, 2)),
        (0, 8, 2, (0, 0)),
    ],
)
def test_the_short_batch_is_a_multiple_of_the_quantum(size, batch_size, quantum, expected):
    assert sampling.batch_sizes(size, batch_size, quantum) == expected


@pytest.mark.parametrize(("batch_size", "near"), [(30, 32), (3, 8), (0, 8), (-8, 8)])
def test_a_batch_that_replicas_cannot_share_is_refused(batch_size, near):
    with pytest.raises(WrongUse, match=f"batch size is {batch_size}; .* is 8: .* such as {near}$"):
        sampling.batch_sizes(100, batch_size, 8)


@unhurried
@given(first=st.integers(0, 50), count=st.integers(0, 50))
def test_random_words_can_be_entered_anywhere(first, count):
    whole = sampling.random_words("test", 5, 0, 100)
    assert (sampling.random_words("test", 5, first, count) == whole[first : first + count]).all()


def test_random_words_are_frozen():
    """The order of slices and the augmentation of runs begun earlier rest on them."""
    assert [hex(word) for word in sampling.random_words("test", 5, 3, 3).tolist()] == [
        "0x5cd4494313cde2e",
        "0xa31d78192183080e",
        "0xf38085e9d7b02cf",
    ]


@pytest.mark.slow
def test_sampling_needs_no_tensorflow():
    code = "import sys, trainer.data.sampling; print('tensorflow' in sys.modules)"
    root = Path(__file__).parents[3]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


# the odds


def counted(values: np.ndarray, strata: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    parts = {name: values[strata == index] for index, name in enumerate(NAMES)}
    positives = {name: (part == 1).sum(axis=0) for name, part in parts.items()}
    return positives, {name: (part == 0).sum(axis=0) for name, part in parts.items()}


def shift_of_rows(values: np.ndarray, strata: np.ndarray, shares: dict[str, float]) -> list[float]:
    """The shift counted row by row: a row counts as often as it is shown, exactly."""
    slices = Counter(NAMES[index] for index in strata)
    shift = []
    for label in range(values.shape[1]):
        sampled, natural = {0: Fraction(0), 1: Fraction(0)}, {0: 0, 1: 0}
        for value, stratum in zip(values[:, label].tolist(), strata):
            if value >= 0 and NAMES[stratum] != "unlabelled":
                sampled[value] += Fraction(shares[NAMES[stratum]]) / slices[NAMES[stratum]]
                natural[value] += 1
        defined = all([*sampled.values(), *natural.values()])
        odds = sampled[1] / sampled[0] * natural[0] / natural[1] if defined else Fraction(1)
        shift.append(math.log(odds))
    return shift


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), slices=st.integers(1, 60), policy=skewed, unknown=st.sampled_from([0.0, 0.3]))
def test_the_shift_equals_a_count_of_the_rows(rsna_spec, seed, slices, policy, unknown):
    labels, rng = rsna_spec.labels, np.random.default_rng(seed)
    assert labels.strata == NAMES
    values = (rng.random((slices, len(labels.names))) < 0.2).astype(np.int8)
    any_label = labels.names.index(labels.any)
    values[:, any_label] = np.delete(values, any_label, axis=1).max(axis=1)
    strata = stratum_indices(values, labels)
    hidden = rng.random(values.shape) < unknown
    hidden[:, any_label] = False
    for row, stratum in enumerate(strata):
        if NAMES[stratum] in labels.names:
            hidden[row, labels.names.index(NAMES[stratum])] = False
    values[hidden] = -1
    assert (stratum_indices(values, labels) == strata).all()
    shares = sampling.proportions(policy, {name: int((strata == index).sum()) for index, name in enumerate(NAMES)}, {})
    shares["unlabelled"] = 0.0
    found = sampling.log_odds_shift(*counted(values, strata), shares)
    assert found.dtype == np.float64
    assert found == pytest.approx(shift_of_rows(values, strata, shares), abs=1e-9)


def test_the_shift_of_one_label_by_hand():
    positives = {"subdural": np.array([10]), "none": np.array([0])}
    negatives = {"subdural": np.array([0]), "none": np.array([90])}
    shift = sampling.log_odds_shift(positives, negatives, {"subdural": 0.5, "none": 0.5})
    assert shift == pytest.approx([math.log(9)])  # logit(0.5) - logit(0.1)


def test_natural_sampling_shifts_nothing():
    positives = {"subdural": np.array([10, 3]), "none": np.array([0, 0]), "unlabelled": np.array([5, 5])}
    negatives = {"subdural": np.array([0, 7]), "none": np.array([90, 90]), "unlabelled": np.array([1, 1])}
    assert sampling.log_odds_shift(positives, negatives, {"subdural": 0.1, "none": 0.9}) == pytest.approx([0, 0])


def test_a_label_that_never_or_always_occurs_is_not_shifted():
    positives = {"subdural": np.array([10, 0, 10]), "none": np.array([90, 0, 0])}
    negatives = {"subdural": np.array([0, 10, 0]), "none": np.array([0, 90, 90])}
    assert sampling.log_odds_shift(positives, negatives, {"subdural": 0.5, "none": 0.5})[:2].tolist() == [0, 0]
    # sampled from one stratum alone, the third label is always 1
    assert sampling.log_odds_shift(positives, negatives, {"subdural": 1.0, "none": 0.0}).tolist() == [0, 0, 0]
