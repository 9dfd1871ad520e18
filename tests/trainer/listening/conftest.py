"""Fixtures of the port.

clock     seconds that go when a test says so
spool     an empty spool
studies   its studies, which are quiet after 10 s of that clock; results are to be sent
inbox     where objects of them go
port      where a server takes objects into it; `called` by whom it likes
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pynetdicom import _config, dimse_messages

from trainer.listening import inbox as inboxes
from trainer.listening import server
from trainer.listening.inbox import Inbox
from trainer.listening.server import Server
from trainer.listening.studies import Studies
from trainer.worklist.spool import Spool

IDLE_S = 10


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def spool(tmp_path) -> Iterator[Spool]:
    made = Spool(tmp_path / "spool" / "studies", "--spool")
    yield made
    made.close()


@pytest.fixture
def studies(spool, clock) -> Studies:
    return Studies(spool, IDLE_S, sends=True, now=clock)


@pytest.fixture
def inbox(studies, tmp_path, monkeypatch) -> Inbox:
    monkeypatch.setattr(inboxes, "MIN_FREE_BYTES", 1)
    return Inbox(tmp_path / "spool" / "incoming", studies)


@pytest.fixture
def serve(studies, inbox, monkeypatch):
    """serve(*callers) -> the port of a server for them."""
    for where, name in (
        (_config, "STORE_RECV_CHUNKED_DATASET"), (_config, "LOG_HANDLER_LEVEL"), (dimse_messages, "NamedTemporaryFile")
    ):  # fmt: skip
        monkeypatch.setattr(where, name, getattr(where, name))  # put back at the end
    monkeypatch.setattr(server, "ENDING_S", 0.2)
    made: list[Server] = []

    def listen(*callers) -> int:
        made.append(Server("ICH", callers, inbox, studies))
        port = made[-1].bind("127.0.0.1", 0)
        made[-1].begin()
        return port

    yield listen
    for one in made:
        one.close()


@pytest.fixture
def port(serve) -> int:
    return serve()
