"""Windows inside a model: what a setting says, what the layers make of HU, and what is read off them."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_tfrecords import pixels, spec
from trainer.models import model_file, networks, window_layer, windows
from trainer.models.windows import CLIPPED, SIGMOID, Shown, Windows
from trainer.shell.problems import WrongUse

RSNA = spec.load("rsna_ich").image
HU = dataclasses.replace(RSNA, kind=spec.HU)
SIDE = 8


def small(inside: Windows, channels: int = 1, labels: int = 6, weights: str = "none", told=lambda text: None):
    architecture = {"filters": [4], "dense": [8]}
    return networks.build("cnn", (SIDE, SIDE, channels), labels, weights, architecture, note=told, windows=inside)


def layer_alone(inside: Windows, channels: int = 1) -> keras.Model:
    images = keras.Input((SIDE, SIDE, channels), dtype="int16")
    return keras.Model(images, window_layer.layers(images, inside))


def by_hand(hu: np.ndarray, inside: Windows) -> np.ndarray:
    """float64 [n, s, s, c * w], channel by channel and window by window."""
    made = []
    for channel in range(hu.shape[-1]):
        for one in inside.shown:
            x = (hu[..., channel] / 4 - one.level_hu) / one.width_hu
            made.append(np.clip(x + 0.5, 0, 1) if inside.form == CLIPPED else 1 / (1 + np.exp(-4 * x)))
    return np.stack(made, -1)


@pytest.mark.parametrize(
    ("text", "shown", "learned"),
    [
        ("", "brain 40/80, subdural 80/200, bone 40/380", False),
        ("learned", "brain 40/80, subdural 80/200, bone 40/380", True),
        ("40/80", "window_1 40/80", False),
        ("40/80 -600/1500.5", "window_1 40/80, window_2 -600/1500", False),
        ("40/80, 80/200", "window_1 40/80, window_2 80/200", False),
        ("learned 35.5/71", "window_1 35.5/71", True),
    ],
)
def test_what_a_setting_says(text, shown, learned):
    found = windows.of_settings(text, SIGMOID, HU)
    assert found is not None
    assert ", ".join(map(str, found.shown)).replace("1500.5", "1500") == shown
    assert (found.form, found.learned) == (SIGMOID, learned)


@pytest.mark.parametrize("text", ["40", "brain", "40/0", "40/-80", "learned learned", "80/40 x", "1e9/2", "nan/3"])
def test_other_words_are_refused(text):
    with pytest.raises(WrongUse, match="is no level/width in HU; write such as '40/80 80/200', or 'learned'"):
        windows.of_settings(text, CLIPPED, HU)


def test_a_data_set_of_windows_has_them_already():
    assert windows.of_settings("", CLIPPED, RSNA) is None
    held = r"holds windows already \(brain 40/80, subdural 80/200, bone 40/380\); leave it at .*image.kind: hu"
    with pytest.raises(WrongUse, match=rf"windows is 'learned', and the data set {held}"):
        windows.of_settings("learned", CLIPPED, RSNA)
    with pytest.raises(WrongUse, match=rf"window_form is 'sigmoid', and the data set {held}"):
        windows.of_settings("", SIGMOID, RSNA)


INSIDE = st.builds(
    Windows,
    st.lists(st.builds(Shown, st.just("w"), st.floats(-2000, 2000), st.floats(1, 5000)), min_size=1, max_size=4).map(
        tuple
    ),
    st.sampled_from(windows.FORMS),
    st.booleans(),
)


@settings(max_examples=25, deadline=None)
@given(inside=INSIDE, channels=st.sampled_from([1, 3]), seed=st.integers(0, 100))
def test_the_layers_as_counted_by_hand(inside, channels, seed):
    hu = np.random.default_rng(seed).integers(-32768, 32768, (2, SIDE, SIDE, channels)).astype(np.int16)
    hu[0] = np.random.default_rng(seed).integers(-1100, 1500, hu[0].shape)
    found = layer_alone(inside, channels)(hu).numpy()
    assert found.dtype == np.float32
    assert found.shape == (2, *windows.seen(inside, hu.shape[1:]))
    # float32 of HU over a width: 16 bits and 24 of a slope
    narrowest = min(one.width_hu for one in inside.shown)
    np.testing.assert_allclose(found, by_hand(hu, inside), atol=1e-5 + 40 * 32768 * 2**-24 / narrowest)


@settings(max_examples=25, deadline=None)
@given(inside=INSIDE)
def test_what_was_put_in_is_read_off_again(inside):
    found = window_layer.found(layer_alone(inside), inside)
    for one, begun in zip(found, inside.shown, strict=True):
        assert (one.level_hu, one.width_hu) == pytest.approx((begun.level_hu, begun.width_hu), rel=1e-5, abs=1e-3)


@pytest.mark.parametrize("form", windows.FORMS)
def test_moved_weights_are_other_windows(form):
    """The window that a layer has is the one whose numbers it gives."""
    inside = Windows((Shown("a", 40.0, 80.0), Shown("b", 0.0, 10.0)), form, learned=True)
    model = layer_alone(inside)
    kernel, bias = model.get_layer(window_layer.LAYER).get_weights()
    model.get_layer(window_layer.LAYER).set_weights([kernel * [1.5, -2.0], bias + 0.03])
    now = dataclasses.replace(inside, shown=window_layer.found(model, inside))
    hu = np.arange(-256, 256, 8, dtype=np.int16).reshape(1, SIDE, SIDE, 1)  # -64 to 62 HU
    np.testing.assert_allclose(model(hu).numpy(), by_hand(hu, now), atol=1e-5)
    assert now.shown[0].width_hu == pytest.approx(80 / 1.5)
    assert now.shown[1].width_hu < 0


def test_fixed_windows_are_those_of_the_data_set_within_a_grey_level():
    """Of a slice whose pixels are whole boxes, so that clipping before or after the mean is the same."""
    inside = windows.of_settings("", CLIPPED, HU)
    hu = np.random.default_rng(0).integers(-200, 300, (SIDE, SIDE), np.int16)
    whole = np.repeat(np.repeat(hu, 4, 0), 4, 1)
    of_set = pixels.image_of(whole, dataclasses.replace(RSNA, size_px=SIDE))
    of_model = layer_alone(inside)(pixels.image_of(whole, dataclasses.replace(HU, size_px=SIDE))[None]).numpy()[0]
    assert np.abs(255 * of_model - of_set).max() <= 0.51


@pytest.mark.slow
def test_a_model_of_hu_is_keras_alone(tmp_path):
    for learned in (False, True):
        inside = Windows(windows.of_settings("", CLIPPED, HU).shown, CLIPPED, learned)
        model = small(inside, channels=3)
        model.save(tmp_path / "m.keras")
        again = keras.models.load_model(tmp_path / "m.keras")
        hu = np.random.default_rng(0).integers(-100, 200, (2, SIDE, SIDE, 3), np.int16)
        np.testing.assert_array_equal(model_file.scorer(again)(hu), model_file.scorer(model)(hu))
        names = [weight.path for weight in model.trainable_weights]
        assert (names[:2] == ["windows/kernel", "windows/bias"]) == learned
        assert model.input.dtype == "int16"


@pytest.mark.parametrize("learned", [False, True])
def test_weights_of_a_model_of_windows_are_taken(tmp_path, learned):
    """By one that windows by itself; what it learns of the windows begins anew."""
    of_set = networks.build("cnn", (SIDE, SIDE, 3), 6, "none", {"filters": [4], "dense": [8]})
    of_set.save(tmp_path / "set.keras")
    inside, told = Windows(windows.of_settings("", CLIPPED, HU).shown, CLIPPED, learned), []
    model = small(inside, weights=str(tmp_path / "set.keras"), told=told.append)
    taken = "it is of 3 channels and 6 labels, here 3 and 6; taken: conv_1, dense_1, logits; begins anew: windows"
    assert told == [f"weights {tmp_path / 'set.keras'}: {taken if learned else 'all of cnn'}"]
    for mine, given_ in zip(model.weights[2 * learned :], of_set.weights, strict=True):
        np.testing.assert_array_equal(mine.numpy(), given_.numpy())
    other = small(inside, labels=3, weights=str(tmp_path / "set.keras"), told=told.append)
    assert "taken: conv_1, dense_1; begins anew:" in told[-1]
    np.testing.assert_array_equal(
        other.get_layer("dense_1").get_weights()[0], of_set.get_layer("dense_1").get_weights()[0]
    )


def test_what_pictures_show():
    facts = {"windows": {"now": [{"name": "a", "level_hu": 35.6, "width_hu": 71.2}]}}
    assert windows.shown(HU, facts).windows == (spec.Window("a", 36, 71),)
    assert windows.shown(RSNA, {}) is RSNA
    for level, width in ((0, -5), (0, 0.2), (31_000, 80), (0, 1e9)):
        facts["windows"]["now"] = [{"name": "a", "level_hu": level, "width_hu": width}]
        assert windows.shown(HU, facts) is HU
