"""A Cloud Storage server on loopback for tests: `bucket_api` behind HTTP/1.1, with faults on demand.

    with BucketServer() as server:
        bucket = server.client().bucket(server.bucket())
        server.fail(r"GET .*alt=media", how="short", times=2)
        bucket.blob("a").download_as_bytes()
        server.injected  # Counter({'short': 2})

Requests come in at once, one thread a connection, and are carried out one after the other. Everything runs in this
process: `requests`, `pages` and `most_in_flight` tell what a client asked. What the server lacks: see `bucket_api`.
"""

from __future__ import annotations

import contextlib
import http.server
import itertools
import json
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bucket_api import Api
from bucket_faults import SPOILS_ANSWER, STATUSES, Fault, Faults, flipped
from bucket_requests import Answer, Headers, Request, error


class Seen(NamedTuple):
    """One request as it came in; `range` is its Range header."""

    method: str
    kind: str
    name: str
    bucket: str
    query: dict[str, str]
    range: str | None


@dataclass
class _Flight:
    """Requests under way from one `clear` to the next."""

    now: int = 0
    most: int = 0
    over: threading.Event = field(default_factory=threading.Event)


class BucketServer:
    """Buckets in memory at `url`, from `with` to its end."""

    def __init__(self) -> None:
        self.requests: list[Seen] = []
        self.pages: list[int] = []  # entries on each page of a listing
        self._flight = _Flight()
        self._faults = Faults()
        self._numbers = itertools.count(1)
        self._changing = threading.Lock()
        self._clients: list[Any] = []
        self._api = Api()

    def __enter__(self) -> BucketServer:
        self._http = _Server(self)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._flight.over.set()
        for client in self._clients:
            client.close()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @property
    def url(self) -> str:
        """What STORAGE_EMULATOR_HOST holds."""
        return f"http://127.0.0.1:{self._http.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables under which a client comes here, and asks for nothing but what it is told to.

        google-cloud-storage looks up each bucket once in a thread of its own, for its traces.
        """
        return {"STORAGE_EMULATOR_HOST": self.url, "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA": "true"}

    def client(self) -> Any:
        """A google.cloud.storage client of this server, closed with it."""
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        options = {"api_endpoint": self.url}
        made = storage.Client(project="test", credentials=AnonymousCredentials(), client_options=options)
        self._clients.append(made)
        return made

    def bucket(self, name: str | None = None) -> str:
        """The name of a new, empty bucket; made without HTTP, so that no fault befalls it."""
        name = name or f"bucket-{next(self._numbers)}"
        headers = Headers({"content-type": "application/json"})
        body = json.dumps({"name": name}).encode()
        answer = self._api.answer(self._api.parse("POST", "/storage/v1/b?project=test", headers, body))
        if answer.status != 200:
            raise ValueError(f"bucket {name}: {answer.status} {answer.body.decode()}")
        return name

    def fail(
        self,
        match: str | Callable[[str], object] = "",
        how: str = "503",
        times: int | None = 1,
        after: int = 0,
        seconds: float = 2.0,
    ) -> Fault:
        """Adds a fault for requests whose "METHOD path?query NAME" `match` (a pattern or a callable) takes.

        It lets `after` of them pass and strikes the next `times` (None: for ever). `how`: "403", "404", "429", "500",
        "503" or "reset" (RST) instead of carrying the request out; "lost_answer" carries it out, then RST; "short" (the
        whole Content-Length, half the body, an orderly close), "reset_body" (half the body, then RST) and "corrupt"
        (one bit of a download's body, headers kept) spoil the answer (of an answer without a body the first two leave
        nothing, the third everything); "slow" waits `seconds` first. Faults are tried in the order they were added; at
        most one befalls a request.
        """
        return self._faults.add(match, how, times, after, seconds)

    def random_faults(self, rate: float, seed: int = 0) -> None:
        """From now on a request that no other fault befalls fails with this chance: 503, reset, or a short download."""
        self._faults.by_chance(rate, seed)

    def clear(self) -> None:
        """No faults, nothing seen yet, rewrites in one call; slow answers come at once. Buckets stay."""
        self._faults.clear()
        self.rewrite_in(1)
        with self._changing:
            self.requests, self.pages = [], []
            self._flight.over.set()
            self._flight = _Flight()

    def rewrite_in(self, calls: int) -> None:
        """From now on a rewrite takes so many calls, each but the last answered with a token for the next."""
        self._api.rewrite_calls = calls

    @property
    def faults(self) -> list[Fault]:
        return self._faults.rules

    @property
    def injected(self) -> Counter[str]:
        """How many faults struck, by kind."""
        return self._faults.injected

    @property
    def most_in_flight(self) -> int:
        """How many requests were under way at once, at most: from their arrival until their answer sets out.

        Never more than the client had open: one that waits for an answer before it asks again counts as one.
        """
        return self._flight.most

    @property
    def kinds(self) -> Counter[str]:
        """How many requests of each kind (see `bucket_requests.Request`) came in."""
        return Counter(seen.kind for seen in self.requests)

    @contextlib.contextmanager
    def _in_flight(self) -> Iterator[_Flight]:
        with self._changing:
            flight = self._flight
            flight.now += 1
            flight.most = max(flight.most, flight.now)
        try:
            yield flight
        finally:
            with self._changing:
                flight.now -= 1

    def take(self, method: str, target: str, headers: Headers, body: bytes) -> tuple[Answer, Fault | None]:
        """The answer to a request, and the fault that befell it; noted before it is carried out."""
        request = self._api.parse(method, target, headers, body)
        query, asked = request.query, headers.get("range")
        with self._changing:
            self.requests.append(Seen(method, request.kind, request.name, request.bucket, query, asked))
        with self._in_flight() as flight:
            fault = self._faults.strike(request)
            return self._answer(request, fault, flight.over), fault

    def _answer(self, request: Request, fault: Fault | None, over: threading.Event) -> Answer:
        if fault and fault.how in STATUSES:
            return error(int(fault.how), STATUSES[fault.how])
        if fault and fault.how == "reset":
            return Answer(503)  # never sent
        if fault and fault.how == "slow":
            over.wait(fault.seconds)
        answer = self._api.answer(request)
        if answer.entries is not None:
            with self._changing:
                self.pages.append(answer.entries)
        return answer


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, owner: BucketServer) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", 0), _Connection)

    def shutdown_request(self, request: Any) -> None:
        """Closes at once: the FIN that a shutdown sends first would come before a reset."""
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silence where the client has left; anything else is a bug of this server."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Connection(http.server.BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave together

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = Headers({name.lower(): value for name, value in self.headers.items()})
        if "transfer-encoding" in headers:
            return self._send(error(411, "Content-Length is needed"))
        answer, fault = self.server.owner.take(self.command, self.path, headers, body)
        if fault and fault.how in SPOILS_ANSWER:
            return self._spoil(answer, fault.how)
        return self._send(answer)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _spoil(self, answer: Answer, how: str) -> None:
        """What is left of an answer; of one without a body nothing where half the body was to come."""
        if how == "corrupt":
            return self._send(answer, flipped(answer.body))
        if answer.body and how in ("short", "reset_body"):
            self._send(answer, answer.body[: len(answer.body) // 2])
        if how != "short":
            self._reset()
        self.close_connection = True
        return None

    def _send(self, answer: Answer, body: bytes | None = None) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.status not in (204, 304):
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body if body is None else body)
        self.wfile.flush()

    def _reset(self) -> None:
        """RST at the close that follows."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def log_message(self, *_: object) -> None:
        """Silence."""
