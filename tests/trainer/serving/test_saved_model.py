"""The SavedModel: TensorFlow alone loads it, and it answers what Keras and the calibration say."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import keras
import made_series
import numpy as np
import pytest
import tensorflow as tf
from made_series import GRU, TRANSFORMER, Made, odds_of

from ich_tfrecords import pixels, spec
from ich_tfrecords.dataset import manifest, records
from ich_tfrecords.dicom import ct_slice
from trainer.models import model_file, networks
from trainer.models.model_file import About
from trainer.results.calibration import Calibration
from trainer.serving import saved_model

pytestmark = pytest.mark.slow  # saves and loads graphs

RSNA = spec.load("rsna_ich")
LABELS = RSNA.labels.names
HU = np.random.default_rng(0).integers(-1100, 2000, (3, 150, 131), np.int16)


def about_of(model: str, data: spec.DatasetSpec = RSNA) -> About:
    shift, slope = np.linspace(-1, 1, 6), np.linspace(0.5, 2, 6)
    fitted = Calibration(LABELS, shift, slope, np.linspace(0.2, -0.2, 6), {})
    thresholds = {name: {"even": 0.5} for name in LABELS}
    facts = {"data_dir": "data/rsna_ich", "parameters": 1, "epoch": 1, "step": 7, "versions": {}}
    return About(data, "f" * 64, {"model": model}, fitted, thresholds, thresholds, facts, odds_of(LABELS))


def drawn(name: str, architecture: dict, data: spec.DatasetSpec = RSNA) -> keras.Model:
    """A model whose variables, moving means too, are unlike those of a new one."""
    keras.utils.set_random_seed(1)
    model = networks.build(name, data.image.shape, len(LABELS), "none", architecture)
    for variable in model.variables:
        if "moving" in variable.path:
            variable.assign(keras.random.uniform(variable.shape, 0.5, 1.5))
    return model


def expected(model: keras.Model, about: About, hu: np.ndarray) -> np.ndarray:
    """Probabilities by pixels.py, Keras and numpy."""
    images = np.stack([pixels.image_of(one, about.spec.image) for one in hu])
    return about.probabilities(model(images, training=False))


@pytest.fixture(scope="module")
def cnn() -> keras.Model:
    return drawn("cnn", {"filters": [4, 8], "dense": [16], "dropout": 0.5})


@pytest.fixture(scope="module")
def folder(cnn, tmp_path_factory) -> Path:
    """A SavedModel of `cnn`."""
    folder = tmp_path_factory.mktemp("saved") / "cnn"
    saved_model.write(folder, cnn, about_of("cnn"))
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return tf.saved_model.load(str(folder))


def ask(loaded, name: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    dtypes = {"hu": tf.int16, "records": tf.string}
    tensors = {key: tf.constant(value, dtypes[key]) for key, value in inputs.items()}
    return {key: value.numpy() for key, value in loaded.signatures[name](**tensors).items()}


@pytest.mark.parametrize("signature", ["hu", "serving_default"])
def test_probabilities_and_labels_of_hu(loaded, cnn, signature):
    found = ask(loaded, signature, hu=HU)
    assert found["probabilities"].dtype == np.float32
    np.testing.assert_allclose(found["probabilities"], expected(cnn, about_of("cnn"), HU), atol=1e-6, rtol=0)
    assert found["labels"].tolist() == [[name.encode() for name in LABELS]] * 3


def test_probabilities_do_not_change_from_call_to_call(loaded):
    """Dropout is off."""
    first, second = (ask(loaded, "hu", hu=HU)["probabilities"] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_the_image_that_the_model_sees(loaded):
    images = [pixels.image_of(one, RSNA.image) for one in HU]
    np.testing.assert_array_equal(ask(loaded, "image", hu=HU)["image"], images)


def test_no_slices(loaded):
    none = np.zeros((0, 512, 512), np.int16)
    for found in (ask(loaded, "hu", hu=none), ask(loaded, "records", records=np.array([], bytes))):
        assert found["probabilities"].shape == found["labels"].shape == (0, len(LABELS))
    assert ask(loaded, "image", hu=none)["image"].shape == (0, *RSNA.image.shape)


def test_a_converted_record_and_its_dicom_file_have_the_same_probabilities(loaded, synthetic_set, dataset):
    """From stored bytes on both ways: shard -> `records`, DICOM file -> `hu`."""
    done = manifest.read(dataset)
    table = records.features(done.spec)
    shards = sorted(dataset.glob("*.tfrecord*"))
    serialized = [payload for shard in shards for _, payload in records.read_records(shard.open("rb"))][::3]
    by_record = ask(loaded, "records", records=serialized)["probabilities"]
    assert len(by_record) >= 10
    for payload, probabilities in zip(serialized, by_record, strict=True):
        uid = records.parse(payload, table)["sop_uid"].decode()
        hu = ct_slice.read_slice((synthetic_set.output / "stage_2_train" / f"{uid}.dcm").read_bytes()).hu
        found = ask(loaded, "hu", hu=hu[None])["probabilities"][0]
        np.testing.assert_allclose(found, probabilities, atol=1e-6, rtol=0)


def test_a_damaged_record_is_refused(loaded):
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"Feature: image .* is required"):
        ask(loaded, "records", records=[b""])


def test_signatures_say_what_they_take_and_give(loaded):
    assert set(loaded.signatures) == {"hu", "serving_default", "records", "image"}
    hu = loaded.signatures["serving_default"]
    (taken,) = hu.structured_input_signature[1].values()
    assert (taken.name, taken.dtype, taken.shape.as_list()) == ("hu", tf.int16, [None, None, None])
    given = {name: (one.dtype, one.shape.as_list()) for name, one in hu.structured_outputs.items()}
    assert given == {"probabilities": (tf.float32, [None, 6]), "labels": (tf.string, [None, 6])}


def test_what_it_was_made_from_lies_among_the_assets(folder, loaded):
    path = Path(loaded.about.asset_path.numpy().decode())
    assert path.is_relative_to(folder)
    found, about = model_file.read_about(path.parent), about_of("cnn")
    assert (found.spec, found.fingerprint, found.settings) == (about.spec, about.fingerprint, about.settings)
    assert found.calibration.to_dict() == about.calibration.to_dict()
    assert found.odds.to_dict() == about.odds.to_dict()
    assert json.loads(path.read_text())["thresholds"] == about.thresholds


def test_it_holds_the_variables_of_the_model_and_nothing_that_only_python_can_run(folder, loaded, cnn):
    assert len(loaded.weights) == len(cnn.variables)
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    nodes = [node for meta in saved.meta_graphs for f in meta.graph_def.library.function for node in f.node_def]
    kinds = {node.op for node in nodes}
    assert "Conv2D" in kinds
    assert not [kind for kind in kinds if "Py" in kind or "Xla" in kind]
    assert not [node.name for node in nodes if node.attr["_XlaMustCompile"].b]


ALONE = """
import sys
for name in ("keras", "trainer", "ich_tfrecords"):
    sys.modules[name] = None  # importing one of them fails: TensorFlow itself takes Keras where it finds it
import numpy, tensorflow as tf
for place in sys.argv[1:]:
    model = tf.saved_model.load(place)
    given = {name: tf.constant(value) for name, value in numpy.load(place + ".given.npz").items()}
    found = {name: value.numpy() for name, value in model.signatures["serving_default"](**given).items()}
    found["labels"] = found["labels"].astype(bytes)  # not objects, which would be pickled
    numpy.savez(place + ".found.npz", **found)
    assert b"fingerprint" in tf.io.read_file(model.about.asset_path).numpy()
"""


def test_a_fresh_process_needs_tensorflow_alone(folder, cnn, tmp_path):
    """The cnn, and Xception, which has batch normalisation, separable convolutions, dropout and a resize."""
    small = dataclasses.replace(RSNA, image=dataclasses.replace(RSNA.image, size_px=32))
    xception = drawn("xception", {"dropout": 0.5}, small)
    saved_model.write(tmp_path / "xception", xception, about_of("xception", small))
    places = {folder: (cnn, RSNA), tmp_path / "xception": (xception, small)}
    found = alone(places, hu=HU)
    for one, (model, data) in zip(found, places.values(), strict=True):
        wanted = expected(model, about_of("any", data), HU)
        np.testing.assert_allclose(one["probabilities"], wanted, atol=1e-6, rtol=0)


def alone(places: Iterable[Path], **given: np.ndarray) -> list[dict[str, np.ndarray]]:
    """What SavedModels answer in a process that has TensorFlow only."""
    for place in places:
        np.savez(f"{place}.given.npz", **given)
    command_line = [sys.executable, "-I", "-c", ALONE, *map(str, places)]
    done = subprocess.run(command_line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [dict(np.load(f"{place}.found.npz")) for place in places]


# --- of series -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[GRU, TRANSFORMER], ids=["gru", "transformer"])
def series(request, tmp_path_factory) -> tuple[Made, Path]:
    """A series model and its SavedModel."""
    made, folder = made_series.made(request.param), tmp_path_factory.mktemp("saved") / "series"
    saved_model.write(folder, made.context, made.about, made.slice_model)
    return made, folder


def test_a_series_needs_tensorflow_alone(series):
    made, folder = series
    hu, position_mm = made_series.head(37)
    (found,) = alone([folder], hu=hu, position_mm=position_mm)
    slices, study = made.says(hu, position_mm)
    np.testing.assert_allclose(found["probabilities"], slices, atol=1e-6, rtol=0)
    np.testing.assert_allclose(found["study_probabilities"], study, atol=1e-6, rtol=0)
    assert found["labels"].tolist() == [[name.encode() for name in LABELS]] * 37


def test_signatures_of_a_series_model(series):
    """None of single slices: that would be the slice model alone."""
    made, folder = series
    loaded = tf.saved_model.load(str(folder))
    assert set(loaded.signatures) == {"series", "serving_default", "image"}
    for name in ("series", "serving_default"):
        signature = loaded.signatures[name]
        taken = {one.name: (one.dtype, one.shape.as_list()) for one in signature.structured_input_signature[1].values()}
        assert taken == {"hu": (tf.int16, [None, None, None]), "position_mm": (tf.float32, [None])}
        given = {name: (one.dtype, one.shape.as_list()) for name, one in signature.structured_outputs.items()}
        assert given == {
            "probabilities": (tf.float32, [None, 6]),
            "study_probabilities": (tf.float32, [6]),
            "labels": (tf.string, [None, 6]),
        }
    hu = made_series.head(5)[0]
    images = [pixels.image_of(one, made.about.spec.image) for one in hu]
    np.testing.assert_array_equal(ask(loaded, "image", hu=hu)["image"], images)


def test_a_series_model_holds_both_networks_in_float32(series):
    made, folder = series
    loaded = tf.saved_model.load(str(folder))
    assert len(loaded.weights) == len(made.context.variables) + len(made.slice_model.variables)
    assert {one.dtype for one in loaded.weights if one.dtype.is_floating} == {tf.float32}
    assert model_file.read_about(Path(loaded.about.asset_path.numpy().decode()).parent).blend is not None


def test_no_slices_are_refused_in_a_saved_model(series):
    loaded = tf.saved_model.load(str(series[1]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="a series must have at least one slice"):
        loaded.signatures["series"](hu=tf.zeros((0, 512, 512), tf.int16), position_mm=tf.zeros(0))
