"""What has moved is found first, and where nothing has, nothing is said to have."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from portrait_tables import LABELS, WINDOWS, named, portraits
from scipy import stats

from trainer.shell.problems import WrongUse
from trainer.trust import drift
from trainer.trust.drift import ALPHA, FEWEST, GREY, HEADER, PROBABILITY, TRAINING, VALIDATION, VECTORS, Drift
from trainer.trust.portraits import Known

SEEDS = 30


@pytest.fixture(autouse=True)
def _fewer_draws(monkeypatch):
    """Enough for the things of a test to be called moved."""
    monkeypatch.setattr(drift, "DRAWS", 499)


@pytest.fixture(scope="module")
def references() -> dict[str, Known]:
    return {TRAINING: known(portraits(300, 1)), VALIDATION: known(portraits(250, 2))}


def known(table: pa.Table) -> Known:
    """Each series of another patient."""
    return Known(table, np.arange(len(table)))


def compared(references: dict[str, Known], now: pa.Table, **without: str) -> Drift:
    return drift.compare(references, now, WINDOWS, LABELS, without)


@pytest.mark.parametrize(
    ("what", "kind", "keys"),
    [
        ({"kvp": 100}, HEADER, {"kvp"}),
        ({"kernels": ("B30f", "H31s")}, HEADER, {"kernel"}),
        ({"shift": 2.0}, GREY, set(WINDOWS)),
        ({"vector": 1.5}, VECTORS, {"vector"}),
        ({"prevalence": 0.3}, PROBABILITY, set(LABELS)),
    ],
    ids=["another voltage", "another kernel", "another intercept", "moved vectors", "twice as many bleeds"],
)
def test_what_was_moved_is_found_first(references, what, kind, keys):
    found = compared(references, named(portraits(200, 3, **what)))
    assert [one.kind for one in found.moved] == [kind] * len(keys)
    assert {one.key for one in found.moved} == keys
    assert found.things[: len(keys)] == found.moved


def test_of_things_as_far_the_cause_comes_first(references):
    found = compared(references, named(portraits(60, 3, kvp=100, shift=4, vector=9)))
    assert [one.kind for one in found.things[:5]] == [HEADER, GREY, GREY, GREY, VECTORS]
    assert all(one.apart.effect > 0.95 for one in found.things[:5])


def test_how_it_moved_is_told(references):
    changes = {"kvp": 100, "kernels": ("B30f",), "shift": 2.0, "vector": 1.5, "prevalence": 0.9}
    found = {(one.kind, one.key): one.facts for one in compared(references, named(portraits(80, 4, **changes))).things}
    assert found[HEADER, "kvp"]["tenths"] == [[120, 120, 120], [100, 100, 100]]
    assert found[HEADER, "kvp"]["spreads"] is None  # training had one value
    assert found[HEADER, "kernel"]["unseen"] == 1
    assert found[HEADER, "kernel"]["words"]["B30f"] == [0, 1]
    assert 1.3 < found[VECTORS, "vector"]["spreads"] < 1.8
    before, now = found[GREY, "brain"]["mean"]
    assert now > before
    assert found[GREY, "brain"]["area"] == pytest.approx(now - before, rel=0.1)
    means = found[PROBABILITY, "any"]["mean"]
    assert means[0] == pytest.approx(0.18, abs=0.05)
    assert means[1] > 0.7
    for facts in (found[HEADER, "kvp"], found[VECTORS, "vector"], found[PROBABILITY, "any"]):
        assert [sum(side) for side in facts["shares"]] == pytest.approx([1, 1])


def test_a_median_is_told_in_spreads_of_training(references):
    now = portraits(80, 4)
    wider = pa.array(np.asarray(now["spacing_mm"]) + 0.1, pa.float32())
    found = compared(references, named(now.set_column(now.column_names.index("spacing_mm"), "spacing_mm", wider)))
    (moved,) = found.moved
    assert moved.key == "spacing_mm"
    assert moved.facts["spreads"] == pytest.approx(0.1 / (0.08 / 12**0.5), rel=0.2)


def test_vectors_that_only_scatter_move_no_mean(references):
    """The debiased distance of the means is small where nothing moved, though there are 8 axes and 25 series."""
    found = compared(references, named(portraits(25, 5)))
    (vector,) = (one for one in found.things if one.key == "vector")
    assert vector.facts["spreads"] < 0.5


def test_the_same_series_have_not_moved(references):
    same = references[VALIDATION]
    found = compared(dict.fromkeys(references, same), named(same.portraits))
    assert found.moved == []
    assert all(one.apart.separation == 0 for one in found.things)


@pytest.mark.slow
@pytest.mark.parametrize(("series", "studies"), [(1, 0), (3, 0), (1, 5)])
def test_false_alarms_of_a_whole_page_are_as_rare_as_promised(series, studies):
    """Patients of validation have two series that are alike, each study of now `series`, a patient some studies."""
    alarms, things = 0, 0
    for seed in range(SEEDS):
        twice = portraits(40, 3 * seed + 1).take(np.repeat(np.arange(40), 2))
        references = {
            TRAINING: known(portraits(60, 3 * seed)),
            VALIDATION: Known(twice, np.repeat(np.arange(40), 2)),
        }
        alike = series * max(studies, 1)
        now = portraits(FEWEST, 3 * seed + 2).take(np.repeat(np.arange(FEWEST), alike))
        found = compared(references, named(now, series, studies))
        things = len(found.things)
        alarms += bool(found.moved)
    assert things / 500 < ALPHA  # a correction that nothing could pass would keep any promise
    assert stats.binomtest(alarms, SEEDS, ALPHA, "greater").pvalue > 0.001


def test_a_fact_that_training_never_told_judges_nobody(references):
    now = portraits(40, 6)
    now = now.set_column(now.column_names.index("tilt_deg"), "tilt_deg", pa.array([12.0] * 40, pa.float32()))
    found = compared(references, named(now))
    assert "tilt_deg" not in {one.key for one in found.things}
    assert found.unjudged == {"tilt_deg": "no series of training tells it"}


def test_a_fact_that_is_not_told_any_more_has_moved(references):
    now = portraits(40, 6)
    for name in ("kvp", "kernel"):
        now = now.set_column(now.column_names.index(name), name, pa.nulls(40, now.schema.field(name).type))
    found = compared(references, named(now))
    assert {one.key for one in found.moved} == {"kvp", "kernel"}
    facts = {one.key: one.facts for one in found.moved}
    assert facts["kvp"]["untold"] == [0, 1]
    assert facts["kernel"]["words"][drift.UNTOLD] == [0, 1]


def test_numbers_written_with_more_digits_are_the_same(references):
    now = portraits(100, 7)
    nearly = pa.array(np.asarray(now["kvp"]) * (1 + 1e-7), pa.float32())
    assert compared(references, named(now.set_column(now.column_names.index("kvp"), "kvp", nearly))).moved == []


def test_what_cannot_be_judged_says_why(references):
    few = {**references, VALIDATION: known(portraits(7, 2))}
    found = compared(few, named(portraits(30, 8)), grey="another crop")
    assert {one.kind for one in found.things} == {HEADER}
    few_words = f"the run kept series of 7 validation patients; {FEWEST} are needed"
    assert {kind: found.unjudged[kind] for kind in (GREY, VECTORS, PROBABILITY)} == {
        GREY: "another crop", VECTORS: few_words, PROBABILITY: few_words,
    }  # fmt: skip


@pytest.mark.parametrize("a_patient", [(3, 0), (1, 3)])
def test_too_few_patients_are_refused(references, a_patient):
    with pytest.raises(WrongUse, match=f"^19 patients with a prediction; to say what moved, {FEWEST} are needed$"):
        compared(references, named(portraits(57, 9), *a_patient))


def test_one_patient_for_everything_is_none(references):
    """As de-identified folders have it; and who is named beside studies of nobody counts once."""
    assert compared(references, named(portraits(25, 10), 1, 25)).patients["now"] == 25
    some = pa.array([0, 0, *[None] * 23], pa.int32())
    now = named(portraits(25, 10))
    assert compared(references, now.set_column(2, "patient", some)).patients["now"] == 24


def test_how_far_a_move_is_seen_from_follows_from_the_fewest_patients(references):
    few = Known(portraits(200, 12), np.repeat(np.arange(20), 10))
    found = compared({TRAINING: few, VALIDATION: few}, named(portraits(20, 13)))
    assert found.seen_from == pytest.approx((math.log(2 * len(found.things) / ALPHA) / 2 * (1 / 20 + 1 / 20)) ** 0.5)


def test_a_run_that_kept_too_little_is_refused():
    few = {TRAINING: known(portraits(3, 1)), VALIDATION: known(portraits(1, 2))}
    with pytest.raises(WrongUse) as caught:
        compared(few, named(portraits(30, 8)))
    assert str(caught.value) == (
        "the run kept series of 3 training patients; 20 are needed; "
        "the run kept series of 1 validation patient; 20 are needed"
    )


def test_series_without_a_study_stand_alone(references):
    now = named(portraits(25, 10)).drop_columns(["study_uid"]).append_column("study_uid", pa.nulls(25, pa.string()))
    assert compared(references, now).patients["now"] == 25


def test_of_very_many_patients_some_are_drawn(references, monkeypatch):
    monkeypatch.setattr(drift, "MOST", 50)
    found = compared(references, named(portraits(200, 11, kvp=100), series_a_study=2))
    assert found.patients == {TRAINING: 300, VALIDATION: 250, "now": 100}
    assert found.series == {TRAINING: 300, VALIDATION: 250, "now": 200}
    assert [one.key for one in found.moved] == ["kvp"]
