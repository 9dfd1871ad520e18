"""The viewer of a study in Chromium, over a made-up server: scroll, window, map, curve, and what goes wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
from playwright.sync_api import expect

from ich_tfrecords import pixels
from ich_tfrecords.spec import Window

COLORS = "Colors: what speaks for subdural in this slice, yellow the most."
BRAIN, SUBDURAL, BONE = (40, 80), (80, 200), (40, 380)
PICTURE = """() => {
  const { width, height } = document.getElementById("picture");
  const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(document.getElementById("picture"), 0, 0);
  return [height, width, Array.from(new Uint32Array(copy.getImageData(0, 0, width, height).data.buffer))];
}"""

pytestmark = pytest.mark.slow


def picture(page):
    """What the canvas shows, uint8 [rows, columns, 4]."""
    page.wait_for_selector(".stage:not(.stale)")
    rows, columns, words = page.evaluate(PICTURE)
    return np.array(words, np.uint32).view(np.uint8).reshape(rows, columns, 4)


def grey(hu, window):
    """RGBA of a slice in a window by pixels.py."""
    level = pixels.window_channel(hu, Window("free", *window), len(hu))
    return np.dstack([level, level, level, np.full_like(level, 255)])


def shows(page, hu, window=BRAIN):
    return np.array_equal(picture(page), grey(hu, window))


def position(page):
    return page.inner_text("#position")


@pytest.fixture(scope="session")
def small(head):
    """Ten slices of 64 x 64."""
    return np.ascontiguousarray(head[::2, ::8, ::8][:10])


@pytest.fixture
def viewer(open_page, work, small):
    """The page of ten slices, at the driving one, which is the fifth."""
    page = open_page(work.done(small)["url"])
    page.wait_for_selector("#viewer:not([hidden])")
    assert position(page) == "slice 5 of 10, 20.0 mm"
    return page


# --- scrolling ---


def test_a_slice_is_shown_as_pixels_py_has_it(open_page, work, head):
    page = open_page(work.done(head)["url"])
    page.wait_for_selector("#viewer:not([hidden])")
    assert shows(page, head[11])
    page.keyboard.press("Home")
    assert shows(page, head[0])


@pytest.mark.parametrize("focus", ["body", "#stage", "#slice", "#curve", "#driver"])
def test_keys_scroll_wherever_the_focus_is(viewer, small, focus):
    if focus != "body":
        viewer.focus(focus)
    for key, slice in {
        "ArrowUp": 6, "ArrowRight": 7, "ArrowDown": 6, "ArrowLeft": 5, "End": 10, "PageDown": 1, "ArrowDown ": 1,
        "PageUp": 10, "Home": 1,
    }.items():  # fmt: skip
        viewer.keyboard.press(key.strip())
        assert position(viewer) == f"slice {slice} of 10, {5.0 * (slice - 1):.1f} mm", key
        assert viewer.input_value("#slice") == str(slice)
    assert shows(viewer, small[0])


def test_keys_of_fields_and_of_other_sliders_stay_theirs(viewer):
    viewer.focus("#level")
    viewer.keyboard.press("ArrowUp")
    assert viewer.input_value("#level") == "41"
    viewer.focus("#level")
    viewer.keyboard.press("Home")
    viewer.check("#overlay")
    viewer.focus("#opacity")
    viewer.keyboard.press("ArrowUp")
    assert viewer.input_value("#opacity") == "75"
    viewer.focus("#curve-0")
    viewer.keyboard.press("ArrowDown")
    assert viewer.is_checked("#curve-1")
    assert position(viewer) == "slice 5 of 10, 20.0 mm"


def test_the_wheel_scrolls_up_towards_the_head(viewer, small):
    viewer.hover("#picture")
    for moved, slice in ((-120, 6), (-120, 7), (100, 6), (-20, 6), (-20, 6), (-20, 7), (3000, 6)):
        viewer.mouse.wheel(0, moved)
        expect(viewer.locator("#position")).to_have_text(f"slice {slice} of 10, {5.0 * (slice - 1):.1f} mm")
    assert shows(viewer, small[5])
    assert viewer.evaluate("scrollY") == 0


def test_the_slider_scrolls(viewer, small):
    viewer.fill("#slice", "9")
    assert shows(viewer, small[8])
    assert viewer.get_attribute("#slice", "aria-valuetext").startswith("slice 9 of 10, 40.0 mm, any 0.")


def test_probabilities_follow_the_slice_and_the_study_stays(viewer, work):
    (entry,) = work.entries.values()
    for at in (4, 9):
        if at != 4:
            viewer.keyboard.press("End")
        rows = viewer.locator("#probabilities tr").all()
        slices = entry["series"][0]["slices"][at]["probabilities"]
        assert [row.locator("th").inner_text() for row in rows] == entry["labels"]
        assert [row.locator("td.number b").inner_text() for row in rows] == [f"{value:.3f}" for value in slices]
        study = [f"{value:.3f}" for value in entry["studies"][0]["probabilities"]]
        assert [row.locator("td").last.inner_text() for row in rows] == study


def test_the_driving_slice_is_one_press_away(viewer):
    assert viewer.is_disabled("#driver")
    viewer.keyboard.press("Home")
    viewer.click("#driver")
    assert position(viewer) == "slice 5 of 10, 20.0 mm"


def test_slices_are_fetched_once(viewer, work):
    for key in ("Home", "End", "Home"):
        viewer.keyboard.press(key)
        picture(viewer)
    viewer.wait_for_load_state("networkidle")
    asked = [path for path in work.asked if "/slices/" in path]
    assert len(asked) == len(set(asked)) == 10


def test_an_old_slice_is_never_taken_for_the_new_one(open_page, work, small):
    many = np.concatenate([small] * 8)
    page = open_page(work.done(many)["url"])
    page.wait_for_selector("#viewer:not([hidden])")
    picture(page)
    page.wait_for_load_state("networkidle")
    work.slow.clear()
    page.keyboard.press("End")
    assert page.inner_text("#loading") == "Slice 80 is being fetched"
    assert page.evaluate("getComputedStyle(document.getElementById('picture')).opacity") < "0.2"
    work.slow.set()
    assert shows(page, many[79])
    assert page.is_hidden("#loading")


# --- the window ---


def test_presets_of_the_model_and_others(viewer, small):
    for name, window in {"subdural": SUBDURAL, "bone": BONE, "stroke": (40, 40), "brain": BRAIN}.items():
        viewer.get_by_role("button", name=name, exact=True).click()
        assert shows(viewer, small[4], window)
        assert [viewer.input_value(f"#{field}") for field in ("level", "width")] == [str(value) for value in window]
        assert viewer.locator("[aria-pressed=true]").all_inner_texts() == [name]
    assert viewer.locator("#windows button").all_inner_texts()[:3] == ["brain", "subdural", "bone"]


def test_a_free_window_is_typed(viewer, small):
    viewer.fill("#level", "30")
    viewer.fill("#width", "101")
    viewer.keyboard.press("Enter")
    assert shows(viewer, small[4], (30, 101))
    assert viewer.locator("[aria-pressed=true]").count() == 0
    assert viewer.get_attribute("#picture", "aria-label") == "slice 5 of 10, 20.0 mm, level 30, width 101 HU"
    viewer.fill("#width", "0")
    viewer.keyboard.press("Enter")
    assert viewer.input_value("#width") == "1"
    viewer.fill("#level", "")
    viewer.keyboard.press("Enter")
    assert viewer.input_value("#level") == "30"


def test_a_drag_on_the_picture_widens_and_lifts_the_window(viewer, small):
    box = viewer.locator("#picture").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    viewer.mouse.move(*middle)
    viewer.mouse.down()
    viewer.mouse.move(middle[0] + 60, middle[1] - 30, steps=3)
    viewer.mouse.up()
    level, width = (int(viewer.input_value(f"#{field}")) for field in ("level", "width"))
    assert 45 <= level <= 60
    assert 95 <= width <= 110
    assert shows(viewer, small[4], (level, width))
    viewer.mouse.move(*middle)
    assert viewer.input_value("#level") == str(level)


def test_the_value_under_the_pointer_is_told(viewer, small):
    picture(viewer)
    box = viewer.locator("#picture").bounding_box()
    viewer.mouse.move(box["x"] + box["width"] * 20.5 / 64, box["y"] + box["height"] * 31.5 / 64)
    assert viewer.inner_text("#under") == f"{small[4][31, 20]} HU at column 21, row 32"


# --- the map ---


def test_the_map_lies_over_the_slice_on_wish(viewer, work, small):
    (entry,) = work.entries.values()
    plain = picture(viewer).astype(int)
    assert not any(path.endswith("/map") for path in work.asked)
    with viewer.expect_response("**/map"):
        viewer.check("#overlay")
    expect(viewer.locator("#map-told")).to_have_text(COLORS)
    laid = picture(viewer).astype(int)
    strong, none = (work.maps[entry["id"]][4] == value for value in (work.maps[entry["id"]][4].max(), 0))
    red, blue = laid[strong].T[[0, 2]]
    assert (red > 200).all()
    assert (red >= blue).all()
    dimmed = plain[none][:, 0] * (1 - 0.7 * 0.35)  # as predict's pictures dim it, at the opacity of the slider
    assert np.abs(laid[none][:, 0] - dimmed).max() <= 2
    viewer.fill("#opacity", "100")
    assert (np.abs(picture(viewer).astype(int) - laid)[strong].sum() > 0).all()
    viewer.uncheck("#overlay")
    assert shows(viewer, small[4])
    assert viewer.is_disabled("#opacity")
    assert [path for path in work.asked if path.endswith("/map")] == [f"GET /api/studies/{entry['id']}/slices/4/map"]


def test_the_map_follows_the_slice_that_one_stays_at(viewer, work):
    with viewer.expect_response("**/4/map"):
        viewer.check("#overlay")
    with viewer.expect_response("**/9/map"):
        viewer.keyboard.press("End")
    expect(viewer.locator("#map-told")).to_have_text(COLORS)
    first = picture(viewer)
    viewer.uncheck("#overlay")
    assert not np.array_equal(picture(viewer), first)


def test_a_model_without_maps_says_so(open_page, work, small):
    entry = work.done(small)
    line = json.dumps({"error": "a forest has no map of where it looks"}).encode()
    work.broken[f"GET /api/studies/{entry['id']}/slices/4/map"] = (404, line)
    page = open_page(entry["url"], complaints=("404",))
    page.check("#overlay")
    expect(page.locator("#map-told")).to_have_text("The map is not there: a forest has no map of where it looks")
    assert shows(page, small[4])


def test_a_map_of_a_model_that_is_busy_is_asked_for_again(open_page, work, small):
    entry = work.done(small)
    path = f"GET /api/studies/{entry['id']}/slices/4/map"
    work.broken[path] = (429, b'{"error": "the model is busy with other maps; ask again"}')
    page = open_page(entry["url"], complaints=("429",))
    page.check("#overlay")
    expect(page.locator("#map-told")).to_have_text("The map is not there: the model is busy with other maps; ask again")
    del work.broken[path]
    expect(page.locator("#map-told")).to_have_text(COLORS)


# --- the curve ---


def test_the_curve_is_clicked_on(viewer, small):
    box = viewer.locator("#curve").bounding_box()
    for at in (0, 9, 6):
        viewer.mouse.click(box["x"] + box["width"] * (at + 0.5) / 10, box["y"] + 20)
        assert shows(viewer, small[at])
        assert viewer.get_attribute("#curve", "aria-valuenow") == str(at + 1)
    assert viewer.get_attribute("#curve .mark", "d") == "M650.0 0V100"


def test_the_curve_is_drawn_along(viewer, small):
    box = viewer.locator("#curve").bounding_box()
    viewer.mouse.move(box["x"] + 5, box["y"] + 20)
    viewer.mouse.down()
    assert position(viewer).startswith("slice 1 ")
    viewer.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 300, steps=4)
    assert position(viewer).startswith("slice 8 ")
    viewer.mouse.move(box["x"] + box["width"] + 50, box["y"] + 20)
    viewer.mouse.up()
    viewer.mouse.move(box["x"] + 5, box["y"] + 20)
    assert shows(viewer, small[9])


def test_the_curve_draws_any_and_the_label_that_was_chosen(viewer, work):
    (entry,) = work.entries.values()

    def corners(label):
        values = [slice["probabilities"][label] for slice in entry["series"][0]["slices"]]
        return [[100 * at + 50, round(100 * (1 - value), 1)] for at, value in enumerate(values)]

    def drawn(line):
        text = viewer.get_attribute(f"#curve .line{line}", "points")
        return [[float(value) for value in corner.split(",")] for corner in text.split()]

    assert np.allclose(drawn(1), corners(0), atol=0.11)
    assert drawn(2) == []
    viewer.check("#curve-4")
    assert np.allclose(drawn(2), corners(4), atol=0.11)
    assert viewer.inner_text("#legend") == "any subarachnoid of 10 slices"


# --- several series, hostile names ---


def test_another_series_is_chosen(open_page, work, small):
    page = open_page(work.done(small, series=2)["url"])
    page.wait_for_selector("#viewer:not([hidden])")
    assert page.inner_text("#study") == "Study 1.2.840.0, number 1 of 2 in urgency"
    assert page.is_hidden("#partial")
    page.select_option("#series", index=1)
    assert page.inner_text("#study") == "Study 1.2.840.1, number 2 of 2 in urgency"
    assert page.is_visible("#partial")
    assert position(page) == "slice 3 of 5, 10.0 mm"
    assert shows(page, small[7])


@pytest.mark.parametrize(("named", "shown"), [("#1.2.840.1", 1), ("#1.2.840.0", 0), ("#1.2.9", 0), ("#%", 0), ("", 0)])
def test_the_address_names_a_study(open_page, work, small, named, shown):
    page = open_page(work.done(small, series=2)["url"] + named)
    page.wait_for_selector("#viewer:not([hidden])")
    assert page.inner_text("#study").startswith(f"Study 1.2.840.{shown},")


def test_a_series_without_positions_and_of_one_slice(open_page, work, small):
    entry = work.done(small[:1, :48])
    entry["series"][0]["slices"][0]["z_mm"] = None
    page = open_page(entry["url"])
    page.wait_for_selector("#viewer:not([hidden])")
    assert position(page) == "slice 1 of 1"
    assert picture(page).shape == (48, 64, 4)
    page.keyboard.press("End")
    assert position(page) == "slice 1 of 1"


HOSTILE = "<img src=x onerror=alert(1)>\u202e{{ 7*7 }}'\"&lt;"
SHOWN = HOSTILE.replace("\u202e", "\ufffd")


def test_hostile_names_and_uids_stay_text(open_page, work, small):
    entry = work.done(small, series=2, name=HOSTILE, rejects=[{"file": HOSTILE, "reason": HOSTILE}])
    for number in (0, 1):
        entry["studies"][number]["study_uid"] = entry["series"][number]["study_uid"] = f"{HOSTILE}{number}"
        entry["series"][number]["series_uid"] = HOSTILE
    page = open_page(entry["url"])
    page.wait_for_selector("#viewer:not([hidden])")
    assert page.title() == page.inner_text("h1") == SHOWN
    assert page.inner_text("#study").startswith(f"Study {SHOWN}0,")
    assert page.locator("#rejects tbody td").all_inner_texts() == [HOSTILE, SHOWN]
    assert page.locator("#series option").first.inner_text().startswith("study 1: 5 slices, <img src=x onerror=")
    assert page.locator("img").count() == 0


# --- what goes wrong ---


def test_a_prediction_is_waited_for(open_page, work, small):
    entry = work.done(small, state="working", progress={"stage": "predict", "done": 3, "files": 1000})
    page = open_page(entry["url"])
    expect(page.locator("#told")).to_have_text("predicting: 3 of 1,000 files")
    assert page.evaluate("document.getElementById('progress').value") == 3
    assert page.is_hidden("#viewer")
    entry["state"], entry["progress"] = "done", None
    page.wait_for_selector("#viewer:not([hidden])")
    assert page.is_hidden("#progress")
    assert page.inner_text("#told") == ""


def test_a_failed_upload_says_why(open_page, work):
    entry = work.add(state="failed", error="scan.zip is damaged", rejects=[{"file": "a.dcm", "reason": "truncated"}])
    page = open_page(entry["url"])
    page.wait_for_selector("#rejects:not([hidden])")
    assert page.inner_text("#told") == "scan.zip is damaged"
    assert page.locator("#rejects tbody td").all_inner_texts() == ["truncated", "a.dcm"]


def test_a_study_that_expired_is_told(open_page, work, small):
    entry = work.done(np.concatenate([small] * 8))
    page = open_page(entry["url"], complaints=("404",))
    page.wait_for_selector("#viewer:not([hidden])")
    page.wait_for_load_state("networkidle")
    del work.entries[entry["id"]]
    page.keyboard.press("End")
    expect(page.locator("#gone")).to_have_text("this upload expired or was deleted")
    assert page.inner_text("#loading") == "Slice 80 could not be fetched"


def test_a_slice_that_failed_is_fetched_again(open_page, work, small):
    entry = work.done(small)
    path = f"GET /api/studies/{entry['id']}/slices/4"
    work.broken[path] = (503, b"<html>a proxy</html>")
    page = open_page(entry["url"], complaints=("503",))
    expect(page.locator("#gone")).to_have_text("The server cannot do this at the moment; try again in a minute.")
    del work.broken[path]
    assert shows(page, small[4])
    assert page.inner_text("#gone") == ""


def test_without_the_token_it_leads_to_the_login_page(open_page, work, small):
    entry = work.done(small)
    work.broken[f"GET /api/studies/{entry['id']}"] = (401, b'{"error": "no token"}')
    page = open_page(entry["url"], complaints=("401",))
    page.wait_for_url("**/login")
    assert page.get_by_label("Token").is_editable()


def test_deleting_leads_back_to_the_list(open_page, work, small):
    entry = work.done(small)
    page = open_page(entry["url"])
    page.wait_for_selector("#viewer:not([hidden])")
    page.click("#delete")
    page.wait_for_url("**/")
    assert entry["id"] not in work.entries
