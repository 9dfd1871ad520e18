"""The picture of a scored slice: everything is seen whole, and brighter means more."""

from __future__ import annotations

import dataclasses

import numpy as np
import odd_dataset
import pytest
from PIL import Image

from ich_tfrecords import spec
from ich_tfrecords.views import montage
from trainer.prediction import pen, slice_picture
from trainer.prediction.slice_picture import Explanation

pytestmark = pytest.mark.slow  # draws

NAMES = ("any", "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
PROBABILITIES = np.array([0.4, 0.0, 1.0, 1e-9, 0.027, 0.9999])
LONG = "slice 1.2.840.113619\n\x00.2.55.3.604688119.971, study <b>1.2.840.113619.2.55.3.60468\ud800: subarachnoid 0.027"


def spec_of(windows: int) -> spec.DatasetSpec:
    packaged = odd_dataset.small_spec()
    more = tuple(spec.Window(f"w{number}", 40, 80) for number in range(windows))
    return dataclasses.replace(packaged, image=dataclasses.replace(packaged.image, windows=more))


def greys(windows: int) -> np.ndarray:
    """An image whose channel n is a grey of its own that nothing else in the picture has."""
    return np.broadcast_to(100 + 9 * np.arange(windows), (32, 32, windows)).astype(np.uint8)


def drawn(windows: int = 3, title: str = "ID_1: subarachnoid 0.027", cam=None, label="subarachnoid", **changes):
    values = {"probabilities": PROBABILITIES, "names": NAMES, **changes}
    explanation = None if cam is None else Explanation(cam, label, "HiResCAM")
    return np.asarray(slice_picture.picture(greys(windows), spec_of(windows), title, explanation=explanation, **values))


def blob() -> np.ndarray:
    down, across = np.mgrid[:32, :32]
    return np.exp(-((down - 8.0) ** 2 + (across - 20.0) ** 2) / 20).astype(np.float32)


def lightness(pixels: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB bytes [..., 3]."""
    part = pixels / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)


def same_color(pixels: np.ndarray, color) -> np.ndarray:
    return (pixels == color).all(-1)


BAR_COLOR = tuple(int(slice_picture.BAR[at : at + 2], 16) for at in (1, 3, 5))


def bar_widths(canvas: np.ndarray) -> list[int]:
    """The colored part of each bar in thousandths, from the pixels."""
    colored = same_color(canvas, BAR_COLOR) | same_color(canvas, montage.ACCENT)
    track = same_color(canvas, pen.TRACK)
    rows = np.flatnonzero((track | colored).sum(1) > 200)
    middles = [block[len(block) // 2] for block in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)]
    empty = np.flatnonzero(track[middles[1]])  # the second probability is 0
    bars = colored[middles, empty.min() : empty.max() + 1]
    return [round(1000 * (np.flatnonzero(bar).max(initial=-1) + 1) / len(bar)) for bar in bars]


# The panels


@pytest.mark.parametrize("windows", [1, 2, 3, 4])
@pytest.mark.parametrize("with_cam", [False, True])
def test_every_window_is_seen_whole(windows, with_cam):
    canvas = drawn(windows, cam=blob() if with_cam else None)
    panels = len(montage.panel_heads(spec_of(windows))) + with_cam
    square = None
    for number in range(windows):
        rows, columns = np.nonzero(same_color(canvas, 100 + 9 * number))
        square = (np.ptp(rows) + 1, np.ptp(columns) + 1)
        assert len(rows) == square[0] * square[1]
    assert square[0] == square[1] >= slice_picture.PANEL_PX
    assert canvas.shape[1] >= panels * (square[0] + montage.GAP_PX) + 2 * montage.MARGIN_PX - montage.GAP_PX


def test_nothing_is_drawn_into_the_margin():
    for windows, cam in ((1, None), (1, blob()), (2, blob()), (4, None), (3, np.zeros((32, 32), np.float32))):
        canvas = drawn(windows, LONG * 3, cam, uncalibrated=NAMES)
        edge = np.ones(canvas.shape[:2], bool)
        edge[8:-8, montage.MARGIN_PX : -montage.MARGIN_PX] = False
        assert same_color(canvas, montage.BACKGROUND)[edge].all()


WARNING = "PARTIAL: the study was judged by 1 of 6 slices (missing: 5 uid_conflict)"


@pytest.mark.parametrize("words", [WARNING, WARNING * 9])
def test_a_warning_stands_on_a_bar_and_moves_the_rest_down(words):
    plain, warned = drawn(cam=blob()), drawn(cam=blob(), warning=words)
    added = len(warned) - len(plain)
    top = montage.MARGIN_PX + pen.TITLE_PX
    np.testing.assert_array_equal(warned[top + added :], plain[top:])
    np.testing.assert_array_equal(warned[:top], plain[:top])
    bar = same_color(warned[top : top + added], montage.ACCENT)
    rows, columns = np.nonzero(bar)
    assert np.ptp(rows) + 1 == pen.WARNING_PX < added
    assert np.ptp(columns) + 1 == plain.shape[1] - 2 * montage.MARGIN_PX
    assert 0.5 < bar[bar.any(1)].mean() < 0.99  # with words on it


def test_one_label_and_a_map_fit():
    canvas = drawn(names=("any",), probabilities=np.array([0.5]), cam=blob(), label="any", uncalibrated=["any"])
    assert same_color(canvas, montage.BACKGROUND)[-8:].all()


# The map


def test_the_overlay_is_the_dimmed_panel_where_nothing_speaks():
    panel = Image.new("RGB", (64, 64), (200, 100, 50))
    plain = np.asarray(slice_picture.overlay(panel, np.zeros((32, 32), np.float32)))
    assert same_color(plain, (130, 65, 32)).all()
    half = np.asarray(
        slice_picture.overlay(panel, np.repeat([[0, 1]], 32, axis=0).repeat(16, axis=1).astype(np.float32))
    )
    assert same_color(half[:, :24], (130, 65, 32)).all()
    assert not same_color(half[:, 40:], (130, 65, 32)).any()


@pytest.mark.parametrize("grey", [0, 40, 70, slice_picture.MID_GREY])
def test_more_is_brighter_on_air_and_on_brain(grey):
    """In CIE lightness, so also without color vision."""
    cam = np.broadcast_to(np.linspace(0, 1, 288, dtype=np.float32), (8, 288))
    panel = Image.new("RGB", (288, 8), (grey, grey, grey))
    values = lightness(np.asarray(slice_picture.overlay(panel, cam))[4])
    ring = np.abs(np.arange(288) - 144) < 4
    assert np.diff(values[~ring]).min() > -0.5
    assert values[-1] - values[0] > 50


def test_the_ring_stands_where_the_map_passes_the_half():
    cam = np.zeros((32, 32), np.float32)
    cam[8:16, 8:16] = 1
    over = np.asarray(slice_picture.overlay(Image.new("RGB", (320, 320), (90, 90, 90)), cam))
    rows, columns = np.nonzero(same_color(over, 255))
    for places in (rows, columns):
        assert places.min() == pytest.approx(80, abs=4)
        assert places.max() == pytest.approx(159, abs=4)
    inside = same_color(over, 255)[90:150, 90:150]
    assert not inside.any()


def test_the_map_lies_on_the_last_panel_and_its_scale_below():
    with_map, without = drawn(cam=blob()), drawn(cam=np.zeros((32, 32), np.float32))
    changed = np.nonzero((with_map != without).any(-1))
    left = montage.MARGIN_PX + 4 * (slice_picture.PANEL_PX + montage.GAP_PX)
    assert changed[1].min() >= left
    assert changed[1].max() < left + slice_picture.PANEL_PX
    rows, columns = np.nonzero(same_color(with_map, 255))
    top = np.flatnonzero(same_color(with_map, 100).any(1)).min()
    # the blob is at row 8 and column 20 of 32, and so is its ring
    assert (rows.mean() - top) / slice_picture.PANEL_PX == pytest.approx(8.5 / 32, abs=0.02)
    assert (columns.mean() - left) / slice_picture.PANEL_PX == pytest.approx(20.5 / 32, abs=0.02)


def test_without_a_map_its_panel_and_scale_are_left_out():
    with_map, without = drawn(cam=blob()), drawn()
    assert with_map.shape[1] - without.shape[1] == slice_picture.PANEL_PX + montage.GAP_PX


# The bars


@pytest.mark.parametrize("windows", [1, 3])
@pytest.mark.parametrize("cam", [None, blob()], ids=["no map", "map"])
@pytest.mark.parametrize("uncalibrated", [(), NAMES[1:3]])
def test_bars_are_as_long_as_the_probabilities(windows, cam, uncalibrated):
    widths = bar_widths(drawn(windows, cam=cam, uncalibrated=uncalibrated))
    assert widths[1] == 0
    assert widths == pytest.approx(1000 * PROBABILITIES, abs=12)
    assert widths[3] > 0  # the least probability is seen


def test_the_explained_label_stands_out():
    nothing = np.zeros((32, 32), np.float32)
    for driving in (0, 4):
        canvas = drawn(cam=nothing, label=NAMES[driving], probabilities=np.full(6, 0.5))
        rows = np.flatnonzero(same_color(canvas, montage.ACCENT).sum(1) > 100)
        others = np.flatnonzero(same_color(canvas, BAR_COLOR).sum(1) > 100)
        assert (rows.min() > others[others < rows.min()].max()) if driving else (rows.max() < others.min())
        assert len(others) == 5 * len(rows)


def test_labels_without_calibration_are_marked_in_their_rows():
    both = drawn(uncalibrated=NAMES[1:3])
    for row, name in ((1, NAMES[2]), (2, NAMES[1])):
        one = drawn(uncalibrated=[name])
        changed = np.nonzero((one != both).any(-1))
        marked = range(row * slice_picture.ROW_PX, (row + 1) * slice_picture.ROW_PX)
        bars = np.flatnonzero(same_color(one, pen.TRACK).sum(1) > 200)
        top = bars.min() - (slice_picture.ROW_PX - pen.BAR_PX) // 2
        assert {down - top for down in changed[0]} <= set(marked)
        assert changed[1].min() > np.flatnonzero(same_color(one, pen.TRACK).any(0)).max()


def test_the_method_stands_above_the_map(monkeypatch):
    written = []
    write = pen.Pen.write
    monkeypatch.setattr(pen.Pen, "write", lambda own, *args: (written.append(args[1]), write(own, *args))[1])
    drawn(cam=blob())
    assert f"HiResCAM on {spec_of(3).image.windows[0].name}" in written
    assert "not calibrated" not in written


# The title


@pytest.mark.parametrize("title", ["", "x", "$x^2$ <b>&amp;", "\u202eabc\ttab", LONG, LONG * 40])
@pytest.mark.parametrize("windows", [1, 4])
def test_any_title_is_drawn_on_one_line(windows, title):
    plain, canvas = drawn(windows, ""), drawn(windows, title)
    assert canvas.shape == plain.shape
    rows = np.flatnonzero((canvas != plain).any((1, 2)))
    assert rows.size == 0 or (rows.min() >= 20 and rows.max() < montage.MARGIN_PX + pen.TITLE_PX + 12)
    assert bool(title) == bool(rows.size)


def test_a_long_title_keeps_both_of_its_ends():
    """Titles that differ at their start or end alone are told apart."""
    titles = ["A" + "x" * 300 + "0.1", "B" + "x" * 300 + "0.1", "A" + "x" * 300 + "0.9"]
    first, start, end = (drawn(1, title) for title in titles)
    assert (first != start).any()
    assert (first != end).any()
