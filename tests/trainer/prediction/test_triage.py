"""The order of studies beside plain loops, and the words for people."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_tfrecords.problems import BY_NATURE
from ich_tfrecords.spec import LabelSpec
from ich_tfrecords.storage.slice_reader import SliceRef
from trainer.prediction import triage
from trainer.prediction.slice_stream import FoundSlice, Reject
from trainer.prediction.triage import Attention, Outcome, ScoredSlice, Triage
from trainer.results.conformal import Limits, Promise
from trainer.trust.scope import Judgement

LABELS = LabelSpec("any", ("any", "epidural", "subdural"), ("epidural", "subdural"))
ONLY_ANY = LabelSpec("any", ("any",), ())


def found(sop: str, study: str = "S", position_mm: float = 1.0) -> FoundSlice:
    return FoundSlice(SliceRef("/in", f"{sop}.dcm", -1, -1, 1, 1, -1, 1), 2, sop, study, "series", position_mm)


def reject(study: str, reason: str = "truncated") -> Reject:
    return Reject(1, "x.dcm", study, reason, "")


def gathered(rows: list[tuple[str, str, tuple[float, ...]]], pictured: int = 3, part: int = 2) -> Triage:
    """Triage of (sop, study, probabilities), handed over a few at a time."""
    made = Triage(LABELS, pictured)
    for begin in range(0, len(rows), part):
        some = rows[begin : begin + part]
        made.add([found(sop, study) for sop, study, _ in some], np.array([values for *_, values in some]))
    return made


def test_a_study_has_the_greatest_probability_of_each_label_and_the_slice_that_drives_it():
    made = gathered([("a", "S", (0.2, 0.1, 0.7)), ("b", "S", (0.9, 0.3, 0.0)), ("c", "S", (0.5, 0.1, 0.1))])
    (study,) = made.studies()
    assert (study.study_uid, study.slices, study.driver.found.sop_uid) == ("S", 3, "b")
    assert study.probabilities.tolist() == [0.9, 0.3, 0.7]
    assert study.driver.probabilities.tolist() == [0.9, 0.3, 0.0]


def test_equal_slices_and_equal_studies():
    rows = [("a", "T", (0.5, 0, 0)), ("b", "T", (0.5, 1, 1)), ("c", "S", (0.5, 0, 0)), ("d", "R", (0.4, 1, 1))]
    made = gathered(rows)
    assert [study.study_uid for study in made.studies()] == ["S", "T", "R"]
    assert made.studies()[1].driver.found.sop_uid == "a"  # the first of equals


LEVELS = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
ROWS = st.lists(st.tuples(st.sampled_from("PQRS"), st.tuples(LEVELS, LEVELS, LEVELS)), max_size=25)


@settings(max_examples=100, deadline=None)
@given(ROWS, st.integers(1, 4), st.integers(0, 6))
def test_triage_is_what_plain_loops_find(drawn, part, pictured):
    rows = [(f"{number:02d}", study, values) for number, (study, values) in enumerate(drawn)]
    made = gathered(rows, pictured, part)
    expected = []
    for uid in {study for _, study, _ in rows}:
        own = [(sop, values) for sop, study, values in rows if study == uid]
        most = max(values[0] for _, values in own)
        driver = next(sop for sop, values in own if values[0] == most)
        expected.append((-most, uid, len(own), tuple(max(column) for column in zip(*(v for _, v in own))), driver))
    studies = [
        (-study.probabilities[0], study.study_uid, study.slices, tuple(study.probabilities), study.driver.found.sop_uid)
        for study in made.studies()
    ]
    assert studies == sorted(expected)
    assert made.slices == len(rows)
    drivers = [driver for *_, driver in sorted(expected)]
    others = [sop for sop, _, values in sorted(rows, key=lambda row: (-row[2][0], row[0])) if sop not in drivers]
    assert [scored.found.sop_uid for scored in made.to_picture()] == [*drivers, *others][:pictured]


def test_a_study_with_a_probability_of_its_own_is_ranked_by_that():
    made = Triage(LABELS, 2)
    rows = [("a", "S", (0.9, 0.1, 0.7)), ("b", "S", (0.8, 0.3, 0.0)), ("c", "T", (0.5, 0.1, 0.1))]
    for sop, study, values in rows:
        ended = {"S": np.array([0.2, 0.1, 0.15])} if study == "T" else {}
        made.take(Outcome([found(sop, study)], np.array([values]), [reject(study)], 2, studies=ended))
    made.take(triage.without_slices([], 0)._replace(studies={"T": np.array([0.6, 0.2, 0.3])}))
    first, second = made.studies()
    assert (first.study_uid, first.probabilities.tolist()) == ("T", [0.6, 0.2, 0.3])
    assert (second.probabilities.tolist(), second.slices, second.rejected) == ([0.2, 0.1, 0.15], 2, 2)
    assert second.driver.found.sop_uid == "a"  # still the slice with the greatest probability of any
    assert [scored.found.sop_uid for scored in made.to_picture()] == ["c", "a"]
    assert made.rejects == {"truncated": 3}


def test_attention_goes_with_its_slice():
    made = Triage(LABELS, 2)
    looked = [Attention(1, np.zeros(2, np.float32), np.array([0.25, 0.75], np.float32), at) for at in range(2)]
    values = np.array([[0.5, 0, 0], [0.75, 0, 0]])
    made.take(Outcome([found("a", "S"), found("b", "S")], values, [], 2, looked))
    assert [scored.attention for scored in made.to_picture()] == [looked[1], looked[0]]


def test_what_was_handed_over_may_be_overwritten():
    made, values = Triage(LABELS, 1), np.array([[0.5, 0.25, 0.125]])
    made.add([found("a")], values)
    values[:] = 0
    assert made.studies()[0].probabilities.tolist() == made.to_picture()[0].probabilities.tolist() == [0.5, 0.25, 0.125]


def test_nothing_found():
    made = Triage(LABELS, 4)
    made.add([], np.empty((0, 3)))
    assert (made.studies(), made.to_picture(), made.slices) == ([], [], 0)


def test_rows_of_the_files():
    made = gathered([("a", "S", (0.123456789, 1e-7, 1.0))])
    probabilities = ["0.123457", "1e-07", "1"]
    row = triage.slice_row(found("a"), made.studies()[0].probabilities)
    assert dict(zip(triage.slice_head(LABELS), row, strict=True)) == {
        "input": 2,
        "file": "a.dcm",
        "sop_uid": "a",
        "study_uid": "S",
        "series_uid": "series",
        "position_mm": 1.0,
        **dict(zip(LABELS.names, probabilities)),
    }
    (row,) = triage.study_rows(made, LABELS)
    assert dict(zip(triage.study_head(LABELS, made), row, strict=True)) == {
        "rank": 1,
        "study_uid": "S",
        "slices": 1,
        "rejected": 0,
        "partial": "",
        **dict(zip(LABELS.names, probabilities)),
        "driven_by": "a",
        "input": 2,
        "file": "a.dcm",
        "position_mm": 1.0,
        "in_scope": "unknown",
        "scope_reason": "the model does not keep what it was trained on",
    }


def test_a_study_out_of_scope_stands_behind_the_others_and_keeps_a_rank():
    made = gathered([("a", "S", (0.9, 0.4, 0.1)), ("b", "T", (0.2, 0.1, 0.1)), ("c", "U", (0.3, 0.1, 0.1))])
    strange = Judgement("no", "vectors 3.0 times as far as 95% of validation")
    made.judged = {("S", "1"): strange, ("T", "1"): Judgement("yes"), ("U", "1"): Judgement("yes"), ("U", "2"): strange}
    assert [study.study_uid for study in made.strange()] == ["S"]
    shown = [dict(zip(triage.study_head(LABELS, made), row)) for row in triage.study_rows(made, LABELS)]
    assert [(row["rank"], row["study_uid"], row["in_scope"]) for row in shown] == [
        (1, "U", "yes"), (2, "T", "yes"), (3, "S", "no")
    ]  # fmt: skip
    assert shown[0]["scope_reason"] == f"1 of 2 series out of scope: {strange.reason}"
    assert shown[2]["scope_reason"] == strange.reason
    assert f"OUT OF SCOPE: {strange.reason}" in "\n".join(triage.table(made.studies(), LABELS, 5))


def test_groups_stand_behind_everything_and_what_lacks_slices_is_never_negative():
    promise = Promise(0.05, dict.fromkeys(LABELS.names, Limits(0.2, 0.6)))
    made = Triage(LABELS, 1, promise)
    for uid, values in (("S", (0.9, 0.4, 0.1)), ("T", (0.1, 0.1, 0.1))):
        made.add([found(uid.lower(), uid)], np.array([values]))
    made.reject([reject("T"), reject("R")])
    head = triage.study_head(LABELS, made)
    assert head[-3:] == ["any_group", "epidural_group", "subdural_group"]
    assert [row[-3:] for row in triage.study_rows(made, LABELS)] == [
        ["positive", "uncertain", "negative"],
        ["uncertain", "uncertain", "uncertain"],
        ["", "", ""],
    ]
    assert {len(row) for row in triage.study_rows(made, LABELS)} == {len(head)}


def test_nothing_is_negative_where_a_file_may_be_of_any_study_nor_out_of_scope():
    promise = Promise(0.05, dict.fromkeys(LABELS.names, Limits(0.2, 0.6)))
    made = Triage(LABELS, 1, promise)
    for uid in "ST":
        made.add([found(uid.lower(), uid)], np.array([(0.9, 0.1, 0.1)]))
    assert {study.groups for study in made.studies()} == {("positive", "negative", "negative")}
    made.judged = {("S", "1"): Judgement("no", "grey"), ("T", "1"): Judgement("yes")}
    groups = {study.study_uid: study.groups for study in made.studies()}
    assert groups == {"T": ("positive", "negative", "negative"), "S": ("positive", "uncertain", "uncertain")}
    made.reject([Reject(1, "cut.dcm", "", "truncated", "")])
    assert {study.groups for study in made.studies()} == {("positive", "uncertain", "uncertain")}


def test_on_a_picture_a_study_is_partial_first():
    made = Triage(LABELS, 1)
    made.add([found("s", "S")], np.array([(0.9, 0.1, 0.1)]))
    made.judged = {("S", "1"): Judgement("no", "grey 3.1 times as far as 95% of validation")}
    assert made.warnings() == {"S": "OUT OF SCOPE: grey 3.1 times as far as 95% of validation"}
    made.reject([reject("S")])
    partial = "PARTIAL: the study was judged by 1 of 2 slices (missing: 1 truncated)"
    assert made.warnings() == {"S": f"OUT OF SCOPE; {partial}"}


@pytest.mark.parametrize(("position_mm", "shown"), [(-12.3456789, -12.346), (37.5, 37.5), (1e6, 1e6), (3 * 0.1, 0.3)])
def test_a_position_is_told_to_a_micrometre(position_mm, shown):
    assert triage.slice_row(found("a", position_mm=position_mm), np.zeros(3))[5] == shown


def test_the_sentences_of_the_thesis():
    labels = LabelSpec("any", ("any", "epidural", "subarachnoid"), ("epidural", "subarachnoid"))
    scored = ScoredSlice(found("ID_005381fc2"), np.array([0.9996, 0.5, 0.027]))
    assert triage.sentences(scored, labels) == [
        "ID_005381fc2 has a probability 0.500 for an 'epidural' type of hemorrhage",
        "ID_005381fc2 has a probability 0.027 for a 'subarachnoid' type of hemorrhage",
        "ID_005381fc2 has a probability >0.999 for any type of hemorrhage",
    ]


ALL_REFUSED = ("any", "epidural", "subdural")


@pytest.mark.parametrize(
    ("probabilities", "refused", "kind", "leading"),
    [
        ((0.5, 0.2, 0.3), (), 2, 2),
        ((0.5, 0.3, 0.3), (), 1, 1),  # the first of equals
        ((0.5, 0.1, 0.25), (), 2, 2),  # half of any is enough
        ((0.5, 0.1, 0.24), (), 2, 0),
        ((0.0, 0.0, 0.0), (), 1, 1),
        ((0.5, 0.9, 0.3), ("epidural",), 2, 2),
        ((0.5, 0.9, 0.2), ("epidural",), 2, 0),
        ((0.5, 0.9, 0.2), ("any",), 1, 1),
        ((0.5, 0.1, 0.2), ("any",), 2, 2),
        ((0.5, 0.1, 0.2), ("any", "subdural"), 1, 1),
        ((0.5, 0.9, 0.8), ("epidural", "subdural"), 1, 0),
        ((0.5, 0.9, 0.8), ALL_REFUSED, 1, 1),
        ((0.5, 0.1, 0.2), ALL_REFUSED, 2, 0),
    ],
)
def test_what_is_not_calibrated_leads_only_where_nothing_is(probabilities, refused, kind, leading):
    assert triage.likeliest_kind(np.array(probabilities), LABELS, refused) == kind
    assert triage.leading_label(np.array(probabilities), LABELS, refused) == leading


def test_any_leads_where_it_is_the_only_label():
    for refused in ((), ("any",)):
        assert triage.likeliest_kind(np.array([0.9]), ONLY_ANY, refused) == 0
        assert triage.leading_label(np.array([0.9]), ONLY_ANY, refused) == 0


def test_rejects_stand_with_their_studies_and_those_without_a_slice_at_the_end():
    made = gathered([("a", "T", (0.1, 0, 0)), ("b", "S", (0.9, 0, 0))])
    made.reject([reject("T"), reject("R"), reject(""), reject("T", "not_ct")])
    made.reject([reject("P"), reject("R")])
    assert made.rejects == {"truncated": 5, "not_ct": 1}
    assert [(study.study_uid, study.rejected) for study in made.studies()] == [("S", 0), ("T", 2)]
    assert made.without_slices() == [
        ("P", 1, "0 of 1 slices (missing: 1 truncated)"),
        ("R", 2, "0 of 2 slices (missing: 2 truncated)"),
    ]
    assert made.partial() == {"T": "1 of 2 slices (missing: 1 truncated)"}
    assert made.astray == 1
    rows = [dict(zip(triage.study_head(LABELS, made), row, strict=True)) for row in triage.study_rows(made, LABELS)]
    assert [(row["rank"], row["study_uid"], row["slices"], row["rejected"]) for row in rows] == [
        (1, "S", 1, 0),
        (2, "T", 1, 2),
        ("", "P", 0, 1),
        ("", "R", 0, 2),
    ]
    assert set(rows[3].values()) == {"", "R", 0, 2, "0 of 2 slices (missing: 2 truncated)"}
    assert [row["partial"] for row in rows[:3]] == [
        "",
        "1 of 2 slices (missing: 1 truncated)",
        "0 of 1 slices (missing: 1 truncated)",
    ]


ODD = ["truncated", "localizer", "duplicate_slice", "bad_bits", "truncated"]


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        ([], ""),
        (sorted(BY_NATURE), ""),  # reports and scouts are no slices
        (["duplicate_slice"] * 3, ""),
        (["other_series"] * 3, ""),  # a better series of the study was judged
        (["uid_conflict"] * 5, "1 of 6 slices (missing: 5 uid_conflict)"),
        (ODD, "1 of 4 slices (missing: 2 truncated, 1 bad_bits)"),
        (["no_probability"] * 1000, "1 of 1,001 slices (missing: 1,000 no_probability)"),
    ],
)
def test_a_study_judged_by_a_part_of_its_slices_says_so(reasons, words):
    made = gathered([("a", "S", (0.5, 0, 0)), ("b", "T", (0.1, 0, 0))])
    made.reject([reject("S", reason) for reason in reasons])
    study, other = made.studies()
    assert (study.partial, study.rejected, other.partial) == (words, len(reasons), "")
    assert made.partial() == ({"S": words} if words else {})
    lines = triage.table(made.studies(), LABELS, 10)
    assert [line.partition("  PARTIAL: ")[2] for line in lines] == ["", words, ""]


def test_files_that_tell_no_study_count_unless_they_are_no_slices():
    made = gathered([])
    made.reject([reject("", reason) for reason in ("empty_file", "not_dicom", "unreadable_file")])  # called like slices
    made.reject([reject("", "not_dicom")._replace(file="LICENSE"), reject("S")])
    assert made.astray == 3
    assert made.never == {"not_dicom": 1}


def test_a_study_whose_readable_slice_comes_after_its_rejects():
    made = gathered([])
    made.reject([reject("S")])
    made.add([found("a")], np.array([[0.5, 0, 0]]))
    assert made.without_slices() == []
    assert made.studies()[0].rejected == 1


def test_the_list_for_people():
    made = gathered([("first", "A", (0.5, 0.125, 0.25)), ("second", "B", (0.75, 0.5, 0.25)), ("x", "B", (0.1, 0, 0))])
    assert triage.table(made.studies(), LABELS, 10) == [
        "rank  study  slices    any  most likely     driven by slice",
        "   1  B           2  0.750  0.500 epidural  second",
        "   2  A           1  0.500  0.250 subdural  first",
    ]
    assert triage.table(made.studies(), LABELS, 1)[2:] == ["... and 1 more"]
    assert triage.table(made.studies(), LABELS, 10, ["epidural"])[1].endswith("0.250 subdural  second")


@pytest.mark.parametrize(
    ("probability", "text"),
    [
        (0.0, "0.000"),
        (1e-300, "<0.001"),
        (0.000499, "<0.001"),
        (0.0005, "0.001"),
        (0.027, "0.027"),
        (0.99949, "0.999"),
        (0.9995, ">0.999"),
        (1 - 1e-12, ">0.999"),
        (1.0, "1.000"),
    ],
)
def test_probabilities_are_not_rounded_to_certainty(probability, text):
    assert triage.probability_text(probability) == text


@given(st.floats(0, 1))
def test_the_text_of_a_probability_is_near_it(probability):
    text = triage.probability_text(probability)
    assert abs(float(text.lstrip("<>")) - probability) <= 0.001
    assert (text in ("0.000", "1.000")) == (probability in (0, 1))


def test_an_id_cannot_steer_the_terminal():
    made = gathered([("\x1b[2Jx", "\x1b]0;title\x07", (0.5, 0, 0))])
    scored = made.studies()[0].driver
    text = "\n".join([*triage.table(made.studies(), LABELS, 9), *triage.sentences(scored, LABELS)])
    assert "\x1b" not in text
    assert "\x07" not in text
