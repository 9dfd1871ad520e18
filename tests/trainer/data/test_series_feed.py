"""Batches of series: labels and strata, every slice once, the same draws on any replicas, blur, what is no input."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from series_splits import EPIDURAL, NONE, NOT_EPIDURAL, STRATA, SUBDURAL, UNKNOWN, feed_of, plan_of

from trainer.data import series
from trainer.data.augment import Augmentation
from trainer.data.input_pipeline import Share
from trainer.data.series_feed import INPUTS, Blur

BOTH = ((0.0, 0.0), (0.1, 0.0), (0.0, 0.25))  # noise, dropout
BLUR = Blur(noise=0.1, dropout=0.3, slice_dropout=0.4)
MIXED = [
    [NONE] * 3, [NONE, EPIDURAL, NONE, NONE], [SUBDURAL], [NONE] * 2, [UNKNOWN, NONE], [UNKNOWN] * 4,
    [SUBDURAL, EPIDURAL], [NONE] * 5, [NONE], [SUBDURAL, UNKNOWN, NONE], [NONE] * 2,
]  # fmt: skip
SHARES = pytest.mark.parametrize(
    "parts",
    [[Share.whole(2)], [Share(2, 0, 1), Share(2, 1, 1)], [Share(4, 0, 2), Share(4, 2, 2)]],
    ids=["1x2", "2x1", "2x2"],
)


def read(batches) -> list[dict[str, np.ndarray]]:
    return list(batches.as_numpy_iterator())


WHOLE = Share.whole()


def trained(feed, plan, share: Share = WHOLE, skip_steps: int = 0) -> list[dict[str, np.ndarray]]:
    return read(feed.train_batches(plan, share, skip_steps))


def samples(batches) -> list[tuple]:
    """What each series of the batches holds where its mask is True, as plain values."""
    found = []
    for batch in batches:
        for at, mask in enumerate(batch["mask"]):
            behind = ~mask
            assert not batch["vectors"][at, behind].any()
            assert (batch["labels"][at, behind] == -1).all()
            assert not batch["place"][at, behind].any()
            parts = [batch[name][at, mask].tolist() for name in ("vectors", "place", "labels")]
            found.append((*parts, float(batch["share"][at]) if "share" in batch else None))
    return found


# what a series is


def test_labels_and_strata_of_series():
    feed = feed_of([[NONE, EPIDURAL, SUBDURAL], [NONE] * 2, [UNKNOWN, NONE], [UNKNOWN] * 2, [NOT_EPIDURAL, SUBDURAL]])
    assert feed.labels.tolist() == [
        [1, 1, 0, 0, 0, 1],
        [0] * 6,
        [-1] * 6,  # what is unknown may be there
        [-1] * 6,
        [1, 0, -1, -1, -1, 1],
    ]
    assert feed.labels.dtype == feed.strata.dtype == np.int8
    assert [STRATA[at] for at in feed.strata] == ["epidural", "none", "none", "unlabelled", "subdural"]
    assert {name: count for name, count in feed.stratum_counts.items() if count} == {
        "epidural": 1, "none": 2, "subdural": 1
    }  # fmt: skip
    assert "unlabelled" not in feed.stratum_counts
    assert feed.epoch_size(Share.whole()) == 4
    assert feed.slices_a_sample == 11 / 5


# evaluation


@pytest.mark.slow
@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=9),
    st.integers(1, 8),
    st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2), (3, 1)]),
)
def test_every_slice_once_on_any_replicas(lengths, batch_size, cluster):
    feed, (replicas, count) = feed_of([[EPIDURAL] * length for length in lengths]), cluster
    rows, steps = Counter(), set()
    for first in range(0, replicas, count):
        share = Share(replicas, first, count)
        batches = read(feed.evaluation_batches(batch_size, share))
        steps.add(len(batches))
        assert len(batches) == feed.evaluation_steps(batch_size, share) * count
        for batch in batches:
            real = batch["weight"] > 0
            np.testing.assert_array_equal(real, batch["mask"])
            assert (batch["labels"][~real] == -1).all()
            np.testing.assert_array_equal(batch["labels"][real], feed.slices.labels[batch["row"][real]])
            np.testing.assert_array_equal(batch["vectors"][real], feed.views[0].rows(batch["row"][real]))
            rows.update(batch["row"][real].tolist())
            assert {len(batch["mask"])} == {-(-batch_size // replicas)}
    assert rows == Counter(range(len(feed.slices)))
    assert len(steps) == 1


def test_a_batch_for_evaluation():
    feed = feed_of([[NONE, EPIDURAL, NONE], [SUBDURAL]])
    (batch,) = read(feed.evaluation_batches(3, Share.whole()))
    assert batch["series"].tolist() == [0, 1, -1]
    assert batch["mask"].tolist() == [[True] * 3, [True, False, False], [False] * 3]
    assert batch["row"][batch["mask"]].tolist() == feed.series.rows.tolist()
    positions = feed.slices.table["position_mm"].to_numpy()[feed.series[0]]
    np.testing.assert_array_equal(batch["place"][0], series.place(positions))
    assert batch["place"][1].tolist() == [[0, 0, 0.5], [0, 0, 0], [0, 0, 0]]
    kinds = {name: values.dtype for name, values in batch.items()}
    assert kinds == {
        "vectors": np.float16, "place": np.float32, "mask": bool, "labels": np.int64, "row": np.int64,
        "weight": np.float32, "series": np.int64,
    }  # fmt: skip


# training


@pytest.mark.slow
def test_a_natural_epoch_has_every_labelled_series_once_and_a_short_last_batch():
    feed = feed_of(MIXED)
    batches = trained(feed, plan_of(feed))
    assert [len(batch["mask"]) for batch in batches] == [4, 4, 2]
    assert set(batches[0]) == {*INPUTS, "labels", "study", "share"}
    found = Counter(tuple(sorted(first for first, *_ in vectors)) for vectors, *_ in samples(batches))
    assert found == Counter(tuple(sorted((rows + 1).tolist())) for at, rows in enumerate(feed.series) if at != 5)


@pytest.mark.slow
def test_slices_without_labels_are_neighbours():
    """They are seen, and their labels stay unknown; a series of nothing else is never drawn."""
    feed = feed_of([[UNKNOWN, NONE, UNKNOWN], [UNKNOWN] * 2])
    (batch,) = trained(feed, plan_of(feed))
    assert batch["vectors"][0, :, 0].tolist() == (feed.series[0] + 1).tolist()
    assert batch["mask"].tolist() == [[True] * 3]
    assert batch["labels"][0].tolist() == [list(UNKNOWN), list(NONE), list(UNKNOWN)]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["natural", "balanced"])
def test_skipping_steps_is_dropping_them(policy):
    feed = feed_of(MIXED, BLUR)
    plan = plan_of(feed, policy, 10, epoch=3, augmentation=Augmentation(True, 0.0, 0.0))
    whole = trained(feed, plan)
    for skipped in (1, 2, 3):
        for one, other in zip(trained(feed, plan, skip_steps=skipped), whole[skipped:], strict=True):
            assert one.keys() == other.keys()
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.slow
@SHARES
def test_a_step_has_the_same_series_on_any_replicas_and_workers(parts):
    feed = feed_of(MIXED, BLUR)
    plan = plan_of(feed, "balanced", 12, quantum=4, augmentation=Augmentation(True, 0.0, 0.0))
    alone = trained(feed, plan)
    workers = [trained(feed, plan, share) for share in parts]
    for step, batch in enumerate(alone):
        pieces = [
            part
            for share, batches in zip(parts, workers)
            for part in batches[step * share.count : (step + 1) * share.count]
        ]
        assert sorted(samples(pieces), key=repr) == sorted(samples([batch]), key=repr)


@pytest.mark.slow
def test_what_a_batch_is_padded_to_changes_no_draw():
    """Noise and parts left out are the same numbers, beside longer series or in batches of one length."""
    feed = feed_of(MIXED, BLUR)
    plan = plan_of(feed, "balanced", 12)
    longer = dataclasses.replace(feed, length=23)
    batches = trained(longer, plan)
    assert {batch["mask"].shape[1] for batch in batches} == {23}
    assert samples(batches) == samples(trained(feed, plan))


@pytest.mark.slow
def test_each_epoch_and_each_place_in_it_has_its_own_noise():
    feed = feed_of([[NONE] * 3], Blur(0.1, 0.0, 0.0))
    batches = [trained(feed, plan_of(feed, "balanced", 4, epoch=epoch))[0]["vectors"] for epoch in (0, 1)]
    both = np.concatenate(batches)
    noise = {tuple(one.ravel().tolist()) for one in both}
    assert len(noise) == 8


@pytest.mark.slow
def test_noise_is_in_deviations_and_dropout_a_part():
    plain, noisy, holed = (
        trained(feed, plan_of(feed))[0]["vectors"].astype(np.float64)
        for feed in (feed_of([[NONE] * 50] * 8, Blur(noise, dropout, 0.0)) for noise, dropout in BOTH)
    )
    noise = (noisy - plain) / plain.std(-1, keepdims=True)
    assert 0.09 < noise.std() < 0.11
    assert abs(noise.mean()) < 0.01
    assert 0.2 < (holed == 0).mean() < 0.3
    np.testing.assert_array_equal(holed[holed != 0], plain[holed != 0])


def test_slices_left_out_lie_there_as_a_gap_and_one_stays():
    feed = feed_of([[NONE] * 6, [NONE]] * 10, Blur(0.0, 0.0, 0.9))
    height = feed.slices.table["position_mm"].to_numpy()
    lengths = Counter()
    for vectors, place, *_ in samples(trained(feed, plan_of(feed))):
        rows = np.array([int(one[0]) - 1 for one in vectors])
        assert len(rows) >= 1
        lengths[len(rows)] += 1
        np.testing.assert_array_equal(np.array(place, np.float32), series.place(height[rows]))
    assert lengths[1] < 20
    assert max(lengths) < 6
    feed = feed_of([[NONE] * 40] * 10, Blur(0.0, 0.0, 0.25))
    mild = samples(trained(feed, plan_of(feed)))
    assert 0.65 < np.mean([len(vectors) for vectors, *_ in mild]) / 40 < 0.85


def test_mirror_images_are_drawn_where_the_plan_flips():
    feed = feed_of([[NONE] * 2] * 60)
    for flip in (False, True):
        plan = plan_of(feed, augmentation=Augmentation(flip, 0.0, 0.0))
        found = samples(trained(feed, plan))
        signs = [set(np.sign([one[0] for one in vectors])) for vectors, *_ in found]
        assert all(len(of_series) == 1 for of_series in signs)  # a series is turned as a whole
        turned = sum(-1 in of_series for of_series in signs)
        assert 15 < turned < 45 if flip else turned == 0


def test_the_slices_of_a_step_are_named():
    feed = feed_of(MIXED)
    plan = plan_of(feed)
    uids = np.array(feed.slices.table["sop_uid"].to_pylist())
    for step, batch in enumerate(trained(feed, plan)):
        rows = batch["vectors"][..., 0][batch["mask"]].astype(int) - 1
        assert sorted(feed.slices_of_step(plan, Share.whole(), step)) == sorted(uids[rows])


# how much a series counts


def weighted(batches) -> tuple[np.ndarray, float]:
    """Mean labels (the greatest of each series) by `share`, and the mean share."""
    found = [(np.array(labels).max(0), share) for _, _, labels, share in samples(batches)]
    labels, shares = (np.array(one, float) for one in zip(*found))
    return np.average(labels, axis=0, weights=shares), float(shares.mean())


@pytest.mark.parametrize(
    ("policy", "explicit"),
    [("natural", {}), ("balanced", {}), ("sqrt", {}), ("explicit", {"none": 1, "epidural": 5, "subdural": 2})],
)
def test_the_weighted_mean_over_drawn_series_is_that_of_nature(policy, explicit):
    """The oracle: the share of each label among all labelled series."""
    feed = feed_of([[NONE] * 2] * 36 + [[NONE, EPIDURAL]] * 4 + [[SUBDURAL]] * 16 + [[UNKNOWN]] * 9)
    plan = plan_of(feed, policy, 0 if policy == "natural" else 48, explicit=explicit)  # whole numbers of each stratum
    mean, share = weighted(trained(feed, plan))
    np.testing.assert_allclose(mean, feed.labels[feed.labels[:, 0] >= 0].mean(0), atol=1e-6)
    assert share == pytest.approx(1)
    if policy != "natural":
        drawn = [max(one[0] for one in labels) for _, _, labels, _ in samples(trained(feed, plan))]
        assert np.mean(drawn) > 0.45  # 20 of 56 by nature


# what the network never sees


@pytest.mark.slow
def test_training_does_not_see_the_logits_of_the_slice_model():
    feed = feed_of(MIXED, BLUR)
    planted = [dataclasses.replace(view, said=view.said + 1e4) for view in feed.views]
    plan = plan_of(feed, "balanced", 12, augmentation=Augmentation(True, 0.0, 0.0))
    other = dataclasses.replace(feed, views=planted)
    for batches in (lambda feed: trained(feed, plan), lambda feed: read(feed.evaluation_batches(3, Share.whole()))):
        for one, changed in zip(batches(feed), batches(other), strict=True):
            assert one.keys() == changed.keys()
            for name in one:
                np.testing.assert_array_equal(one[name], changed[name])


def test_what_is_known_of_a_study_comes_before_its_slices():
    """A study known to bleed counts as such; not where it has two series, either of which may be the one."""
    feed = feed_of([[UNKNOWN] * 2, [NONE] * 2, [UNKNOWN] * 3, [UNKNOWN] * 2])
    assert feed.study.tolist() == [[-1] * 6] * 4
    place = {name: at for at, name in enumerate(sorted(set(feed.slices.table["study_uid"].to_pylist())))}
    whole = np.array([EPIDURAL, NONE, SUBDURAL, UNKNOWN], np.int8)
    given = whole[[place[name] for name in feed.slices.table["study_uid"].to_pylist()]]
    known = dataclasses.replace(feed, slices=dataclasses.replace(feed.slices, study_labels=given))
    assert known.study.tolist() == whole.tolist()
    assert known.labels.tolist() == whole.tolist()
    names = known.slices.spec.labels.strata
    assert [names[at] for at in known.strata] == ["epidural", "none", "subdural", "unlabelled"]
    assert [names[at] for at in feed.strata] == ["unlabelled", "none", "unlabelled", "unlabelled"]
    uids = [{"0002": "0000"}.get(uid, uid) for uid in known.slices.table["study_uid"].to_pylist()]
    at = known.slices.table.schema.get_field_index("study_uid")
    table = known.slices.table.set_column(at, "study_uid", pa.array(uids))
    several = dataclasses.replace(known, slices=dataclasses.replace(known.slices, table=table))
    assert several.study.tolist() == [[-1, -1, 0, 0, 0, 0], [0] * 6, [-1, 0, 0, 0, 0, -1], [-1] * 6]
