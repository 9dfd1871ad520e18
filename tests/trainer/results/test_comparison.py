"""Values beside the report's own, paired differences beside a plain loop, readings, notes, folds."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from evaluated_runs import NAMES, folds, predictions, run
from sklearn.metrics import roc_auc_score

from trainer.results import bootstrap, comparison, measures
from trainer.results.comparable import group
from trainer.results.comparison import compare, difference, too_few

DRAWS = 60


def brute_log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """`any`, the first label, counts twice."""
    total = weight = 0.0
    for row, column in np.ndindex(labels.shape):
        if labels[row, column] >= 0:
            p = min(max(probabilities[row, column], 1e-15), 1 - 1e-15)
            total += (2 if column == 0 else 1) * -(math.log(p) if labels[row, column] else math.log1p(-p))
            weight += 2 if column == 0 else 1
    return total / weight


def brute_aucs(labels: np.ndarray, probabilities: np.ndarray) -> list[float]:
    return [float(roc_auc_score(labels[:, at], probabilities[:, at])) for at in range(labels.shape[1])]


@pytest.mark.slow
def test_paired_differences_are_those_of_a_plain_loop():
    one, other = predictions(2.0, seed=1, patients=range(12)), predictions(2.5, seed=2, patients=range(12))
    (gap,) = compare([run("a", one), run("b", other)], DRAWS, 3, False)["differences"]
    drawn = {"log_loss": [], "auc": [], "auc_any": []}
    for counts in bootstrap.patient_counts(12, DRAWS, 3, DRAWS):
        for row in counts:
            slices = np.repeat(np.arange(len(one)), row[one.patients])
            labels, a, b = one.labels[slices], one.probabilities[slices], other.probabilities[slices]
            areas = np.array(brute_aucs(labels, a)) - brute_aucs(labels, b)
            drawn["log_loss"].append(brute_log_loss(labels, a) - brute_log_loss(labels, b))
            drawn["auc"].append(areas.mean())
            drawn["auc_any"].append(areas[0])
    assert gap["name"] == "a"  # b has the lower log loss
    for metric, values in drawn.items():
        found = gap["values"][metric]
        carriers = 6 if metric != "log_loss" else 12
        low, high = bootstrap.interval([found["value"], *values], bootstrap.DIFFERENCE, carriers)
        assert (found["low"], found["high"]) == pytest.approx((low, high), abs=1e-9)
        assert found["worse"] == np.mean(np.array(values) > 0 if metric == "log_loss" else np.array(values) < 0)


def test_values_are_those_of_the_report():
    own = predictions(1.5, seed=4, patients=range(20))
    own = dataclasses.replace(own, labels=np.where(own.patients[:, None] % 7 == 0, -1, own.labels).astype(np.int8))
    evaluated = run("a", own)
    chosen = {name: {"youden": evaluated.threshold, "even": 0.5} for name in NAMES}
    report = measures.measure(own, own.probabilities, chosen, chosen, evaluated.prevalence, DRAWS, 0)
    whole = compare([evaluated, run("b", own)], DRAWS, 0, False)["models"][0]["values"]
    expected = {
        "log_loss": report["log_loss"],
        "skill": report["skill"]["overall"]["skill"],
        "auc": report["auc"],
        "average_precision": report["average_precision"],
        **{f"auc_{name}": report["labels"][name]["auc"] for name in NAMES},
        **{f"average_precision_{name}": report["labels"][name]["average_precision"] for name in NAMES},
        "sensitivity_any": report["labels"]["any"]["sensitivity"],
        "specificity_any": report["labels"]["any"]["specificity"],
        "calibration_error_any": report["labels"]["any"]["calibration_error"],
        "study_auc_any": report["studies_level"]["any"]["auc"],
    }
    assert set(expected) == set(whole) == set(comparison.metrics(NAMES, "any"))
    for metric, found in whole.items():
        for key in ("value", "low", "high"):
            assert found[key] == pytest.approx(expected[metric][key], abs=1e-12), (metric, key)


def test_the_metrics_begin_with_any_wherever_it_stands():
    assert list(comparison.metrics(["x", "all"], "all"))[:5] == ["log_loss", "skill", "auc", "auc_all", "auc_x"]


# readings


@pytest.mark.parametrize(
    ("drawn", "sign", "reading", "worse"),
    [
        ([0.2, 0.1, 0.2, 0.3], -1, "worse", 1.0),  # a higher loss
        ([0.2, 0.1, 0.2, 0.3], 1, "better", 0.0),  # a higher area
        ([-0.2, -0.1, -0.2, -0.3], 1, "worse", 1.0),
        ([-0.2, -0.1, -0.2, -0.3], -1, "better", 0.0),
        ([0.1, -0.1, 0.2, 0.3], -1, "unclear", 2 / 3),
        ([0.0, 0.0, 0.0, 0.0], -1, "unclear", 0.0),  # an interval that ends at 0 includes it
        ([math.nan] * 4, -1, "unclear", math.nan),
        ([0.1, 0.1, math.nan, math.nan], -1, "unclear", 1.0),  # most resamples are not defined
    ],
)
def test_reading_of_differences(drawn, sign, reading, worse):
    found = difference(np.array(drawn), sign, 30, 0.95)
    assert found["reading"] == reading
    assert found["worse"] == pytest.approx(worse, nan_ok=True)


def test_a_corrected_level_and_fewer_patients_are_wider():
    drawn = np.r_[0.022, 0.012, 0.032]
    assert difference(drawn, -1, 30, 0.95)["reading"] == "worse"
    assert difference(drawn, -1, 30, 0.99)["reading"] == "unclear"
    assert difference(drawn, -1, 6, 0.95)["reading"] == "unclear"


@pytest.mark.parametrize(
    ("patients", "words"),
    [
        (1, "1 patient with a known label is too few (20 at least)"),
        (19, "19 patients with a known label are too few (20 at least)"),
        (20, ""),
    ],
)
def test_too_few_patients_show_nothing(patients, words):
    assert too_few(patients) == words


def test_few_patients_never_make_a_claim():
    runs = [run("a", predictions(0.5, 1, range(4))), run("b", predictions(6.0, 2, range(4)))]
    found = compare(runs, DRAWS, 0, False)
    assert found["too_few"].startswith("4 patients")
    assert {value["reading"] for value in found["differences"][0]["values"].values()} == {"unclear"}


@pytest.mark.parametrize(("known", "claimed"), [(19, False), (20, True)])
def test_patients_without_a_known_label_are_not_counted(known, claimed):
    def labelled(own):
        labels = np.where(own.patients[:, None] < known, own.labels, -1).astype(np.int8)
        return dataclasses.replace(own, labels=labels)

    found = compare(
        [run(name, labelled(predictions(skill, 1))) for name, skill in (("a", 1), ("b", 5))], DRAWS, 0, False
    )
    assert (found["patients"], found["known_patients"]) == (40, known)
    assert found["differences"][0]["values"]["log_loss"]["reading"] == ("worse" if claimed else "unclear")
    assert bool(found["too_few"]) != claimed


def only_bleeding(own, patients):
    """`own` without the other patients that bleed; 20 do not."""
    return own.take((own.patients % 2 == 0) | np.isin(own.patients, patients))


@pytest.mark.parametrize(("positive", "has"), [(range(1, 11, 2), False), (range(1, 13, 2), True)])
def test_few_positive_patients_have_a_value_without_interval_or_reading(positive, has):
    runs = [run(name, only_bleeding(predictions(skill, 1), positive)) for name, skill in (("a", 0.5), ("b", 6.0))]
    found = compare(runs, DRAWS, 0, False)
    values = found["models"][0]["values"]
    for metric in ("auc", "auc_any", "average_precision_any", "sensitivity_any", "study_auc_any"):
        assert not math.isnan(values[metric]["value"])
        assert math.isnan(values[metric]["low"]) != has
        assert math.isnan(values[metric]["high"]) != has
    for metric in ("log_loss", "specificity_any", "calibration_error_any"):
        assert not math.isnan(values[metric]["low"])
    gaps = found["differences"][0]["values"]
    assert gaps["log_loss"]["reading"] == "worse"
    assert gaps["auc_any"]["reading"] == ("worse" if has else "unclear")
    assert math.isnan(gaps["auc_any"]["worse"]) != has
    assert (NO_INTERVAL in found["notes"]) != has


NO_INTERVAL = "A value stands without an interval where fewer than 6 patients carry what it needs."


def test_equal_predictions_differ_nowhere():
    own = predictions()
    (gap,) = compare([run("a", own), run("b", own)], DRAWS, 0, False)["differences"]
    assert gap["name"] == "b"
    assert gap["values"]["log_loss"] == {"value": 0.0, "low": 0.0, "high": 0.0, "worse": 0.0, "reading": "unclear"}


def test_three_runs_are_corrected_for_three_pairs():
    runs = [run(name, predictions(skill, seed)) for seed, (name, skill) in enumerate({"a": 1, "b": 3, "c": 2}.items())]
    found = compare(runs, 200, 0, False)
    assert (found["best"], found["pairs"]) == ("b", 3)
    assert found["pair_level"] == pytest.approx(1 - 0.05 / 3)
    assert [gap["name"] for gap in found["differences"]] == ["a", "c"]
    alone = compare([runs[0], runs[1]], 200, 0, False)["differences"][0]["values"]["log_loss"]
    wide = found["differences"][0]["values"]["log_loss"]
    assert wide["low"] < alone["low"] < alone["high"] < wide["high"]


def test_unknown_labels_leave_no_best():
    own = predictions()
    own = dataclasses.replace(own, labels=np.full_like(own.labels, -1))
    found = compare([run("a", own), run("b", own)], DRAWS, 0, False)
    assert found["best"] is None
    assert found["differences"] == []
    assert found["models"][0]["roc"] == [[], []]


# folds


@pytest.mark.slow
def test_pooled_folds_are_compared_as_one_run_on_all_slices():
    runs = [*folds("a", 2.0, 10), *folds("b", 2.6, 30)]
    found = compare(runs, DRAWS, 0, False)
    pools = [model.parts[0].predictions for model in group(runs)]
    as_runs = compare([run(name, pool) for name, pool in zip("ab", pools)], DRAWS, 0, False)
    assert [model["name"] for model in found["models"]] == ["a (4 folds)", "b (4 folds)"]
    assert found["differences"][0]["values"] == as_runs["differences"][0]["values"]
    assert found["slices"] == 480


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_spread_over_folds_is_that_of_each_run(split):
    runs = folds("a", 2.0, 10, split=split)
    value = compare(runs, DRAWS, 0, False)["models"][0]["values"]["log_loss"]
    each = [brute_log_loss(one.predictions.labels, one.predictions.probabilities) for one in runs]
    assert list(value["of_runs"]) == [one.name for one in runs]
    assert list(value["of_runs"].values()) == pytest.approx(each)
    assert (value["mean"], value["sd"]) == pytest.approx((np.mean(each), np.std(each, ddof=1)))
    assert value["value"] == pytest.approx(np.mean(each))  # pooled: the folds are of equal size
    assert value["low"] < value["value"] < value["high"]


def test_folds_on_one_split_are_averaged_in_each_resample():
    runs = folds("a", 2.0, 10, count=2, split="test")
    drawn = [
        comparison.part_values(group([run("x", one.predictions)])[0].parts[0], NAMES, DRAWS, 0)["auc_any"]
        for one in runs
    ]
    value = compare(runs, DRAWS, 0, False)["models"][0]["values"]["auc_any"]
    expected = bootstrap.interval(np.mean(drawn, axis=0), bootstrap.SHARE, 20)
    assert (value["low"], value["high"]) == pytest.approx(expected)


def test_the_mean_area_of_folds_is_over_labels_that_every_fold_has():
    first, second = folds("a", 2.0, 10, count=2)
    labels = second.predictions.labels.copy()
    labels[:, 1] = 0  # no epidural slice in this fold
    second = dataclasses.replace(second, predictions=dataclasses.replace(second.predictions, labels=labels))
    values = compare([first, second], DRAWS, 0, False)["models"][0]["values"]
    for area in ("auc", "average_precision"):
        parts = [values[f"{area}_{name}"]["of_runs"] for name in ("any", "subdural")]
        for one in (first, second):
            assert values[area]["of_runs"][one.name] == pytest.approx(np.mean([part[one.name] for part in parts]))
    assert math.isnan(values["auc_epidural"]["of_runs"]["a-fold1"])


def test_folds_that_share_no_label_have_no_mean_area():
    runs = folds("a", 2.0, 10, count=2)
    for one, kept in zip(runs, (1, 2)):
        one.predictions.labels[:, [at for at in range(3) if at != kept]] = 0
    values = compare(runs, DRAWS, 0, False)["models"][0]["values"]
    assert np.isnan(list(values["auc"]["of_runs"].values())).all()
    assert not math.isnan(values["auc"]["value"])  # pooled, both labels have an area


def test_folds_that_share_no_slice_with_the_others_fall_out():
    other = run("b", predictions(2.6, 30, range(18)), split="validation")
    found = compare([*folds("a", 2.0, 10), other], DRAWS, 0, True)
    assert list(found["models"][0]["values"]["log_loss"]["of_runs"]) == ["a-fold0", "a-fold1"]
    assert any("a-fold2, a-fold3 have none of the slices" in note for note in found["notes"])


def test_an_averaged_roc_lies_between_those_of_its_runs():
    found = compare(folds("a", 2.0, 10, count=2, split="test"), DRAWS, 0, False)["models"][0]["roc"]
    rates, heights = np.array(found)
    assert (rates[0], heights[0], rates[-1], heights[-1]) == (0, 0, 1, 1)
    area = float(np.sum(np.diff(rates) * (heights[1:] + heights[:-1]) / 2))
    aucs = [
        brute_aucs(one.predictions.labels, one.predictions.probabilities)[0] for one in folds("a", 2.0, 10, 2, "test")
    ]
    assert area == pytest.approx(np.mean(aucs), abs=0.01)


# beside the numbers


@pytest.mark.slow
def test_notes_tell_what_a_reader_must_know():
    incomplete = compare(folds("a", 2.0, 1)[:3], DRAWS, 0, False)["notes"]
    assert incomplete[0] == "a (3 of 4 folds): only fold 0, 1, 2 of 4; the numbers stand for these alone."
    one, other = run("a", predictions(patients=range(12))), run("b", predictions(patients=range(15)), trained_on="x")
    notes = compare([one, other], DRAWS, 0, True)["notes"]
    assert notes == [
        "The runs differ in slices (a 144, b 180, all share 144). Only what they share is compared: 144 slices.",
        "The runs were trained on different data sets.",
        "b: trained on another data set than the one evaluated on; see to it that no patient is in both.",
        comparison.LUCK,
    ]
    clean = [run("a", predictions()), run("b", predictions())]
    assert compare(clean, 1000, 0, False)["notes"] == [comparison.LUCK]


def test_a_run_without_skill_is_noted_first():
    knowing = predictions(2.0, 1)
    guessing = dataclasses.replace(knowing, probabilities=np.full_like(knowing.probabilities, 0.5))
    found = compare([run("a", knowing), run("b", guessing)], DRAWS, 0, False)
    assert [model["values"]["skill"]["low"] > 0 for model in found["models"]] == [True, False]
    assert found["notes"][0].startswith("b shows no skill over the prevalence: -")
    few = compare([run(name, predictions(2.0, 1, range(4))) for name in "ab"], DRAWS, 0, False)["notes"]
    assert few[0] == "a: whether it knows more than the prevalence cannot be told; its skill has no interval."


def test_facts_are_means_over_folds_and_settings_are_told_where_they_differ():
    train = [
        {"epochs": 4, "seconds": 10.0, "images_per_s": None},
        {"epochs": 6, "seconds": 20.0, "images_per_s": 100.0},
    ]
    runs = [
        dataclasses.replace(one, result={**one.result, "what": {**one.what, "train": fact}})
        for one, fact in zip(folds("a", 2.0, 1, count=2), train)
    ]
    whole = run("b", predictions(), split="validation", settings={"sampling": "natural", "name": "a"})
    found = compare([*runs, whole], DRAWS, 0, False)
    facts = found["models"][0]["facts"]
    assert (facts["epochs"], facts["seconds"], facts["images_per_s"]) == (5.0, 15.0, 100.0)
    assert found["settings"] == {
        "sampling": ["balanced", "natural"],
        "folds": ["2", "0"],
        "seed": ["1", "0"],
    }


def test_history_of_folds_is_their_mean_over_common_epochs():
    first, second = folds("a", 2.0, 1, count=2)
    second = dataclasses.replace(second, history=[{"epoch": 1, "val_log_loss": 1.0, "val_auc": math.nan}])
    (row,) = compare([first, second], DRAWS, 0, False)["models"][0]["history"]
    assert row["val_log_loss"] == pytest.approx((1 / 3 + 1) / 2)
    assert math.isnan(row["val_auc"])


def test_the_same_runs_give_the_same_result():
    runs = [run("a", predictions(seed=1)), run("b", predictions(seed=2))]
    first, second = (json.dumps(compare(runs, DRAWS, 1, False)) for _ in range(2))
    assert first == second
    assert first != json.dumps(compare(runs, DRAWS, 2, False))
