"""The other side of DICOM's network in tests: a sender of any bytes, and receivers by C-STORE and by STOW-RS."""

from __future__ import annotations

import http.server
import io
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pydicom
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import CTImageStorage, Verification

EXPLICIT = "1.2.840.10008.1.2.1"


def split(file: bytes) -> tuple[str, bytes]:
    """Transfer syntax and data set, as it is encoded, of a file."""
    whole = io.BytesIO(file)
    whole.seek(132)  # behind preamble and prefix
    meta = pydicom.filereader._read_file_meta_info(whole)
    return str(meta.TransferSyntaxUID), whole.read()


def associate(
    port: int,
    syntaxes: Iterable[str] = (EXPLICIT,),
    kinds: Iterable[str] = (CTImageStorage,),
    title: str = "CT1",
    called: str = "ICH",
    pdu_bytes: int = 16382,
) -> Association:
    """An association with this machine, established or not; a context for each kind and each syntax."""
    entity = AE(title)
    entity.add_requested_context(Verification)
    for kind in kinds:
        for syntax in syntaxes:
            entity.add_requested_context(kind, syntax)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
    return entity.associate("127.0.0.1", port, ae_title=called, max_pdu=pdu_bytes)


def store(association: Association, file: bytes, kind: str = CTImageStorage, sop_uid: str = "") -> pydicom.Dataset:
    """The answer to C-STORE of the very bytes of a file's data set; an empty one where there is no answer."""
    syntax, data = split(file)
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID = UID(kind)
    request.AffectedSOPInstanceUID = UID(sop_uid or uid_of(file))
    request.DataSet = io.BytesIO(data)
    (context,) = [
        one for one in association.accepted_contexts if one.transfer_syntax[0] == syntax and one.abstract_syntax == kind
    ]
    association._reactor_checkpoint.clear()
    while not association._is_paused:
        pass
    association.dimse.send_msg(request, context.context_id)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    found = pydicom.Dataset()
    if answer is not None:
        found.Status, found.ErrorComment = answer.Status, getattr(answer, "ErrorComment", None) or ""
    return found


def uid_of(file: bytes) -> str:
    """SOPInstanceUID of a file."""
    return str(pydicom.dcmread(io.BytesIO(file), stop_before_pixels=True, force=True).SOPInstanceUID)


class Archive:
    """A PACS by C-STORE: `held` are the data sets that it took; it answers with `status`."""

    def __init__(self) -> None:
        self.held: list[pydicom.Dataset] = []
        self.calls: list[str] = []
        self.status, self.port = 0x0000, 0
        self._entity = AE("PACS")

    def _take(self, event: evt.Event) -> int:
        if self.status == 0:
            found = event.dataset
            found.decode()
            self.held.append(found)
            self.calls.append(event.assoc.requestor.ae_title)
        return self.status

    @contextmanager
    def open(self, kinds: Iterable[str], port: int = 0) -> Iterator[Archive]:
        """It listens inside of the block."""
        self._entity.supported_contexts = []
        for kind in kinds:
            self._entity.add_supported_context(kind)
        server = self._entity.start_server(
            ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._take)]
        )
        assert server is not None
        self.port = server.server_address[1]
        try:
            yield self
        finally:
            server.shutdown()


class WebArchive:
    """A PACS by STOW-RS: `held` are the data sets that it took, `logins` what stood in Authorization."""

    def __init__(self) -> None:
        self.held: list[pydicom.Dataset] = []
        self.logins: list[str] = []
        self.paths: list[str] = []
        self.status, self.answer = 200, b"{}"

    @contextmanager
    def open(self) -> Iterator[str]:
        """The address of its studies, inside of the block."""
        archive = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self._body()
                archive.paths.append(self.path)
                archive.logins.append(self.headers.get("Authorization", ""))
                if archive.status == 200:
                    archive.held += _parts(body, str(self.headers["Content-Type"]))
                self.send_response(archive.status)
                self.send_header("Content-Type", "application/dicom+json")
                self.send_header("Content-Length", str(len(archive.answer)))
                self.end_headers()
                self.wfile.write(archive.answer)

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers["Content-Length"]))
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def log_message(self, *_: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/dicom-web/studies"
        finally:
            server.shutdown()
            server.server_close()


def _parts(body: bytes, kind: str) -> list[pydicom.Dataset]:
    found = re.search(r'boundary="?([^";]+)', kind)
    assert found
    parts = body.split(b"--" + found[1].encode())[1:-1]
    return [pydicom.dcmread(io.BytesIO(part.partition(b"\r\n\r\n")[2])) for part in parts]
