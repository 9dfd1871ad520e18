"""Workers that wait for each other: who is named, what ends it, and that the port is free for TensorFlow after it."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
import time
from collections.abc import Callable

import pytest

from trainer.shell import waiting
from trainer.shell.problems import TrainingFailed, WrongUse
from trainer.shell.vertex import Cluster

END_S = 30.0  # generous; nothing waits so long
TURN_S = 0.02


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(waiting, "_TURN_S", TURN_S)


@pytest.fixture
def places() -> Callable[..., list[Cluster]]:
    """places(n): the tasks of a cluster on this machine."""

    def made(workers: int, host: str = "127.0.0.1") -> list[Cluster]:
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(workers)]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            addresses = tuple(f"{host}:{one.getsockname()[1]}" for one in sockets)
        return [Cluster("worker", rank, workers, rank, addresses) for rank in range(workers)]

    return made


class Task(threading.Thread):
    """A worker that waits; `lines` is what it tells, `error` how it ended if not well."""

    def __init__(self, place: Cluster, minutes: float = END_S / 60) -> None:
        super().__init__(daemon=True)
        self.place, self.minutes = place, minutes
        self.lines: list[str] = []
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            waiting.for_all(self.place, self.minutes, self.lines.append)
        except BaseException as error:
            self.error = error

    def ended(self) -> BaseException | None:
        self.join(END_S)
        assert not self.is_alive()
        return self.error


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + END_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(TURN_S)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_all_go_on_when_the_last_has_come(order, places, monkeypatch):
    monkeypatch.setattr(waiting, "TELL_EVERY_S", 0.0)
    cluster = places(3)
    *first, last = order
    early = [Task(cluster[rank]) for rank in first]
    for task in early:
        until(lambda task=task: any(f"waiting for {cluster[last].addresses[last]}" in line for line in task.lines))
    late = Task(cluster[last])
    assert [task.ended() for task in (*early, late)] == [None] * 3
    port = int(cluster[0].addresses[0].rpartition(":")[2])
    socket.create_server(("", port)).close()  # TensorFlow takes it next


def test_one_that_leaves_is_missing_again(places, monkeypatch):
    monkeypatch.setattr(waiting, "TELL_EVERY_S", 0.0)
    cluster = places(3)
    chief = Task(cluster[0])
    left = waiting._Other(cluster[1])
    until(lambda: left.missing() == [cluster[2].addresses[2]])
    until(lambda: bool(chief.lines) and cluster[1].addresses[1] not in chief.lines[-1])
    left.close()
    until(lambda: f"waiting for {cluster[1].addresses[1]}, {cluster[2].addresses[2]} since" in chief.lines[-1])
    others = [Task(cluster[1]), Task(cluster[2])]
    assert [task.ended() for task in (chief, *others)] == [None] * 3


def test_a_chief_that_leaves_is_waited_for(places, monkeypatch):
    monkeypatch.setattr(waiting, "TELL_EVERY_S", 0.0)
    cluster = places(3)
    first, worker = waiting._Chief(cluster[0]), Task(cluster[1])
    until(lambda: first.missing() == [cluster[2].addresses[2]])
    first.close()
    until(lambda: bool(worker.lines) and worker.lines[-1].startswith(f"waiting for {cluster[0].addresses[0]} ("))
    others = [Task(cluster[0]), Task(cluster[2])]
    assert [task.ended() for task in (worker, *others)] == [None] * 3


@pytest.mark.slow
def test_after_the_limit_the_missing_are_named(places):
    cluster = places(3)
    chief, worker, lonely = Task(cluster[0], 0.01), Task(cluster[1]), Task(places(2)[1], 0.01)
    error = chief.ended()
    assert isinstance(error, TrainingFailed)
    assert str(error).startswith(f"{cluster[2].addresses[2]} has not come within 0.01 minutes; start every task of TF_")
    error = lonely.ended()
    assert isinstance(error, TrainingFailed)
    assert str(error).startswith(f"{lonely.place.addresses[0]} (Connection refused) has not come within 0.01 minutes")
    assert worker.is_alive()
    others = [Task(cluster[0]), Task(cluster[2])]  # tried again
    assert [task.ended() for task in (worker, *others)] == [None] * 3


def test_a_process_with_many_open_files(places):
    """select(2) knows no file above 1023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2048)), hard))
    try:
        with contextlib.ExitStack() as stack:
            while stack.enter_context(open(os.devnull)).fileno() < 1100:
                pass
            cluster = places(2)
            chief, worker = Task(cluster[0]), Task(cluster[1])
            assert [task.ended() for task in (chief, worker)] == [None] * 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_a_limit(places):
    cluster = places(2)
    chief = Task(cluster[0], 0)
    time.sleep(10 * TURN_S)
    assert chief.is_alive()
    assert Task(cluster[1], 0).ended() is None
    assert chief.ended() is None


@pytest.mark.slow
def test_the_lines_are_short_and_say_how_long(places, monkeypatch):
    monkeypatch.setattr(waiting, "TELL_EVERY_S", 0.0)
    chief = Task(places(9)[0], 0.01)
    chief.ended()
    assert chief.lines[-1].count("127.0.0.1:") == 4
    assert " and 4 more since " in chief.lines[-1]
    assert chief.lines[-1].endswith(" s, for 0.01 minutes at most (wait_minutes)")


def test_a_task_that_comes_twice_ends_the_older(places, monkeypatch):
    monkeypatch.setattr(waiting, "TELL_EVERY_S", 0.0)
    cluster = places(3)
    chief, older = Task(cluster[0]), Task(cluster[1])
    until(lambda: any(line.startswith(f"waiting for {cluster[2].addresses[2]}") for line in older.lines))
    newer = Task(cluster[1])
    error = older.ended()
    assert isinstance(error, WrongUse)
    assert f"another process has come as {cluster[1].addresses[1]} too" in str(error)
    assert [task.ended() for task in (Task(cluster[2]), chief, newer)] == [None] * 3


def test_clusters_of_different_sizes_are_refused(places):
    two, three = places(2), places(3)
    mixed = Cluster("worker", 2, 3, 2, (two[0].addresses[0], *three[0].addresses[1:]))
    chief, worker = Task(two[0]), Task(mixed)
    error = worker.ended()
    assert isinstance(error, WrongUse)
    assert f"names 3 workers here and another number at {two[0].addresses[0]}" in str(error)
    assert Task(two[1]).ended() is None
    assert chief.ended() is None


def test_a_port_that_is_taken_is_refused(places):
    cluster = places(2)
    port = int(cluster[0].addresses[0].rpartition(":")[2])
    with socket.create_server(("", port)), pytest.raises(WrongUse, match="Address already in use") as caught:
        waiting.for_all(cluster[0], 1, print)
    assert cluster[0].addresses[0] in str(caught.value)


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", b"ich worker 1\n", b"ich worker 0 of 2\n", bytes(64)])
def test_strangers_do_not_count_for_the_chief(said, places):
    cluster = places(2)
    chief = Task(cluster[0])
    host, port = waiting._parts(cluster[0].addresses[0])
    until(lambda: _answers(host, port))
    with socket.create_connection((host, port)) as stranger:
        stranger.sendall(said)
        if said:
            stranger.settimeout(END_S)
            assert stranger.recv(64) in (b"", b"differs\n")
        assert chief.is_alive()
    assert Task(cluster[1]).ended() is None
    assert chief.ended() is None


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port)).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("said", [b"\x00\x00\x12\x04\x00\x00", b"HTTP/1.1 400 Bad Request\r\n", b"hello\n"])
def test_strangers_do_not_count_as_the_chief(said, places, monkeypatch):
    """What TensorFlow says at once to whoever comes, and others."""
    monkeypatch.setattr(waiting, "TELL_EVERY_S", 0.0)
    cluster = places(2)
    with socket.create_server(waiting._parts(cluster[0].addresses[0])) as server:
        worker = Task(cluster[1], 0.02)
        connection, _ = server.accept()
        connection.sendall(said)
        until(lambda: any("another program" in line for line in worker.lines))
        assert isinstance(worker.ended(), TrainingFailed)
        connection.close()


def test_addresses():
    assert waiting._parts("host:1") == ("host", 1)
    assert waiting._parts("[::1]:65535") == ("::1", 65535)
    for bad in ("host:", "host:0", "host:65536", "host:http"):
        with pytest.raises(WrongUse, match="write host:port"):
            waiting._parts(bad)
