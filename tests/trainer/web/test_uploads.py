"""Bodies on their way to the disk: forms cut anywhere, caps, slow and broken ones, names."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import tracemalloc
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import web_server
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from web_server import OWN, form, slice_bytes

from trainer.web import limits, uploads
from trainer.web.limits import Limits
from trainer.web.refusal import Refusal
from trainer.web.uploads import Files, Form
from trainer.worklist.spool import Entry

BOUNDARY = b"----aB3"


def body(parts: list[tuple[bytes, bytes]], last: bytes = b"--\r\n") -> bytes:
    """A multipart body of headers and data."""
    pieces = [b"--" + BOUNDARY + b"\r\n" + head + b"\r\n\r\n" + data + b"\r\n" for head, data in parts]
    return b"".join(pieces) + b"--" + BOUNDARY + last


def named(name: str, field: str = "files") -> bytes:
    return f'Content-Disposition: form-data; name="{field}"; filename="{name}"'.encode()


def request(pieces, kind: str = f"multipart/form-data; boundary={BOUNDARY.decode()}", **headers: str) -> Request:
    """A request whose body comes in these pieces; the client is gone after them where the last is None."""
    waiting = list(pieces)

    async def receive() -> dict:
        if not waiting:
            await asyncio.sleep(3600)
        piece = waiting.pop(0)
        if piece is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": bool(waiting)}

    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", kind.encode()), *given]}
    return Request(scope, receive)


def ended(work: Coroutine[Any, Any, list[str]]) -> list[str]:
    """What `work` gives; in a thread, for the browser of other tests may have a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def received(folder: Path, pieces, most_bytes: int = 1 << 20, **given: str) -> list[str]:
    return ended(uploads.receive(request(pieces, **given), folder, most_bytes))


def stored(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def refused(folder: Path, pieces, most_bytes: int = 1 << 20, **given: str) -> Refusal:
    with pytest.raises(Refusal) as found:
        received(folder, pieces, most_bytes, **given)
    return found.value


ODD = [b"\r\n", b"--" + BOUNDARY, b"\r\n--", b"PK\x03\x04x"]


@given(
    files=st.lists(st.binary(max_size=80) | st.sampled_from(ODD), min_size=1, max_size=5),
    cuts=st.lists(st.integers(0, 600), max_size=8),
)  # fmt: skip
def test_files_arrive_whole_wherever_the_body_is_cut(tmp_path_factory, files, cuts):
    whole = body([(named(f"f{n}"), data) for n, data in enumerate(files)])
    if whole.count(b"\r\n--" + BOUNDARY) != len(files):
        return  # a file that holds the boundary: no client would choose that one
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    pieces = [whole[begin:end] for begin, end in itertools.pairwise(places)]
    folder = tmp_path_factory.mktemp("files")
    assert received(folder, pieces) == [f"f{n}" for n in range(len(files))]
    suffix = [".zip" if data.startswith((b"PK\x03\x04", b"PK\x05\x06")) else ".dcm" for data in files]
    assert stored(folder) == {f"{n:06d}{suffix[n]}": data for n, data in enumerate(files)}


@pytest.mark.parametrize(
    ("name", "head", "suffix"),
    [
        ("IM0001", b"", ".dcm"),
        ("a.DCM", b"", ".dcm"),
        ("report.pdf", b"%PDF", ".dcm"),
        ("x.ZIP", b"", ".zip"),
        ("noname", b"PK\x03\x04", ".zip"),
        ("head.nii", b"", ".nii"),
        ("Head.NII.GZ", b"", ".nii.gz"),
        ("a.nii.gz.exe", b"MZ", ".dcm"),
        ("../../x.nii", b"", ".nii"),
    ],
)
def test_a_file_gets_a_number_and_a_suffix_of_a_closed_list(tmp_path, name, head, suffix):
    received(tmp_path, [body([(named(name), head)])])
    assert list(stored(tmp_path)) == [f"000000{suffix}"]


def test_other_fields_and_hidden_files_are_left_aside(tmp_path):
    parts = [
        (named("a", field="other"), b"1"),
        (b'Content-Disposition: form-data; name="files"', b"a text, no file"),
        (named(".DS_Store"), b"2"),
        (named("__MACOSX/._b"), b"3"),
        (named("b"), b"4"),
        (b"Content-Type: text/plain", b"5"),
    ]
    assert received(tmp_path, [body(parts)]) == ["b"]
    assert stored(tmp_path) == {"000000.dcm": b"4"}


@pytest.mark.parametrize(
    ("pieces", "status", "words"),
    [
        ([b"no form at all" * 10], 400, "no multipart form"),
        ([b""], 400, "before its last boundary"),
        ([body([(named("a"), b"x")], last=b"")], 400, "before its last boundary"),
        ([body([(named("a"), b"x")])[:-30]], 400, "before its last boundary"),
        ([body([(named("a"), b"x")])[:70], None], 400, "ended inside"),
        ([body([(b"X: " + b"y" * (1 << 15), b"x")])], 400, "no multipart form"),
        ([body([(b"X: y\r\n" * 200 + named("a"), b"x")])], 400, "no multipart form"),
        ([body([])], 400, "no file in the field"),
    ],
)
def test_bodies_that_are_no_form(tmp_path, pieces, status, words):
    found = refused(tmp_path, pieces)
    assert found.status == status
    assert words in found.text


@pytest.mark.parametrize(
    "kind", ["text/plain", "", "multipart/form-data", "multipart/form-data; boundary=" + "x" * 999]
)
def test_other_kinds_of_body(tmp_path, kind):
    assert refused(tmp_path, [b"x"], kind=kind).status == 400


def test_an_endless_body_ends_at_the_cap(tmp_path):
    """Whatever its length says; the rest is not even asked for."""
    head, _ = body([(named("a"), b"|")]).split(b"|")
    pieces = itertools.chain([head], itertools.repeat(b"x" * 1000))
    asked = []

    async def receive() -> dict:
        asked.append(next(pieces))
        return {"type": "http.request", "body": asked[-1], "more_body": True}

    made = Request(request([]).scope, receive)
    with pytest.raises(Refusal) as found:
        ended(uploads.receive(made, tmp_path, 10_000))
    assert found.value.status == 413
    assert sum(map(len, asked[:-1])) <= 10_000 < sum(map(len, asked))
    assert sum(map(len, stored(tmp_path).values())) <= 10_000


def test_a_length_over_the_cap_is_refused_before_anything_is_read(tmp_path):
    found = refused(tmp_path, [], most_bytes=100, content_length="101")
    assert (found.status, found.text) == (413, "an upload may have 100 bytes; send fewer files, or raise --most_upload")
    assert refused(tmp_path, [b""], most_bytes=100, content_length="1" * 5000).status == 400


def test_there_are_no_more_files_than_the_cap(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_FILES", 3)
    assert refused(tmp_path, [body([(named("a"), b"")] * 4)]).status == 413


def test_a_slow_body_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "PATIENCE_S", 0.05)
    found = refused(tmp_path, [body([(named("a"), b"x")])[:50], b"--"])  # then nothing comes
    assert found.status in (400, 408)
    monkeypatch.setattr(uploads, "PATIENCE_S", 0.0)
    assert refused(tmp_path, [b"", b"", b""]).status == 408


def test_a_body_that_never_comes_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "PATIENCE_S", 0.05)
    assert refused(tmp_path, []).status == 408


def test_a_disk_without_room(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "LEAST_FREE_BYTES", 1 << 80)
    found = refused(tmp_path, [])
    assert (found.status, found.retry_s) == (503, limits.RETRY_S)


@pytest.mark.parametrize("where", [(Files, "write"), (uploads, "write_names"), (Entry, "begin")])
def test_a_disk_that_fills_on_the_way(server, monkeypatch, where):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*where, full)
    answer = server.client.post("/api/studies", files=form({"a": b"x"}), headers=OWN)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    assert [path.name for path in server.spool.root.iterdir()] == ["lock"]


def test_memory_does_not_grow_with_the_file(tmp_path):
    piece = b"x" * (1 << 16)
    head, tail = body([(named("a"), b"|")]).split(b"|")

    def grown(count: int) -> int:
        tracemalloc.start()
        files = Files(tmp_path)
        sink = Form(BOUNDARY, files)
        for data in (head, *[piece] * count, tail):
            sink.write(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sink.ended
        return peak

    assert grown(200) < grown(2) + (1 << 18)


def test_what_was_refused_leaves_nothing(tmp_path, known):
    with web_server.served(tmp_path / "spool", known, Limits(most_upload_bytes=2000)) as server:
        answer = server.client.post("/api/studies", files=form({"a": b"x" * 3000}), headers=OWN)
        assert answer.status_code == 413
        broken = {**OWN, "content-type": "multipart/form-data; boundary=x"}
        assert server.client.post("/api/studies", content=b"--x\r\n", headers=broken).status_code == 400
        assert [path.name for path in server.spool.root.iterdir()] == ["lock"]
        assert server.one(server.send({"a": slice_bytes("1.2.3.4")}))["state"] == "done"


@pytest.mark.parametrize(
    ("names", "title"),
    [
        (["a.zip"], "a.zip"),
        (["scan/1", "scan/sub/2"], "scan (2 files)"),
        (["scan\\1", "scan\\2"], "scan (2 files)"),
        (["scan/1", "other/2"], "2 files"),
        (["scan/1", "2"], "2 files"),
        (["1", "2"], "2 files"),
    ],
)
def test_what_an_upload_is_called(names, title):
    assert uploads.title(names) == title
