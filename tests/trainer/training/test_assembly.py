"""Data, model and optimizer of a run from its settings."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ich_tfrecords.labels.table import stratum_indices
from trainer.data.dataset import open_dataset
from trainer.data.input_pipeline import Share
from trainer.results import joint
from trainer.results.probability import sigmoid
from trainer.shell.problems import WrongUse
from trainer.training import assembly, hparams, strategy
from trainer.training.strategy import Devices

TRAIN = 138  # slices of the split: 9 epidural, 20 intraventricular, 11, 13, 17, 68 none


@pytest.fixture(scope="module")
def data(tiny_dataset):
    return open_dataset(str(tiny_dataset))


@pytest.fixture(scope="module")
def parts(data):
    return {name: data.split(name) for name in ("train", "validation", "test")}


def settings(**sets):
    return hparams.resolve("cnn", None, {"batch_size": 16, **sets})


def devices(replicas: int = 1) -> Devices:
    return Devices("default", None, "float32", Share.whole(replicas), True, 1)


def test_the_splits_that_are_used(data):
    assert list(assembly.splits(data, settings())) == ["test", "train", "validation"]
    alone = settings(validation_split="", test_split="")
    assert list(assembly.splits(data, alone)) == ["train"]


def test_folds_take_the_place_of_the_splits_they_are_drawn_from(data):
    with_folds = settings(folds=3, fold=1)
    found = assembly.splits(data, with_folds)
    assert {name: part.split for name, part in found.items()} == {
        "test": "test", "train": "all but fold 1 of 3", "validation": "fold 1 of 3",
    }  # fmt: skip
    assert len(found["train"]) + len(found["validation"]) == len(data.split("train")) + len(data.split("validation"))
    assert assembly.split(data, with_folds, "test").split == "test"


def with_digests(data, digests: dict[str, str]):
    """The data set with other pixel digests, by SOP UID."""
    uids, own = (data.slices[name].to_pylist() for name in ("sop_uid", "pixel_digest"))
    column = pa.array([digests.get(uid, digest) for uid, digest in zip(uids, own)])
    at = data.slices.schema.get_field_index("pixel_digest")
    return dataclasses.replace(data, slices=data.slices.set_column(at, "pixel_digest", column))


def test_pixels_that_are_held_out_are_not_trained_on(data, parts):
    uids = {name: part.table["sop_uid"].to_pylist() for name, part in parts.items()}
    alike = {uids["train"][3]: "a", uids["train"][7]: "a", uids["validation"][0]: "a"}
    alike |= {uids["train"][5]: "b", uids["test"][2]: "b"}
    alike |= {uids["train"][8]: "c", uids["train"][9]: "c"}  # both are trained on
    alike |= {uids["validation"][4]: "d", uids["test"][4]: "d"}
    again = with_digests(data, alike)
    found = assembly.splits(again, settings())
    assert assembly.left_out(again, settings(), found) == 3
    left = [uid for at, uid in enumerate(uids["train"]) if at not in (3, 5, 7)]
    assert found["train"].table["sop_uid"].to_pylist() == left
    assert found["train"].labels.tolist() == np.delete(parts["train"].labels, [3, 5, 7], axis=0).tolist()
    assert {name: found[name].table["sop_uid"].to_pylist() for name in ("validation", "test")} == {
        name: uids[name] for name in ("validation", "test")
    }
    one = assembly.split(again, settings(test_split=""), "train").table["sop_uid"].to_pylist()
    assert one == [uid for at, uid in enumerate(uids["train"]) if at not in (3, 7)]
    alone = settings(validation_split="", test_split="")
    assert assembly.split(again, alone, "train").table["sop_uid"].to_pylist() == uids["train"]
    assert assembly.left_out(again, alone, assembly.splits(again, alone)) == 0


def test_pixels_of_the_fold_that_is_held_out_are_not_trained_on(data):
    with_folds = settings(folds=3, fold=1)
    train, held = (
        assembly.split(data, with_folds, name).table["sop_uid"].to_pylist() for name in ("train", "validation")
    )
    again = with_digests(data, {train[0]: "a", held[0]: "a"})
    assert assembly.split(again, with_folds, "train").table["sop_uid"].to_pylist() == train[1:]
    assert assembly.left_out(again, with_folds, assembly.splits(again, with_folds)) == 1
    assert assembly.split(again, settings(folds=3, fold=2), "validation").split == "fold 2 of 3"


@pytest.mark.parametrize(
    ("sets", "size", "steps"),
    [
        ({"sampling": "natural"}, 138, 9),
        ({"sampling": "natural", "batch_size": 138}, 138, 1),
        ({"sampling": "natural", "steps_per_epoch": 2}, 32, 2),
        ({}, 144, 9),
        ({"batch_size": 69}, 138, 2),
        ({"steps_per_epoch": 100}, 1600, 100),
    ],
)
def test_size_of_an_epoch(sets, size, steps, parts):
    plan = assembly.data_of(settings(**sets), parts, devices()).plan
    assert (plan.size, plan.steps) == (size, steps)


@given(st.integers(1, TRAIN), st.integers(0, 20), st.sampled_from(["balanced", "sqrt", "natural"]))
@hypothesis_settings(max_examples=50, deadline=None)
def test_an_epoch_is_whole_batches_or_every_slice(parts, batch_size, steps, policy):
    given_settings = settings(batch_size=batch_size, steps_per_epoch=steps, sampling=policy)
    if policy == "natural" and steps > TRAIN // batch_size:
        with pytest.raises(WrongUse, match=f"makes {TRAIN // batch_size} steps of {batch_size}"):
            assembly.data_of(given_settings, parts, devices())
        return
    plan = assembly.data_of(given_settings, parts, devices()).plan
    if steps:
        assert plan.steps == steps
    elif policy == "natural":
        assert plan.size == TRAIN
    else:
        assert plan.size % batch_size == 0
        assert TRAIN <= plan.size < TRAIN + batch_size


def test_the_plan_is_the_settings(parts):
    sets = {"seed": 7, "accumulate": 2, "flip": True, "rotate_deg": 9, "shift": 0.2, "sampling": "sqrt"}
    sets |= {"scale": 0.3, "crop": 0.4, "contrast": 0.5, "brightness": 0.6, "erase": 0.7, "augment_on": "device"}
    plan = assembly.data_of(settings(**sets), parts, devices(replicas=4)).plan
    assert (plan.seed, plan.policy, plan.quantum, plan.epoch) == (7, "sqrt", 8, 0)
    assert dataclasses.astuple(plan.augmentation) == (True, 9.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    assert plan.in_step
    assert not assembly.data_of(settings(), parts, devices()).plan.in_step
    assert sum(plan.shares.values()) == pytest.approx(1)


def test_odds_of_a_balanced_draw_are_those_of_the_counts(parts):
    """Each stratum is a sixth of the draw; the 32 slices that stand beside those counted move it a little."""
    found = assembly.data_of(settings(), parts, devices())
    odds, train = found.odds, found.train.slices
    every = joint.combinations(odds.names, odds.any)
    strata = stratum_indices(every, train.spec.labels)
    counted = np.array([(train.labels == one).all(1).sum() for one in every])
    per_slice = np.array([1 / (train.stratum == index).sum() for index in range(6)])
    seen = counted > 0
    assert seen.sum() >= 6
    np.testing.assert_allclose(odds.natural[seen], counted[seen] / len(train), atol=32 / len(train))
    ratio = odds.drawn / odds.natural
    np.testing.assert_allclose(ratio / ratio[0], per_slice[strata] / per_slice[strata[0]])
    assert (odds.natural > 0).all()  # none is taken for impossible


@pytest.mark.parametrize("sets", [{"sampling": "natural"}, {"sampling": "explicit", "proportions": "those there are"}])
def test_a_natural_draw_is_left_as_it_is(parts, sets):
    if "proportions" in sets:
        sets = {**sets, "proportions": parts["train"].stratum_counts}
    odds = assembly.odds_of(settings(**sets), parts["train"])
    logits = np.random.default_rng(0).normal(size=(9, 6))
    np.testing.assert_array_equal(odds.log_odds(logits), logits)


def test_a_stratum_without_a_share_keeps_its_place_in_the_natural_odds(parts):
    """`none` is never drawn: no logit tells of it, so half of each slice is none, and no hemorrhage is certain."""
    train = parts["train"]
    shares = {name: 1.0 for name in train.stratum_counts if name != "none"}
    odds = assembly.odds_of(settings(sampling="explicit", proportions=shares), train)
    none = train.stratum_counts["none"] / len(train)
    found = sigmoid(odds.log_odds(np.full((1, 6), 4.0)))[0]
    assert found[0] == pytest.approx(1 - none, abs=0.02)
    assert (found[1:] < 1 - none + 0.02).all()


def test_more_kinds_than_the_joint_holds_are_corrected_one_by_one(parts, monkeypatch):
    monkeypatch.setattr(joint, "MOST_KINDS", 4)
    train = parts["train"]
    odds = assembly.odds_of(settings(), train)
    rate = np.array([(train.labels[train.stratum == index] == 1).mean(0) for index in range(6)]).mean(0)
    share = (train.labels == 1).mean(0)
    np.testing.assert_allclose(odds.shift, np.log(rate / (1 - rate)) - np.log(share / (1 - share)))
    assert not len(odds.drawn)
    np.testing.assert_allclose(odds.log_odds(np.zeros((1, 6))), -odds.shift[None])


def test_a_label_that_no_slice_has(data, monkeypatch):
    real = data.split("train")
    without = real.labels.copy()
    without[:, 1] = 0
    monkeypatch.setattr(type(data), "split", lambda self, name: dataclasses.replace(real, labels=without))
    alone = {"validation_split": "", "test_split": ""}
    with pytest.raises(WrongUse, match="no slice of split train is positive for epidural, so no model can learn it"):
        assembly.splits(data, settings(**alone))
    assert assembly.splits(data, settings(**alone, absent_labels=True))


def test_a_batch_larger_than_the_split(parts):
    with pytest.raises(WrongUse, match="batch_size is 139, but split train has 138 slices to train on; lower it"):
        assembly.data_of(settings(batch_size=139), parts, devices())


def test_the_network(data):
    chosen = settings(any_weight=3, label_smoothing=0.1, focal_gamma=2, accumulate=4, precision="mixed_float16")
    made = assembly.network(chosen, data, strategy.prepare(chosen, {}), 9)
    strategy.prepare(settings(), {})
    assert made.model.output_shape == (None, 6)
    assert made.backbone is None
    assert type(made.update.optimizer).__name__ == "LossScaleOptimizer"
    assert made.update.optimizer.built
    objective = made.objective
    assert objective.label_weights.tolist() == [3, 1, 1, 1, 1, 1]
    assert (objective.smoothing, objective.gamma, objective.accumulate, objective.batch_size) == (0.1, 2.0, 4, 16)
    assert made.model.count_params() == assembly.build_model(chosen, data, "none").count_params()


def test_freezing_needs_a_pretrained_part(data):
    chosen = settings(freeze_epochs=1)
    with pytest.raises(WrongUse, match="freeze_epochs is 1, but cnn has no pretrained part; set it to 0"):
        assembly.network(chosen, data, strategy.prepare(chosen, {}), 9)
