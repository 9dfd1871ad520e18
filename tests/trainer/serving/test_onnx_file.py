"""ONNX files: onnxruntime alone gives the pixels of the data set bit for bit, and the SavedModel's probabilities."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import keras
import made_series
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from made_series import GRU, LABELS, RSNA, SMALL, TRANSFORMER
from tiny_networks import tiny_convnext, tiny_efficientnet

from ich_tfrecords import NOT_A_DEVICE, pixels, spec
from ich_tfrecords.dicom import ct_slice
from ich_tfrecords.problems import Problem
from ich_tfrecords.spec import HEAD
from trainer.models import model_file, networks
from trainer.models.model_file import About
from trainer.serving import answers, graph, onnx_file, saved_model
from trainer.serving.answers import Served
from trainer.shell.problems import WorkFailed, WrongUse

pytestmark = pytest.mark.slow  # converts graphs

CLOSE = {"atol": 1e-5, "rtol": 0}
OVER_VECTORS = {"atol": 1e-4, "rtol": 0}  # their last bit of float16 may fall to the other side
RNG = np.random.default_rng(0)
HU = RNG.integers(-1100, 2000, (3, 150, 131), np.int16)
SIZES = [(1, 128, 128), (2, 512, 512), (3, 150, 131), (1, 33, 7), (2, 1, 300), (1, 640, 513)]


def changed(data: spec.DatasetSpec, **image: object) -> spec.DatasetSpec:
    return dataclasses.replace(data, image=dataclasses.replace(data.image, **image))


def plain(about: About, **settings: object) -> About:
    """`about` without the odds, whose hundreds of operators take most of a conversion; `settings` on top."""
    return dataclasses.replace(about, odds=None, settings={**about.settings, **settings})


def slices_of(data: spec.DatasetSpec) -> About:
    return made_series.about_of("cnn", data, made_series.odds_of(LABELS), None)


def network(about: About, name: str = "cnn", **architecture: object) -> keras.Model:
    keras.utils.set_random_seed(1)
    return networks.build(name, about.input_shape, len(LABELS), "none", architecture)


def written(folder: Path, model: keras.Model, about: About, *more: object) -> Served:
    """ONNX files as an export writes them, opened."""
    folder.mkdir(parents=True)
    (folder / model_file.MODEL).write_bytes(b"the weights")
    onnx_file.write(folder, model, about, *more)
    return onnx_file.opened(folder)


def images_of(hu: np.ndarray, data: spec.DatasetSpec) -> np.ndarray:
    return np.stack([pixels.image_of(one, data.image) for one in hu])


@pytest.fixture(scope="module")
def of_slices(tmp_path_factory) -> tuple[Served, Served, Path]:
    """A cnn as ONNX and as a SavedModel, and the folder of the former."""
    folder, about = tmp_path_factory.mktemp("onnx"), slices_of(RSNA)
    model = network(about, filters=[4, 8], dense=[16], dropout=0.5)
    saved_model.write(folder / "saved_model", model, about)
    return written(folder / "onnx", model, about), saved_model.opened(folder / "saved_model"), folder / "onnx"


def of_real_slices(place: Path) -> list[tuple[np.ndarray, float]]:
    found = []
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        try:
            one = ct_slice.read_slice(path.read_bytes())
        except Problem:
            continue  # what conversion rejects reaches no model either
        found.append((one.hu, one.header.position_mm))
    assert len(found) >= 28
    return found


# --- slices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_slices_of_any_size_have_the_pixels_of_the_data_set_and_the_answers_of_the_saved_model(of_slices, shape):
    served, saved, _ = of_slices
    hu = np.where(RNG.random(shape) < 0.1, RNG.integers(-32768, 32768, shape), RNG.integers(-400, 500, shape))
    hu = hu.astype(np.int16)
    np.testing.assert_array_equal(served.signatures["image"](hu=hu)["image"], images_of(hu, RSNA))
    found, wanted = served.signatures["hu"](hu=hu), saved.signatures["hu"](hu=hu)
    np.testing.assert_allclose(found["probabilities"], wanted["probabilities"], **CLOSE)
    assert found["probabilities"].dtype == np.float32
    assert found["labels"].tolist() == [list(LABELS)] * len(hu)


def test_synthetic_slices(of_slices, synthetic_set):
    check_slices(of_slices, [ct_slice.read_slice(path.read_bytes()).hu for path in dicom_of(synthetic_set.output)])


@pytest.mark.real
def test_real_slices(of_slices, real_dicom_dir):
    check_slices(of_slices, [hu for hu, _ in of_real_slices(real_dicom_dir)])


def dicom_of(folder: Path) -> list[Path]:
    return sorted((folder / "stage_2_train").glob("*.dcm"))


def check_slices(of_slices: tuple[Served, Served, Path], slices: list[np.ndarray]) -> None:
    served, saved, _ = of_slices
    shown = np.empty((0, len(LABELS)))
    for hu in (one[None] for one in slices):
        np.testing.assert_array_equal(served.signatures["image"](hu=hu)["image"], images_of(hu, RSNA))
        found, wanted = (one.signatures["hu"](hu=hu)["probabilities"] for one in (served, saved))
        np.testing.assert_allclose(found, wanted, **CLOSE)
        shown = np.concatenate([shown, found])
    assert len(shown) >= 28
    assert (np.ptp(shown, axis=0) > 0.001).any()  # slices differ by far more than the two may


def test_every_int16_value(of_slices):
    hu = np.arange(-32768, 32768, dtype=np.int16).reshape(1, 256, 256)
    np.testing.assert_array_equal(of_slices[0].signatures["image"](hu=hu)["image"], images_of(hu, RSNA))


@pytest.mark.parametrize("data", ["head", "hu"])
def test_other_images(data, tmp_path):
    """The square around the head, which branches; and HU, whose means are negative and must not round towards 0."""
    small = changed(RSNA, size_px=20, crop=HEAD) if data == "head" else changed(spec.load("rsna_hu"), size_px=20)
    about = plain(slices_of(small))
    served = written(tmp_path / "onnx", network(about, filters=[4], dense=[8]), about)
    row, column = np.mgrid[:150, :131]
    head = np.where((row - 60) ** 2 + (column - 50) ** 2 < 1000, 40, -1000) + RNG.integers(-10, 10, (2, 150, 131))
    for hu in (head.astype(np.int16), HU, HU[:, :19, :11], np.full((1, 90, 90), -1024, np.int16)):
        np.testing.assert_array_equal(served.signatures["image"](hu=hu)["image"], images_of(hu, small))
        assert served.signatures["hu"](hu=hu)["probabilities"].shape == (len(hu), len(LABELS))


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "tiny"),
    [("convnexttiny", ("ConvNeXtTiny", tiny_convnext)), ("efficientnetv2b0", ("EfficientNetV2B0", tiny_efficientnet))],
)
def test_what_backbones_have_of_their_own(name, tiny, monkeypatch, tmp_path):
    """GELU by erfc, convolutions in groups that Keras hands to XLA, squeezes, resizing of small images."""
    monkeypatch.setattr(keras.applications, *tiny)
    about = plain(slices_of(changed(RSNA, size_px=32)), model=name)
    model = network(about, name)
    served = written(tmp_path / "onnx", model, about)
    answers.check(served, model, about)


def test_sure_logits_keep_their_digits():
    """onnxruntime has softplus in float32 alone; the served graph has its own, in float64."""
    about = slices_of(SMALL)

    @tf.function(input_signature=[tf.TensorSpec((None, 6), tf.float64, name="logits")])
    def answered(logits):
        return {"log_odds": graph.log_odds(logits, about.odds)}

    session = onnxruntime.InferenceSession(onnx_file._converted(answered, "cnn").SerializeToString())
    logits = np.linspace(-60, 60, 6 * 41).reshape(-1, 6)
    (found,) = session.run(["log_odds"], {"logits": logits})
    np.testing.assert_allclose(found, about.odds.log_odds(logits), rtol=1e-8, atol=1e-8)


# --- series --------------------------------------------------------------------------------------------------


@pytest.fixture(
    scope="module", params=[GRU, pytest.param(TRANSFORMER, marks=pytest.mark.long)], ids=["gru", "transformer"]
)
def of_series(request, tmp_path_factory) -> tuple[Served, made_series.Made]:
    made = made_series.made(request.param)
    return written(tmp_path_factory.mktemp("onnx") / "onnx", made.context, made.about, made.slice_model), made


@pytest.mark.parametrize("slices", [1, 2, 31, 32, 33, 64, 100])
def test_series_of_any_length(of_series, slices):
    check_series(of_series, *made_series.head(slices))


def check_series(of_series: tuple[Served, made_series.Made], hu: np.ndarray, position_mm: np.ndarray) -> None:
    served, made = of_series
    found = served.signatures["series"](hu=hu, position_mm=position_mm)
    slices, study = made.says(hu, position_mm)
    np.testing.assert_allclose(found["probabilities"], slices, **OVER_VECTORS)
    np.testing.assert_allclose(found["study_probabilities"], study, **OVER_VECTORS)
    assert found["labels"].tolist() == [list(LABELS)] * len(hu)
    np.testing.assert_array_equal(served.signatures["image"](hu=hu)["image"], images_of(hu, made.about.spec))


def test_ties_keep_the_order_they_came_in(of_series):
    hu, _ = made_series.head(9)
    check_series(of_series, hu, np.array([3, 1, 3, 1, 2, 1, 3, 2, 1], np.float32))


@pytest.mark.real
def test_real_slices_as_series(of_series, real_dicom_dir):
    """Those that share their size, as one series each, at the positions of their files."""
    by_size: dict[tuple[int, ...], list[tuple[np.ndarray, float]]] = {}
    for hu, position_mm in of_real_slices(real_dicom_dir):
        by_size.setdefault(hu.shape, []).append((hu, position_mm))
    for slices in by_size.values():
        hu, position_mm = (np.array(one) for one in zip(*slices))
        check_series(of_series, hu, position_mm.astype(np.float32))


@pytest.mark.parametrize("position_mm", [[1, np.nan, 3], [1, np.inf, 3], [2, 2, 2]], ids=str)
def test_what_has_no_order_gets_nan_and_no_answer(of_series, position_mm):
    """ONNX cannot refuse."""
    hu, _ = made_series.head(3)
    found = of_series[0].signatures["series"](hu=hu, position_mm=np.array(position_mm, np.float32))
    assert np.isnan(found["probabilities"]).all()
    assert np.isnan(found["study_probabilities"]).all()


def test_slices_with_their_neighbours(tmp_path):
    about = plain(slices_of(SMALL), context_slices=2)
    model = network(about, filters=[4], dense=[8])
    served = written(tmp_path / "onnx", model, about)
    assert set(served.signatures) == {"series", "image"}
    answers.check_neighbours(served, model, about)
    hu, _ = made_series.head(3)
    assert np.isnan(served.signatures["series"](hu=hu, position_mm=np.zeros(3, np.float32))["probabilities"]).all()


# --- the files -----------------------------------------------------------------------------------------------


def test_a_file_says_what_it_is(of_slices):
    folder = of_slices[2]
    assert {path.name for path in folder.iterdir()} == {"hu.onnx", "image.onnx", model_file.MODEL}
    for path in folder.glob("*.onnx"):
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert NOT_A_DEVICE in model.doc_string
        facts = {one.key: one.value for one in model.metadata_props}
        assert facts["not_a_device"] == NOT_A_DEVICE
        assert facts["weights"] == model_file.digest(folder)
        assert json.loads(facts["labels"]) == list(LABELS)
        assert json.loads(facts["windows"])[0] == {"name": "brain", "level_hu": 40, "width_hu": 80}
        (folder / model_file.ABOUT).write_text(facts["about"])
        assert model_file.read_about(folder).spec == RSNA
        (folder / model_file.ABOUT).unlink()


def test_inputs_and_outputs_have_names_and_axes(of_slices, of_series):
    def told(session: onnxruntime.InferenceSession) -> dict[str, tuple[str, list[object]]]:
        return {one.name: (one.type, one.shape) for one in (*session.get_inputs(), *session.get_outputs())}

    hu = ("tensor(int16)", ["n", "rows", "columns"])
    answers_of_slices = {"probabilities": ("tensor(float)", ["n", 6]), "labels": ("tensor(string)", ["n", 6])}
    assert told(onnxruntime.InferenceSession(of_slices[2] / "hu.onnx")) == {"hu": hu, **answers_of_slices}
    assert told(onnxruntime.InferenceSession(of_slices[2] / "image.onnx")) == {
        "hu": hu, "image": ("tensor(uint8)", ["n", 128, 128, 3]),
    }  # fmt: skip


ALONE = """
import sys
for name in ("tensorflow", "keras", "tf2onnx", "onnx", "trainer", "ich_tfrecords"):
    sys.modules[name] = None  # importing one of them fails
import numpy, onnxruntime
model = onnxruntime.InferenceSession(sys.argv[1] + "/hu.onnx")
numpy.save(sys.argv[1] + "/found.npy", model.run(["probabilities"], {"hu": numpy.load(sys.argv[1] + "/hu.npy")})[0])
"""


def test_a_fresh_process_needs_onnxruntime_alone(of_slices):
    served, _, folder = of_slices
    np.save(folder / "hu.npy", HU)
    done = subprocess.run([sys.executable, "-I", "-c", ALONE, folder], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    np.testing.assert_array_equal(np.load(folder / "found.npy"), served.signatures["hu"](hu=HU)["probabilities"])
    for name in ("hu.npy", "found.npy"):
        (folder / name).unlink()


# --- refused -------------------------------------------------------------------------------------------------


def test_an_operator_that_onnx_does_not_have_is_named(capfd):
    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x")])
    def of_bessel(x):
        return {"y": tf.while_loop(lambda at, y: at < 3, lambda at, y: (at + 1, tf.math.bessel_i0e(y)), (0, x))[1]}

    with pytest.raises(WrongUse, match=r"^ONNX has no operator for what densenet121 needs: BesselI0e \(1\); leave out"):
        onnx_file._converted(of_bessel, "densenet121")
    assert capfd.readouterr().err == ""


def test_other_answers_than_those_of_keras_are_refused(of_slices):
    about = slices_of(RSNA)
    with pytest.raises(WorkFailed, match="the ONNX is off by"):
        answers.check(of_slices[0], network(about, filters=[4], dense=[8]), about)
