"""Tests of `synthetic --context`: what looks like blood in one slice, and what tells it from blood."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_tfrecords.synthetic import command, confounders, phantom, plan
from ich_tfrecords.synthetic import textures as noise
from ich_tfrecords.synthetic.confounders import Context
from ich_tfrecords.synthetic.foci import SITES, Focus
from ich_tfrecords.synthetic.rsna_layout import RSNA_LABELS, generate

STEP_MM = 6.0
CLOT = Focus("base", "intraparenchymal", True, -12, 12, (20, 32), (11, 8), 68)
TWINS = [
    CLOT,
    Focus("plexus", "intraventricular", True, 32, 56, (1, 0), (7, 9), 68),
    Focus("falx", "subdural", True, 66, 90, (-1, -42), (2.6, 18), 68),
    Focus("vertex", "subdural", True, 66, 90, (1.5, 0), (40, 8), 68),
    Focus("vertex", "epidural", True, 66, 90, (1.5, 0), (25, 11), 68),
]


@pytest.fixture(scope="module")
def textures() -> noise.Textures:
    return noise.draw_textures(np.random.default_rng(0), folds=4, grains=1)


@pytest.fixture(scope="module")
def head() -> phantom.Head:
    return phantom.draw_head(np.random.default_rng(3))


def drawn(
    head: phantom.Head, textures: noise.Textures, z_mm: float, *foci: Focus, bleeds: tuple[phantom.Bleed, ...] = ()
) -> tuple[np.ndarray, frozenset[str]]:
    """HU and labels of a slice, with the same grain each time."""
    context = Context(STEP_MM, foci, vertex_bone=0.3, streak_rad=1.0)
    return phantom.Phantom(head, textures, context).render(z_mm, bleeds, np.random.default_rng(1))


def thin_twin(focus: Focus, z_mm: float, around_hu: float) -> Focus:
    """A confounder half as thick as a slice and twice as dense as the clot, over its surroundings."""
    size = focus.size(z_mm)
    return dataclasses.replace(
        focus,
        bleeds=False,
        low_mm=z_mm - STEP_MM / 4,
        high_mm=z_mm + STEP_MM / 4,
        half_mm=(focus.half_mm[0] * size, focus.half_mm[1] * size),
        density_hu=around_hu + 2 * (focus.density_hu - around_hu),
    )


# one focus


@pytest.mark.parametrize(
    ("z_mm", "share"), [(0, 1), (9, 1), (12, 0.5), (-12, 0.5), (14, 1 / 6), (15, 0), (-15, 0), (40, 0)]
)
def test_share_of_the_thickness(z_mm: float, share: float) -> None:
    assert CLOT.share(z_mm, STEP_MM) == pytest.approx(share)


def test_a_focus_thinner_than_the_slice_fills_what_it_is_thick() -> None:
    assert dataclasses.replace(CLOT, low_mm=-1, high_mm=2).share(0, STEP_MM) == pytest.approx(0.5)


@pytest.mark.parametrize(("z_mm", "size"), [(0, 1.0), (6, 0.85**0.5), (12, 0.4**0.5), (-12, 0.4**0.5), (15, 0.4**0.5)])
def test_a_focus_tapers_to_both_ends(z_mm: float, size: float) -> None:
    assert CLOT.size(z_mm) == pytest.approx(size)


@pytest.mark.slow
@pytest.mark.parametrize("focus", TWINS, ids=lambda focus: f"{focus.site}-{focus.label}")
def test_a_bleed_goes_on_where_what_looks_like_it_does_not(
    focus: Focus, head: phantom.Head, textures: noise.Textures
) -> None:
    middle_mm = (focus.low_mm + focus.high_mm) / 2
    confounder = thin_twin(focus, middle_mm, SITES[focus.site].around_hu)
    seen: dict[Focus, list[bool]] = {focus: [], confounder: []}
    labels: dict[Focus, list[frozenset[str]]] = {focus: [], confounder: []}
    for step in (-3, -2, -1, 0, 1, 2, 3):
        z_mm = middle_mm + STEP_MM * step
        bare, _ = drawn(head, textures, z_mm)
        for each in (focus, confounder):
            hu, found = drawn(head, textures, z_mm, each)
            seen[each].append(bool(np.count_nonzero(hu - bare > 6) * head.pixel_mm**2 >= 30))
            labels[each].append(found)
    blood, none = frozenset({focus.label}), frozenset()
    assert seen[focus] == [False, True, True, True, True, True, False]
    assert seen[confounder] == [False, False, False, True, False, False, False]
    assert labels[focus] == [none, blood, blood, blood, blood, blood, none]
    assert labels[confounder] == [none] * 7


@pytest.mark.parametrize("focus", TWINS, ids=lambda focus: f"{focus.site}-{focus.label}")
def test_in_one_slice_both_look_alike(focus: Focus, head: phantom.Head, textures: noise.Textures) -> None:
    middle_mm = (focus.low_mm + focus.high_mm) / 2
    bare, _ = drawn(head, textures, middle_mm)
    clot, found = drawn(head, textures, middle_mm, focus)
    twin, none = drawn(head, textures, middle_mm, thin_twin(focus, middle_mm, SITES[focus.site].around_hu))
    blood = clot - bare > 20
    assert (found, none) == ({focus.label}, frozenset())
    assert np.count_nonzero(blood) * head.pixel_mm**2 > 50
    assert np.abs(clot - twin)[blood].mean() < 6
    assert np.median(twin[blood]) == pytest.approx(np.median(clot[blood]), abs=6)


def test_the_ends_of_a_bleed_are_faint_and_labelled_down_to_a_third(
    head: phantom.Head, textures: noise.Textures
) -> None:
    rises, labels = [], []
    for z_mm in (0, 12, 14):  # shares 1, 1/2, 1/6
        bare, _ = drawn(head, textures, z_mm)
        hu, found = drawn(head, textures, z_mm, CLOT)
        rises.append(float(np.percentile(hu - bare, 99.9)))
        labels.append(found)
    assert rises[1] / rises[0] == pytest.approx(1 / 2, abs=0.12)
    assert rises[2] / rises[0] == pytest.approx(1 / 6, abs=0.08)
    assert labels == [{"intraparenchymal"}, {"intraparenchymal"}, frozenset()]


@pytest.mark.parametrize(
    ("bleed", "z_mm"),
    [
        (phantom.Bleed("intraventricular", (1, 0, 44), 12, 0, 0, 28, 68), 56),
        (phantom.Bleed("subarachnoid", (20, 0, 30), 16, 0, 40, 0, 68), 46),
        (phantom.Bleed("intraparenchymal", (28, 10, 60), 15, 0, 14, 16, 68), 74),
        (phantom.Bleed("subdural", (0, 0, 50), 15, 1.5, 70, 10, 68), 65),
    ],
    ids=lambda value: getattr(value, "label", None),
)
def test_other_bleeds_fade_too(bleed: phantom.Bleed, z_mm: float, head: phantom.Head, textures: noise.Textures) -> None:
    bare, _ = drawn(head, textures, z_mm)
    hu, found = drawn(head, textures, z_mm, bleeds=(bleed,))
    thin, _ = phantom.Phantom(head, textures).render(z_mm - 2, (bleed,), np.random.default_rng(1))
    bare_thin, _ = phantom.Phantom(head, textures).render(z_mm - 2, (), np.random.default_rng(1))
    full, faint = np.percentile(thin - bare_thin, 99.8), np.percentile(hu - bare, 99.8)
    assert 5 < faint < 0.8 * full
    assert found <= {bleed.label}


# those of a study


@given(seed=st.integers(0, 2**32), slices=st.integers(16, 60), labels=st.sets(st.sampled_from(RSNA_LABELS[:5])))
@settings(max_examples=80, deadline=None)
def test_only_bleeds_go_through_three_slices(seed: int, slices: int, labels: set[str]) -> None:
    study = plan.plan_studies(1, 0, slices, seed, 0, False, True)[0]
    pose = plan.Pose(dataclasses.replace(study, labels=tuple(sorted(labels))), seed)
    assert pose.context is not None
    bleeding = [focus.label for focus in pose.context.foci if focus.bleeds]
    assert sorted([*bleeding, *(bleed.label for bleed in pose.bleeds)]) == sorted(labels)
    assert len({focus.site for focus in pose.context.foci}) == len(pose.context.foci)
    for focus in pose.context.foci:
        shares = np.array([focus.share(float(z_mm), pose.step_mm) for z_mm in pose.heights_mm])
        if focus.bleeds:
            assert np.count_nonzero(shares >= confounders.VISIBLE_SHARE) >= 3
        else:
            assert 1 <= np.count_nonzero(shares) <= 2
            assert shares.max() >= 0.5
            assert 30 < focus.density_hu < 130


def test_a_study_keeps_its_head_and_place() -> None:
    for with_it, without in zip(
        plan.plan_studies(4, 2, 20, 9, 0.5, True, True), plan.plan_studies(4, 2, 20, 9, 0.5, True)
    ):
        hard, easy = plan.Pose(with_it, 9), plan.Pose(without, 9)
        assert dataclasses.replace(with_it, context=False) == without
        assert (hard.head, hard.fields(3)) == (easy.head, easy.fields(3))
        np.testing.assert_array_equal(hard.heights_mm, easy.heights_mm)


def test_most_studies_have_a_confounder_those_without_a_bleed_as_well() -> None:
    studies = plan.plan_studies(200, 0, 24, 0, 0.4, False, True)
    found = {True: [], False: []}
    for study in studies:
        context = plan.Pose(study, 0).context
        found[bool(study.labels)].append(any(not focus.bleeds for focus in context.foci))
    assert np.mean(found[False]) > 0.8
    assert np.mean(found[True]) > 0.65


# the data set


SMALL = {"patients": 3, "test_patients": 1, "slices_per_study": 16, "every_label": True}


def digests(directory: Path) -> dict[str, str]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_with_defects_as_well(tmp_path: Path) -> None:
    for name in ("one", "again"):
        generate(tmp_path / name, context=True, defects=True, **SMALL)
    generate(tmp_path / "without", defects=True, **SMALL)
    one, without = digests(tmp_path / "one"), digests(tmp_path / "without")
    assert one == digests(tmp_path / "again")
    slices = [name for name in one if name.endswith(".dcm")]
    assert set(one) == set(without)
    assert sum(one[name] == without[name] for name in slices) < len(slices) / 10


@pytest.mark.slow
def test_every_label_occurs_and_only_blood_is_labelled(tmp_path: Path) -> None:
    output = tmp_path / "set"
    words = ["--patients", "3", "--test_patients", "1", "--slices_per_study", "16", "--every_label", "--context"]
    assert command.main(["--output", str(output), *words]) == 0
    with open(output / "stage_2_train.csv", newline="") as file:
        positive = {row["ID"] for row in csv.DictReader(file) if row["Label"] == "1"}
    assert {name.rsplit("_", 1)[1] for name in positive} == set(RSNA_LABELS)
    bleeding, ids = set(), plan.Ids(0)
    for study in plan.plan_studies(3, 0, 16, 0, 0.39, True, True):
        pose = plan.Pose(study, 0)
        for index, z_mm in enumerate(pose.heights_mm):
            foci = {focus.label for focus in pose.context.foci if focus.bleeds and focus.share(z_mm, pose.step_mm) > 0}
            near = {b.label for b in pose.bleeds if abs(z_mm - b.centre_mm[2]) < b.half_height_mm + pose.step_mm / 2}
            bleeding |= {f"{ids.sop(study.first_slice + index)}_{label}" for label in foci | near}
    assert {name for name in positive if not name.endswith("_any")} <= bleeding


# of the version before --context
BEFORE = {
    "stage_2_train.csv": "af6c37855bc0c7c016ab75211f20d2d41d07410e0ff31e34a5894075bc3b231b",
    "ID_1fd630f51": -1_086_050,
    "ID_fa1abf6ce": -2_164_623,
    "ID_d45f4de4b": -5_614_321,
    "ID_aea3dc5c8": 134_379_523,
    "ID_88e86ad45": 133_627_667,
    "ID_632cf94c2": 129_609_817,
}


def test_without_it_slices_stay_as_they_were(tmp_path: Path) -> None:
    """Pixels by their sum: the last bit of a cosine, and so the rounding of a few pixels, may differ by CPU."""
    summary = generate(tmp_path / "set", patients=2, test_patients=0, slices_per_study=3, every_label=True, seed=11)
    found: dict[str, object] = {}
    for path in sorted(summary.output.rglob("*.dcm")):
        stored = np.frombuffer(path.read_bytes()[-2 * 512 * 512 :], np.int16)
        found[path.stem] = pytest.approx(int(stored.sum(dtype=np.int64)), abs=300)
    labels = (summary.output / "stage_2_train.csv").read_bytes()
    assert {"stage_2_train.csv": hashlib.sha256(labels).hexdigest(), **found} == BEFORE
