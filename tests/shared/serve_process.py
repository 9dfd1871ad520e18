"""The command `python -m trainer.serve` in a process of its own, and a client of it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
LONG_S = 120.0
OWN = {"X-ICH": "1"}


class Process:
    """A server that answers. `client`: asks it; `told`: the lines that follow its address."""

    def __init__(self, *flags: object, **environment: str) -> None:
        command = [sys.executable, "-m", "trainer.serve", "--port", "0", *map(str, flags)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout
        line, *self.told = (self._process.stdout.readline() for _ in range(3))
        address = re.match(r"(http://\S+) \(Ctrl-C ends it\)", line)
        assert address, (line, self._process.communicate())
        self.address = address[1]
        self.client = httpx.Client(base_url=self.address, timeout=LONG_S, headers=OWN)
        self.pid = self._process.pid

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def send(self, files: dict[str, bytes]) -> str:
        answer = self.client.post("/api/studies", files=[("files", item) for item in files.items()])
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def list(self) -> list[dict]:
        return self.client.get("/api/studies").json()["studies"]

    def ended(self, upload: str) -> dict:
        """The upload, once it is done or has failed."""
        begin = time.monotonic()
        while (said := self.client.get(f"/api/studies/{upload}").json())["state"] not in ("done", "failed"):
            assert time.monotonic() - begin < LONG_S, said
            time.sleep(0.1)
        return said

    def end(self, number: int) -> tuple[int, str, str]:
        """Exit code, what else stood on stdout, and stderr, after this signal."""
        children = self.children()
        self._process.send_signal(number)
        out, err = self._process.communicate(timeout=LONG_S)
        self.client.close()
        _, alive = psutil.wait_procs(children, timeout=LONG_S)
        assert alive == []
        return self._process.returncode, out, err


@contextlib.contextmanager
def process(*flags: object, **environment: str) -> Iterator[Process]:
    """A server; it is killed at the end where the test has not ended it."""
    made = Process(*flags, **environment)
    try:
        yield made
    finally:
        if made._process.poll() is None:
            made.end(signal.SIGKILL)
