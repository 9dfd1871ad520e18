"""The socket: clients that are slow in every way lose their connection, others keep it; addresses and hosts."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from trainer.shell.problems import WrongUse
from trainer.web import server

LONG_S = 20.0  # a test that waits so long has failed
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
MUCH = b"x" * (64 << 20)


async def _read(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


def _refuse(request: Request) -> Response:
    return PlainTextResponse("too large", 413)


ROUTES = [
    Route("/", lambda request: PlainTextResponse("here")),
    Route("/much", lambda request: Response(MUCH)),
    Route("/read", _read, methods=["POST"]),
    Route("/refuse", _refuse, methods=["POST"]),
]


@pytest.fixture
def running(monkeypatch) -> Iterator[uvicorn.Server]:
    monkeypatch.setattr(server, "HEAD_S", 0.3)
    monkeypatch.setattr(server, "LINGER_S", 0.3)
    listener = server.listening("127.0.0.1", 0)
    made = uvicorn.Server(server.config(Starlette(routes=ROUTES)))
    made.port = listener.getsockname()[1]
    thread = threading.Thread(target=made.run, args=([listener],))
    thread.start()
    yield made
    made.should_exit = True
    thread.join(LONG_S)
    assert not thread.is_alive()


@contextlib.contextmanager
def connection(running: uvicorn.Server, sent: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", running.port), LONG_S) as made:
        made.sendall(sent)
        yield made


def until(condition) -> None:
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < LONG_S
        time.sleep(0.02)


def ended(one: socket.socket) -> bytes:
    """What came until the server closed the connection; a timeout fails."""
    came = b""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while data := one.recv(1 << 16):
            came += data
    return came


def answer(one: socket.socket, last: bytes = b"here") -> bytes:
    """What comes up to `last`, with which the answer ends."""
    came = b""
    while not came.endswith(last):
        data = one.recv(1 << 16)
        assert data, came
        came += data
    return came


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX-A: "])
def test_who_sends_no_whole_head_is_let_go(running, sent):
    with connection(running, sent) as one:
        assert ended(one) == b""
    until(lambda: not running.server_state.connections)


@pytest.mark.slow
def test_a_head_that_comes_letter_by_letter_does_not_buy_time(running):
    with connection(running, b"GET / HTTP/1.1\r\n") as one, contextlib.suppress(ConnectionError):
        begin = time.monotonic()
        while time.monotonic() - begin < LONG_S:
            one.sendall(b"X")
            time.sleep(0.05)
        pytest.fail("the server went on listening")


@pytest.mark.slow
def test_who_does_not_take_the_answer_is_let_go(running):
    with connection(running, GET.replace(b"/ ", b"/much ", 1)) as one:
        until(lambda: running.server_state.connections)
        until(lambda: not running.server_state.connections)
        assert len(ended(one)) < len(MUCH)


@pytest.mark.slow
def test_a_body_that_was_refused_is_not_taken_to_its_end(running):
    with connection(running, POST % (b"/refuse", 1 << 40)) as one:
        assert answer(one, b"too large").startswith(b"HTTP/1.1 413")
        begin = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - begin < LONG_S:
                one.sendall(b"x" * (1 << 16))
            pytest.fail("the server went on taking it")


@pytest.mark.slow
def test_a_body_that_takes_its_time_is_watched_by_the_application_alone(running):
    with connection(running, POST % (b"/read", 4)) as one:
        for _ in range(4):
            time.sleep(0.2)  # together longer than HEAD_S
            one.sendall(b"x")
        assert answer(one, b"\r\n\r\n4").startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_a_connection_serves_again_and_again(running):
    with connection(running) as one:
        for _ in range(5):
            one.sendall(GET)
            assert answer(one).startswith(b"HTTP/1.1 200")
            time.sleep(0.1)
        assert ended(one) == b""


def test_connections_are_bounded(running, monkeypatch):
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 2)
    monkeypatch.setattr(server, "HEAD_S", LONG_S)
    with connection(running), connection(running):
        until(lambda: len(running.server_state.connections) == 2)
        with connection(running) as third:
            assert ended(third) == b""
    until(lambda: not running.server_state.connections)
    with connection(running, GET) as one:
        assert answer(one).startswith(b"HTTP/1.1 200")


def test_no_answer_waits_for_an_acknowledgement(running):
    with connection(running, GET) as one:
        answer(one)
        (there,) = running.server_state.connections
        sock = there.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("sent", [b"\0\xff\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"A" * (1 << 17)])
def test_what_is_no_request_ends_only_its_connection(running, sent, capfd):
    with connection(running) as one:
        with contextlib.suppress(ConnectionError):
            one.sendall(sent)
        assert ended(one).startswith((b"HTTP/1.1 400", b""))
    with connection(running, GET) as one:
        assert answer(one).startswith(b"HTTP/1.1 200")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *((host, True) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "scans.example", "", "127.0.0.1.evil.example")),
    ],
)
def test_what_only_this_machine_reaches(host, loopback):
    assert server.is_loopback(host) is loopback
    assert bool(server.hosts(host)) is loopback


def test_a_port_that_is_taken_is_one_line():
    with server.listening("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(WrongUse, match=rf"cannot listen at --host 127.0.0.1 --port {port} \(.*\); choose another"):
            server.listening("127.0.0.1", port)
    with pytest.raises(WrongUse, match=r"cannot listen at --host no\.such\.host\.example"):
        server.listening("no.such.host.example", 0)


@pytest.mark.parametrize(
    ("host", "told"), [("127.0.0.1", "http://127.0.0.1:80/"), ("::1", "http://[::1]:80/"), ("a.b", "http://a.b:80/")]
)
def test_the_address(host, told):
    assert server.address(host, 80) == told


def test_variables_of_other_servers_decide_nothing(monkeypatch):
    monkeypatch.setenv("WEB_CONCURRENCY", "many")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    made = server.config(Starlette())
    assert (made.workers, made.proxy_headers) == (1, False)
