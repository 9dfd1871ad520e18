"""The port: who may call, what is taken and how it lies on the disk, what a stranger can cost."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import dicom_files as files
import numpy as np
import pydicom
import pytest
from dicom_files import compressed_file, dicom_file, head_slice, slice_elements
from dicom_peer import associate, split, store
from pynetdicom.sop_class import CTImageStorage, EnhancedCTImageStorage, MRImageStorage, SecondaryCaptureImageStorage
from volume_files import enhanced, head, written

from trainer.listening import inbox as inboxes
from trainer.listening import server
from trainer.listening.inbox import study_id
from trainer.listening.peers import Caller
from trainer.shell.problems import WrongUse

pytestmark = pytest.mark.slow  # each test waits for its peer


def a_slice(number: int = 1, study: str = "1.2.3", syntax: str = files.EXPLICIT, **changes: bytes) -> bytes:
    uids = {"SOPInstanceUID": f"1.3.{number}".encode(), "StudyInstanceUID": study.encode()}
    return dicom_file(slice_elements(head_slice(32, number), **{**uids, **changes}), syntax)


def kept(spool) -> list[Path]:
    return sorted(path for entry in spool.entries() for path in entry.files.iterdir())


def status(answer: pydicom.Dataset) -> int:
    return answer.Status


def _in_time(holds: Callable[[], object]) -> bool:
    """Whether it holds before long."""
    deadline = time.monotonic() + 20
    while not (found := holds()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(found)


def test_an_echo_is_answered(port):
    association = associate(port)
    assert status(association.send_c_echo()) == 0
    association.release()


@pytest.mark.skipif(shutil.which("storescu") is None, reason="DCMTK is not installed")
def test_another_implementation_is_understood(port, spool, tmp_path):
    """DCMTK, which is in most of what stands in hospitals."""
    echo = ["echoscu", "-aec", "ICH", "127.0.0.1", str(port)]
    assert subprocess.run(echo, capture_output=True).returncode == 0
    for number in range(3):
        elements = slice_elements(head_slice(512, number), StudyInstanceUID=b"1.2.3")
        elements[0x00080018] = ("UI", f"1.3.{number}".encode())
        (tmp_path / f"{number}.dcm").write_bytes(dicom_file(elements))
    sent = [
        "storescu",
        "-aec",
        "ICH",
        "127.0.0.1",
        str(port),
        *(str(tmp_path / f"{number}.dcm") for number in range(3)),
    ]
    done = subprocess.run(sent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = {split((tmp_path / f"{number}.dcm").read_bytes()) for number in range(3)}
    assert {split(path.read_bytes())[1] for path in kept(spool)} == {data for _, data in expected}


@pytest.mark.parametrize("syntax", server.SYNTAXES)
def test_an_object_is_kept_as_it_was_sent(port, spool, tmp_path, syntax):
    """Byte by byte, in its transfer syntax, whichever of those that can be read."""
    if syntax in files_native():
        file = a_slice(syntax=syntax)
    else:
        stored = head_slice(32).astype(np.uint16) if syntax == files.RLE else head_slice(32, low=0, high=4000)
        file = packed(stored, syntax, tmp_path)
    association = associate(port, [syntax])
    assert status(store(association, file)) == 0
    association.release()
    (path,) = kept(spool)
    assert split(path.read_bytes()) == split(file)
    meta = pydicom.filereader.read_file_meta_info(path)
    found = pydicom.dcmread(path, stop_before_pixels=True)
    assert (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID) == (CTImageStorage, found.SOPInstanceUID)
    assert path.stat().st_mode & 0o777 == 0o600


def files_native() -> tuple[str, ...]:
    return (files.IMPLICIT, files.EXPLICIT, files.DEFLATED, files.BIG)


def packed(stored, syntax: str, tmp_path: Path) -> bytes:
    """A file in a compressed syntax; where no encoder of the tests makes that one, noise stands for the stream."""
    known = (files.RLE, files.JPEG_LOSSLESS, files.JPEG_LOSSLESS_SV1, files.JPEG_LS, files.J2K_LOSSLESS)
    if syntax in known:
        return compressed_file(stored, syntax, 16, tmp_path, SOPInstanceUID=b"1.3.1", StudyInstanceUID=b"1.2.3")
    elements = slice_elements(stored, SOPInstanceUID=b"1.3.1", StudyInstanceUID=b"1.2.3")
    return files.encapsulated(elements, syntax, bytes(range(256)))


@pytest.mark.real
def test_real_slices_are_kept_as_they_are(port, spool, real_dicom_dir):
    paths = sorted((real_dicom_dir / "ge_head").rglob("*.dcm"))[:5]
    assert paths
    whole = {split(path.read_bytes()) for path in paths}
    association = associate(port, {syntax for syntax, _ in whole})
    for path in paths:
        assert status(store(association, path.read_bytes())) == 0
    association.release()
    assert {split(path.read_bytes()) for path in kept(spool)} == whole


def test_an_enhanced_object_is_kept(port, spool):
    data = enhanced(head(3, seed=1))
    file = written(data)
    association = associate(port, kinds=[EnhancedCTImageStorage])
    assert status(store(association, file, EnhancedCTImageStorage)) == 0
    (path,) = kept(spool)
    assert split(path.read_bytes()) == split(file)
    association.release()


def test_other_kinds_and_unreadable_syntaxes_are_refused_in_the_negotiation(port):
    lossy = "1.2.840.10008.1.2.4.51"
    kinds = [CTImageStorage, MRImageStorage, SecondaryCaptureImageStorage]
    association = associate(port, [files.EXPLICIT, lossy], kinds)
    taken = {(one.abstract_syntax, one.transfer_syntax[0]) for one in association.accepted_contexts}
    assert taken - {("1.2.840.10008.1.1", files.IMPLICIT)} == {(CTImageStorage, files.EXPLICIT)}
    results = {(one.abstract_syntax, one.result) for one in association.rejected_contexts}
    assert {(MRImageStorage, 3), (SecondaryCaptureImageStorage, 3), (CTImageStorage, 4)} == results
    association.release()


@pytest.mark.parametrize(
    ("changes", "called", "expected", "words"),
    [
        ({"Modality": b"MR"}, "", 0xA900, "modality is not CT"),
        ({"SOPClassUID": b"1.2.840.10008.5.1.4.1.1.4"}, "", 0xA900, "another SOP class"),
        ({}, "1.3.77", 0xA900, "another SOP class or instance"),
        ({"StudyInstanceUID": b""}, "", 0xC000, "names no study"),
        ({"StudyInstanceUID": b"1" * 70}, "", 0xC000, "names no study"),
    ],
)
def test_an_object_that_is_not_what_it_was_announced_as_is_refused(port, spool, changes, called, expected, words):
    association = associate(port)
    answer = store(association, a_slice(**changes), sop_uid=called)
    assert (answer.Status, words in answer.ErrorComment) == (expected, True)
    assert kept(spool) == []
    assert status(store(association, a_slice())) == 0  # the association lives on
    association.release()


def test_bytes_that_are_no_data_set_are_refused(port, spool, inbox):
    association = associate(port, [files.EXPLICIT, files.DEFLATED])
    for syntax, expected in ((files.EXPLICIT, 0xA900), (files.DEFLATED, 0xC000)):
        assert store(association, files.meta(syntax) + b"\xff" * 998, sop_uid="1.3").Status == expected
    assert kept(spool) == []
    association.release()
    assert list(inbox.incoming.iterdir()) == []


def test_uids_that_climb_or_are_none_make_no_name(port, spool, tmp_path):
    association = associate(port)
    for number, uid in enumerate(("../../up", "/abs", "ID_1", "a\\b", "nul\0x")):
        store(association, a_slice(number, uid, SOPInstanceUID=uid.encode()), sop_uid=uid)
    association.release()
    names = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    for name in names:
        for part in name.parts:
            assert part in ("spool", "studies", "incoming", "files", "lock", "state.json") or part[:32].isalnum()
    assert len(spool.entries()) >= 4


def test_a_second_time_changes_nothing_and_another_content_takes_its_place(port, spool):
    association = associate(port)
    assert status(store(association, a_slice())) == 0
    (path,) = kept(spool)
    before = path.stat().st_mtime_ns
    assert status(store(association, a_slice())) == 0
    assert path.stat().st_mtime_ns == before
    other = a_slice(2, SOPInstanceUID=b"1.3.1")
    assert status(store(association, other)) == 0
    assert split(path.read_bytes()) == split(other)
    association.release()


def test_a_full_disk_is_a_refusal_and_never_success(port, spool, inbox, monkeypatch, capsys):
    association = associate(port)
    monkeypatch.setattr(inboxes, "MIN_FREE_BYTES", 1 << 62)
    answers = [store(association, a_slice(number)) for number in range(3)]
    assert {answer.Status for answer in answers} == {0xA700}
    assert answers[0].ErrorComment == "the disk of the receiver is full"
    assert kept(spool) == []
    monkeypatch.setattr(inboxes, "MIN_FREE_BYTES", 1)
    assert status(store(association, a_slice())) == 0
    association.release()
    told = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0].partition("studies")[2] or line for line in told]
    assert len(told) == 2
    assert "is full: objects are refused (A700) until there is room" in told[0]
    assert "has room again" in told[1]
    assert list(inbox.incoming.iterdir()) == []


@pytest.mark.parametrize("broken", ["sync", "replace", "sync_folder"])
def test_what_cannot_be_written_is_a_refusal(port, spool, inbox, monkeypatch, capsys, broken):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    association = associate(port)
    owner = {"sync": inboxes.file_system, "replace": Path, "sync_folder": inboxes.atomic}[broken]
    with monkeypatch.context() as patched:
        patched.setattr(owner, broken, fail)
        answer = store(association, a_slice())
    assert answer.Status == 0xA700
    assert "No space left" in answer.ErrorComment
    assert "its sender was refused" in capsys.readouterr().err
    assert status(store(association, a_slice())) == 0  # and again, with success
    association.release()
    assert len(kept(spool)) == 1


def test_an_association_that_breaks_off_inside_an_object_leaves_it_out(port, spool, inbox, monkeypatch):
    association = associate(port)
    sent = []

    def send_a_part(pdu) -> None:
        sent.append(pdu)
        if len(sent) == 3:
            assert _in_time(lambda: list(inbox.incoming.iterdir()))
            association.dul.socket._shutdown_socket()
        elif len(sent) < 3:
            real(pdu)

    real = association.dul.send_pdu
    monkeypatch.setattr(association.dul, "send_pdu", send_a_part)
    big = dicom_file(slice_elements(head_slice(512), SOPInstanceUID=b"1.3.1", StudyInstanceUID=b"1.2.3"))
    association.dimse_timeout = 0.5
    assert "Status" not in store(association, big)
    assert kept(spool) == []
    (left,) = inbox.incoming.iterdir()
    monkeypatch.setattr(inboxes, "STALE_S", 0.0)
    time.sleep(0.01)
    inbox.tidy()
    assert not left.exists()


def test_nothing_lies_in_the_folder_of_the_system_meanwhile(port, inbox, tmp_path, monkeypatch):
    elsewhere = tmp_path / "system"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    seen: list[list[Path]] = []
    take = inbox.take
    monkeypatch.setattr(inbox, "take", lambda *args: (seen.append(list(elsewhere.iterdir())), take(*args))[1])
    association = associate(port)
    assert status(store(association, a_slice())) == 0
    association.release()
    assert seen == [[]]
    assert list(inbox.incoming.iterdir()) == []


def test_only_those_that_are_allowed_may_call(serve, capsys):
    port = serve(Caller.read("CT1"), Caller.read("CT2@192.0.2.7"), Caller.read("CT3@localhost"))
    for title, is_known in (("CT1", True), ("CT2", False), ("CT3", True), ("CT4", False), ("ct1", False)):
        association = associate(port, title=title)
        assert association.is_established is is_known, title
        assert association.is_rejected is not is_known
        if is_known:
            association.release()
        else:
            assert association.acceptor.primitive.reason_str == "Calling AE title not recognised"
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"listen: an association was rejected: {title!r} at 127.0.0.1 is none that --allow names"
        for title in ("CT2", "CT4", "ct1")
    ]


def test_a_caller_that_means_another_is_rejected_and_told_once(port, capsys):
    for _ in range(3):
        association = associate(port, called="OTHER")
        assert association.acceptor.primitive.reason_str == "Called AE title not recognised"
    assert capsys.readouterr().err == "listen: an association was rejected: 'CT1' at 127.0.0.1 calls 'OTHER'\n"


def test_rejections_fill_no_log(port, capsys, monkeypatch):
    monkeypatch.setattr(server, "MOST_TOLD", 2)
    for number in range(4):
        associate(port, called=f"OTHER{number}")
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_associations_are_bounded(serve, monkeypatch):
    monkeypatch.setattr(server, "MOST_ASSOCIATIONS", 2)
    port = serve()
    open_now = [associate(port) for _ in range(2)]
    assert all(one.is_established for one in open_now)
    third = associate(port)
    assert third.is_rejected
    open_now.pop().release()
    assert _in_time(lambda: associate(port).is_established)
    open_now.pop().release()


def test_connections_that_say_nothing_are_bounded_and_closed(serve, monkeypatch):
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 3)
    monkeypatch.setattr(server, "GREETING_S", 1)
    port = serve()
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(6)]
    try:
        for one in silent:
            one.settimeout(10)
            assert one.recv(1) == b""  # at once, or after the time to greet
    finally:
        for one in silent:
            one.close()
    assert _in_time(lambda: associate(port).is_established)


def test_a_part_that_claims_to_be_huge_is_not_read(port):
    """A length of 4 GB in front of a PDU: the connection ends, nothing is allocated for it."""
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.settimeout(10)
        stranger.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFFF) + b"x" * 1000)
        try:
            while stranger.recv(4096):
                pass
        except ConnectionResetError:
            pass
    assert associate(port).is_established


def test_an_object_beyond_the_largest_ends_its_association(port, spool, monkeypatch):
    monkeypatch.setattr(server, "MOST_OBJECT_BYTES", 100_000)
    association = associate(port)
    assert status(store(association, a_slice())) == 0
    large = dicom_file(slice_elements(head_slice(512), SOPInstanceUID=b"1.3.9", StudyInstanceUID=b"1.2.3"))
    assert "Status" not in store(association, large)
    assert _in_time(lambda: not association.is_established)
    assert len(kept(spool)) == 1


def test_many_objects_of_one_association_are_no_large_one(port, spool, monkeypatch):
    monkeypatch.setattr(server, "MOST_OBJECT_BYTES", 20_000)
    association = associate(port)
    for number in range(20):
        assert status(store(association, a_slice(number))) == 0
    association.release()
    assert len(kept(spool)) == 20


def test_what_is_open_goes_on_while_the_port_closes(studies, inbox, serve, monkeypatch, spool):
    serve()  # for what it puts back at the end
    made = server.Server("ICH", (), inbox, studies)
    port = made.bind("127.0.0.1", 0)
    made.begin()
    monkeypatch.setattr(server, "ENDING_S", 30)
    association = associate(port)
    closing = threading.Thread(target=made.close)
    closing.start()
    assert _in_time(lambda: not associate(port).is_established)
    assert status(store(association, a_slice())) == 0
    assert closing.is_alive()
    association.release()
    closing.join(20)
    assert not closing.is_alive()
    assert len(kept(spool)) == 1


def test_what_does_not_end_is_aborted(studies, inbox, serve, monkeypatch):
    serve()  # for what it puts back at the end
    made = server.Server("ICH", (), inbox, studies)
    port = made.bind("127.0.0.1", 0)
    made.begin()
    association = associate(port)
    assert association.is_established
    monkeypatch.setattr(server, "ENDING_S", 0.1)
    made.close()
    assert _in_time(lambda: association.is_aborted)


def test_a_port_that_is_taken_is_one_line(port, studies, inbox):
    with pytest.raises(WrongUse, match=f"cannot listen at 127.0.0.1:{port} .*choose another --host or --port"):
        server.Server("ICH", (), inbox, studies).bind("127.0.0.1", port)


def test_a_host_that_is_no_name_is_one_line(studies, inbox):
    with pytest.raises(WrongUse, match=r"cannot listen at 10\.0\.0\.\.5:0 \(no name of a host\); .*another --host"):
        server.Server("ICH", (), inbox, studies).bind("10.0.0..5", 0)


def test_a_port_that_was_not_begun_is_left(studies, inbox):
    made = server.Server("ICH", (), inbox, studies)
    port = made.bind("127.0.0.1", 0)
    made.close()
    socket.create_server(("127.0.0.1", port)).close()


def test_studies_hear_what_an_association_brought(port, studies, monkeypatch):
    heard: list[tuple[set[str], bool]] = []
    monkeypatch.setattr(studies, "ended", lambda brought, whole: heard.append((brought.ids, whole)))
    for whole in (True, False):
        association = associate(port)
        for number in range(2):
            store(association, a_slice(number, f"1.2.{number}"))
        (association.release if whole else association.abort)()
        assert _in_time(lambda expected=1 if whole else 2: len(heard) == expected)
    both = {study_id("1.2.0"), study_id("1.2.1")}
    assert heard == [(both, True), (both, False)]
