"""Groups with a promise: worked limits, an oracle by p-values, and the promise itself over many resplits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trainer.results import conformal
from trainer.results.conformal import NEGATIVE, POSITIVE, UNCERTAIN, Limits, Promise
from trainer.shell.problems import WrongUse

PROMISE = Promise(0.05, {"any": Limits(0.2, 0.6)})


def of_label(positive, negative) -> dict:
    return {POSITIVE: sorted(positive), NEGATIVE: sorted(negative)}


def test_limits_of_nineteen_patients():
    """At 0.05 the 1st of 19 of 20 places: the lowest positive, the highest negative."""
    nineteen = [number / 100 for number in range(1, 20)]
    assert conformal.limits(of_label(nineteen, nineteen), 0.05) == Limits(0.01, 0.19)
    assert conformal.limits(of_label(nineteen[1:], nineteen[1:]), 0.05) == Limits(-math.inf, math.inf)
    assert conformal.limits(of_label(nineteen, nineteen), 0.1) == Limits(0.02, 0.18)


@pytest.mark.parametrize(("alpha", "patients"), [(0.05, 19), (0.1, 9), (0.01, 99), (0.5, 1), (0.3, 3), (0.07, 14)])
def test_how_many_patients_a_promise_needs(alpha, patients):
    assert conformal.needed(alpha) == patients
    enough, few = ([0.5] * count for count in (patients, patients - 1))
    assert math.isfinite(conformal.limits(of_label(enough, enough), alpha).low)
    assert math.isinf(conformal.limits(of_label(few, few), alpha).low)
    assert f"needs {patients}" in conformal.lacking(of_label(few, enough), alpha)
    assert not conformal.lacking(of_label(enough, enough), alpha)


@pytest.mark.parametrize(
    ("probability", "limits", "found"),
    [
        (0.1, Limits(0.2, 0.6), NEGATIVE),
        (0.2, Limits(0.2, 0.6), UNCERTAIN),
        (0.6, Limits(0.2, 0.6), UNCERTAIN),
        (0.7, Limits(0.2, 0.6), POSITIVE),
        (0.5, Limits(0.6, 0.4), UNCERTAIN),  # neither value is refused where both would be
        (0.3, Limits(0.6, 0.4), NEGATIVE),
        (0.0, Limits(-math.inf, math.inf), UNCERTAIN),
        (1.0, Limits(-math.inf, math.inf), UNCERTAIN),
    ],
)
def test_the_group_of_a_study(probability, limits, found):
    assert conformal.group(probability, limits) == found


numbers = st.lists(st.integers(0, 12).map(lambda number: number / 12), max_size=60)  # with ties


@given(numbers, numbers, st.sampled_from((0.05, 0.1, 0.2, 0.25, 0.5)), st.integers(0, 24))
def test_groups_are_those_of_p_values(positive, negative, alpha, at):
    """A value is refused where its p-value, with the new study among the others, is at most alpha."""
    probability = at / 24
    of_positive = (1 + sum(one <= probability for one in positive)) / (1 + len(positive))
    of_negative = (1 + sum(one >= probability for one in negative)) / (1 + len(negative))
    refused = of_positive <= alpha + 1e-12, of_negative <= alpha + 1e-12
    expected = {(True, False): NEGATIVE, (False, True): POSITIVE}.get(refused, UNCERTAIN)
    assert conformal.group(probability, conformal.limits(of_label(positive, negative), alpha)) == expected


def test_of_a_patient_the_study_counts_that_is_furthest_from_its_truth():
    labels = np.array([[1], [1], [0], [0], [-1], [0]])
    shown = np.array([[0.9], [0.3], [0.2], [0.4], [0.99], [0.1]])
    patients = np.array([4, 4, 4, 4, 4, 7])
    assert conformal.scores(["any"], labels, shown, patients) == {"any": of_label([0.3], [0.4, 0.1])}
    assert conformal.scores(["any"], labels[:0], shown[:0], patients[:0]) == {"any": of_label([], [])}


def cohort(rng: np.random.Generator, patients: int, share: float) -> tuple[np.ndarray, ...]:
    """Labels, probabilities and patients of studies, one to three a patient, which go together.

    `share`: of the patients who have the label in some study.
    """
    studies = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    sick = rng.random(patients) < share
    labels = (sick[studies] & (rng.random(len(studies)) < 0.8)).astype(int)
    own = rng.normal(size=patients)[studies]  # of the patient
    logits = 1.5 * labels + own + 0.5 * rng.normal(size=len(studies)) - 2
    return labels[:, None], 1 / (1 + np.exp(-logits))[:, None], studies


def errors(labels, shown, patients, limits) -> tuple[tuple[int, int], tuple[int, int]]:
    """Patients with a positive study called negative, of how many; the same of negative ones called positive."""
    below, above = shown[:, 0] < limits.low, shown[:, 0] > limits.high
    called = np.where(below & ~above, NEGATIVE, np.where(above & ~below, POSITIVE, UNCERTAIN))
    counts = []
    for value, wrong in ((1, NEGATIVE), (0, POSITIVE)):
        of = labels[:, 0] == value
        whose = np.unique(patients[of])
        missed = np.unique(patients[of & (called == wrong)])
        counts.append((len(missed), len(whose)))
    return tuple(counts)


@pytest.mark.slow
@pytest.mark.parametrize(("alpha", "share"), [(0.05, 0.4), (0.05, 0.03), (0.2, 0.03)])
def test_the_promise_holds_over_resplits(alpha, share):
    """500 resplits of the patients: the mean error of either kind is at most alpha, and not far below.

    Of a split the error is beta distributed around that; its mean over the splits is held within four standard errors
    of a binomial of as many patients as are tested, those of one split counted once.
    """
    rng = np.random.default_rng(7)
    labels, shown, patients = cohort(rng, 3000, share)
    rates = {POSITIVE: [], NEGATIVE: []}
    for _ in range(500):
        held = rng.random(3000) < 0.5
        for_limits, tested = held[patients], ~held[patients]
        found = conformal.scores(["any"], labels[for_limits], shown[for_limits], patients[for_limits])["any"]
        counts = errors(labels[tested], shown[tested], patients[tested], conformal.limits(found, alpha))
        for group, (missed, of) in zip((POSITIVE, NEGATIVE), counts, strict=True):
            rates[group].append(missed / of)
            patients_of = len(found[group])
            # of one split: a beta-binomial (Vovk 2012), which leaves this range one time in a million
            rank = math.floor(round(alpha * (patients_of + 1), 9))
            most = stats.betabinom(of, rank, patients_of + 1 - rank).ppf(1 - 1e-6)
            assert missed <= most
    for of_group in rates.values():
        spread = np.std(of_group) / math.sqrt(len(of_group))
        assert np.mean(of_group) <= alpha + 4 * spread
        assert np.mean(of_group) >= alpha - 1 / 30 - 4 * spread  # of the rare kind some 40 patients calibrate


def test_what_cannot_be_promised_is_told():
    few = {"any": of_label([0.5] * 30, [0.5] * 40), "epidural": of_label([0.5] * 3, [0.5] * 60)}
    decided = conformal.promise(few, 0.05).limits
    assert math.isfinite(decided["any"].low)
    assert decided["epidural"] == Limits(-math.inf, conformal.limits(few["epidural"], 0.05).high)
    (line,) = conformal.notes(few, 0.05)
    assert line.startswith(
        "epidural: the validation split has 3 patients with a positive study, so that none is called"
    )
    with pytest.raises(WrongUse, match="needs 999"):
        conformal.promise(few, 0.001)
    with pytest.raises(WrongUse, match="--recalibrate adds them"):
        conformal.promise({}, 0.05)


def test_a_study_that_lacks_slices_is_never_called_negative():
    promised = conformal.Promise(0.05, {"any": Limits(0.2, 0.6), "epidural": Limits(0.2, 0.6)})
    shown = np.array([0.1, 0.9])
    assert promised.groups(shown) == (NEGATIVE, POSITIVE)
    assert promised.groups(shown, sure=False) == (UNCERTAIN, POSITIVE)
    assert "at most 5 of 100 are called negative" in promised.sentence()


def test_patients_are_counted_once_and_unknown_studies_not_at_all():
    shown = np.array([[0.1], [0.1], [0.9], [0.9], [0.4], [0.1], [0.7]])
    labels = np.array([[1], [1], [1], [0], [0], [-1], [0]])
    patients = np.array([0, 0, 1, 2, 2, 3, 4])
    found = conformal.measured(PROMISE, labels, shown, patients)
    assert found["alpha"] == 0.05
    one = found["labels"]["any"]
    assert one["studies"] == {NEGATIVE: 2, UNCERTAIN: 1, POSITIVE: 3}
    missed, alarmed = one["wrong"][POSITIVE], one["wrong"][NEGATIVE]
    assert (missed["patients"], missed["called_wrongly"], missed["value"]) == (2, 1, 0.5)
    assert (alarmed["patients"], alarmed["called_wrongly"], alarmed["value"]) == (2, 2, 1.0)
    # Clopper and Pearson of 1 of 2: the ends are where a tail has 2.5%: 1 - sqrt(0.975), and its mirror image
    assert missed["low"] == pytest.approx(1 - 0.975**0.5)
    assert missed["high"] == pytest.approx(0.975**0.5)


def test_nobody_to_be_wrong_about():
    found = conformal.measured(PROMISE, np.array([[0]]), np.array([[0.5]]), np.array([0]))
    assert found["labels"]["any"]["wrong"][POSITIVE] == {
        "patients": 0, "called_wrongly": 0, "value": None, "low": None, "high": None
    }  # fmt: skip
