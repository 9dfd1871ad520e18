"""The command that serves: wrong use in one line, a real model from upload to slices, and kills that lose nothing."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import stat
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
from dicom_files import dicom_file, head_slice, slice_elements
from serve_process import process
from web_server import zip_bytes

from ich_tfrecords import NOT_A_DEVICE
from ich_tfrecords.dicom import ct_slice
from trainer import serve
from trainer.worklist.spool import Entry, Spool

TOKEN = "a-token-of-some-length"


def study(number: int, slices: int = 6, side: int = 64) -> dict[str, bytes]:
    """Slices of a study, from feet to head, by the names of their files."""
    made = {}
    for z in range(slices):
        ids = {"SOPInstanceUID": f"1.2.{number}.3.{z}", "StudyInstanceUID": f"1.2.{number}"}
        values = {name: uid.encode() for name, uid in ids.items()}
        values["ImagePositionPatient"] = f"0\\0\\{5 * z}".encode()
        made[f"s{number}/{z}.dcm"] = dicom_file(slice_elements(head_slice(side, 100 * number + z), **values))
    return made


def refused(capsys, *flags: object) -> str:
    """The one line of a command that does not begin."""
    assert serve.main(list(map(str, flags))) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("serve: ")
    assert found.err.count("\n") == 1
    return found.err[:-1]


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.delenv(serve.TOKEN_VARIABLE, raising=False)
    before, mask = signal.getsignal(signal.SIGTERM), os.umask(0o022)
    os.umask(mask)
    yield
    signal.signal(signal.SIGTERM, before)
    os.umask(mask)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--host", "0.0.0.0"), "--host 0.0.0.0 lets others in; give a --token of 16 letters or more"),
        (("--token", "short"), "the token needs 16 or more letters"),
        (("--token", ""), "the token needs 16 or more letters"),
        (("--token", "with blanks in all its length"), "the token needs 16 or more letters"),
        (("--token", "@/no/such/file"), "--token @/no/such/file: the file cannot be read"),
        (("--port", "65536"), "'65536' is no whole number from 0 to 65,535"),
        (("--most_upload", "0"), "'0' is no whole number from 1"),
        (("--data", "gs://bucket/x"), "--data gs://bucket/x is in a bucket"),
        (("--data", ""), "--data: the path is empty"),
        (("--hots", "x"), "unknown flag --hots; did you mean '--host'?"),
    ],
)
def test_wrong_use_is_one_line(capsys, export, flags, words):
    assert words in refused(capsys, "--model", export, "--port", "0", *flags)


def test_places_that_cannot_be_used(capsys, export, tmp_path):
    (tmp_path / "file").write_text("x")
    assert "cannot be made" in refused(capsys, "--model", export, "--port", 0, "--data", tmp_path / "file")
    assert "which is none of this command's" in refused(capsys, "--model", export, "--port", 0, "--data", tmp_path)
    assert str(tmp_path) in refused(capsys, "--model", tmp_path, "--port", 0)
    listened = tmp_path / "listened"
    Entry(listened / ("0" * 32)).begin(ae_title="CT1")
    assert "of another command" in refused(capsys, "--model", export, "--port", 0, "--data", listened)
    with contextlib.closing(Spool(tmp_path / "held", "--data")):
        assert "is in use by process" in refused(capsys, "--model", export, "--port", 0, "--data", tmp_path / "held")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port} (" in refused(capsys, "--model", export, "--port", port)


def test_a_token_out_of_a_file_or_the_environment(tmp_path, monkeypatch):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert serve._token(f"@{tmp_path / 'token'}") == TOKEN
    assert serve._token(None) == ""
    monkeypatch.setenv(serve.TOKEN_VARIABLE, TOKEN)
    assert serve._token(None) == TOKEN
    assert serve._token("another-token-of-length") == "another-token-of-length"
    monkeypatch.setenv(serve.TOKEN_VARIABLE, "short")
    with pytest.raises(serve.WrongUse, match="16 or more"):
        serve._token(None)


@pytest.mark.slow
def test_from_an_upload_to_its_slices(export, tmp_path):
    files = study(1)
    with process("--model", export, "--data", tmp_path / "spool") as server:
        archive, plain = server.send({"one.zip": zip_bytes(files)}), server.send(study(2))
        bad = server.send({"x": b"nothing"})
        said = server.ended(archive)
        assert (said["state"], said["name"]) == ("done", "one.zip")
        (found,) = said["series"]
        assert [one["file"] for one in found["slices"]] == list(files)
        assert all(len(one["probabilities"]) == 6 for one in found["slices"])
        for one, data in zip(found["slices"], files.values()):
            hu = server.client.get(f"/api/studies/{archive}/slices/{one['n']}").content
            np.testing.assert_array_equal(np.frombuffer(hu, "<i2").reshape(64, 64), ct_slice.read_slice(data).hu)
            looks = server.client.get(f"/api/studies/{archive}/slices/{one['n']}/map")
            assert (looks.status_code, len(looks.content)) == (200, 64 * 64)
            assert len(set(looks.content)) > 2
        odd = server.send({"odd.zip": _odd_names()})
        looks = [
            server.client.get(f"/api/studies/{odd}/slices/{n}/map")
            for n in range(len(server.ended(odd)["series"][0]["slices"]))
        ]
        assert [one.status_code for one in looks] == [200, 200, 404, 404]
        assert looks[-1].json()["error"].endswith("2 slices of input 1 are called same; give each a name of its own")
        page = server.client.get(f"/api/studies/{archive}/triage.html")
        assert NOT_A_DEVICE in page.text
        assert "1.2.1" in page.text
        assert server.ended(plain)["studies"][0]["slices"] == 6
        assert server.ended(bad)["error"].startswith("no file gave a prediction")
        assert [one["state"] for one in server.list()] == ["done", "done", "done", "failed"]
        modes = {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in (tmp_path / "spool").rglob("*")}
        assert modes == {0}
        assert "tensorflow" not in Path(f"/proc/{server.pid}/maps").read_text()  # the model has its own process
        kept = f"uploads and results are kept in {tmp_path / 'spool'}, for 24 hours\n"
        assert server.told == [kept, f"{NOT_A_DEVICE}\n"]
        assert server.end(signal.SIGTERM) == (0, "", "")


def _odd_names() -> bytes:
    """An archive of members that a CSV names otherwise, and of two with one name."""
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
        warnings.simplefilter("ignore")
        for name, data in zip(("-1.dcm", "=2", "same", "same"), study(7, slices=4).values()):
            archive.writestr(name, data)
    return out.getvalue()


@pytest.mark.long
@pytest.mark.slow
def test_kills_lose_no_study_that_is_done_and_none_that_waits(export, tmp_path):
    with process("--model", export, "--data", tmp_path / "spool") as server:
        done = server.send(study(1))
        before = server.ended(done)
        (model,) = (one for one in server.children() if "spawn_main" in " ".join(one.cmdline()))
        model.send_signal(signal.SIGSTOP)  # so that it is in the middle when the kill comes
        waiting = [server.send(study(number)) for number in range(2, 5)]
        states = {one["id"]: one["state"] for one in server.list()}
        assert set(states.values()) <= {"done", "working", "waiting"}
        code, _, _ = _killed(server, model)
        assert code == -signal.SIGKILL
    with process("--model", export, "--data", tmp_path / "spool") as server:
        assert server.client.get(f"/api/studies/{done}").json() == before
        for number, upload in enumerate(waiting, 2):
            said = server.ended(upload)
            assert (said["state"], said["studies"][0]["study_uid"]) == ("done", f"1.2.{number}")
        assert server.end(signal.SIGINT)[0] == 130
    assert psutil.pid_exists(model.pid) is False


@pytest.mark.long
@pytest.mark.slow
def test_a_stop_of_the_whole_group_fails_no_study(export, tmp_path):
    """A service manager sends SIGTERM to every process of a service at once."""
    with process("--model", export, "--data", tmp_path / "spool") as server:
        (model,) = (one for one in server.children() if "spawn_main" in " ".join(one.cmdline()))
        model.send_signal(signal.SIGSTOP)
        sent = [server.send(study(number)) for number in range(2)]
        half = _half_an_upload(server.address)
        model.send_signal(signal.SIGTERM)
        model.send_signal(signal.SIGCONT)
        assert server.end(signal.SIGTERM) == (0, "", "")
        half.close()
    assert {path.name for path in (tmp_path / "spool").iterdir()} == {"lock", *sent}
    with process("--model", export, "--data", tmp_path / "spool") as server:
        assert [server.ended(upload)["state"] for upload in sent] == ["done", "done"]


def _half_an_upload(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").rstrip("/").split(":")
    made = socket.create_connection((host, int(port)))
    kind = b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000\r\nX-ICH: 1\r\n"
    head = b"POST /api/studies HTTP/1.1\r\nHost: localhost\r\n" + kind
    made.sendall(head + b'\r\n--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nhalf')
    return made


def _killed(server, model) -> tuple[int, str, str]:
    """SIGKILL of the server; its model goes on, and sees that nobody asks any more."""
    os.kill(server.pid, signal.SIGKILL)
    model.send_signal(signal.SIGCONT)
    return server.end(signal.SIGKILL)


@pytest.mark.slow
def test_a_private_folder_and_a_token(export, tmp_path):
    environment = {"TMPDIR": str(tmp_path), serve.TOKEN_VARIABLE: TOKEN}
    with process("--model", export, **environment) as server:
        assert server.client.get("/api/studies").status_code == 401
        server.client.headers["authorization"] = f"Bearer {TOKEN}"
        server.ended(server.send(study(1)))
        (spool,) = (path for path in tmp_path.iterdir() if path.name.startswith("ich-serve-"))
        assert stat.S_IMODE(spool.stat().st_mode) == 0o700
        assert server.end(signal.SIGTERM) == (0, "", "")
        assert "a folder that goes when it ends" in server.told[0]
        assert not spool.exists()
        assert tempfile.gettempdir() != str(tmp_path)
