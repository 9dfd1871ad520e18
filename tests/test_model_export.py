"""The exported model: the trained values in float32, and either the old files or the new ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from ich_tfrecords import manifest as manifests
from ich_tfrecords.spec import from_dict
from trainer import export, models
from trainer.problems import TrainingFailed


@pytest.fixture
def policy():
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy("float32")


def build(dense: int = 4) -> keras.Model:
    return models.build("cnn", (8, 8, 3), 6, "none", {"filters": [2], "dense": [dense]})


@pytest.fixture
def done(tiny_dataset):
    return manifests.read(tiny_dataset)


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_copy_computes_in_float32_with_the_same_values(precision, policy):
    policy(precision)
    model = build()
    copy = export.float32_copy(model, build)
    assert keras.config.dtype_policy().name == precision
    assert {layer.compute_dtype for layer in copy.layers} == {"float32"}
    for mine, trained in zip(copy.variables, model.variables, strict=True):
        np.testing.assert_array_equal(mine.numpy(), trained.numpy())
    policy("float32")
    plain = build()
    for mine, trained in zip(plain.variables, model.variables, strict=True):
        mine.assign(trained)
    np.testing.assert_array_equal(copy(IMAGES), plain(IMAGES))


def test_the_policy_comes_back_when_building_fails(policy):
    policy("mixed_bfloat16")
    with pytest.raises(ZeroDivisionError):
        export.float32_copy(build(), lambda: 1 / 0)
    assert keras.config.dtype_policy().name == "mixed_bfloat16"


def test_the_file_opens_with_keras_alone_and_says_what_it_takes(done, tmp_path):
    """In a process that cannot import this project."""
    model = build()
    path = export.write(tmp_path / "new" / "export", model, done, {"shift": {"any": 0.5}})
    assert path == tmp_path / "new" / "export" / "model.keras"
    assert [one.name for one in (tmp_path / "new").iterdir()] == ["export"]
    np.save(tmp_path / "images.npy", IMAGES)
    code = "import keras, numpy, sys; m = keras.models.load_model(sys.argv[1]); x = numpy.load(sys.argv[2])\n"
    code += "numpy.save(sys.argv[3], m(x))"
    files = [str(path), str(tmp_path / "images.npy"), str(tmp_path / "logits.npy")]
    subprocess.run([sys.executable, "-I", "-c", code, *files], check=True, cwd=tmp_path, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), model(IMAGES), rtol=1e-6)
    about = json.loads((path.parent / "about.json").read_text())
    assert from_dict(about["spec"], "about.json") == done.spec
    assert about["fingerprint"] == done.fingerprint
    assert about["shift"] == {"any": 0.5}


def test_a_new_model_takes_the_place_of_the_old(done, tmp_path):
    export.write(tmp_path / "export", build(), done, {})
    path = export.write(tmp_path / "export", build(dense=9), done, {})
    assert keras.models.load_model(path).get_layer("dense_1").units == 9


def test_a_failed_write_leaves_the_old_model(done, tmp_path, monkeypatch):
    path = export.write(tmp_path / "export", build(), done, {"run": 1})
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(export.atomic, "write_bytes", full)
    with pytest.raises(
        TrainingFailed, match=r"cannot write the model to .*export: No space left on device; training is"
    ):
        export.write(tmp_path / "export", build(dense=9), done, {"run": 2})
    assert path.read_bytes() == before
    assert json.loads((path.parent / "about.json").read_text())["run"] == 1
    assert [one.name for one in tmp_path.iterdir()] == ["export"]


def test_a_place_that_cannot_be_made(done, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(TrainingFailed, match="cannot write the model to"):
        export.write(Path(tmp_path / "file" / "export"), build(), done, {})
