"""The API in one process: what came, what is said of it, slices, maps, pages, errors, and that nothing ends it."""

from __future__ import annotations

import io
import json
import time

import numpy as np
import pytest
import volume_files
import web_server
from dicom_files import dicom_file, slice_elements
from web_server import OWN, form, probabilities, slice_bytes, zip_bytes

from ich_tfrecords import NOT_A_DEVICE
from ich_tfrecords.dicom import ct_slice
from trainer.shell.problems import WorkFailed
from trainer.web import limits, routes, shelf
from trainer.web.limits import Limits
from trainer.worklist import spool

HOSTILE = "../../<script>alert(1)</script>'&"  # a browser writes " as %22


def series(upload: dict) -> list[dict]:
    (one,) = upload["series"]
    return one["slices"]


def test_what_is_said_of_an_upload(server, known):
    files = {f"head/IM{z}": slice_bytes(f"1.2.3.{z}", z_mm=-2.5 * z) for z in range(3)}
    upload = server.send(files)
    said = server.one(upload)
    assert (said["id"], said["url"], said["name"]) == (upload, f"/studies/{upload}", "head (3 files)")
    assert (said["state"], said["error"], said["progress"]) == ("done", None, None)
    assert said["labels"] == list(known.spec.labels.names)
    assert said["not_a_device"] == NOT_A_DEVICE
    assert said["windows"][0] == {"name": "brain", "level": 40, "width": 80}
    each = {z: probabilities(f"1.2.3.{z}", 6).tolist() for z in range(3)}
    (study,) = said["studies"]
    greatest = [max(values) for values in zip(*each.values())]
    assert study["probabilities"] == pytest.approx(greatest)
    assert (study["study_uid"], study["rank"], study["slices"], study["partial"]) == ("1.2", 1, 3, False)
    assert study["probability"] == pytest.approx(greatest[0])
    assert [(one["file"], one["z_mm"], one["rows"], one["columns"]) for one in series(said)] == [
        (f"head/IM{z}", -2.5 * z, 16, 16) for z in (2, 1, 0)
    ]
    assert [one["probabilities"] for one in series(said)] == [pytest.approx(each[z]) for z in (2, 1, 0)]
    assert [one["n"] for one in series(said)] == [2, 1, 0]


def test_slices_are_those_that_came(server):
    files = {f"{z}.dcm": slice_bytes(f"1.2.3.{z}", z_mm=z) for z in range(3)}
    upload = server.send({"all.zip": zip_bytes(files), "one.dcm": slice_bytes("1.2.3.9", z_mm=9, side=24)})
    found = series(server.one(upload))
    assert [one["file"] for one in found] == ["all.zip/0.dcm", "all.zip/1.dcm", "all.zip/2.dcm", "one.dcm"]
    for said, data in zip(found, [*files.values(), slice_bytes("1.2.3.9", z_mm=9, side=24)]):
        answer = server.client.get(f"/api/studies/{upload}/slices/{said['n']}")
        hu = np.frombuffer(answer.content, "<i2").reshape(said["rows"], said["columns"])
        np.testing.assert_array_equal(hu, ct_slice.read_slice(data).hu)
        assert answer.headers["content-type"] == "application/octet-stream"


def test_a_map_has_an_octet_for_each_pixel(server):
    upload = server.send({"a": slice_bytes("1.2.3.4")})
    answer = server.client.get(f"/api/studies/{upload}/slices/0/map")
    assert (answer.status_code, answer.content) == (200, bytes(range(256)))
    assert answer.headers["x-ich-label"] == "any"


def test_one_zip_as_the_body(server):
    data = zip_bytes({"deep/1": slice_bytes("1.2.3.4"), "readme.txt": b"no slice"})
    headers = {**OWN, "content-type": "application/zip"}
    answer = server.client.post("/api/studies", content=data, headers=headers)
    assert answer.status_code == 201
    assert [one["file"] for one in series(server.one(answer.json()["id"]))] == ["deep/1"]


def test_the_most_urgent_come_first_then_those_under_way_then_those_that_failed(server):
    uids = [f"1.2.3.{n}" for n in range(5)]
    sent = [server.send({"a": slice_bytes(uid, study=uid)}) for uid in uids]
    failed = server.send({"a": b"no slice at all"})
    server.model.reads = False
    waiting = [server.send({"b": slice_bytes("1.2.9")}) for _ in range(2)]
    urgency = {upload: probabilities(uid, 6)[0] for upload, uid in zip(sent, uids)}
    expected = [*sorted(sent, key=lambda upload: -urgency[upload]), *waiting, failed]
    said = server.list()
    assert [one["id"] for one in said] == expected
    assert [one["state"] for one in said] == ["done"] * 5 + ["waiting"] * 2 + ["failed"]
    assert all("series" not in one for one in said)


def test_a_damaged_upload_ends_nothing(server):
    upload = server.send({"a.dcm": slice_bytes("1.2.3.4")[:300], "b.dcm": b"", "c.dcm": b"\0" * 1000})
    said = server.one(upload)
    assert said["state"] == "failed"
    assert said["error"] == "no file gave a prediction (3 files); result/rejects.csv names each"
    assert said["studies"] == said["series"] == []
    assert server.client.get(f"/api/studies/{upload}/slices/0").status_code == 404
    assert server.one(server.send({"a": slice_bytes("1.2.3.4")}))["state"] == "done"


def test_a_file_that_gives_nothing_is_named_beside_the_others(server):
    said = server.one(server.send({"x/a": slice_bytes("1.2.3.4"), "x/broken": slice_bytes("1.2.3.5")[:700]}))
    (reject,) = said["rejects"]
    assert (reject["file"], said["rejected"]) == ("x/broken", 1)
    assert reject["reason"]
    assert said["studies"][0]["partial"] is True


def test_an_error_names_files_as_they_were_called_and_no_folder_of_this_machine(server):
    def fails(entry):
        raise WorkFailed(f"{entry.files}/000001.dcm: is odd; see {entry.result}/rejects.csv")

    server.model.failing = fails
    said = server.one(server.send({"a": b"x", "Jane/IM7": b"y"}))
    assert said["error"] == "Jane/IM7: is odd; see result/rejects.csv"


@pytest.mark.parametrize("broken", [b"PK\x03\x04 and then nothing", zip_bytes({"a.txt": b"no slice"}), b"PK\x05\x06"])
def test_an_archive_that_cannot_be_read_is_refused_at_once(server, broken):
    answer = server.client.post("/api/studies", files=form({"scans.zip": broken}), headers=OWN)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("scans.zip: ")
    assert str(server.spool.root) not in answer.text
    assert server.spool.entries() == []


def test_names_from_outside_stay_text(server):
    upload = server.send({HOSTILE: slice_bytes("1.2.3.4", study="<b>1</b>")})
    said = server.one(upload)
    assert said["name"] == HOSTILE
    assert series(said)[0]["file"] == HOSTILE
    assert said["studies"][0]["study_uid"] == "<b>1</b>"
    page = server.client.get(f"/studies/{upload}")
    assert "<script>alert" not in page.text
    assert page.headers["content-type"] == "text/html; charset=utf-8"


def test_nothing_is_written_outside_of_the_spool(server, tmp_path):
    names = ["../../up", "/etc/passwd", "..\\..\\up", "a/../../b", "x\0y", ".", "..", "a" * 5000, "\ud7ff\ufffe"]
    upload = server.send({name: slice_bytes(f"1.2.3.{n}") for n, name in enumerate(names)})
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert all(path.startswith("spool/") for path in written)
    stored = {path.name for path in server.spool.entry(upload).files.iterdir()}
    assert stored == {f"{n:06d}.dcm" for n in range(len(stored))}


@pytest.mark.parametrize(
    "path",
    ["/api/studies/../../etc/passwd", "/api/studies/%2e%2e", "/api/studies/" + "0" * 32, "/api/studies/x/slices/0"]
    + ["/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/nowhere", "/api/studies/x/triage.html"],
)
def test_what_is_not_there(server, path):
    answer = server.client.get(path)
    assert answer.status_code == 404
    assert list(answer.json()) == ["error"]


def test_a_method_that_an_address_does_not_take(server):
    answer = server.client.put("/api/studies", headers=OWN)
    assert (answer.status_code, list(answer.json())) == (405, ["error"])
    assert answer.headers["allow"]


def test_slices_that_are_not_there(server):
    upload = server.send({"a": slice_bytes("1.2.3.4")})
    one = f"/api/studies/{upload}/slices"
    assert server.client.get(f"{one}/1").json() == {"error": "this study has the slices 0 to 0"}
    assert server.client.get(f"{one}/1/map").status_code == 404
    assert server.client.get(f"{one}/-1").status_code == 404
    assert server.client.get(f"{one}/{10**40}").status_code == 404
    server.model.reads = False
    waiting = server.send({"a": slice_bytes("1.2.3.4")})
    assert server.client.get(f"/api/studies/{waiting}/slices/0").status_code == 404
    assert server.client.get(f"/api/studies/{waiting}/triage.html").status_code == 404


def test_a_slice_whose_file_is_gone(server):
    upload = server.send({"a": slice_bytes("1.2.3.4"), "b": slice_bytes("1.2.3.5", z_mm=3)})
    (server.spool.entry(upload).files / "000000.dcm").write_bytes(b"")
    said = series(server.one(upload))
    assert [(one["rows"], one["columns"]) for one in said] == [(None, None), (16, 16)]
    answer = server.client.get(f"/api/studies/{upload}/slices/0")
    assert (answer.status_code, answer.json()["error"]) == (
        404,
        "this slice cannot be read any more; send the study again",
    )


def test_deleting(server):
    upload = server.send({"a": slice_bytes("1.2.3.4")})
    assert server.client.get(f"/api/studies/{upload}/slices/0").status_code == 200
    assert server.client.delete(f"/api/studies/{upload}", headers=OWN).status_code == 204
    assert server.client.get(f"/api/studies/{upload}/slices/0").status_code == 404
    assert server.client.delete(f"/api/studies/{upload}", headers=OWN).status_code == 404
    assert not server.spool.entry(upload).path.exists()
    assert server.list() == []


@pytest.mark.parametrize("state", [spool.RECEIVING, spool.WORKING])
def test_what_is_being_written_is_not_deleted(server, state):
    server.model.reads = False
    upload = server.send({"a": slice_bytes("1.2.3.4")})
    server.spool.entry(upload).turn(state)
    answer = server.client.delete(f"/api/studies/{upload}", headers=OWN)
    assert (answer.status_code, answer.json()) == (409, {"error": f"this study is {state}; delete it once it is done"})
    assert server.one(upload)["state"] == state


def test_progress_is_told_while_the_model_reads(server):
    server.model.reads = False
    upload = server.send({"a": slice_bytes("1.2.3.4")})
    entry = server.spool.entry(upload)
    entry.turn(spool.WORKING)
    assert server.one(upload)["progress"] is None
    entry.tell(spool.Progress("predict", 3, 7))
    assert server.one(upload)["progress"] == {"stage": "predict", "done": 3, "files": 7}


def test_the_queue_is_bounded(server, monkeypatch):
    monkeypatch.setattr(routes, "MOST_WAITING", 2)
    server.model.reads = False
    for _ in range(2):
        server.send({"a": slice_bytes("1.2.3.4")})
    answer = server.client.post("/api/studies", files=form({"a": b""}), headers=OWN)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "10")
    assert len(server.list()) == 2


def test_how_much_is_kept_is_bounded(server, monkeypatch):
    monkeypatch.setattr(routes, "MOST_KEPT", 1)
    server.send({"a": slice_bytes("1.2.3.4")})
    answer = server.client.post("/api/studies", files=form({"a": b""}), headers=OWN)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "10")


def test_uploads_at_once_are_bounded(server, monkeypatch):
    monkeypatch.setattr(routes, "MOST_RECEIVING", 0)
    answer = server.client.post("/api/studies", files=form({"a": b""}), headers=OWN)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")


def test_maps_at_once_are_bounded(server, monkeypatch):
    upload = server.send({"a": slice_bytes("1.2.3.4")})
    monkeypatch.setattr(routes, "MOST_MAPS", 0)
    answer = server.client.get(f"/api/studies/{upload}/slices/0/map")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "10")


def test_without_a_model_nothing_is_taken_and_what_is_done_can_be_seen(server):
    upload = server.send({"a": slice_bytes("1.2.3.4")})
    server.model.fault = "the process of the model ended while it began (SIGKILL)"
    answer = server.client.post("/api/studies", files=form({"a": b""}), headers=OWN)
    assert answer.status_code == 503
    assert "SIGKILL" in answer.json()["error"]
    assert server.client.get(f"/api/studies/{upload}/slices/0").status_code == 200
    assert server.client.get(f"/api/studies/{upload}/slices/0/map").status_code == 503


def test_studies_expire(tmp_path, known):
    with web_server.served(tmp_path / "spool", known, Limits(keep_s=3600.0)) as server:
        done, failed = server.send({"a": slice_bytes("1.2.3.4")}), server.send({"a": b"nothing"})
        server.model.reads = False
        waiting = server.send({"a": slice_bytes("1.2.3.4")})
        kept = shelf.Shelf(server.spool, known, Limits(keep_s=3600.0))
        kept.expire()
        assert len(server.list()) == 3
        shelf.Shelf(server.spool, known, Limits(keep_s=0.0)).expire()
        assert [one["id"] for one in server.list()] == [waiting]
        assert not any(server.spool.entry(upload).path.exists() for upload in (done, failed))


def test_a_server_takes_up_what_another_one_left(tmp_path, known):
    with web_server.served(tmp_path / "spool", known) as server:
        done = server.send({"Jane.dcm": slice_bytes("1.2.3.4")})
        server.model.reads = False
        waiting = server.send({"a": slice_bytes("1.2.3.5")})
        half = server.spool.entry("0" * 32)
        half.begin(name="", received=time.time())
        (half.files / "000000.part").write_bytes(b"half")
        before = server.one(done)
    with web_server.served(tmp_path / "spool", known) as server:
        assert server.one(done) == before
        assert {one["id"]: one["state"] for one in server.list()} == {done: "done", waiting: "waiting"}
        server.model.wake()
        assert server.one(waiting)["state"] == "done"
        assert not half.path.exists()


def test_results_of_another_model_keep_their_labels(server, known):
    upload = server.send({"a": slice_bytes("1.2.3.4")})
    result = server.spool.entry(upload).result
    for name in ("predictions.csv", "triage.csv"):
        path = result / name
        path.write_text(path.read_text().replace("epidural", "other").replace(",any,", ",whole,", 1))
    said = server.one(upload)
    assert said["labels"][:2] == ["whole", "other"]
    assert said["studies"][0]["probability"] == said["studies"][0]["probabilities"][0]
    assert server.list()[0]["labels"] == said["labels"]


def test_a_fault_of_ours_is_an_answer_too_and_the_server_goes_on(server, monkeypatch, capsys):
    def fails(*_):
        raise RuntimeError("Jane Doe")

    monkeypatch.setattr(shelf.Shelf, "everything", fails)
    answer = server.client.get("/api/studies")
    assert answer.status_code == 500
    assert "Jane" not in answer.text
    assert "RuntimeError" in capsys.readouterr().err
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert server.client.get("/api/openapi.json").status_code == 200


def test_pages(server):
    for path in ("/", "/api", "/login"):
        answer = server.client.get(path)
        assert answer.status_code == 200
        assert NOT_A_DEVICE in answer.text
        assert "style=" not in answer.text
        assert "<script>" not in answer.text
    missing = server.client.get("/studies/" + "0" * 32, headers={"accept": "text/html"})
    assert (missing.status_code, missing.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "it may have expired" in missing.text


def test_the_page_of_a_prediction_may_do_nothing(server):
    answer = server.client.get(f"/api/studies/{server.send({'a': slice_bytes('1.2.3.4')})}/triage.html")
    assert answer.text.startswith("<!doctype html>")
    policy = answer.headers["content-security-policy"]
    assert "script-src" not in policy
    assert {"default-src 'none'", "sandbox", "frame-ancestors 'none'"} <= set(policy.split("; "))


def test_json_is_what_it_was_sent_as(server):
    """Names that JSON, UTF-8 or a CSV could trip over come back as they were."""
    names = ["=1+1", "+x", "@y", "naïve/ümlaut", "line\u2028break", "漢字.dcm", "a#7"]
    upload = server.send({name: slice_bytes(f"1.2.3.{n}", z_mm=n) for n, name in enumerate(names)})
    assert [one["file"] for one in series(server.one(upload))] == names
    archive = server.send({"z.zip": zip_bytes({f"{name}": slice_bytes(f"1.2.3.{n}") for n, name in enumerate("-=+")})})
    found = series(server.one(archive))
    assert sorted(one["rows"] for one in found) == [16] * 3  # members whose names a CSV writes otherwise are found


def test_a_list_of_many_is_plain_json(server):
    assert json.loads(server.client.get("/api/studies").text)["most_upload_bytes"] == Limits().most_upload_bytes
    assert limits.MOST_REJECTS == 200
    many = server.send({**{f"x{n}": b"no" for n in range(205)}, "a": slice_bytes("1.2.3.4")})
    said = server.one(many)
    assert (len(said["rejects"]), said["rejected"]) == (200, 205)


def test_a_file_of_many_slices(server):
    data = volume_files.written(volume_files.enhanced(volume_files.head(3)))
    upload = server.send({"enhanced": data})
    found = series(server.one(upload))
    assert [one["file"] for one in found] == ["enhanced#1", "enhanced#2", "enhanced#3"]
    octets = {server.client.get(f"/api/studies/{upload}/slices/{one['n']}").content for one in found}
    assert len(octets) == 3


def test_no_slice_but_a_plain_dicom_report(server):
    report = dicom_file(slice_elements(np.zeros((2, 2), np.int16), Modality=b"SR", PixelData=None))
    said = server.one(server.send({"report": report}))
    assert said["state"] == "failed"


def test_an_upload_of_nothing(server):
    for files in ({}, {".DS_Store": b"x"}, {"__MACOSX/._a": b"x"}):
        data = io.BytesIO()
        answer = server.client.post("/api/studies", files=form(files) or {"other": data}, headers=OWN)
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("no file in the field")
    assert server.spool.entries() == []
