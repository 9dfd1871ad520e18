"""A slice model that sees neighbours, by every command: what is served is what was evaluated and what is predicted."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import blob_dataset
import keras
import numpy as np
import odd_dataset
import pytest
import tensorflow as tf
from PIL import Image
from small_runs import one_line, train
from tiny_networks import TINY

from ich_tfrecords import pixels
from ich_tfrecords.dicom import ct_slice
from trainer import classify, compare, embed, evaluate, export, predict
from trainer.data.dataset import Slices, open_dataset
from trainer.models import model_file, networks
from trainer.prediction import picture_files, slice_picture
from trainer.results import evaluated, predictions
from trainer.training import checkpoints, input_page, scoring

pytestmark = pytest.mark.slow  # trains

CONTEXT = 1
LIKE_BLOBS = {"architecture__filters": [8, 16], "architecture__dense": [32], "steps_per_call": 0}
WHOLE = {"epochs": 4, "steps_per_epoch": 0, "batch_size": 32}


@pytest.fixture(scope="module")
def run(runs_of_blobs, tmp_path_factory) -> Path:
    """A run that sees a neighbour on either side, evaluated on the test split; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "context"
    assert train(runs_of_blobs, folder, context_slices=CONTEXT, flip=True, **LIKE_BLOBS, **WHOLE) == 0
    assert evaluate.main(["--job_dir", str(folder), "--resamples", "100"]) == 0
    return folder


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    assert export.main(["--job_dir", str(run), "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def files(runs_of_blobs) -> Path:
    return runs_of_blobs.parent / f"{runs_of_blobs.name}-dicom"


@pytest.fixture(scope="module")
def held(runs_of_blobs) -> Slices:
    return open_dataset(str(runs_of_blobs)).split("test")


@pytest.fixture
def some(files, held, tmp_path) -> Path:
    """The files of three series of the test split."""
    folder = tmp_path / "in"
    folder.mkdir()
    for uid in series_of(held, 3):
        shutil.copy(files / f"{uid}.dcm", folder)
    return folder


def series_of(slices: Slices, count: int) -> list[str]:
    """SOP UIDs of the slices of the first `count` series."""
    uids, series = (slices.table[name].to_pylist() for name in ("sop_uid", "series_uid"))
    wanted = sorted(set(series))[:count]
    return [uid for uid, of in zip(uids, series) if of in wanted]


def said(run: Path, name: str = "test") -> dict[str, np.ndarray]:
    """What an evaluation said of each slice."""
    found = predictions.read(evaluated.folder(run, name) / evaluated.PREDICTIONS)
    return dict(zip(found.ids["sop_uid"].to_pylist(), found.probabilities))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def predicted(model: Path, given: Path, output: Path, *flags: str) -> dict[str, np.ndarray]:
    names = model_file.read_about(model_file.find(str(model))).spec.labels.names
    assert predict.main(["--model", str(model), "--input", str(given), "--output", str(output), *flags]) == 0
    return {row["sop_uid"]: np.array([float(row[name]) for name in names]) for row in rows(output / "predictions.csv")}


def by_series(folder: Path) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """SOP UIDs, HU and positions of the slices of each series, in the order of their files."""
    found: dict[str, list] = {}
    for path in sorted(folder.iterdir()):
        ct = ct_slice.read_slice(path.read_bytes())
        found.setdefault(ct.header.series_uid, []).append((ct.header.sop_uid, ct.hu.copy(), ct.header.position_mm))
    for slices in found.values():
        uids, hu, position_mm = zip(*slices)
        yield [*uids], np.stack(hu), np.array(position_mm, np.float32)


def assert_close(one: dict[str, np.ndarray], other: dict[str, np.ndarray], off: float = 1e-5) -> None:
    assert one.keys() <= other.keys()
    assert one
    for uid, values in one.items():
        np.testing.assert_allclose(values, other[uid], rtol=0, atol=off)


# served, evaluated, predicted


def test_served_is_predicted_is_evaluated(run, saved, some, tmp_path):
    evaluation = said(run)
    assert_close(predicted(run, some, tmp_path / "out", "--pictures", "0"), evaluation)
    served = tf.saved_model.load(str(saved)).signatures["series"]
    for uids, hu, position_mm in by_series(some):
        order = np.random.default_rng(len(uids)).permutation(len(uids))
        answer = served(hu=tf.constant(hu[order]), position_mm=tf.constant(position_mm[order]))
        values = dict(zip((uids[at] for at in order), answer["probabilities"].numpy()))
        assert_close(values, evaluation)


def test_neighbours_count(run, some, tmp_path):
    """The tests beside this one would pass with a model of single slices."""
    whole = predicted(run, some, tmp_path / "whole", "--pictures", "0")
    uid = sorted(whole)[5]
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(some / f"{uid}.dcm", alone)
    assert np.abs(predicted(run, alone, tmp_path / "out", "--pictures", "0")[uid] - whole[uid]).max() > 1e-3


def test_batches_go_across_series_to_the_same_end(run, some, tmp_path):
    one, other = (
        predicted(run, some, tmp_path / size, "--pictures", "0", "--batch_size", size) for size in ("3", "64")
    )
    assert_close(one, other)


def test_mirror_images(run, some, tmp_path):
    assert evaluate.main(["--job_dir", str(run), "--flip", "--resamples", "100"]) == 0
    assert_close(predicted(run, some, tmp_path / "out", "--pictures", "0", "--flip"), said(run, "test-flip"))


def test_a_slice_that_is_missing_is_simply_not_there(run, some, tmp_path):
    """Neighbours are those by order of the slices that could be read."""
    uids, hu, position_mm = next(by_series(some))
    order = np.argsort(position_mm)
    gone = order[4]
    path = some / f"{uids[gone]}.dcm"
    path.write_bytes(path.read_bytes()[:-600])
    found = predicted(run, some, tmp_path / "out", "--pictures", "0")
    assert [row["file"] for row in rows(tmp_path / "out" / "rejects.csv")] == [path.name]
    about = model_file.read_about(run / "export")
    left = [at for at in order if at != gone]
    images = np.stack([pixels.image_of(hu[at], about.spec.image) for at in left])
    near = np.clip(np.arange(len(left))[:, None] + [-1, 0, 1], 0, len(left) - 1)
    stacks = np.concatenate([images[near[:, side]] for side in range(3)], axis=-1)
    wanted = about.probabilities(model_file.scorer(model_file.load_model(run / "export", about))(stacks))
    assert_close({uids[at]: values for at, values in zip(left, wanted)}, found)


def test_slices_without_an_order_are_rejects(run, some, tmp_path, capsys):
    """As of a series model: nobody can tell which is whose neighbour."""
    (tmp_path / "flat").mkdir()
    for path in sorted(some.iterdir())[:20]:
        data = path.read_bytes()
        at = data.index(b"-125\\-120\\") + len(b"-125\\-120\\")
        length = int.from_bytes(data[data.index(b"-125\\-120\\") - 2 : data.index(b"-125\\-120\\")], "little")
        place = b"0".ljust(length - len(b"-125\\-120\\"))
        (tmp_path / "flat" / path.name).write_bytes(data[:at] + place + data[at + len(place) :])
    flags = ["--model", str(run), "--input", str(tmp_path / "flat"), "--output", str(tmp_path / "out")]
    assert predict.main(flags) == 2
    assert "no slice has a place among others (20 no_order)" in capsys.readouterr().err
    assert {row["reason"] for row in rows(tmp_path / "out" / "rejects.csv")} == {"no_order"}


# what people see


def test_pictures_show_the_slice_and_explain_what_the_model_saw(run, some, tmp_path, monkeypatch):
    drawn, picture = [], slice_picture.picture
    monkeypatch.setattr(slice_picture, "picture", lambda image, *more: drawn.append(image) or picture(image, *more))
    predicted(run, some, tmp_path / "out", "--pictures", "2")
    about = model_file.read_about(run / "export")
    own = [pixels.image_of(ct_slice.read_slice(path.read_bytes()).hu, about.spec.image) for path in some.iterdir()]
    assert len(drawn) == 2
    assert all(any(np.array_equal(image, one) for one in own) for image in drawn)
    for path in (tmp_path / "out" / "pictures").iterdir():
        assert Image.open(path).width > 4 * slice_picture.PANEL_PX  # a panel with a map


def test_a_neighbour_that_is_gone_takes_the_picture_away(run, some, tmp_path, monkeypatch, capsys):
    draw = picture_files.draw

    def gone(output, chosen, *more):
        own = chosen[0].found
        kept = {own.ref.name}
        [(some / ref.name).unlink() for ref in own.beside if ref.name not in kept]
        return draw(output, chosen, *more)

    monkeypatch.setattr(picture_files, "draw", gone)
    predicted(run, some, tmp_path / "out", "--pictures", "1")
    assert "predict: no picture of " in capsys.readouterr().err


def test_the_page_of_inputs_shows_slices(runs_of_blobs, tmp_path, monkeypatch):
    shown, made = [], input_page.input_page
    monkeypatch.setattr(input_page, "input_page", lambda images, *more: shown.append(images) or made(images, *more))
    assert train(runs_of_blobs, tmp_path, context_slices=2, epochs=1) == 0
    slices = open_dataset(str(runs_of_blobs)).split("train")
    every = {image.tobytes() for image in slices.reader.read(np.arange(len(slices)))[0]}
    assert shown[0].shape[1:] == (16, 16, 3)
    assert {image.tobytes() for image in shown[0]} <= every


def test_the_worst_slices_of_an_evaluation_are_shown_alone(run, held):
    seen = held.with_neighbours(CONTEXT)
    found = scoring.images(seen, [3, 1])
    wanted = held.reader.read(np.array([3, 1]))[0]
    np.testing.assert_array_equal(np.stack([found[3], found[1]]), wanted)


def test_the_card_says_what_it_takes(saved):
    text = (saved / "MODEL_CARD.md").read_text()
    assert "seen with 1 slice on either side of it" in text
    assert "| `series`, `serving_default` | `hu` int16 [n, rows, columns], `position_mm` float32 [n] |" in text
    assert "`study_probabilities`" not in text
    assert "9 channels" in text
    assert "context_slices: 1" in text
    assert {*tf.saved_model.load(str(saved)).signatures} == {"series", "serving_default", "image"}


# what comes after a run


def test_vectors_and_classifiers(run, runs_of_blobs, held, some, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    assert embed.main(["--job_dir", str(copied), "--split", "test"]) == 0
    about, data = model_file.read_about(copied / "export"), open_dataset(str(runs_of_blobs))
    (kept,) = scoring.views(str(copied), about, data, held, False)
    images, _ = held.with_neighbours(CONTEXT).read(np.arange(len(held)))
    vectors, _ = model_file.embedder(model_file.load_model(copied / "export", about))(images)
    np.testing.assert_allclose(kept.rows(np.arange(len(kept))), vectors, atol=1e-3)
    assert classify.main(["--job_dir", str(copied), "--with", "logistic", "--c", "0.1"]) == 0
    beside = tmp_path / "run-logistic"
    assert evaluate.main(["--job_dir", str(beside), "--resamples", "100"]) == 0
    assert_close(predicted(beside, some, tmp_path / "out", "--pictures", "0"), said(beside))


@pytest.mark.long
def test_a_series_model_stands_on_it(run, runs_of_blobs, some, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    small = {"architecture__width": 16, "architecture__units": 8, "architecture__layers": 1, "steps_per_call": 0}
    more = {"epochs": 2, "steps_per_epoch": 0, "batch_size": 8}
    flags = ("--slice_run", str(copied))
    assert train(runs_of_blobs, tmp_path / "series", *flags, model="series", **small, **more) == 0
    end_to_end = {"end_to_end": True, "accumulate": 4, "epochs": 1, "steps_per_epoch": 2, "batch_size": 4}
    assert train(runs_of_blobs, tmp_path / "both", *flags, model="series", **small, **end_to_end) == 0
    for name in ("series", "both"):
        assert evaluate.main(["--job_dir", str(tmp_path / name), "--resamples", "100"]) == 0
        found = predicted(tmp_path / name, some, tmp_path / f"{name}-out", "--pictures", "1")
        assert_close(found, said(tmp_path / name))
    assert export.main(["--job_dir", str(tmp_path / "series")]) == 0
    served = tf.saved_model.load(str(tmp_path / "series" / "saved_model")).signatures["series"]
    for uids, hu, position_mm in by_series(some):
        answer = served(hu=tf.constant(hu), position_mm=tf.constant(position_mm))["probabilities"].numpy()
        assert_close(dict(zip(uids, answer)), said(tmp_path / "series"))


def test_comparison_names_the_setting(run, runs_of_blobs, tmp_path, capsys):
    plain = tmp_path / "plain"
    assert train(runs_of_blobs, plain, flip=True, **LIKE_BLOBS, **WHOLE) == 0
    assert evaluate.main(["--job_dir", str(plain), "--resamples", "100"]) == 0
    assert compare.main([str(run), str(plain), "--output", str(tmp_path / "page.html")]) == 0
    assert "context_slices" in (tmp_path / "page.html").read_text()


def test_another_data_set_is_evaluated_with_its_own_neighbours(run, files, tmp_path):
    second = blob_dataset.make(tmp_path / "second", patients=12, seed=9, draw=blob_dataset.in_runs, first=500)
    flags = ["--job_dir", str(run), "--data_dir", str(second), "--split", "all", "--output", str(tmp_path / "said")]
    assert evaluate.main([*flags, "--resamples", "100"]) == 0
    found = predictions.read(tmp_path / "said" / evaluated.PREDICTIONS)
    evaluation = dict(zip(found.ids["sop_uid"].to_pylist(), found.probabilities))
    assert_close(predicted(run, tmp_path / "second-dicom", tmp_path / "out", "--pictures", "0"), evaluation)


# runs


def test_stopped_it_ends_with_the_same_bits(runs_of_blobs, tmp_path):
    """A fold of two data sets: what a batch holds follows from the step alone."""
    second = blob_dataset.make(tmp_path / "second", patients=20, slices_a_patient=6, seed=3, first=500)
    settings = {"context_slices": 1, "flip": True, "rotate_deg": 10, "sampling": "natural", "folds": 3, "fold": 1}
    flags = ("--data_dir", str(second))
    assert train(runs_of_blobs, tmp_path / "whole", *flags, **settings, epochs=2) == 0
    for epochs in (1, 2):
        assert train(runs_of_blobs, tmp_path / "parts", *flags, **settings, epochs=epochs) == 0
    one, other = (
        checkpoints.load(tmp_path / name / "checkpoints" / "step-000000006.npz") for name in ("whole", "parts")
    )
    assert [array.tobytes() for array in one.arrays] == [array.tobytes() for array in other.arrays]


def test_a_run_of_before_the_setting_goes_on_and_another_number_is_refused(tiny_dataset, tmp_path, capsys):
    assert train(tiny_dataset, tmp_path / "run", epochs=1) == 0
    for path in (tmp_path / "run" / "checkpoints").glob("step-*.npz"):
        found = checkpoints.load(path)
        del found.state["identity"]["settings"]["context_slices"]
        checkpoints.save(path.parent, path.stem, found.arrays, found.names, found.state)
    capsys.readouterr()
    assert train(tiny_dataset, tmp_path / "run", epochs=2, context_slices=1) == 2
    assert "context_slices: 0, now 1" in one_line(capsys)
    assert train(tiny_dataset, tmp_path / "run", epochs=2) == 0
    assert "goes on from step 3" in capsys.readouterr().out


def test_a_model_of_before_the_setting_is_read(blob_run_copy, some, tmp_path):
    path = blob_run_copy / "export" / "about.json"
    values = json.loads(path.read_text())
    del values["settings"]["context_slices"]
    path.write_text(json.dumps(values))
    about = model_file.read_about(path.parent)
    assert (about.context_slices, about.in_series, about.input_shape) == (0, False, (16, 16, 3))
    assert len(predicted(blob_run_copy, some, tmp_path / "out", "--pictures", "0")) == 60


@pytest.mark.parametrize("stem", ["adapter", "repeat"])
def test_both_stems_take_the_channels(stem, tiny_dataset, tmp_path, monkeypatch):
    """Begun with the weights of a network that sees single slices."""
    for name, function in TINY.items():
        monkeypatch.setattr(keras.applications, name, function)
    first = tmp_path / "three.keras"
    networks.build("convnexttiny", (32, 32, 3), 6, "none", {}).save(first)
    settings = {"weights": str(first), "stem": stem, "context_slices": 1, "epochs": 1, "batch_size": 8}
    assert train(tiny_dataset, tmp_path / "run", model="convnexttiny", **settings) == 0
    about = model_file.read_about(tmp_path / "run" / "export")
    assert model_file.load_model(tmp_path / "run" / "export", about).input_shape == (None, 32, 32, 9)


# refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"context_slices": -1}, "context_slices is -1; use 0 to 8"),
        ({"context_slices": 9}, "context_slices is 9; use 0 to 8"),
        ({"context_slices": 0.5}, "context_slices is 0.5; it must be a whole number"),
    ],
)
def test_wrong_numbers(settings, words, tiny_dataset, tmp_path, capsys):
    assert train(tiny_dataset, tmp_path / "run", **settings) == 2
    assert words in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_a_series_run_takes_it_from_its_slice_run(tiny_dataset, tmp_path, capsys):
    assert train(tiny_dataset, tmp_path / "run", model="series", context_slices=1) == 2
    told = "context_slices is 1; of model series its slice run has it, so leave it at 0"
    assert one_line(capsys) == f"train: {told}"


def test_a_set_of_single_slices(tmp_path, capsys):
    odd = odd_dataset.make(tmp_path / "odd")
    flags = {"context_slices": 1, "validation_split": "", "absent_labels": True, "test_split": ""}
    assert train(odd, tmp_path / "run", **flags) == 2
    assert "has two slices, so no slice has a neighbour" in one_line(capsys)
    assert not (tmp_path / "run").exists()
