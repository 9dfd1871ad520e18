"""Series beside plain loops over files; how many slices wait at once; what is lost on the way."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path

import blob_dataset
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords.storage import sources
from ich_tfrecords.volumes.reader import FrameReader
from trainer.data import series
from trainer.models.model_file import About
from trainer.prediction import series_stream, slice_stream, triage
from trainer.prediction.heads import Heads
from trainer.prediction.networks import InSeries
from trainer.prediction.series_stream import TOGETHER, Embedded
from trainer.prediction.slice_stream import FoundSlice
from trainer.results import blend, calibration, joint
from trainer.results.blend import Blend, Mix

NAMES = ("any", "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
LABELS = len(NAMES)


@pytest.fixture(scope="module")
def about() -> About:
    spec = blob_dataset.small_spec()
    assert spec.labels.names == NAMES
    odds, plain = joint.unchanged(NAMES, "any"), blend.alone(NAMES, "made for a test")
    half = Mix(plain.plain, plain.context, np.full(LABELS, 0.5))
    fitted = calibration.unfitted(NAMES, np.zeros(LABELS), "made for a test")
    even = {name: {"even": 0.5} for name in NAMES}
    mix = Blend(odds, odds, half, half, fitted, even)
    facts = {"parameters": 1, "epoch": 1, "step": 1, "vector_dim": 2}
    return About(spec, "f" * 64, {"model": "series"}, fitted, even, even, facts, odds, mix)


def embed(images):
    """A vector is the mean and the greatest of an image's first window; logits follow from them."""
    first = images[..., 0].reshape(len(images), -1).astype(np.float32) / 64
    vectors = np.stack([first.mean(1), first.max(1)], 1).astype(np.float16)
    return vectors, vectors.astype(np.float32) @ np.arange(12, dtype=np.float32).reshape(2, LABELS) / 10 - 1


def mirrored(images):
    vectors, logits = embed(images)
    return vectors + np.float16(0.5), logits + 1


def context(inputs):
    """Each slice hears its whole series, and where it lies; what pads must not count."""
    mask = inputs["mask"][..., None]
    vectors = np.where(mask, inputs["vectors"].astype(np.float32), 0)
    around = vectors.sum((1, 2))[:, None, None] / mask.sum((1, 2))[:, None, None]
    slices = around + inputs["place"].sum(2)[..., None] / 100 + np.arange(LABELS, dtype=np.float32)
    even = np.where(mask, 1 / mask.sum(1, keepdims=True), 0) * np.ones(LABELS, np.float32)
    return slices.astype(np.float32), (around[:, 0] * np.ones(LABELS)).astype(np.float32), even.astype(np.float32)


ASKED = InSeries([embed], context)


def write(folder: Path, patient: int, number: int, at: int | None = None, name: str = "") -> None:
    hu = blob_dataset.image_hu(np.zeros(5, bool), np.random.default_rng([patient, number]))
    uid = f"ID_{patient:04d}{number:04d}"
    data = blob_dataset.dicom(uid, patient, number if at is None else at, hu)
    (folder / (name or f"{number:04d}_{patient:04d}.dcm")).write_bytes(data)  # series lie mixed


def outcomes(place: Path, about: About, asked: InSeries = ASKED, batch_size: int = 4, looks: bool = True):
    heads = Heads(sources.list_inputs([str(place)]).table, about.spec.accept)
    assert not [reject for outcome in heads.read() for reject in outcome.rejects]
    with contextlib.closing(series_stream.outcomes(heads, about, asked, batch_size, looks)) as found:
        yield from found


def by_hand(place: Path, about: About, views=(embed,)) -> tuple[dict, dict]:
    """Probabilities of every slice and study: a plain loop, one series at a time."""
    slices, heads = {}, {}
    with sources.SliceReader() as reader:
        for ref in sources.refs(sources.list_inputs([str(place)]).table):
            ct, image = slice_stream.read_image(ref, FrameReader(reader), about.spec.image)
            slices.setdefault(ct.header.study_uid, []).append((ct.header.position_mm, ct.header.sop_uid, image))
    found = {}
    for study, own in slices.items():
        own.sort(key=lambda one: one[:2])
        places = series.place(np.array([position for position, *_ in own]))[None]
        said = [view(np.stack([image for *_, image in own])) for view in views]
        mask = np.ones((1, len(own)), bool)
        spoken = [context({"vectors": vectors[None], "place": places, "mask": mask}) for vectors, _ in said]
        logits, contexts, head = (
            np.mean(parts, axis=0)
            for parts in ([one for _, one in said], [one[0][0] for one in spoken], [one[1] for one in spoken])
        )
        log_odds = about.blend.slice_log_odds(logits, contexts)
        found |= dict(zip((uid for _, uid, _ in own), about.probabilities(log_odds)))
        mixed = about.blend.study_log_odds(log_odds.max(0, keepdims=True), head)
        heads[study] = about.blend.study_probabilities(mixed)[0]
    return found, heads


def told(place: Path, about: About, **flags) -> tuple[dict, dict, list]:
    slices, studies, rejects = {}, {}, []
    for outcome in outcomes(place, about, **flags):
        slices |= dict(zip((found.sop_uid for found in outcome.slices), outcome.probabilities))
        studies |= outcome.studies
        rejects += outcome.rejects
        assert outcome.files == len(outcome.slices) + len(outcome.rejects)
    return slices, studies, rejects


def assert_same(one: dict, other: dict) -> None:
    assert list(one) == list(other)
    for key in one:
        np.testing.assert_allclose(one[key], other[key], rtol=1e-6)


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Series of 1 to 7 slices whose files lie mixed."""
    (tmp_path / "in").mkdir()
    for patient in range(7):
        for number in range(patient + 1):
            write(tmp_path / "in", patient, number)
    return tmp_path / "in"


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("most", [1, 12, TOGETHER])
@pytest.mark.parametrize("views", [(embed,), (embed, mirrored)])
def test_what_is_said_is_what_a_plain_loop_finds(mixed, about, batch_size, most, views, monkeypatch):
    monkeypatch.setattr(series_stream, "TOGETHER", most)
    slices, studies, rejects = told(mixed, about, asked=InSeries(list(views), context), batch_size=batch_size)
    assert rejects == []
    wanted = by_hand(mixed, about, views)
    assert_same(slices, {key: wanted[0][key] for key in slices})
    assert_same(studies, {key: wanted[1][key] for key in studies})
    assert slices.keys() == wanted[0].keys()
    assert studies.keys() == wanted[1].keys()


@pytest.mark.slow
def test_a_long_series_goes_alone_and_whole(tmp_path, about):
    """2,000 slices, more than `TOGETHER`, between two short ones."""
    for patient, count in enumerate((2, 2000, 3)):
        for number in range(count):
            write(tmp_path, patient, number, name=f"{patient}_{number:04d}.dcm")
    shapes = []

    def noting(inputs):
        shapes.append(inputs["mask"].shape)
        return context(inputs)

    slices, studies, _ = told(tmp_path, about, asked=InSeries([embed], noting), batch_size=64)
    assert shapes == [(1, 2), (1, 2000), (1, 3)]
    assert (len(slices), list(studies)) == (2005, ["study 0", "study 1", "study 2"])


def found(uid: str, position_mm: float, key: str = "s") -> FoundSlice:
    return FoundSlice(sources.SliceRef("/in", uid, -1, -1, 1, 1, -1, 1), 1, uid, key, key, position_mm)


def piece(key: str, count: int) -> Embedded:
    slices = [found(f"{key}{number}", number, key) for number in range(count)]
    vectors, logits = np.zeros((1, count, 2), np.float16), np.zeros((count, LABELS), np.float32)
    return Embedded(slices, vectors, logits, np.zeros((count, 2, 2), np.uint8), np.zeros((count, 0), np.float32))


@pytest.mark.slow
@given(st.lists(st.integers(1, 300), max_size=40))
def test_series_wait_for_each_other_no_further_than_they_fit(lengths):
    groups = list(series_stream._together([piece(f"k{at}", length) for at, length in enumerate(lengths)]))
    sizes = [[len(one.slices) for one in group] for group in groups]
    assert [length for group in sizes for length in group] == lengths
    for group, after in zip(sizes, [*sizes[1:], [10**9]]):
        assert len(group) == 1 or len(group) * max(group) <= TOGETHER
        assert (len(group) + 1) * max(*group, after[0]) > TOGETHER


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_series(tmp_path, about):
    """How many slices wait anywhere when an outcome comes, for few and for many series."""
    most = []
    for count in (80, 320):
        place = tmp_path / str(count)
        place.mkdir()
        for patient in range(count):
            for number in range(8):
                write(place, patient, number)
        waiting = 0
        for number, _ in enumerate(outcomes(place, about)):
            if number % 13:  # the look takes time
                continue
            held = [one.slices for one in gc.get_objects() if type(one) is Embedded]  # a dead proxy has no other
            waiting = max(waiting, sum(len(own) for own in held if own and own[0].ref.container == str(place)))
        most.append(waiting)
    assert most[1] == most[0] <= 2 * TOGETHER


def test_slices_at_one_position_have_no_order(tmp_path, about):
    for number in range(3):
        write(tmp_path, 0, number, at=4)
        write(tmp_path, 1, number)
    write(tmp_path, 2, 0)
    slices, studies, rejects = told(tmp_path, about)
    assert [(one.study_uid, one.reason) for one in rejects] == [("study 0", "no_order")] * 3
    assert list(studies) == ["study 1", "study 2"]
    assert len(slices) == 4


def test_two_slices_at_one_position_come_by_their_uids(tmp_path, about):
    for number, at in ((3, 0), (1, 5), (2, 5), (0, 9)):
        write(tmp_path, 0, number, at=at, name=f"{9 - number}.dcm")
    slices, *_ = told(tmp_path, about)
    assert [uid[-1] for uid in slices] == ["3", "1", "2", "0"]


def test_slices_that_give_no_number_are_lost_and_the_others_go_on(mixed, about):
    def sometimes(images):
        vectors, logits = embed(images)
        for row, number in enumerate(vectors[:, 0]):
            if number == bad:
                vectors[row, 1] = np.inf
        return vectors, logits

    with sources.SliceReader() as reader:
        refs = {ref.name: ref for ref in sources.refs(sources.list_inputs([str(mixed)]).table)}
        _, image = slice_stream.read_image(refs["0002_0004.dcm"], FrameReader(reader), about.spec.image)
        bad = embed(image[None])[0][0, 0]
    slices, studies, rejects = told(mixed, about, asked=InSeries([sometimes], context))
    assert [(one.file, one.reason) for one in rejects] == [("0002_0004.dcm", "no_probability")]
    (mixed / "0002_0004.dcm").unlink()
    wanted = told(mixed, about)
    assert_same(slices, wanted[0])
    assert_same(studies, wanted[1])


def test_a_series_of_which_the_context_gives_no_number_is_lost_whole(mixed, about):
    def sometimes(inputs):
        slices, heads, attention = context(inputs)
        heads[inputs["mask"].sum(1) == 5] = np.nan
        return slices, heads, attention

    slices, studies, rejects = told(mixed, about, asked=InSeries([embed], sometimes))
    assert [(one.study_uid, one.reason) for one in rejects] == [("study 4", "no_probability")] * 5
    assert "study 4" not in studies
    assert len(slices) == 28 - 5


def test_attention_is_of_the_leading_label_and_knows_its_slice(mixed, about):
    for outcome in outcomes(mixed, about):
        several = len(outcome.slices) > 1
        assert len(outcome.attention) == several * len(outcome.slices)
        for at, (looked, values) in enumerate(zip(outcome.attention, outcome.probabilities)):
            assert looked.at == at
            assert looked.label == triage.leading_label(values, about.spec.labels, about.calibration.refused)
            assert looked.position_mm.tolist() == [one.position_mm for one in outcome.slices]
            assert looked.weights.sum() == pytest.approx(1)
    assert not [outcome for outcome in outcomes(mixed, about, looks=False) if outcome.attention]


def test_an_unforeseen_failure_of_the_thread_reaches_the_caller(mixed, about, monkeypatch):
    from ich_tfrecords.dicom import ct_slice

    def failing(data, accept):
        raise MemoryError("no room")

    monkeypatch.setattr(ct_slice, "read_slice", failing)
    with pytest.raises(MemoryError, match="no room"):
        list(outcomes(mixed, about))
