"""Runs on a data set of HU: windows fixed and learned, resumed, evaluated, exported; and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from unittest import mock

import blob_dataset
import numpy as np
import pytest
import tensorflow as tf
from small_runs import one_line, train

from ich_tfrecords import inspect, pixels, spec
from ich_tfrecords.dataset import manifest
from ich_tfrecords.views import montage
from trainer import embed, evaluate, export, predict
from trainer.models import explain, model_file, window_layer, windows
from trainer.training import checkpoints

pytestmark = pytest.mark.slow  # trains

TOLERANCE = 2e-5  # between two programs of one network, in probabilities
LEARNED = {
    "windows": "learned", "window_form": "sigmoid", "learning_rate": 0.003, "steps_per_epoch": 5, "flip": True,
    "rotate_deg": 10, "absent_labels": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def of_hu(tmp_path_factory) -> Path:
    """The data set of blobs as HU; beside it `windowed`, the same slices as windows."""
    small, folder = blob_dataset.small_spec(), tmp_path_factory.mktemp("hu")
    blob_dataset.make(folder / "windowed", patients=12)
    image = dataclasses.replace(small.image, kind=spec.HU)
    with mock.patch.object(blob_dataset, "small_spec", return_value=dataclasses.replace(small, image=image)):
        return blob_dataset.make(folder / "set", patients=12)


@pytest.fixture(scope="module")
def learned(of_hu, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("learned") / "run"
    assert train(of_hu, folder, **LEARNED, epochs=3) == 0
    return folder


def test_the_set_is_told_checked_and_shown(of_hu, tmp_path, capsys):
    assert inspect.main(["verify", str(of_hu)]) == 0
    assert inspect.main(["info", str(of_hu)]) == 0
    assert "int16 (16, 16, 1)" in capsys.readouterr().out
    assert "int16 [16, 16, 1], quarters of a HU, shown in windows" in (of_hu / "README.md").read_text()
    for command in ("show", "report", "export"):
        assert inspect.main([command, str(of_hu), "--output", str(tmp_path / f"{command}.png")]) == 0, command
    pictures, uids = [], []
    for name in ("set", "windowed"):
        found = manifest.read(of_hu.parent / name).spec
        rows = montage.slice_rows(of_hu.parent / name, found)
        pictures.append(montage.read_pictures(of_hu.parent / name, rows.slice(0, 20), found))
        uids.append(rows["sop_uid"].to_pylist())
    assert uids[0] == uids[1]
    for one, other in zip(*pictures, strict=True):
        assert one.image.dtype == np.uint8
        assert np.abs(one.image[..., 2].astype(int) - other.image[..., 2]).max() <= 1  # no HU ends the bone window


def test_fixed_windows_are_as_good_as_those_of_the_set(of_hu, tmp_path):
    """The same network, weights and slices: the losses differ by what rounding makes of them."""
    of_sets = []
    for name in ("set", "windowed"):
        assert train(of_hu.parent / name, tmp_path / name, absent_labels=True, epochs=2) == 0
        rows = (tmp_path / name / "history.csv").read_text().splitlines()
        of_sets.append(float(dict(zip(rows[0].split(","), rows[-1].split(",")))["val_log_loss"]))
    assert of_sets[0] == pytest.approx(of_sets[1], rel=0.05)


def test_windows_of_the_settings_need_no_new_conversion(of_hu, tmp_path, capsys):
    assert train(of_hu, tmp_path, absent_labels=True, windows="30/60 45/1000", epochs=1) == 0
    about = model_file.read_about(tmp_path / "export")
    assert [one["level_hu"] for one in about.facts["windows"]["now"]] == [30, 45]
    assert about.shown.image.windows == (spec.Window("window_1", 30, 60), spec.Window("window_2", 45, 1000))
    assert "windows learned" not in capsys.readouterr().out


def test_learned_windows_move_and_are_told(learned, of_hu, tmp_path, capsys):
    about = model_file.read_about(learned / "export")
    found = about.facts["windows"]
    assert found["begun"] == ["brain 40/80", "subdural 80/200", "bone 40/380"]
    assert all(one["width_hu"] not in (80, 200, 380) for one in found["now"])
    rows = (learned / "history.csv").read_text().splitlines()
    losses = [float(dict(zip(rows[0].split(","), row.split(",")))["loss"]) for row in rows[1:]]
    assert losses[-1] < losses[0]
    out = tmp_path / "evaluated"
    assert evaluate.main(["--job_dir", str(learned), "--output", str(out)]) == 0
    assert json.loads((out / "metrics.json").read_text())["what"]["windows"] == found
    now = found["now"][0]
    said = f"brain 40/80 to {now['level_hu']:.4g}/{now['width_hu']:.4g}"
    assert f"learned, sigmoid: {said}" in (out / "report.html").read_text()
    assert train(of_hu, learned, **LEARNED, epochs=3) == 0  # ends again, and says it again
    assert f"windows learned (sigmoid), level/width in HU: {said}" in capsys.readouterr().out


def test_windows_that_a_series_run_trains_on_are_told_anew(learned, of_hu, tmp_path):
    """Of slice model and context together: what is said of the windows is what the weights say by then."""
    shutil.copytree(learned, tmp_path / "slices")
    both = {"end_to_end": True, "accumulate": 2, "batch_size": 2, "epochs": 1, "steps_per_epoch": 2}
    small = {"architecture__width": 8, "architecture__units": 4, "absent_labels": True}
    slice_run = ("--slice_run", str(tmp_path / "slices"))
    assert train(of_hu, tmp_path / "both", *slice_run, model="series", **both, **small) == 0
    before, after = (
        model_file.read_about(folder) for folder in (learned / "export", tmp_path / "both" / "export" / "slice")
    )
    inside = windows.of_settings("learned", "sigmoid", after.spec.image)
    trained = model_file.load_model(tmp_path / "both" / "export" / "slice", after)
    assert after.facts["windows"] == window_layer.facts(trained, inside)
    assert after.facts["windows"]["now"] != before.facts["windows"]["now"]
    whole = model_file.read_about(tmp_path / "both" / "export")
    assert (
        whole.facts["windows"] == after.facts["windows"]
    )  # pictures of the series model show what its slices are seen in


def test_a_run_of_learned_windows_resumes_to_the_bit(learned, of_hu, tmp_path):
    assert train(of_hu, tmp_path, **LEARNED, epochs=1) == 0
    assert train(of_hu, tmp_path, **LEARNED, epochs=3) == 0
    one, other = (checkpoints.load(folder / "checkpoints" / "step-000000015.npz") for folder in (learned, tmp_path))
    assert one.names == other.names
    assert [array.tobytes() for array in one.arrays] == [array.tobytes() for array in other.arrays]


def test_the_export_says_what_keras_says(learned, tmp_path):
    assert export.main(["--job_dir", str(learned), "--output", str(tmp_path / "saved")]) == 0
    card = (tmp_path / "saved" / "MODEL_CARD.md").read_text()
    assert "learned with everything else; training began with brain 40/80, subdural 80/200, bone 40/380" in card
    about = model_file.read_about(learned / "export")
    trained = model_file.load_model(learned / "export", about)
    signatures = tf.saved_model.load(str(tmp_path / "saved")).signatures
    hu = np.random.default_rng(1).integers(-50, 150, (3, 50, 40), np.int16)
    images = np.stack([pixels.image_of(one, about.spec.image) for one in hu])
    seen = signatures["image"](hu=tf.constant(hu))["image"].numpy()
    np.testing.assert_array_equal(seen, images)
    said = signatures["hu"](hu=tf.constant(hu))["probabilities"].numpy()
    np.testing.assert_allclose(said, about.probabilities(model_file.scorer(trained)(images)), atol=TOLERANCE)
    maps = explain.explainer(trained)(images, 0)
    assert maps.shape == (3, 16, 16)
    assert np.isfinite(maps).all()


def test_prediction_and_vectors(learned, of_hu, tmp_path):
    """The same probabilities from files as from records."""
    source = of_hu.parent / "set-dicom"
    assert predict.main(["--model", str(learned), "--input", str(source), "--output", str(tmp_path / "out")]) == 0
    assert sorted(path.suffix for path in (tmp_path / "out" / "pictures").iterdir())[0] == ".png"
    assert embed.main(["--job_dir", str(learned), "--data_dir", str(of_hu), "--split", "test"]) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"windows": "learned"}, "windows is 'learned', and the data set holds windows already (brain 40/80, subdural"),
        ({"window_form": "sigmoid"}, "window_form is 'sigmoid', and the data set holds windows already"),
        ({"window_form": "round"}, "window_form is 'round'; known are clipped, sigmoid"),
    ],
)
def test_a_set_of_windows_takes_no_others(of_hu, tmp_path, capsys, settings, words):
    assert train(of_hu.parent / "windowed", tmp_path / "run", absent_labels=True, **settings) == 2
    assert words in one_line(capsys)
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"windows": "40-80"}, "windows: '40-80' is no level/width in HU; write such as '40/80 80/200'"),
        ({"contrast": 0.2}, "contrast is 0.2, and it changes grey levels; this data set holds HU, so set it to 0"),
        ({"brightness": 0.1}, "brightness is 0.1, and it changes grey levels"),
    ],
)
def test_wrong_use_is_one_line(of_hu, tmp_path, capsys, settings, words):
    assert train(of_hu, tmp_path / "run", absent_labels=True, **settings) == 2
    assert words in one_line(capsys)


def test_a_model_of_hu_is_not_tried_on_windows(learned, of_hu, capsys):
    """And the other way round; windows that only the eye needs may differ."""
    capsys.readouterr()
    assert evaluate.main(["--job_dir", str(learned), "--data_dir", str(of_hu.parent / "windowed")]) == 2
    assert "(image.kind: hu, now windows)" in capsys.readouterr().err
    about = model_file.read_about(learned / "export")
    other = dataclasses.replace(about.spec.image, windows=(spec.Window("lung", -600, 1500),))
    assert spec.sample_differences(about.spec, dataclasses.replace(about.spec, image=other)) == []
    assert windows.of_settings("", "clipped", other).shown[0].level_hu == -600
