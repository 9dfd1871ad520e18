"""Runs to models and models to the same slices: folds grouped and pooled, differences told, what is shared kept."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from evaluated_runs import NAMES, folds, predictions, run
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.results.comparable import align, doubts, group
from trainer.shell.problems import WrongUse


def sops(part) -> list[str]:
    return part.predictions.ids["sop_uid"].to_pylist()


def with_ids(own, **columns):
    ids = own.ids
    for name, values in columns.items():
        ids = ids.set_column(ids.column_names.index(name), name, pa.array(values))
    return dataclasses.replace(own, ids=ids)


# groups


def test_runs_without_folds_stand_alone():
    models = group([run("a", predictions(seed=1)), run("b", predictions(seed=2))])
    assert [(model.name, model.folds, model.pooled, len(model.parts)) for model in models] == [
        ("a", 0, False, 1),
        ("b", 0, False, 1),
    ]


def test_folds_that_differ_in_fold_and_seed_are_pooled_each_slice_once():
    runs = folds("cnn", 2.0, seed=5)
    (model,) = group(runs[::-1])
    assert (model.name, model.folds, model.pooled) == ("cnn (4 folds)", 4, True)
    assert [one.name for one in model.runs] == ["cnn-fold0", "cnn-fold1", "cnn-fold2", "cnn-fold3"]
    (pool,) = model.parts
    assert sorted(sops(pool)) == sorted(predictions().ids["sop_uid"].to_pylist())
    for number, (one, part) in enumerate(model.by_run):
        assert one is runs[number]
        np.testing.assert_array_equal(part.predictions.logits, runs[number].predictions.logits)


def test_each_fold_decides_by_its_own_threshold():
    runs = folds("cnn", 2.0, seed=5)
    runs[2].result["measures"]["labels"]["any"]["threshold"] = 0.0
    (model,) = group(runs)
    flagged = [part.flagged for _, part in model.by_run]
    assert flagged[2].all()
    assert not flagged[1].all()


def test_folds_evaluated_on_one_split_stay_apart():
    (model,) = group(folds("cnn", 2.0, seed=5, split="test"))
    assert not model.pooled
    assert len(model.parts) == len(model.by_run) == 4


@pytest.mark.parametrize("what", [{"trained_on": "0" * 64}, {"split": "train"}])
def test_folds_evaluated_on_what_is_not_their_own_fold_are_averaged(what):
    # the same split of another data set holds the same slices for every fold, and they share its patients
    own = [
        dataclasses.replace(one, predictions=predictions(seed=number))
        for number, one in enumerate(folds("cnn", 2.0, 5))
    ]
    runs = [dataclasses.replace(one, result={**one.result, "what": {**one.what, **what}}) for one in own]
    (model,) = group(runs)
    assert not model.pooled
    assert [sops(part) for _, part in model.by_run] == [sops(part) for part in model.parts]
    assert len(model.parts) == 4


def test_folds_of_other_settings_are_another_model():
    models = group([*folds("a", 2.0, 1), *folds("b", 2.0, 1)])
    assert [model.name for model in models] == ["a (4 folds)", "b (4 folds)"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["densenet121-fold0", "densenet121-fold1"], "densenet121"),
        (["x/fold0", "x/fold1"], "x"),
        (["cnn-fold10", "cnn-fold11"], "cnn"),
        (["densenet121_0", "densenet121_1"], "densenet121"),
        (["fold0", "fold1"], "cnn"),  # the network
        (["red", "blue"], "cnn"),
    ],
)
def test_the_name_of_folds_is_what_their_names_share(names, expected):
    runs = [dataclasses.replace(one, name=name) for one, name in zip(folds("a", 2.0, 1, count=2), names)]
    assert group(runs)[0].name == f"{expected} (2 folds)"


def test_equal_names_of_models_are_told_apart():
    runs = [*folds("a", 2.0, 1, count=2), *folds("b", 2.0, 1, count=2)]
    runs = [dataclasses.replace(one, name=name) for one, name in zip(runs, "pqrs")]
    assert [model.name for model in group(runs)] == ["cnn (2 folds): p", "cnn (2 folds): r"]


def test_an_incomplete_cross_validation_says_so_in_its_name():
    assert group(folds("cnn", 2.0, 1)[:3])[0].name == "cnn (3 of 4 folds)"
    assert group(folds("cnn", 2.0, 1)[:1])[0].name == "cnn-fold0 (1 of 4 folds)"


def test_a_fold_that_stands_twice_is_refused():
    first, second = folds("cnn", 2.0, 1)[0], folds("cnn", 2.0, 9)[0]
    with pytest.raises(WrongUse, match="cnn-fold0 and again are both fold 0 of one model"):
        group([first, dataclasses.replace(second, name="again")])


def test_folds_that_share_a_patient_are_refused():
    runs = folds("cnn", 2.0, 1)
    overlapping = dataclasses.replace(runs[1], predictions=predictions(patients=range(9, 20)))
    with pytest.raises(WrongUse, match="cnn-fold0 and cnn-fold1 were both evaluated on patient key_009"):
        group([runs[0], overlapping])


@pytest.mark.parametrize(("column", "word"), [("study_uid", "study"), ("series_uid", "series")])
def test_folds_that_share_a_study_are_refused(column, word):
    """Drawn by an older version, which knew no groups: one study under two patient ids stood in two folds."""
    runs = folds("cnn", 2.0, 1)
    ids = runs[1].predictions.ids
    shared = pa.array([runs[0].predictions.ids[column][0].as_py()] * len(ids))
    torn = dataclasses.replace(
        runs[1].predictions, ids=ids.set_column(ids.schema.get_field_index(column), column, shared)
    )
    with pytest.raises(
        WrongUse, match=f"cnn-fold0 and cnn-fold1 were both evaluated on {word} study_000_0; folds share"
    ):
        group([runs[0], dataclasses.replace(runs[1], predictions=torn)])


def test_a_slice_that_stands_twice_is_refused():
    own = predictions()
    with pytest.raises(WrongUse, match="a: slice ID_000_01 stands twice") as refusal:
        group([run("a", own.take(np.r_[0, 1, 1, 2]))])
    assert "evaluate it again" not in str(refusal.value)  # the data set has it twice
    assert "convert the data again" in str(refusal.value)


# the same slices


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(24)), st.permutations(range(24)))
def test_the_order_of_the_files_does_not_matter(one, other):
    own = predictions(patients=range(2))
    models = group([run("a", own.take(np.array(one))), run("b", own.take(np.array(other)))])
    aligned, told = align(models, anyway=False)
    assert told == []
    parts = [model.parts[0] for model in aligned]
    assert sops(parts[0]) == sops(parts[1]) == sorted(sops(parts[0]))
    for part in parts:
        np.testing.assert_array_equal(part.predictions.logits, own.logits[np.argsort(own.ids["sop_uid"].to_pylist())])
        np.testing.assert_array_equal(part.flagged, part.predictions.probabilities[:, 0] >= models[0].runs[0].threshold)


def different(what: str):
    """A run that was evaluated on something else."""
    own = predictions(seed=2)
    if what == "data sets":
        return run("b", own, dataset={"name": "made_up", "version": "1.0.1", "fingerprint": "0" * 64})
    if what == "splits":
        return run("b", own, split="validation")
    if what == "slices":
        return run("b", predictions(seed=2, patients=range(10, 50)))
    if what == "labels":
        arrays = {key: getattr(own, key)[:, :2] for key in ("labels", "logits", "probabilities")}
        return run("b", dataclasses.replace(own, names=NAMES[:2], **arrays))
    truth = own.labels.copy()
    truth[:3, 1] = -1
    return run("b", dataclasses.replace(own, labels=truth))


@pytest.mark.parametrize(
    ("what", "words", "slices"),
    [
        ("data sets", r"data sets \(a made_up 1.0.0 ffffffffffff, b made_up 1.0.1 000000000000\)", 480),
        ("splits", r"splits \(a test, b validation\)", 480),
        ("slices", r"slices \(a 480, b 480, all share 360\)", 360),
        ("labels", r"labels \(a any epidural subdural, b any epidural\)", 480),
        ("truth", "the labels of 3 slices", 477),
    ],
)
def test_different_things_are_named_and_refused_unless_told(what, words, slices):
    models = group([run("a", predictions(seed=1)), different(what)])
    with pytest.raises(WrongUse, match=f"{words}; .* add --anyway"):
        align(models, anyway=False)
    aligned, told = align(models, anyway=True)
    assert len(told) == 1
    first, second = (model.parts[0] for model in aligned)
    assert sops(first) == sops(second)
    assert len(sops(first)) == slices
    np.testing.assert_array_equal(first.predictions.labels, second.predictions.labels)


def test_two_data_sets_with_other_keys_for_patients_are_resampled_alike():
    own, other = predictions(seed=1), predictions(seed=2)
    renamed = with_ids(other, patient_key=[f"k{99 - int(key[4:])}" for key in other.ids["patient_key"].to_pylist()])
    aligned, _ = align(group([run("a", own), run("b", renamed)]), anyway=False)
    patients = [model.parts[0].predictions.patients for model in aligned]
    np.testing.assert_array_equal(patients[0], patients[1])


def test_nothing_shared_is_refused_even_when_told():
    models = group([run("a", predictions(patients=range(5))), run("b", predictions(patients=range(5, 9)))])
    with pytest.raises(WrongUse, match=r"share nothing that could be compared: slices \(a 60, b 48, all share 0\)"):
        align(models, anyway=True)


def test_labels_that_agree_nowhere_are_refused_even_when_told():
    own = predictions(patients=range(3))
    models = group([run("a", own), run("b", dataclasses.replace(own, labels=np.full_like(own.labels, -1)))])
    with pytest.raises(WrongUse, match="no slice whose labels they agree on"):
        align(models, anyway=True)


# doubts


def test_runs_evaluated_on_slices_they_have_not_seen_leave_no_doubt():
    assert doubts(group([run("a", predictions(seed=1)), run("b", predictions(seed=2))])) == []


KIND = (
    "calibration, thresholds and the best epoch were chosen on these very slices, so log loss, calibration error and "
    "decisions are kinder than on new patients."
)
TRAINED = "trained on these very slices, so nothing here says how good it is on new patients."


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        (("validation", "validation"), [f"All runs: {KIND}"]),
        (("train", "train"), [f"All runs: {TRAINED}"]),
        (("test", "validation"), [f"b: {KIND}"]),
        (("train", "validation"), [f"a: {TRAINED}", f"b: {KIND}"]),
    ],
)
def test_slices_that_a_run_has_seen_are_told(splits, words):
    assert doubts(group([run(name, predictions(), split=split) for name, split in zip("ab", splits)])) == words


def test_the_split_of_that_name_in_another_data_set_was_not_seen():
    runs = [run(name, predictions(), split="validation", trained_on="0" * 64) for name in "ab"]
    assert doubts(group(runs)) == [
        "All runs: trained on another data set than the one evaluated on; see to it that no patient is in both."
    ]


def test_pooled_folds_are_kinder_too():
    assert doubts(group(folds("cnn", 2.0, 5))) == [f"All runs: {KIND}"]


def test_folds_without_a_shared_slice_are_told():
    models = group([*folds("a", 2.0, 5), run("b", predictions(patients=range(18)), split="validation")])
    aligned, _ = align(models, anyway=True)
    assert doubts(aligned)[0] == (
        "a (4 folds): a-fold2, a-fold3 have none of the slices that all runs share, and no part in the numbers."
    )
    assert [one.name for one, _ in aligned[0].by_run] == ["a-fold0", "a-fold1"]
