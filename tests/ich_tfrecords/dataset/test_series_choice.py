"""Which series of a study is read: the rules one by one, and against a plain look at every pair."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords import problems
from ich_tfrecords.dataset import series_choice
from ich_tfrecords.dataset.series_choice import ALL, BEST, OTHER, TOLD, UNFIT, SeriesFacts, left_out, series_facts
from ich_tfrecords.dataset.series_rules import NEUTRAL, SHARP, SOFT, packaged

RULES = packaged()


def series(uid: str, study: str = "s", **facts: object) -> SeriesFacts:
    return SeriesFacts(study, uid, 30, False, False, "", None)._replace(**facts)


def reasons(*some: SeriesFacts, mode: str = BEST) -> dict[str, tuple[str, str]]:
    return {uid: (why.reason, why.detail) for (_, uid), why in left_out(some, RULES, mode).items()}


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("H31S", SOFT), ("J40S", SOFT), ("B20F", SOFT), ("HR40F", SOFT), ("H60S", SHARP), ("B70S", SHARP),
        ("HR60F", SHARP), ("STANDARD", SOFT), ("SOFT", SOFT), ("STD+", SOFT), ("BONE", SHARP), ("BONEPLUS", SHARP),
        ("DETAIL", SHARP), ("UA", SOFT), ("UB", SOFT), ("YA", SHARP), ("FC21", SOFT), ("FC26", SOFT), ("FC30", SHARP),
        ("FC64", SOFT), ("FC81", SHARP), ("", NEUTRAL), ("other", NEUTRAL), ("XQ9", NEUTRAL),
    ],
)  # fmt: skip
def test_kernels_of_the_makers(kernel, kind):
    assert RULES.kernel(kernel) == kind


@pytest.mark.parametrize(
    ("worse", "better", "why"),
    [
        ({"contrast": True}, {}, "contrast agent"),
        ({"derived": True}, {}, "made from another series"),
        ({"kernel": "H60S"}, {"kernel": "H31S"}, "sharp kernel H60S"),
        ({"kernel": "H60S"}, {}, "sharp kernel H60S"),
        ({"thickness_mm": 0.6, "slices": 250}, {"thickness_mm": 5.0}, "slices of 0.6 mm, 2 to 6 mm are preferred"),
        ({"thickness_mm": 10.0}, {}, "slices of 10 mm, 2 to 6 mm are preferred"),
    ],
)
@pytest.mark.parametrize("mode", [BEST, TOLD])
def test_a_header_speaks_against_a_series(worse, better, why, mode):
    found = reasons(series("a", **worse), series("z", **better), mode=mode)
    assert found == {"a": (OTHER, f"{why}; series z was taken")}


@pytest.mark.parametrize(
    ("worse", "better", "why"),
    [
        ({"slices": 11}, {}, "11 slices, 12 are the least"),
        ({"slices": 29}, {}, "29 of 30 slices"),
        ({}, {"kernel": "H31S"}, "kernel not told, H31S is soft"),
        ({}, {"thickness_mm": 5.0}, "thickness not told"),
        ({"labelled": False}, {}, "no slice has a label"),
    ],
)
def test_what_no_header_says_counts_only_where_one_was_asked_for(worse, better, why):
    some = series("a", **worse), series("z", **better)
    assert reasons(*some) == {"a": (OTHER, f"{why}; series z was taken")}
    assert reasons(*some, mode=TOLD) == {}


def test_equal_series_are_told_apart_by_their_uid_alone():
    assert reasons(series("b"), series("a")) == {
        "b": (OTHER, "nothing tells them apart but the UID; series a was taken")
    }
    assert reasons(series("b"), series("a"), mode=TOLD) == {}


def test_a_fault_that_the_best_has_too_is_no_reason_by_itself():
    thin = [series("a", thickness_mm=1.0, kernel="BONE"), series("b", thickness_mm=1.0)]
    assert reasons(*thin, mode=TOLD) == {"a": (OTHER, "sharp kernel BONE; series b was taken")}


def test_labels_are_not_thrown_away_for_a_better_kernel():
    """Slice labels of a thin series alone, as some public sets have them."""
    thin = series("thin", thickness_mm=0.6, slices=250)
    plain = series("plain", thickness_mm=5.0, labelled=False)
    assert reasons(thin, plain, mode=TOLD) == {}
    assert reasons(thin, plain) == {"plain": (OTHER, "no slice has a label; series thin was taken")}


def test_a_study_in_which_nothing_qualifies_is_named_with_every_reason():
    some = series("a", contrast=True), series("b", slices=1)
    found = left_out(some, RULES, BEST)
    assert reasons(*some) == {"a": (UNFIT, "contrast agent"), "b": (UNFIT, "1 slice, 12 are the least")}
    (line,) = series_choice.notes(found, {("s", "a"): 30, ("s", "b"): 1})
    assert line == (
        "no series qualifies in 1 study: study s (series a: contrast agent, series b: 1 slice, 12 are the least); "
        "--series all takes them"
    )
    assert reasons(*some, mode=TOLD) == {}


def test_what_was_left_out_is_told_in_one_line():
    some = [series("a"), series("b", contrast=True), series("c", "t"), series("d", "t", kernel="BONE")]
    (line,) = series_choice.notes(left_out(some, RULES, TOLD), {one[:2]: one.slices for one in some})
    assert line == (
        "60 slices of 2 series left out, as a better series of the study was taken (1 contrast, 1 sharp kernel); "
        "--series all takes all"
    )


def test_facts_of_a_series_are_those_of_its_slices():
    found = series_facts(("s", "a"), 4, True, False, ["H31S", None, "H30S"], [4.0, None, 7.0, 4.0])
    assert found == SeriesFacts("s", "a", 4, True, False, "H30S", 4.0)


def test_what_is_left_out_is_not_held_against_the_limit():
    assert {OTHER, UNFIT} == problems.NOT_WANTED
    assert not problems.NOT_WANTED & problems.BY_NATURE


SERIES = st.builds(
    SeriesFacts,
    st.sampled_from("st"),
    st.text("abc", min_size=1, max_size=3),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", "other", "H31S", "H60S"]),
    st.sampled_from([None, 0.6, 2.0, 5.0, 6.0, 10.0]),
    st.booleans(),
)


@given(st.lists(SERIES, unique_by=lambda one: one[:2]), st.randoms())
def test_one_of_each_study_and_never_a_wrong_one(some, random):
    best, told = left_out(some, RULES, BEST), left_out(some, RULES, TOLD)
    assert left_out(some, RULES, ALL) == {}
    for study in {one.study_uid for one in some}:
        own = [one for one in some if one.study_uid == study]
        fit = [one for one in own if not one.contrast and one.slices >= 12]
        kept = [one for one in own if one[:2] not in best]
        assert len(kept) == bool(fit)
        if fit:
            assert kept[0] in fit
            labelled = [one for one in fit if one.labelled] or fit
            original = [one for one in labelled if not one.derived] or labelled
            assert kept[0] in original
            assert kept[0].kernel != "H60S" or all(one.kernel == "H60S" for one in original)
            assert kept[0][:2] not in told
        else:
            assert not {one[:2] for one in own} & told.keys()
    random.shuffle(some)
    assert (left_out(some, RULES, BEST), left_out(some, RULES, TOLD)) == (best, told)
    silent = [one._replace(contrast=False, derived=False, kernel="", thickness_mm=None) for one in some]
    assert left_out(silent, RULES, TOLD) == {}  # RSNA's headers say nothing: its bytes stay
