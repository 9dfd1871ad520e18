"""Workers that wait for each other here, where it can be told and ended, before TensorFlow does it deaf and mute.

While TensorFlow waits it holds Python's lock, so no signal is heard and no line is written. So every worker connects
to the chief's address of TF_CONFIG first, where the chief listens. It tells them who is missing, and once nobody is
that they may begin; then it leaves the port to TensorFlow.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from trainer.shell.problems import TrainingFailed, WrongUse
from trainer.shell.vertex import Cluster

TELL_EVERY_S = 20.0
_TURN_S = 0.2
_CONNECT_S = 2.0
_NAMED = 4
_HELLO = re.compile(rb"ich worker (\d{1,6}) of (\d{1,6})\n")
_MISSING = re.compile(rb"missing( \d{1,6})+")
_WORDS = re.compile(rb"[a-z0-9 ]{0,65536}")
_BEGIN, _TWICE, _DIFFERS = b"begin", b"twice", b"differs"


def for_all(place: Cluster, minutes: float, tell: Callable[[str], None]) -> None:
    """Return when every worker of the cluster has come; `tell` gets a line now and then that says who has not.

    `minutes`: how long, 0 for without an end. Raises `TrainingFailed` after that, and `WrongUse` where this task's
    port is taken or another process has come as this task.
    """
    limit_s = 60 * minutes or math.inf
    begin = told = time.monotonic()
    with contextlib.closing(_Chief(place) if place.is_chief else _Other(place)) as side:
        while missing := side.missing():
            now = time.monotonic()
            if now - begin >= limit_s:
                raise TrainingFailed(_gives_up(place, missing, minutes))
            if now - told >= TELL_EVERY_S:
                told = now
                tell(f"waiting for {_named(missing)} since {now - begin:,.0f} s{_end(minutes)}")


def _end(minutes: float) -> str:
    return f", for {minutes:g} minutes at most (wait_minutes)" if minutes else ""


def _gives_up(place: Cluster, missing: Sequence[str], minutes: float) -> str:
    have = "has" if len(missing) == 1 else "have"
    return (
        f"{_named(missing)} {have} not come within {minutes:g} minutes; start every task of TF_CONFIG, see that each "
        f"reaches {place.addresses[0]}, or raise wait_minutes; then the same command on all of them goes on"
    )


def _named(missing: Sequence[str]) -> str:
    more = len(missing) - _NAMED
    return ", ".join(missing[:_NAMED]) + (f" and {more} more" if more > 0 else "")


@contextlib.contextmanager
def no_longer_than(minutes: float, line: str) -> Iterator[None]:
    """End the process, exit code 1 and `line`, where the block takes longer (0: it may); Ctrl-C ends it at once.

    For what holds Python's lock, so that no thread and no handler of ours can run: the watchdog of faulthandler needs
    no lock, but knows no words except a traceback, so a small process hears of it and says the line.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    command = [sys.executable, "-ISc", _SAY, line]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as speaker:
        if minutes and speaker.stdin:
            faulthandler.dump_traceback_later(60 * minutes, exit=True, file=speaker.stdin)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            signal.signal(signal.SIGINT, before)


_SAY = "import sys; sys.stdin.buffer.read(1) and print(sys.argv[1], file=sys.stderr)"


class _Chief:
    """Listens at its own address, and knows which ranks have come."""

    def __init__(self, place: Cluster) -> None:
        self._place = place
        self._ranks: dict[socket.socket, int] = {}
        self._events = selectors.DefaultSelector()
        self._listener = _listener(place.addresses[0])
        self._events.register(self._listener, selectors.EVENT_READ)

    def missing(self) -> list[str]:
        """Addresses of the workers that are not here, after at most one turn; when there are none, all are told."""
        events = self._events.select(_TURN_S)
        for key, _ in events:
            if key.fileobj is self._listener:
                self._accept()
            else:
                self._hear(key.fileobj)
        absent = sorted({*range(1, self._place.workers)} - {*self._ranks.values()})
        if events:
            for connection in self._ranks:
                _send(connection, _told(absent))
        return [self._place.addresses[rank] for rank in absent]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # gone already
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            self._events.register(connection, selectors.EVENT_READ)

    def _hear(self, connection: Any) -> None:
        """Take a greeting; let go of a worker that has left, and of whoever says something else."""
        if connection.fileno() < 0:  # let go of in this turn
            return
        try:
            hello = _HELLO.fullmatch(connection.recv(64))
        except BlockingIOError:
            return
        except OSError:
            hello = None
        if hello is None or connection in self._ranks:
            self._let_go(connection)
        else:
            self._greet(connection, rank=int(hello[1]), workers=int(hello[2]))

    def _greet(self, connection: socket.socket, rank: int, workers: int) -> None:
        if workers != self._place.workers or not 0 < rank < workers:
            self._let_go(connection, _DIFFERS)
            return
        for older in [one for one, its in self._ranks.items() if its == rank]:
            self._let_go(older, _TWICE)
        self._ranks[connection] = rank

    def _let_go(self, connection: socket.socket, why: bytes = b"") -> None:
        if why:
            _send(connection, why)
        self._events.unregister(connection)
        self._ranks.pop(connection, None)
        connection.close()

    def close(self) -> None:
        """Leave the port."""
        for key in list(self._events.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._events.close()


class _Lost(Exception):
    """The chief is not there any more, or somebody else is; the message says why."""


class _Other:
    """A worker that is not the chief: comes to it, and hears from it who is missing."""

    def __init__(self, place: Cluster) -> None:
        self._place = place
        self._connection: socket.socket | None = None
        self._heard = b""
        self._missing = [place.addresses[0]]

    def missing(self) -> list[str]:
        """Addresses of the workers that are not here as far as this one knows, after at most one turn."""
        try:
            if self._connection is None:
                self._come()
            elif _speaks(self._connection):
                self._hear(self._connection.recv(4096))
        except (OSError, _Lost) as error:
            self.close()
            self._missing = [f"{self._place.addresses[0]} ({getattr(error, 'strerror', None) or error})"]
            time.sleep(_TURN_S)
        return self._missing

    def _come(self) -> None:
        self._connection = socket.create_connection(_parts(self._place.addresses[0]), _CONNECT_S)
        self._connection.sendall(b"ich worker %d of %d\n" % (self._place.rank, self._place.workers))
        self._missing = [self._place.addresses[0]]  # until it has answered

    def _hear(self, data: bytes) -> None:
        if not data:
            raise _Lost("it has gone")
        *lines, self._heard = (self._heard + data).split(b"\n")
        if not _WORDS.fullmatch(self._heard):
            raise _Lost("a run that has begun, or another program, answers there")
        for line in lines:
            self._understand(line)

    def _understand(self, line: bytes) -> None:
        if line == _TWICE:
            me = self._place.addresses[self._place.rank]
            raise WrongUse(f"another process has come as {me} too; give each its own task in TF_CONFIG")
        if line == _DIFFERS:
            raise WrongUse(
                f"TF_CONFIG names {self._place.workers} workers here and another number at {self._place.addresses[0]}; "
                "give all tasks the same cluster"
            )
        if line != _BEGIN and not _MISSING.fullmatch(line):
            raise _Lost("another program answers there")
        self._missing = [self._place.addresses[int(rank)] for rank in line.split()[1:]]

    def close(self) -> None:
        """Leave the chief."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._heard = None, b""


def _speaks(connection: socket.socket) -> bool:
    """Whether there is something to hear within a turn; whatever the number of files this process has open."""
    with selectors.DefaultSelector() as events:
        events.register(connection, selectors.EVENT_READ)
        return bool(events.select(_TURN_S))


def _told(absent: Sequence[int]) -> bytes:
    """What the chief tells: `missing 2 5`, or to begin."""
    return b" ".join([b"missing", *(b"%d" % rank for rank in absent)]) if absent else _BEGIN


def _send(connection: socket.socket, line: bytes) -> None:
    with contextlib.suppress(OSError):  # one that has gone is missed at the next turn
        connection.sendall(line + b"\n")


def _parts(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[::1]:port`. Raises `WrongUse`."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise WrongUse(f"TF_CONFIG has the address {address!r}; write host:port; see README, several machines")
    return host.strip("[]"), int(port)


def _listener(address: str) -> socket.socket:
    """A listening socket at the port of an address, on every interface, as TensorFlow listens there later."""
    _, port = _parts(address)
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, backlog=128, dualstack_ipv6=both
        )
    except OSError as error:
        raise WrongUse(
            f"cannot listen at {address}, this task of TF_CONFIG ({error.strerror}); end the worker that still runs "
            "there, or name another port"
        ) from error
