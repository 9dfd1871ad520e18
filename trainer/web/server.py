"""The server around the application: its socket, its patience with clients, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import signal
import socket
from collections.abc import Callable, Collection, Iterator

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from trainer.shell.problems import WrongUse
from trainer.web.limits import HEAD_S, LINGER_S, MOST_CONNECTIONS

END_S = 3  # for answers under way, once it is told to end
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


class PatientProtocol(H11Protocol):
    """HTTP that ends a connection whose client takes longer than `HEAD_S` to ask, or to take what it asked for."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio does it for sockets made by itself alone; without it each answer waits 40 ms for an acknowledgement
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._wait(HEAD_S)

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()  # the head is here; the application watches over the body

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # for the next head, or for the rest of a body that was refused: who sends it may not read before its end
        self._wait(LINGER_S if self.conn.their_state is h11.SEND_BODY else HEAD_S)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait(HEAD_S)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Server(uvicorn.Server):
    """Ends well at SIGTERM; at SIGINT the command is told, once all is closed.

    `begun` is called once it answers, and hears both signals.
    """

    def __init__(self, config: uvicorn.Config, begun: Callable[[], None]) -> None:
        super().__init__(config)
        self._begun = begun

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._begun()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if signal.SIGINT in self._captured_signals:
            raise KeyboardInterrupt


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; `port` 0 takes a free one. Raises `WrongUse`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=MOST_CONNECTIONS)
    except OSError as error:
        why = error.strerror or str(error)
        raise WrongUse(f"cannot listen at --host {host} --port {port} ({why}); choose another") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def hosts(host: str) -> Collection[str]:
    """Names by which a server at `host` may be asked; none for any."""
    return {*_LOOPBACK_NAMES, host} if is_loopback(host) else ()


def address(host: str, port: int) -> str:
    """Where a browser finds it."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def config(app: ASGIApp) -> uvicorn.Config:
    """How `app` is served. Nothing is logged: paths and names stay here."""
    for name in ("uvicorn.error", "python_multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return uvicorn.Config(
        app, http=PatientProtocol, ws="none", lifespan="on", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=math.ceil(HEAD_S), timeout_graceful_shutdown=END_S,
        workers=1,  # else WEB_CONCURRENCY says
    )  # fmt: skip


def run(app: ASGIApp, listener: socket.socket, begun: Callable[[], None]) -> None:
    """Serve until SIGTERM; raises `KeyboardInterrupt` after SIGINT. `begun` is called once it answers."""
    _Server(config(app), begun).run([listener])
