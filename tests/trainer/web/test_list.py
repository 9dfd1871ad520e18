"""The list in Chromium, over a made-up server: files are sent, followed, ranked and deleted."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror=alert(1)>\u202e.zip"
SHOWN = HOSTILE.replace("\u202e", "\ufffd")
HU = np.zeros((4, 8, 8), np.int16)


def names(received):
    """File names of an upload as they were sent."""
    return [name.decode() for name in re.findall(rb'name="files"; filename="([^"]*)"', received)]


def headings(page, section):
    return [one.replace("\n", " ") for one in page.locator(f"#{section} h3").all_inner_texts()]


@pytest.fixture
def page(open_page):
    return open_page("/")


# --- sending ---


def test_files_are_chosen_sent_and_followed_to_their_end(page, work, tmp_path):
    (tmp_path / "scan.zip").write_bytes(b"PK" * 5000)
    (tmp_path / "b.dcm").write_bytes(b"DICM")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose files or a zip").press("Enter")
    chooser.value.set_files([tmp_path / "scan.zip", tmp_path / "b.dcm"])
    expect(page.locator("#under-way h3")).to_have_text("sent")
    assert names(work.received[0]) == ["scan.zip", "b.dcm"]
    assert b"PK" * 5000 in work.received[0]
    assert page.locator(".upload").count() == 0
    (entry,) = work.entries.values()
    entry.update(state="working", progress={"stage": "reading", "done": 3, "files": 34})
    expect(page.locator("#under-way li .note")).to_have_text("reading: 3 of 34 files")
    assert page.evaluate("document.querySelector('#under-way progress').value") == 3
    done = work.done(HU, name="sent")
    del work.entries[done["id"]]
    entry.update({key: done[key] for key in ("state", "studies", "progress")})
    expect(page.locator("#told")).to_have_text("sent: done, 1 study.")
    assert page.is_hidden("#under-way")
    assert headings(page, "ranked") == ["1 1.2.840.0"]


def test_a_folder_keeps_its_paths(page, work, tmp_path):
    (tmp_path / "ct" / "bone").mkdir(parents=True)
    for name in ("a.dcm", "bone/b.dcm"):
        (tmp_path / "ct" / name).write_bytes(b"DICM")
    page.set_input_files("#folder", tmp_path / "ct")
    expect(page.locator("#under-way li")).to_have_count(1)
    assert sorted(names(work.received[0])) == ["ct/a.dcm", "ct/bone/b.dcm"]


def drop(page, paths):
    """Files and folders as a person drops them, wherever on the page."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 200, "data": data})
    expect(page.locator("#take.over")).to_have_count(1)
    session.send("Input.dispatchDragEvent", {"type": "drop", "x": 300, "y": 200, "data": data})


def test_files_and_folders_are_dropped(page, work, tmp_path):
    (tmp_path / "ct" / "deep").mkdir(parents=True)
    many = [f"ct/deep/{number:03d}.dcm" for number in range(130)]  # a browser hands out 100 at a time
    for name in (*many, "ct/a.dcm", "b.dcm"):
        (tmp_path / name).write_bytes(b"DICM")
    drop(page, [tmp_path / "ct", tmp_path / "b.dcm"])
    expect(page.locator("#under-way li")).to_have_count(1)
    assert sorted(names(work.received[0])) == ["b.dcm", "ct/a.dcm", *many]
    assert page.locator("#take.over").count() == 0


def test_an_empty_folder_is_told_and_nothing_is_sent(page, work, tmp_path):
    (tmp_path / "empty").mkdir()
    drop(page, [tmp_path / "empty"])
    expect(page.locator("#told")).to_have_text("Nothing was sent: there is no file in it.")
    assert work.received == []


def test_what_is_too_large_is_not_sent(open_page, work, tmp_path):
    work.most_bytes = 1500
    page = open_page("/")
    for name in ("a.dcm", "b.dcm"):
        (tmp_path / name).write_bytes(bytes(1000))
    page.set_input_files("#files", [tmp_path / "a.dcm", tmp_path / "b.dcm"])
    line = "Not sent: 2.0 kB is more than the 1.5 kB that this server takes in one upload."
    expect(page.get_by_role("alert").filter(has_text="Not sent")).to_have_text(line)
    assert work.received == []
    page.get_by_role("button", name="Close the note").click()
    assert page.locator(".upload").count() == 0
    page.set_input_files("#files", tmp_path / "a.dcm")
    expect(page.locator("#under-way li")).to_have_count(1)


@pytest.mark.parametrize(
    ("status", "body", "line"),
    [
        (413, b'{"error": "more than 5 MB"}', "more than 5 MB"),
        (429, b"", "The server has too much to do at the moment; try again in a minute."),
        (500, b"<h1>a proxy</h1>", "The server answered with status 500."),
    ],
)
def test_a_refused_upload_says_why_and_the_next_one_goes(open_page, work, tmp_path, status, body, line):
    page = open_page("/", complaints=(str(status),))
    (tmp_path / "a.dcm").write_bytes(b"DICM")
    work.broken["POST /api/studies"] = (status, body)
    page.set_input_files("#files", tmp_path / "a.dcm")
    expect(page.locator(".upload .problem")).to_have_text(line)
    del work.broken["POST /api/studies"]
    page.set_input_files("#files", tmp_path / "a.dcm")
    expect(page.locator("#under-way li")).to_have_count(1)


def test_one_upload_is_sent_after_the_other_and_can_be_cancelled(page, work, tmp_path):
    for name in ("a.dcm", "b.dcm", "c.dcm"):
        (tmp_path / name).write_bytes(b"DICM")
    work.slow.clear()
    for name in ("a.dcm", "b.dcm", "c.dcm"):
        page.set_input_files("#files", tmp_path / name)
    expect(page.locator(".upload").nth(0)).to_contain_text("sent; the server looks at it")
    expect(page.locator(".upload").nth(2)).to_contain_text("waits for the upload before it")
    page.get_by_role("button", name="Cancel the upload of b.dcm").click()
    work.slow.set()
    expect(page.locator("#under-way li")).to_have_count(2)
    assert [names(one) for one in work.received] == [["a.dcm"], ["c.dcm"]]


# --- the list ---


def test_studies_of_all_uploads_stand_most_urgent_first(open_page, work):
    first = work.done(HU, series=2, name="first.zip")
    second = work.done(HU, name="second.zip", rejected=3)
    second["studies"][0].update(probability=0.7, probabilities=[0.7, 0, 0.0001, 0.9996, 1, 0.5], study_uid="1.2.9")
    work.add(state="failed", name="bad.zip", error="bad.zip is no zip")
    work.add(state="done", name="none.zip", rejected=12)
    page = open_page("/")
    expect(page.locator("#ranked li")).to_have_count(3)
    assert headings(page, "ranked") == ["1 1.2.840.0", "2 1.2.9", "3 1.2.840.1"]
    assert page.locator("#ranked .partial").count() == 1
    values = page.locator("#ranked li").nth(1).locator("dd b").all_inner_texts()
    assert values == ["0.700", "0.000", "<0.001", ">0.999", "1.000", "0.500"]
    assert "3 files of the upload without a prediction" in page.locator("#ranked li").nth(1).inner_text()
    assert headings(page, "failed") == ["bad.zip", "none.zip"]
    assert page.locator("#failed .problem").all_inner_texts() == [
        "bad.zip is no zip",
        "None of 12 files gave a prediction; open it for the reasons.",
    ]
    page.get_by_role("link", name="Open study 1.2.840.1").click()
    page.wait_for_url(f"**{first['url']}#1.2.840.1")
    expect(page.locator("#study")).to_contain_text("Study 1.2.840.1")


def test_hostile_names_stay_text(open_page, work, tmp_path):
    entry = work.done(HU, name=HOSTILE)
    entry["studies"][0]["study_uid"] = HOSTILE
    work.add(name=HOSTILE, state="failed", error=HOSTILE)
    page = open_page("/")
    expect(page.locator("#ranked li")).to_have_count(1)
    assert headings(page, "ranked") == [f"1 {SHOWN}"]
    assert f"in {SHOWN}, received" in page.inner_text("#ranked li")
    assert headings(page, "failed") == [SHOWN]
    assert page.inner_text("#failed .problem") == HOSTILE
    (tmp_path / HOSTILE.replace("/", "")).write_bytes(bytes(9))
    work.broken["POST /api/studies"] = (201, b"{}")
    page.set_input_files("#files", tmp_path / HOSTILE)
    expect(page.locator("#told")).to_contain_text(SHOWN)
    assert page.locator("img").count() == 0


def test_an_upload_is_deleted_and_the_focus_stays_in_the_list(open_page, work):
    entry = work.done(HU, series=2, name="two.zip")
    page = open_page("/")
    asked = []
    page.on("dialog", lambda one: asked.append(one.message))
    page.get_by_role("button", name="Delete the upload two.zip").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#told")).to_have_text("two.zip was deleted.")
    expect(page.locator("#ranked li")).to_have_count(0)
    assert asked == ["Delete the upload two.zip with its 2 studies? Files and results are removed for good."]
    assert entry["id"] not in work.entries
    assert page.evaluate("document.activeElement.id") == "ranked-head"
    expect(page.locator("#ranked-note")).to_have_text("No study is here yet.")


def test_the_focus_outlives_news_and_what_did_not_change_stays(open_page, work):
    work.done(HU, name="one.zip")
    page = open_page("/")
    expect(page.locator("#ranked li")).to_have_count(1)
    page.evaluate("document.querySelector('#ranked li').marked = true")
    page.get_by_role("button", name="Delete the upload one.zip").focus()
    entry = work.add(name="another.zip")
    expect(page.locator("#under-way li")).to_have_count(1)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Delete the upload one.zip"
    assert page.evaluate("document.querySelector('#ranked li').marked")
    page.get_by_role("button", name="Delete the upload another.zip").focus()
    entry.update(state="working", progress={"stage": "predict", "done": 3, "files": 34})
    expect(page.locator("#under-way .note")).to_have_text("predicting: 3 of 34 files")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Delete the upload another.zip"


def test_a_server_that_went_away_is_told_until_it_is_back(open_page, work):
    page = open_page("/", complaints=("503", "ERR_"))
    work.done(HU)
    expect(page.locator("#ranked li")).to_have_count(1)
    page.context.set_offline(True)
    expect(page.locator("#gone")).to_have_text(
        "The server does not answer. It may have been stopped; this page goes on trying."
    )
    page.context.set_offline(False)
    expect(page.locator("#gone")).to_have_text("")
    assert page.locator("#ranked li").count() == 1
    work.broken["GET /api/studies"] = (503, json.dumps({"error": "starting"}).encode())
    expect(page.locator("#gone")).to_have_text("starting")


def test_without_the_token_it_leads_to_the_login_page(open_page, work):
    work.broken["GET /api/studies"] = (401, b"{}")
    page = open_page("/", complaints=("401",))
    page.wait_for_url("**/login")
