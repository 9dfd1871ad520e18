"""The port: associations, C-ECHO and C-STORE, with limits on what a stranger can cost.

What is taken is said in the negotiation (PS3.8 9.3): CT objects alone, in the transfer syntaxes that can be read. So
a sender learns before it sends. An object goes to the disk as it comes, never whole into memory.
"""

from __future__ import annotations

import functools
import logging
import socket
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom import AE, _config, dimse_messages, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer

from ich_tfrecords.dicom import codestream, header
from trainer.listening.inbox import PREFIX, Inbox
from trainer.listening.peers import Caller, may_call
from trainer.listening.screen import warn
from trainer.listening.studies import Brought, Studies
from trainer.shell.problems import WrongUse

TAKEN = (header.CT_IMAGE, *header.ENHANCED)
SYNTAXES = (*header.NATIVE, *codestream.DECODERS)
MOST_ASSOCIATIONS = 16
MOST_CONNECTIONS = 4 * MOST_ASSOCIATIONS  # those that have not said yet who they are count too
MOST_PDU_BYTES = 1 << 18  # told to senders, and held against them: pynetdicom would take what the length field says
MOST_OBJECT_BYTES = 4 << 30  # as `volumes` reads
GREETING_S = 10  # to say who calls
SILENCE_S = 60  # between two messages, or two parts of one
ENDING_S = 15  # for open associations, once this process is asked to end
MOST_TOLD = 1000  # rejected callers
_CALLING, _CALLED = (1, 1, 3), (1, 1, 7)  # rejected for good, by the service user: title not recognized (PS3.8 9.3.4)


class Server:
    """`bind` it, let it `begin`, `close` it: what it takes goes into `inbox`, `studies` hears how associations end."""

    def __init__(self, title: str, callers: Sequence[Caller], inbox: Inbox, studies: Studies) -> None:
        self._callers, self._inbox, self._studies = tuple(callers), inbox, studies
        self._brought: weakref.WeakKeyDictionary[Any, Brought] = weakref.WeakKeyDictionary()
        self._rejected: set[str] = set()
        self._lock = threading.Lock()
        self._entity = _entity(title)
        self._server: Any = None
        self._thread = threading.Thread(target=self._serve, daemon=True, name="listener")

    def bind(self, host: str, port: int) -> int:
        """Take the port, which the system chooses for 0; who calls waits until `begin`. Raises `WrongUse`."""
        _config.LOG_HANDLER_LEVEL = "none"
        for name in ("pynetdicom", "pydicom"):  # their lines and warnings hold what headers hold
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
            warnings.filterwarnings("ignore", module=name)
        _config.STORE_RECV_CHUNKED_DATASET = True
        # pynetdicom opens one for each object, in the folder of the system, where others look and nobody cleans up
        dimse_messages.NamedTemporaryFile = functools.partial(  # type: ignore[assignment]
            tempfile.NamedTemporaryFile, dir=self._inbox.incoming, prefix=PREFIX
        )
        handlers: list[Any] = [
            (evt.EVT_CONN_OPEN, self._opened),
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_DIMSE_RECV, self._message_ended),
            (evt.EVT_C_ECHO, lambda event: 0x0000),
            (evt.EVT_C_STORE, self._stored),
            (evt.EVT_RELEASED, self._released),
            (evt.EVT_ABORTED, self._aborted),
        ]
        try:
            place: Any = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4]
            self._server = self._entity.make_server(place, evt_handlers=handlers, server_class=_Listener)
        except (OSError, UnicodeError) as error:
            told = getattr(error, "strerror", None) or "no name of a host"
            raise WrongUse(
                f"cannot listen at {host}:{port} ({told}); end what listens there, or choose another --host or --port"
            ) from error
        return int(self._server.server_address[1])

    def begin(self) -> None:
        """Answer who calls."""
        self._entity._servers.append(self._server)  # where pynetdicom looks for it when it ends
        self._thread.start()

    def close(self) -> None:
        """Take no new association, give open ones `ENDING_S` to end, and abort what is left."""
        if not self._thread.is_alive():
            self._server.server_close()
            return
        self._server.shutdown()
        end = time.monotonic() + ENDING_S
        while self._server.active_associations and time.monotonic() < end:
            time.sleep(0.05)
        for association in self._server.active_associations:
            association.abort()

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=0.1)

    def _opened(self, event: evt.Event) -> None:
        place: Any = event.assoc.dul.socket
        place.socket.settimeout(SILENCE_S)
        place.recv = _Limited(place.recv)
        with self._lock:
            self._brought[event.assoc] = self._studies.begin()

    def _requested(self, event: evt.Event) -> None:
        calling: Any = event.assoc.requestor
        titles = [title.strip() for title in (calling.primitive.calling_ae_title, calling.primitive.called_ae_title)]
        if titles[1] != self._entity.ae_title:
            self._reject(event, _CALLED, f"{titles[0]!r} at {calling.address} calls {titles[1]!r}")
        elif not may_call(self._callers, titles[0], calling.address):
            self._reject(event, _CALLING, f"{titles[0]!r} at {calling.address} is none that --allow names")

    def _reject(self, event: evt.Event, reason: tuple[int, int, int], why: str) -> None:
        if why not in self._rejected and len(self._rejected) < MOST_TOLD:  # who asks again and again fills no log
            self._rejected.add(why)
            warn(f"an association was rejected: {why}")
        event.assoc.acse.send_reject(*reason)
        event.assoc.kill()  # which waits until that is sent

    def _message_ended(self, event: evt.Event) -> None:
        place: Any = event.assoc.dul.socket
        place.recv.begin_message()

    def _stored(self, event: evt.Event) -> Dataset:
        """The answer to C-STORE: a status, and where it is no success a comment (PS3.7 C)."""
        request: Any = event.request
        try:
            taken = self._inbox.take(
                Path(event.dataset_path), str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
            )
        except Exception as error:  # pynetdicom refuses the object (C211), and would tell its log alone
            warn(f"an object was refused: {type(error).__name__}, which nobody foresaw")
            raise
        with self._lock:
            if taken.study and event.assoc in self._brought:  # else it was aborted here, at the end
                self._brought[event.assoc].ids.add(taken.study)
        answer = Dataset()
        answer.Status = taken.status
        if taken.comment:
            answer.ErrorComment = taken.comment
        return answer

    def _released(self, event: evt.Event) -> None:
        self._end(event, whole=True)

    def _aborted(self, event: evt.Event) -> None:
        self._end(event, whole=False)

    def _end(self, event: evt.Event, whole: bool) -> None:
        with self._lock:
            brought = self._brought.pop(event.assoc, None)
        if brought:
            self._studies.ended(brought, whole)


def _entity(title: str) -> AE:
    entity = AE(title)
    entity.maximum_associations = MOST_ASSOCIATIONS
    entity.maximum_pdu_size = MOST_PDU_BYTES
    entity.acse_timeout, entity.dimse_timeout, entity.network_timeout = GREETING_S, SILENCE_S, SILENCE_S
    entity.add_supported_context(Verification)
    for kind in TAKEN:
        entity.add_supported_context(kind, [UID(syntax) for syntax in SYNTAXES])
    return entity


class _Listener(ThreadedAssociationServer):
    """Closes connections beyond the limit at once; each would be two threads before it has said a word."""

    daemon_threads = True
    request_queue_size = MOST_CONNECTIONS

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return len(self.active_associations) < MOST_CONNECTIONS


class _Limited:
    """Reads from a connection, and reads no further where a part or a whole message is larger than anything real."""

    def __init__(self, read: Callable[[int], bytearray]) -> None:
        self._read, self._bytes = read, 0

    def __call__(self, wanted_bytes: int) -> bytearray:
        """What `wanted_bytes` asks for, or nothing: the connection then counts as broken."""
        self._bytes += wanted_bytes
        if wanted_bytes > MOST_PDU_BYTES + 6 or self._bytes > MOST_OBJECT_BYTES:
            return bytearray()
        return self._read(wanted_bytes)

    def begin_message(self) -> None:
        """A message is whole: the next one begins."""
        self._bytes = 0
