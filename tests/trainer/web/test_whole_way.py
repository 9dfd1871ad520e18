"""The whole way in Chromium: the real server with a small model, from a dropped zip to a slice with its map."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

import keyboard
import numpy as np
import pytest
from dicom_files import dicom_file, slice_elements
from playwright.sync_api import Page, expect
from serve_process import Process, process
from test_viewer import BONE, grey, picture, position, shows
from web_server import zip_bytes

from ich_tfrecords import NOT_A_DEVICE
from ich_tfrecords.dicom import ct_slice

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-some-length"
LONG_MS = 120_000
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def server(export) -> Iterator[Process]:
    with process("--model", export, ICH_SERVE_TOKEN=TOKEN) as server:
        yield server


@pytest.fixture(scope="module")
def files(head) -> dict[str, bytes]:
    """Every second slice of the head in 128 x 128, by the names of their files, and a file that is none."""
    made = {}
    for at, hu in enumerate(head[::2, ::4, ::4]):
        ids = {"SOPInstanceUID": f"1.2.3.{at}", "StudyInstanceUID": HOSTILE, "SeriesInstanceUID": "1.2.4"}
        values = {name: uid.encode() for name, uid in ids.items()}
        values["ImagePositionPatient"] = f"-125\\-120\\{5 * at}".encode()
        made[f"ct/{at:02d}.dcm"] = dicom_file(slice_elements(hu, **values))
    return {**made, f"{HOSTILE}.dcm": b"read me"}


def entered(chromium, server, width_px) -> tuple[Page, keyboard.Watch]:
    """The list, once the token was given."""
    page, watch = keyboard.opened(chromium, server.address.rstrip("/"), "/", width_px)
    page.wait_for_url("**/login")
    page.get_by_label("Token").fill("not the token of this one")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("That is not the token of this server.")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Enter").click()
    page.wait_for_url(server.address)
    return page, watch


@pytest.fixture
def page(chromium, server, request) -> Iterator[Page]:
    """The list; at the end nothing was complained of, and nothing asked for elsewhere."""
    page, watch = entered(chromium, server, request.param)
    yield page
    page.context.close()
    assert [line for line in watch.console if "401" not in line] == []
    assert watch.outside == []


@pytest.mark.parametrize("page", [1280, 390], indirect=True)
def test_from_a_zip_to_a_slice_with_its_map(page, files, tmp_path):
    hu = [ct_slice.read_slice(data).hu for name, data in files.items() if name.startswith("ct/")]
    (tmp_path / "scan.zip").write_bytes(zip_bytes(files))
    page.set_input_files("#files", tmp_path / "scan.zip")
    expect(page.locator("#under-way li, #ranked li").first).to_contain_text("scan.zip", timeout=LONG_MS)
    expect(page.locator("#ranked li")).to_have_count(1, timeout=LONG_MS)
    assert page.locator("#ranked h3").inner_text().replace("\n", " ") == f"1 {HOSTILE}"
    assert "1 file of the upload without a prediction" in page.inner_text("#ranked li")
    assert page.evaluate(keyboard.OVERLAPS) == []
    assert not page.evaluate(keyboard.TOO_WIDE)

    page.get_by_role("link", name=f"Open study {HOSTILE}").click()
    page.wait_for_selector("#viewer:not([hidden])")
    assert page.inner_text("#study") == f"Study {HOSTILE}"
    assert NOT_A_DEVICE in page.inner_text("header")
    assert page.locator("#rejects tbody td").all_inner_texts() == ["not_dicom", f"{HOSTILE}.dcm"]
    page.keyboard.press("Home")
    assert position(page) == "slice 1 of 12, 0.0 mm"
    assert shows(page, hu[0])
    page.keyboard.press("PageUp")
    assert shows(page, hu[10])
    page.hover("#picture")
    page.mouse.wheel(0, 120)
    expect(page.locator("#position")).to_have_text("slice 10 of 12, 45.0 mm")
    page.get_by_role("button", name="bone", exact=True).click()
    assert shows(page, hu[9], BONE)
    page.locator("#curve").scroll_into_view_if_needed()
    box = page.locator("#curve").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 4.5 / 12, box["y"] + 20)
    assert shows(page, hu[4], BONE)

    page.check("#overlay")
    expect(page.locator("#map-told")).to_have_text(
        re.compile("Colors: what speaks for [a-z]+ in this slice, yellow the most."), timeout=LONG_MS
    )
    laid = picture(page)
    assert not np.array_equal(laid, grey(hu[4], BONE))
    assert len(np.unique(laid.reshape(-1, 4), axis=0)) > 256  # colors
    page.check("#curve-5")
    assert page.evaluate(keyboard.OVERLAPS) == []
    assert not page.evaluate(keyboard.TOO_WIDE)

    page.get_by_role("link", name="Page of this prediction, to keep").click()
    page.wait_for_url("**/triage.html")
    assert NOT_A_DEVICE in page.inner_text("body")
    page.go_back()
    page.wait_for_selector("#viewer:not([hidden])")
    page.wait_for_load_state("networkidle")  # a slice that is on its way would be one that is gone
    page.click("#delete")
    expect(page.locator("#ranked-note")).to_have_text("No study is here yet.")


@pytest.mark.parametrize("page", [1280], indirect=True)
def test_an_upload_that_is_nothing_says_so(page, tmp_path):
    (tmp_path / "letter.dcm").write_bytes(b"Dear colleague")
    page.set_input_files("#files", tmp_path / "letter.dcm")
    expect(page.locator("#failed .problem")).to_contain_text("no file gave a prediction", timeout=LONG_MS)
    page.get_by_role("button", name="Delete the upload letter.dcm").click()
    expect(page.locator("#failed")).to_be_hidden()


def test_a_server_that_ended_is_told(chromium, server):
    """The last one of this file, for it ends the server."""
    page, _ = entered(chromium, server, 1280)
    expect(page.locator("#ranked-note")).to_have_text("No study is here yet.")
    code, _, error = server.end(signal.SIGTERM)
    assert (code, error) == (0, "")
    expect(page.locator("#gone")).to_contain_text("The server does not answer.")
    page.context.close()
