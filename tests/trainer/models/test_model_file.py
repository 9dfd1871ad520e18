"""The exported model: the trained values in float32, and either the old files or the new ones."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from ich_tfrecords.dataset import manifest as manifests
from trainer.models import model_file, networks
from trainer.models.model_file import About
from trainer.results import calibration, joint, thresholds
from trainer.shell.problems import TrainingFailed, WrongUse


@pytest.fixture
def policy():
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy("float32")


def build(dense: int = 4) -> keras.Model:
    return networks.build("cnn", (8, 8, 3), 6, "none", {"filters": [2], "dense": [dense]})


@pytest.fixture
def about(tiny_dataset) -> About:
    done = manifests.read(tiny_dataset)
    spec = dataclasses.replace(done.spec, image=dataclasses.replace(done.spec.image, size_px=8))
    fitted = calibration.unfitted(spec.labels.names, [0.5, 0, 0, 0, 0, 0.1], "too few slices")
    even = thresholds.unchosen(spec.labels.names)
    facts = {"parameters": 7, "epoch": 2, "step": 219}
    odds = joint.alone(spec.labels.names, spec.labels.any, [0.5, 0, 0, 0, 0, 0.1], 0.01)
    return About(spec, done.fingerprint, {"model": "cnn", "seed": 1}, fitted, even, even, facts, odds)


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_copy_computes_in_float32_with_the_same_values(precision, policy):
    policy(precision)
    model = build()
    copy = model_file.float32_copy(model, build)
    assert keras.config.dtype_policy().name == precision
    assert {layer.compute_dtype for layer in copy.layers} == {"float32"}
    for mine, trained in zip(copy.variables, model.variables, strict=True):
        np.testing.assert_array_equal(mine.numpy(), trained.numpy())
    policy("float32")
    plain = build()
    for mine, trained in zip(plain.variables, model.variables, strict=True):
        mine.assign(trained)
    np.testing.assert_array_equal(copy(IMAGES), plain(IMAGES))


@pytest.mark.slow
def test_the_policy_comes_back_when_building_fails(policy):
    policy("mixed_bfloat16")
    with pytest.raises(ZeroDivisionError):
        model_file.float32_copy(build(), lambda: 1 / 0)
    assert keras.config.dtype_policy().name == "mixed_bfloat16"


@pytest.mark.slow
def test_the_file_opens_with_keras_alone_and_says_what_it_takes(about, tmp_path):
    """In a process that cannot import this project."""
    model = build()
    path = model_file.write(tmp_path / "new" / "export", model, about)
    assert path == tmp_path / "new" / "export" / "model.keras"
    assert [one.name for one in (tmp_path / "new").iterdir()] == ["export"]
    np.save(tmp_path / "images.npy", IMAGES)
    code = "import keras, numpy, sys; m = keras.models.load_model(sys.argv[1]); x = numpy.load(sys.argv[2])\n"
    code += "numpy.save(sys.argv[3], m(x))"
    files = [str(path), str(tmp_path / "images.npy"), str(tmp_path / "logits.npy")]
    subprocess.run([sys.executable, "-I", "-c", code, *files], check=True, cwd=tmp_path, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), model(IMAGES), rtol=1e-6)
    same(model_file.read_about(path.parent), about)


def same(one: About, other: About) -> None:
    assert model_file.to_json(one) == model_file.to_json(other)
    assert one.spec == other.spec
    np.testing.assert_array_equal(one.calibration.shift, other.calibration.shift)


def test_a_new_model_takes_the_place_of_the_old(about, tmp_path):
    model_file.write(tmp_path / "export", build(), about)
    path = model_file.write(tmp_path / "export", build(dense=9), about)
    assert keras.models.load_model(path).get_layer("dense_1").units == 9


def test_a_failed_write_leaves_the_old_model(about, tmp_path, monkeypatch):
    path = model_file.write(tmp_path / "export", build(), about)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(model_file.atomic, "write_bytes", full)
    with pytest.raises(
        TrainingFailed, match=r"cannot write the model to .*export: No space left on device; make room there"
    ):
        model_file.write(tmp_path / "export", build(dense=9), dataclasses.replace(about, fingerprint="other"))
    assert path.read_bytes() == before
    same(model_file.read_about(path.parent), about)
    assert [one.name for one in tmp_path.iterdir()] == ["export"]


def test_a_place_that_cannot_be_made(about, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(TrainingFailed, match="cannot write the model to"):
        model_file.write(Path(tmp_path / "file" / "export"), build(), about)


# what it says


def test_probabilities_hold_no_kind_above_any(about):
    """Logits 1 to 6, the smoothing undone, the shift taken off twice; `any`, the first, is the least."""
    found = about.probabilities([[1.0, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])
    natural = about.odds.log_odds([[1.0, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]]) - about.calibration.shift
    np.testing.assert_allclose(found[0], 1 / (1 + np.exp(-natural[0, 0])))
    np.testing.assert_allclose(found[1], 1 / (1 + np.exp(-np.minimum(natural[1], natural[1, 0]))))


def test_a_model_of_an_earlier_version_loads_and_says_so(about, tmp_path):
    """Its format is 1 and it has no odds; what it makes of logits is as it was, but for kinds above `any`."""
    values = json.loads(model_file.to_json(about))
    del values["odds"]
    (tmp_path / "about.json").write_text(json.dumps({**values, "format": 1}))
    found = model_file.read_about(tmp_path)
    assert found.odds is None
    logits = np.array([[3.0, 2, 1, 0, -1, -2]])
    np.testing.assert_array_equal(found.probabilities(logits), about.calibration.probabilities(logits))
    (note,) = found.notes("runs/old")
    assert note.startswith("the calibration is of the earlier kind: it undoes the sampling label by label, which is")
    assert note.endswith("; fit it anew with python -m trainer.evaluate --job_dir runs/old --recalibrate")
    assert about.notes("runs/new") == []


# finding and reading


@pytest.fixture
def exported(about, tmp_path) -> Path:
    return model_file.write(tmp_path / "run" / "export", build(), about).parent


def test_a_run_and_its_export_are_the_same_model(exported):
    assert model_file.find(str(exported)) == model_file.find(str(exported.parent)) == exported


def test_a_run_that_was_trained_on_is_not_taken_for_its_old_model(exported):
    """After Ctrl-C in a later epoch the export is still that of an earlier one."""
    checkpoints = exported.parent / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "step-000000219.npz").write_text("x")
    assert model_file.find(str(exported.parent)) == exported
    (checkpoints / "step-000000290.npz").write_text("x")
    with pytest.raises(WrongUse, match=r"trained on to step 290 since its model was written at step 219; the same"):
        model_file.find(str(exported.parent))
    assert model_file.find(str(exported)) == exported


def test_the_run_of_an_export(exported):
    assert model_file.run_folder(exported) == exported
    (exported.parent / "config.yaml").write_text("model: cnn\n")
    assert model_file.run_folder(exported) == exported.parent


def test_a_run_of_vertex_ai_has_its_model_beside_its_checkpoints(exported, tmp_path):
    """AIP_MODEL_DIR is the folder `model` of the job's folder, AIP_CHECKPOINT_DIR the folder `checkpoints`."""
    run = tmp_path / "job"
    shutil.copytree(exported, run / "model")
    (run / "config.yaml").write_text("model: cnn\n")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step-000000219.npz").write_text("x")
    assert model_file.find(str(run)) == run / "model"
    assert model_file.run_folder(run / "model") == run
    (run / "checkpoints" / "step-000000290.npz").write_text("x")
    with pytest.raises(WrongUse, match=r"trained on to step 290 .* or give .*job/model for the model of then"):
        model_file.find(str(run))


def test_the_file_itself_is_no_folder(exported):
    with pytest.raises(WrongUse, match=r"is a file; give the folder it lies in, with its about\.json"):
        model_file.find(str(exported / "model.keras"))


def test_weights_have_a_name(exported, about):
    first = model_file.digest(exported)
    assert len(first) == 64
    model_file.write(exported, build(dense=9), about)
    assert model_file.digest(exported) != first


def test_the_same_weights_have_the_same_name_whenever_they_are_written(about, tmp_path, monkeypatch):
    """A run that has ended is written once more by the same command; vectors and series runs know it by this name."""
    names, models = [], [build(), build()]  # at other places in memory
    for year, model in zip((2020, 2031), models):
        for one, other in zip(model.weights, models[0].weights, strict=True):
            one.assign(other)
        clock = time.struct_time((year, 3, 4, 5, 6, 7, 0, 64, 0))
        monkeypatch.setattr(time, "localtime", lambda *_, clock=clock: clock)
        monkeypatch.setattr(time, "time", lambda year=year: (year - 1970) * 31_556_952.0)
        names.append(model_file.digest(model_file.write(tmp_path / str(year), model, about).parent))
    assert names[0] == names[1]
    again = model_file.load_model(tmp_path / "2020", about)
    for one, other in zip(models[0].get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "holds no model.keras with its about.json"),
        (["config.yaml"], "is a run without a checkpoint, so there is no model yet; start its train command again"),
        (["config.yaml", "checkpoints/step-000000003.npz"], "is a run whose training has not ended; the same train"),
        (["saved_model.pb"], "is an export without model.keras and about.json"),
        (["image.onnx"], "is an export without model.keras and about.json"),
        (["model.keras"], "holds no model.keras with its about.json"),
    ],
)
def test_what_is_no_model_is_told(tmp_path, files, words):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(WrongUse) as caught:
        model_file.find(str(tmp_path))
    assert words in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(WrongUse, match="does not exist; give the folder of a run"):
        model_file.find(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values.update(format=3), "this version reads the formats 1, 2"),
        (lambda values: values.pop("format"), "'format'"),
        (lambda values: values.pop("fingerprint"), "fingerprint"),
        (lambda values: values.update(more=1), "more"),
        (lambda values: values["spec"].pop("image"), "image"),
        (lambda values: values["calibration"]["shift"].pop(), "shift"),
        (lambda values: values["calibration"]["names"].reverse(), "other labels than the spec"),
        (lambda values: values.update(thresholds=None), "thresholds"),
        (lambda values: values["thresholds"]["subdural"].clear(), "thresholds must hold even for each of any,"),
        (lambda values: values["study_thresholds"].pop("any"), "study_thresholds must hold even"),
        (lambda values: values.update(settings={}), "settings name no model"),
        (lambda values: values.update(settings=None), "settings is None, no object"),
        (lambda values: values["facts"].pop("parameters"), "facts hold no parameters"),
        (lambda values: values.update(facts=[]), "facts is [], no object"),
    ],
)
def test_a_damaged_about_is_told_in_one_line(exported, change, words):
    path = exported / "about.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(WrongUse) as caught:
        model_file.read_about(exported)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[]"])
def test_an_about_that_is_no_json(exported, data):
    (exported / "about.json").write_bytes(data)
    with pytest.raises(WrongUse, match=r"cannot use .*about\.json \("):
        model_file.read_about(exported)


def test_the_model_comes_back(exported, about):
    model = model_file.load_model(exported, about)
    assert model.output_shape == (None, 6)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04nothing", b"\0" * 4000])
def test_a_damaged_model_is_told(exported, about, data):
    (exported / "model.keras").write_bytes(data)
    with pytest.raises(WrongUse, match=r"cannot read .*model\.keras \("):
        model_file.load_model(exported, about)


def test_a_model_of_another_shape_is_told(exported, about):
    image = dataclasses.replace(about.spec.image, size_px=16)
    with pytest.raises(WrongUse, match="they are of two models"):
        model_file.load_model(exported, dataclasses.replace(about, spec=dataclasses.replace(about.spec, image=image)))


@pytest.mark.parametrize("size", [1, 5])
def test_the_scorer_gives_the_logits_of_the_model(size):
    model = build()
    found = model_file.scorer(model)(IMAGES[:size])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, model(IMAGES[:size]), rtol=1e-5, atol=1e-6)


def test_flipped_scores_are_the_mean_of_both_sides():
    model = build()
    expected = (model(IMAGES).numpy() + model(IMAGES[:, :, ::-1]).numpy()) / 2
    found = model_file.scorer(model, flip=True)
    np.testing.assert_allclose(found(IMAGES), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found(IMAGES[:, :, ::-1]), expected, rtol=1e-5, atol=1e-6)
