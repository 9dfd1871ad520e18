"""The classifiers: shapes, dtypes, input scaling as keras.applications has it, weights from files and the cache.

`small` puts a one-layer application in DenseNet's place, where the real one would only cost time. The real ones are
built once (`densenet`, `xception`) and where a test says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import socket
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from trainer.models import networks, pretrained
from trainer.models.applications import APPLICATIONS
from trainer.models.backbones import backbone
from trainer.shell.problems import WrongUse

pytestmark = pytest.mark.slow  # builds large networks

SIZES = (16, 32, 100, 128)
WINDOWS = (1, 3, 5)


def images(size: int, windows: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, size, size, windows), dtype=np.uint8)


def small_application(include_top: bool, weights: None, input_shape: tuple[int, ...]) -> keras.Model:
    start = keras.Input(input_shape)
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="first")(start)
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(5, 1)(x))
    return keras.Model(start, keras.layers.Activation("relu")(x))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(keras.applications, "DenseNet121", small_application)
    return APPLICATIONS["densenet121"]


@pytest.fixture(scope="module")
def densenet() -> keras.Model:
    return networks.build("densenet121", (32, 32, 3), 6, "none", {"dropout": 0.1})


@pytest.fixture(scope="module")
def xception() -> keras.Model:
    return networks.build("xception", (32, 32, 5), 6, "none", {"dropout": 0.15})


@pytest.fixture
def policy():
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy("float32")


def scaled(model: keras.Model, batch: np.ndarray) -> np.ndarray:
    """What the application receives."""
    return keras.Model(model.input, model.get_layer("imagenet_scale").output)(batch).numpy()


def assert_same_weights(one: keras.Model, other: keras.Model) -> None:
    assert [weight.path for weight in one.weights] == [weight.path for weight in other.weights]
    for a, b in zip(one.weights, other.weights):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


def assert_contract(model: keras.Model, size: int, windows: int, labels: int) -> None:
    assert model.input.name == "image"
    assert model.input.dtype == "uint8"
    assert model.get_layer("logits").output is model.output
    logits = model(images(size, windows))
    assert logits.shape == (2, labels)
    assert logits.dtype == tf.float32
    assert np.isfinite(logits.numpy()).all()


# Builders


@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("size", [8, *SIZES])
def test_every_size_and_number_of_windows(small, size, windows):
    assert_contract(networks.build("cnn", (size, size, windows), 6, "none", {"dense": [8]}), size, windows, 6)
    model = networks.build("densenet121", (size, size, windows), 4, "none", {})
    assert_contract(model, size, windows, 4)
    assert backbone(model).input_shape == (None, max(size, 32), max(size, 32), 3)


def test_the_real_applications(densenet, xception):
    assert_contract(densenet, 32, 3, 6)
    assert_contract(xception, 32, 5, 6)
    assert backbone(densenet).output_shape == (None, 1, 1, 1024)
    assert backbone(xception).output_shape == (None, 3, 3, 2048)
    assert xception.get_layer("dropout").rate == 0.15


@pytest.mark.parametrize(
    ("name", "shape", "dtype_policy"),
    [
        ("cnn", (16, 16, 3), "mixed_bfloat16"),
        ("cnn", (16, 16, 3), "mixed_float16"),
        ("densenet121", (16, 16, 1), "mixed_bfloat16"),
        ("xception", (32, 32, 1), "mixed_float16"),
    ],
)
def test_logits_and_scaling_are_float32_under_a_mixed_policy(small, policy, name, shape, dtype_policy):
    policy(dtype_policy)
    model = networks.build(name, shape, 6, "none", {})
    assert_contract(model, shape[0], shape[2], 6)
    inner = backbone(model) or model.get_layer("conv_1")
    assert inner.output.dtype == dtype_policy.removeprefix("mixed_")
    kept = {layer.name: layer.compute_dtype for layer in model.layers}
    assert kept["unit_scale"] == kept["logits"] == "float32"
    if name != "cnn":
        assert kept["imagenet_scale"] == kept["mean"] == "float32"


def test_the_cnn_is_the_one_of_the_thesis():
    model = networks.build("cnn", (128, 128, 3), 6, "none", {"filters": [32, 64], "dense": [128, 64]})
    kinds = [type(layer).__name__ for layer in model.layers]
    blocks = ["Conv2D", "MaxPooling2D"] * 2
    assert kinds == ["InputLayer", "Rescaling", *blocks, "Flatten", "Dense", "Dense", "Dense"]
    assert model.get_layer("flatten").output.shape == (None, 32 * 32 * 64)
    convolutions = 3 * 3 * 3 * 32 + 32 + 3 * 3 * 32 * 64 + 64
    assert model.count_params() == convolutions + 65536 * 128 + 128 + 128 * 64 + 64 + 64 * 6 + 6
    assert backbone(model) is None


def test_the_cnn_scales_bytes_to_one():
    model = networks.build("cnn", (16, 16, 1), 6, "none", {})
    batch = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    unit = keras.Model(model.input, model.get_layer("unit_scale").output)(batch).numpy()
    np.testing.assert_allclose(unit, batch / 255, atol=1e-7)


def test_the_same_logits_eagerly_and_in_a_graph():
    model = networks.build("cnn", (16, 16, 3), 6, "none", {"dense": []})
    batch = images(16, 3)
    eager = model(batch).numpy()
    np.testing.assert_allclose(tf.function(model)(tf.constant(batch)).numpy(), eager, atol=1e-6)
    mapped = next(iter(tf.data.Dataset.from_tensors(batch).map(model)))
    np.testing.assert_allclose(mapped.numpy(), eager, atol=1e-6)


# Input of the applications


def test_scaling_equals_preprocess_input_of_the_application(densenet, small):
    every = np.repeat(np.arange(1024, dtype=np.uint32).astype(np.uint8).reshape(1, 32, 32, 1), 3, axis=-1)
    wanted = keras.applications.densenet.preprocess_input(every.astype(np.float32))
    np.testing.assert_allclose(scaled(densenet, every), wanted, atol=1e-6)
    grey = networks.build("densenet121", (32, 32, 1), 6, "none", {})
    np.testing.assert_allclose(scaled(grey, every[..., :1]), wanted, atol=1e-6)


def test_five_windows_reach_xception_as_their_means(xception):
    """A constant image, so that the resize from 32 to 71 px changes nothing."""
    window = np.array([0, 50, 100, 200, 255], np.uint8)
    batch = np.broadcast_to(window, (1, 32, 32, 5))
    rgb = np.array([(0 + 200) / 2, (50 + 255) / 2, 100], np.float32)
    wanted = keras.applications.xception.preprocess_input(np.broadcast_to(rgb, (1, 71, 71, 3)).copy())
    np.testing.assert_allclose(scaled(xception, batch), wanted, atol=1e-6)


def test_rgb_kernel_literally():
    assert networks.rgb_kernel(1)[0, 0].tolist() == [[1, 1, 1]]
    assert networks.rgb_kernel(2)[0, 0].tolist() == [[1, 0, 1], [0, 1, 0]]
    assert networks.rgb_kernel(3)[0, 0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert networks.rgb_kernel(4)[0, 0].tolist() == [[0.5, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0, 0]]


@given(st.integers(1, 20))
def test_rgb_kernel_uses_every_window_and_keeps_grey(windows):
    kernel = networks.rgb_kernel(windows)
    assert kernel.shape == (1, 1, windows, 3)
    assert kernel.dtype == np.float32
    for colour in range(3):
        mine = [window for window in range(windows) if window % 3 == colour] or [colour % windows]
        oracle = [1 / len(mine) if window in mine else 0 for window in range(windows)]
        np.testing.assert_allclose(kernel[0, 0, :, colour], oracle, rtol=1e-6)
    assert (kernel.sum(axis=(0, 1, 3)) > 0).all()


# Reproducible, saved, frozen


@pytest.mark.parametrize("name", ["cnn", "densenet121"])
def test_a_seed_gives_the_same_weights_under_the_same_names(small, name):
    made = []
    for seed in (4, 4, 5):
        keras.utils.set_random_seed(seed)
        made.append(networks.build(name, (16, 16, 5), 6, "none", {}))
    assert_same_weights(made[0], made[1])
    assert (made[0].get_layer("logits").kernel.numpy() != made[2].get_layer("logits").kernel.numpy()).any()


def test_saved_files_open_with_plain_keras_and_as_weights(xception, tmp_path):
    xception.save(tmp_path / "model.keras")
    batch = images(32, 5)
    wanted = xception(batch).numpy()
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(batch).numpy(), wanted)
    assert backbone(loaded).name == "xception"


@pytest.mark.parametrize("suffix", ["weights.h5", "keras"])
@pytest.mark.parametrize("dropouts", [(0.3, 0.3), (0.3, 0), (0, 0.3)])
def test_weights_of_a_file_whatever_the_dropout(small, tmp_path, suffix, dropouts):
    first, second = ({"dropout": dropout} for dropout in dropouts)
    saved = networks.build("densenet121", (16, 16, 5), 6, "none", first)
    saved.save(tmp_path / f"m.{suffix}") if suffix == "keras" else saved.save_weights(tmp_path / f"m.{suffix}")
    again = networks.build("densenet121", (16, 16, 5), 6, str(tmp_path / f"m.{suffix}"), second)
    assert_same_weights(saved, again)


def test_a_frozen_backbone_keeps_its_batch_norm_means(densenet):
    part = backbone(densenet)
    part.trainable = False
    before = [weight.numpy() for weight in part.weights]
    densenet(images(32, 3), training=True)
    assert all((weight.numpy() == old).all() for weight, old in zip(part.weights, before))
    assert [weight.path for weight in densenet.trainable_weights] == ["logits/kernel", "logits/bias"]
    part.trainable = True
    densenet(images(32, 3), training=True)
    assert any((weight.numpy() != old).any() for weight, old in zip(part.weights, before))


# Weights of an application


def save_notop(application: keras.Model, path: Path) -> None:
    """As keras.applications publishes them: the old HDF5 layout, layers at the root."""
    application.save(path.with_name("whole.h5"))
    with h5py.File(path.with_name("whole.h5")) as whole, h5py.File(path, "w") as file:
        for key, value in whole["model_weights"].attrs.items():
            file.attrs[key] = value
        for name in whole["model_weights"]:
            whole.copy(f"model_weights/{name}", file)


def test_weights_of_keras_applications_fill_the_real_xception(xception, tmp_path):
    published = keras.applications.Xception(include_top=False, weights=None, input_shape=(71, 71, 3))
    published.save(tmp_path / "x_notop.h5")
    again = networks.build("xception", (32, 32, 5), 6, str(tmp_path / "x_notop.h5"), {})
    batch = np.random.default_rng(1).normal(size=(1, 71, 71, 3)).astype(np.float32)
    np.testing.assert_array_equal(backbone(again)(batch).numpy(), published(batch).numpy())
    # Checkpoints go by these names, also when a process builds a model twice.
    assert [weight.path for weight in again.weights] == [weight.path for weight in xception.weights]
    assert len({weight.path for weight in again.weights}) == len(again.weights)


@pytest.fixture
def cache(small, tmp_path, monkeypatch):
    """An empty Keras folder, and ImageNet weights of the small application at a file: URL."""
    source = tmp_path / "server" / "small_notop.h5"
    source.parent.mkdir()
    save_notop(small_application(False, None, (32, 32, 3)), source)
    md5 = hashlib.md5(source.read_bytes(), usedforsecurity=False).hexdigest()
    application = dataclasses.replace(small, weights=source.as_uri(), digest=md5)
    monkeypatch.setitem(APPLICATIONS, "densenet121", application)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path / "keras" / "models"


def test_imagenet_weights_are_fetched_once_and_used(cache, monkeypatch):
    model = networks.build("densenet121", (32, 32, 5), 6, "imagenet", {})
    assert [file.name for file in cache.iterdir()] == ["small_notop.h5"]
    with h5py.File(cache / "small_notop.h5") as file:
        found: list[np.ndarray] = []
        file["first"].visititems(lambda _, member: found.append(member[()]) if hasattr(member, "shape") else None)
    kernel = backbone(model).get_layer("first").kernel.numpy()
    assert any(np.array_equal(values, kernel) for values in found)
    np.testing.assert_array_equal(model.get_layer("windows_to_rgb").kernel.numpy(), networks.rgb_kernel(5))
    monkeypatch.setattr(keras.utils, "get_file", None)
    networks.build("densenet121", (32, 32, 3), 6, "imagenet", {})


def broken_off(name, origin, cache_dir, cache_subdir, file_hash):
    Path(cache_dir, cache_subdir, name).write_bytes(b"half")
    raise OSError("connection lost")


def no_network(name, origin, cache_dir, cache_subdir, file_hash):
    raise Exception("URL fetch failure on ...: None --\n[Errno 111] Connection refused")


def another_file(name, origin, cache_dir, cache_subdir, file_hash):
    Path(cache_dir, cache_subdir, name).write_bytes(b"<html>please log in</html>")
    return str(Path(cache_dir, cache_subdir, name))


@pytest.mark.parametrize("get_file", [broken_off, no_network, another_file])
@pytest.mark.parametrize("left_by_a_killed_run", [False, True])
def test_a_failed_download_is_one_line_with_the_ways_out(cache, monkeypatch, get_file, left_by_a_killed_run):
    cache.mkdir(parents=True)
    left = [cache / "small_notop.h5"] if left_by_a_killed_run else []
    for file in left:
        file.write_bytes(b"half")
    monkeypatch.setattr(keras.utils, "get_file", get_file)
    for _ in range(2):
        with pytest.raises(WrongUse) as told:
            networks.build("densenet121", (32, 32, 3), 6, "imagenet", {})
        line = str(told.value)
        assert "\n" not in line
        for part in ("--weights none", "--weights PATH", str(cache), "small_notop.h5", "file://"):
            assert part in line
        assert sorted(cache.iterdir()) == left


def test_a_server_that_falls_silent_is_given_up(cache, monkeypatch):
    monkeypatch.setattr(pretrained, "SILENCE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes the connection, and never answers
        url = f"http://127.0.0.1:{server.getsockname()[1]}/small_notop.h5"
        silent = dataclasses.replace(APPLICATIONS["densenet121"], weights=url)
        monkeypatch.setitem(APPLICATIONS, "densenet121", silent)
        with pytest.raises(WrongUse, match=r"nor can it be downloaded .*timed out"):
            pretrained.imagenet_weights("densenet121")
    assert list(cache.iterdir()) == []
    assert socket.getdefaulttimeout() is None


def test_a_source_that_is_not_there(cache, monkeypatch):
    gone = dataclasses.replace(APPLICATIONS["densenet121"], weights="file:///nowhere/small_notop.h5")
    monkeypatch.setitem(APPLICATIONS, "densenet121", gone)
    with pytest.raises(WrongUse, match="URL fetch failure"):
        pretrained.imagenet_weights("densenet121")
    assert list(cache.iterdir()) == []


def test_half_a_file_in_the_cache_is_fetched_again(cache):
    cache.mkdir(parents=True)
    (cache / "small_notop.h5").write_bytes(b"half")
    networks.build("densenet121", (32, 32, 3), 6, "imagenet", {})
    assert (cache / "small_notop.h5").stat().st_size > 1000


def test_without_a_digest_the_file_must_be_whole(cache, monkeypatch):
    """Keras publishes none for one network; HDF5 knows its own length."""
    row = dataclasses.replace(APPLICATIONS["densenet121"], digest="")
    monkeypatch.setitem(APPLICATIONS, "densenet121", row)
    content = Path(row.weights.removeprefix("file://")).read_bytes()
    cache.mkdir(parents=True)
    for left in (content[: len(content) // 2], b"<html>please log in</html>"):
        (cache / "small_notop.h5").write_bytes(left)
        assert pretrained.imagenet_weights("densenet121").read_bytes() == content
    monkeypatch.setattr(keras.utils, "get_file", another_file)
    pretrained.imagenet_weights("densenet121")  # whole by now
    (cache / "small_notop.h5").unlink()
    with pytest.raises(WrongUse, match="26 bytes came, not a whole HDF5 file"):
        pretrained.imagenet_weights("densenet121")
    assert list(cache.iterdir()) == []


def test_the_cache_folder_is_the_one_of_keras(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert pretrained._keras_folder() == tmp_path
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pretrained._keras_folder() == tmp_path / ".keras"


# Files that do not fit


@pytest.fixture
def saved_cnn(tmp_path) -> Path:
    model = networks.build("cnn", (16, 16, 3), 6, "none", {"dense": [8]})
    model.save(tmp_path / "cnn.keras")
    model.save_weights(tmp_path / "cnn.weights.h5")
    return tmp_path


def refused(path: Path, name: str = "cnn", shape: tuple[int, ...] = (16, 16, 3), **architecture) -> str:
    architecture = architecture or ({"dense": [8]} if name == "cnn" else {})
    with pytest.raises(WrongUse) as told:
        networks.build(name, shape, 6, str(path), architecture)
    assert "\n" not in str(told.value)
    assert path.name in str(told.value)
    return str(told.value)


def test_a_missing_file(tmp_path):
    assert "no such file" in refused(tmp_path / "none.weights.h5")
    assert "no such file" in refused(tmp_path)


def test_another_kind_of_file(tmp_path):
    (tmp_path / "weights.npz").write_bytes(b"x")
    assert ".weights.h5" in refused(tmp_path / "weights.npz")
    (tmp_path / "densenet_notop.h5").write_bytes(b"x")
    assert "no application part" in refused(tmp_path / "densenet_notop.h5")


@pytest.mark.parametrize("name", ["cnn.keras", "cnn.weights.h5"])
@pytest.mark.parametrize(
    "other",
    [
        {"filters": [32, 32], "dense": [8]},
        {"filters": [32], "dense": [8]},
        {"filters": [32, 64, 64], "dense": [8]},
        {"dense": [8, 8]},
        {"dense": [8], "shape": (32, 32, 3)},
        {"name": "densenet121"},
    ],
    ids=str,
)
def test_another_architecture(small, saved_cnn, name, other):
    assert "another architecture" in refused(saved_cnn / name, **other)


def test_another_application(small, tmp_path):
    start = keras.Input((32, 32, 3))
    keras.Model(start, keras.layers.Conv2D(4, 3)(start)).save(tmp_path / "other.h5")
    assert "Layer count mismatch" in refused(tmp_path / "other.h5", "densenet121", (32, 32, 3))


@pytest.mark.parametrize("name", ["cnn.keras", "cnn.weights.h5"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file(saved_cnn, name, kept):
    content = (saved_cnn / name).read_bytes()
    (saved_cnn / name).write_bytes(content[: int(len(content) * kept)])
    refused(saved_cnn / name)


def test_a_flipped_byte_in_a_keras_file(saved_cnn):
    path = saved_cnn / "cnn.keras"
    with zipfile.ZipFile(path) as archive:
        weights = archive.getinfo("model.weights.h5")
    content = bytearray(path.read_bytes())
    content[weights.header_offset + weights.compress_size // 2] ^= 0x10
    path.write_bytes(content)
    assert "CRC" in refused(path)


def test_a_file_that_is_no_number(saved_cnn):
    model = networks.build("cnn", (16, 16, 3), 6, "none", {"dense": [8]})
    model.get_layer("conv_2").bias.assign(np.full(64, np.nan))
    model.save_weights(saved_cnn / "nan.weights.h5")
    assert "conv_2/bias" in refused(saved_cnn / "nan.weights.h5")


# Wrong use


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("densenet", (32, 32, 3), 6, "none", {}), "did you mean 'densenet121'?"),
        (("alexnet", (32, 32, 3), 6, "none", {}), "known are cnn, densenet121, densenet169"),
        (("cnn", (32, 32, 3), 6, "none", {"filter": [8]}), "did you mean 'filters'?"),
        (("xception", (32, 32, 3), 6, "none", {"filters": [8]}), "known are dropout"),
        (("cnn", (32, 32, 3), 6, "imagenet", {}), "none for cnn"),
        (("cnn", (7, 7, 3), 6, "none", {}), "size >= 8"),
        (("cnn", (32, 16, 3), 6, "none", {}), "size, size"),
        (("cnn", (32, 32), 6, "none", {}), "size, size"),
        (("cnn", (32, 32, 0), 6, "none", {}), "channels >= 1"),
        (("cnn", (32, 32, 3), 0, "none", {}), "labels >= 1"),
        (("cnn", (8, 8, 3), 6, "none", {"filters": [4, 4, 4, 4]}), "give <= 3"),
        (("cnn", (8, 8, 3), 6, "none", {"filters": []}), "filters is []"),
        (("cnn", (8, 8, 3), 6, "none", {"filters": 32}), "filters is 32"),
        (("cnn", (8, 8, 3), 6, "none", {"dense": [8, 0]}), "dense is [8, 0]"),
        (("cnn", (8, 8, 3), 6, "none", {"dense": ["8"]}), "dense is ['8']"),
        (("xception", (32, 32, 3), 6, "none", {"dropout": 1.0}), "dropout is 1.0"),
        (("densenet121", (32, 32, 3), 6, "none", {"dropout": float("nan")}), "dropout is nan"),
        (("densenet121", (32, 32, 3), 6, "none", {"dropout": "0.1"}), "dropout is '0.1'"),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else value,
)
def test_wrong_use_is_told_in_one_line(arguments, told):
    with pytest.raises(WrongUse) as error:
        networks.build(*arguments)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
